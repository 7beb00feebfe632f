package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/provledger/provledger/client/lineage"
	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

// append appends by a node, one attempt.
func (c *cluster) append(h *history, at int, e *lineage.Event) *op {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	return h.appendRaw(ctx, c.members[at].conn, e)
}

func errText(err error) string {
	if err == nil {
		return "none"
	}
	return err.Error()
}

// insist sends an event, at once and again under the same id until it is acknowledged, to the nodes that are named: a client that tries
// again. It reports whether it was.
func (c *cluster) insist(h *history, e *lineage.Event, node func(try int) int) bool {
	began, first := time.Now(), h.now()
	for i := 0; ; i++ {
		at := node(i)
		o := c.append(h, at, e)
		h.sentAt(o, first)
		if o.err == nil {
			return true
		}
		if time.Since(began) > patience {
			c.t.Errorf("an append was not acknowledged within %v; the last error, of node %d: %v", patience, at, o.err)
			return false
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// probe sends event after event to nodes that stay, each until it is acknowledged. stop ends it when something that it began afterwards is acknowledged, and returns the longest time since the start, or between two
// acknowledgements, without one.
func (c *cluster) probe(h *history, r *rand.Rand, nodes []int) (stop func() time.Duration) {
	began := time.Now()
	last, longest := began, time.Duration(0)
	over, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for final := false; !final; {
			select {
			case <-over:
				final = true
			default:
			}
			if !c.insist(h, newEvent(r), func(i int) int { return nodes[i%len(nodes)] }) {
				return
			}
			longest = max(longest, time.Since(last))
			last = time.Now()
		}
	}()
	stop = sync.OnceValue(func() time.Duration {
		close(over)
		<-done
		return longest
	})
	c.t.Cleanup(func() { stop() }) // a test that fails ends it too
	return stop
}

// persist has two producers send event after event, each until it is acknowledged, until stop. It wants none to be left over.
func (c *cluster) persist(h *history, seed uint64) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for worker := range 2 {
		r := rand.New(rand.NewPCG(seed, uint64(worker)))
		wg.Go(func() {
			for ctx.Err() == nil {
				c.insist(h, newEvent(r), func(int) int { return r.IntN(len(c.members)) })
				time.Sleep(breather)
			}
		})
	}
	stop = func() {
		cancel()
		wg.Wait()
	}
	c.t.Cleanup(stop) // a test that fails ends it too
	return stop
}

// gaps says how long a cluster was away, in a fault that was made many times.
type gaps []time.Duration

func (g gaps) quantile(q float64) time.Duration {
	s := slices.Sorted(slices.Values(g))
	return s[min(len(s)-1, int(q*float64(len(s))))]
}

// String is a histogram.
func (g gaps) String() string {
	edges := []time.Duration{
		10 * time.Millisecond, 20 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond, 200 * time.Millisecond, 300 * time.Millisecond,
		400 * time.Millisecond, 500 * time.Millisecond, 600 * time.Millisecond, 700 * time.Millisecond, 800 * time.Millisecond, time.Second,
		1500 * time.Millisecond, 2 * time.Second, 5 * time.Second, time.Hour,
	}
	counts := make([]int, len(edges))
	for _, d := range g {
		i, _ := slices.BinarySearch(edges, d)
		counts[i]++
	}
	var b strings.Builder
	fmt.Fprintf(&b, "n=%d min=%v p50=%v p90=%v p99=%v max=%v\n", len(g), ms(g.quantile(0)), ms(g.quantile(0.5)), ms(g.quantile(0.9)), ms(g.quantile(0.99)), ms(g.quantile(1)))
	for i, n := range counts {
		if n > 0 {
			fmt.Fprintf(&b, "%9v .. %-8v %4d %s\n", ms(append([]time.Duration{0}, edges...)[i]), ms(edges[i]), n, strings.Repeat("#", (n*60+len(g)-1)/len(g)))
		}
	}
	return b.String()
}

func ms(d time.Duration) string { return fmt.Sprintf("%.0fms", float64(d.Microseconds())/1000) }

// handovers makes the leader go n times under load, and measures how long a client that tries again goes without an acknowledgement.
func handovers(tb testing.TB, n int, away func(c *cluster, leader int, stay []int), back func(c *cluster, leader int)) gaps {
	tb.Helper()
	r := dice(tb)
	c := newCluster(tb, r, clusterOptions{nodes: 3})
	h := newHistory()
	w := c.traffic(h, r.Uint64())
	var g gaps
	for range n {
		time.Sleep(span(r, 100*time.Millisecond, 300*time.Millisecond))
		leader := c.leader()
		stay := c.others(leader)
		r.Shuffle(len(stay), func(i, j int) { stay[i], stay[j] = stay[j], stay[i] })
		stop := c.probe(h, rand.New(rand.NewPCG(r.Uint64(), 0)), stay)
		away(c, leader, stay)
		g = append(g, stop())
		back(c, leader)
		c.awaitVoters(3)
	}
	c.settle(h, w)
	return g
}

func afterKill(tb testing.TB, n int) gaps {
	return handovers(tb, n,
		func(c *cluster, leader int, _ []int) { c.kill(leader) },
		func(c *cluster, leader int) { c.spawn(leader) })
}

func afterTransfer(tb testing.TB, n int) gaps {
	return handovers(tb, n,
		func(c *cluster, _ int, stay []int) { c.transfer(stay[0]) },
		func(*cluster, int) {})
}

// transfer hands leadership to a node.
func (c *cluster) transfer(to int) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	if _, err := ledgerv1.NewClusterServiceClient(c.members[to].conn).TransferLeadership(ctx, &ledgerv1.TransferLeadershipRequest{NodeId: c.id(to)}); err != nil {
		c.t.Errorf("transfer to node %d: %v", to, err)
	}
}

func afterStop(tb testing.TB, n int) gaps {
	return handovers(tb, n,
		func(c *cluster, leader int, _ []int) { c.stop(leader) },
		func(c *cluster, leader int) { c.spawn(leader) })
}

// TestFailover is the short form of the benchmarks below: it asserts that the cluster comes back, not how fast, and prints how fast.
func TestFailover(t *testing.T) {
	t.Logf("kill -9 of the leader:\n%v", afterKill(t, rounds(t, 3, 100)))
}

func TestTransfer(t *testing.T) {
	t.Logf("transfer of leadership:\n%v", afterTransfer(t, rounds(t, 3, 100)))
}

// The figures of docs/performance.md: go test -run='^$' -bench='Failover|Transfer|Restart' -benchtime=100x ./internal/e2e
func BenchmarkFailover(b *testing.B) { report(b, afterKill) }
func BenchmarkTransfer(b *testing.B) { report(b, afterTransfer) }
func BenchmarkRestart(b *testing.B)  { report(b, afterStop) }

func report(b *testing.B, measure func(testing.TB, int) gaps) {
	b.Helper()
	g := measure(b, b.N)
	b.ReportMetric(0, "ns/op") // most of that is waiting for the cluster to be whole again
	b.ReportMetric(float64(g.quantile(0.5).Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(g.quantile(0.99).Microseconds())/1000, "p99-ms")
	fmt.Printf("\n%v", g) // whole; the testing package cuts what is logged
}
