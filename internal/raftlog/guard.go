package raftlog

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// DefaultWarn is a log call that an operator should know of.
	DefaultWarn = time.Second

	// DefaultKill is far above the slowest call of a disk that works and below the patience of those who wait: heartbeats
	// do not pass through the log, so a leader whose disk hangs stays leader and stops the whole cluster.
	DefaultKill = 8 * time.Second
)

// GuardOptions of [Guard].
type GuardOptions struct {
	// Durable is the index up to which the state machine would survive a power cut now. Required.
	Durable func() uint64

	// Applied is the index up to which the state machine has applied the log. Required.
	Applied func() uint64

	// Warn and Kill are the times after which a call is logged, and ends the process. 0 means the default.
	Warn, Kill time.Duration

	// Die must end the process. It must not return: raft goes on after an error of its log, and must never see one.
	// Required.
	Die func(reason string, err error)

	// Logger gets the warnings; nil means slog.Default().
	Logger *slog.Logger
}

// Guarded is a Store fit to be given to raft, which treats errors and hangs of its log as if they could be survived.
//
//   - H1: a delete of the head is clamped to the durable index; entries that the state machine may need after a power
//     cut stay. That is no error: raft knows only what was applied.
//   - H6: any failed call ends the process, apart from a missing entry or key. raft would step down and carry on, on a
//     file whose last fsync failed.
//   - H7: so does a call that hangs.
//   - H18: so does a delete of a suffix with applied entries in it: only a bug in consensus, or an attacker, asks for it.
type Guarded struct {
	s *Store
	o GuardOptions
}

var (
	_ raft.LogStore    = (*Guarded)(nil)
	_ raft.StableStore = (*Guarded)(nil)
)

// Guard wraps s. It panics when a required option is missing.
func Guard(s *Store, o GuardOptions) *Guarded {
	if o.Durable == nil || o.Applied == nil || o.Die == nil {
		panic("raftlog: Guard needs Durable, Applied and Die")
	}
	if o.Warn == 0 {
		o.Warn = DefaultWarn
	}
	if o.Kill == 0 {
		o.Kill = DefaultKill
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return &Guarded{s: s, o: o}
}

// die ends the process.
func (g *Guarded) die(reason string, err error) {
	g.o.Logger.Error("raft log: "+reason, "err", err)
	g.o.Die(reason, err)
	panic("raftlog: Die returned: " + reason)
}

// watched runs a call under the watchdog and ends the process if it fails.
func (g *Guarded) watched(call string, f func() error) error {
	warn := time.AfterFunc(g.o.Warn, func() { g.o.Logger.Warn("raft log: slow call", "call", call, "after", g.o.Warn) })
	kill := time.AfterFunc(g.o.Kill, func() { g.die(call+" hangs", fmt.Errorf("no answer after %v", g.o.Kill)) })
	err := f()
	warn.Stop()
	kill.Stop()
	if err != nil && !errors.Is(err, raft.ErrLogNotFound) && !errors.Is(err, errNotFound) {
		g.die(call+" failed", err)
	}
	return err
}

// FirstIndex implements raft.LogStore.
func (g *Guarded) FirstIndex() (index uint64, err error) {
	err = g.watched("FirstIndex", func() error { index, err = g.s.FirstIndex(); return err })
	return index, err
}

// LastIndex implements raft.LogStore.
func (g *Guarded) LastIndex() (index uint64, err error) {
	err = g.watched("LastIndex", func() error { index, err = g.s.LastIndex(); return err })
	return index, err
}

// NextIndex is that of the Store.
func (g *Guarded) NextIndex() uint64 { return g.s.NextIndex() }

// GetLog implements raft.LogStore.
func (g *Guarded) GetLog(index uint64, l *raft.Log) error {
	return g.watched("GetLog", func() error { return g.s.GetLog(index, l) })
}

// StoreLog implements raft.LogStore.
func (g *Guarded) StoreLog(l *raft.Log) error { return g.StoreLogs([]*raft.Log{l}) }

// StoreLogs implements raft.LogStore.
func (g *Guarded) StoreLogs(logs []*raft.Log) error {
	return g.watched("StoreLogs", func() error { return g.s.StoreLogs(logs) })
}

// DeleteRange implements raft.LogStore. raft deletes a suffix to make room for the entries of a new leader, and a head
// to compact; nothing in the call says which, and a suffix may be the whole log. What has been applied decides: a range
// up to the last index without applied entries is a suffix, any other that begins at the first index is a head.
func (g *Guarded) DeleteRange(min, max uint64) error {
	return g.watched("DeleteRange", func() error {
		first, err := g.s.FirstIndex()
		if err != nil {
			return err
		}
		last, err := g.s.LastIndex()
		if err != nil {
			return err
		}
		applied := g.o.Applied()
		switch {
		case max >= last && min > applied:
		case min <= first:
			if durable := g.o.Durable(); max > durable {
				g.o.Logger.Info("raft log: compaction held back at the durable index", "asked", max, "durable", durable)
				max = durable
			}
		case min <= applied:
			g.die("DeleteRange of applied entries", fmt.Errorf("suffix from %d, applied up to %d", min, applied))
		}
		return g.s.DeleteRange(min, max)
	})
}

// Set implements raft.StableStore.
func (g *Guarded) Set(key, val []byte) error {
	return g.watched("Set", func() error { return g.s.Set(key, val) })
}

// Get implements raft.StableStore.
func (g *Guarded) Get(key []byte) (val []byte, err error) {
	err = g.watched("Get", func() error { val, err = g.s.Get(key); return err })
	return val, err
}

// SetUint64 implements raft.StableStore.
func (g *Guarded) SetUint64(key []byte, val uint64) error {
	return g.watched("SetUint64", func() error { return g.s.SetUint64(key, val) })
}

// GetUint64 implements raft.StableStore.
func (g *Guarded) GetUint64(key []byte) (val uint64, err error) {
	err = g.watched("GetUint64", func() error { val, err = g.s.GetUint64(key); return err })
	return val, err
}
