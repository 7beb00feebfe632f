package e2e

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestClusterPartitions breaks links under load: the leader alone, a follower alone, links that work in one direction only, that flap,
// that are slow, that are reset, and that change bytes. Nothing may be lost or shown stale, and the cluster works again afterwards.
func TestClusterPartitions(t *testing.T) {
	t.Parallel()
	r := dice(t)
	c := newCluster(t, r, clusterOptions{nodes: 3})
	h := newHistory()
	w := c.traffic(h, r.Uint64())
	faults := []struct {
		name string
		do   func(leader, follower, other int)
	}{
		{"the leader alone", func(leader, follower, _ int) {
			c.isolate(leader)
			c.progress(h, r, c.leader(c.others(leader)...), "without the isolated leader")
		}},
		{"a follower alone", func(_, follower, other int) {
			c.isolate(follower)
			c.progress(h, r, other, "without the isolated follower")
		}},
		{"the leader is heard and hears nothing", func(leader, _, _ int) {
			for _, i := range c.others(leader) {
				c.cut(i, leader)
			}
			time.Sleep(2 * time.Second)
		}},
		{"the leader hears and is not heard", func(leader, _, _ int) {
			for _, i := range c.others(leader) {
				c.cut(leader, i)
			}
			c.progress(h, r, c.leader(c.others(leader)...), "without the leader that is not heard")
		}},
		{"the followers do not hear each other", func(leader, follower, other int) {
			c.cut(follower, other)
			c.cut(other, follower)
			c.progress(h, r, leader, "with a leader that both hear")
		}},
		{"flapping", func(leader, _, _ int) {
			for range 6 {
				c.isolate(leader)
				time.Sleep(span(r, 20*time.Millisecond, 400*time.Millisecond))
				c.heal()
				time.Sleep(span(r, 20*time.Millisecond, 400*time.Millisecond))
			}
		}},
		{"resets", func(leader, follower, other int) {
			for range 10 {
				c.links.reset(leader, follower)
				c.links.reset(leader, other)
				time.Sleep(span(r, 0, 60*time.Millisecond))
			}
		}},
		{"slow links", func(leader, follower, other int) {
			for _, i := range []int{follower, other} {
				c.links.both(leader, i, rule{delay: 15 * time.Millisecond, rate: 4 << 20})
			}
			c.progress(h, r, follower, "over slow links")
		}},
		{"changed bytes", func(leader, follower, _ int) {
			c.links.both(leader, follower, rule{corrupt: 0.05})
			c.progress(h, r, leader, "while one link changes bytes")
		}},
	}
	for range rounds(t, 1, 20) {
		for _, f := range faults {
			leader := c.leader()
			rest := c.others(leader)
			follower, other := rest[0], rest[1]
			if r.IntN(2) == 0 {
				follower, other = other, follower
			}
			f.do(leader, follower, other)
			c.heal()
			c.awaitVoters(3)
			if t.Failed() {
				t.Fatalf("after: %s", f.name)
			}
		}
	}
	c.settle(h, w)
}

// progress waits until an append by a node is acknowledged.
func (c *cluster) progress(h *history, r *rand.Rand, at int, what string) {
	c.t.Helper()
	c.lookFor("an append "+what, func() (bool, string) {
		o := c.append(h, at, newEvent(r))
		return o.err == nil, "error: " + errText(o.err)
	})
}

// TestClusterLosesPackets is a partition as between machines: packets are gone, connections hang, nothing says so.
func TestClusterLosesPackets(t *testing.T) {
	t.Parallel()
	r := dice(t)
	c := newCluster(t, r, clusterOptions{nodes: 3, spaces: true})
	h := newHistory()
	w := c.traffic(h, r.Uint64())
	for range rounds(t, 1, 20) {
		old := c.leader()
		c.isolate(old)
		c.progress(h, r, c.leader(c.others(old)...), "without the isolated leader")
		c.heal()
		c.awaitVoters(3)
		old = c.leader()
		for _, i := range c.others(old) {
			c.cut(old, i) // it hears, and is not heard
		}
		c.progress(h, r, c.leader(c.others(old)...), "without the leader that is not heard")
		c.heal()
		c.awaitVoters(3)
	}
	c.settle(h, w)
}
