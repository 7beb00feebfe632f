package peerapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/devca"
	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/merkle"
	"github.com/provledger/provledger/internal/peer"
	"github.com/provledger/provledger/internal/sequencer"
	"github.com/provledger/provledger/internal/tlsfile"
	nodev1 "github.com/provledger/provledger/proto/ledgernode/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	clusterID = lineage.NewID()
	quiet     = slog.New(slog.DiscardHandler)
)

// node is a backend over a real ledger, behind a real peer port.
type node struct {
	l      *ledger.Ledger
	status Status
	member atomic.Bool // whether callers are members
	asked  JoinRequest
	from   peer.Remote
	err    error // of ReadIndex, Join and Checkpoint
	users  atomic.Int32
}

func (n *node) Status(context.Context) Status                 { return n.status }
func (n *node) Member(peer.Remote) bool                       { return n.member.Load() }
func (n *node) Term() uint64                                  { return 7 }
func (n *node) ReadIndex(ctx context.Context) (uint64, error) { return 42, n.err }
func (n *node) Checkpoint(_ context.Context, log uint32, size uint64) ([]byte, error) {
	return fmt.Appendf(nil, "%d/%d", log, size), n.err
}

func (n *node) Join(_ context.Context, r peer.Remote, q JoinRequest) (JoinReply, error) {
	n.from, n.asked = r, q
	return JoinReply{ClusterID: clusterID, Leader: "leader:1", Admitted: true}, n.err
}

func (n *node) Ledger() (*ledger.Ledger, func(), error) {
	if n.l == nil {
		return nil, nil, ErrFresh
	}
	n.users.Add(1)
	return n.l, func() { n.users.Add(-1) }, nil
}

var authority = sync.OnceValue(func() *devca.CA {
	ca, err := devca.New("peerapi test", time.Hour)
	if err != nil {
		panic(err)
	}
	return ca
})

