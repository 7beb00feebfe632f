package sequencer

import (
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/ledger"
)

// The same event while it is in flight waits for it, and gets its index.
func TestDuplicateInFlight(t *testing.T) {
	r := newRig(t)
	r.must(event())
	for _, f := range []fate{accept, refuseBefore, unknownApplied, unknownLost} {
		release := r.raft.stop()
		first := true
		r.raft.mu.Lock()
		r.raft.fate = func(int) fate {
			if first {
				first = false
				return f
			}
			return accept
		}
		r.raft.mu.Unlock()
		e := event()
		other := *e
		other.RunID = lineage.NewID()
		got := make(chan outcome, 3)
		send := func(e *lineage.Event) { out, err := r.append(e); got <- outcome{e, out, err} }
		n := len(r.raft.proposed())
		go send(e)
		r.wait("the first command", func() bool { return len(r.raft.proposed()) == n+1 })
		go send(e)
		go send(&other)
		time.Sleep(5 * time.Millisecond) // both are held, or will be
		release()
		var recorded, duplicates, conflicts, unknown int
		for range 3 {
			switch o := <-got; {
			case errors.Is(o.err, ErrConflict):
				conflicts++
			case errors.Is(o.err, ErrUnknown):
				unknown++
			case o.err != nil:
				t.Error(o.err)
			case o.out.Recorded[0].Duplicate:
				duplicates++
			default:
				recorded++
			}
		}
		if f == accept || f == refuseBefore {
			// After a refusal any of the three may be first.
			if recorded != 1 || duplicates+conflicts != 2 || conflicts == 0 {
				t.Errorf("fate %d: %d recorded, %d duplicates, %d conflicts", f, recorded, duplicates, conflicts)
			}
		} else if unknown != 1 || recorded+duplicates+conflicts != 2 || f == unknownApplied && recorded != 0 {
			t.Errorf("fate %d: %d unknown, %d recorded, %d duplicates, %d conflicts", f, unknown, recorded, duplicates, conflicts)
		}
		if r.indexOf(e) < 0 {
			t.Error("nowhere")
		}
	}
}

var ErrConflict = ledger.ErrConflict

// Sent again, also to a ledger that was stopped, an event gets its old index; with other content it is refused.
func TestDuplicates(t *testing.T) {
	r := newRig(t)
	all := events(20)
	first := r.must(all...)
	check := func() {
		t.Helper()
		size := first.Tree.Head().Size
		again := r.must(all...)
		for i := range all {
			if a, b := first.Recorded[i], again.Recorded[i]; !b.Duplicate || b.Index != a.Index {
				t.Errorf("event %d: %+v, again %+v", i, a, b)
			}
		}
		// Old and new in one request.
		mixed := r.must(all[3], event(), all[1])
		if m := mixed.Recorded; !m[0].Duplicate || m[1].Duplicate || !m[2].Duplicate || m[0].Index != first.Recorded[3].Index || m[2].Index != first.Recorded[1].Index || m[1].Index < size {
			t.Errorf("mixed: %+v", m)
		}
		// All or nothing.
		other := *all[7]
		other.Documents = []lineage.Document{{MediaType: "application/json", Content: []byte(`{"k":2}`)}}
		fresh := event()
		_, err := r.append(fresh, &other)
		if !errors.Is(err, ErrConflict) || errors.Is(err, ledger.ErrInvalid) || !strings.HasPrefix(err.Error(), "events[1]: ") {
			t.Errorf("other content: %v", err)
		}
		if r.indexOf(fresh) >= 0 {
			t.Error("half of a batch is recorded")
		}
		// Another principal's ids are another's.
		q := request(all[0])
		q.Principal = "local:another"
		out, err := r.Append(t.Context(), q)
		if err != nil || r.verify(q, out) != nil {
			t.Fatal(err, r.verify(q, out))
		}
	}
	check()
	r.reopen()
	q := request(all[0])
	q.Principal = "local:another"
	if out, err := r.Append(t.Context(), q); err != nil || !out.Recorded[0].Duplicate {
		t.Errorf("the other principal's event: %+v, %v", out, err)
	}
	again := r.must(all...)
	for i := range all {
		if !again.Recorded[i].Duplicate || again.Recorded[i].Index != first.Recorded[i].Index {
			t.Errorf("event %d after a restart: %+v", i, again.Recorded[i])
		}
	}
}

