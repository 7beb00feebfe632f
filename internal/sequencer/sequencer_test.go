package sequencer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/ledger"
)

// outcome is a request and its reply.
type outcome struct {
	e   *lineage.Event
	out *Result
	err error
}

// load appends from several goroutines and returns what each request got.
func (r *rig) load(goroutines, requests int) []outcome {
	var mu sync.Mutex
	var all []outcome
	var wg sync.WaitGroup
	for range goroutines {
		wg.Go(func() {
			for range requests {
				e := event()
				out, err := r.append(e)
				mu.Lock()
				all = append(all, outcome{e, out, err})
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return all
}

// account holds what every caller was told to what is stored.
func (r *rig) account(all []outcome) {
	r.t.Helper()
	at := map[uint64]bool{}
	for _, o := range all {
		where := r.indexOf(o.e)
		switch {
		case o.err == nil:
			if err := r.verify(request(o.e), o.out); err != nil {
				r.t.Error(err)
			}
			if got := o.out.Recorded[0].Index; int(got) != where || at[got] {
				r.t.Errorf("answered index %d, is at %d, given before: %v", got, where, at[got])
			} else {
				at[got] = true
			}
		case errors.Is(o.err, ErrNotApplied):
			if errors.Is(o.err, ErrUnknown) || where >= 0 {
				r.t.Errorf("%v, and it is at %d (S10)", o.err, where)
			}
		case errors.Is(o.err, ErrUnknown):
			// The same ids again get the one true answer.
			out := r.must(o.e)
			if got := out.Recorded[0]; got.Duplicate != (where >= 0) || where >= 0 && int(got.Index) != where {
				r.t.Errorf("unknown was at %d; sent again: %+v", where, got)
			}
		default:
			r.t.Error(o.err)
		}
	}
}

// overtake is a delay that lets answers overtake each other.
func overtake(n int) time.Duration { return time.Duration(n*2654435761>>7&511) * time.Microsecond }

// TestRefusalsAreNotNoticed: stale commands and slow, overtaking answers are the sequencer's business. A caller gets its index.
func TestRefusalsAreNotNoticed(t *testing.T) {
	r := newRig(t)
	r.raft.mu.Lock()
	r.raft.fate = func(n int) fate {
		if n%3 == 1 {
			return refuseBefore
		}
		if n == 5 { // one wrong root is an accident
			return refuseAfter
		}
		return accept
	}
	r.raft.delay = overtake
	r.raft.mu.Unlock()
	all := r.load(16, 30)
	for _, o := range all {
		if o.err != nil {
			t.Fatal(o.err)
		}
	}
	r.account(all)
	if r.m.Refused.Load() == 0 || r.m.Recomposed.Load() == 0 {
		t.Error("nothing was refused: this test tests nothing")
	}
	if got, want := r.m.Entries.Load(), uint64(len(all)); got != want {
		t.Errorf("counted %d entries, want %d", got, want)
	}
}

// TestEveryFate mixes everything that can happen to a command, under load.
func TestEveryFate(t *testing.T) {
	seeds := uint64(6)
	if testing.Short() {
		seeds = 2
	}
	for seed := range seeds {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			r := newRig(t)
			rng := rand.New(rand.NewPCG(seed, 2))
			r.raft.mu.Lock()
			r.raft.fate = func(int) fate {
				if f := fate(rng.IntN(12)); f != refuseAfter && f <= unknownLost {
					return f
				}
				if rng.IntN(10) == 0 {
					r.raft.term.Add(1)
				}
				return accept
			}
			r.raft.delay = overtake
			r.raft.mu.Unlock()
			all := r.load(12, 25)
			r.raft.mu.Lock()
			r.raft.fate = nil
			r.raft.mu.Unlock()
			r.account(all)
			failed := 0
			for _, o := range all {
				if o.err != nil {
					failed++
				}
			}
			if failed == 0 || failed == len(all) {
				t.Errorf("%d of %d failed: this test tests nothing", failed, len(all))
			}
		})
	}
}

// After an outcome that is unknown nothing is composed before a barrier says what was applied.
func TestBarrierAfterUnknown(t *testing.T) {
	r := newRig(t)
	r.must(event())
	barriers := r.raft.barriers.Load()
	r.must(event())
	if n := r.raft.barriers.Load(); n != barriers {
		t.Errorf("%d barriers although nothing happened", n-barriers)
	}
	r.raft.mu.Lock()
	r.raft.fate = func(n int) fate {
		if n == 3 {
			return unknownApplied
		}
		return accept
	}
	r.raft.mu.Unlock()
	e := event()
	if _, err := r.append(e); !errors.Is(err, ErrUnknown) {
		t.Fatal(err)
	}
	if got := r.must(e); !got.Recorded[0].Duplicate {
		t.Error("an event is recorded twice")
	}
	if n := r.raft.barriers.Load(); n != barriers+1 {
		t.Errorf("%d barriers after an unknown outcome", n-barriers)
	}
	// A new term also begins with one.
	r.raft.term.Add(1)
	r.must(event())
	if n := r.raft.barriers.Load(); n != barriers+2 {
		t.Errorf("%d barriers after a change of term", n-barriers-1)
	}
}

// Who leaves before its request is in a command hears that it never will be; later, that nobody knows.
func TestCallersLeave(t *testing.T) {
	r := newRig(t)
	r.must(event())
	release := r.raft.stop()
	n := len(r.raft.proposed())
	flying, waiting := event(), event()
	ctx, leave := context.WithCancel(t.Context())
	got := make(chan outcome, 2)
	send := func(e *lineage.Event) { out, err := r.Append(ctx, request(e)); got <- outcome{e, out, err} }
	go send(flying)
	r.wait("a command", func() bool { return len(r.raft.proposed()) == n+1 })
	// Three more commands fill the pipe: what comes now waits.
	for i := range maxInFlight - 1 {
		go func() {
			if _, err := r.append(event()); err != nil {
				t.Error(err)
			}
		}()
		r.wait("a command", func() bool { return len(r.raft.proposed()) == n+2+i })
	}
	held := make(chan error, 1)
	heldCtx, leaveHeld := context.WithCancel(t.Context())
	go func() { _, err := r.Append(heldCtx, request(flying)); held <- err }() // a duplicate in flight
	go send(waiting)
	r.wait("the requests in line", func() bool { return r.queued.Load() == int64(400*(maxInFlight+2)) })
	time.Sleep(5 * time.Millisecond)
	leave()
	for range 2 {
		o := <-got
		want := ErrUnknown
		if o.e == waiting {
			want = ErrNotApplied
		}
		if !errors.Is(o.err, want) || !errors.Is(o.err, context.Canceled) || errors.Is(o.err, ErrNotApplied) && errors.Is(o.err, ErrUnknown) {
			t.Errorf("%v, want %v", o.err, want)
		}
	}
	leaveHeld()
	if err := <-held; !errors.Is(err, ErrNotApplied) {
		t.Errorf("a request that waits for its duplicate: %v", err)
	}
	release()
	r.must(event())
	if r.indexOf(waiting) >= 0 || r.indexOf(flying) < 0 {
		t.Errorf("waiting is at %d, flying at %d", r.indexOf(waiting), r.indexOf(flying))
	}
	if _, err := r.Append(ctx, request(event())); !errors.Is(err, ErrNotApplied) {
		t.Errorf("with an ended context: %v", err)
	}
}

// A refused command's requests are in no command: their callers may leave.
func TestCallerLeavesARefusedCommand(t *testing.T) {
	r := newRig(t)
	var on atomic.Bool
	r.raft.mu.Lock()
	r.raft.fate = func(int) fate {
		if on.Load() {
			return refuseBefore
		}
		return accept
	}
	r.raft.mu.Unlock()
	on.Store(true)
	if _, err := r.append(event()); !errors.Is(err, ErrNotApplied) {
		t.Errorf("refused for ever: %v", err)
	}
	if n := r.m.Recomposed.Load(); n != maxRecompose {
		t.Errorf("composed %d times again", n)
	}
	on.Store(false)
	r.must(event())
}

// Close answers everybody, with the truth.
func TestCloseUnderLoad(t *testing.T) {
	for round := range 8 {
		r := newRig(t)
		r.raft.mu.Lock()
		r.raft.delay = func(int) time.Duration { return 200 * time.Microsecond }
		r.raft.mu.Unlock()
		var mu sync.Mutex
		var all []outcome
		var wg sync.WaitGroup
		for range 12 {
			wg.Go(func() {
				for {
					e := event()
					out, err := r.append(e)
					mu.Lock()
					all = append(all, outcome{e, out, err})
					mu.Unlock()
					if err != nil {
						return
					}
				}
			})
		}
		wg.Go(func() {
			for i := 0; ; i++ {
				if _, err := r.CreateLog(t.Context(), fmt.Sprint("log-", i), testPrincipal, lineage.AuthnOSUser); err != nil {
					if !errors.Is(err, ErrNotApplied) {
						t.Error(err)
					}
					return
				}
			}
		})
		time.Sleep(time.Duration(round) * 2 * time.Millisecond)
		r.Close()
		wg.Wait()
		for _, o := range all {
			if o.err != nil && !errors.Is(o.err, ErrNotApplied) {
				t.Error(o.err)
			}
		}
		r.account(all)
		r.raft.close()
		if err := r.l.Close(context.Background()); err != nil {
			t.Error(err)
		}
		r.Sequencer = nil
	}
}

func TestOverload(t *testing.T) {
	r := newRig(t)
	r.must(event())
	release := r.raft.stop()
	big := func(size int) Request { q := request(event()); q.Size = size; return q }
	got := make(chan error, 1)
	go func() { _, err := r.Append(t.Context(), big(maxQueuedBytes-10)); got <- err }()
	r.wait("the large request", func() bool { return r.queued.Load() > 0 })
	if _, err := r.Append(t.Context(), big(11)); !errors.Is(err, ledger.ErrOverloaded) {
		t.Errorf("beyond the bound: %v", err)
	}
	release()
	if err := <-got; err != nil {
		t.Error(err)
	}
	r.must(event())
	// A caller that has left still takes its room until its request is looked at.
	release = r.raft.stop()
	n := len(r.raft.proposed())
	for i := range maxInFlight {
		go func() { _, _ = r.append(event()) }()
		r.wait("a command", func() bool { return len(r.raft.proposed()) == n+1+i })
	}
	ctx, leave := context.WithCancel(t.Context())
	go func() { _, err := r.Append(ctx, big(maxQueuedBytes-5000)); got <- err }()
	r.wait("the large request", func() bool { return r.queued.Load() > 10000 })
	leave()
	if err := <-got; !errors.Is(err, ErrNotApplied) {
		t.Error(err)
	}
	if _, err := r.Append(t.Context(), big(6000)); !errors.Is(err, ledger.ErrOverloaded) {
		t.Errorf("the room of one who left is given away: %v", err)
	}
	release()
	r.wait("the room", func() bool { return r.queued.Load() == 0 })
	r.admit = fmt.Errorf("%w: the disk is nearly full", ledger.ErrOverloaded)
	if _, err := r.append(event()); !errors.Is(err, ledger.ErrOverloaded) {
		t.Errorf("not admitted: %v", err)
	}
	if _, err := r.CreateLog(t.Context(), "x", testPrincipal, 0); !errors.Is(err, ledger.ErrOverloaded) {
		t.Errorf("not admitted: %v", err)
	}
	r.admit = nil
	r.must(event())
}

func TestInvalid(t *testing.T) {
	r := newRig(t)
	size := r.must(event()).Tree.Head().Size
	one := event()
	twice := *event()
	twice.ID = one.ID
	noID := event()
	noID.ID = lineage.ID{}
	control := event()
	control.Kind, control.Action = lineage.KindControl, uint8(lineage.ControlPrincipal)
	with := func(f func(q *Request)) Request { q := request(event()); f(&q); return q }
	long := strings.Repeat("p", lineage.MaxPrincipal+1)
	for name, c := range map[string]struct {
		q     Request
		field string
		class error
	}{
		"no events":         {Request{Log: ledger.MainLog, Principal: testPrincipal}, "", ledger.ErrInvalid},
		"too many":          {request(events(ledger.MaxCommandEntries + 1)...), "", ledger.ErrInvalid},
		"id twice":          {request(one, event(), &twice), "events[2].event_id", ledger.ErrInvalid},
		"no id":             {request(noID), "event_id", ledger.ErrInvalid},
		"no id, of several": {request(event(), noID), "events[1].event_id", ledger.ErrInvalid},
		"control":           {request(control), "action", ledger.ErrInvalid},
		"no principal":      {with(func(q *Request) { q.Principal = "" }), "principal", ledger.ErrInvalid},
		"long principal":    {with(func(q *Request) { q.Principal = long }), "principal", ledger.ErrInvalid},
		"odd principal":     {with(func(q *Request) { q.Principal = "a\nb" }), "principal", ledger.ErrInvalid},
		"bad principal":     {with(func(q *Request) { q.Principal = "a\xff" }), "principal", ledger.ErrInvalid},
		"unknown authn":     {with(func(q *Request) { q.Authn = 200 }), "authn", ledger.ErrInvalid},
		"unknown log":       {with(func(q *Request) { q.Log = 77 }), "", ledger.ErrNotFound},
	} {
		_, err := r.Append(t.Context(), c.q)
		f, _ := errors.AsType[*lineage.FieldError](err)
		if !errors.Is(err, c.class) || c.field != "" && (f == nil || f.Path != c.field) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := r.CreateLog(t.Context(), "no spaces", testPrincipal, 0); !errors.Is(err, ledger.ErrInvalid) {
		t.Errorf("log name: %v", err)
	}
	if _, err := r.CreateLog(t.Context(), "x", long, 0); !errors.Is(err, ledger.ErrInvalid) {
		t.Errorf("creator: %v", err)
	}
	if got := r.must(event()).Tree.Head().Size; got != size+1 {
		t.Errorf("%d entries came of invalid requests", got-size-1)
	}
}

// wide is an event whose leaf is much larger than the event: many short names.
func wide(references int) *lineage.Event {
	e := event()
	e.References = nil
	for i := range references {
		e.References = append(e.References, lineage.Reference{Role: lineage.Input, Kind: lineage.Dataset, Known: lineage.NameOnly, Name: lineage.Name{Namespace: "n", Name: fmt.Sprint(i)}})
	}
	return e
}

// A command never exceeds what may be in the log, whatever the events grow to; the fake proposer sees to that.
func TestCommandSize(t *testing.T) {
	r := newRig(t)
	wideEvents := func(n int) (all []*lineage.Event) {
		for range n {
			all = append(all, wide(900))
		}
		return all
	}
	_, err := r.append(wideEvents(180)...)
	if f, _ := errors.AsType[*lineage.FieldError](err); !errors.Is(err, ledger.ErrInvalid) || f == nil || f.Path != "events" {
		t.Errorf("more than fits: %v", err)
	}
	release := r.raft.stop()
	n := len(r.raft.proposed())
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = r.append(event()) })
	r.wait("a command", func() bool { return len(r.raft.proposed()) == n+1 })
	for range 3 { // any two are too much for one command
		q := request(wideEvents(90)...)
		q.Size = 1000 // so that size as counted by the sender does not part them
		wg.Go(func() {
			if out, err := r.Append(t.Context(), q); err != nil {
				t.Error(err)
			} else if err := r.verify(q, out); err != nil {
				t.Error(err)
			}
		})
	}
	r.wait("the requests in line", func() bool { return r.queued.Load() >= 3400 })
	release()
	wg.Wait()
	r.must(event())
}

// A command for more logs than a replica reads would end every node.
func TestManyLogs(t *testing.T) {
	const logs = ledger.MaxSections + 20
	r := newRig(t)
	var numbers []uint32
	for i := range logs {
		g, err := r.CreateLog(t.Context(), fmt.Sprint("log-", i), testPrincipal, lineage.AuthnOSUser)
		if err != nil {
			t.Fatal(err)
		}
		numbers = append(numbers, g.Number)
	}
	release := r.raft.stop()
	n := len(r.raft.proposed())
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = r.append(event()) })
	r.wait("a command", func() bool { return len(r.raft.proposed()) == n+1 })
	r.raft.mu.Lock()
	r.raft.delay = func(int) time.Duration { return time.Millisecond }
	r.raft.mu.Unlock()
	for _, log := range numbers {
		wg.Go(func() {
			q := request(event())
			q.Log, q.Size = log, 1
			if out, err := r.Append(t.Context(), q); err != nil {
				t.Error(err)
			} else if err := r.verify(q, out); err != nil {
				t.Error(err)
			}
		})
	}
	r.wait("the requests in line", func() bool { return r.queued.Load() >= logs })
	release()
	wg.Wait()
}

