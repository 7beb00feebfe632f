package rpc_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/provledger/provledger/client/eventpb"
	"github.com/provledger/provledger/client/receipt"
	"github.com/provledger/provledger/internal/rpc"
	"github.com/provledger/provledger/internal/sequencer"
	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

func detail(err error) (reason string, md map[string]string, retry time.Duration) {
	for _, d := range status.Convert(err).Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			reason, md = d.Reason, d.Metadata
		case *errdetails.RetryInfo:
			retry = d.RetryDelay.AsDuration()
		}
	}
	return reason, md, retry
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// mustVerify checks an append's receipt, offline, under the key of the log.
func mustVerify(t *testing.T, c ledgerv1.LedgerServiceClient, m *ledgerv1.AppendResponse) {
	t.Helper()
	g, err := c.GetLog(t.Context(), &ledgerv1.GetLogRequest{})
	if err != nil {
		t.Fatal(err)
	}
	p, err := receipt.PolicyFor(g.Log.Vkey)
	if err != nil {
		t.Fatal(err)
	}
	r, err := eventpb.ToReceipt(m.Receipt)
	if err != nil {
		t.Fatal(err)
	}
	if v := receipt.Verify(r, p, nil, receipt.Require{}); v.Outcome != receipt.Verified {
		t.Fatalf("receipt: %+v", v)
	}
}

// A follower passes on what changes something, answers with what the leader answered, byte for byte, and says who leads.
func TestFollowerPassesOn(t *testing.T) {
	c := newToy(t, 3, nil)
	for i, x := range c.nodes {
		var header metadata.MD
		one, err := x.client.Append(t.Context(), &ledgerv1.AppendRequest{Event: event(i)}, grpc.Header(&header))
		if err != nil {
			t.Fatalf("node %d: %v", i, err)
		}
		mustVerify(t, x.client, one)
		if got := header.Get("provledger-leader"); len(got) != 1 || got[0] != c.nodes[0].address {
			t.Errorf("node %d: leader %q, want %s", i, got, c.nodes[0].address)
		}
		many := &ledgerv1.BatchAppendRequest{}
		for i := range 300 {
			many.Events = append(many.Events, event(i))
		}
		first, err := x.client.BatchAppend(t.Context(), many)
		if err != nil || len(first.Results) != 300 {
			t.Fatalf("node %d: %v", i, err)
		}
		// The same batch at the leader has the same answer, but for what differs: it is a duplicate now.
		again, err := c.nodes[0].client.BatchAppend(t.Context(), many)
		if err != nil {
			t.Fatal(err)
		}
		for j := range again.Results {
			if !again.Results[j].Duplicate || first.Results[j].Duplicate {
				t.Fatalf("node %d: event %d: duplicate %v, then %v", i, j, first.Results[j].Duplicate, again.Results[j].Duplicate)
			}
			again.Results[j].Duplicate = false
			if !proto.Equal(first.Results[j], again.Results[j]) {
				t.Fatalf("node %d: event %d: %v, then %v", i, j, first.Results[j], again.Results[j])
			}
		}
		if len(first.ProtoReflect().GetUnknown()) > 0 {
			t.Error("the answer has unknown fields")
		}
	}
	// What the leader refuses is refused here in the same words.
	_, here := c.nodes[0].client.Append(t.Context(), &ledgerv1.AppendRequest{})
	_, there := c.nodes[1].client.Append(t.Context(), &ledgerv1.AppendRequest{})
	if status.Code(here) != codes.InvalidArgument || !proto.Equal(status.Convert(here).Proto(), status.Convert(there).Proto()) {
		t.Errorf("refused with %v on the leader, %v on a follower", here, there)
	}
}

// Appends wait through an election and go on with whoever wins it.
func TestAppendsWaitForALeader(t *testing.T) {
	c := newToy(t, 3, nil)
	c.lead(-1)
	var wg sync.WaitGroup
	for i := range 30 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			r, err := c.nodes[i%3].client.Append(ctx, &ledgerv1.AppendRequest{Event: event(i)})
			if err != nil || r.Duplicate {
				t.Errorf("append %d: %v, %v", i, r, err)
			}
		})
	}
	time.Sleep(50 * time.Millisecond)
	c.lead(2)
	wg.Wait()
	if n := size(t, c.nodes[2]); n != 31 {
		t.Errorf("%d entries, want 31", n)
	}
}

