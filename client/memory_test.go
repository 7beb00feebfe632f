package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/client/receipt"
	"github.com/provledger/provledger/internal/merkle"
	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

// copyLedger closes a ledger on disk, copies its directory, keys and all, and opens both.
func copyLedger(t *testing.T, l *testLedger, dir, twin string) (*testLedger, *testLedger) {
	t.Helper()
	l.close()
	if err := os.CopyFS(twin, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return openLedger(t, nil, dir), openLedger(t, nil, twin)
}

func mustClose(t *testing.T, c *Client) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

// A copied ledger that goes another way under the same key: nothing but the client's memory can tell, and it tells before the first
// operation reports success.
func TestForkIsDetectedAtFirstContact(t *testing.T) {
	for name, grow := range map[string]int{"shorter": 1, "of the same size": 3, "longer": 5} {
		t.Run(name, func(t *testing.T) {
			dir, state := t.TempDir(), t.TempDir()
			l := openLedger(t, nil, dir+"/a")
			o := Options{StateDir: state, Target: "ledger"}
			c := l.dial(o)
			mustAppend(t, c, event("common"))
			mustClose(t, c)
			a, b := copyLedger(t, l, dir+"/a", dir+"/b")
			c = a.dial(o)
			mustAppend(t, c, event("a1"), event("a2"), event("a3"))
			mustClose(t, c)
			stranger := b.dial(Options{})
			for i := range grow {
				mustAppend(t, stranger, event(fmt.Sprint("b", i)))
			}
			before, err := stranger.Checkpoint(t.Context(), "")
			if err != nil {
				t.Fatal(err)
			}

			for op, do := range map[string]func(*Client) error{
				"append": func(c *Client) error { _, err := c.Append(t.Context(), "", event("victim")); return err },
				"batch": func(c *Client) error {
					_, err := c.AppendBatch(t.Context(), "", []*lineage.Event{event("v")})
					return err
				},
				"receipt":    func(c *Client) error { _, _, err := c.Receipt(t.Context(), "", AtIndex(1)); return err },
				"checkpoint": func(c *Client) error { _, err := c.Checkpoint(t.Context(), ""); return err },
				"find": func(c *Client) error {
					return drain(c.Find(t.Context(), "", Query{Digests: []lineage.Digest{digest("common")}}))
				},
			} {
				err := do(b.dial(o))
				u, ok := errors.AsType[*UntrustedError](err)
				want := ErrFork
				if grow < 3 {
					want = ErrRollback
				}
				if !ok || !errors.Is(err, want) || len(u.Evidence) != 2 {
					t.Errorf("%s: %v", op, err)
				}
			}
			after, err := stranger.Checkpoint(t.Context(), "")
			if err != nil || after.Size != before.Size {
				t.Errorf("the fork grew from %d to %d: an append went through before the check (%v)", before.Size, after.Size, err)
			}
			// The memory still knows the true ledger.
			c = a.dial(o)
			mustAppend(t, c, event("a4"))
			mustClose(t, c)
		})
	}
}

// The fork happens while the process runs: within the check interval it is found by the next operation, otherwise by Close.
func TestForkIsDetectedLater(t *testing.T) {
	for name, interval := range map[string]time.Duration{"by the next operation": time.Nanosecond, "by Close": time.Hour} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			l := openLedger(t, nil, dir+"/a")
			mustAppend(t, l.dial(Options{}), event("common"))
			a, b := copyLedger(t, l, dir+"/a", dir+"/b")
			c := a.dial(Options{StateDir: t.TempDir(), CheckInterval: interval})
			mustAppend(t, c, event("a1"))
			sb := b.dial(Options{})
			mustAppend(t, sb, event("b1"), event("b2"), event("b3"))
			// The same client is led to the fork from now on.
			c.rpc = sb.rpc
			var err error
			if _, err = c.Append(t.Context(), "", event("victim")); interval == time.Hour {
				if err != nil {
					t.Fatalf("within the documented window nothing is noticed yet: %v", err)
				}
				err = c.Close()
			}
			if u, ok := errors.AsType[*UntrustedError](err); !ok || !errors.Is(err, ErrFork) || len(u.Evidence) != 2 {
				t.Fatalf("got %v, want a fork with its evidence", err)
			}
			if interval < time.Hour {
				if _, err := c.Append(t.Context(), "", event("again")); !errors.Is(err, ErrFork) {
					t.Errorf("after a fork the client went on: %v", err)
				}
			}
		})
	}
}

