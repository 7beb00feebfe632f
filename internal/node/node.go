// Package node puts a ledger node together: opens its parts in order, closes them in reverse, and owns the clock, the logger and the
// one way for the process to die. It is the only package that knows all others.
package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/health"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/cluster"
	"github.com/provledger/provledger/internal/consensus"
	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/merkle"
	"github.com/provledger/provledger/internal/peer"
	"github.com/provledger/provledger/internal/raftlog"
	"github.com/provledger/provledger/internal/rpc"
	"github.com/provledger/provledger/internal/sequencer"
	"github.com/provledger/provledger/internal/signer"
	"github.com/provledger/provledger/internal/telemetry"
	"github.com/provledger/provledger/internal/tlsfile"
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
	// handOverTimeout is how long a leader that stops looks for a successor.
	handOverTimeout = 2 * time.Second
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
	// Telemetry sends traces; nil: nobody does.
	Telemetry *telemetry.Telemetry
	// Certificates returns the ends of validity of what the process shows on its other ports, by use; nil: there are none.
	Certificates func() map[string]time.Time
	// Peer is how this node talks to others; nil for a ledger of one node.
	Peer *Peer
	// SecretFile is where a directory without a secret takes one from. KeyDir holds keys of single logs.
	SecretFile, KeyDir string
	// HeartbeatTimeout is raft's; zero: as consensus has it.
	HeartbeatTimeout time.Duration
	// Die ends the process: called when going on could lose, fork or freeze the ledger. If it returns, the calling goroutine stops for
	// ever.
	Die func(reason string, err error)

	SegmentBytes       int64
	MemTableBytes      uint64
	BlockCacheBytes    int64
	MinFreeBytes       uint64
	TrailingLogs       uint64        // zero: as consensus has it
	TrailingBytes      int64         // zero: as consensus has it
	SnapshotBytes      int64         // zero: as consensus has it
	SnapshotEvery      time.Duration // zero: as consensus has it
	SlowWarn, SlowKill time.Duration // negative SlowWarn: no watch over the stores
	// Now is the clock, microseconds since the Unix epoch.
	Now func() int64
	// Version is told to other nodes and operators.
	Version string
	// MaxCommand is the highest command version that this node admits to support; zero: what it supports. For tests of upgrades.
	MaxCommand uint8
}

// Peer is the cluster side of a node.
type Peer struct {
	// Listen is the address of the peer port; Advertise is where others reach it, HOST:PORT.
	Listen, Advertise string
	// TLS is the node's certificate, and the roots of its peers'.
	TLS *tlsfile.Files
	// Members found a cluster, the first one first; Join are members of one that exists. Only for a fresh directory.
	Members, Join []string
	// NonVoter is what a node asks to become when it joins.
	NonVoter bool
	// DialContext is for tests; nil: the network.
	DialContext func(ctx context.Context, network, address string) (net.Conn, error)
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
	if c.MaxCommand == 0 {
		c.MaxCommand = ledger.MaxCommandVersion
	}
	if c.Now == nil {
		c.Now = func() int64 { return time.Now().UnixMicro() }
	}
	return c
}

// core is what a repair replaces as a whole.
type core struct {
	ledger    *ledger.Ledger
	sequencer *sequencer.Sequencer
	users     atomic.Int64 // calls of peers that read from it
}

// Node is an open ledger node.
type Node struct {
	c         Config
	dir       *directory
	boot      lineage.ID // of this process
	log       *raftlog.Store
	signer    *signer.Signer
	core      atomic.Pointer[core]
	consensus atomic.Pointer[consensus.Consensus]
	created   bool

	port    *peer.Port // nil: a ledger of one node
	peers   *peers     // nil with port
	hints   hints
	control *cluster.Controller

	established atomic.Bool           // FORMAT is there: this node belongs to a cluster
	removed     atomic.Pointer[error] // why this node is no member any more
	joining     atomic.Bool           // not a member yet
	catchingUp  atomic.Bool
	current     atomic.Bool // has applied what was acknowledged before it started
	counted     counted     // for metrics
	progress    progress
	keys        keyCheck
	behind      chan consensus.Behind // what raft says when this node lags behind the log; tend takes it
	behindIndex atomic.Uint64         // of the newest of these
	damaged     chan error            // what the ledger says when it quarantines itself; tend takes it
	restart     sync.Mutex            // held while raft is restarted
	restarting  atomic.Bool           // from before one raft instance ends until the next one is known
	closing     bool                  // guarded by restart

	service    *rpc.Service
	rpcMetrics *rpc.Metrics
	health     *health.Server

	overloaded atomic.Pointer[error]  // why no append is admitted
	free       atomic.Uint64          // bytes, as last looked at
	api        atomic.Pointer[string] // where clients reach this node
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
	n := &Node{
		c: c.withDefaults(), boot: lineage.ID(randomBytes(16)), stop: make(chan struct{}),
		behind: make(chan consensus.Behind, 1), damaged: make(chan error, 1),
	}
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
	n.established.Store(!n.dir.fresh)
	n.counted.durations = telemetry.NewDurations(n.c.Registry)
	n.newService()
	if err := n.openPort(); err != nil {
		return err
	}
	if err := n.openStores(ctx); err != nil {
		return err
	}
	n.openControl()
	if err := n.startRaft(); err != nil {
		return err
	}
	n.opened(n.stopRaft)
	n.background(n.tend)
	if err := n.settle(ctx); err != nil {
		return err
	}
	n.service.Swap(n.serving())
	n.registerMetrics()
	n.watch()
	return nil
}

