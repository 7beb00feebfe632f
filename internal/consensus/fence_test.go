package consensus

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// slowLease makes node id a leader that does not notice for a long time that nobody follows it: what a process that was
// stopped, or a virtual machine that was moved, is for a moment.
func slowLease(id string) func(*Config) {
	return func(c *Config) {
		if c.NodeID == id {
			c.HeartbeatTimeout = time.Minute
		}
	}
}

// A leader that was replaced and does not know it must not serve a linearizable read. Everything that raft has to tell it is
// there to mislead it: it is leader by its own lease, and a non-voter, which has no say, goes on answering its heartbeats,
// which is enough for raft's VerifyLeader.
func TestFenceOfReplacedLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startCluster(t, slowLease("n1"))
		c.create(t, "n4")
		c.open(t, "n4", func(c *Config) { c.Joining = true })
		id, _ := c.leader(t, "n1", "n2", "n3")
		old := c.nodes["n1"]
		if id != "n1" {
			if err := c.nodes[id].Transfer(t.Context(), "n1"); err != nil {
				t.Fatal(err)
			}
			eventually(t, "n1 leads", old.IsLeader)
		}
		if err := old.AddNonvoter(t.Context(), "n4", "n4", 0); err != nil {
			t.Fatal(err)
		}
		_, index := old.propose(t, "a")
		if got, err := old.ReadIndex(t.Context()); err != nil || got < index {
			t.Fatalf("ReadIndex of the leader: %d, %v; want %d at least", got, err, index)
		}

		c.sever("n1", "n2", "n3") // right after a heartbeat, for all n1 knows
		c.sever("n4", "n2", "n3")
		next, _ := c.leader(t, "n2", "n3")
		_, index = c.nodes[next].propose(t, "b")
		if !old.IsLeader() {
			t.Fatal("n1 has stepped down: this test tests nothing")
		}
		if err := old.raft.VerifyLeader().Error(); err != nil {
			t.Errorf("VerifyLeader: %v: this test tests less than it says", err)
		}
		if got, err := old.ReadIndex(t.Context()); !errors.Is(err, ErrNoMajority) && !errors.Is(err, ErrNotLeader) {
			t.Errorf("ReadIndex of a replaced leader: %d, %v; want ErrNoMajority or ErrNotLeader", got, err)
		}
		// One voter answers: the minority with a newer term is enough to know.
		c.mu.Lock()
		delete(c.cut, [2]string{"n1", next})
		c.mu.Unlock()
		if got, err := old.ReadIndex(t.Context()); !errors.Is(err, ErrNotLeader) {
			t.Errorf("ReadIndex of a leader that a voter contradicts: %d, %v; want ErrNotLeader", got, err)
		}

		c.connect("n1")
		c.connect("n4")
		got, err := c.nodes[next].ReadIndex(t.Context())
		if err != nil || got < index {
			t.Fatalf("ReadIndex of the new leader: %d, %v; want %d at least", got, err, index)
		}
		if err := old.WaitDelivered(t.Context(), got); err != nil {
			t.Fatal(err)
		}
		if got := old.toy.commands(); !slices.Equal(got, []string{"a", "b"}) {
			t.Errorf("after the fence the old leader holds %q", got)
		}
		if _, err := old.ReadIndex(t.Context()); !errors.Is(err, ErrNotLeader) {
			t.Errorf("ReadIndex of a follower: %v, want ErrNotLeader", err)
		}
	})
}

// Voters in an older term prove nothing: they have not heard of this leader, and may have voted for another.
func TestFenceWantsExactlyItsOwnTerm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lag atomic.Uint64
		c := startCluster(t, func(c *Config) {
			term := c.Term
			c.Term = func(ctx context.Context, id string) (uint64, error) {
				got, err := term(ctx, id)
				return got - lag.Load(), err
			}
		})
		id, _ := c.leader(t, c.ids...)
		if _, err := c.nodes[id].ReadIndex(t.Context()); err != nil {
			t.Fatal(err)
		}
		lag.Store(1)
		if _, err := c.nodes[id].ReadIndex(t.Context()); !errors.Is(err, ErrNoMajority) {
			t.Errorf("ReadIndex with voters in an older term: %v, want ErrNoMajority", err)
		}
	})
}