// What one receipt's own proof shows needs no further proof: a lone writer causes no consistency proofs at all.
func TestLoneWriterNeedsNoProofs(t *testing.T) {
	proofs := 0
	c := newLedger(t).dial(Options{StateDir: t.TempDir(), CheckInterval: time.Nanosecond}, mangle(func(method string, _ any) {
		if method == "GetConsistencyProof" {
			proofs++
		}
	}))
	for i := range 50 {
		mustAppend(t, c, event(fmt.Sprint(i)))
	}
	if _, err := c.AppendBatch(t.Context(), "", []*lineage.Event{event("a"), event("b")}); err != nil {
		t.Fatal(err)
	}
	mustClose(t, c)
	if proofs != 0 {
		t.Errorf("%d consistency proofs were fetched", proofs)
	}
}

func TestTargetPinsTheLedger(t *testing.T) {
	state := t.TempDir()
	o := Options{StateDir: state, Target: "/data/ledger"}
	first, second := newLedger(t), newLedger(t)
	c := first.dial(o)
	mustAppend(t, c, event("x"))
	mustClose(t, c)

	c = second.dial(o)
	_, err := c.Append(t.Context(), "", event("y"))
	if !errors.Is(err, ErrOtherLedger) || !strings.Contains(err.Error(), c.memory.pinPath(o.Target)) {
		t.Fatalf("another ledger under the same name: %v; want advice that names the file", err)
	}
	// Another log of the other ledger, which was never seen, is no way around.
	if _, err := second.dial(Options{}).CreateLog(t.Context(), "side"); err != nil {
		t.Fatal(err)
	}
	if _, err := second.dial(o).Append(t.Context(), "side", event("y")); !errors.Is(err, ErrOtherLedger) {
		t.Fatalf("another log of another ledger: %v", err)
	}

	accept := o
	accept.AcceptNew = true
	c = second.dial(accept)
	mustAppend(t, c, event("y"))
	mustClose(t, c)
	c = second.dial(o) // now it is the remembered one
	mustAppend(t, c, event("z"))
	mustClose(t, c)
	if _, err := first.dial(o).Append(t.Context(), "", event("y")); !errors.Is(err, ErrOtherLedger) {
		t.Fatalf("the old ledger after the new one was accepted: %v", err)
	}
	// Following the advice works too.
	if err := os.Remove(c.memory.pinPath(o.Target)); err != nil {
		t.Fatal(err)
	}
	mustAppend(t, first.dial(o), event("x2"))
}

func TestTrustPolicy(t *testing.T) {
	l, other := newLedger(t), newLedger(t)
	info, err := l.dial(Options{}).Log(t.Context(), "main")
	if err != nil {
		t.Fatal(err)
	}
	policy, err := receipt.PolicyFor(info.VKey)
	if err != nil {
		t.Fatal(err)
	}
	mustAppend(t, l.dial(Options{Trust: policy}), event("x"))
	_, err = other.dial(Options{Trust: policy}).Append(t.Context(), "", event("x"))
	if _, ok := errors.AsType[*UntrustedError](err); !ok || !errors.Is(err, ErrNotApplied) {
		t.Errorf("a ledger whose key is not pinned: %v", err)
	}
}

// A log that shows another key under the remembered origin.
func TestOtherKey(t *testing.T) {
	state := t.TempDir()
	l, other := newLedger(t), newLedger(t)
	c := l.dial(Options{StateDir: state, Target: "a"})
	mustAppend(t, c, event("x"))
	mustClose(t, c)
	foreign, err := other.dial(Options{}).Log(t.Context(), "main")
	if err != nil {
		t.Fatal(err)
	}
	c = l.dial(Options{StateDir: state, Target: "b"}, mangle(func(_ string, reply any) {
		if m, ok := reply.(*ledgerv1.GetLogResponse); ok {
			m.Log.Vkey = foreign.VKey
		}
	}))
	if _, err := c.Append(t.Context(), "", event("y")); !errors.Is(err, ErrOtherKey) {
		t.Errorf("got %v", err)
	}
}

