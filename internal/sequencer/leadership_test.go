package sequencer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/ledger"
)

// pair is a model of a cluster: two nodes, each with a ledger and a sequencer of its own, over one agreed log. At chosen steps leadership
// goes to the other node. What was not committed then is lost, or committed later by the other; the old leader may learn of the new term
// late.
type pair struct {
	t     *testing.T
	nodes [2]*pairNode

	mu        sync.Mutex
	changed   *sync.Cond
	rng       *rand.Rand
	steps     int
	loseAt    func(step int) bool
	losses    int
	leader    int
	term      uint64
	log       []*pairEntry
	committed int
	closed    bool
}

type pairEntry struct {
	term uint64
	data []byte
	done chan struct{} // closed when its proposer knows
	out  any
	err  error
	once sync.Once
}

func (e *pairEntry) resolve(out any, err error) {
	e.once.Do(func() { e.out, e.err = out, err; close(e.done) })
}

func (e *pairEntry) Wait(ctx context.Context) (any, error) {
	select {
	case <-e.done:
		return e.out, e.err
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", ErrUnknown, ctx.Err())
	}
}

type pairNode struct {
	p    *pair
	n    int
	l    *ledger.Ledger
	s    *Sequencer
	term atomic.Uint64 // as it knows it
	done chan struct{}
	has  int // applied entries, under p.mu
}

var errElsewhere = errors.New("the other node leads")

// step is called with mu held wherever leadership may change.
func (p *pair) step() {
	p.steps++
	if !p.loseAt(p.steps) {
		return
	}
	p.losses++
	old := p.nodes[p.leader]
	p.leader = 1 - p.leader
	p.term++
	p.nodes[p.leader].term.Store(p.term)
	if p.rng.IntN(2) == 0 {
		old.term.Store(p.term)
	}
	for _, e := range p.log[old.has:] { // some of it may be committed; nobody will tell
		e.resolve(nil, fmt.Errorf("%w: leadership lost", ErrUnknown))
	}
	keep := p.committed // the new leader has a part of what the old one stored
	for keep < len(p.log) && p.rng.IntN(3) > 0 {
		keep++
	}
	p.log = p.log[:keep:keep]
	p.changed.Broadcast()
}

func (n *pairNode) Propose(command []byte) Proposal {
	n.p.mu.Lock()
	defer n.p.mu.Unlock()
	n.p.step()
	e := &pairEntry{term: n.p.term, data: append([]byte(nil), command...), done: make(chan struct{})}
	if n.p.leader != n.n {
		n.term.Store(n.p.term)
		e.resolve(nil, fmt.Errorf("%w: %w", ErrNotApplied, errElsewhere))
		return e
	}
	n.p.log = append(n.p.log, e)
	n.p.step()
	n.p.changed.Broadcast()
	return e
}

func (n *pairNode) Barrier(ctx context.Context) error {
	n.p.mu.Lock()
	defer n.p.mu.Unlock()
	n.p.step()
	term, end := n.p.term, len(n.p.log)
	for n.p.leader == n.n && n.p.term == term && n.has < end && !n.p.closed {
		n.p.changed.Wait()
	}
	n.p.step()
	if n.p.leader != n.n || n.p.term != term {
		n.term.Store(n.p.term)
		return fmt.Errorf("%w: %w", ErrNotApplied, errElsewhere)
	}
	return nil
}

func (n *pairNode) Term() uint64    { return n.term.Load() }
func (n *pairNode) StepDown() error { return errors.New("not in this model") }

// commit is the part of raft that replicates: one entry after the other becomes committed.
func (p *pair) commit(done chan struct{}) {
	defer close(done)
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		for p.committed == len(p.log) && !p.closed {
			p.changed.Wait()
		}
		if p.closed {
			return
		}
		p.step() // between the store of the leader and the majority
		if p.committed < len(p.log) {
			p.committed++
			p.changed.Broadcast()
		}
		p.mu.Unlock()
		time.Sleep(20 * time.Microsecond)
		p.mu.Lock()
	}
}

