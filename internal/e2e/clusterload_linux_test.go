package e2e

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/provledger/provledger/client/lineage"
	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

const (
	// callTimeout lets an append wait through an election and still ends while the test watches.
	callTimeout = 5 * time.Second
	// readTimeout of a read that waits for a majority, or for entries.
	readTimeout = 2 * time.Second
	// breather keeps workers from hammering a node that is gone, and two cores from being all that is tested.
	breather = 5 * time.Millisecond
)

// traffic is what producers and readers do on all nodes of a cluster at once.
type traffic struct {
	c      *cluster
	h      *history
	cancel context.CancelFunc
	wg     sync.WaitGroup

	fences, sessions, own atomic.Int64 // reads that were answered: linearizable, in a session, of the reader's own appends
}

// traffic starts two producers and three readers. Nobody keeps to one node, for any node takes any call.
func (c *cluster) traffic(h *history, seed uint64) *traffic {
	w := &traffic{c: c, h: h}
	var ctx context.Context
	ctx, w.cancel = context.WithCancel(context.Background())
	c.t.Cleanup(w.stop) // a test that fails ends it too
	for i, f := range []func(context.Context, *rand.Rand){w.appendSingly, w.appendBatches, w.readFenced, w.readInSession, w.readOwn} {
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		w.wg.Go(func() {
			for ctx.Err() == nil {
				f(ctx, r)
				time.Sleep(breather)
			}
		})
	}
	return w
}

// stop ends the traffic. Calls that are under way end as unknown.
func (w *traffic) stop() {
	w.cancel()
	w.wg.Wait()
}

func (w *traffic) any(r *rand.Rand) *member { return w.c.members[r.IntN(len(w.c.members))] }

func (w *traffic) appendSingly(ctx context.Context, r *rand.Rand) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	w.h.appendRaw(ctx, w.any(r).conn, newEvent(r))
}

func (w *traffic) appendBatches(ctx context.Context, r *rand.Rand) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	events := make([]*lineage.Event, 1+r.IntN(40))
	for i := range events {
		events[i] = newEvent(r)
	}
	w.h.appendBatchRaw(ctx, w.any(r).conn, events)
}

// checkpoint asks a node for one.
func (w *traffic) checkpoint(ctx context.Context, m *member, want *ledgerv1.ReadConsistency) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	resp, err := ledgerv1.NewLedgerServiceClient(m.conn).GetCheckpoint(ctx, &ledgerv1.GetCheckpointRequest{Consistency: want})
	if err != nil {
		return 0, err
	}
	w.h.sawCheckpoint(resp.Checkpoint)
	return resp.TreeSize, nil
}

// readFenced reads linearizably: the answer has all that anybody was told of before the read began (S7).
func (w *traffic) readFenced(ctx context.Context, r *rand.Rand) {
	m, floor := w.any(r), w.h.told(0)
	size, err := w.checkpoint(ctx, m, &ledgerv1.ReadConsistency{Linearizable: true})
	if err != nil {
		return
	}
	w.fences.Add(1)
	if size < floor {
		w.c.t.Errorf("S7: a linearizable read at node %d says %d entries; %d had been acknowledged before it began", m.i, size, floor)
	}
	w.h.told(size)
}

// readInSession goes from node to node for a while and never sees less than it has seen.
func (w *traffic) readInSession(ctx context.Context, r *rand.Rand) {
	var seen uint64
	for range 10 {
		m := w.any(r)
		size, err := w.checkpoint(ctx, m, &ledgerv1.ReadConsistency{MinSize: seen})
		if err != nil {
			continue
		}
		w.sessions.Add(1)
		if size < seen {
			w.c.t.Errorf("S7: a session that has seen %d entries was shown %d by node %d", seen, size, m.i)
		}
		seen = size
	}
}

