package node_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/provledger/provledger/client"
	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/node"
)

// The benchmarks run a node on a real disk with its default settings and talk to it over loopback TCP, through the public client, which
// verifies everything. Client and server share the process, so cpu-us/event is the sum of both.

// start returns how to dial a new node.
func start(b *testing.B) (dial func() *client.Client) {
	b.Helper()
	n, err := node.Open(b.Context(), node.Config{
		Dir: b.TempDir() + "/ledger", Logger: slog.New(slog.DiscardHandler), Die: func(reason string, err error) { panic(fmt.Sprintf("die: %s: %v", reason, err)) },
	})
	if err != nil {
		b.Fatal(err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	s := n.NewServer()
	go func() { _ = s.Serve(lis) }()
	b.Cleanup(func() {
		s.Stop()
		if err := n.Close(context.Background()); err != nil {
			b.Error(err)
		}
	})
	state := b.TempDir()
	return func() *client.Client {
		c, err := client.Dial(lis.Addr().String(), client.Options{StateDir: state})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() {
			if err := c.Close(); err != nil {
				b.Error(err)
			}
		})
		return c
	}
}

// typical is an event as a pipeline stage records it: three references, a job, some 300 bytes of body.
func typical() *lineage.Event {
	sum := func() lineage.Digest {
		var v [32]byte
		for i := range v {
			v[i] = byte(rand.Uint32())
		}
		return lineage.Digest{Algorithm: lineage.SHA256, Value: string(v[:])}
	}
	e := &lineage.Event{Kind: lineage.KindRun, Action: uint8(lineage.RunComplete), OccurredAt: 1_764_000_000_000_000, Job: lineage.Name{Namespace: "pipelines", Name: "train"}}
	for i, role := range []lineage.Role{lineage.Input, lineage.Input, lineage.Output} {
		e.References = append(e.References, lineage.Reference{
			Role: role, Kind: lineage.Dataset, Known: lineage.Computed, Digest: sum(), URI: fmt.Sprintf("s3://bucket/path/to/part-%05d.parquet", i), Size: 1 << 20,
		})
	}
	e.Documents = []lineage.Document{{MediaType: "application/json", Name: "parameters", Content: make([]byte, 150)}}
	return e
}

func renew(events []*lineage.Event) {
	for _, e := range events {
		e.ID, e.RunID = lineage.NewID(), lineage.NewID()
	}
}

// latencies collects how long calls took.
type latencies struct {
	mu  sync.Mutex
	all []time.Duration
}

func (l *latencies) add(d time.Duration) { l.mu.Lock(); l.all = append(l.all, d); l.mu.Unlock() }

// report prints percentiles of the calls, and events a second and CPU an event of everything since started.
func (l *latencies) report(b *testing.B, events int, started time.Time, cpu time.Duration) {
	took, used := time.Since(started), cpuTime(b)-cpu
	slices.Sort(l.all)
	at := func(p float64) float64 { return l.all[int(p*float64(len(l.all)-1))].Seconds() * 1e3 }
	b.ReportMetric(at(0.50), "p50-ms")
	b.ReportMetric(at(0.99), "p99-ms")
	b.ReportMetric(float64(events)/took.Seconds(), "events/s")
	b.ReportMetric(float64(used.Microseconds())/float64(events), "cpu-us/event")
}

// spread shares b.N calls among workers, each with a client of its own.
func spread(b *testing.B, dial func() *client.Client, workers, perCall int, call func(w int, c *client.Client) error) {
	clients := make([]*client.Client, workers)
	for i := range clients {
		clients[i] = dial()
		if _, err := clients[i].Checkpoint(b.Context(), ""); err != nil { // connect, first contact
			b.Fatal(err)
		}
	}
	var l latencies
	var next atomic.Int64
	var wg sync.WaitGroup
	b.ResetTimer()
	started, cpu := time.Now(), cpuTime(b)
	for w := range workers {
		wg.Go(func() {
			for next.Add(1) <= int64(b.N) {
				at := time.Now()
				if err := call(w, clients[w]); err != nil {
					b.Error(err)
					return
				}
				l.add(time.Since(at))
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	if !b.Failed() {
		l.report(b, b.N*perCall, started, cpu)
	}
}

// One event a call, with its receipt.
func BenchmarkAppend(b *testing.B) {
	for _, workers := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("clients=%d", workers), func(b *testing.B) {
			events := make([]*lineage.Event, workers)
			for i := range events {
				events[i] = typical()
			}
			spread(b, start(b), workers, 1, func(w int, c *client.Client) error {
				renew(events[w : w+1])
				_, err := c.Append(b.Context(), "", events[w])
				return err
			})
		})
	}
}

// A thousand events a call, with a receipt for each.
func BenchmarkAppendBatch(b *testing.B) {
	const size = 1000
	for _, workers := range []int{1, 4} {
		b.Run(fmt.Sprintf("clients=%d", workers), func(b *testing.B) {
			events := make([][]*lineage.Event, workers)
			for i := range events {
				for range size {
					events[i] = append(events[i], typical())
				}
			}
			spread(b, start(b), workers, size, func(w int, c *client.Client) error {
				renew(events[w])
				_, err := c.AppendBatch(b.Context(), "", events[w])
				return err
			})
		})
	}
}

// Proofs and receipts of random entries of a ledger of 50,000.
func BenchmarkRead(b *testing.B) {
	const entries, size = 50_000, 1000
	dial := start(b)
	c := dial()
	events := make([]*lineage.Event, size)
	for i := range events {
		events[i] = typical()
	}
	for range entries / size {
		renew(events)
		if _, err := c.AppendBatch(b.Context(), "", events); err != nil {
			b.Fatal(err)
		}
	}
	for name, read := range map[string]func(*client.Client) error{
		"inclusion": func(c *client.Client) error {
			_, err := c.InclusionProof(b.Context(), "", client.AtIndex(rand.Uint64N(entries)), 0)
			return err
		},
		"receipt": func(c *client.Client) error {
			_, _, err := c.Receipt(b.Context(), "", client.AtIndex(rand.Uint64N(entries)))
			return err
		},
	} {
		for _, workers := range []int{1, 16} {
			b.Run(fmt.Sprintf("%s/clients=%d", name, workers), func(b *testing.B) {
				spread(b, dial, workers, 1, func(_ int, c *client.Client) error { return read(c) })
			})
		}
	}
}