// apply is a node's state machine.
func (n *pairNode) apply() {
	defer close(n.done)
	p := n.p
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		for n.has == p.committed && !p.closed {
			p.changed.Wait()
		}
		if n.has == p.committed {
			return
		}
		e := p.log[n.has]
		p.mu.Unlock()
		out := n.l.Apply([]ledger.LogEntry{{Index: uint64(n.has + 1), Term: e.term, Data: e.data}})[0]
		p.mu.Lock()
		n.has++
		if p.leader == n.n && e.term == p.term {
			n.has--  // until it is answered it counts as in flight
			p.step() // between Apply and the answer
			n.has++
			e.resolve(out, nil)
		}
		p.changed.Broadcast()
	}
}

func newPair(t *testing.T, seed uint64, loseAt func(step int) bool) *pair {
	p := &pair{t: t, rng: rand.New(rand.NewPCG(seed, 4)), loseAt: func(int) bool { return false }, term: 1}
	p.changed = sync.NewCond(&p.mu)
	committing := make(chan struct{})
	for i := range p.nodes {
		l, err := ledger.Open(ledger.Options{
			FS: vfs.NewMem(), Dir: "state", ClusterID: testCluster, Logger: quiet, MemTableBytes: 256 << 10, BlockCacheBytes: 256 << 10,
			SlowWarn: 0, Die: func(reason string, err error) { panic(fmt.Sprintf("die: %s: %v", reason, err)) },
		})
		if err != nil {
			t.Fatal(err)
		}
		n := &pairNode{p: p, n: i, l: l, done: make(chan struct{})}
		n.term.Store(1)
		p.nodes[i] = n
		var random, clock atomic.Uint64
		n.s = New(Options{
			Ledger: l, Proposer: n, Now: func() int64 { return 1_700_000_000_000_000 + int64(clock.Add(1)) - int64(i)*1000 }, Logger: quiet,
			OriginHost: "example.org", Admit: func() error { return nil },
			VKey: func(origin string) (string, error) { return "vkey of " + origin, nil },
			Random: func(b []byte) {
				for j := range b {
					b[j] = byte(random.Add(1) * 2654435761 >> 24)
				}
			},
		})
		go n.apply()
	}
	go p.commit(committing)
	if err := p.nodes[0].s.Bootstrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	for p.nodes[1].has < len(p.log) {
		p.changed.Wait()
	}
	p.steps, p.loseAt = 0, loseAt
	p.mu.Unlock()
	t.Cleanup(func() {
		for _, n := range p.nodes {
			n.s.Close()
		}
		p.mu.Lock()
		p.closed = true
		p.changed.Broadcast()
		p.mu.Unlock()
		<-committing
		for _, n := range p.nodes {
			<-n.done
			if err := n.l.Check(context.Background()); err != nil {
				t.Error(err)
			}
			if err := n.l.Close(context.Background()); err != nil {
				t.Error(err)
			}
		}
	})
	return p
}

// insist does something on whichever node leads until it is done, as rpc does: it tries again what was not applied, and what is unknown.
func (p *pair) insist(what string, do func(s *Sequencer) error) error {
	deadline := time.Now().Add(10 * time.Second)
	for i := 0; ; i++ {
		start := time.Now()
		err := do(p.nodes[i%2].s)
		if err == nil {
			return nil
		}
		if !errors.Is(err, ErrNotApplied) && !errors.Is(err, ErrUnknown) {
			return fmt.Errorf("%s: %w", what, err)
		}
		if took := time.Since(start); errors.Is(err, errElsewhere) && took > 2*time.Second {
			return fmt.Errorf("%s: a node that does not lead took %s to say so", what, took)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: not done in 10 s: %w", what, err)
		}
	}
}