// One round serves all reads that had arrived before it began, and none that came later.
func TestFenceCoalesces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startCluster(t)
		id, _ := c.leader(t, c.ids...)
		n := c.nodes[id]
		if _, err := n.ReadIndex(t.Context()); err != nil { // with the barrier
			t.Fatal(err)
		}
		synctest.Wait() // all its questions are asked, also those that it needed no answer to
		hold := make(chan struct{})
		c.mu.Lock()
		c.hold, c.asked = hold, 0
		c.mu.Unlock()
		n.fence.mu.Lock()
		before := n.fence.rounds
		n.fence.mu.Unlock()

		type result struct {
			index uint64
			err   error
		}
		read := func(to chan<- result) {
			index, err := n.ReadIndex(t.Context())
			to <- result{index, err}
		}
		first, later := make(chan result, 1), make(chan result, 50)
		go read(first)
		synctest.Wait() // the round of the first read is under way
		_, index := n.propose(t, "written after the first round began")
		for range cap(later) {
			go read(later)
		}
		synctest.Wait()
		close(hold)
		if r := <-first; r.err != nil {
			t.Error(r.err)
		}
		for range cap(later) {
			if r := <-later; r.err != nil || r.index < index {
				t.Fatalf("a read after a write at %d got %d, %v", index, r.index, r.err)
			}
		}
		n.fence.mu.Lock()
		rounds := n.fence.rounds - before
		n.fence.mu.Unlock()
		synctest.Wait()
		if rounds != 2 || c.asked != 4 {
			t.Errorf("%d rounds with %d questions for 51 reads, want 2 rounds of 2", rounds, c.asked)
		}
		if s := n.Stats(); s.FenceReads != 52 || s.FenceRounds != before+2 || s.FencesFailed != 0 || s.LeaderContact != 0 {
			t.Errorf("counted %+v", s)
		}
		for _, other := range c.ids {
			if other == id {
				continue
			}
			if s := c.nodes[other].Stats(); s.LeaderContact < 0 || s.LeaderContact > time.Minute {
				t.Errorf("%s heard of the leader %v ago", other, s.LeaderContact)
			}
			if _, err := c.nodes[other].ReadIndex(t.Context()); err == nil || c.nodes[other].Stats().FencesFailed != 1 {
				t.Errorf("a fence on a follower: %v, counted %+v", err, c.nodes[other].Stats())
			}
		}
	})
}

// What an earlier leader acknowledged is behind the fence of the next one, though that has not applied it yet.
func TestFenceCoversEarlierTerms(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startCluster(t)
		id, others := c.leader(t, c.ids...)
		c.nodes[id].propose(t, "a")
		c.expect(t, "a")
		hold := make(chan struct{})
		for _, o := range others {
			y := c.nodes[o].toy
			y.mu.Lock()
			y.hold = hold
			y.mu.Unlock()
		}
		_, index := c.nodes[id].propose(t, "acknowledged")
		c.isolate(id)
		var next *node
		eventually(t, "another leader", func() bool {
			for _, o := range others {
				if c.nodes[o].IsLeader() {
					next = c.nodes[o]
				}
			}
			return next != nil
		})
		var got uint64
		var err error
		done := make(chan struct{})
		go func() { defer close(done); got, err = next.ReadIndex(t.Context()) }()
		time.Sleep(time.Second)
		select {
		case <-done:
			if err == nil && got < index {
				t.Errorf("ReadIndex of a new leader is %d, %d was acknowledged", got, index)
			}
		default:
		}
		close(hold)
		<-done
		if err != nil || got < index {
			t.Errorf("ReadIndex of a new leader: %d, %v; want %d at least", got, err, index)
		}
	})
}

func TestFenceEndsWithCloseAndContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startCluster(t)
		id, _ := c.leader(t, c.ids...)
		n := c.nodes[id]
		if _, err := n.ReadIndex(t.Context()); err != nil {
			t.Fatal(err)
		}
		c.mu.Lock()
		for _, other := range c.ids { // the messages of raft go on
			c.cut[[2]string{id, other}] = true
		}
		c.mu.Unlock()
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := n.ReadIndex(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("ReadIndex: %v, want DeadlineExceeded", err)
		}
		began := time.Now()
		if _, err := n.ReadIndex(t.Context()); !errors.Is(err, ErrNoMajority) {
			t.Errorf("ReadIndex without answers: %v, want ErrNoMajority", err)
		}
		if took := time.Since(began); took > 2*fenceTimeout {
			t.Errorf("a round without answers took %v", took)
		}
		result, waited := make(chan error, 1), make(chan error, 1)
		go func() { _, err := n.ReadIndex(t.Context()); result <- err }()
		go func() { waited <- n.WaitDelivered(t.Context(), 1<<40) }()
		synctest.Wait()
		began = time.Now()
		if err := n.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := <-result; !errors.Is(err, ErrClosed) {
			t.Errorf("ReadIndex while Close: %v, want ErrClosed", err)
		}
		if err := <-waited; !errors.Is(err, ErrClosed) {
			t.Errorf("WaitDelivered while Close: %v, want ErrClosed", err)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("Close waited %v for a read", took)
		}
		if _, err := n.ReadIndex(t.Context()); !errors.Is(err, ErrClosed) {
			t.Errorf("ReadIndex after Close: %v, want ErrClosed", err)
		}
	})
}

// A sole voter asks nobody.
func TestFenceOfSoleVoter(t *testing.T) {
	n := start(t, func(c *Config) {
		c.Term = func(context.Context, string) (uint64, error) { return 0, errors.New("nobody to ask") }
	})
	_, index := n.propose(t, "a")
	if got, err := n.ReadIndex(t.Context()); err != nil || got != index {
		t.Errorf("ReadIndex: %d, %v; want %d", got, err, index)
	}
	if err := n.WaitDelivered(t.Context(), index); err != nil {
		t.Error(err)
	}
}
