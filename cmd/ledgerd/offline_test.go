package main

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/node"
	"github.com/provledger/provledger/internal/sequencer"
)

// made is a ledger directory with some entries and a signature, closed. main holds a checkpoint of the log main.
func made(t *testing.T) (dir, main string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "data")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	n, err := node.Open(ctx, node.Config{
		Dir: dir, Logger: slog.New(slog.DiscardHandler), SegmentBytes: 256 << 10, MemTableBytes: 1 << 20, BlockCacheBytes: 1 << 20, MinFreeBytes: 1,
		SlowWarn: -1, Die: func(reason string, err error) { t.Errorf("die: %s: %v", reason, err) },
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		e := &lineage.Event{ID: lineage.NewID(), Kind: lineage.KindRun, Action: uint8(lineage.RunStart), RunID: lineage.NewID()}
		_, err := n.Sequencer().Append(ctx, sequencer.Request{Log: 1, Events: []*lineage.Event{e}, Principal: n.Ledger().LocalPrincipal(), Size: 100})
		if err != nil {
			t.Fatal(err)
		}
	}
	tree, err := n.Ledger().Tree(1)
	if err != nil {
		t.Fatal(err)
	}
	g, err := n.Ledger().LogByNumber(1)
	if err != nil {
		t.Fatal(err)
	}
	note, err := n.Signer().Checkpoint(g.Origin, tree.Head().Size, tree.Head().Root)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Close(ctx); err != nil {
		t.Fatal(err)
	}
	main = filepath.Join(filepath.Dir(dir), "main.checkpoint")
	if err := os.WriteFile(main, note, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir, main
}

// ledgerd runs a command line and wants its exit code and words in its output.
func ledgerd(t *testing.T, code int, line []string, want ...string) {
	t.Helper()
	var out bytes.Buffer
	got := run(t.Context(), line, nil, &out, &out, func(int) { t.Errorf("%q: exit called", line) })
	if got != code {
		t.Errorf("%q: code %d, want %d\n%s", line, got, code, &out)
	}
	for _, w := range want {
		if !strings.Contains(out.String(), w) {
			t.Errorf("%q: %q is not said in\n%s", line, w, &out)
		}
	}
}

// flip changes a bit of the largest file of a pattern, in its middle.
func flip(t *testing.T, pattern string) {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil || len(paths) == 0 {
		t.Fatal(pattern, err)
	}
	var largest []byte
	name := ""
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) > len(largest) {
			largest, name = b, path
		}
	}
	largest[len(largest)/3] ^= 1
	if err := os.WriteFile(name, largest, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestFsck(t *testing.T) {
	dir, _ := made(t)
	check := func(code int, want ...string) {
		t.Helper()
		ledgerd(t, code, []string{"fsck", dir}, want...)
	}
	check(exitOK, "raft        ok", "state       ok: 2 logs", "signer      1 logs compared", "secret      ok", "\nsound\n")
	for _, damage := range []struct {
		what string
		do   func(t *testing.T)
		want []string
	}{
		{"an open secret", func(t *testing.T) { chmod(t, filepath.Join(dir, "secret"), 0o644) }, []string{"secret      DAMAGED", "chmod 600"}},
		{"another secret", func(t *testing.T) { flip(t, filepath.Join(dir, "secret")) }, []string{"secret      DAMAGED", "Put the right one back"}},
		{"a lost record", func(t *testing.T) {
			flipAt(t, filepath.Join(dir, "signer", "*"), 8, 4096+8)
		}, []string{"signer      DAMAGED"}},
		{"a bit in the state", func(t *testing.T) { flip(t, filepath.Join(dir, "state", "*.sst")) }, []string{"state       DAMAGED", "fetches the state from its peers"}},
		{"no raft log", func(t *testing.T) { rename(t, filepath.Join(dir, "raft")) }, []string{"raft        DAMAGED", "join as a new node"}},
		{"no FORMAT", func(t *testing.T) { rename(t, filepath.Join(dir, "FORMAT")) }, []string{"FORMAT      DAMAGED"}},
	} {
		t.Run(damage.what, func(t *testing.T) {
			saved := filepath.Join(t.TempDir(), "saved")
			if err := os.CopyFS(saved, os.DirFS(dir)); err != nil {
				t.Fatal(err)
			}
			damage.do(t)
			check(exitFailed, damage.want...)
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			if err := os.CopyFS(dir, os.DirFS(saved)); err != nil {
				t.Fatal(err)
			}
			chmod(t, filepath.Join(dir, "secret"), 0o600)
			check(exitOK, "sound")
		})
	}
	ledgerd(t, exitUsage, []string{"fsck"}, "takes one DIR")
	ledgerd(t, exitUnsure, []string{"fsck", filepath.Join(dir, "nowhere")}, "nowhere")
	_, release, err := node.Identify(dir)
	if err != nil {
		t.Fatal(err)
	}
	check(exitBusy, "stop that process first")
	if err := release(); err != nil {
		t.Fatal(err)
	}
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func rename(t *testing.T, path string) {
	t.Helper()
	if err := os.Rename(path, path+".gone"); err != nil {
		t.Fatal(err)
	}
}

func flipAt(t *testing.T, pattern string, offsets ...int) {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil || len(paths) == 0 {
		t.Fatal(pattern, err)
	}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range offsets {
			b[i] ^= 1
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// What recover does is tested in internal/recovery; this is what it says.
func TestRecoverCommand(t *testing.T) {
	dir, main := made(t)
	ledgerd(t, exitUsage, []string{"recover"}, "--data DIR and --reason")
	ledgerd(t, exitUsage, []string{"recover", "--data", dir, "--reason", "x"}, "--checkpoint FILE, or --no-witness")
	ledgerd(t, exitFailed, []string{"recover", "--data", dir, "--reason", "x", "--checkpoint", "/nowhere"}, "/nowhere")
	ledgerd(t, exitFailed, []string{"recover", "--data", dir, "--reason", "x", "--checkpoint", main}, "the only member already", "just start it")
	ledgerd(t, exitOK, []string{"recover", "--help"}, "For one case only", "--no-witness")
	_, release, err := node.Identify(dir)
	if err != nil {
		t.Fatal(err)
	}
	ledgerd(t, exitBusy, []string{"recover", "--data", dir, "--dry-run", "--no-witness"}, "in use")
	if err := release(); err != nil {
		t.Fatal(err)
	}
}
