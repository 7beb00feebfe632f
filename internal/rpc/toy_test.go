package rpc_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/merkle"
	"github.com/provledger/provledger/internal/rpc"
	"github.com/provledger/provledger/internal/sequencer"
	"github.com/provledger/provledger/internal/signer"
	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

// toy is a cluster whose consensus is a slice: what is in it is committed. Everything else of its nodes is real: ledgers, sequencers,
// signers, services, and sockets between them. A test says who leads, who lags and what gets lost.
type toy struct {
	t     *testing.T
	nodes []*toyNode

	mu      sync.Mutex
	changed chan struct{} // closed at every change
	log     []ledger.LogEntry
	leader  int // -1: none
	term    uint64
	fences  int
	// lost is asked after each command is committed: true loses the answer.
	lost func(node *toyNode) bool
	// refuse is asked before: true refuses to commit, as one who is not the leader any more.
	refuse func(node *toyNode) bool
}

type toyNode struct {
	c       *toy
	number  int
	ledger  *ledger.Ledger
	signer  *signer.Signer
	seq     *sequencer.Sequencer
	service *rpc.Service
	address string
	server  *grpc.Server
	client  ledgerv1.LedgerServiceClient
	conn    *grpc.ClientConn // for clients and for other nodes
	applied int
	lags    bool
	apply   sync.Mutex
	close   func() // of the backend
}

const toyCluster = "00112233445566778899aabbccddeeff"

func newToy(t *testing.T, n int, alter func(*toyNode, *rpc.Options)) *toy {
	t.Helper()
	c := &toy{t: t, term: 1, changed: make(chan struct{})}
	for i := range n {
		x := &toyNode{c: c, number: i}
		c.nodes = append(c.nodes, x)
		o := rpc.Options{
			Backend: x.backend(), Router: toyRouter{x}, Logger: slog.New(slog.DiscardHandler),
			Identify: func(context.Context) (string, lineage.Authn, error) { return "local:somebody", lineage.AuthnNone, nil },
		}
		if alter != nil {
			alter(x, &o)
		}
		x.service = rpc.New(o)
		x.serve("127.0.0.1:0")
		conn, err := grpc.NewClient(x.address, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second}))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		x.conn, x.client = conn, ledgerv1.NewLedgerServiceClient(conn)
	}
	if err := c.nodes[0].seq.Bootstrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

// serve listens and serves until the test ends or stop.
func (x *toyNode) serve(address string) {
	lis, err := net.Listen("tcp", address)
	if err != nil {
		x.c.t.Fatal(err)
	}
	x.address = lis.Addr().String()
	x.server = grpc.NewServer(rpc.ServerOptions(slog.New(slog.DiscardHandler), rpc.NewMetrics(prometheus.NewRegistry()))...)
	x.service.Register(x.server)
	go func() { _ = x.server.Serve(lis) }()
	x.c.t.Cleanup(x.server.Stop)
}

