// Package node puts a ledger node together: opens its parts in order, closes them in reverse, and owns the clock, the logger and the
// one way for the process to die. It is the only package that knows all others.
package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/health"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/consensus"
	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/merkle"
	"github.com/provledger/provledger/internal/raftlog"
	"github.com/provledger/provledger/internal/rpc"
	"github.com/provledger/provledger/internal/sequencer"
	"github.com/provledger/provledger/internal/signer"
)

// Defaults of Config.
const (
	// DefaultOriginHost stands in origins until an operator names their own; .localhost never resolves elsewhere (RFC 6761).
	DefaultOriginHost = "provledger.localhost"
	// DefaultMemTableBytes bounds what a restart replays and what four of them take in memory.
	DefaultMemTableBytes = 64 << 20
	// DefaultBlockCacheBytes serves proofs of recent entries from memory.
	DefaultBlockCacheBytes = 128 << 20
	// DefaultMinFreeBytes is the space below which appends are refused, beside four memtables that still have to be flushed: enough to
	// stop in good order and to let an operator work.
	DefaultMinFreeBytes = 256 << 20
	// DefaultSlowWarn and DefaultSlowKill bound one disk operation: a minute of silence is worse than a restart (H7).
	DefaultSlowWarn = time.Second
	DefaultSlowKill = 10 * time.Second
	// watchEvery is how often free space and health are looked at: faster than a disk of a sensible size fills by 256 MiB.
	watchEvery = 500 * time.Millisecond
)

// Config of a node. Zero values mean the default, but for Dir and Die.
type Config struct {
	Dir string
	FS  vfs.FS
	// OriginHost is the host part of the origins of new logs. It is published in every checkpoint.
	OriginHost string
	// Authn says how callers are known as long as there is no access control.
	Authn lineage.Authn
	// LockTimeout is how long to wait for a directory that another process has open.
	LockTimeout time.Duration
	// Existing opens only what is a ledger already: else the error wraps ErrNoLedger, and nothing is made.
	Existing bool
	Logger   *slog.Logger
	Registry *prometheus.Registry
	// Die ends the process: called when going on could lose, fork or freeze the ledger. If it returns, the calling goroutine stops for
	// ever.
	Die func(reason string, err error)

	SegmentBytes       int64
	MemTableBytes      uint64
	BlockCacheBytes    int64
	MinFreeBytes       uint64
	TrailingLogs       uint64        // zero: as consensus has it
	SnapshotBytes      int64         // zero: as consensus has it
	SnapshotEvery      time.Duration // zero: as consensus has it
	SlowWarn, SlowKill time.Duration // negative SlowWarn: no watch over the stores
	// Now is the clock, microseconds since the Unix epoch.
	Now func() int64
}

