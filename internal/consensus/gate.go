package consensus

import (
	"errors"
	"fmt"
	"sync"

	"github.com/hashicorp/raft"
)

// gate is the log as raft gets it, which can be shut. raft's Shutdown waits for all its goroutines but one: per leadership
// there is one that reads the oldest entry every ten seconds, for a metric (emitLogStoreMetrics, raft v1.8.0). It uses
// FirstIndex and GetLog, so these are what is shut. After Close the owner closes the log, and a guarded log that is read
// then would end the process.
//
// gate also hides optional interfaces of the log. That of monotonic logs makes raft empty the whole log after an
// installation and go on with a stale last index (hashicorp/raft issue 697).
//
// Through it all that raft reads and writes can be seen, which is how the configurations get to members.
type gate struct {
	raft.LogStore
	// base is the machine's durable position at the start. Where the log does not hold it, because it was emptied to continue
	// there, the gate answers for it: raft looks up terms there, as the leader of nodes that stand just there.
	base    Position
	durable func() (Position, error)
	members members

	mu     sync.RWMutex // held shared over a read
	closed bool
}

// shut returns when no read is under way and none can begin.
func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
}

// FirstIndex implements raft.LogStore.
func (g *gate) FirstIndex() (uint64, error) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if g.closed {
		return 0, ErrClosed
	}
	return g.LogStore.FirstIndex()
}

// GetLog implements raft.LogStore.
func (g *gate) GetLog(index uint64, l *raft.Log) error {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if g.closed {
		return ErrClosed
	}
	err := g.LogStore.GetLog(index, l)
	switch {
	case err == nil:
		g.members.see(l)
	case errors.Is(err, raft.ErrLogNotFound) && index == g.base.Index && index > 1:
		// Its term only. raft sends it to nobody: it sends what follows an entry that it can look up, and the one before is
		// not there. (Without one before it, at index 1, it would.)
		*l = raft.Log{Index: index, Term: g.base.Term, Type: raft.LogNoop}
		return nil
	}
	return err
}

// StoreLog implements raft.LogStore.
func (g *gate) StoreLog(l *raft.Log) error { return g.StoreLogs([]*raft.Log{l}) }

// StoreLogs implements raft.LogStore.
func (g *gate) StoreLogs(logs []*raft.Log) error {
	if err := g.LogStore.StoreLogs(logs); err != nil {
		return err
	}
	for _, l := range logs {
		g.members.see(l)
	}
	return nil
}

// DeleteRange implements raft.LogStore. Of a head the entry at the durable index stays: the next start compares its term, and a
// leader refers to it when it goes on with a follower that has caught up.
func (g *gate) DeleteRange(from, to uint64) error {
	last, err := g.LogStore.LastIndex()
	if err != nil {
		return err
	}
	if to >= last {
		if err := g.LogStore.DeleteRange(from, to); err != nil {
			return err
		}
		g.members.cut(from)
		return nil
	}
	d, err := g.durable()
	if err != nil {
		return fmt.Errorf("consensus: read the durable position: %w", err)
	}
	if to = min(to, max(d.Index, 1)-1); to < from {
		return nil
	}
	return g.LogStore.DeleteRange(from, to)
}