// backend opens a ledger with what the node has applied, and what rests on it.
func (x *toyNode) backend() *rpc.Backend {
	t := x.c.t
	quiet := slog.New(slog.DiscardHandler)
	die := func(reason string, err error) { panic(fmt.Sprintf("die: %s: %v", reason, err)) }
	id, err := lineage.ParseID(toyCluster[:8] + "-" + toyCluster[8:12] + "-" + toyCluster[12:16] + "-" + toyCluster[16:20] + "-" + toyCluster[20:])
	if err != nil {
		t.Fatal(err)
	}
	fs := vfs.NewMem()
	l, err := ledger.Open(ledger.Options{FS: fs, Dir: "state", ClusterID: id, Logger: quiet, Die: die, MemTableBytes: 1 << 20, BlockCacheBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	secret := [signer.SecretBytes]byte{1, 2, 3}
	s, err := signer.Open(signer.Options{FS: fs, Dir: "signer", Secret: &secret, Logger: quiet, Die: die,
		Tree: func(origin string) (uint64, func(uint64) (merkle.Hash, error), error) {
			g, err := l.LogByOrigin(origin)
			if err != nil {
				return 0, nil, err
			}
			tree, err := l.Tree(g.Number)
			if err != nil {
				return 0, nil, err
			}
			return tree.Head().Size, tree.RootAt, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	seq := sequencer.New(sequencer.Options{
		Ledger: l, Proposer: toyProposer{x}, Now: func() int64 { return time.Now().UnixMicro() }, Random: func(b []byte) { rand.Read(b) },
		Admit: func() error { return nil }, Logger: quiet, OriginHost: "toy.localhost", VKey: s.VKey,
	})
	x.ledger, x.signer, x.seq, x.applied = l, s, seq, 0
	x.close = sync.OnceFunc(func() {
		seq.Close()
		if err := errors.Join(s.Close(), l.Close(context.Background())); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(x.close)
	x.catchUp()
	return &rpc.Backend{Ledger: l, Appender: seq, Checkpoints: s, Finder: l}
}

// catchUp applies what is committed.
func (x *toyNode) catchUp() {
	x.apply.Lock()
	defer x.apply.Unlock()
	x.c.mu.Lock()
	todo := slices.Clone(x.c.log[x.applied:])
	x.c.mu.Unlock()
	if len(todo) > 0 {
		x.ledger.Apply(todo)
	}
	x.c.mu.Lock()
	defer x.c.mu.Unlock()
	x.applied += len(todo)
	x.c.wake()
}

// wake wakes who waits for a change. The caller holds mu.
func (c *toy) wake() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// lead makes a node the leader; -1 nobody.
func (c *toy) lead(n int) {
	c.mu.Lock()
	c.leader = n
	c.term++
	c.wake()
	c.mu.Unlock()
	if n >= 0 {
		c.nodes[n].catchUp()
	}
}

// lag makes a node apply nothing, or catch up again.
func (x *toyNode) lag(yes bool) {
	x.c.mu.Lock()
	x.lags = yes
	x.c.mu.Unlock()
	if !yes {
		x.catchUp()
	}
}

// set changes something under the lock.
func (c *toy) set(f func()) { c.mu.Lock(); defer c.mu.Unlock(); f() }

type toyProposer struct{ x *toyNode }

type toyProposal struct {
	result any
	err    error
}

func (p toyProposal) Wait(context.Context) (any, error) { return p.result, p.err }

func (p toyProposer) Propose(command []byte) sequencer.Proposal {
	c := p.x.c
	c.mu.Lock()
	if c.leader != p.x.number || c.refuse != nil && c.refuse(p.x) {
		c.mu.Unlock()
		return toyProposal{err: fmt.Errorf("%w: not the leader", sequencer.ErrNotApplied)}
	}
	e := ledger.LogEntry{Index: uint64(len(c.log) + 1), Term: c.term, Data: bytes.Clone(command)}
	c.log = append(c.log, e)
	lost := c.lost != nil && c.lost(p.x)
	var others []*toyNode
	for _, x := range c.nodes {
		if x != p.x && !x.lags {
			others = append(others, x)
		}
	}
	c.mu.Unlock()
	p.x.apply.Lock()
	if uint64(p.x.applied)+1 != e.Index {
		panic("a leader proposes before it has applied what is committed")
	}
	result := p.x.ledger.Apply([]ledger.LogEntry{e})
	c.set(func() { p.x.applied++; c.wake() })
	p.x.apply.Unlock()
	for _, x := range others {
		x.catchUp()
	}
	if lost {
		return toyProposal{err: fmt.Errorf("%w: leadership lost", sequencer.ErrUnknown)}
	}
	return toyProposal{result: result[0]}
}

func (p toyProposer) Barrier(ctx context.Context) error {
	leads := false
	err := p.x.c.until(ctx, func() bool { leads = p.x.c.leader == p.x.number; return !leads || p.x.applied == len(p.x.c.log) })
	if err == nil && !leads {
		err = errors.New("not the leader")
	}
	return err
}

func (p toyProposer) Term() uint64 {
	p.x.c.mu.Lock()
	defer p.x.c.mu.Unlock()
	return p.x.c.term
}

func (p toyProposer) StepDown() error { p.x.c.lead(-1); return nil }

type toyRouter struct{ x *toyNode }

// until waits until f, called under the lock, is true.
func (c *toy) until(ctx context.Context, f func() bool) error {
	for {
		c.mu.Lock()
		ok, changed := f(), c.changed
		c.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (r toyRouter) Leader(ctx context.Context) (local bool, cc grpc.ClientConnInterface, hint string, err error) {
	c, leader := r.x.c, 0
	if err := c.until(ctx, func() bool { leader = c.leader; return leader >= 0 }); err != nil {
		return false, nil, "", fmt.Errorf("there is no leader: %w", err)
	}
	x := c.nodes[leader]
	if x == r.x {
		return true, nil, x.address, nil
	}
	return false, x.conn, x.address, nil
}

func (r toyRouter) ReadIndex(ctx context.Context) (index uint64, err error) {
	c := r.x.c
	err = c.until(ctx, func() bool { index = uint64(len(c.log)); return c.leader >= 0 })
	c.set(func() { c.fences++ })
	return index, err
}

func (r toyRouter) WaitApplied(ctx context.Context, index uint64) error {
	return r.x.c.until(ctx, func() bool { return uint64(r.x.applied) >= index })
}
