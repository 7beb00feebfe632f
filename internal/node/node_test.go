package node

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/sequencer"
)

func testConfig(t testing.TB, fs vfs.FS, dir string) Config {
	return Config{
		Dir: dir, FS: fs, Logger: slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn})),
		SegmentBytes: 256 << 10, MemTableBytes: 1 << 20, BlockCacheBytes: 1 << 20, SlowWarn: -1,
		Die: func(reason string, err error) { panic(fmt.Sprintf("die: %s: %v", reason, err)) },
	}
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) { w.t.Logf("%s", b); return len(b), nil }

func testEvent(i int) *lineage.Event {
	d, _ := lineage.ParseDigest(fmt.Sprintf("sha256:%064x", i))
	return &lineage.Event{
		ID: lineage.NewID(), Kind: lineage.KindRun, Action: uint8(lineage.RunComplete), RunID: lineage.NewID(),
		Job:        lineage.Name{Namespace: "test", Name: "job"},
		References: []lineage.Reference{{Role: lineage.Output, Kind: lineage.Model, Known: lineage.Computed, Digest: d, URI: "model.bin"}},
		Documents:  []lineage.Document{{MediaType: "application/json", Content: []byte(`{"k":1}`)}},
	}
}

func TestOpenAppendReopen(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	dir := t.TempDir() + "/ledger"
	var heads []ledger.Head
	var last *sequencer.Result
	var events []*lineage.Event
	for round := range 3 {
		start := time.Now()
		n, err := Open(ctx, testConfig(t, nil, dir))
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("open: %v", time.Since(start))
		tree, err := n.Ledger().Tree(ledger.MainLog)
		if err != nil {
			t.Fatal(err)
		}
		if round == 0 && !n.Created() || round > 0 && (n.Created() || tree.Head() != heads[round-1]) {
			t.Fatalf("round %d: created %v, head %v, before %v", round, n.Created(), tree.Head(), heads)
		}
		for i := range 600 {
			e := testEvent(i)
			events = append(events, e)
			last, err = n.Sequencer().Append(ctx, sequencer.Request{Log: ledger.MainLog, Events: []*lineage.Event{e}, Principal: n.Ledger().LocalPrincipal()})
			if err != nil {
				t.Fatal(err)
			}
		}
		again, err := n.Sequencer().Append(ctx, sequencer.Request{Log: ledger.MainLog, Events: events[:1], Principal: n.Ledger().LocalPrincipal()})
		if err != nil || !again.Recorded[0].Duplicate || again.Recorded[0].Index != 1 {
			t.Fatalf("resend: %+v, %v", again, err)
		}
		h := last.Tree.Head()
		g, _ := n.Ledger().LogByName("main")
		note, err := n.Signer().Checkpoint(g.Origin, h.Size, h.Root)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s", note)
		heads = append(heads, h)
		if err := n.Close(ctx); err != nil {
			t.Fatal(err)
		}
	}
}
