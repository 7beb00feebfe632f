package main

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/schollz/progressbar/v3"

	"github.com/provledger/provledger/client/artifact"
	"github.com/provledger/provledger/client/lineage"
)

// progressDelay keeps short work silent: a bar that flashes tells nothing.
const progressDelay = 500 * time.Millisecond

// progress shows how far long work is, if somebody watches. total <= 0 means unknown. The returned functions count and end it.
func (a *app) progress(what string, total int64, bytes bool) (add func(int64), done func()) {
	if !isTerminal(a.stderr) {
		return func(int64) {}, func() {}
	}
	if total <= 0 {
		total = -1
	}
	o := []progressbar.Option{
		progressbar.OptionSetWriter(a.stderr), progressbar.OptionSetDescription(what), progressbar.OptionClearOnFinish(),
		progressbar.OptionThrottle(100 * time.Millisecond), progressbar.OptionSetWidth(24), progressbar.OptionShowCount(),
		progressbar.OptionSetPredictTime(true),
	}
	if bytes {
		o = append(o, progressbar.OptionShowBytes(true))
	}
	bar := progressbar.NewOptions64(total, o...)
	bar.StartWithoutRender() // else its clock starts with the first bytes that it is told of, and shows terabytes a second
	start := time.Now()
	var waiting atomic.Int64
	add = func(n int64) {
		waiting.Add(n)
		if time.Since(start) > progressDelay {
			_ = bar.Add64(waiting.Swap(0))
		}
	}
	return add, func() { _ = bar.Clear() }
}

// hash computes the identity of a file or directory, with progress. It always reads the bytes: there is no cache to be wrong.
func (a *app) hash(ctx context.Context, path string, also ...lineage.Algorithm) (*artifact.Artifact, error) {
	add, done := func(int64) {}, func() {}
	if isTerminal(a.stderr) { // only then is it worth walking a directory for its size
		add, done = a.progress("hashing "+path, artifact.Total(path), true)
	}
	defer done()
	x, err := artifact.Hash(ctx, path, artifact.Options{Progress: add, Also: also})
	if err != nil {
		return nil, err
	}
	if x.Followed != "" {
		a.noteOnce("%s is a symbolic link; what was hashed is %s", path, x.Followed)
	}
	for _, d := range x.LeftOut {
		a.noteOnce("%s: %s is left out of the digest (it holds a ledger)", path, d)
	}
	return x, nil
}