// With room for a few ids only, every old event is still recognised, whatever its id, and also in flight.
func TestDedupForgetsNothing(t *testing.T) {
	for _, remember := range []int{2, 8, 9, 64} {
		r := newRigWith(t, remember)
		rng := rand.New(rand.NewPCG(uint64(remember), 3))
		var all []*lineage.Event
		index := map[lineage.ID]uint64{}
		n := 0
		fresh := func() *lineage.Event {
			e := event()
			switch n++; n % 4 {
			case 0: // random, below and above everything
				for i := range e.ID {
					e.ID[i] = byte(rng.Uint32())
				}
			case 1: // late
				e.ID[0], e.ID[1] = 0, 1
			case 2:
				if n == 2 {
					e.ID = lineage.ID{0: 0xff, 1: 0xff, 2: 0xff, 3: 0xff, 4: 0xff, 5: 0xff, 6: 0xff, 7: 0xff, 8: 0xff, 9: 0xff, 10: 0xff, 11: 0xff, 12: 0xff, 13: 0xff, 14: 0xff, 15: 0xff}
				}
			}
			return e
		}
		for round := range 40 {
			var batch []*lineage.Event
			for range 1 + rng.IntN(12) {
				batch = append(batch, fresh())
			}
			var wg sync.WaitGroup
			for range 2 { // twice at once: one of them waits
				wg.Go(func() {
					if out, err := r.append(batch...); err != nil {
						t.Error(err)
					} else if err := r.verify(request(batch...), out); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			for _, e := range batch {
				index[e.ID] = uint64(r.indexOf(e))
			}
			all = append(all, batch...)
			if round%10 == 5 {
				r.reopen()
			}
			e := all[rng.IntN(len(all))]
			if got := r.must(e).Recorded[0]; !got.Duplicate || got.Index != index[e.ID] {
				t.Fatalf("remember %d, round %d: %+v, was at %d", remember, round, got, index[e.ID])
			}
		}
		size := uint64(0)
		for _, e := range all {
			got := r.must(e)
			if !got.Recorded[0].Duplicate || got.Recorded[0].Index != index[e.ID] {
				t.Fatalf("remember %d: %+v, was at %d", remember, got, index[e.ID])
			}
			size = got.Tree.Head().Size
		}
		if size != uint64(len(all))+1 {
			t.Errorf("%d entries for %d events", size, len(all))
		}
		if m := r.m.Entries.Load(); m > size {
			t.Errorf("counted %d entries of %d", m, size)
		}
		r.close()
	}
}

// An event that is in flight is not in the store yet. However many ids are forgotten meanwhile, its own is not.
func TestTrimKeepsWhatIsInFlight(t *testing.T) {
	r := newRigWith(t, 4)
	r.must(events(6)...) // the floor is among these
	low := events(8)
	for i, e := range low {
		e.ID[0], e.ID[15] = 0, byte(i) // below it
	}
	release := r.raft.stop()
	n := len(r.raft.proposed())
	var wg sync.WaitGroup
	send := func(e ...*lineage.Event) {
		wg.Go(func() {
			if _, err := r.append(e...); err != nil {
				t.Error(err)
			}
		})
	}
	send(low...)
	r.wait("a command", func() bool { return len(r.raft.proposed()) == n+1 })
	send(event())
	r.wait("another one, which trims", func() bool { return len(r.raft.proposed()) == n+2 })
	send(low[0])
	send(low[5])
	send(event())
	r.wait("a third, composed after the duplicates were looked up", func() bool { return len(r.raft.proposed()) >= n+3 })
	release()
	wg.Wait()
	if size := r.must(event()).Tree.Head().Size; size != 1+6+8+2+1 {
		t.Errorf("%d entries, want %d: something is recorded twice", size, 1+6+8+2+1)
	}
	for _, e := range low {
		r.indexOf(e)
	}
}

// TestErasedDuplicate: once the body is erased, the leaf alone says whether an event is the same.
func TestErasedDuplicate(t *testing.T) {
	r := newRig(t)
	e := event()
	index := r.must(e).Recorded[0].Index
	old, err := r.l.Entry(ledger.MainLog, index, true)
	if err != nil {
		t.Fatal(err)
	}
	p := &pending{Request: request(e)}
	erased := old
	erased.Body, erased.Erased = nil, true
	got, err := r.same(p, e, erased)
	if err != nil || got.Index != index || !got.Duplicate || got.Body != nil {
		t.Errorf("%+v, %v", got, err)
	}
	other := *e
	other.Job.Name += "x"
	if _, err := r.same(p, &other, erased); !errors.Is(err, ledger.ErrConflict) {
		t.Errorf("another job: %v", err)
	}
	gone := old
	gone.Body = nil
	if _, err := r.same(p, e, gone); !errors.Is(err, ledger.ErrConflict) {
		t.Errorf("a body that is missing and not erased: %v", err)
	}
}