// Two wrong roots in a term: this node's arithmetic is not to be trusted. It gives up leadership; a sole voter cannot, and refuses
// appends until the term ends.
func TestDistrust(t *testing.T) {
	r := newRig(t)
	var bad atomic.Int32
	var lost atomic.Bool
	r.raft.mu.Lock()
	r.raft.fate = func(int) fate {
		if lost.CompareAndSwap(true, false) {
			return unknownLost
		}
		if bad.Add(-1) >= 0 {
			return refuseAfter
		}
		return accept
	}
	r.raft.mu.Unlock()
	bad.Store(1)
	r.must(event())
	if r.raft.stepDowns.Load() != 0 || r.Distrust() != nil {
		t.Fatal("one wrong root is enough")
	}
	// An answer that is lost does not begin a new term.
	lost.Store(true)
	if _, err := r.append(event()); !errors.Is(err, ErrUnknown) {
		t.Fatal(err)
	}
	r.must(event())
	bad.Store(1)
	e := event()
	_, err := r.append(e)
	if !errors.Is(err, ErrNotApplied) || !errors.Is(err, ledger.ErrQuarantined) || r.indexOf(e) >= 0 {
		t.Fatalf("after the second wrong root: %v, at %d", err, r.indexOf(e))
	}
	if n := r.raft.stepDowns.Load(); n != 1 {
		t.Errorf("stepped down %d times", n)
	}
	n := len(r.raft.proposed())
	if _, err := r.append(event()); !errors.Is(err, ledger.ErrQuarantined) || r.Distrust() == nil {
		t.Errorf("goes on: %v", err)
	}
	if _, err := r.CreateLog(t.Context(), "x", testPrincipal, 0); !errors.Is(err, ledger.ErrQuarantined) {
		t.Errorf("goes on: %v", err)
	}
	if len(r.raft.proposed()) != n {
		t.Error("proposed something")
	}
	// The ledger itself is fine, and is read.
	if _, err := r.l.Entry(ledger.MainLog, 0, true); err != nil {
		t.Error(err)
	}
}