func TestRemembered(t *testing.T) {
	l := newLedger(t)
	o := Options{StateDir: t.TempDir(), Target: "here"}
	c := l.dial(o)
	if _, ok, err := c.Remembered(""); ok || err != nil {
		t.Fatalf("before the first contact: %v, %v", ok, err)
	}
	r := mustAppend(t, c, event("x"), event("y"))
	mustClose(t, c)
	cp, ok, err := l.dial(o).Remembered("main")
	if err != nil || !ok || cp.Size != r.TreeSize {
		t.Fatalf("%+v, %v, %v; want size %d", cp, ok, err, r.TreeSize)
	}
	// A damaged memory is not taken for an empty one.
	path := c.memory.recordPath(cp.Origin)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]string{
		"empty": "", "cut short": string(good[:len(good)/2]), "of another log": strings.Replace(string(good), "/main", "/mein", 1),
		"with another root": strings.Replace(string(good), `\n3\n`, `\n2\n`, 1),
	} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := l.dial(o).Append(t.Context(), "", event("z")); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("memory %s: %v; want an error that names the file", name, err)
		}
	}
	readOnly := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(readOnly, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := l.dial(Options{StateDir: filepath.Join(readOnly, "x")}).Append(t.Context(), "", event("z")); !errors.Is(err, ErrNotApplied) {
		t.Errorf("a state directory that cannot be made: %v; want an error before anything is recorded", err)
	}
}

// What is remembered of a log counts wherever the log is met again.
func TestExtendedUnderAnotherName(t *testing.T) {
	l := newLedger(t)
	o := Options{StateDir: t.TempDir(), Target: "here"}
	c := l.dial(o)
	if _, ok, err := c.Extended(t.Context(), ""); ok || err != nil {
		t.Fatalf("nothing was remembered yet: %v, %v", ok, err)
	}
	if _, err := c.Append(t.Context(), "", event("a")); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	want, _, err := l.dial(o).Remembered("")
	if err != nil {
		t.Fatal(err)
	}
	o.Target = "there"
	moved := l.dial(o)
	if _, err := moved.Append(t.Context(), "", event("b")); err != nil {
		t.Fatal(err)
	}
	if got, ok, err := moved.Extended(t.Context(), ""); !ok || err != nil || got.Origin != want.Origin || got.Size != want.Size || got.Root != want.Root {
		t.Errorf("met again: %+v, %v, %v; want %+v", got, ok, err, want)
	}
}

