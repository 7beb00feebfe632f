package node_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/provledger/provledger/client"
	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/devca"
	"github.com/provledger/provledger/internal/localcluster"
	"github.com/provledger/provledger/internal/node"
	"github.com/provledger/provledger/internal/tlsfile"
)

// The benchmarks run a node on a real disk with its default settings and talk to it over loopback TCP, through the public client, which
// verifies everything. Client and server share the process, so cpu-us/event is the sum of both.

// start returns how to dial a new node.
func start(b *testing.B) (dial func() *client.Client) {
	b.Helper()
	return dialer(b, serve(b, node.Config{Dir: b.TempDir() + "/ledger"}))
}

// startCluster returns how to dial the leader of a new cluster of three nodes, all in this process and on this disk.
func startCluster(b *testing.B) (dial func() *client.Client) {
	b.Helper()
	dir := b.TempDir()
	ca, err := devca.New("bench", time.Hour)
	if err == nil {
		err = ca.Save(dir + "/ca")
	}
	if err != nil {
		b.Fatal(err)
	}
	put := func(name string, content []byte) string {
		if err := os.WriteFile(dir+"/"+name, content, 0o600); err != nil {
			b.Fatal(err)
		}
		return dir + "/" + name
	}
	secret := put("secret", make([]byte, 32))
	ports, err := localcluster.FreePorts(3)
	if err != nil {
		b.Fatal(err)
	}
	var members []string
	for _, port := range ports {
		members = append(members, fmt.Sprintf("127.0.0.1:%d", port))
	}
	addresses := make([]string, len(members))
	var wg sync.WaitGroup
	for i, address := range members {
		cert, key, err := ca.Issue(devca.Request{Hosts: []string{"127.0.0.1"}, Validity: time.Hour, Server: true, Client: true})
		if err != nil {
			b.Fatal(err)
		}
		files, err := tlsfile.Open(put(fmt.Sprintf("cert%d", i), cert), put(fmt.Sprintf("key%d", i), key), dir+"/ca/ca.pem", slog.New(slog.DiscardHandler))
		if err != nil {
			b.Fatal(err)
		}
		wg.Go(func() {
			addresses[i] = serve(b, node.Config{
				Dir: fmt.Sprintf("%s/n%d", dir, i), SecretFile: secret, HeartbeatTimeout: time.Second, // one process and two cores for everybody
				Peer: &node.Peer{Listen: address, Advertise: address, TLS: files, Members: members},
			})
		})
	}
	wg.Wait()
	dial = dialer(b, addresses[0])
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		c, err := dial().Cluster(b.Context())
		if err == nil && votes(c) == 3 {
			return dial
		}
		if time.Now().After(deadline) {
			b.Fatal("no cluster of three voters: ", err)
		}
	}
}

func votes(c *client.Cluster) (n int) {
	for _, m := range c.Members {
		if m.Voter {
			n++
		}
	}
	return n
}

// serve opens a node and returns the address of its API.
func serve(b *testing.B, c node.Config) string {
	c.Logger, c.Die = slog.New(slog.DiscardHandler), func(reason string, err error) { panic(fmt.Sprintf("die: %s: %v", reason, err)) }
	n, err := node.Open(b.Context(), c)
	if err != nil {
		b.Error(err)
		return ""
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Error(err)
		return ""
	}
	s := n.NewServer()
	go func() { _ = s.Serve(lis) }()
	b.Cleanup(func() {
		s.Stop()
		if err := n.Close(context.Background()); err != nil {
			b.Error(err)
		}
	})
	return lis.Addr().String()
}

func dialer(b *testing.B, address string) func() *client.Client {
	state := b.TempDir()
	return func() *client.Client {
		c, err := client.Dial(address, client.Options{StateDir: state})
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
func BenchmarkAppend(b *testing.B) { benchmarkAppend(b, start) }

// The same on a cluster of three nodes that share this machine: cpu-us/event is the sum of all three and the client.
func BenchmarkClusterAppend(b *testing.B) { benchmarkAppend(b, startCluster) }

func benchmarkAppend(b *testing.B, start func(*testing.B) func() *client.Client) {
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
func BenchmarkAppendBatch(b *testing.B) { benchmarkAppendBatch(b, start) }

// The same on a cluster of three nodes that share this machine.
func BenchmarkClusterAppendBatch(b *testing.B) { benchmarkAppendBatch(b, startCluster) }

func benchmarkAppendBatch(b *testing.B, start func(*testing.B) func() *client.Client) {
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
