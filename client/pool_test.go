package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

// front is an address in front of a ledger: a node of a cluster as a client sees it. before answers instead of the ledger if it returns an
// error.
type front struct {
	address string
	server  *grpc.Server
	calls   atomic.Int64
	writes  atomic.Int64

	mu     sync.Mutex
	before func(ctx context.Context, method string, req any) error
}

func (f *front) set(before func(ctx context.Context, method string, req any) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.before = before
}

func (f *front) check(ctx context.Context, method string, req any) error {
	f.calls.Add(1)
	if changes[method] {
		f.writes.Add(1)
	}
	f.mu.Lock()
	before := f.before
	f.mu.Unlock()
	if before == nil {
		return nil
	}
	return before(ctx, method, req)
}

func (l *testLedger) front(t *testing.T, register func(*grpc.Server)) *front {
	t.Helper()
	f := &front{}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.address = lis.Addr().String()
	f.server = l.n.NewServer(
		grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			if err := f.check(ctx, info.FullMethod, req); err != nil {
				return nil, err
			}
			return next(ctx, req)
		}),
		grpc.ChainStreamInterceptor(func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			if err := f.check(ss.Context(), info.FullMethod, nil); err != nil {
				return err
			}
			return next(srv, ss)
		}))
	if register != nil {
		register(f.server)
	}
	go func() { _ = f.server.Serve(lis) }()
	t.Cleanup(f.server.Stop)
	return f
}

func fronts(t *testing.T, l *testLedger, n int) (all []*front, target string) {
	t.Helper()
	for range n {
		f := l.front(t, nil)
		all = append(all, f)
		target += "," + f.address
	}
	return all, target[1:]
}

