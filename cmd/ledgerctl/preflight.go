package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/provledger/provledger/client"
)

// systemLog is the ledger's own.
const systemLog = "system"

// preflightPatience is how long the ledger is asked, and a busy directory waited for, before a command runs.
const preflightPatience = 2 * time.Second

// canRecord finds out before hours of work what would keep their record from being made afterwards: a directory that is no ledger or cannot
// be written, a log that is not there, no place for the spool. A ledger that does not answer, is busy or full is none of it: by then it may be
// back, and until then the spool keeps the event.
func (a *app) canRecord(ctx context.Context, to target) error {
	if a.log == systemLog {
		return usage("--log %s holds the ledger's own entries; nothing else is recorded there", systemLog)
	}
	s, err := a.spool()
	if err == nil {
		if err = os.MkdirAll(s.dir, 0o700); err == nil {
			err = writable(s.dir)
		}
	}
	if err != nil {
		return hinted(fmt.Errorf("the spool: %w", err), "Events wait there for a ledger that cannot be reached; --state-dir names another place.")
	}
	fresh := false
	if to.directory != "" {
		if fresh, err = a.canOpen(to.directory); err != nil {
			return err
		}
	}
	if a.log == client.DefaultLog {
		return nil // every ledger has it
	}
	if fresh {
		return a.noLog(fmt.Errorf("a new ledger has no log %q", a.log))
	}
	quick := *a
	quick.lockTimeout, quick.timeout = min(a.lockTimeout, preflightPatience), min(a.timeout, preflightPatience)
	x, err := quick.openTarget(ctx, to, false)
	if err != nil {
		return nil // it is said when it is to be recorded
	}
	_, err = x.Log(ctx, a.log)
	_ = x.Close()
	switch status.Code(err) {
	case codes.NotFound, codes.InvalidArgument:
		return a.noLog(err)
	}
	return nil
}

// noLog is the error of a log that is not there.
func (a *app) noLog(err error) error {
	return hinted(&exitError{exitUsage, err}, fmt.Sprintf("`ledgerctl log list` shows the logs; `ledgerctl log create %s` creates one.", a.log))
}

// canOpen reports why the embedded ledger in a directory could not be opened for recording.
func (a *app) canOpen(dir string) (fresh bool, err error) {
	if fresh, err = a.probe(dir); err != nil && !isNoSpace(err) {
		return fresh, err
	}
	remembered, err := client.RememberedAt(a.stateDir, dir)
	if err != nil {
		return fresh, err
	}
	if fresh && len(remembered) > 0 && !a.newLedger {
		return fresh, noLedger(dir, true)
	}
	for { // where it, or the first directory above it, is to be made
		err := writable(dir)
		parent := filepath.Dir(dir)
		if !errors.Is(err, fs.ErrNotExist) || parent == dir {
			return fresh, err
		}
		dir = parent
	}
}
