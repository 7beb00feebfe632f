package e2e

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/provledger/provledger/client"
	"github.com/provledger/provledger/client/lineage"
)

// load runs producers until ctx ends: two with bare unary calls, one with the public client, one with batches. Each waits for its
// answer before it sends the next, so what is in flight when the process dies is a handful of appends of every kind.
func load(ctx context.Context, h *history, conn *grpc.ClientConn, c *client.Client, seed uint64) (wait func()) {
	var wg sync.WaitGroup
	for worker := range 4 {
		r := rand.New(rand.NewPCG(seed, uint64(worker)))
		wg.Go(func() {
			for ctx.Err() == nil {
				var o *op
				switch worker {
				case 0, 1:
					o = h.appendRaw(ctx, conn, newEvent(r))
				case 2:
					o = h.appendClient(ctx, c, newEvent(r))
				case 3:
					events := make([]*lineage.Event, 1+r.IntN(300)) // across tile and chunk borders
					for i := range events {
						events[i] = newEvent(r)
					}
					o = h.appendBatchRaw(ctx, conn, events)
				}
				if o.err != nil {
					// The process is gone or going. A producer that hammers a dead port proves nothing.
					select {
					case <-ctx.Done():
					case <-time.After(20 * time.Millisecond):
					}
				}
			}
		})
	}
	return wg.Wait
}

// newClient is the public client with a memory of its own, so that a ledger that goes back would be noticed by it too.
func newClient(t *testing.T, d *daemon) *client.Client {
	t.Helper()
	c, err := client.Dial(d.grpc, client.Options{StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() }) // whatever the test was, its connection goes
	return c
}

// closeClient lets the client complete its checks, which needs a daemon that answers.
func closeClient(t *testing.T, c *client.Client) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Errorf("client: %v", err)
	}
}

// TestKill kills the process at random moments under load, starts it again on what is left, and audits everything from outside. One
// client lives through all of it.
func TestKill(t *testing.T) {
	r := dice(t)
	dir := t.TempDir()
	d := start(t, dir, "")
	h := newHistory()
	a := newAuditor(t, h, d.dial())
	c := newClient(t, d)
	settled := 0
	for round := range rounds(t, 5, 300) {
		conn := d.dial()
		ctx, cancel := context.WithCancel(t.Context())
		wait := load(ctx, h, conn, c, r.Uint64())
		time.Sleep(time.Duration(20+r.IntN(500)) * time.Millisecond)
		d.kill()
		time.Sleep(time.Duration(r.IntN(30)) * time.Millisecond)
		cancel()
		wait()
		conn.Close()
		// A start that is killed is a crash as well: replaying, repairing and opening have to be repeatable.
		for range r.IntN(3) {
			s := spawn(t, dir, nil, "--grpc-address", d.grpc, "--http-address", "off")
			time.Sleep(time.Duration(r.IntN(60)) * time.Millisecond)
			s.kill()
		}
		d = start(t, dir, d.grpc)
		conn = d.dial()
		a.resend(conn, h.ops[settled:])
		settled = len(h.ops)
		if round%10 == 0 {
			a.audit(conn)
		}
		conn.Close()
		if t.Failed() {
			t.Fatalf("in round %d", round)
		}
	}
	conn := d.dial()
	a.resend(conn, h.ops)
	a.audit(conn)
	closeClient(t, c)
	if code := d.terminate(); code != 0 {
		t.Errorf("SIGTERM: exit code %d", code)
	}
	t.Logf("%d events acknowledged, %d refused, in %d calls; %d checkpoints", h.count(acknowledged), h.count(notApplied), len(h.ops), len(h.notes))
	if h.count(acknowledged) == 0 {
		t.Error("nothing was acknowledged: the test tests nothing")
	}
}

// TestKillAtFirstStart kills the process while it makes a new ledger. What is left is either no ledger yet or a whole one, and the
// next start goes on from it.
func TestKillAtFirstStart(t *testing.T) {
	r := dice(t)
	for range rounds(t, 5, 300) {
		dir := t.TempDir()
		for range 3 {
			s := spawn(t, dir, nil, "--grpc-address", "127.0.0.1:0", "--http-address", "off")
			time.Sleep(time.Duration(r.IntN(120)) * time.Millisecond)
			s.kill()
		}
		d := start(t, dir, "")
		h := newHistory()
		conn := d.dial()
		a := newAuditor(t, h, conn)
		ctx, cancel := context.WithTimeout(t.Context(), auditTimeout)
		for range 3 {
			if o := h.appendRaw(ctx, conn, newEvent(r)); o.err != nil {
				t.Fatal(o.err)
			}
		}
		cancel()
		a.audit(conn)
		d.kill()
	}
}