// Where another node can take over, a new term is a new beginning.
func TestDistrustEndsWithTheTerm(t *testing.T) {
	r := newRig(t)
	r.must(event())
	r.raft.stepDown = func() error { r.raft.term.Add(1); return nil }
	var bad atomic.Int32
	bad.Store(2)
	r.raft.mu.Lock()
	r.raft.fate = func(int) fate {
		if bad.Add(-1) >= 0 {
			return refuseAfter
		}
		return accept
	}
	r.raft.mu.Unlock()
	r.must(event())
	if r.raft.stepDowns.Load() != 1 || r.Distrust() != nil {
		t.Errorf("stepped down %d times, distrust %v", r.raft.stepDowns.Load(), r.Distrust())
	}
	// Also when the new term comes later, and nothing waits for it.
	r.raft.stepDown = func() error { return nil }
	bad.Store(2)
	if _, err := r.append(event()); !errors.Is(err, ledger.ErrQuarantined) {
		t.Error(err)
	}
	r.raft.term.Add(1)
	r.must(event())
}

// A damaged ledger takes nothing. What was in flight is in the log for good, so nobody can say that it is not applied.
func TestQuarantine(t *testing.T) {
	r := newRig(t)
	r.must(event())
	release := r.raft.stop()
	n := len(r.raft.proposed())
	got := make(chan error, 1)
	go func() { _, err := r.append(event()); got <- err }()
	r.wait("a command", func() bool { return len(r.raft.proposed()) == n+1 })
	// A command of another proposer, with another past, comes first.
	c := *r.raft.proposed()[n]
	c.Base = r.l.Applied()
	c.Base.Digest[0] ^= 1
	if _, ok := r.l.Apply([]ledger.LogEntry{{Index: r.raft.index + 1, Term: 1, Data: ledger.AppendCommand(nil, &c)}})[0].(error); !ok {
		t.Fatal("not quarantined")
	}
	r.raft.index++
	release()
	if err := <-got; !errors.Is(err, ErrUnknown) || !errors.Is(err, ledger.ErrQuarantined) || errors.Is(err, ErrNotApplied) {
		t.Errorf("in flight: %v", err)
	}
	if _, err := r.append(event()); !errors.Is(err, ledger.ErrQuarantined) || errors.Is(err, ErrUnknown) {
		t.Errorf("afterwards: %v", err)
	}
}

