package consensus

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// One node grows to three and shrinks again, history kept, one change at a time.
func TestMembershipChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster()
		c.found(t, "n1")
		n1 := c.open(t, "n1")
		c.leader(t, "n1")
		n1.propose(t, "a")
		joining := func(c *Config) { c.Joining = true }
		for _, id := range []string{"n2", "n3"} {
			c.create(t, id)
			if servers, index := c.open(t, id, joining).Servers(); servers != nil || index != 0 {
				t.Errorf("a joining node knows %v at %d", servers, index)
			}
		}

		servers, index := n1.Servers()
		if want := []Server{{"n1", "n1", true}}; !slices.Equal(servers, want) || index == 0 {
			t.Fatalf("Servers: %v at %d, want %v", servers, index, want)
		}
		if err := n1.AddNonvoter(t.Context(), "n2", "n2", index+1); !errors.Is(err, ErrConfigurationChanged) || !errors.Is(err, ErrNotApplied) {
			t.Errorf("change with another previous index: %v, want ErrConfigurationChanged and ErrNotApplied", err)
		}
		if err := n1.AddNonvoter(t.Context(), "n2", "n2", index); err != nil {
			t.Fatal(err)
		}
		if err := n1.AddVoter(t.Context(), "n3", "n3", index); !errors.Is(err, ErrConfigurationChanged) {
			t.Errorf("second change with the same previous index: %v, want ErrConfigurationChanged", err)
		}
		if err := n1.AddVoter(t.Context(), "n4", "n2", 0); !errors.Is(err, ErrNotApplied) {
			t.Errorf("two servers with one address: %v, want ErrNotApplied", err)
		}
		c.expectOf(t, []string{"n1", "n2"}, "a")
		if n3 := c.nodes["n3"]; n3.Stats().Last != 0 || n3.Leader() != "" {
			t.Errorf("a node that nobody added: %+v", n3.Stats())
		}
	})
}

// expectOf is expect for some nodes.
func (c *cluster) expectOf(t *testing.T, ids []string, commands ...string) {
	t.Helper()
	all := c.ids
	defer func() { c.ids = all }()
	c.ids = ids
	c.expect(t, commands...)
}

func TestPromoteDemoteRemove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startCluster(t)
		leader, others := c.leader(t, c.ids...)
		n := c.nodes[leader]
		n.propose(t, "a")
		c.create(t, "n4")
		n4 := c.open(t, "n4", func(c *Config) { c.Joining = true })
		step := func(what string, err error) {
			t.Helper()
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
		}
		at := func() uint64 { _, index := n.Servers(); return index }
		step("add", n.AddNonvoter(t.Context(), "n4", "n4", at()))
		c.expect(t, "a")
		if n4.Stats().Last != n.Stats().Last {
			t.Errorf("the new node's log ends at %d, the leader's at %d", n4.Stats().Last, n.Stats().Last)
		}
		for _, f := range n.Followers() {
			if f.Match != n.Stats().Last || time.Since(f.Contact) > time.Second {
				t.Errorf("follower %+v of a leader at %d", f, n.Stats().Last)
			}
		}
		if fs := n4.Followers(); len(n.Followers()) != 3 || fs != nil {
			t.Errorf("%d followers of the leader, %v of a follower", len(n.Followers()), fs)
		}
		if err := n.Transfer(t.Context(), "n4"); !errors.Is(err, ErrNoServer) {
			t.Errorf("transfer to a non-voter: %v, want ErrNoServer", err)
		}
		step("promote", n.AddVoter(t.Context(), "n4", "n4", at()))
		step("demote", n.Demote(t.Context(), others[0], at()))
		step("remove", n.Remove(t.Context(), others[1], at()))
		if err := n.Remove(t.Context(), others[1], 0); !errors.Is(err, ErrNoServer) || !errors.Is(err, ErrNotApplied) {
			t.Errorf("remove again: %v, want ErrNoServer", err)
		}
		n.propose(t, "b")
		rest := []string{leader, others[0], "n4"}
		c.expectOf(t, rest, "a", "b")
		for _, id := range rest {
			got, index := c.nodes[id].Servers()
			if index != at() || len(got) != 3 || slices.ContainsFunc(got, func(s Server) bool { return s.ID == others[1] || s.Voter == (s.ID == others[0]) }) {
				t.Errorf("%s knows %v at %d", id, got, index)
			}
		}

		// The leader goes, and another one takes over without it.
		step("remove the leader", n.Remove(t.Context(), leader, at()))
		eventually(t, "the removed leader leads no more", func() bool { return !n.IsLeader() })
		if got, _ := n.Servers(); slices.ContainsFunc(got, func(s Server) bool { return s.ID == leader }) {
			t.Errorf("the removed leader knows %v", got)
		}
		c.leader(t, "n4")
		n4.propose(t, "c")
		c.expectOf(t, []string{others[0], "n4"}, "a", "b", "c")
		time.Sleep(time.Minute)
		if n4.Leader() != "n4" || !n4.IsLeader() || n.IsLeader() {
			t.Errorf("a minute later %q leads", n4.Leader())
		}
		if err := n4.Remove(t.Context(), "n4", 0); !errors.Is(err, ErrNotApplied) {
			t.Errorf("remove the last voter: %v, want ErrNotApplied", err)
		}
		// It can be opened only to join again.
		c.stop(t, leader)
		if _, err := Open(testConfig(t, c.nodes[leader].store, c.nodes[leader].toy)); !errors.Is(err, ErrNotMember) {
			t.Errorf("open a removed node: %v, want ErrNotMember", err)
		}
	})
}