// settle waits for what a node needs before it can serve: admission if it joins, and its own past if it is alone.
func (n *Node) settle(ctx context.Context) error {
	if n.self() == nil {
		n.joining.Store(true)
		if err := n.awaitAdmission(ctx); err != nil {
			return err
		}
	}
	wish := n.joining.Swap(false) && !n.c.Peer.NonVoter
	if n.clustered() && !n.alone() {
		n.background(func(ctx context.Context) { n.insist(ctx, wish) })
	}
	switch {
	case !n.clustered() && !n.alone():
		servers, _ := n.raft().Servers()
		return fmt.Errorf("%w: its cluster has %d nodes; start ledgerd on it with a peer-address", ErrMember, len(servers))
	case n.alone():
		if err := n.raft().WaitLeader(ctx); err != nil {
			return fmt.Errorf("wait for leadership: %w", err)
		}
		// What was committed before the last stop is applied before anything is served.
		if err := n.raft().Barrier(ctx); err != nil {
			return err
		}
		if err := n.Sequencer().Bootstrap(ctx); err != nil {
			return fmt.Errorf("create the built-in logs: %w", err)
		}
		if err := n.advertise(ctx); err != nil {
			return err
		}
		if err := n.recordRecovery(ctx); err != nil {
			n.c.Logger.Error("what this ledger was recovered from is not on record yet; the next start tries again", "err", err)
		}
		n.current.Store(true)
	default:
		n.background(n.awaitPast)
	}
	if err := n.checkSecret(); err != nil {
		return err
	}
	if n.clustered() {
		n.background(n.control.Run)
		n.background(n.noticeRemoval)
	}
	return nil
}

// awaitPast notes when this node has applied all that was acknowledged before it started. It serves before, for without a majority that never comes, but
// who can choose asks another one: its trees may be smaller than they were before it stopped (H17).
func (n *Node) awaitPast(ctx context.Context) {
	r := router{n}
	for ctx.Err() == nil {
		index, err := r.ReadIndex(ctx)
		if err == nil {
			err = r.WaitApplied(ctx, index)
		}
		if err == nil {
			n.current.Store(true)
			return
		}
	}
}

// alone reports whether this node is the only voter.
func (n *Node) alone() bool {
	servers, _ := n.raft().Servers()
	voters := 0
	for _, s := range servers {
		if s.Voter {
			voters++
		}
	}
	self := n.self()
	return voters == 1 && self != nil && self.Voter
}

// advertise puts the peer address of a node that is alone into the membership, where an embedded ledger has none.
func (n *Node) advertise(ctx context.Context) error {
	if !n.clustered() || n.self().Address == n.c.Peer.Advertise {
		return nil
	}
	_, index := n.raft().Servers()
	if err := n.raft().AddVoter(ctx, n.dir.NodeID.String(), n.c.Peer.Advertise, index); err != nil {
		return fmt.Errorf("change this node's address in the membership: %w", err)
	}
	return nil
}

// background runs something until the node closes.
func (n *Node) background(run func(context.Context)) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		run(ctx)
	}()
	n.opened(func(closing context.Context) error {
		cancel()
		select {
		case <-done:
			return nil
		case <-closing.Done():
			return errors.New("a background task does not end")
		}
	})
}

func random(b []byte) { rand.Read(b) } // never fails (crypto/rand)

// ErrIdentity means that a directory has lost its raft log, and with it what the node had voted for and acknowledged.
var ErrIdentity = errors.New("this node has lost its identity")

// ErrMember means a directory of a cluster with other voters, opened without a way to talk to them.
var ErrMember = errors.New("this ledger is one node of a cluster and decides nothing alone")

