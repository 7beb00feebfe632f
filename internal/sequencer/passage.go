package sequencer

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/provledger/provledger/internal/ledger"
)

// Metrics counts what the sequencer does.
type Metrics struct {
	Commands, Entries, Duplicates, Recomposed, Refused atomic.Uint64
	InFlight                                           atomic.Int64 // commands without a decision
	// RefusedBy is Refused by decision.
	RefusedBy [ledger.RefusedVersion + 1]atomic.Uint64
	// Rejected counts requests that were turned away before they were in a command, by Reason.
	Rejected [reasons]atomic.Uint64
}

// Reason is why a request is turned away before it is in a command.
type Reason int

// Reasons.
const (
	ReasonQuarantine Reason = iota // the state is not to be trusted
	ReasonDistrust                 // this node's arithmetic is not
	ReasonAdmission                // Options.Admit says no: the disk is full, the clock is wrong
	ReasonQueue                    // too much is waiting
	ReasonKey                      // the log's key is not here
	ReasonClosing
	reasons
)

// String is the reason in metrics.
func (r Reason) String() string {
	return [reasons]string{"quarantine", "distrust", "admission", "queue", "key", "closing"}[r]
}

// Metrics returns the counters.
func (s *Sequencer) Metrics() *Metrics { return s.m }

// QueuedBytes is how much is waiting or in flight, as senders count it.
func (s *Sequencer) QueuedBytes() int64 { return s.queued.Load() }

// reject turns a request away.
func (s *Sequencer) reject(why Reason, err error) reply {
	s.m.Rejected[why].Add(1)
	return reply{err: err}
}

// refuse answers a request that could not be composed.
func (s *Sequencer) refuse(p *pending, err error) {
	if errors.Is(err, ErrKey) {
		s.m.Rejected[ReasonKey].Add(1)
	}
	s.answer(p, reply{err: err})
}

// Passage says when a request passed the stations of its way, for traces. A zero time: it did not get there, or its caller left
// before that was known.
type Passage struct {
	Log    uint32
	Events int
	Queued time.Time // when the caller came
	Stations
	Done time.Time // when the caller has its answer
	Err  error     // that answer
}

// Stations are what the sequencer notes of a request, if anybody wants to know.
type Stations struct {
	Attempts int       // commands that it was composed into
	Composed time.Time // into its last command, which is proposed now
	Decided  time.Time // the state machine has answered that command
}

// follow is submit, and tells of it.
func (s *Sequencer) follow(ctx context.Context, p *pending) reply {
	if s.o.Passed == nil {
		return s.submit(ctx, p)
	}
	at := Passage{Log: p.Log, Events: len(p.Events), Queued: time.Now()}
	r := s.submit(ctx, p)
	at.Stations, at.Done, at.Err = r.Stations, time.Now(), r.err
	s.o.Passed(ctx, at)
	return r
}

// depart notes that a command is proposed.
func (s *Sequencer) depart(f *flight) {
	s.m.Commands.Add(1)
	s.m.InFlight.Add(1)
	if s.o.Passed == nil && s.o.Committed == nil {
		return
	}
	f.departed = time.Now()
	for _, part := range f.parts {
		part.p.Stations = Stations{Attempts: part.p.Attempts + 1, Composed: f.departed}
	}
}

// arrive notes that a command has its answer. Unlike all others it is called by the goroutine that waited for it.
func (s *Sequencer) arrive(f *flight) {
	s.m.InFlight.Add(-1)
	if f.departed.IsZero() {
		return
	}
	f.arrived = time.Now()
	if s.o.Committed != nil {
		s.o.Committed(f.arrived.Sub(f.departed))
	}
}

// decided hands the time of the answer to the requests that it is for.
func (f *flight) decided() {
	for _, part := range f.parts {
		part.p.Decided = f.arrived
	}
}
