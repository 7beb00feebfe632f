package consensus

import (
	"fmt"

	"github.com/hashicorp/raft"

	"github.com/provledger/provledger/internal/raftlog"
)

// ResetLog makes a raft log continue at p, the durable position of a machine that was brought there outside raft (H8, H10).
// raft must be stopped: a running instance would go on with what it remembers of the old log. It may be called again, and
// at any time when p is the durable position: after a crash between the machine's last flush and this call, the call is
// what completes the installation. An error leaves the log as it was or, if it is about writing, store unusable.
//
//   - A log that holds p.Index with p.Term is left as it is. By log matching it is equal up to there, and entries after
//     it may have been acknowledged to a leader.
//   - A log that ends before p, or has another term at it, is emptied, and p.Index + 1 comes next. What it holds at or
//     beyond p with another term was never committed, because p was; what it holds before p the machine has.
//   - A log that begins behind p + 1 holds entries that may have been acknowledged and that p does not cover:
//     ErrLogMismatch.
//
// The current term is raised to p.Term, which is where a node that has received p is.
func ResetLog(store *raftlog.Store, p Position) error {
	if p.Index == 0 {
		return fmt.Errorf("consensus: reset the log: %w: no position", ErrLogMismatch)
	}
	if err := resetLog(store, p); err != nil {
		return fmt.Errorf("consensus: reset the log to index %d: %w", p.Index, err)
	}
	return nil
}

func resetLog(store *raftlog.Store, p Position) error {
	first, err := store.FirstIndex()
	if err != nil {
		return err
	}
	last, err := store.LastIndex()
	if err != nil {
		return err
	}
	next := store.NextIndex()
	switch {
	case last == 0 && next == p.Index+1:
		return raiseTerm(store, p.Term)
	case last == 0 && next > p.Index+1:
		return fmt.Errorf("%w: it was emptied to continue at index %d", ErrLogMismatch, next)
	case last > 0 && first > p.Index+1:
		return fmt.Errorf("%w: it begins at index %d", ErrLogMismatch, first)
	case last > 0 && first == p.Index+1:
		return raiseTerm(store, p.Term)
	case last >= p.Index && last > 0:
		var l raft.Log
		if err := store.GetLog(p.Index, &l); err != nil {
			return err
		}
		if l.Term == p.Term {
			return raiseTerm(store, p.Term)
		}
	}
	if err := raiseTerm(store, p.Term); err != nil {
		return err
	}
	return store.Reset(p.Index + 1)
}

// keyCurrentTerm is raft's name for the current term in its stable store.
var keyCurrentTerm = []byte("CurrentTerm")

func raiseTerm(store *raftlog.Store, term uint64) error {
	now, err := store.GetUint64(keyCurrentTerm)
	if err == nil && now >= term {
		return nil
	}
	if err != nil && err.Error() != "not found" { // raft's convention for a term that was never set
		return err
	}
	return store.SetUint64(keyCurrentTerm, term)
}