// openStores opens what lies on the disk and makes a directory without FORMAT into a ledger.
func (n *Node) openStores(ctx context.Context) (err error) {
	c, d := &n.c, n.dir
	if d.fresh {
		if err := n.origin(ctx); err != nil {
			return err
		}
	} else {
		// An empty one would be filled anew.
		if names, err := c.FS.List(d.join(raftDir)); errors.Is(err, os.ErrNotExist) || err == nil && len(names) == 0 {
			return fmt.Errorf("%w: %s has no %s/ or nothing in it, so what it voted for and acknowledged is not known; it must not come back under its old id: "+
				"move the directory away and let a new node replace %s (ledgerctl cluster replace)", ErrIdentity, d.path, raftDir, d.NodeID)
		}
		if err := d.takeSecret(c.SecretFile, false); err != nil {
			return err
		}
		if d.secret == nil && c.KeyDir == "" && !n.clustered() {
			return fmt.Errorf("the node's secret: %w; without it this node cannot sign: put %s back from where you keep it", os.ErrNotExist, d.join(secretFile))
		}
	}
	n.log, err = raftlog.Open(raftlog.Options{FS: c.FS, Dir: d.join(raftDir), SegmentBytes: c.SegmentBytes, Logger: c.Logger, Die: n.die,
		Observe: func(d time.Duration) { n.counted.durations.LogSync.Observe(d.Seconds()) }})
	if err != nil {
		return err
	}
	n.opened(func(context.Context) error { return n.log.Close() })
	if d.fresh {
		if !n.joining.Load() {
			if err := consensus.Bootstrap(n.log, d.NodeID.String(), n.address()); err != nil {
				return err
			}
		}
		if err := d.complete(); err != nil {
			return err
		}
		n.established.Store(true)
	}
	n.signer, err = signer.Open(signer.Options{
		FS: c.FS, Dir: d.join(signerDir), Secret: d.secret, KeyDir: c.KeyDir, Tree: n.treeOf, Logger: c.Logger, Die: n.die,
	})
	if err != nil {
		return err
	}
	n.opened(func(context.Context) error { return n.signer.Close() })
	if err := n.openState(ctx); err != nil {
		return err
	}
	n.opened(func(ctx context.Context) error { return n.Ledger().Close(ctx) })
	n.opened(func(context.Context) error { n.Sequencer().Close(); return nil })
	return nil
}

// openState opens the state store, after finishing an installation that was cut short, and has it rebuilt from the peers if it is damaged.
func (n *Node) openState(ctx context.Context) error {
	pending, err := n.pendingInstall()
	if err != nil {
		return err
	}
	if pending != nil && pending.Swap {
		if err := n.swapState(); err != nil {
			return err
		}
	}
	if err = n.openCore(); err == nil {
		err = n.stateLost()
	}
	if errors.Is(err, ledger.ErrCorrupt) {
		err = errors.Join(err, n.closeCore())
		if err := n.rescue(ctx, err); err != nil {
			return err
		}
		pending = &install{Swap: true}
		err = n.openCore()
	}
	if err != nil {
		return errors.Join(err, n.closeCore())
	}
	if pending != nil {
		if err := n.finishInstall(); err != nil {
			return err
		}
	}
	if n.clustered() {
		return n.resumeQuarantine()
	}
	return nil
}

// stateLost reports as damage a state store that is missing, or older than the beginning of the raft log: what lies between is nowhere else here
// (H10, H13).
func (n *Node) stateLost() error {
	floor, err := n.floor()
	if err != nil {
		return err
	}
	p, err := n.Ledger().Durable()
	if err == nil && p.Index < floor {
		err = fmt.Errorf("%w: %s ends at raft index %d, and the raft log begins at %d", ledger.ErrCorrupt, n.dir.join(stateDir), p.Index, floor+1)
	}
	return err
}

// closeCore closes a core that nobody uses yet.
func (n *Node) closeCore() error {
	c := n.core.Swap(nil)
	if c == nil {
		return nil
	}
	c.sequencer.Close()
	return c.ledger.Abandon()
}

func (n *Node) ledgerOptions(name string) ledger.Options {
	c := &n.c
	return ledger.Options{
		FS: c.FS, Dir: n.dir.join(name), ClusterID: n.dir.ClusterID, Logger: c.Logger, Die: n.die, MemTableBytes: c.MemTableBytes,
		BlockCacheBytes: c.BlockCacheBytes, SlowWarn: max(c.SlowWarn, 0), SlowKill: c.SlowKill,
	}
}

