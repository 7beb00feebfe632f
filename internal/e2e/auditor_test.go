package e2e

import (
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/provledger/provledger/client/lineage"
)

// listener notes what an auditor reports; like testing.T it ends the goroutine at Fatalf.
type listener struct{ heard []string }

func (l *listener) Helper() {}
func (l *listener) Errorf(format string, args ...any) {
	l.heard = append(l.heard, fmt.Sprintf(format, args...))
}
func (l *listener) Fatalf(format string, args ...any) {
	l.Errorf(format, args...)
	runtime.Goexit()
}

// TestAuditorBites falsifies a history in every way that an invariant speaks of and wants the auditor to name it. An auditor that is
// content with everything would make all other tests here worthless.
func TestAuditorBites(t *testing.T) {
	r := dice(t)
	dir := t.TempDir()
	d := start(t, dir, "")
	conn := d.dial()
	h := newHistory()
	a := newAuditor(t, h, conn)
	for range 20 {
		if o := h.appendRaw(t.Context(), conn, newEvent(r)); o.err != nil {
			t.Fatal(o.err)
		}
	}
	if o := h.appendBatchRaw(t.Context(), conn, []*lineage.Event{newEvent(r), newEvent(r), newEvent(r)}); o.err != nil {
		t.Fatal(o.err)
	}
	a.audit(conn)
	if code := d.terminate(); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	// The same key over another history: a copy goes its own way.
	copied := filepath.Join(t.TempDir(), "copy")
	copyDir(t, dir, copied)
	fork := start(t, copied, "")
	forked := newHistory()
	if o := forked.appendRaw(t.Context(), fork.dial(), newEvent(r)); o.err != nil {
		t.Fatal(o.err)
	}
	fork.terminate()
	d = start(t, dir, d.grpc)
	conn = d.dial()
	late, later := h.appendRaw(t.Context(), conn, newEvent(r)), h.appendRaw(t.Context(), conn, newEvent(r))
	if late.err != nil || later.err != nil {
		t.Fatal(late.err, later.err)
	}

	for _, tc := range []struct {
		name, want string
		falsify    func(f *history) // of a copy whose ops may be replaced and changed
	}{
		{"nothing", "", func(*history) {}},
		{"another index", "S1", func(f *history) { f.ops[3].indexes[0]++ }},
		{"another leaf", "S1", func(f *history) { f.ops[3].leaves[0][20] ^= 1 }},
		{"acknowledged, never recorded", "S1", func(f *history) {
			o := *f.ops[3]
			o.events = []*lineage.Event{newEvent(r)}
			f.ops[3] = &o
		}},
		{"another root for a size", "S3", func(f *history) { f.notes[string(forked.ops[0].note)] = true }},
		{"a checkpoint over other entries", "S4", func(f *history) {
			delete(f.notes, string(late.note))
			f.notes[string(forked.ops[0].note)] = true
		}},
		{"order", "S6", func(f *history) {
			x, y := f.ops[3], f.ops[9]
			x.invoked, y.invoked = y.invoked, x.invoked
			x.returned, y.returned = y.returned, x.returned
		}},
		{"a receipt with another path", "S8", func(f *history) {
			m := f.ops[12].receipts[0]
			i := strings.Index(m.Proof, "\n\n") - 20
			m.Proof = m.Proof[:i] + string('A'+('B'-m.Proof[i])&1) + m.Proof[i+1:]
		}},
		{"an entry that nobody sent", "S9", func(f *history) { f.ops = slices.Delete(f.ops, 5, 6) }},
		{"half a batch", "S9", func(f *history) {
			o := f.ops[20]
			o.outcome, o.events = unknown, append(o.events, newEvent(r))
		}},
		{"a refused append that is there", "S10", func(f *history) { f.ops[3].outcome = notApplied }},
	} {
		f := newHistory()
		for note := range h.notes {
			f.notes[note] = true
		}
		for _, o := range h.ops {
			c := *o
			c.indexes, c.leaves, c.receipts = slices.Clone(o.indexes), slices.Clone(o.leaves), nil
			for i := range c.leaves {
				c.leaves[i] = slices.Clone(c.leaves[i])
			}
			for _, m := range o.receipts {
				c.receipts = append(c.receipts, cloneReceipt(m))
			}
			f.ops = append(f.ops, &c)
		}
		tc.falsify(f)
		l := new(listener)
		done := make(chan struct{})
		go func() {
			defer close(done)
			(&auditor{t: l, h: f, vkey: a.vkey, policy: a.policy}).audit(conn)
		}()
		<-done
		heard := strings.Join(l.heard, "\n")
		if tc.want == "" && heard != "" || !strings.Contains(heard, tc.want) {
			t.Errorf("%s: want %q, the auditor said:\n%s", tc.name, tc.want, heard)
		}
	}
}