func (c Config) withDefaults() Config {
	if c.FS == nil {
		c.FS = vfs.Default
	}
	if c.OriginHost == "" {
		c.OriginHost = DefaultOriginHost
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Registry == nil {
		c.Registry = prometheus.NewRegistry()
	}
	if c.MemTableBytes == 0 {
		c.MemTableBytes = DefaultMemTableBytes
	}
	if c.BlockCacheBytes == 0 {
		c.BlockCacheBytes = DefaultBlockCacheBytes
	}
	if c.MinFreeBytes == 0 {
		c.MinFreeBytes = DefaultMinFreeBytes
	}
	if c.SlowWarn == 0 {
		c.SlowWarn, c.SlowKill = DefaultSlowWarn, DefaultSlowKill
	}
	if c.Now == nil {
		c.Now = func() int64 { return time.Now().UnixMicro() }
	}
	return c
}

// Node is an open ledger node.
type Node struct {
	c         Config
	dir       *directory
	log       *raftlog.Store
	ledger    *ledger.Ledger
	signer    *signer.Signer
	consensus *consensus.Consensus
	sequencer *sequencer.Sequencer
	created   bool

	mu       sync.Mutex
	services []*rpc.Service

	rpcMetrics *rpc.Metrics
	health     *health.Server

	overloaded atomic.Pointer[error] // why no append is admitted
	free       atomic.Uint64         // bytes, as last looked at
	stop       chan struct{}
	closers    []func(context.Context) error // in order of opening
}

// Open opens the ledger in c.Dir, or creates it there, and returns when it serves. An error wraps ErrBusy when another process has the
// directory, ErrFormat when it is no ledger, ErrNoSpace when the disk is too full to open it, ledger.ErrCorrupt or raftlog.ErrCorrupt when
// what is there is damaged.
func Open(ctx context.Context, c Config) (*Node, error) {
	if c.Dir == "" || c.Die == nil {
		return nil, errors.New("node: Dir and Die are required")
	}
	n := &Node{c: c.withDefaults(), stop: make(chan struct{})}
	if err := n.open(ctx); err != nil {
		// Not under ctx: if it has ended, parts would be closed while others still use them.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unwindTimeout)
		defer cancel()
		return nil, errors.Join(err, n.unwind(ctx))
	}
	return n, nil
}

// unwindTimeout bounds how long a node that could not be opened takes to stop what was opened of it.
const unwindTimeout = 10 * time.Second

// die ends the process, or at least this goroutine's part in it.
func (n *Node) die(reason string, err error) {
	log := n.c.Logger
	if err != nil { // some reasons have no other error behind them
		log = log.With("err", err)
	}
	log.Error("stopping at once: " + reason)
	n.c.Die(reason, err)
	select {}
}

func (n *Node) opened(close func(context.Context) error) { n.closers = append(n.closers, close) }

func (n *Node) unwind(ctx context.Context) (err error) {
	for i := len(n.closers) - 1; i >= 0; i-- {
		err = errors.Join(err, n.closers[i](ctx))
	}
	n.closers = nil
	return err
}

func (n *Node) open(ctx context.Context) (err error) {
	if _, err := Probe(n.c); err != nil {
		return err
	}
	if n.dir, err = openDirectory(ctx, n.c.FS, n.c.Dir, n.c.LockTimeout, n.c.Existing); err != nil {
		return err
	}
	n.opened(func(context.Context) error { return n.dir.lock.Close() })
	n.created = n.dir.fresh
	if err := n.openStores(); err != nil {
		return err
	}
	n.consensus, err = consensus.Open(consensus.Config{
		NodeID: n.dir.NodeID.String(), Store: n.guarded(), Machine: machine{n.ledger}, Logger: n.c.Logger, LogBytes: n.log.Bytes,
		TrailingLogs: n.c.TrailingLogs, SnapshotBytes: n.c.SnapshotBytes, SnapshotEvery: n.c.SnapshotEvery,
	})
	if err != nil {
		return err
	}
	n.opened(n.consensus.Close)
	if err := n.consensus.WaitLeader(ctx); err != nil {
		return fmt.Errorf("wait for leadership: %w", err)
	}
	n.sequencer = sequencer.New(sequencer.Options{
		Ledger: n.ledger, Proposer: proposer{n.consensus}, Now: n.c.Now, Random: random, Admit: n.admit,
		Logger: n.c.Logger, OriginHost: n.c.OriginHost, VKey: n.signer.VKey,
	})
	n.opened(func(context.Context) error { n.sequencer.Close(); return nil })
	// What was committed before the last stop is applied before anything is served.
	if err := n.consensus.Barrier(ctx); err != nil {
		return err
	}
	if err := n.sequencer.Bootstrap(ctx); err != nil {
		return fmt.Errorf("create the built-in logs: %w", err)
	}
	if err := n.checkSecret(); err != nil {
		return err
	}
	n.rpcMetrics, n.health = rpc.NewMetrics(n.c.Registry), newHealth()
	n.registerMetrics()
	n.watch()
	return nil
}

func random(b []byte) { rand.Read(b) } // never fails (crypto/rand)

// openStores opens what lies on the disk and makes a directory without FORMAT into a ledger.
func (n *Node) openStores() (err error) {
	c, d := &n.c, n.dir
	n.log, err = raftlog.Open(raftlog.Options{FS: c.FS, Dir: d.join(raftDir), SegmentBytes: c.SegmentBytes, Logger: c.Logger, Die: n.die})
	if err != nil {
		return err
	}
	n.opened(func(context.Context) error { return n.log.Close() })
	if d.fresh {
		if err := consensus.Bootstrap(n.log, d.NodeID.String()); err != nil {
			return err
		}
		if err := d.complete(); err != nil {
			return err
		}
	}
	n.ledger, err = ledger.Open(ledger.Options{
		FS: c.FS, Dir: d.join(stateDir), ClusterID: d.ClusterID, Logger: c.Logger, Die: n.die, MemTableBytes: c.MemTableBytes,
		BlockCacheBytes: c.BlockCacheBytes, SlowWarn: max(c.SlowWarn, 0), SlowKill: c.SlowKill,
	})
	if err != nil {
		return err
	}
	n.opened(n.ledger.Close)
	n.signer, err = signer.Open(signer.Options{FS: c.FS, Dir: d.join(signerDir), Secret: d.secret, Tree: n.treeOf, Logger: c.Logger, Die: n.die})
	if err != nil {
		return err
	}
	n.opened(func(context.Context) error { return n.signer.Close() })
	return nil
}

// guarded is the raft log behind its guards.
func (n *Node) guarded() *raftlog.Guarded {
	return raftlog.Guard(n.log, raftlog.GuardOptions{
		Durable: func() uint64 {
			p, err := n.ledger.Durable()
			if err != nil {
				return 0 // then nothing is deleted
			}
			return p.Index
		},
		Applied: func() uint64 { return n.ledger.Applied().Index },
		Warn:    max(n.c.SlowWarn, 0), Kill: n.c.SlowKill, Die: n.die, Logger: n.c.Logger,
	})
}

// treeOf is how the signer sees the trees.
func (n *Node) treeOf(origin string) (uint64, func(uint64) (merkle.Hash, error), error) {
	g, err := n.ledger.LogByOrigin(origin)
	if err != nil {
		return 0, nil, err
	}
	t, err := n.ledger.Tree(g.Number)
	if err != nil {
		return 0, nil, err
	}
	return t.Head().Size, t.RootAt, nil
}

// admit is the sequencer's question before every append.
func (n *Node) admit() error {
	if err := n.overloaded.Load(); err != nil {
		return *err
	}
	return nil
}

// watch looks at the free space and the health of the node from time to time.
func (n *Node) watch() {
	look := func() {
		n.lookAtSpace()
		n.setHealth()
	}
	look()
	done := make(chan struct{})
	go func() {
		defer close(done)
		t := time.NewTicker(watchEvery)
		defer t.Stop()
		for {
			select {
			case <-n.stop:
				return
			case <-t.C:
				look()
			}
		}
	}()
	n.opened(func(context.Context) error {
		n.health.Shutdown()
		close(n.stop)
		<-done
		return nil
	})
}

// Created reports whether Open made a new ledger.
func (n *Node) Created() bool { return n.created }

// Ledger, Sequencer and Signer are the node's parts.
func (n *Node) Ledger() *ledger.Ledger { return n.ledger }

// Sequencer returns the node's sequencer.
func (n *Node) Sequencer() *sequencer.Sequencer { return n.sequencer }

// Signer returns the node's signer.
func (n *Node) Signer() *signer.Signer { return n.signer }

// Ready returns nil when the node accepts appends, else why not.
func (n *Node) Ready() error {
	if err := n.ledger.Quarantined(); err != nil {
		return err
	}
	if !n.consensus.IsLeader() {
		return errors.New("there is no leader")
	}
	if err := n.sequencer.Distrust(); err != nil {
		return err
	}
	return n.admit()
}

// Close stops the node: no new appends, what is in flight finishes, the state is made durable. When ctx ends first the rest is left to
// the next start.
func (n *Node) Close(ctx context.Context) error { return n.unwind(ctx) }