// openCore opens the state store with what works on it.
func (n *Node) openCore() error {
	l, err := ledger.Open(n.ledgerOptions(stateDir))
	if err != nil {
		return err
	}
	s := sequencer.New(sequencer.Options{
		Ledger: l, Proposer: proposer{n}, Now: n.c.Now, Random: random, Admit: n.admit,
		Logger: n.c.Logger, OriginHost: n.c.OriginHost, VKey: n.signer.VKey,
		Passed: n.c.Telemetry.Append(), Committed: func(d time.Duration) { n.counted.durations.Commit.Observe(d.Seconds()) },
		Metrics: &n.counted.appends,
	})
	n.core.Store(&core{ledger: l, sequencer: s})
	l.OnQuarantine(n.onQuarantine) // at once, if the store was found damaged already
	return nil
}

// startRaft starts raft on log and state as they are.
func (n *Node) startRaft() error {
	cc := consensus.Config{
		NodeID: n.dir.NodeID.String(), Address: n.address(), Store: n.guarded(), Machine: machine{n.Ledger()}, Logger: n.c.Logger, LogBytes: n.log.Bytes,
		TrailingLogs: n.c.TrailingLogs, TrailingBytes: n.c.TrailingBytes, SnapshotBytes: n.c.SnapshotBytes, SnapshotEvery: n.c.SnapshotEvery,
		HeartbeatTimeout: n.c.HeartbeatTimeout,
	}
	if n.clustered() {
		cc.Stream, cc.Joining, cc.Term, cc.Behind = n.port.Raft(), true, n.term, n.onBehind
	}
	c, err := consensus.Open(cc)
	if err != nil {
		return err
	}
	n.replaceRaft(c)
	return nil
}

func (n *Node) stopRaft(ctx context.Context) error {
	n.restart.Lock()
	defer n.restart.Unlock()
	n.closing = true
	return n.raft().Close(ctx)
}

// raft is the running raft instance. A catch-up replaces it.
func (n *Node) raft() *consensus.Consensus { return n.consensus.Load() }

// address is what the membership knows this node by.
func (n *Node) address() string {
	if n.c.Peer == nil {
		return ""
	}
	return n.c.Peer.Advertise
}

// guarded is the raft log behind its guards.
func (n *Node) guarded() *raftlog.Guarded {
	return raftlog.Guard(n.log, raftlog.GuardOptions{
		Durable: func() uint64 {
			p, err := n.Ledger().Durable()
			if err != nil {
				return 0 // then nothing is deleted
			}
			return p.Index
		},
		Applied: func() uint64 { return n.Ledger().Applied().Index },
		Warn:    max(n.c.SlowWarn, 0), Kill: n.c.SlowKill, Die: n.die, Logger: n.c.Logger,
	})
}

// treeOf is how the signer sees the trees.
func (n *Node) treeOf(origin string) (uint64, func(uint64) (merkle.Hash, error), error) {
	l := n.Ledger()
	g, err := l.LogByOrigin(origin)
	if err != nil {
		return 0, nil, err
	}
	t, err := l.Tree(g.Number)
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
	if n.control != nil {
		return n.control.AppendAllowed()
	}
	return nil
}

// watch looks at the free space and the health of the node from time to time.
func (n *Node) watch() {
	look := func() {
		n.lookAtSpace()
		if err := n.yield(); err != nil {
			n.c.Logger.Debug("could not hand leadership over", "err", err)
		}
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
func (n *Node) Ledger() *ledger.Ledger { return n.core.Load().ledger }

// Sequencer returns the node's sequencer.
func (n *Node) Sequencer() *sequencer.Sequencer { return n.core.Load().sequencer }

// Signer returns the node's signer.
func (n *Node) Signer() *signer.Signer { return n.signer }

// Ready returns nil when the node accepts calls, appends among them, else why not.
func (n *Node) Ready() error {
	if err := n.Ledger().Quarantined(); err != nil {
		return err
	}
	if n.catchingUp.Load() {
		return errors.New("this node is catching up")
	}
	c := n.raft()
	if c.Leader() == "" {
		if err := n.removed.Load(); err != nil {
			return fmt.Errorf("this node was removed from the cluster: %w", *err)
		}
		return errors.New("there is no leader")
	}
	if !n.current.Load() {
		return errors.New("this node has not yet applied what was acknowledged before it started")
	}
	if !c.IsLeader() {
		return nil
	}
	if err := n.Sequencer().Distrust(); err != nil {
		return err
	}
	return n.admit()
}

// Close stops the node: no new appends, what is in flight finishes, the state is made durable. When ctx ends first the rest is left to
// the next start.
func (n *Node) Close(ctx context.Context) error { return n.unwind(ctx) }
