package consensus

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"
)

// cluster is some nodes over raft's in-memory transport, in fake time.
type cluster struct {
	ids        []string // those that are open
	nodes      map[string]*node
	transports map[string]*raft.InmemTransport

	mu  sync.Mutex
	cut map[[2]string]bool // links that are down, both ways noted
	// asked counts the questions for terms; hold, if set, is received from before each answer.
	asked int
	hold  chan struct{}
	// segmented says that nodes get the real log.
	segmented bool
	// behind is what Config.Behind was told, by node.
	behind map[string][]Behind
}

func newCluster() *cluster {
	return &cluster{
		nodes: map[string]*node{}, transports: map[string]*raft.InmemTransport{}, cut: map[[2]string]bool{},
		behind: map[string][]Behind{},
	}
}

// startCluster starts three voters.
func startCluster(t *testing.T, change ...func(*Config)) *cluster {
	c := newCluster()
	c.found(t, "n1", "n2", "n3")
	for _, id := range []string{"n1", "n2", "n3"} {
		c.open(t, id, change...)
	}
	return c
}

// found makes ids, which are new, the voters of a new cluster.
func (c *cluster) found(t *testing.T, ids ...string) {
	var servers []Server
	for _, id := range ids {
		servers = append(servers, Server{ID: id, Address: id})
	}
	for _, id := range ids {
		if err := bootstrap(c.create(t, id).disk(), id, servers...); err != nil {
			t.Fatal(err)
		}
	}
}

// create makes the empty disks of node id.
func (c *cluster) create(t *testing.T, id string) *node {
	y := &toy{}
	n := &node{toy: y, store: newMemStore(y)}
	if c.segmented {
		n.useSegmentLog(t, vfs.NewCrashableMem())
	}
	c.nodes[id] = n
	return n
}

// disk is the store of n that is in use.
func (n *node) disk() Store {
	if n.segments != nil {
		return n.segments.guarded
	}
	return n.store
}

// open starts node id on what is on its disks.
func (c *cluster) open(t *testing.T, id string, change ...func(*Config)) *node {
	t.Helper()
	n := c.nodes[id]
	_, c.transports[id] = raft.NewInmemTransport(raft.ServerAddress(id))
	c.ids = append(slices.DeleteFunc(c.ids, func(other string) bool { return other == id }), id)
	c.reconnect(id)
	conf := testConfig(t, n.disk(), n.toy)
	conf.NodeID = id
	conf.Term = func(ctx context.Context, to string) (uint64, error) { return c.askTerm(ctx, id, to) }
	conf.Behind = func(b Behind) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.behind[id] = append(c.behind[id], b)
	}
	for _, f := range change {
		f(&conf)
	}
	conf, err := conf.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	if n.Consensus, err = open(conf, newTransport(c.transports[id], raft.ServerAddress(id), plainAddress)); err != nil {
		t.Fatal(err)
	}
	opened := n.Consensus
	t.Cleanup(func() {
		if err := opened.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return n
}

// stop ends node id; open may start it again.
func (c *cluster) stop(t *testing.T, id string) {
	t.Helper()
	if err := c.nodes[id].Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.ids = slices.DeleteFunc(c.ids, func(other string) bool { return other == id })
	for _, other := range c.ids {
		c.transports[other].Disconnect(raft.ServerAddress(id))
	}
}

// askTerm is Config.Term of node from: it goes the way of the messages.
func (c *cluster) askTerm(ctx context.Context, from, to string) (uint64, error) {
	c.mu.Lock()
	c.asked++
	down, hold := c.cut[[2]string{from, to}] || !slices.Contains(c.ids, to), c.hold
	c.mu.Unlock()
	if down {
		<-ctx.Done()
		return 0, context.Cause(ctx)
	}
	term := c.nodes[to].Term()
	if hold != nil {
		<-hold
	}
	return term, nil
}

// reconnect brings the links of id up that are not cut.
func (c *cluster) reconnect(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, other := range c.ids {
		if other != id && !c.cut[[2]string{id, other}] {
			c.transports[id].Connect(raft.ServerAddress(other), c.transports[other])
			c.transports[other].Connect(raft.ServerAddress(id), c.transports[id])
		}
	}
}

// connect links id with all others, isolate cuts it off.
func (c *cluster) connect(id string) {
	c.mu.Lock()
	for link := range c.cut {
		if link[0] == id || link[1] == id {
			delete(c.cut, link)
		}
	}
	c.mu.Unlock()
	c.reconnect(id)
}

func (c *cluster) isolate(id string) { c.sever(id, c.ids...) }

// sever cuts the links between id and others.
func (c *cluster) sever(id string, others ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, other := range others {
		if other == id {
			continue
		}
		c.cut[[2]string{id, other}], c.cut[[2]string{other, id}] = true, true
		c.transports[id].Disconnect(raft.ServerAddress(other))
		c.transports[other].Disconnect(raft.ServerAddress(id))
	}
}

// eventually waits for a condition, ten seconds of fake time.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 1000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("not within ten seconds of fake time: %s", what)
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
