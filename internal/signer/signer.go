// Package signer signs checkpoints, and never two roots for one size.
//
// The root that a checkpoint covers is committed by raft and recomputed by this node before it gets here. The signer keeps its own
// record of the largest size that it signed for each origin, in memory and, shortly behind, in a file of two slots. After a start it
// signs nothing for an origin until the tree has reached the recorded size with the recorded root: a node whose state went back, or was
// swapped, stays silent. The record is a lower bound, so being behind costs nothing but a later alarm.
//
// Private keys are never in raft, in a store or in a backup. A log's Ed25519 key is in a file of its own, or is derived from the node's
// 32-byte secret. A node may have neither: it then signs nothing for that log.
package signer

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/provledger/provledger/internal/checkpoint"
	"github.com/provledger/provledger/internal/merkle"
)

const (
	// SecretBytes is the length of a node's secret.
	SecretBytes = 32
	// seedTag separates the derivation of log keys from any later use of the secret.
	seedTag = "provledger/logkey/v1\x00"
	// persistEvery bounds how far the record on disk is behind what was signed.
	persistEvery = 100 * time.Millisecond
)

// Errors of Checkpoint.
var (
	// ErrFork means that another root was signed for this size, or that the tree does not contain what was signed: never sign again.
	ErrFork = errors.New("refusing to sign a second history")
	// ErrBehind means that the tree has not yet reached what was signed before the last start.
	ErrBehind = errors.New("the tree has not reached the size that was signed before")
)

// Options of a signer.
type Options struct {
	FS  vfs.FS
	Dir string // for the records of what was signed
	// Secret is what log keys are derived from; nil on a node that has none.
	Secret *[SecretBytes]byte
	// KeyDir holds private keys, one a file *.key that nobody else may read, see [ParseKey]; "" for none. A key file wins over the secret.
	KeyDir string
	// Tree returns the size of the current tree of an origin, and its root at an earlier size.
	Tree   func(origin string) (size uint64, rootAt func(uint64) (merkle.Hash, error), err error)
	Logger *slog.Logger
	// Die ends the process when the record cannot be kept.
	Die func(reason string, err error)
}

// Signer holds the keys of all logs of a node. It may be used from any goroutine.
type Signer struct {
	o    Options
	keys *keys
	stop chan struct{}
	done chan struct{}

	mu   sync.Mutex
	logs map[string]*logSigner

	made, refused atomic.Uint64 // signatures; checkpoints that would have contradicted the tree or what was signed
}

// Counts returns how many checkpoints were signed since the start, and how many were refused because they contradicted the tree or what was
// signed before.
func (s *Signer) Counts() (made, refused uint64) { return s.made.Load(), s.refused.Load() }

// logSigner is the state of one origin, under its own lock, so that logs sign in parallel.
type logSigner struct {
	mu     sync.Mutex
	key    *checkpoint.Key
	file   *record
	armed  bool // the tree has reached the record that was found at the start
	signed signed
	dirty  bool // signed is ahead of the file
	recent [recentNotes]struct {
		signed
		note []byte
	}
}

// recentNotes are kept so that the callers of one command, and of the few that are in flight, share one signature each.
const recentNotes = 64

// signed is the largest size that was signed, with its root.
type signed struct {
	size uint64
	root merkle.Hash
}

// Open reads the key files and prepares the directory of records. No record is read until its log is first used.
func Open(o Options) (*Signer, error) {
	keys, err := openKeys(o)
	if err != nil {
		return nil, fmt.Errorf("signer: %w", err)
	}
	if err := o.FS.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("signer: %w", err)
	}
	if err := syncDir(o.FS, o.FS.PathDir(o.Dir)); err != nil {
		return nil, fmt.Errorf("signer: %w", err)
	}
	s := &Signer{o: o, keys: keys, stop: make(chan struct{}), done: make(chan struct{}), logs: map[string]*logSigner{}}
	go s.persistLoop()
	return s, nil
}

// VKey returns the signed-note verifier key of an origin. The error wraps ErrNoKey when this node has no key of it.
func (s *Signer) VKey(origin string) (string, error) {
	k, err := s.keys.key(origin)
	if err != nil {
		return "", err
	}
	return k.VKey(), nil
}

// Has reports whether this node can sign for an origin under the verifier key with which its log was made.
func (s *Signer) Has(origin, vkey string) bool {
	got, err := s.VKey(origin)
	return err == nil && got == vkey
}

