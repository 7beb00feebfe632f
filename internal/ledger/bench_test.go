package ledger

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/merkle"
)

// The usual event of docs/performance.md: three references, a job, a document of 300 bytes.
const (
	benchCommand = 1000    // events a command
	benchEntries = 1 << 20 // entries of the log that proofs are made from
)

type bencher struct {
	tb   testing.TB
	l    *Ledger
	edge *merkle.Edge
	head Head
	raft uint64
	next uint64
	leaf []byte
	body []byte
}

// newBencher opens a ledger with default sizes on the disk.
func newBencher(tb testing.TB) *bencher {
	o := testOptions(vfs.Default)
	o.Dir, o.MemTableBytes, o.BlockCacheBytes = tb.TempDir(), 64<<20, 128<<20
	l := mustOpen(tb, o)
	s := newScript(1)
	s.bootstrap()
	s.apply(tb, l, 0, len(s.entries))
	t, err := l.Tree(MainLog)
	if err != nil {
		tb.Fatal(err)
	}
	key := s.keys[MainLog]
	c := lineage.Composer{HashName: func(n lineage.Name) lineage.Hash { return lineage.HashName(&key, n) }, NewKey: s.key}
	e := &lineage.Event{
		ID: s.id(), Kind: lineage.KindRun, Action: uint8(lineage.RunComplete), RunID: s.id(), Job: lineage.Name{Namespace: "pipelines", Name: "train"},
		Documents: []lineage.Document{{MediaType: "application/json", Content: make([]byte, 300)}},
	}
	for i := range 3 {
		d, _ := lineage.ParseDigest(fmt.Sprintf("sha256:%064x", i))
		e.References = append(e.References, lineage.Reference{Role: lineage.Input, Kind: lineage.Dataset, Known: lineage.Computed, Digest: d, URI: "s3://bucket/part"})
	}
	leaf, body, err := c.Compose(nil, e, lineage.Stamp{RecordedAt: s.now, Principal: "local:0123456789abcdef", Authn: lineage.AuthnOSUser})
	if err != nil {
		tb.Fatal(err)
	}
	return &bencher{tb: tb, l: l, edge: t.Edge(), head: t.Head(), raft: l.Applied().Index, leaf: leaf, body: lineage.AppendBody(nil, body)}
}

// command composes a command of n events; leaves differ in event id and run.
func (b *bencher) command(n int) []byte {
	s := Section{Log: MainLog, Before: b.head, Entries: make([]CommandEntry, n)}
	for i := range s.Entries {
		leaf := append([]byte(nil), b.leaf...)
		var id lineage.ID
		b.next++
		binary.BigEndian.PutUint64(id[:], b.next)
		copy(leaf[len(lineage.LeafTag)+5:], id[:])
		s.Entries[i] = CommandEntry{EventID: id, Principal: "local:0123456789abcdef", Authn: lineage.AuthnOSUser, Leaf: leaf, Body: b.body}
		b.edge.Append(merkle.LeafHash(leaf), nil)
	}
	b.head = Head{b.edge.Size(), b.edge.Root(), b.head.RecordedAt}
	s.After = b.head
	return AppendCommand(nil, &Command{ClusterID: testCluster, Sections: []Section{s}})
}

func (b *bencher) apply(data []byte) {
	b.raft++
	r := b.l.Apply([]LogEntry{{Index: b.raft, Term: 1, Data: data}})
	if o, ok := r[0].(*Outcome); !ok || o.Decision != Accepted {
		b.tb.Fatal(r[0])
	}
}

