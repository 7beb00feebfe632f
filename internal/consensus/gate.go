package consensus

import (
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
type gate struct {
	raft.LogStore

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
	return g.LogStore.GetLog(index, l)
}
