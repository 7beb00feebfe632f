package e2e

import (
	"math/rand/v2"
	"testing"
	"time"
)

func span(r *rand.Rand, from, to time.Duration) time.Duration {
	return from + time.Duration(r.Int64N(int64(to-from)))
}

// TestClusterKill kills nodes of a cluster at random moments under load, mostly the leader, at times while the last one is still coming
// back, and audits every node from outside.
func TestClusterKill(t *testing.T) {
	t.Parallel()
	r := dice(t)
	c := newCluster(t, r, clusterOptions{nodes: 3})
	h := newHistory()
	w := c.traffic(h, r.Uint64())
	for range rounds(t, 3, 200) {
		time.Sleep(span(r, 100*time.Millisecond, 800*time.Millisecond))
		victim := c.leader()
		if r.IntN(3) == 0 {
			victim = r.IntN(len(c.members))
		}
		c.kill(victim)
		time.Sleep(span(r, 0, time.Second))
		if r.IntN(4) == 0 { // for a moment there is no majority
			second := c.others(victim)[r.IntN(2)]
			c.kill(second)
			time.Sleep(span(r, 0, 300*time.Millisecond))
			c.spawn(second)
		}
		c.spawn(victim)
		c.awaitVoters(3)
	}
	c.settle(h, w)
}

// TestClusterKillAll kills all nodes at once, as a power cut in the rack does. What was acknowledged is on the disks.
func TestClusterKillAll(t *testing.T) {
	t.Parallel()
	r := dice(t)
	c := newCluster(t, r, clusterOptions{nodes: 3})
	h := newHistory()
	for range rounds(t, 1, 50) {
		w := c.traffic(h, r.Uint64())
		time.Sleep(span(r, 500*time.Millisecond, time.Second))
		for _, m := range c.members {
			c.kill(m.i)
		}
		w.stop()
		for _, m := range c.members {
			c.spawn(m.i)
		}
		c.awaitVoters(3)
	}
	w := c.traffic(h, r.Uint64())
	time.Sleep(500 * time.Millisecond)
	c.settle(h, w)
}

// TestClusterPause stops the leader's process where it stands. The others elect another one and go on; when the old one wakes up it believes
// that it leads, and must not answer a linearizable read from what it has (S7).
func TestClusterPause(t *testing.T) {
	t.Parallel()
	r := dice(t)
	c := newCluster(t, r, clusterOptions{nodes: 3})
	h := newHistory()
	w := c.traffic(h, r.Uint64())
	for range rounds(t, 2, 100) {
		time.Sleep(span(r, 100*time.Millisecond, 500*time.Millisecond))
		old := c.leader()
		c.pause(old)
		next := c.leader(c.others(old)...)
		if next == old {
			t.Fatal("the paused node answers")
		}
		before := h.count(acknowledged)
		c.lookFor("appends without the paused leader", func() (bool, string) { return h.count(acknowledged) > before, "none" })
		// Readers wait at the sleeping node already: traffic has calls to it under way, which it sees first when it wakes.
		time.Sleep(span(r, 0, 300*time.Millisecond))
		c.resume(old)
		c.awaitVoters(3)
	}
	c.settle(h, w)
}

// TestClusterRollingRestart restarts all nodes one after the other under load: what a client that tries again sends is recorded, all of it.
func TestClusterRollingRestart(t *testing.T) {
	t.Parallel()
	r := dice(t)
	c := newCluster(t, r, clusterOptions{nodes: 3})
	h := newHistory()
	w := c.traffic(h, r.Uint64())
	stop := c.persist(h, r.Uint64())
	for range rounds(t, 1, 20) {
		for i := range c.members {
			time.Sleep(span(r, 100*time.Millisecond, 300*time.Millisecond))
			c.stop(i)
			c.start(i)
			c.awaitVoters(3)
		}
	}
	stop()
	c.settle(h, w)
}
