package sequencer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/provledger/provledger/internal/ledger"
)

// passages collects what a sequencer tells.
type passages struct {
	mu      sync.Mutex
	passed  []Passage
	commits []time.Duration
}

// follow has r tell from the next request on; there must be none now.
func (x *passages) follow(r *rig) {
	r.o.Passed = func(_ context.Context, p Passage) {
		x.mu.Lock()
		defer x.mu.Unlock()
		x.passed = append(x.passed, p)
	}
	r.o.Committed = func(d time.Duration) {
		x.mu.Lock()
		defer x.mu.Unlock()
		x.commits = append(x.commits, d)
	}
}

// last returns the newest passage, of n that there have to be.
func (x *passages) last(t *testing.T, n int) Passage {
	t.Helper()
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.passed) != n {
		t.Fatalf("%d passages were told, want %d", len(x.passed), n)
	}
	return x.passed[n-1]
}

func TestPassage(t *testing.T) {
	r := newRig(t)
	var x passages
	x.follow(r)

	r.must(event(), event())
	p := x.last(t, 1)
	if p.Log != ledger.MainLog || p.Events != 2 || p.Attempts != 1 || p.Err != nil {
		t.Errorf("told %+v", p)
	}
	for _, step := range [][2]time.Time{{p.Queued, p.Composed}, {p.Composed, p.Decided}, {p.Decided, p.Done}} {
		if step[0].IsZero() || step[1].IsZero() || step[1].Before(step[0]) {
			t.Errorf("the stations are not in order: %+v", p)
		}
	}
	if len(x.commits) != 1 || x.commits[0] != p.Decided.Sub(p.Composed) {
		t.Errorf("commits took %v, this one %v", x.commits, p.Decided.Sub(p.Composed))
	}

	// Refused once: composed twice, and the times are those of the second command.
	r.raft.mu.Lock()
	first := len(r.raft.commands)
	r.raft.fate = func(n int) fate {
		if n == first {
			return refuseAfter
		}
		return accept
	}
	r.raft.mu.Unlock()
	r.must(event())
	if p := x.last(t, 2); p.Attempts != 2 || p.Decided.Before(p.Composed) {
		t.Errorf("a request that was refused once passed as %+v", p)
	}
	if got := r.m.RefusedBy[ledger.RefusedAfter].Load(); got != 1 || r.m.Refused.Load() != 1 {
		t.Errorf("%d refusals for a wrong root are counted, %d in all", got, r.m.Refused.Load())
	}

	// All known already: it is in no command.
	e := event()
	r.must(e)
	r.must(e)
	if p := x.last(t, 4); p.Attempts != 0 || !p.Composed.IsZero() || !p.Decided.IsZero() || p.Err != nil {
		t.Errorf("a duplicate passed as %+v", p)
	}
	if n := r.m.InFlight.Load(); n != 0 {
		t.Errorf("%d commands are in flight", n)
	}
}

// Who is turned away is counted under the reason, and told with the error.
func TestRejections(t *testing.T) {
	r := newRig(t)
	var x passages
	x.follow(r)
	want := map[Reason]uint64{}
	told := 0
	rejected := func(why Reason) {
		t.Helper()
		_, err := r.append(event())
		if err == nil {
			t.Fatalf("%v: admitted", why)
		}
		want[why]++
		told++
		if p := x.last(t, told); p.Err != err || p.Attempts != 0 {
			t.Errorf("%v: told %+v, answered %v", why, p, err)
		}
		for i := range reasons {
			if got := r.m.Rejected[i].Load(); got != want[i] {
				t.Errorf("after %v: %d rejections by %v, want %d", why, got, i, want[i])
			}
		}
	}
	r.admit = fmt.Errorf("%w: the disk is full", ledger.ErrOverloaded)
	rejected(ReasonAdmission)
	r.admit = nil

	r.queued.Add(maxQueuedBytes)
	rejected(ReasonQueue)
	if r.QueuedBytes() != maxQueuedBytes {
		t.Errorf("%d bytes are said to wait", r.QueuedBytes())
	}
	r.queued.Add(-maxQueuedBytes)

	r.distrust.Store(&distrust{r.raft.Term(), errors.New("wrong roots")})
	rejected(ReasonDistrust)
	r.distrust.Store(nil)

	r.reopen() // what is known of the key is forgotten
	x, want, told = passages{}, map[Reason]uint64{}, 0
	x.follow(r)
	r.vkey = "another key of "
	rejected(ReasonKey)
	r.vkey = "vkey of "
}

// When nobody wants to know, nothing is timed and nothing allocated.
func TestUnfollowedCostsNothing(t *testing.T) {
	s := &Sequencer{m: new(Metrics)}
	f := &flight{parts: []part{{p: &pending{}}, {p: &pending{}}}}
	if n := testing.AllocsPerRun(100, func() {
		s.depart(f)
		s.arrive(f)
		f.decided()
	}); n != 0 {
		t.Errorf("%v allocations a command", n)
	}
	if !f.departed.IsZero() || !f.arrived.IsZero() || f.parts[0].p.Stations != (Stations{}) {
		t.Errorf("somebody looked at the clock: %+v", f)
	}
	if s.m.Commands.Load() == 0 || s.m.InFlight.Load() != 0 {
		t.Error("commands are not counted")
	}
}