// BenchmarkApply is the state machine's share of an append: decode, hash, extend the tree, write, flushes and compactions included.
func BenchmarkApply(b *testing.B) {
	for _, n := range []int{1, 100, benchCommand} {
		b.Run(fmt.Sprintf("events=%d", n), func(b *testing.B) {
			x := newBencher(b)
			b.ReportAllocs()
			var cpu time.Duration
			for i := 0; i < b.N; {
				// Composed outside of the measured time, a few at a time.
				b.StopTimer()
				var commands [][]byte
				for j := 0; j < 64 && i < b.N; j, i = j+1, i+1 {
					commands = append(commands, x.command(n))
				}
				b.StartTimer()
				before := cpuTime()
				for _, c := range commands {
					x.apply(c)
				}
				cpu += cpuTime() - before
			}
			b.StopTimer()
			events := float64(b.N * n)
			b.ReportMetric(float64(b.Elapsed().Microseconds())/events, "us/event")
			b.ReportMetric(float64(cpu.Microseconds())/events, "cpu-us/event")
			b.ReportMetric(float64(len(x.leaf)), "leaf-bytes")
			mustClose(b, x.l)
		})
	}
}

// BenchmarkRead reads from a log of benchEntries.
func BenchmarkRead(b *testing.B) {
	if testing.Short() {
		b.Skip("builds a log of a million entries")
	}
	x := newBencher(b)
	for x.head.Size < benchEntries {
		x.apply(x.command(benchCommand))
	}
	defer mustClose(b, x.l)
	t, err := x.l.Tree(MainLog)
	if err != nil {
		b.Fatal(err)
	}
	size := t.Head().Size
	rng := rand.New(rand.NewPCG(1, 1))
	run := func(name string, f func() error) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := f(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	run("ProveInclusion", func() error { _, err := merkle.ProveInclusion(rng.Uint64N(size), size, t); return err })
	run("ProveInclusion/newest", func() error { _, err := merkle.ProveInclusion(size-1-rng.Uint64N(1000), size, t); return err })
	run("ProveConsistency", func() error { _, err := merkle.ProveConsistency(1+rng.Uint64N(size-1), size, t); return err })
	run("ProveRange/1000", func() error {
		first := rng.Uint64N(size - 1000)
		_, err := merkle.ProveRange(first, first+1000, size, t)
		return err
	})
	run("RootAt/newest", func() error { _, err := t.RootAt(size - 1 - rng.Uint64N(1000)); return err })
	run("Tree", func() error { _, err := x.l.Tree(MainLog); return err })
	run("Entry", func() error { _, err := x.l.Entry(MainLog, rng.Uint64N(size), true); return err })
	run("Entries/1000", func() error {
		first := rng.Uint64N(size - 1000)
		return x.l.Entries(MainLog, first, first+1000, true, func(*Entry) error { return nil })
	})
	run("ByEventID", func() error {
		var id lineage.ID
		binary.BigEndian.PutUint64(id[:], 1+rng.Uint64N(size-1))
		_, err := x.l.ByEventID(MainLog, id)
		return err
	})
}

// BenchmarkStage is what a catch-up does with what it has fetched: check, hash, extend the tree, write; the reading side is apart.
func BenchmarkStage(b *testing.B) {
	const entries = 200 * benchCommand
	from := newBencher(b)
	defer mustClose(b, from.l)
	for from.head.Size < entries {
		from.apply(from.command(benchCommand))
	}
	e, err := from.l.Export()
	if err != nil {
		b.Fatal(err)
	}
	b.Run("Chunks", func(b *testing.B) {
		for b.Loop() {
			if err := from.l.Chunks(MainLog, 0, entries, func(Chunk) error { return nil }); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*entries), "us/event")
	})
	b.Run("Put", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			o := testOptions(vfs.Default)
			o.Dir, o.MemTableBytes, o.BlockCacheBytes = b.TempDir(), 64<<20, 128<<20
			to := mustOpen(b, o)
			stage := mustStage(b, to, e)
			for _, m := range stage.Missing() {
				all := chunksOf(b, from.l, m.Log, m.First, m.End)
				b.StartTimer()
				for i, c := range all {
					err := stage.Put(m.Log, c)
					if err == nil && (i%256 == 255 || i == len(all)-1) {
						err = stage.Keep(m.Log)
					}
					if err != nil {
						b.Fatal(err)
					}
				}
				b.StopTimer()
			}
			mustClose(b, to)
			b.StartTimer()
		}
		b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*entries), "us/event")
	})
}