func TestTransfer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startCluster(t)
		id, others := c.leader(t, c.ids...)
		changed := c.nodes[others[1]].LeaderChanged()
		began := time.Now()
		if err := c.nodes[id].Transfer(t.Context(), others[0]); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > 100*time.Millisecond {
			t.Errorf("transfer took %v", took)
		}
		<-changed
		eventually(t, "all know the new leader", func() bool {
			return !slices.ContainsFunc(c.ids, func(id string) bool { return c.nodes[id].Leader() != others[0] })
		})
		c.nodes[others[0]].propose(t, "a")
		if err := c.nodes[others[0]].Transfer(t.Context(), "nobody"); !errors.Is(err, ErrNoServer) {
			t.Errorf("transfer to a stranger: %v, want ErrNoServer", err)
		}
		if err := c.nodes[id].Transfer(t.Context(), others[1]); !errors.Is(err, raft.ErrNotLeader) {
			t.Errorf("transfer by a follower: %v, want raft.ErrNotLeader", err)
		}
		// The target is gone: proposals fail while raft tries, and then work again.
		c.isolate(others[1])
		if err := c.nodes[others[0]].Transfer(t.Context(), others[1]); err == nil {
			t.Error("transferred to a node that is cut off")
		}
		next, _ := c.leader(t, id, others[0])
		c.nodes[next].propose(t, "b")
	})
}

// A change without a majority ends with the leadership, and nobody knows what becomes of it.
func TestMembershipChangeWithoutMajority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startCluster(t)
		id, others := c.leader(t, c.ids...)
		n := c.nodes[id]
		_, before := n.Servers()
		c.isolate(id)
		if err := n.Remove(t.Context(), others[0], before); !errors.Is(err, ErrUnknown) {
			t.Errorf("remove without a majority: %v, want ErrUnknown", err)
		}
		if _, index := n.Servers(); index == before {
			t.Error("the change that is not committed is not in force: this test tests nothing")
		}
		next, _ := c.leader(t, others...)
		c.nodes[next].propose(t, "a")
		c.connect(id)
		c.expect(t, "a")
		if servers, index := n.Servers(); index != before || len(servers) != 3 {
			t.Errorf("after the change was overwritten %v at %d, want three servers at %d", servers, index, before)
		}
		if err := n.AddVoter(t.Context(), "n9", "n9", 0); !errors.Is(err, ErrNotApplied) || !errors.Is(err, raft.ErrNotLeader) {
			t.Errorf("change by a follower: %v, want ErrNotApplied and raft.ErrNotLeader", err)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(errors.New("enough"))
		if err := n.AddVoter(ctx, "n9", "n9", 0); err == nil {
			t.Error("change with an ended context succeeded")
		}
		if err := n.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := n.AddVoter(t.Context(), "n9", "n9", 0); !errors.Is(err, ErrClosed) || !errors.Is(err, ErrNotApplied) {
			t.Errorf("change after Close: %v, want ErrClosed and ErrNotApplied", err)
		}
	})
}

// The index of the configuration is found again after a start, in the machine or in the log.
func TestServersAfterRestart(t *testing.T) {
	n := start(t)
	if err := n.AddNonvoter(t.Context(), "other", "other:1", 0); err != nil {
		t.Fatal(err)
	}
	want, at := n.Servers()
	for _, durable := range []bool{false, true} {
		if durable {
			n.barrier(t)
			n.toy.makeDurable()
		}
		n = n.powerCut(t)
		if got, index := n.Servers(); index != at || !reflect.DeepEqual(got, want) {
			t.Errorf("configuration durable: %v: %v at %d, want %v at %d", durable, got, index, want, at)
		}
	}
}

func TestMembersFollowTheLog(t *testing.T) {
	conf := func(index uint64) *raft.Log {
		return &raft.Log{Index: index, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(raft.Configuration{
			Servers: []raft.Server{{ID: "a", Address: "a"}},
		})}
	}
	var m members
	m.see(conf(1))
	m.see(&raft.Log{Index: 2})
	m.see(conf(3))
	m.see(conf(1)) // read again
	m.see(conf(7))
	for _, step := range []struct {
		do   func()
		want uint64
	}{
		{func() {}, 7},
		{func() { m.cut(5) }, 3},
		{func() { m.see(conf(6)) }, 6},
		{func() { m.apply(3) }, 6},
		{func() { m.cut(2) }, 3}, // 3 is applied
		{func() { m.see(&raft.Log{Index: 9, Type: raft.LogConfiguration, Data: []byte("x")}) }, 3},
	} {
		step.do()
		if got := m.latest().index; got != step.want {
			t.Fatalf("latest is at %d, want %d", got, step.want)
		}
	}
}