// run has clients append, create a log and raise the version while leadership moves, and holds both nodes to what they were told.
func (p *pair) run() {
	t := p.t
	told := make([][]uint64, 4)
	sent := make([][]*lineage.Event, 4)
	var wg sync.WaitGroup
	for c := range told {
		sent[c] = events(6)
		told[c] = make([]uint64, len(sent[c]))
		wg.Go(func() {
			for i, e := range sent[c] {
				err := p.insist("append", func(s *Sequencer) error {
					out, err := s.Append(t.Context(), request(e))
					if err == nil {
						told[c][i] = out.Recorded[0].Index
					}
					return err
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Go(func() {
		if err := p.insist("create a log", func(s *Sequencer) error {
			_, err := s.CreateLog(t.Context(), "another", testPrincipal, lineage.AuthnOSUser)
			if errors.Is(err, ErrConflict) {
				return nil
			}
			return err
		}); err != nil {
			t.Error(err)
		}
		if err := p.insist("raise the version", func(s *Sequencer) error {
			if s.o.Ledger.CommandVersion() == 2 {
				return nil
			}
			return s.RaiseVersion(t.Context())
		}); err != nil {
			t.Error(err)
		}
		if err := p.insist("record", func(s *Sequencer) error {
			return s.RecordControl(t.Context(), lineage.ControlMember, testPrincipal, 0, []byte(`{}`))
		}); err != nil {
			t.Error(err)
		}
	})
	wg.Wait()
	p.check(sent, told)
}

func (p *pair) check(sent [][]*lineage.Event, told [][]uint64) {
	t := p.t
	p.mu.Lock()
	for p.nodes[0].has < len(p.log) || p.nodes[1].has < len(p.log) {
		p.changed.Wait()
	}
	p.mu.Unlock()
	if a, b := p.nodes[0].l.Applied(), p.nodes[1].l.Applied(); a != b {
		t.Errorf("the nodes decided differently: %v, %v", a, b)
	}
	for _, n := range p.nodes {
		if err := n.l.Quarantined(); err != nil {
			t.Error(err)
		}
		if v := n.l.CommandVersion(); v != 2 {
			t.Errorf("node %d uses version %d", n.n, v)
		}
		at := map[uint64]bool{}
		for c := range sent {
			for i, e := range sent[c] {
				where, err := n.l.ByEventID(ledger.MainLog, e.ID)
				if err != nil || len(where) != 1 || where[0] != told[c][i] || at[where[0]] {
					t.Errorf("node %d: an event told to be at %d is at %v, %v", n.n, told[c][i], where, err)
					continue
				}
				at[where[0]] = true
			}
		}
	}
}

// TestLeadershipLostAtEveryStep loses leadership once, at each step that there is.
func TestLeadershipLostAtEveryStep(t *testing.T) {
	stride := 1
	if testing.Short() {
		stride = 7
	}
	lost := 0
	for at := 1; ; at += stride {
		p := newPair(t, uint64(at), func(step int) bool { return step == at })
		p.run()
		if t.Failed() {
			t.Fatalf("with leadership lost at step %d", at)
		}
		if p.losses == 0 {
			break
		}
		lost++
	}
	if lost < 20/stride {
		t.Errorf("leadership was lost in %d runs only", lost)
	}
}

// TestLeadershipMovesAllTheTime loses it again and again.
func TestLeadershipMovesAllTheTime(t *testing.T) {
	seeds := uint64(20)
	if testing.Short() {
		seeds = 3
	}
	losses := 0
	for seed := range seeds {
		rng := rand.New(rand.NewPCG(seed, 5))
		p := newPair(t, seed, func(int) bool { return rng.IntN(12) == 0 })
		p.run()
		losses += p.losses
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
	if losses < int(seeds) {
		t.Errorf("leadership was lost %d times only", losses)
	}
}

// A node that does not lead says so at once, and keeps nothing in memory.
func TestFollower(t *testing.T) {
	p := newPair(t, 1, func(int) bool { return false })
	follower := p.nodes[1].s
	start := time.Now()
	for range 100 {
		if _, err := follower.Append(t.Context(), request(event())); !errors.Is(err, ErrNotApplied) || !errors.Is(err, errElsewhere) {
			t.Fatal(err)
		}
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("100 refusals took %s", took)
	}
	leader := p.nodes[0].s
	if _, err := leader.Append(t.Context(), request(event())); err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	p.loseAt = func(int) bool { return true }
	p.step()
	p.loseAt = func(int) bool { return false }
	p.nodes[0].term.Store(p.term)
	p.mu.Unlock()
	time.Sleep(lookEvery + lookEvery/2)
	leader.Close()
	if n := leader.specs.len(); n != 0 {
		t.Errorf("%d logs are in the memory of a node that leads no more", n)
	}
	p.nodes[0].s = New(leader.o) // for the cleanup to close
}
