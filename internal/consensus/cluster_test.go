package consensus

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// cluster is three nodes over raft's in-memory transport, in fake time.
type cluster struct {
	ids        []string
	nodes      map[string]*node
	transports map[string]*raft.InmemTransport
}

func startCluster(t *testing.T) *cluster {
	c := &cluster{
		ids: []string{"n1", "n2", "n3"}, nodes: map[string]*node{}, transports: map[string]*raft.InmemTransport{},
	}
	for _, id := range c.ids {
		_, c.transports[id] = raft.NewInmemTransport(raft.ServerAddress(id))
	}
	for _, id := range c.ids {
		c.connect(id)
	}
	for _, id := range c.ids {
		y := &toy{}
		n := &node{toy: y, store: newMemStore(y)}
		var servers []Server
		for _, id := range c.ids {
			servers = append(servers, Server{ID: id, Address: id})
		}
		if err := bootstrap(n.store, id, servers...); err != nil {
			t.Fatal(err)
		}
		conf := testConfig(t, n.store, y)
		conf.NodeID = id
		conf, err := conf.withDefaults()
		if err != nil {
			t.Fatal(err)
		}
		if n.Consensus, err = open(conf, newTransport(c.transports[id], raft.ServerAddress(id), plainAddress)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := n.Close(context.Background()); err != nil {
				t.Error(err)
			}
		})
		c.nodes[id] = n
	}
	return c
}

// connect links id with all others, isolate cuts it off.
func (c *cluster) connect(id string) {
	for _, other := range c.ids {
		if other != id {
			c.transports[id].Connect(raft.ServerAddress(other), c.transports[other])
			c.transports[other].Connect(raft.ServerAddress(id), c.transports[id])
		}
	}
}

func (c *cluster) isolate(id string) {
	for _, other := range c.ids {
		c.transports[id].Disconnect(raft.ServerAddress(other))
		c.transports[other].Disconnect(raft.ServerAddress(id))
	}
}

// leader waits for the one leader among ids that has applied everything of earlier terms, and returns it and the others.
func (c *cluster) leader(t *testing.T, ids ...string) (leader string, others []string) {
	t.Helper()
	for range 1000 {
		for i, id := range ids {
			if n := c.nodes[id]; n.IsLeader() && n.Barrier(t.Context()) == nil {
				return id, slices.Delete(slices.Clone(ids), i, i+1)
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("no leader within ten seconds of fake time")
	return "", nil
}

// expect waits until every node has applied exactly commands.
func (c *cluster) expect(t *testing.T, commands ...string) {
	t.Helper()
	for _, id := range c.ids {
		for range 1000 {
			if slices.Equal(c.nodes[id].toy.commands(), commands) {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if got := c.nodes[id].toy.commands(); !slices.Equal(got, commands) {
			t.Errorf("%s applied %q, want %q", id, got, commands)
		}
	}
}

func TestThreeNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startCluster(t)
		id, others := c.leader(t, c.ids...)
		leader := c.nodes[id]
		leader.propose(t, "a")

		follower := c.nodes[others[0]]
		_, _, err := follower.Propose([]byte("not here")).Wait(t.Context())
		if !errors.Is(err, ErrNotApplied) || !errors.Is(err, raft.ErrNotLeader) {
			t.Errorf("proposal to a follower: %v, want ErrNotApplied and ErrNotLeader", err)
		}
		if err := follower.Barrier(t.Context()); !errors.Is(err, ErrNotApplied) {
			t.Errorf("barrier of a follower: %v, want ErrNotApplied", err)
		}
		if err := follower.StepDown(); err == nil {
			t.Error("a follower stepped down")
		}

		if err := leader.StepDown(); err != nil {
			t.Errorf("StepDown: %v", err)
		}
		id, _ = c.leader(t, others...)
		if leader.IsLeader() {
			t.Error("leads after StepDown")
		}
		c.nodes[id].propose(t, "b")
		c.expect(t, "a", "b")
		if err := leader.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := leader.StepDown(); !errors.Is(err, ErrClosed) {
			t.Errorf("StepDown after Close: %v, want ErrClosed", err)
		}
		if got := c.nodes[id].toy.delivered[0]; !got.Configuration {
			t.Errorf("first entry delivered is %+v, want the configuration", got)
		}
	})
}

// A leader that is cut off stores a proposal that nobody else has, loses its lease, and cannot know whether others have
// it. Here they do not: the next leader overwrites it.
func TestLeadershipLostAndCommandGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startCluster(t)
		id, others := c.leader(t, c.ids...)
		c.nodes[id].propose(t, "a")
		c.isolate(id)
		_, _, err := c.nodes[id].Propose([]byte("gone")).Wait(t.Context())
		if !errors.Is(err, ErrUnknown) || !errors.Is(err, raft.ErrLeadershipLost) || errors.Is(err, ErrNotApplied) {
			t.Errorf("%v, want ErrUnknown and ErrLeadershipLost", err)
		}
		next, _ := c.leader(t, others...)
		c.nodes[next].propose(t, "b")
		c.connect(id)
		c.expect(t, "a", "b")
	})
}

// The same error, the other truth: both followers store the proposal, too late for the leader to hear of it.
func TestLeadershipLostAndCommandApplied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startCluster(t)
		id, others := c.leader(t, c.ids...)
		c.nodes[id].propose(t, "a")
		c.expect(t, "a")
		slow := make(chan struct{})
		for _, o := range others {
			s := c.nodes[o].store
			s.mu.Lock()
			s.storeAs = func(logs []*raft.Log) error { <-slow; return s.InmemStore.StoreLogs(logs) }
			s.mu.Unlock()
		}
		_, _, err := c.nodes[id].Propose([]byte("kept")).Wait(t.Context())
		if !errors.Is(err, ErrUnknown) || !errors.Is(err, raft.ErrLeadershipLost) {
			t.Errorf("%v, want ErrUnknown and ErrLeadershipLost", err)
		}
		c.isolate(id)
		close(slow)
		c.leader(t, others...)
		c.connect(id)
		c.expect(t, "a", "kept")
	})
}