func (s *Signer) log(origin string) (*logSigner, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.logs[origin]; l != nil {
		return l, nil
	}
	key, err := s.keys.key(origin)
	if err != nil {
		return nil, err
	}
	file, last, err := openRecord(s.o.FS, s.o.Dir, origin)
	if err != nil {
		return nil, err
	}
	l := &logSigner{key: key, file: file, signed: last, armed: last.size == 0}
	s.logs[origin] = l
	return l, nil
}

// Checkpoint returns the signed note over (origin, size, root). Recent ones are kept; a new one costs one Ed25519 signature. Whatever
// the caller believes, root is compared with what this node's tree has at that size, a second computation from stored tiles (H14), and a
// node that does not serve its trees, being quarantined, signs nothing (S13). Errors wrap ErrNoKey, ErrFork or ErrBehind, or are those of Tree.
func (s *Signer) Checkpoint(origin string, size uint64, root merkle.Hash) ([]byte, error) {
	note, err := s.checkpoint(origin, size, root)
	if errors.Is(err, ErrFork) { // not ErrBehind: a follower that has just come back is that for a moment
		s.refused.Add(1)
	}
	return note, err
}

func (s *Signer) checkpoint(origin string, size uint64, root merkle.Hash) ([]byte, error) {
	treeSize, rootAt, err := s.o.Tree(origin)
	if err != nil {
		return nil, err
	}
	l, err := s.log(origin)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.armed {
		if err := l.arm(origin, treeSize, rootAt); err != nil {
			return nil, err
		}
	}
	kept := &l.recent[size%recentNotes]
	if kept.note != nil && kept.size == size {
		if kept.root != root {
			return nil, fmt.Errorf("%w: size %d was signed with root %s, asked for %s", ErrFork, size, kept.root, root)
		}
		return kept.note, nil
	}
	got, err := rootAt(size)
	if err != nil {
		return nil, err
	}
	if got != root {
		return nil, fmt.Errorf("%w: at size %d the tree has root %s, asked for %s", ErrFork, size, got, root)
	}
	if size > 0 && size == l.signed.size && root != l.signed.root {
		return nil, fmt.Errorf("%w: size %d was signed with root %s, asked for %s", ErrFork, size, l.signed.root, root)
	}
	note, err := checkpoint.Sign(checkpoint.Checkpoint{Origin: origin, Size: size, Root: root}, l.key)
	if err != nil {
		return nil, err
	}
	s.made.Add(1)
	kept.signed, kept.note = signed{size, root}, note
	if size > l.signed.size {
		l.signed, l.dirty = signed{size, root}, true
	}
	return note, nil
}

// arm lets a log sign once its tree contains what was signed before the start.
func (l *logSigner) arm(origin string, size uint64, rootAt func(uint64) (merkle.Hash, error)) error {
	if size < l.signed.size {
		return fmt.Errorf("%w: %s is at %d, signed was %d; restore the missing entries or start a new origin", ErrBehind, origin, size, l.signed.size)
	}
	root, err := rootAt(l.signed.size)
	if err != nil {
		return err
	}
	if root != l.signed.root {
		return fmt.Errorf("%w: %s at size %d was signed with root %s, the tree has %s", ErrFork, origin, l.signed.size, l.signed.root, root)
	}
	l.armed = true
	return nil
}

func (s *Signer) persistLoop() {
	defer close(s.done)
	t := time.NewTicker(persistEvery)
	defer t.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-t.C:
			if err := s.persist(); err != nil {
				s.o.Die("cannot record what was signed", err)
				return
			}
		}
	}
}

// persist writes what is ahead of the files.
func (s *Signer) persist() error {
	s.mu.Lock()
	all := make([]*logSigner, 0, len(s.logs))
	for _, l := range s.logs {
		all = append(all, l)
	}
	s.mu.Unlock()
	var errs []error
	for _, l := range all {
		l.mu.Lock()
		last, dirty := l.signed, l.dirty
		l.dirty = false
		l.mu.Unlock()
		if dirty {
			if err := l.file.write(last); err != nil { // outside the lock: signing does not wait for the disk
				errs = append(errs, err)
				l.mu.Lock()
				l.dirty = true
				l.mu.Unlock()
			}
		}
	}
	return errors.Join(errs...)
}

// Close writes the records and stops.
func (s *Signer) Close() error {
	close(s.stop)
	<-s.done
	err := s.persist()
	for _, l := range s.logs {
		err = errors.Join(err, l.file.close())
	}
	return err
}