func files(t *testing.T) *tlsfile.Files {
	t.Helper()
	cert, key, err := authority().Issue(devca.Request{Hosts: []string{"127.0.0.1"}, Server: true, Client: true, Validity: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, b := range map[string][]byte{"cert": cert, "key": key, "ca": authority().PEM()} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f, err := tlsfile.Open(filepath.Join(dir, "cert"), filepath.Join(dir, "key"), filepath.Join(dir, "ca"), quiet)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func port(t *testing.T, id lineage.ID) *peer.Port {
	t.Helper()
	boot := lineage.NewID()
	var p *peer.Port
	var address atomic.Value
	address.Store("127.0.0.1:1")
	p, err := peer.Listen("127.0.0.1:0", peer.Options{TLS: files(t), Logger: quiet, Self: func() peer.Hello {
		return peer.Hello{ClusterID: clusterID, NodeID: id, BootID: boot, Address: address.Load().(string)}
	}})
	if err != nil {
		t.Fatal(err)
	}
	address.Store(p.Addr().String())
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// serve has a backend answer on a port of its own and returns a client to it.
func serve(t *testing.T, n *node, options ...Option) (*Client, *server) {
	t.Helper()
	id := lineage.NewID()
	n.status.NodeID = id
	p := port(t, id)
	g := grpc.NewServer(append(ServerOptions(), grpc.Creds(peer.ServerCredentials()))...)
	s := newServer(n, options...)
	nodev1.RegisterNodeServiceServer(g, s)
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(p.API()) }()
	t.Cleanup(func() { g.Stop(); <-done })
	cc, err := port(t, lineage.NewID()).Dial(id, p.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cc.Close() })
	return NewClient(cc, "the other"), s
}

// alone applies every command at once.
type alone struct {
	l     *ledger.Ledger
	index uint64
}

type applied struct{ result any }

func (a applied) Wait(context.Context) (any, error) { return a.result, nil }

func (a *alone) Propose(command []byte) sequencer.Proposal {
	a.index++
	return applied{a.l.Apply([]ledger.LogEntry{{Index: a.index, Term: 1, Data: command}})[0]}
}

func (*alone) Barrier(context.Context) error { return nil }
func (*alone) Term() uint64                  { return 1 }
func (*alone) StepDown() error               { return errors.New("alone") }

// filled returns a ledger whose log main has so many entries of so many bytes.
func filled(t *testing.T, commands, entries, bodyBytes int) *ledger.Ledger {
	t.Helper()
	l, err := ledger.Open(ledger.Options{
		FS: vfs.NewMem(), Dir: "state", ClusterID: clusterID, Logger: quiet, MemTableBytes: 8 << 20, BlockCacheBytes: 1 << 20,
		Die: func(reason string, err error) { panic(fmt.Sprintf("die: %s: %v", reason, err)) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	first := &alone{l: l}
	seq := sequencer.New(sequencer.Options{
		Ledger: l, Proposer: first, Now: func() int64 { return 1 }, Logger: quiet, OriginHost: "example.org", Random: func([]byte) {},
		Admit: func() error { return nil }, VKey: func(origin string) (string, error) { return "vkey of " + origin, nil },
	})
	err = seq.Bootstrap(t.Context())
	seq.Close()
	if err != nil {
		t.Fatal(err)
	}
	index := first.index
	apply := func(sections ...ledger.Section) {
		index++
		c := ledger.Command{ClusterID: clusterID, Base: l.Applied(), Sections: sections}
		if o, ok := l.Apply([]ledger.LogEntry{{Index: index, Term: 1, Data: ledger.AppendCommand(nil, &c)}})[0].(*ledger.Outcome); !ok || o.Decision != ledger.Accepted {
			t.Fatalf("command %d: %v", index, o)
		}
	}
	extend := func(log uint32, s ledger.Section) ledger.Section {
		tree, err := l.Tree(log)
		if err != nil {
			t.Fatal(err)
		}
		edge := tree.Edge()
		s.Log, s.Before = log, tree.Head()
		for _, e := range s.Entries {
			edge.Append(merkle.LeafHash(e.Leaf), nil)
		}
		s.After = ledger.Head{Size: edge.Size(), Root: edge.Root(), RecordedAt: 1}
		return s
	}
	for c := range commands {
		var s ledger.Section
		for e := range entries {
			body := lineage.AppendBody(nil, []lineage.BodyPart{{Kind: lineage.PartDocuments, Content: bytes.Repeat([]byte{byte(c), byte(e)}, bodyBytes/2)}})
			s.Entries = append(s.Entries, ledger.CommandEntry{EventID: lineage.NewID(), Principal: "local:t", Leaf: fmt.Appendf(nil, "leaf %d of %d", e, c), Body: body})
		}
		apply(extend(ledger.MainLog, s))
	}
	return l
}

func TestUnary(t *testing.T) {
	n := &node{l: filled(t, 1, 3, 100)}
	c, _ := serve(t, n)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	n.status = Status{
		ClusterID: clusterID, NodeID: n.status.NodeID, BootID: lineage.NewID(), Address: "a:1", APIAddress: "b:2", Fresh: true, State: StateJoining,
		Term: 3, Leader: "x", Applied: 4, Durable: 5, FirstLog: 6, LastLog: 7, Configuration: 8, MinCommand: 1, MaxCommand: 2, Version: "v", Now: 9,
		MissingKeys: []string{"k"}, MissingKeyCount: 10, Quarantine: "q", NotReady: "r", FreeBytes: 11, Full: true, CertificateExpires: 12,
	}
	v := reflect.ValueOf(n.status)
	for i := range v.NumField() {
		if v.Field(i).IsZero() {
			t.Fatalf("this test forgets %s", v.Type().Field(i).Name)
		}
	}
	// Whoever is no member may ask for these two.
	if s, err := c.Status(ctx); err != nil || !reflect.DeepEqual(s, n.status) {
		t.Errorf("%+v, %v, want %+v", s, err, n.status)
	}
	q := JoinRequest{NodeID: lineage.NewID(), Address: "c:3", Voter: true}
	if r, err := c.Join(ctx, q); err != nil || n.asked != q || r != (JoinReply{clusterID, "leader:1", true}) || n.from.ClusterID != clusterID || n.from.Certificate == nil {
		t.Errorf("%+v, %v, asked %+v by %+v", r, err, n.asked, n.from.Hello)
	}
	if _, err := c.Join(ctx, JoinRequest{}); !errors.Is(err, ledger.ErrInvalid) {
		t.Errorf("without an id: %v", err)
	}
	a := n.l.Applied()
	calls := map[string]func() error{
		"Term":       func() error { x, err := c.Term(ctx); return want(err, x == 7) },
		"ReadIndex":  func() error { x, err := c.ReadIndex(ctx); return want(err, x == 42) },
		"Checkpoint": func() error { x, err := c.Checkpoint(ctx, 1, 3); return want(err, string(x) == "1/3") },
		"DecisionAt": func() error {
			x, ok, err := c.DecisionAt(ctx, a.Index)
			return want(err, ok && x == a.Digest)
		},
		"an unknown decision": func() error { _, ok, err := c.DecisionAt(ctx, 1<<40); return want(err, !ok) },
		"Export": func() error {
			x, err := c.Export(ctx)
			if err != nil {
				return err
			}
			own, err := n.l.Export()
			return want(err, x != nil && bytes.Equal(x.Encode(), own.Encode()) && len(x.Logs) == 2)
		},
		"Chunks": func() error { return c.Chunks(ctx, ledger.MainLog, 0, 3, func(ledger.Chunk) error { return nil }) },
	}
	for name, call := range calls {
		n.member.Store(false)
		if err := call(); !errors.Is(err, ErrNotMember) {
			t.Errorf("%s, asked by a stranger: %v", name, err)
		}
		n.member.Store(true)
		if err := call(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	l := n.l
	n.l = nil
	for _, name := range []string{"Export", "Chunks", "DecisionAt"} {
		if err := calls[name](); !errors.Is(err, ErrFresh) {
			t.Errorf("%s of a node without a ledger: %v", name, err)
		}
	}
	n.l = l
	for _, err := range []error{ErrNotLeader, ErrRefused, ErrAddressTaken, ErrBusy, ledger.ErrQuarantined, ledger.ErrNotFound, ledger.ErrCorrupt} {
		n.err = fmt.Errorf("because: %w", err)
		_, got := c.ReadIndex(ctx)
		if !errors.Is(got, err) {
			t.Errorf("%v arrives as %v", err, got)
		}
		for _, other := range classes {
			if other.is != err && errors.Is(got, other.is) {
				t.Errorf("%v arrives as %v too", err, other.is)
			}
		}
	}
	n.err = errors.New("something else")
	if _, err := c.ReadIndex(ctx); err == nil || errors.Unwrap(err) != nil {
		t.Errorf("without a class: %v", err)
	}
	if u := n.users.Load(); u != 0 {
		t.Errorf("the ledger is still in use by %d", u)
	}
}

// want turns a wrong answer into an error.
func want(err error, ok bool) error {
	if err == nil && !ok {
		return errors.New("wrong answer")
	}
	return err
}

// gather returns the chunks of a range, and checks that they are in order.
func gather(ctx context.Context, c *Client, first, end uint64) (map[uint64]ledger.Chunk, error) {
	got, next := map[uint64]ledger.Chunk{}, first
	err := c.Chunks(ctx, ledger.MainLog, first, end, func(x ledger.Chunk) error {
		if x.First > next {
			return fmt.Errorf("chunk at %d, want %d", x.First, next)
		}
		next = x.First + uint64(x.Count)
		got[x.First] = x
		return nil
	})
	return got, err
}

// A range arrives verbatim, whatever ends the calls that it takes.
func TestChunks(t *testing.T) {
	n := &node{l: filled(t, 12, 40, 8<<10)} // 4 MB
	n.member.Store(true)
	c, s := serve(t, n)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	size := uint64(1 + 12*40)
	all := map[uint64]ledger.Chunk{}
	if err := n.l.Chunks(ledger.MainLog, 0, size, func(x ledger.Chunk) error {
		x.Leaves, x.Bodies = bytes.Clone(x.Leaves), bytes.Clone(x.Bodies)
		all[x.First] = x
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for name, set := range map[string]func(){
		"in one call":         func() {},
		"a message a call":    func() { s.callBytes = 1 },
		"no time for any":     func() { s.callBytes, s.callTime = maxCallBytes, 0 },
		"a few calls":         func() { s.callBytes, s.callTime = 1<<20, maxCallTime },
		"at two MB in a tick": func() { s.throttle = newThrottle(100<<20, time.Now) },
	} {
		set()
		if got, err := gather(ctx, c, 0, size); err != nil || !reflect.DeepEqual(got, all) {
			t.Errorf("%s: %d of %d chunks, %v", name, len(got), len(all), err)
		}
	}
	if got, err := gather(ctx, c, 100, 101); err != nil || len(got) != 1 {
		t.Errorf("one entry: %d chunks, %v", len(got), err)
	}
	if _, err := gather(ctx, c, 0, size+1); !errors.Is(err, ledger.ErrNotFound) {
		t.Errorf("beyond the log: %v", err)
	}
	if got, err := gather(ctx, c, 5, 5); err != nil || len(got) != 0 {
		t.Errorf("nothing: %v", err)
	}
	mine := errors.New("mine")
	if err := c.Chunks(ctx, ledger.MainLog, 0, size, func(ledger.Chunk) error { return mine }); err != mine {
		t.Errorf("the caller's own error: %v", err)
	}
	waitFor(t, "the ledger to be given back", func() bool { return n.users.Load() == 0 && len(s.turns) == 0 })
}

// A chunk larger than gRPC's own limit, up to that of a command.
func TestLargeChunk(t *testing.T) {
	n := &node{l: filled(t, 1, 7, 1<<20-100)}
	n.member.Store(true)
	c, _ := serve(t, n)
	got, err := gather(t.Context(), c, 1, 8)
	if err != nil || len(got) != 1 || len(got[1].Bodies) < 7<<20-1000 {
		t.Errorf("%d chunks, %v", len(got), err)
	}
}

// Clients that do not read hold their turns until their calls time out; the others wait for that and then get theirs.
func TestStalledReaders(t *testing.T) {
	n := &node{l: filled(t, 4, 40, 32<<10)} // 5 MB, more than the buffers between
	n.member.Store(true)
	c, s := serve(t, n)
	stalled := *c
	stalled.streamTimeout = 2 * time.Second
	release := make(chan struct{})
	var wg sync.WaitGroup
	for range maxStreams {
		wg.Go(func() {
			_ = stalled.Chunks(t.Context(), ledger.MainLog, 0, 160, func(ledger.Chunk) error { <-release; return nil })
		})
	}
	defer wg.Wait()
	defer close(release)
	waitFor(t, "all turns to be taken", func() bool { return len(s.turns) == maxStreams })
	short, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := gather(short, c, 0, 1); err == nil {
		t.Error("more streams than turns")
	}
	if _, err := gather(t.Context(), c, 0, 1); err != nil {
		t.Errorf("after the others have timed out: %v", err)
	}
}

func waitFor(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited 10 s for %s", what)
		}
	}
}

// fakeStream answers Chunks with what a broken or lying server could send.
type fakeConn struct {
	grpc.ClientConnInterface
	chunks []*nodev1.Chunk
}

type fakeStream struct {
	grpc.ClientStream
	sent   bool
	chunks []*nodev1.Chunk
}

func (c fakeConn) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return &fakeStream{chunks: c.chunks}, nil
}

func (*fakeStream) SendMsg(any) error { return nil }
func (*fakeStream) CloseSend() error  { return nil }

func (s *fakeStream) RecvMsg(m any) error {
	if s.sent {
		return io.EOF
	}
	s.sent = true
	m.(*nodev1.ChunksResponse).Chunks = s.chunks
	return nil
}

// A server that sends other chunks than it was asked for is found out before anybody sees them, and never asked for ever.
func TestLyingServer(t *testing.T) {
	for name, chunks := range map[string][]*nodev1.Chunk{
		"nothing":         nil,
		"an empty one":    {{First: 10}},
		"one before":      {{First: 0, Count: 10}},
		"a gap":           {{First: 11, Count: 2}},
		"a gap behind":    {{First: 10, Count: 2}, {First: 13, Count: 2}},
		"the same again":  {{First: 10, Count: 2}, {First: 10, Count: 2}},
		"an overlap":      {{First: 10, Count: 4}, {First: 12, Count: 4}},
		"one beyond":      {{First: 10, Count: 10}, {First: 20, Count: 1}},
		"an overflow":     {{First: 1<<64 - 1, Count: 16}},
		"an overflow too": {{First: 10, Count: 4}, {First: 1<<64 - 3, Count: 16}},
	} {
		c := NewClient(fakeConn{chunks: chunks}, "liar")
		next := uint64(10)
		err := c.Chunks(t.Context(), 1, 10, 20, func(x ledger.Chunk) error {
			if x.First != next {
				t.Errorf("%s: passed on %d", name, x.First)
			}
			next = x.First + uint64(x.Count)
			return nil
		})
		if !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestThrottle(t *testing.T) {
	now := time.Unix(0, 0)
	b := newThrottle(1000, func() time.Time { return now })
	for _, step := range []struct {
		after time.Duration
		n     int
		want  time.Duration
	}{
		{0, 1000, 0}, // a second's worth is there
		{0, 500, 500 * time.Millisecond},
		{0, 500, time.Second}, // behind the one before
		{time.Second, 0, 0},
		{time.Hour, 3000, 2 * time.Second}, // no more than a second's worth is saved, and a large one gets through
		{-time.Hour, 1000, 3 * time.Second},
		{time.Second, 0, 2 * time.Second},
	} {
		now = now.Add(step.after)
		if got := b.take(step.n); got != step.want {
			t.Errorf("%+v: waits %s", step, got)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.wait(ctx, 1<<20); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if newThrottle(0, nil) != nil || (*throttle)(nil).wait(t.Context(), 1<<40) != nil {
		t.Error("without a bound it bounds")
	}
}
