package sequencer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/goleak"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/ledger"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fate is what becomes of a command.
type fate int

const (
	accept         fate = iota
	refuseBefore        // committed behind another command: its BEFORE is not what is there
	refuseAfter         // its AFTER is not what its entries give
	notApplied          // in no log
	unknownApplied      // the answer is lost
	unknownLost         // the answer is lost, and so is the command
)

// raftLike is a Proposer over a real ledger: commands are applied in order by one goroutine, with a fate each.
type raftLike struct {
	l    *ledger.Ledger
	work chan *fakeProposal
	done chan struct{}

	term      atomic.Uint64
	stepDown  func() error
	barriers  atomic.Int32
	stepDowns atomic.Int32

	mu       sync.Mutex
	fate     func(n int) fate          // of the n-th command; nil: accept
	delay    func(n int) time.Duration // before the answer to it is known; nil: none
	hold     chan struct{}             // nothing is applied while it is not nil and open
	commands []*ledger.Command
	index    uint64
}

type fakeProposal struct {
	n       int
	data    []byte
	barrier bool
	done    chan struct{}
	result  any
	err     error
}

func (p *fakeProposal) Wait(ctx context.Context) (any, error) {
	select {
	case <-p.done:
		return p.result, p.err
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", ErrUnknown, ctx.Err())
	}
}

func newRaft(l *ledger.Ledger) *raftLike {
	r := &raftLike{l: l, work: make(chan *fakeProposal, 64), done: make(chan struct{}), index: l.Applied().Index, stepDown: func() error { return errors.New("the only voter") }}
	r.term.Store(1)
	go r.run()
	return r
}

func (r *raftLike) close() {
	close(r.work)
	<-r.done
}

func (r *raftLike) Propose(command []byte) Proposal {
	p := &fakeProposal{data: bytes.Clone(command), done: make(chan struct{})}
	c, err := ledger.ParseCommand(p.data)
	if err != nil {
		panic(err) // it would end every node at every start
	}
	if len(command) > ledger.MaxCommandBytes {
		panic(fmt.Sprintf("a command of %d bytes", len(command)))
	}
	r.mu.Lock()
	p.n = len(r.commands)
	r.commands = append(r.commands, c)
	r.mu.Unlock()
	r.work <- p
	return p
}

func (r *raftLike) proposed() []*ledger.Command {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.commands[:len(r.commands):len(r.commands)]
}

func (r *raftLike) Barrier(ctx context.Context) error {
	r.barriers.Add(1)
	p := &fakeProposal{barrier: true, done: make(chan struct{})}
	r.work <- p
	_, err := p.Wait(ctx)
	return err
}

func (r *raftLike) Term() uint64 { return r.term.Load() }

func (r *raftLike) StepDown() error {
	r.stepDowns.Add(1)
	return r.stepDown()
}

// stop holds everything back until the returned function is called.
func (r *raftLike) stop() (release func()) {
	hold := make(chan struct{})
	r.mu.Lock()
	r.hold = hold
	r.mu.Unlock()
	return func() {
		r.mu.Lock()
		r.hold = nil
		r.mu.Unlock()
		close(hold)
	}
}

func (r *raftLike) run() {
	defer close(r.done)
	var answers sync.WaitGroup
	defer answers.Wait()
	for p := range r.work {
		r.mu.Lock()
		hold, of, after := r.hold, r.fate, r.delay
		r.mu.Unlock()
		if hold != nil {
			<-hold
		}
		if p.barrier {
			close(p.done)
			continue
		}
		f := accept
		if of != nil {
			f = of(p.n)
		}
		r.apply(p, f)
		if after == nil {
			close(p.done)
			continue
		}
		answers.Go(func() { // so that answers overtake each other
			time.Sleep(after(p.n))
			close(p.done)
		})
	}
}

func (r *raftLike) apply(p *fakeProposal, f fate) {
	data := p.data
	c, _ := ledger.ParseCommand(data)
	switch f {
	case notApplied:
		p.err = fmt.Errorf("%w: no leader", ErrNotApplied)
		return
	case unknownLost:
		p.err = fmt.Errorf("%w: leadership lost", ErrUnknown)
		return
	case refuseBefore:
		c.Sections[0].Before.Root[0] ^= 1
		data = ledger.AppendCommand(nil, c)
	case refuseAfter:
		c.Sections[0].After.Root[0] ^= 1
		data = ledger.AppendCommand(nil, c)
	}
	r.index++
	p.result = r.l.Apply([]ledger.LogEntry{{Index: r.index, Term: r.term.Load(), Data: data}})[0]
	if f == unknownApplied {
		p.result, p.err = nil, fmt.Errorf("%w: leadership lost", ErrUnknown)
	}
}

var testCluster = lineage.ID{0xc1, 15: 1}

var quiet = slog.New(slog.DiscardHandler)

// rig is a sequencer over a ledger in memory.
type rig struct {
	*Sequencer
	t        *testing.T
	fs       vfs.FS
	raft     *raftLike
	l        *ledger.Ledger
	clock    atomic.Int64
	admit    error
	remember int
	vkey     string
}

func newRig(t *testing.T) *rig { return newRigWith(t, maxRemembered) }

