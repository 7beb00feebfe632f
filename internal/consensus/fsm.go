package consensus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// flushTimeout is how long a machine may take to flush for a snapshot: a few memtables on a slow disk. A flush that
// takes longer leaves the log as it is; the next attempt may find it done.
const flushTimeout = 30 * time.Second

// ErrInstall is the answer to a snapshot that another node sends or an operator wants to restore: a snapshot here has
// metadata and no content, a replica that lags behind the log is brought forward outside raft.
var ErrInstall = errors.New("consensus: a snapshot cannot be installed")

// fsm passes what raft commits to the StateMachine.
type fsm struct {
	machine StateMachine
	ctx     context.Context // ends a running flush when the Consensus closes
	// delivered is the index of the last entry that the machine has applied. raft's own idea of it runs ahead: its
	// barriers and no-ops count there and never come here. Written by raft's FSM goroutine.
	delivered atomic.Uint64
	// configured is told the index of each configuration that was delivered.
	configured func(index uint64)

	mu      sync.Mutex
	changed chan struct{} // closed and replaced when delivered has changed; nil: nobody waits
}

// progress returns a channel that is closed when delivered has changed after the call.
func (f *fsm) progress() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.changed == nil {
		f.changed = make(chan struct{})
	}
	return f.changed
}

var (
	_ raft.BatchingFSM = (*fsm)(nil)
	_ raft.FSMSnapshot = (*snapshot)(nil)
)

// ApplyBatch implements raft.BatchingFSM. With a batching FSM, and only with one, raft delivers configuration entries in
// order among the commands, which lets the machine store them in the same batch as its data (H3).
func (f *fsm) ApplyBatch(logs []*raft.Log) []any {
	entries := make([]Entry, len(logs))
	for i, l := range logs {
		entries[i] = Entry{Index: l.Index, Term: l.Term, Configuration: l.Type == raft.LogConfiguration, Data: l.Data}
	}
	results := f.machine.Apply(entries)
	if len(results) != len(entries) {
		panic(fmt.Sprintf("consensus: machine returned %d results for %d entries", len(results), len(entries)))
	}
	for _, e := range entries {
		if e.Configuration {
			f.configured(e.Index)
		}
	}
	f.delivered.Store(entries[len(entries)-1].Index)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.changed != nil {
		close(f.changed)
		f.changed = nil
	}
	return results
}

// Apply implements raft.FSM; raft prefers ApplyBatch.
func (f *fsm) Apply(l *raft.Log) any { return f.ApplyBatch([]*raft.Log{l})[0] }

// Snapshot implements raft.FSM. It runs on the goroutine that applies, so it only notes how far that one has come.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	return &snapshot{fsm: f, delivered: f.delivered.Load()}, nil
}

// Restore implements raft.FSM.
func (f *fsm) Restore(r io.ReadCloser) error {
	return errors.Join(ErrInstall, r.Close())
}

// snapshot is a promise to make the machine durable up to delivered.
type snapshot struct {
	fsm       *fsm
	delivered uint64
}

// Persist implements raft.FSMSnapshot: it is the lock on log compaction (H1 a). It trusts neither a nil from Flush nor
// an index seen earlier, but what Durable says now; any doubt is an error, and raft then keeps the log. Entries between
// delivered and raft's own snapshot index are barriers and no-ops, which need no copy.
func (s *snapshot) Persist(k raft.SnapshotSink) error {
	sk, ok := k.(*sink)
	if !ok {
		return fmt.Errorf("consensus: snapshot sink is a %T", k)
	}
	ctx, cancel := context.WithTimeoutCause(s.fsm.ctx, flushTimeout,
		fmt.Errorf("flush took longer than %v", flushTimeout))
	defer cancel()
	if err := s.fsm.machine.Flush(ctx, s.delivered); err != nil {
		return fmt.Errorf("consensus: flush up to index %d: %w", s.delivered, err)
	}
	d, err := s.fsm.machine.Durable()
	if err != nil {
		return fmt.Errorf("consensus: read the durable position: %w", err)
	}
	if d.Index < s.delivered {
		return fmt.Errorf("consensus: durable index is %d after a flush up to %d: log kept", d.Index, s.delivered)
	}
	// The log holds the only other copy of the configuration, and raft reads only entries above the durable index for it.
	if d.ConfigurationIndex < sk.configurationIndex {
		return fmt.Errorf("consensus: durable configuration is that of index %d, committed is %d: log kept",
			d.ConfigurationIndex, sk.configurationIndex)
	}
	sk.persisted = true
	return nil
}

// Release implements raft.FSMSnapshot.
func (s *snapshot) Release() {}
