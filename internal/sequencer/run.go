package sequencer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/merkle"
)

// spec is the speculative state of a log: applied state plus everything in flight.
type spec struct {
	log   ledger.Log
	edge  *merkle.Edge
	head  ledger.Head
	dedup *dedup
}

// flight is a command in flight.
type flight struct {
	parts  []part
	landed bool
	result any
	err    error
}

// part is a request in a command.
type part struct {
	p        *pending
	recorded []Recorded
}

func (s *Sequencer) run() {
	defer close(s.done)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		s.gather()
		if s.ready() {
			s.flush()
			continue
		}
		if len(s.backlog) > 0 {
			timer.Reset(flushDelay)
		}
		select {
		case p := <-s.queue:
			s.backlog = append(s.backlog, p)
		case f := <-s.landed:
			s.land(f)
		case <-timer.C:
			if len(s.backlog) > 0 && len(s.flying) < maxInFlight {
				s.flush()
			}
		case <-s.stop:
			s.drain()
			return
		}
	}
}

// gather takes what is waiting, up to a full command.
func (s *Sequencer) gather() {
	for s.backlogBytes() < flushBytes {
		select {
		case p := <-s.queue:
			s.backlog = append(s.backlog, p)
		default:
			return
		}
	}
}

func (s *Sequencer) backlogBytes() (n int) {
	for _, p := range s.backlog {
		n += p.Size
	}
	return n
}

// ready reports whether to propose now: at once when nothing is in flight, else when a command is full.
func (s *Sequencer) ready() bool {
	if len(s.backlog) == 0 {
		return false
	}
	return len(s.flying) == 0 || len(s.flying) < maxInFlight && s.backlogBytes() >= flushBytes
}

// drain answers everything at the end: what is in flight gets its result, the rest is refused.
func (s *Sequencer) drain() {
	for len(s.flying) > 0 {
		s.land(<-s.landed)
	}
	closing := reply{err: fmt.Errorf("%w: the ledger is closing", ErrNotApplied)}
	for _, p := range append(s.backlog, s.held...) {
		p.answer(closing)
	}
	for {
		select {
		case p := <-s.queue:
			p.answer(closing)
		default:
			return
		}
	}
}

// launch proposes a command.
func (s *Sequencer) launch(command []byte, parts []part) {
	f := &flight{parts: parts}
	proposal := s.o.Proposer.Propose(command)
	s.flying = append(s.flying, f)
	s.m.Commands.Add(1)
	go func() {
		// Raft always answers, at the latest when it shuts down.
		f.result, f.err = proposal.Wait(context.Background())
		s.landed <- f
	}()
}

// land takes a result, and acts on results in the order of the log.
func (s *Sequencer) land(f *flight) {
	f.landed = true
	for len(s.flying) > 0 && s.flying[0].landed {
		first := s.flying[0]
		if o, ok := first.result.(*ledger.Outcome); first.err != nil || !ok || o.Decision != ledger.Accepted {
			s.recompose()
			return
		}
		s.flying = s.flying[1:]
		s.accepted(first)
	}
	s.backlog = append(s.held, s.backlog...)
	s.held = nil
}

func (s *Sequencer) accepted(f *flight) {
	o := f.result.(*ledger.Outcome)
	for _, part := range f.parts {
		p := part.p
		if p.boot || p.create != "" {
			g, err := s.o.Ledger.LogByName(p.create)
			p.answer(reply{log: g, err: err})
			continue
		}
		s.m.Entries.Add(uint64(len(part.recorded)))
		p.answer(reply{result: &Result{part.recorded, o.Tree(p.Log)}})
	}
}

