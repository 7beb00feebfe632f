// Package sequencer turns many appends into few commands and wakes the callers.
//
// One goroutine gathers requests while earlier commands are in flight, looks duplicates up, stamps and encodes leaves, extends a
// speculative right edge, and proposes commands that say which size and root they start from and lead to. When a command is refused or
// its fate is unknown, the sequencer stops, waits until everything in flight is resolved, and composes what was refused again from
// applied state: the caller never notices. A raft command is a resource of thousands a second, an event is not; so one command carries
// as many events as are waiting.
package sequencer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/merkle"
)

const (
	// flushBytes ends the gathering of a command: beyond 1 MiB a command only adds latency.
	flushBytes = 1 << 20
	// flushDelay bounds how long a small command waits for company while others are in flight.
	flushDelay = time.Millisecond
	// maxInFlight commands hide the fsync and the round trip; more only add memory.
	maxInFlight = 4
	// maxQueuedBytes bounds the requests that wait, as their senders count them. Beyond it callers are told to come back.
	maxQueuedBytes = 64 << 20
	// maxRecompose bounds how often one request is composed again, so that a bug cannot turn into a loop.
	maxRecompose = 16
	// barrierTimeout bounds how long the sequencer waits for raft to say what became of a command.
	barrierTimeout = 30 * time.Second
	// lookEvery is how often a sequencer that holds speculative state looks whether its leadership is over.
	lookEvery = time.Second
)

// Errors of Append, beside those of the ledger.
var (
	// ErrNotApplied means that the events are not recorded and never will be by this call: retry freely.
	ErrNotApplied = errors.New("not applied")
	// ErrKey means that this node does not have the key of a log, so that it can sign nothing for it. It comes with ErrNotApplied.
	ErrKey = errors.New("this node lacks the log's key: put the right secret or key file back")
	// ErrUnknown means that the events may or may not be recorded: retry with the same event ids and get the one true answer.
	ErrUnknown = errors.New("outcome unknown")
)

// Proposal is a command on its way through raft.
type Proposal interface {
	// Wait returns what the state machine returned. The error wraps ErrNotApplied or ErrUnknown.
	Wait(ctx context.Context) (any, error)
}

// Proposer is raft as the sequencer sees it. Propose is called from one goroutine and keeps its order.
type Proposer interface {
	Propose(command []byte) Proposal
	// Barrier returns when everything that was committed before the call is applied.
	Barrier(ctx context.Context) error
	// Term changes whenever leadership may have been elsewhere.
	Term() uint64
	// StepDown gives leadership up.
	StepDown() error
}

// Options of a sequencer.
type Options struct {
	Ledger   *ledger.Ledger
	Proposer Proposer
	// Now returns microseconds since the Unix epoch.
	Now func() int64
	// Random fills b with random bytes.
	Random func(b []byte)
	// Admit returns nil, or why no append is admitted now: an error that wraps ledger.ErrOverloaded or ErrNotApplied.
	Admit  func() error
	Logger *slog.Logger
	// OriginHost is the host part of new origins.
	OriginHost string
	// VKey returns the verifier key of an origin, or an error when this node does not have the key.
	VKey func(origin string) (string, error)
	// Passed is told of each append after its answer; Committed of the time from a command's proposal to its decision. They must be quick.
	// Nil: nobody is told, and nothing is timed.
	Passed    func(context.Context, Passage)
	Committed func(time.Duration)
	// Metrics are where it counts, so that one that takes its place after a repair counts on. Nil: its own.
	Metrics *Metrics
}

// Request asks for events to be recorded, all or none.
type Request struct {
	Log       uint32
	Events    []*lineage.Event
	Principal string
	Authn     lineage.Authn
	Size      int // bytes, as received, for the bound on the queue
}

// Recorded is an event as recorded.
type Recorded struct {
	Index     uint64
	Leaf      []byte
	LeafHash  merkle.Hash
	Body      []lineage.BodyPart
	Duplicate bool // it was recorded before
}

// Result is the answer to a request, in the order of its events. Tree covers all of them.
type Result struct {
	Recorded []Recorded
	Tree     *ledger.Tree
}

// Sequencer serves appends for all logs of a node.
type Sequencer struct {
	o      Options
	queue  chan *pending
	queued atomic.Int64 // bytes
	stop   chan struct{}
	done   chan struct{}
	keys   keySource
	names  names
	m      *Metrics

	distrust atomic.Pointer[distrust]

	// Owned by run.
	specs    specs
	flying   []*flight
	landed   chan *flight
	held     []*pending // wait for what is in flight
	backlog  backlog
	remember int // event ids a log, maxRemembered but in tests

	term      uint64
	unsettled bool // the next command waits for a barrier: it is the first, or what became of an earlier one is not known
	refusals  int  // AFTER refusals in this term
}

// pending is a request on its way.
type pending struct {
	Request
	Stations
	drafts []*lineage.Draft
	// control composes a control command, instead of events. It is submitted alone, with nothing in flight.
	control func(*ledger.Command, *pending) error
	create  string       // name of the log that it creates
	attempt int          // commands that were refused with it
	state   atomic.Int32 // stateQueued -> stateTaken or stateGone
	reply   chan reply
}

const (
	stateQueued = iota
	stateTaken  // in a command: the caller's departure does not undo it
	stateGone   // the caller left first: it will be in none
)

type reply struct {
	Stations
	result *Result
	log    ledger.Log
	err    error
}

// New starts a sequencer. Close ends it.
func New(o Options) *Sequencer { return start(o, maxRemembered) }