func dialTCP(t *testing.T, target string, o Options) *Client {
	t.Helper()
	if o.StateDir == "" {
		o.StateDir = noMemory
	}
	c, err := Dial(target, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// reasoned is a status of the ledger.
func reasoned(code codes.Code, reason string, md map[string]string) error {
	s, err := status.New(code, "as the test says").WithDetails(&errdetails.ErrorInfo{Domain: errorDomain, Reason: reason, Metadata: md})
	if err != nil {
		panic(err)
	}
	return s.Err()
}

// One of the nodes is enough, whichever it is, and while it answers the others are left alone.
func TestAnyNodeWillDo(t *testing.T) {
	l := newLedger(t)
	nodes, target := fronts(t, l, 3)
	c := dialTCP(t, target, Options{})
	mustAppend(t, c, event("a"))
	if nodes[0].calls.Load() == 0 || nodes[1].calls.Load()+nodes[2].calls.Load() > 0 {
		t.Errorf("calls %d, %d, %d: want all to the first", nodes[0].calls.Load(), nodes[1].calls.Load(), nodes[2].calls.Load())
	}
	for _, f := range nodes[:2] {
		f.server.Stop()
		start := time.Now()
		mustAppend(t, c, event("b"+f.address))
		if took := time.Since(start); took > time.Second {
			t.Errorf("the next node took over after %v", took)
		}
	}
	nodes[2].server.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := c.Append(ctx, "", event("c")); err == nil {
		t.Error("nobody is there, and an append succeeded")
	}
}

// What changes something goes to the leader that answers and errors name, if there is a way to it, and follows it when it moves.
func TestLeaderHints(t *testing.T) {
	l := newLedger(t)
	nodes, target := fronts(t, l, 3)
	var leader atomic.Pointer[front]
	leader.Store(nodes[2])
	for _, f := range nodes {
		f.set(func(ctx context.Context, method string, _ any) error {
			if !changes[method] {
				return nil
			}
			if leader.Load() == nodes[1] && f == nodes[2] { // it has just lost leadership
				return reasoned(codes.Unavailable, reasonNotApplied, map[string]string{"leader": nodes[1].address})
			}
			return grpc.SetHeader(ctx, metadata.Pairs("provledger-leader", leader.Load().address))
		})
	}
	c := dialTCP(t, target, Options{})
	direct := func(want *front) {
		t.Helper()
		for range 200 {
			before := want.writes.Load()
			mustAppend(t, c, event("x"))
			if want.writes.Load() > before {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Fatal("no append went to the leader")
	}
	direct(nodes[2])
	leader.Store(nodes[1])
	direct(nodes[1])
	// A hint to a place that cannot be reached does no harm; nor does one to a stranger, unless learning is on.
	gone := newLedger(t).front(t, nil)
	gone.server.Stop()
	leader.Store(gone)
	for range 5 {
		mustAppend(t, c, event("y"))
	}
	if n := c.pool.size(); n != 3 {
		t.Errorf("%d nodes, want those that were given", n)
	}
}

type members struct {
	ledgerv1.UnimplementedClusterServiceServer
	list func() []*ledgerv1.Member
}

func (m members) GetCluster(context.Context, *ledgerv1.GetClusterRequest) (*ledgerv1.GetClusterResponse, error) {
	return &ledgerv1.GetClusterResponse{Cluster: &ledgerv1.Cluster{ClusterId: "c", Members: m.list(), Warnings: []string{"w"}}}, nil
}

// A client that was given one address learns the others, and outlives the node.
func TestDiscover(t *testing.T) {
	l := newLedger(t)
	_, target := fronts(t, l, 2)
	var list []*ledgerv1.Member
	for _, a := range addresses(target) {
		list = append(list, &ledgerv1.Member{ApiAddress: a})
	}
	list = append(list, &ledgerv1.Member{ApiAddress: ""}, &ledgerv1.Member{ApiAddress: "no address at all\x00"})
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	first := grpc.NewServer()
	ledgerv1.RegisterClusterServiceServer(first, members{list: func() []*ledgerv1.Member { return list }})
	go func() { _ = first.Serve(lis) }()
	t.Cleanup(first.Stop)

	c := dialTCP(t, lis.Addr().String(), Options{Discover: true})
	x, err := c.Cluster(t.Context())
	if err != nil || x.ID != "c" || len(x.Members) != 4 || !slices.Equal(x.Warnings, []string{"w"}) {
		t.Fatalf("%+v, %v", x, err)
	}
	for deadline := time.Now().Add(5 * time.Second); c.pool.size() < 3; {
		if time.Now().After(deadline) {
			t.Fatalf("%d nodes after 5 s", c.pool.size())
		}
		time.Sleep(5 * time.Millisecond)
	}
	first.Stop()
	mustAppend(t, c, event("a"))
}

// A node that is behind, or quarantined, is passed over; one alone that is behind is an error, and not a rollback.
func TestLaggingNode(t *testing.T) {
	l := newLedger(t)
	nodes, target := fronts(t, l, 2)
	c := dialTCP(t, target, Options{})
	mustAppend(t, c, event("a"), event("b"))
	for _, reason := range []string{reasonBehind, reasonQuarantined} {
		for _, f := range nodes {
			f.set(nil)
		}
		bad := nodes[c.pool.at%2]
		before := bad.calls.Load()
		bad.set(func(_ context.Context, method string, _ any) error {
			if changes[method] {
				return nil
			}
			return reasoned(codes.FailedPrecondition, reason, nil)
		})
		if _, _, err := c.Receipt(t.Context(), "", AtIndex(1)); err != nil {
			t.Errorf("%s: %v", reason, err)
		}
		if bad.calls.Load() == before {
			t.Errorf("%s: the node was not asked", reason)
		}
	}
	for _, f := range nodes {
		f.set(func(_ context.Context, method string, req any) error {
			if r, ok := req.(interface {
				GetConsistency() *ledgerv1.ReadConsistency
			}); ok && r.GetConsistency().GetLinearizable() {
				return reasoned(codes.Unavailable, reasonNotApplied, nil)
			}
			return reasoned(codes.FailedPrecondition, reasonBehind, nil)
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
	defer cancel()
	_, err := c.Checkpoint(ctx, "")
	if _, lies := errors.AsType[*UntrustedError](err); lies || !isCode(err, codes.FailedPrecondition) {
		t.Errorf("all are behind: %v", err)
	}
}

// A session asks every node for no less than it has seen, also after a restart.
func TestMinSizeIsSent(t *testing.T) {
	l := newLedger(t)
	f := l.front(t, nil)
	var mu sync.Mutex
	asked := map[string]uint64{}
	f.set(func(_ context.Context, method string, req any) error {
		if r, ok := req.(interface {
			GetConsistency() *ledgerv1.ReadConsistency
		}); ok {
			mu.Lock()
			defer mu.Unlock()
			asked[method[len("/ledger.v1.LedgerService/"):]] = r.GetConsistency().GetMinSize()
		}
		return nil
	})
	state := t.TempDir()
	for round := range 2 {
		c := dialTCP(t, f.address, Options{StateDir: state})
		mustAppend(t, c, event(fmt.Sprint("a", round)), event(fmt.Sprint("b", round)))
		want := uint64(3 + 2*round)
		if round == 1 {
			mu.Lock()
			if got := asked["GetConsistencyProof"]; got != 3 { // the first contact of the second process
				t.Errorf("first contact asked for %d, want the remembered 3", got)
			}
			mu.Unlock()
		}
		if _, _, err := c.Receipt(t.Context(), "", AtIndex(1)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Checkpoint(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		for _, m := range []string{"GetReceipt", "GetCheckpoint"} {
			if asked[m] != want {
				t.Errorf("round %d: %s asked for %d, want %d", round, m, asked[m], want)
			}
		}
		mu.Unlock()
		mustClose(t, c)
	}
}

// A caller's own wish goes along.
func TestWithConsistency(t *testing.T) {
	l := newLedger(t)
	f := l.front(t, nil)
	var got atomic.Pointer[ledgerv1.ReadConsistency]
	f.set(func(_ context.Context, _ string, req any) error {
		if r, ok := req.(*ledgerv1.GetReceiptRequest); ok {
			got.Store(r.GetConsistency())
		}
		return nil
	})
	c := dialTCP(t, f.address, Options{})
	mustAppend(t, c, event("a"))
	ctx := WithConsistency(t.Context(), Consistency{Linearizable: true, MinSize: 1})
	if _, _, err := c.Receipt(ctx, "", AtIndex(1)); err != nil || !got.Load().GetLinearizable() || got.Load().GetMinSize() != 2 {
		t.Errorf("%v, asked for %v", err, got.Load())
	}
	ctx = WithConsistency(t.Context(), Consistency{MinSize: 100})
	_, _, err := c.Receipt(ctx, "", AtIndex(1))
	if reason, _ := reasonOf(err); reason != reasonBehind {
		t.Errorf("a size that nobody has: %v", err)
	}
	if _, lies := errors.AsType[*UntrustedError](err); lies {
		t.Errorf("that is no rollback: %v", err)
	}
}

// A log whose creation got lost on the way is the caller's; one that was there before is not.
func TestCreateLogAnswerLost(t *testing.T) {
	l := newLedger(t)
	var lose atomic.Bool
	c := l.dial(Options{}, grpc.WithUnaryInterceptor(
		func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, next grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			err := next(ctx, method, req, reply, cc, opts...)
			if method == ledgerv1.LedgerService_CreateLog_FullMethodName && lose.CompareAndSwap(true, false) {
				return status.Error(codes.Unavailable, "connection reset")
			}
			return err
		}))
	lose.Store(true)
	if x, err := c.CreateLog(t.Context(), "a"); err != nil || x.Name != "a" {
		t.Errorf("%+v, %v", x, err)
	}
	for _, lost := range []bool{false, true} {
		lose.Store(lost)
		if _, err := c.CreateLog(t.Context(), "a"); !isCode(err, codes.AlreadyExists) {
			t.Errorf("answer lost %v: %v", lost, err)
		}
	}
}

// A change of the cluster of unknown outcome is not made twice.
func TestChangeIsNotSentTwice(t *testing.T) {
	calls := 0
	m := func(errs ...error) method[ledgerv1.RemoveMemberRequest, ledgerv1.RemoveMemberResponse] {
		calls = 0
		return func(context.Context, *ledgerv1.RemoveMemberRequest, ...grpc.CallOption) (*ledgerv1.RemoveMemberResponse, error) {
			calls++
			return &ledgerv1.RemoveMemberResponse{}, errs[min(calls, len(errs))-1]
		}
	}
	c := New(nil, Options{StateDir: noMemory, Timeout: time.Second})
	unknown, not := reasoned(codes.Unavailable, reasonUnknownOutcome, nil), reasoned(codes.Unavailable, reasonNotApplied, nil)
	if _, err := change(t.Context(), c, "remove", m(not, unknown), nil); !errors.Is(err, ErrChangeUnknown) || calls != 2 {
		t.Errorf("%v after %d calls", err, calls)
	}
	if _, err := change(t.Context(), c, "remove", m(not, not, nil), nil); err != nil || calls != 3 {
		t.Errorf("%v after %d calls", err, calls)
	}
	if _, err := change(t.Context(), c, "remove", m(reasoned(codes.FailedPrecondition, "REFUSED", nil)), nil); errors.Is(err, ErrChangeUnknown) || !isCode(err, codes.FailedPrecondition) || calls != 1 {
		t.Errorf("%v after %d calls", err, calls)
	}
}