// recompose deals with a command that was not accepted: wait until everything in flight is resolved, answer what is certain, start
// again from applied state with the rest.
func (s *Sequencer) recompose() {
	for _, f := range s.flying {
		for !f.landed {
			(<-s.landed).landed = true
		}
	}
	var again []*pending
	unsure := false
	for _, f := range s.flying {
		o, ok := f.result.(*ledger.Outcome)
		switch {
		case f.err != nil:
			unsure = true
			f.answer(reply{err: f.err})
		case !ok:
			err, isErr := f.result.(error)
			if !isErr {
				err = fmt.Errorf("%w: the state machine answered %T", ErrUnknown, f.result)
			}
			f.answer(reply{err: err})
		case o.Decision == ledger.Accepted:
			s.accepted(f)
		default:
			s.refused(o.Decision)
			for _, part := range f.parts {
				again = append(again, part.p)
			}
		}
	}
	s.flying = nil
	s.backlog = append(append(again, s.held...), s.backlog...)
	s.held = nil
	clear(s.specs)
	if unsure {
		s.term = 0 // the next command waits for a barrier
	}
}

func (f *flight) answer(r reply) {
	for _, part := range f.parts {
		part.p.answer(r)
	}
}

// refused counts. Two wrong roots in a term mean that this node's arithmetic cannot be trusted to lead.
func (s *Sequencer) refused(d ledger.Decision) {
	s.m.Refused.Add(1)
	s.o.Logger.Warn("a command was refused and is composed again", "decision", d)
	if d != ledger.RefusedAfter {
		return
	}
	if s.refusals++; s.refusals == 2 {
		s.o.Logger.Error("two commands of this node had wrong roots; it gives up leadership")
		if err := s.o.Proposer.StepDown(); err != nil {
			s.o.Logger.Error("could not give up leadership", "err", err)
		}
	}
}

// settle makes sure that the speculative state starts from everything that was committed before this term. It reports false when that
// is not known yet; the waiting requests are then answered.
func (s *Sequencer) settle() bool {
	term := s.o.Proposer.Term()
	if term == s.term && term != 0 {
		return true
	}
	ctx, cancel := context.WithTimeout(context.Background(), barrierTimeout)
	defer cancel()
	if err := s.o.Proposer.Barrier(ctx); err != nil {
		s.failBacklog(fmt.Errorf("%w: %w", ErrNotApplied, err))
		return false
	}
	clear(s.specs)
	s.term, s.refusals = s.o.Proposer.Term(), 0
	return true
}

func (s *Sequencer) failBacklog(err error) {
	for _, p := range s.backlog {
		p.answer(reply{err: err})
	}
	s.backlog = nil
}

// flush composes and proposes one command from the backlog.
func (s *Sequencer) flush() {
	if s.o.Proposer.Term() != s.term || s.term == 0 {
		if len(s.flying) > 0 {
			s.land(<-s.landed)
			return
		}
		if !s.settle() {
			return
		}
	}
	b := s.newBuilder()
	for len(s.backlog) > 0 && !b.full() {
		p := s.backlog[0]
		if p.create != "" || p.boot {
			// A control command is submitted alone: everything before it is applied, nothing is composed beside it.
			if len(b.parts) > 0 || len(s.flying) > 0 {
				break
			}
			s.backlog = s.backlog[1:]
			s.control(p)
			return
		}
		if len(b.parts) > 0 && b.entries+len(p.Events) > ledger.MaxCommandEntries {
			break
		}
		s.backlog = s.backlog[1:]
		if !s.take(p) {
			continue
		}
		switch err := b.add(p); {
		case errors.Is(err, errHold):
			s.held = append(s.held, p)
		case err != nil:
			p.answer(reply{err: err})
		}
	}
	if len(b.parts) > 0 {
		s.launch(b.command(), b.parts)
	} else if len(s.backlog) > 0 && len(s.flying) > 0 {
		// Only a control command is left, and it waits for what is in flight.
		s.land(<-s.landed)
	}
}

// take reports whether p is still wanted, and counts its attempts.
func (s *Sequencer) take(p *pending) bool {
	if p.attempt > 0 {
		s.m.Recomposed.Add(1)
	} else if !p.state.CompareAndSwap(stateQueued, stateTaken) {
		return false
	}
	if p.attempt++; p.attempt > maxRecompose {
		p.answer(reply{err: fmt.Errorf("%w: refused %d times", ErrNotApplied, maxRecompose)})
		return false
	}
	return true
}