func start(o Options, remember int) *Sequencer {
	s := &Sequencer{
		o: o, queue: make(chan *pending, 1024), stop: make(chan struct{}), done: make(chan struct{}),
		specs: newSpecs(maxSpecs, maxIDs), landed: make(chan *flight, maxInFlight), keys: keySource{random: o.Random}, remember: remember,
		unsettled: true, m: cmp.Or(o.Metrics, new(Metrics)),
	}
	go s.run()
	return s
}

// distrust says why nothing more is composed in a term.
type distrust struct {
	term uint64
	err  error
}

// Distrust returns nil, or why this node composes nothing more in this term: an error that wraps ErrNotApplied and
// ledger.ErrQuarantined.
func (s *Sequencer) Distrust() error {
	if d := s.distrust.Load(); d != nil && d.term == s.o.Proposer.Term() {
		return d.err
	}
	return nil
}

// Close refuses new requests, lets what is in flight finish and stops.
func (s *Sequencer) Close() {
	close(s.stop)
	<-s.done
}

// Append records events. See the errors of this package and of ledger. The events must not be changed any more, not even when it
// has returned ErrUnknown: they may still be on their way.
func (s *Sequencer) Append(ctx context.Context, r Request) (*Result, error) {
	if len(r.Events) == 0 {
		return nil, fmt.Errorf("%w: no events", ledger.ErrInvalid)
	}
	if err := checkCaller(r.Principal, r.Authn); err != nil {
		return nil, err
	}
	if n := len(r.Events); n > ledger.MaxCommandEntries {
		return nil, fmt.Errorf("%w: %d events exceed %d a request", ledger.ErrInvalid, n, ledger.MaxCommandEntries)
	}
	c, err := s.composer(r.Log)
	if err != nil {
		return nil, err
	}
	p := &pending{Request: r, drafts: make([]*lineage.Draft, len(r.Events))}
	seen := make(map[lineage.ID]int, len(r.Events))
	for i, e := range r.Events {
		if e.Kind == lineage.KindControl {
			return nil, eventError(i, len(r.Events), &lineage.FieldError{Path: "action", Reason: "control events are made by the ledger itself"})
		}
		if p.drafts[i], err = c.Prepare(e); err != nil {
			return nil, eventError(i, len(r.Events), err)
		}
		if j, twice := seen[e.ID]; twice {
			return nil, eventError(i, len(r.Events), &lineage.FieldError{Path: "event_id", Reason: fmt.Sprintf("%s is also the id of events[%d] of this request", e.ID, j)})
		}
		seen[e.ID] = i
	}
	out := s.follow(ctx, p)
	return out.result, out.err
}

// eventError says which event of a request is at fault.
func eventError(i, n int, err error) error {
	if f, ok := errors.AsType[*lineage.FieldError](err); ok && n > 1 {
		f.Path = fmt.Sprintf("events[%d].%s", i, f.Path)
	}
	return fmt.Errorf("%w: %w", ledger.ErrInvalid, err)
}

// checkCaller makes sure that a principal can stand in a leaf and in a command.
func checkCaller(principal string, authn lineage.Authn) error {
	if principal == "" || len(principal) > lineage.MaxPrincipal || !utf8.ValidString(principal) || strings.ContainsFunc(principal, unicode.IsControl) {
		return fmt.Errorf("%w: %w", ledger.ErrInvalid, &lineage.FieldError{Path: "principal", Reason: fmt.Sprintf("needs 1 to %d bytes of text", lineage.MaxPrincipal)})
	}
	if authn > lineage.AuthnLedger {
		return fmt.Errorf("%w: %w", ledger.ErrInvalid, &lineage.FieldError{Path: "authn", Reason: fmt.Sprintf("%d is unknown", authn)})
	}
	return nil
}

// submit queues p and waits for its reply.
func (s *Sequencer) submit(ctx context.Context, p *pending) reply {
	if err := ctx.Err(); err != nil { // a select below might find the queue ready first
		return reply{err: fmt.Errorf("%w: %w", ErrNotApplied, err)}
	}
	if err := s.o.Ledger.Quarantined(); err != nil {
		return s.reject(ReasonQuarantine, fmt.Errorf("%w: %w", ErrNotApplied, err))
	}
	if err := s.Distrust(); err != nil {
		return s.reject(ReasonDistrust, err)
	}
	if err := s.o.Admit(); err != nil {
		return s.reject(ReasonAdmission, err)
	}
	if s.queued.Add(int64(p.Size)) > maxQueuedBytes {
		s.release(p)
		return s.reject(ReasonQueue, fmt.Errorf("%w: %d MiB of requests are waiting; retry later", ledger.ErrOverloaded, maxQueuedBytes>>20))
	}
	p.reply = make(chan reply, 1)
	select {
	case <-s.stop:
		s.release(p)
		return s.reject(ReasonClosing, fmt.Errorf("%w: the ledger is closing", ErrNotApplied))
	case <-ctx.Done():
		s.release(p)
		return reply{err: fmt.Errorf("%w: %w", ErrNotApplied, ctx.Err())}
	case s.queue <- p:
	}
	select {
	case r := <-p.reply:
		return r
	case <-ctx.Done():
		if p.state.CompareAndSwap(stateQueued, stateGone) {
			return reply{err: fmt.Errorf("%w: %w", ErrNotApplied, ctx.Err())}
		}
		return reply{err: fmt.Errorf("%w: %w", ErrUnknown, ctx.Err())}
	case <-s.done:
		select {
		case r := <-p.reply:
			return r
		default:
			return reply{err: fmt.Errorf("%w: the ledger closed", ErrNotApplied)}
		}
	}
}

// answer ends p's way. It is called once, and never waits.
func (s *Sequencer) answer(p *pending, r reply) {
	s.release(p)
	r.Stations = p.Stations
	p.reply <- r
}

// release takes p off the bound on what is waiting.
func (s *Sequencer) release(p *pending) { s.queued.Add(-int64(p.Size)) }