func size(t *testing.T, x *toyNode) uint64 {
	t.Helper()
	g, err := x.client.GetLog(t.Context(), &ledgerv1.GetLogRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return g.Log.TreeSize
}

// Without a leader until the deadline the caller hears, in time, that nothing was recorded and when to come again.
func TestNoLeaderInTime(t *testing.T) {
	c := newToy(t, 2, nil)
	c.lead(-1)
	for i, x := range c.nodes {
		start := time.Now()
		_, err := x.client.Append(within(t, 2*time.Second), &ledgerv1.AppendRequest{Event: event(i)})
		reason, _, retry := detail(err)
		if status.Code(err) != codes.Unavailable || reason != "NOT_APPLIED" || retry <= 0 {
			t.Errorf("node %d: %v, reason %q, retry %v", i, err, reason, retry)
		}
		if took := time.Since(start); took < time.Second {
			t.Errorf("node %d gave up after %v of 2 s", i, took)
		}
	}
	if c.lead(0); size(t, c.nodes[0]) != 1 {
		t.Error("something was recorded")
	}
}

// The leader records an event and dies before it answers: the next one finds it under its id, and the caller sees one entry.
func TestRecordedAndNotAnswered(t *testing.T) {
	c := newToy(t, 3, nil)
	var once sync.Once
	c.set(func() {
		c.lost = func(x *toyNode) (lost bool) {
			once.Do(func() { lost = true; c.leader = -1; c.term++; c.wake() })
			return lost
		}
	})
	go func() {
		time.Sleep(100 * time.Millisecond)
		c.lead(1)
	}()
	r, err := c.nodes[2].client.Append(within(t, 10*time.Second), &ledgerv1.AppendRequest{Event: event(1)})
	if err != nil || !r.Duplicate || r.Index != 1 {
		t.Fatalf("%v, %v: want the entry that was recorded", r, err)
	}
	mustVerify(t, c.nodes[1].client, r)
	if n := size(t, c.nodes[1]); n != 2 {
		t.Errorf("%d entries, want 2", n)
	}
}

// If nobody can tell in time the outcome is unknown, and the reason says so; sending it again under the same id tells.
func TestUnknownOutcome(t *testing.T) {
	c := newToy(t, 2, nil)
	c.set(func() {
		c.lost = func(*toyNode) bool { c.leader = -1; c.wake(); return true }
	})
	for i, x := range c.nodes {
		c.lead(0)
		e := event(i)
		_, err := x.client.Append(within(t, 2*time.Second), &ledgerv1.AppendRequest{Event: e})
		if reason, _, _ := detail(err); status.Code(err) != codes.Unavailable || reason != "UNKNOWN_OUTCOME" {
			t.Errorf("node %d: %v, reason %q", i, err, reason)
		}
		old := c.lost
		c.set(func() { c.lost = nil })
		c.lead(0)
		r, err := x.client.Append(within(t, 5*time.Second), &ledgerv1.AppendRequest{Event: e})
		if err != nil || !r.Duplicate {
			t.Errorf("node %d: sent again: %v, %v", i, r, err)
		}
		c.set(func() { c.lost = old })
	}
}

// A leader that nobody can reach has done nothing; one that answered nothing may have.
func TestUnreachableLeader(t *testing.T) {
	c := newToy(t, 2, nil)
	c.nodes[0].server.Stop()
	_, err := c.nodes[1].client.Append(within(t, 2*time.Second), &ledgerv1.AppendRequest{Event: event(1)})
	reason, md, _ := detail(err)
	if status.Code(err) != codes.Unavailable || reason != "NOT_APPLIED" || md["leader"] != c.nodes[0].address {
		t.Errorf("%v, reason %q, leader %q", err, reason, md["leader"])
	}
}

// stuck is an appender that, while on, answers nothing until its caller goes away: a leader that lost its quorum, or is stopped.
type stuck struct {
	rpc.Appender
	on *atomic.Bool
}

func (a stuck) Append(ctx context.Context, r sequencer.Request) (*sequencer.Result, error) {
	if a.on.Load() {
		<-ctx.Done()
		return nil, fmt.Errorf("%w: %w", sequencer.ErrUnknown, ctx.Err())
	}
	return a.Appender.Append(ctx, r)
}

// clocked tells how much time an append has.
type clocked struct {
	rpc.Appender
	left chan time.Duration
}

func (a clocked) Append(ctx context.Context, r sequencer.Request) (*sequencer.Result, error) {
	deadline, _ := ctx.Deadline()
	a.left <- time.Until(deadline)
	return a.Appender.Append(ctx, r)
}

// A leader that hangs costs the time until another one is elected, not the whole deadline.
func TestHangingLeader(t *testing.T) {
	var slow atomic.Bool
	c := newToy(t, 3, func(x *toyNode, o *rpc.Options) {
		if x.number == 0 {
			o.Backend.Appender = stuck{o.Backend.Appender, &slow}
		}
	})
	slow.Store(true)
	go func() {
		time.Sleep(150 * time.Millisecond)
		c.lead(1)
	}()
	start := time.Now()
	r, err := c.nodes[2].client.Append(within(t, 10*time.Second), &ledgerv1.AppendRequest{Event: event(1)})
	if err != nil || r.Duplicate {
		t.Fatalf("%v, %v", r, err)
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("took %v after an election at 150 ms", took)
	}
}

// Two nodes that each take the other for the leader do not play ball with a call.
func TestNoLoops(t *testing.T) {
	var passed atomic.Int32
	x := newToy(t, 2, func(x *toyNode, o *rpc.Options) {
		o.Router = believes{o.Router, func() (bool, grpc.ClientConnInterface, string) {
			passed.Add(1)
			other := x.c.nodes[1-x.number]
			return false, other.conn, other.address
		}}
	})
	_, err := x.nodes[0].client.Append(within(t, 2*time.Second), &ledgerv1.AppendRequest{Event: event(1)})
	reason, md, _ := detail(err)
	if status.Code(err) != codes.Unavailable || reason != "NOT_APPLIED" || md["leader"] == "" {
		t.Errorf("%v, reason %q, %v", err, reason, md)
	}
	if n := passed.Load(); n > 100 {
		t.Errorf("asked who leads %d times in two seconds", n)
	}
}

// believes is a router with an opinion of its own about the leader.
type believes struct {
	rpc.Router
	leader func() (bool, grpc.ClientConnInterface, string)
}

func (b believes) Leader(context.Context) (bool, grpc.ClientConnInterface, string, error) {
	local, cc, hint := b.leader()
	return local, cc, hint, nil
}

// The leader gets less time than the follower, and the follower less than the caller.
func TestDeadlinesShrink(t *testing.T) {
	left := make(chan time.Duration, 1)
	c := newToy(t, 2, func(x *toyNode, o *rpc.Options) {
		if x.number == 0 {
			o.Backend.Appender = clocked{o.Backend.Appender, left}
		}
	})
	ctx := within(t, 2*time.Second)
	if _, err := c.nodes[1].client.Append(ctx, &ledgerv1.AppendRequest{Event: event(1)}); err != nil {
		t.Fatal(err)
	}
	if d := <-left; d > 2*time.Second-30*time.Millisecond || d < time.Second {
		t.Errorf("the leader had %v of 2 s", d)
	}
}

// Reads at the asked freshness: what was seen elsewhere is waited for, what was acknowledged is there.
func TestConsistency(t *testing.T) {
	c := newToy(t, 2, nil)
	leader, follower := c.nodes[0], c.nodes[1]
	fill(t, leader.client, 9)
	follower.lag(true)
	fill(t, leader.client, 10)
	checkpoint := func(min uint64, linearizable bool, d time.Duration) (uint64, error) {
		r, err := follower.client.GetCheckpoint(within(t, d), &ledgerv1.GetCheckpointRequest{Consistency: &ledgerv1.ReadConsistency{MinSize: min, Linearizable: linearizable}})
		if err == nil && !strings.Contains(string(r.Checkpoint), fmt.Sprintf("\n%d\n", r.TreeSize)) {
			t.Errorf("a checkpoint of another size than %d", r.TreeSize)
		}
		return r.GetTreeSize(), err
	}
	if n, err := checkpoint(0, false, time.Second); err != nil || n != 10 {
		t.Errorf("without a wish: %d, %v, want the stale 10", n, err)
	}
	if n, err := checkpoint(10, false, time.Second); err != nil || n != 10 {
		t.Errorf("what is there: %d, %v", n, err)
	}
	for name, x := range map[string]struct {
		min          uint64
		linearizable bool
		code         codes.Code
		reason       string
	}{"min_size": {20, false, codes.FailedPrecondition, "BEHIND"}, "linearizable": {0, true, codes.Unavailable, "NOT_APPLIED"}} {
		_, err := checkpoint(x.min, x.linearizable, 1500*time.Millisecond)
		reason, md, _ := detail(err)
		if status.Code(err) != x.code || reason != x.reason {
			t.Errorf("%s while lagging: %v, reason %q", name, err, reason)
		}
		if x.reason == "BEHIND" && (md["tree_size"] != "10" || md["min_size"] != "20") {
			t.Errorf("%s: metadata %v", name, md)
		}
	}
	for name, x := range map[string]struct {
		min          uint64
		linearizable bool
	}{"min_size": {20, false}, "linearizable": {0, true}} {
		follower.lag(true)
		fill(t, leader.client, 1)
		time.AfterFunc(150*time.Millisecond, func() { follower.lag(false) })
		if n, err := checkpoint(x.min, x.linearizable, 5*time.Second); err != nil || n < 20 {
			t.Errorf("%s: %d, %v", name, n, err)
		}
	}
	// More than there is: at once, for the fence shows that nobody has it.
	start := time.Now()
	_, err := checkpoint(1000, false, 10*time.Second)
	if reason, _, _ := detail(err); reason != "BEHIND" || time.Since(start) > time.Second {
		t.Errorf("more than there is: %v after %v", err, time.Since(start))
	}
	_, err = follower.client.GetLog(t.Context(), &ledgerv1.GetLogRequest{Name: "nobody"})
	if _, md, _ := detail(err); md["tree_size"] != "3" || !strings.Contains(err.Error(), "at size 3 of the log system") {
		t.Errorf("%v, metadata %v", err, md)
	}
	// An absence is an absence at a size.
	_, err = follower.client.GetReceipt(t.Context(), &ledgerv1.GetReceiptRequest{Entry: &ledgerv1.EntrySelector{By: &ledgerv1.EntrySelector_Index{Index: 500}}})
	reason, md, _ := detail(err)
	if status.Code(err) != codes.NotFound || reason != "NOT_FOUND" || md["tree_size"] != fmt.Sprint(size(t, follower)) || !strings.Contains(err.Error(), "at tree size "+md["tree_size"]) {
		t.Errorf("%v, reason %q, metadata %v", err, reason, md)
	}
}

// A page goes on where the one before ended, on whichever node that was.
func TestPagesOverNodes(t *testing.T) {
	c := newToy(t, 3, nil)
	c.nodes[1].lag(true)
	fill(t, c.nodes[0].client, 30)
	time.AfterFunc(50*time.Millisecond, func() { c.nodes[1].lag(false) })
	next, token := uint64(0), ""
	for i := 0; ; i++ {
		r, err := c.nodes[i%2].client.ListEntries(t.Context(), &ledgerv1.ListEntriesRequest{PageSize: 7, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range r.Entries {
			if e.Index != next {
				t.Fatalf("entry %d where %d should be", e.Index, next)
			}
			next++
		}
		if token = r.NextPageToken; token == "" {
			break
		}
	}
	if next != 31 {
		t.Errorf("%d entries, want 31", next)
	}
}

// A follower's watch yields what the leader records.
func TestWatchOnFollower(t *testing.T) {
	c := newToy(t, 2, nil)
	w, err := c.nodes[1].client.Watch(within(t, 10*time.Second), &ledgerv1.WatchRequest{FirstIndex: 1})
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint64(5) {
		fill(t, c.nodes[0].client, 1)
		m, err := w.Recv()
		if err != nil || len(m.Entries) != 1 || m.Entries[0].Index != i+1 || m.TreeSize != i+2 {
			t.Fatalf("%v, %v", m, err)
		}
	}
}

// A log that was created is there for the next call on the same node, and on the next leader; and a lost answer does not turn
// success into a conflict.
func TestCreateLog(t *testing.T) {
	c := newToy(t, 3, nil)
	create := func(x *toyNode, name string) (*ledgerv1.CreateLogResponse, error) {
		return x.client.CreateLog(within(t, 5*time.Second), &ledgerv1.CreateLogRequest{Name: name})
	}
	c.nodes[1].lag(true)
	time.AfterFunc(100*time.Millisecond, func() { c.nodes[1].lag(false) })
	if r, err := create(c.nodes[1], "a"); err != nil || r.Log.Name != "a" || r.Log.Number != 2 {
		t.Fatalf("%v, %v", r, err)
	}
	if _, err := c.nodes[1].client.GetLog(t.Context(), &ledgerv1.GetLogRequest{Name: "a"}); err != nil {
		t.Errorf("just created here: %v", err)
	}
	for _, x := range c.nodes {
		if _, err := create(x, "a"); status.Code(err) != codes.AlreadyExists {
			t.Errorf("again: %v", err)
		}
	}
	for i, x := range c.nodes {
		var once sync.Once
		c.set(func() { c.lost = func(*toyNode) (lost bool) { once.Do(func() { lost = true }); return lost } })
		name := fmt.Sprint("lost", i)
		if r, err := create(x, name); err != nil || r.GetLog().GetName() != name {
			t.Errorf("node %d: the answer got lost: %v, %v", i, r, err)
		}
		c.set(func() { c.lost = nil })
		if _, err := create(x, name); status.Code(err) != codes.AlreadyExists {
			t.Errorf("node %d: again: %v", i, err)
		}
	}
	// A new leader that has not applied the creation yet does not deny the log.
	c.nodes[2].lag(true)
	if _, err := create(c.nodes[0], "late"); err != nil {
		t.Fatal(err)
	}
	c.set(func() { c.leader = 2; c.term++; c.wake() })
	time.AfterFunc(100*time.Millisecond, func() { c.nodes[2].lag(false) })
	if _, err := c.nodes[1].client.Append(within(t, 5*time.Second), &ledgerv1.AppendRequest{Log: "late", Event: event(1)}); err != nil {
		t.Errorf("append to a log that the new leader had to learn of: %v", err)
	}
}

// A node without a ledger passes everything unary on, and says that it cannot stream.
func TestNoBackend(t *testing.T) {
	c := newToy(t, 2, nil)
	fill(t, c.nodes[0].client, 5)
	x := c.nodes[1]
	x.service.Pause()
	if _, err := x.client.Append(t.Context(), &ledgerv1.AppendRequest{Event: event(1)}); err != nil {
		t.Errorf("append: %v", err)
	}
	r, err := x.client.GetReceipt(t.Context(), &ledgerv1.GetReceiptRequest{Entry: &ledgerv1.EntrySelector{By: &ledgerv1.EntrySelector_Index{Index: 3}}})
	if err != nil || r.Index != 3 || r.TreeSize != 7 || len(r.ProtoReflect().GetUnknown()) > 0 {
		t.Errorf("receipt: %v, %v", r, err)
	}
	w, err := x.client.Watch(t.Context(), &ledgerv1.WatchRequest{})
	if err == nil {
		_, err = w.Recv()
	}
	if reason, _, _ := detail(err); status.Code(err) != codes.Unavailable || reason != "NOT_APPLIED" {
		t.Errorf("watch: %v, reason %q", err, reason)
	}
	c.lead(-1)
	_, err = x.client.GetCheckpoint(within(t, 2*time.Second), &ledgerv1.GetCheckpointRequest{})
	if reason, _, _ := detail(err); status.Code(err) != codes.Unavailable || reason != "NOT_APPLIED" {
		t.Errorf("checkpoint without a leader: %v, reason %q", err, reason)
	}
	c.lead(1) // this one, which has no ledger
	_, err = c.nodes[0].client.Append(within(t, 2*time.Second), &ledgerv1.AppendRequest{Event: event(1)})
	if reason, _, _ := detail(err); status.Code(err) != codes.Unavailable || reason != "NOT_APPLIED" {
		t.Errorf("append at a leader without a ledger: %v, reason %q", err, reason)
	}
}

// The backend is replaced again and again under load: no call fails for it, none uses a ledger that was closed.
func TestSwapUnderLoad(t *testing.T) {
	c := newToy(t, 2, nil)
	fill(t, c.nodes[0].client, 20)
	x := c.nodes[1]
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var calls atomic.Int64
	for range 4 {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				var err error
				switch i % 3 {
				case 0:
					_, err = x.client.GetReceipt(t.Context(), &ledgerv1.GetReceiptRequest{Entry: &ledgerv1.EntrySelector{By: &ledgerv1.EntrySelector_Index{Index: uint64(i % 20)}}})
				case 1:
					_, err = x.client.ListEntries(t.Context(), &ledgerv1.ListEntriesRequest{})
				default:
					_, err = x.client.Append(t.Context(), &ledgerv1.AppendRequest{Event: event(i)})
				}
				if err != nil {
					t.Errorf("call %d: %v", i, err)
					return
				}
				calls.Add(1)
			}
		})
	}
	wg.Go(func() { // a watcher comes back whenever it is sent away
		next := uint64(0)
		for ctx.Err() == nil {
			w, err := x.client.Watch(ctx, &ledgerv1.WatchRequest{FirstIndex: next})
			for err == nil {
				var m *ledgerv1.WatchResponse
				if m, err = w.Recv(); err == nil {
					if m.Entries[0].Index != next {
						t.Errorf("entry %d where %d should be", m.Entries[0].Index, next)
					}
					next += uint64(len(m.Entries))
				}
			}
			if reason, _, _ := detail(err); ctx.Err() == nil && reason != "NOT_APPLIED" {
				t.Errorf("watch: %v", err)
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
	for range 10 {
		time.Sleep(30 * time.Millisecond)
		x.lag(true)
		x.service.Pause()
		x.close()
		b := x.backend()
		x.service.Swap(b)
		x.lag(false)
	}
	stop()
	wg.Wait()
	if calls.Load() < 100 {
		t.Errorf("%d calls", calls.Load())
	}
}