// A node appends only to logs whose key it has.
func TestMissingKey(t *testing.T) {
	r := newRig(t)
	r.must(event())
	r.vkey = "another "
	r.reopen()
	_, err := r.append(event())
	if !errors.Is(err, ErrKey) || !errors.Is(err, ErrNotApplied) {
		t.Error(err)
	}
}

// Recording times never go back, and are such as a leaf can carry, whatever the clock says.
func TestClock(t *testing.T) {
	r := newRig(t)
	last := int64(0)
	for _, now := range []int64{1_800_000_000_000_000, 5, -9, 1_800_000_000_000_005, 1 << 62, 7} {
		r.clock.Store(now)
		out := r.must(event())
		leaf, err := lineage.ParseLeaf(out.Recorded[0].Leaf)
		if err != nil || leaf.RecordedAt < last {
			t.Fatalf("clock %d: recorded at %d after %d, %v", now, leaf.RecordedAt, last, err)
		}
		last = leaf.RecordedAt
		if _, err := r.CreateLog(t.Context(), strings.ReplaceAll(fmt.Sprint("log", now), "-", "m"), testPrincipal, 0); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCreateLog(t *testing.T) {
	r := newRig(t)
	var wg sync.WaitGroup
	var made, conflicts atomic.Int32
	r.raft.mu.Lock()
	r.raft.fate = func(n int) fate {
		if n%4 == 3 {
			return refuseBefore
		}
		return accept
	}
	r.raft.delay = func(int) time.Duration { return 100 * time.Microsecond }
	r.raft.mu.Unlock()
	for i := range 12 {
		wg.Go(func() {
			g, err := r.CreateLog(t.Context(), fmt.Sprint("log-", i%4), testPrincipal, lineage.AuthnOSUser)
			switch {
			case errors.Is(err, ErrConflict):
				conflicts.Add(1)
			case err != nil:
				t.Error(err)
			default:
				made.Add(1)
				q := request(event())
				q.Log = g.Number
				if out, err := r.Append(t.Context(), q); err != nil || r.verify(q, out) != nil || out.Recorded[0].Index != 1 {
					t.Errorf("first event of log %s: %+v, %v", g.Name, out, err)
				}
			}
		})
		wg.Go(func() {
			e := event()
			if out, err := r.append(e); err != nil || r.verify(request(e), out) != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if made.Load() != 4 || conflicts.Load() != 8 || len(r.l.Logs()) != 6 {
		t.Errorf("%d made, %d conflicts, %d logs", made.Load(), conflicts.Load(), len(r.l.Logs()))
	}
	r.raft.mu.Lock()
	r.raft.fate = nil // a refusal makes it forget all of them
	r.raft.mu.Unlock()
	r.must(event())
	// A log in whose state a control command has a part is read again.
	system := func() {
		q := request(event())
		q.Log = ledger.SystemLog
		if _, err := r.Append(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	system()
	refused := r.m.Refused.Load()
	if _, err := r.CreateLog(t.Context(), "another", testPrincipal, 0); err != nil {
		t.Fatal(err)
	}
	if system(); r.m.Refused.Load() != refused {
		t.Error("composed on a state from before the new log")
	}
	before := r.specs.logs[ledger.MainLog]
	if _, err := r.CreateLog(t.Context(), "late", testPrincipal, 0); err != nil {
		t.Fatal(err)
	}
	if r.must(event()); r.specs.logs[ledger.MainLog] != before || before == nil {
		t.Error("creating a log forgets the event ids of another")
	}
	if err := r.Bootstrap(t.Context()); err != nil {
		t.Errorf("bootstrap of a ledger that is there: %v", err)
	}
}

// A trickle of requests must not put off the flush of those that wait.
func TestTrickle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.must(event())
		release := r.raft.stop()
		var wg sync.WaitGroup
		send := func() {
			wg.Go(func() {
				if _, err := r.append(event()); err != nil {
					t.Error(err)
				}
			})
		}
		send()
		synctest.Wait()
		n := len(r.raft.proposed())
		start := time.Now()
		for range 20 { // one every half of flushDelay
			send()
			time.Sleep(flushDelay / 2)
			synctest.Wait()
			if len(r.raft.proposed()) > n {
				break
			}
		}
		if d := time.Since(start); d > 2*flushDelay {
			t.Errorf("flushed after %v", d)
		}
		release()
		wg.Wait()
		r.close()
	})
}

// Commands fill up while others are in flight: a raft command is the scarce thing.
func TestGathering(t *testing.T) {
	r := newRig(t)
	r.must(event())
	release := r.raft.stop()
	n := len(r.raft.proposed())
	var wg sync.WaitGroup
	for range maxInFlight {
		wg.Go(func() { _, _ = r.append(event()) })
		n++
		r.wait("a command", func() bool { return len(r.raft.proposed()) == n })
	}
	for range 500 {
		wg.Go(func() {
			if _, err := r.append(event()); err != nil {
				t.Error(err)
			}
		})
	}
	r.wait("the requests in line", func() bool { return r.queued.Load() == 400*(500+maxInFlight) })
	release()
	wg.Wait()
	if got := len(r.raft.proposed()) - n; got > 8 {
		t.Errorf("%d commands for 500 waiting requests", got)
	}
}