// Processes of one user share the memory. However their updates fall, it only moves forward.
func TestMemoryNeverGoesBack(t *testing.T) {
	l := newLedger(t)
	o := Options{StateDir: t.TempDir(), Target: "shared", CheckInterval: time.Nanosecond}
	stop := make(chan struct{})
	var watcher sync.WaitGroup
	watcher.Go(func() {
		c := l.dial(o)
		for last := uint64(0); ; {
			cp, ok, err := c.Remembered("")
			if err != nil {
				t.Error(err)
				return
			}
			if ok && cp.Size < last {
				t.Errorf("the memory went from %d back to %d", last, cp.Size)
				return
			}
			last = max(last, cp.Size)
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Microsecond):
			}
		}
	})
	var wg sync.WaitGroup
	for p := range 4 {
		wg.Go(func() {
			for i := range 3 {
				c := l.dial(o)
				for j := range 5 {
					if _, err := c.Append(t.Context(), "", event(fmt.Sprint(p, i, j))); err != nil {
						t.Error(err)
					}
				}
				if err := c.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	watcher.Wait()
	cp, ok, err := l.dial(o).Remembered("")
	if err != nil || !ok || cp.Size != 61 {
		t.Errorf("in the end size %d is remembered (%v, %v), want 61", cp.Size, ok, err)
	}
}

// A process whose memory was overtaken by one that saw a fork must not put its own word in place of it.
func TestForkBetweenProcesses(t *testing.T) {
	dir := t.TempDir()
	l := openLedger(t, nil, dir+"/a")
	o := Options{StateDir: t.TempDir(), Target: "same"}
	first := l.dial(o)
	mustAppend(t, first, event("common"))
	mustClose(t, first)
	a, b := copyLedger(t, l, dir+"/a", dir+"/b")
	ca, cb := a.dial(o), b.dial(o)
	mustAppend(t, ca, event("a1"))
	mustAppend(t, cb, event("b1"), event("b2")) // both rest on what is remembered of "common"
	mustClose(t, ca)
	if err := cb.Close(); !errors.Is(err, ErrFork) {
		t.Fatalf("got %v, want a fork", err)
	}
	if cp, _, err := a.dial(o).Remembered(""); err != nil || cp.Size != 3 {
		t.Errorf("size %d is remembered (%v), want that of the first, 3", cp.Size, err)
	}
}

func TestDefaultStateDir(t *testing.T) {
	t.Setenv("XDG_STATE_HOME", "/state")
	if dir, err := DefaultStateDir(); err != nil || dir != filepath.Join("/state", "provledger") {
		t.Errorf("%q, %v", dir, err)
	}
	t.Setenv("XDG_STATE_HOME", "relative") // invalid by the specification
	t.Setenv("HOME", "/home/me")
	if dir, err := DefaultStateDir(); err != nil || strings.Contains(dir, "relative") {
		t.Errorf("%q, %v", dir, err)
	}
	t.Setenv("HOME", "")
	c := newLedger(t).dial(Options{})
	c.memory = newMemory("")
	if c.memory.err != nil {
		if _, err := c.Append(t.Context(), "", event("x")); err == nil {
			t.Error("a memory that is silently off detects nothing")
		}
	}
}

// The files are for people too.
func TestMemoryFiles(t *testing.T) {
	l := newLedger(t)
	c := l.dial(Options{StateDir: t.TempDir(), Target: "here"})
	mustAppend(t, c, event("x"))
	mustClose(t, c)
	info, err := c.Log(t.Context(), "")
	if status.Code(err) != codes.OK {
		t.Fatal(err)
	}
	var r record
	b, err := os.ReadFile(c.memory.recordPath(info.Origin))
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err != nil || r.Origin != info.Origin || r.VKey != info.VKey || !strings.HasPrefix(r.Checkpoint, info.Origin+"\n2\n") {
		t.Errorf("%+v, %v", r, err)
	}
	left, err := filepath.Glob(filepath.Join(c.memory.dir, "*", ".new-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("temporary files are left: %v, %v", left, err)
	}
}

// A server that proves nothing and shows an older tree instead.
func TestOldTreeAtFirstContact(t *testing.T) {
	l := newLedger(t)
	o := Options{StateDir: t.TempDir(), Target: "here"}
	c := l.dial(o)
	old, err := c.Checkpoint(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	mustAppend(t, c, event("x"))
	mustClose(t, c)
	c = l.dial(o, mangle(func(_ string, reply any) {
		if m, ok := reply.(*ledgerv1.GetConsistencyProofResponse); ok {
			m.Checkpoint, m.SecondSize, m.Hashes = old.Note, old.Size, nil
		}
	}))
	if _, err := c.Append(t.Context(), "", event("y")); !errors.Is(err, ErrRollback) {
		t.Errorf("got %v, want a rollback", err)
	}
}

// Another process was faster and further: its larger tree stays, even if this process has not reached it yet.
func TestLargerTreeStays(t *testing.T) {
	l := newLedger(t)
	o := Options{StateDir: t.TempDir(), Target: "here"}
	slow, fast := l.dial(o), l.dial(o)
	mustAppend(t, slow, event("x"))
	mustAppend(t, fast, event("y"), event("z"))
	mustClose(t, fast)
	st := slow.logs["main"]
	if err := slow.remember(t.Context(), st); err != nil {
		t.Fatal(err)
	}
	if st.seen().size != 4 {
		t.Errorf("seen is %d: the tree of the other process was not taken over", st.seen().size)
	}
	st.history = newHistory(point{2, merkle.Hash{1}, []byte("overtaken meanwhile")})
	if err := slow.remember(t.Context(), st); err != nil {
		t.Fatal(err)
	}
	if cp, _, err := slow.Remembered(""); err != nil || cp.Size != 4 {
		t.Errorf("size %d is remembered (%v), want 4", cp.Size, err)
	}
}

// What a process that was killed while writing left is removed by the next one; what is being written now is not.
func TestStaleFilesAreRemoved(t *testing.T) {
	dir := t.TempDir()
	for name, age := range map[string]time.Duration{".new-old": 2 * staleAfter, ".new-now": 0, "other": 2 * staleAfter} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, time.Time{}, time.Now().Add(-age)); err != nil {
			t.Fatal(err)
		}
	}
	if err := writeJSON(filepath.Join(dir, "x.json"), 1); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if got := strings.Join(names, " "); got != ".new-now other x.json" {
		t.Error(got)
	}
}