func newRigWith(t *testing.T, remember int) *rig {
	r := &rig{t: t, fs: vfs.NewMem(), remember: remember, vkey: "vkey of "}
	r.clock.Store(1_700_000_000_000_000)
	r.open()
	t.Cleanup(r.close)
	return r
}

func (r *rig) open() {
	r.t.Helper()
	l, err := ledger.Open(ledger.Options{
		FS: r.fs, Dir: "state", ClusterID: testCluster, Logger: quiet, MemTableBytes: 1 << 20, BlockCacheBytes: 1 << 20,
		Die: func(reason string, err error) { panic(fmt.Sprintf("die: %s: %v", reason, err)) },
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.l, r.raft = l, newRaft(l)
	var n atomic.Uint32
	r.Sequencer = start(Options{
		Ledger: l, Proposer: r.raft, Now: func() int64 { return r.clock.Add(1) }, Logger: quiet, OriginHost: "example.org",
		Random: func(b []byte) {
			for i := range b {
				b[i] = byte(n.Add(1) * 2654435761 >> 24)
			}
		},
		Admit: func() error { return r.admit },
		VKey:  func(origin string) (string, error) { return r.vkey + origin, nil },
	}, r.remember)
	if err := r.Bootstrap(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) close() {
	r.t.Helper()
	if r.Sequencer == nil {
		return
	}
	r.Close()
	r.raft.close()
	if r.l.Quarantined() == nil {
		if err := r.l.Check(context.Background()); err != nil {
			r.t.Error(err)
		}
	}
	if err := r.l.Close(context.Background()); err != nil {
		r.t.Error(err)
	}
	if n := r.queued.Load(); n != 0 {
		r.t.Errorf("%d bytes are still counted as waiting", n)
	}
	r.Sequencer = nil
}

func (r *rig) reopen() {
	r.close()
	r.open()
}

const testPrincipal = "local:test"

var fixedDigest, _ = lineage.ParseDigest("sha256:00000000000000000000000000000000000000000000000000000000000000aa")

func event() *lineage.Event {
	return &lineage.Event{
		ID: lineage.NewID(), Kind: lineage.KindRun, Action: uint8(lineage.RunComplete), RunID: lineage.NewID(), Job: lineage.Name{Namespace: "n", Name: "job"},
		References: []lineage.Reference{{Role: lineage.Output, Kind: lineage.Model, Known: lineage.Computed, Digest: fixedDigest, URI: "model.bin"}},
		Documents:  []lineage.Document{{MediaType: "application/json", Content: []byte(`{"k":1}`)}},
	}
}

func events(n int) []*lineage.Event {
	all := make([]*lineage.Event, n)
	for i := range all {
		all[i] = event()
	}
	return all
}

func request(events ...*lineage.Event) Request {
	return Request{Log: ledger.MainLog, Events: events, Principal: testPrincipal, Authn: lineage.AuthnOSUser, Size: 400 * len(events)}
}

func (r *rig) append(events ...*lineage.Event) (*Result, error) {
	return r.Append(r.t.Context(), request(events...))
}

// must appends, and checks the reply against the ledger.
func (r *rig) must(events ...*lineage.Event) *Result {
	r.t.Helper()
	out, err := r.append(events...)
	if err == nil {
		err = r.verify(request(events...), out)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

// verify holds a reply to what is stored, and the leaf to what was sent.
func (r *rig) verify(q Request, out *Result) error {
	if len(out.Recorded) != len(q.Events) || out.Tree == nil || out.Tree.Log() != q.Log {
		return fmt.Errorf("%d replies to %d events, tree %v", len(out.Recorded), len(q.Events), out.Tree)
	}
	for i, e := range q.Events {
		got := &out.Recorded[i]
		if got.Index >= out.Tree.Head().Size {
			return fmt.Errorf("index %d is not in the tree of %d", got.Index, out.Tree.Head().Size)
		}
		stored, err := r.l.Entry(q.Log, got.Index, true)
		if err != nil {
			return err
		}
		if !bytes.Equal(stored.Leaf, got.Leaf) || stored.Principal != q.Principal || stored.Authn != q.Authn && !got.Duplicate {
			return fmt.Errorf("index %d: stored is not what was answered", got.Index)
		}
		keys := make([]lineage.Key, len(got.Body))
		for j := range keys {
			keys[j] = got.Body[j].Key
		}
		if err := lineage.CheckRecorded(e, got.Leaf, keys, nil); err != nil {
			return err
		}
	}
	return nil
}

// indexOf returns where an event is, -1 if nowhere.
func (r *rig) indexOf(e *lineage.Event) int {
	r.t.Helper()
	at, err := r.l.ByEventID(ledger.MainLog, e.ID)
	if err != nil || len(at) > 1 {
		r.t.Fatalf("event %s is at %v, %v", e.ID, at, err)
	}
	if len(at) == 0 {
		return -1
	}
	return int(at[0])
}

// wait polls for something that another goroutine brings about.
func (r *rig) wait(what string, f func() bool) {
	r.t.Helper()
	for range 5000 {
		if f() {
			return
		}
		time.Sleep(time.Millisecond)
	}
	r.t.Fatalf("%s did not happen", what)
}
