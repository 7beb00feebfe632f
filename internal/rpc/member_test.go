package rpc_test

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/cluster"
	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/merkle"
	"github.com/provledger/provledger/internal/rpc"
	"github.com/provledger/provledger/internal/sequencer"
	"github.com/provledger/provledger/internal/signer"
	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

const memberID = "0198c0de-7e1f-7aaa-8000-00000000000a"

// board writes down which node was asked for what, and answers as the test says. Like a controller it refuses what the leader has to do.
type board struct {
	x    *toyNode
	mu   *sync.Mutex
	done *[]string
	err  func() error // nil: none
}

func (b board) do(format string, args ...any) error {
	b.x.c.mu.Lock()
	leads := b.x.c.leader == b.x.number
	b.x.c.mu.Unlock()
	if !leads {
		return fmt.Errorf("%w: node %d", cluster.ErrNotLeader, b.x.number)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	*b.done = append(*b.done, fmt.Sprintf("%d: ", b.x.number)+fmt.Sprintf(format, args...))
	if b.err != nil {
		return b.err()
	}
	return nil
}

func (b board) Overview(context.Context) cluster.Overview {
	return cluster.Overview{AnsweredBy: fmt.Sprint(b.x.number), Members: []cluster.Member{{ID: memberID, Voter: true, Lag: 7, ClockOffset: time.Second}}}
}

func (b board) Add(_ context.Context, address string, voter bool) (cluster.Member, error) {
	return cluster.Member{ID: memberID, Address: address, Wish: voter}, b.do("add %s %v", address, voter)
}
func (b board) Promote(_ context.Context, id string) error { return b.do("promote %s", id) }
func (b board) Demote(_ context.Context, id string, force bool) error {
	return b.do("demote %s %v", id, force)
}
func (b board) Remove(_ context.Context, id string, force bool) error {
	return b.do("remove %s %v", id, force)
}
func (b board) Transfer(_ context.Context, id string) error { return b.do("transfer %s", id) }
func (b board) Replace(_ context.Context, id, address string, force bool, progress func(string)) error {
	progress(fmt.Sprintf("node %d begins", b.x.number))
	return b.do("replace %s %s %v", id, address, force)
}

func newBoards(t *testing.T, err func() error) (c *toy, done func() string) {
	t.Helper()
	var mu sync.Mutex
	var all []string
	c = newToy(t, 2, func(x *toyNode, o *rpc.Options) { o.Cluster = board{x, &mu, &all, err} })
	return c, func() string { mu.Lock(); defer mu.Unlock(); return strings.Join(all, "; ") }
}

// Any node takes a change; the leader makes it, once.
func TestClusterChanges(t *testing.T) {
	for name, x := range map[string]struct {
		do   func(ctx context.Context, c ledgerv1.ClusterServiceClient) error
		want string
	}{
		"add": {func(ctx context.Context, c ledgerv1.ClusterServiceClient) error {
			r, err := c.AddMember(ctx, &ledgerv1.AddMemberRequest{Address: "d:1"})
			if err == nil && (r.Member.NodeId != memberID || !r.Member.BecomesVoter || r.Member.Address != "d:1") {
				return fmt.Errorf("member %v", r.Member)
			}
			return err
		}, "0: add d:1 true"},
		"promote": {func(ctx context.Context, c ledgerv1.ClusterServiceClient) error {
			_, err := c.PromoteMember(ctx, &ledgerv1.PromoteMemberRequest{NodeId: memberID})
			return err
		}, "0: promote " + memberID},
		"demote": {func(ctx context.Context, c ledgerv1.ClusterServiceClient) error {
			_, err := c.DemoteMember(ctx, &ledgerv1.DemoteMemberRequest{NodeId: memberID, Force: true})
			return err
		}, "0: demote " + memberID + " true"},
		"remove": {func(ctx context.Context, c ledgerv1.ClusterServiceClient) error {
			_, err := c.RemoveMember(ctx, &ledgerv1.RemoveMemberRequest{NodeId: memberID})
			return err
		}, "0: remove " + memberID + " false"},
		"transfer": {func(ctx context.Context, c ledgerv1.ClusterServiceClient) error {
			_, err := c.TransferLeadership(ctx, &ledgerv1.TransferLeadershipRequest{})
			return err
		}, "0: transfer "},
		"replace": {func(ctx context.Context, c ledgerv1.ClusterServiceClient) error {
			return replace(ctx, c, "node 0 begins|The new member is in place.")
		}, "0: replace " + memberID + " d:1 false"},
	} {
		for i := range 2 {
			c, done := newBoards(t, nil)
			if err := x.do(within(t, 5*time.Second), ledgerv1.NewClusterServiceClient(c.nodes[i].conn)); err != nil || done() != x.want {
				t.Errorf("%s at node %d: %v, done %q, want %q", name, i, err, done(), x.want)
			}
		}
	}
}

func replace(ctx context.Context, c ledgerv1.ClusterServiceClient, want string) error {
	s, err := c.ReplaceMember(ctx, &ledgerv1.ReplaceMemberRequest{NodeId: memberID, Address: "d:1"})
	if err != nil {
		return err
	}
	var texts []string
	for {
		m, err := s.Recv()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		texts = append(texts, m.Progress)
	}
	if got := strings.Join(texts, "|"); got != want {
		return fmt.Errorf("progress %q, want %q", got, want)
	}
	return nil
}

// What is refused is refused in the controller's words; what is unknown is not tried twice; bad requests reach nobody.
func TestClusterErrors(t *testing.T) {
	for name, x := range map[string]struct {
		err    error
		code   codes.Code
		reason string
		times  int
	}{
		"refused": {fmt.Errorf("%w: do this instead", cluster.ErrRefused), codes.FailedPrecondition, "REFUSED", 1},
		"unknown": {fmt.Errorf("%w: leadership lost", sequencer.ErrUnknown), codes.Unavailable, "UNKNOWN_OUTCOME", 1},
	} {
		for i := range 2 {
			c, done := newBoards(t, func() error { return x.err })
			_, err := ledgerv1.NewClusterServiceClient(c.nodes[i].conn).RemoveMember(within(t, 5*time.Second), &ledgerv1.RemoveMemberRequest{NodeId: memberID})
			if reason, _, _ := detail(err); status.Code(err) != x.code || reason != x.reason || strings.Count(done(), "remove") != x.times {
				t.Errorf("%s at node %d: %v, reason %q, done %q", name, i, err, reason, done())
			}
			if x.reason == "REFUSED" && !strings.Contains(err.Error(), "do this instead") {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	c, done := newBoards(t, nil)
	k := ledgerv1.NewClusterServiceClient(c.nodes[1].conn)
	for name, do := range map[string]func() error{
		"node_id": func() error {
			_, err := k.PromoteMember(t.Context(), &ledgerv1.PromoteMemberRequest{NodeId: "x"})
			return err
		},
		"address": func() error {
			_, err := k.AddMember(t.Context(), &ledgerv1.AddMemberRequest{})
			return err
		},
	} {
		if err := do(); status.Code(err) != codes.InvalidArgument || field(err) != name {
			t.Errorf("bad %s: %v", name, err)
		}
	}
	if done() != "" {
		t.Errorf("done %q", done())
	}
}

// GetCluster is answered by the node that is asked, with or without a leader; a change waits for one; a replacement goes on with the next.
func TestClusterWithoutLeader(t *testing.T) {
	var once sync.Once
	var c *toy
	c, done := newBoards(t, func() (err error) {
		once.Do(func() { c.lead(1); err = fmt.Errorf("%w: it has handed over", cluster.ErrNotLeader) })
		return err
	})
	c.lead(-1)
	k := ledgerv1.NewClusterServiceClient(c.nodes[1].conn)
	r, err := k.GetCluster(within(t, 5*time.Second), &ledgerv1.GetClusterRequest{})
	if err != nil || r.Cluster.AnsweredBy != "1" || len(r.Cluster.Members) != 1 || r.Cluster.Members[0].LagEntries != 7 || r.Cluster.Members[0].ClockOffsetUs != 1e6 {
		t.Errorf("%v, %v", r, err)
	}
	time.AfterFunc(50*time.Millisecond, func() { c.lead(0) })
	if err := replace(within(t, 10*time.Second), k, "node 0 begins|node 1 begins|The new member is in place."); err != nil {
		t.Error(err)
	}
	if want := "0: replace " + memberID + " d:1 false; 1: replace " + memberID + " d:1 false"; done() != want {
		t.Errorf("done %q, want %q", done(), want)
	}
}

// keyless is a signer and sequencer of a node that lacks the log's key.
type keyless struct{ rpc.Appender }

func (keyless) Checkpoint(string, uint64, merkle.Hash) ([]byte, error) {
	return nil, fmt.Errorf("%w: main", signer.ErrNoKey)
}

func (keyless) Append(context.Context, sequencer.Request) (*sequencer.Result, error) {
	return nil, fmt.Errorf("%w: %w", sequencer.ErrNotApplied, sequencer.ErrKey)
}

func (k keyless) CreateLog(ctx context.Context, name, principal string, authn lineage.Authn) (ledger.Log, error) {
	return k.Appender.CreateLog(ctx, name, principal, authn)
}

// A node without a log's key lets the leader prove; as leader it refuses appends, which wait for one that has the key, and not for ever.
func TestMissingKey(t *testing.T) {
	c := newToy(t, 2, func(x *toyNode, o *rpc.Options) {
		if x.number == 1 {
			k := keyless{o.Backend.Appender}
			o.Backend.Appender, o.Backend.Checkpoints = k, k
		}
	})
	fill(t, c.nodes[0].client, 3)
	r, err := c.nodes[1].client.GetReceipt(t.Context(), &ledgerv1.GetReceiptRequest{Entry: &ledgerv1.EntrySelector{By: &ledgerv1.EntrySelector_Index{Index: 2}}})
	if err != nil || r.Index != 2 || r.TreeSize != 4 {
		t.Errorf("receipt: %v, %v", r, err)
	}
	c.lead(1)
	time.AfterFunc(200*time.Millisecond, func() { c.lead(0) })
	for _, x := range c.nodes {
		if _, err := x.client.Append(within(t, 10*time.Second), &ledgerv1.AppendRequest{Event: event(1)}); err != nil {
			t.Errorf("node %d, while leadership moves: %v", x.number, err)
		}
		c.lead(1)
		time.AfterFunc(200*time.Millisecond, func() { c.lead(0) })
	}
	time.Sleep(400 * time.Millisecond)
	c.lead(1)
	start := time.Now()
	_, err = c.nodes[0].client.Append(within(t, 20*time.Second), &ledgerv1.AppendRequest{Event: event(1)})
	if reason, _, _ := detail(err); status.Code(err) != codes.Unavailable || reason != "NO_KEY" || time.Since(start) > 10*time.Second {
		t.Errorf("nobody takes over: %v, reason %q, after %v", err, reason, time.Since(start))
	}
}