// readOwn appends by one node and reads what it has just appended from another one.
func (w *traffic) readOwn(ctx context.Context, r *rand.Rand) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	o := w.h.appendRaw(ctx, w.any(r).conn, newEvent(r))
	if o.err != nil {
		return
	}
	m := w.any(r)
	resp, err := ledgerv1.NewLedgerServiceClient(m.conn).GetEntry(ctx, &ledgerv1.GetEntryRequest{
		Entry:       &ledgerv1.EntrySelector{By: &ledgerv1.EntrySelector_Index{Index: o.indexes[0]}},
		Consistency: &ledgerv1.ReadConsistency{MinSize: o.size},
	})
	if err != nil {
		return
	}
	w.own.Add(1)
	if !bytes.Equal(resp.Entry.GetLeaf(), o.leaves[0]) {
		w.c.t.Errorf("S5: entry %d at node %d is not what was acknowledged", o.indexes[0], m.i)
	}
}

// told raises the size that everybody may count on, and returns it.
func (h *history) told(size uint64) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.floor = max(h.floor, size)
	return h.floor
}

// largest is the size of the largest tree that anybody has a checkpoint of.
func (h *history) largest(t reporter, vkey string) (most uint64) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	for n := range h.notes {
		size, _, err := checkpointOf(n, vkey)
		if err != nil {
			t.Fatalf("a checkpoint does not verify: %v\n%s", err, n)
		}
		most = max(most, size)
	}
	return most
}

// settle ends a test: what is unknown is sent again, then every node that runs is read as a whole and held against everything that any
// producer and any reader saw. One set of checkpoints for all nodes is what makes this S5: two roots for one size are found whoever
// signed them.
func (c *cluster) settle(h *history, w *traffic) {
	c.t.Helper()
	if w != nil {
		w.stop()
	}
	for _, m := range c.members {
		if m.running {
			c.id(m.i) // it answers, so connections that met a closed port have been made anew
		}
	}
	leader := c.leader()
	a := newAuditor(c.t, h, c.members[leader].conn)
	a.resend(c.members[c.others(leader)[0]].conn, h.ops)
	for _, m := range c.members {
		if !m.running {
			continue
		}
		floor := h.largest(c.t, a.vkey)
		c.lookFor(fmt.Sprintf("all %d entries at node %d", floor, m.i), func() (bool, string) {
			ctx, cancel := context.WithTimeout(context.Background(), readTimeout)
			defer cancel()
			resp, err := ledgerv1.NewLedgerServiceClient(m.conn).GetCheckpoint(ctx, &ledgerv1.GetCheckpointRequest{})
			return err == nil && resp.TreeSize >= floor, fmt.Sprint(resp.GetTreeSize(), err)
		})
		a.audit(m.conn)
	}
	if w == nil {
		return
	}
	c.t.Logf("%d events acknowledged, %d refused, in %d calls; %d checkpoints; reads: %d fenced, %d in sessions, %d of own appends",
		h.count(acknowledged), h.count(notApplied), len(h.ops), len(h.notes), w.fences.Load(), w.sessions.Load(), w.own.Load())
	if h.count(acknowledged) == 0 || w.fences.Load() == 0 || w.sessions.Load() == 0 || w.own.Load() == 0 {
		c.t.Error("some kind of call was never answered: the test tests nothing")
	}
}

// hearing is a testing.TB that notes errors instead of failing.
type hearing struct {
	testing.TB
	heard []string
}

func (l *hearing) Helper() {}
func (l *hearing) Errorf(format string, args ...any) {
	l.heard = append(l.heard, fmt.Sprintf(format, args...))
}

// TestReaderBites: a fenced read that shows less than somebody was told of is noticed. (The other invariants: TestAuditorBites.)
func TestReaderBites(t *testing.T) {
	d := start(t, t.TempDir(), "")
	l := &hearing{TB: t}
	w := &traffic{c: &cluster{t: l, members: []*member{{conn: d.dial()}}}, h: newHistory()}
	r := dice(t)
	w.readFenced(t.Context(), r)
	if len(l.heard) != 0 || w.fences.Load() != 1 {
		t.Fatalf("a read of what is there: %v, %d answered", l.heard, w.fences.Load())
	}
	w.h.told(1000)
	w.readFenced(t.Context(), r)
	if len(l.heard) != 1 || !strings.Contains(l.heard[0], "S7") {
		t.Errorf("a read that shows less than what was acknowledged: %v", l.heard)
	}
}
