package node

import (
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/sequencer"
)

// logsEnv sets the number of logs of TestManyLogs.
const logsEnv = "PROVLEDGER_LOGS"

// TestManyLogs: a node with many logs, all of them used once, takes little memory when it starts, and more only for logs that are used. The
// bound is that of 10,000 logs in 256 MiB beyond the caches (docs/scaling.md), held to the number of logs of the test.
func TestManyLogs(t *testing.T) {
	count := 300
	if s := os.Getenv(logsEnv); s != "" {
		var err error
		if count, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	} else if testing.Short() {
		count = 100
	}
	conf := Config{
		Dir: t.TempDir(), MinFreeBytes: 1 << 20, MemTableBytes: 1 << 20, BlockCacheBytes: 1 << 20, Authn: lineage.AuthnOSUser,
		Logger: slog.New(slog.DiscardHandler), Die: func(reason string, err error) { t.Errorf("died: %s: %v", reason, err) },
	}
	n, err := Open(t.Context(), conf)
	if err != nil {
		t.Fatal(err)
	}
	use := func(n *Node, name string) {
		t.Helper()
		g, err := n.Ledger().LogByName(name)
		if err != nil {
			t.Fatal(err)
		}
		out, err := n.Sequencer().Append(t.Context(), sequencer.Request{
			Log: g.Number, Events: []*lineage.Event{testEvent(1)}, Principal: n.Ledger().LocalPrincipal(), Authn: lineage.AuthnOSUser, Size: 400,
		})
		if err != nil {
			t.Fatal(err)
		}
		head := out.Tree.Head()
		if _, err := n.Signer().Checkpoint(g.Origin, head.Size, head.Root); err != nil {
			t.Fatal(err)
		}
	}
	name := func(i int) string { return fmt.Sprintf("log-%05d", i) }
	for i := range count {
		if _, err := n.Sequencer().CreateLog(t.Context(), name(i), n.Ledger().LocalPrincipal(), lineage.AuthnOSUser); err != nil {
			t.Fatal(err)
		}
		use(n, name(i))
	}
	used := heap()
	if err := n.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	n = nil
	before := heap()
	start := time.Now()
	if n, err = Open(t.Context(), conf); err != nil {
		t.Fatal(err)
	}
	took := time.Since(start)
	idle := heap() - before
	if got := len(n.Ledger().Logs()); got != count+2 {
		t.Errorf("%d logs, want %d", got, count+2)
	}
	use(n, name(count/2))
	if err := n.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d logs: heap %d KiB after all were used, %d KiB after a start that took %v", count, used>>10, idle>>10, took.Round(time.Millisecond))
	const fixed = 48 << 20 // what a node takes without logs: memtables, caches, and what is not collected yet
	if limit := int64(fixed + (256<<20)*count/10_000); idle > limit || used-before > limit {
		t.Errorf("%d logs take %d KiB idle and %d KiB used, more than %d KiB", count, idle>>10, (used-before)>>10, limit>>10)
	}
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
