package sequencer

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/provledger/provledger/internal/ledger"
)

// flight is a command in flight.
type flight struct {
	parts  []part
	specs  []*spec // of the logs that it touches; none of a control command
	landed bool
	result any
	err    error

	departed, arrived time.Time // zero: nobody wants to know
}

// part is a request in a command.
type part struct {
	p        *pending
	recorded []Recorded
}

// backlog is what waits to be composed, in order.
type backlog struct {
	waiting []*pending
	bytes   int // as counted by the senders
}

func (b *backlog) empty() bool { return len(b.waiting) == 0 }

func (b *backlog) push(p *pending) {
	b.waiting = append(b.waiting, p)
	b.bytes += p.Size
}

func (b *backlog) pop() *pending {
	p := b.waiting[0]
	b.waiting[0] = nil
	b.waiting = b.waiting[1:]
	b.bytes -= p.Size
	return p
}

// prepend puts requests that were taken before back to the front.
func (b *backlog) prepend(again ...*pending) {
	for _, p := range again {
		b.bytes += p.Size
	}
	b.waiting = slices.Concat(again, b.waiting)
}

func (s *Sequencer) run() {
	defer close(s.done)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	armed := false
	look := time.NewTicker(lookEvery)
	look.Stop()
	looking := false
	defer look.Stop()
	for {
		if looking != (s.specs.len() > 0) { // a node that never leads is never woken
			if looking = !looking; looking {
				look.Reset(lookEvery)
			} else {
				look.Stop()
			}
		}
		s.gather()
		if s.ready() {
			s.flush()
			continue
		}
		if !armed && !s.backlog.empty() {
			// Armed once, not again with every request: a steady trickle must not put the flush off.
			timer.Reset(flushDelay)
			armed = true
		}
		select {
		case p := <-s.queue:
			s.backlog.push(p)
		case f := <-s.landed:
			s.land(f)
		case <-timer.C:
			armed = false
			if !s.backlog.empty() && len(s.flying) < maxInFlight {
				s.flush()
			}
		case <-look.C:
			if len(s.flying) == 0 && s.o.Proposer.Term() != s.term {
				s.specs.clear() // it is of a leadership that is over, and takes memory
				s.unsettled = true
			}
		case <-s.stop:
			s.drain()
			return
		}
	}
}

// gather takes what is waiting, up to a full command.
func (s *Sequencer) gather() {
	for s.backlog.bytes < flushBytes && len(s.backlog.waiting) < ledger.MaxCommandEntries {
		select {
		case p := <-s.queue:
			s.backlog.push(p)
		default:
			return
		}
	}
}

// ready reports whether to propose now: at once when nothing is in flight, else when a command is full.
func (s *Sequencer) ready() bool {
	if s.backlog.empty() {
		return false
	}
	return len(s.flying) == 0 || len(s.flying) < maxInFlight && s.backlog.bytes >= flushBytes
}

// drain answers everything at the end: what is in flight gets its result, the rest is refused.
func (s *Sequencer) drain() {
	for len(s.flying) > 0 {
		s.land(<-s.landed)
	}
	closing := reply{err: fmt.Errorf("%w: the ledger is closing", ErrNotApplied)}
	for _, p := range slices.Concat(s.backlog.waiting, s.held) {
		s.answer(p, closing)
	}
	for {
		select {
		case p := <-s.queue:
			s.answer(p, closing)
		default:
			return
		}
	}
}

// launch proposes a command.
func (s *Sequencer) launch(command []byte, parts []part, specs []*spec) {
	f := &flight{parts: parts, specs: specs}
	for _, x := range specs {
		x.flying++
	}
	s.depart(f)
	proposal := s.o.Proposer.Propose(command)
	s.flying = append(s.flying, f)
	go func() {
		// Raft always answers, at the latest when it shuts down.
		f.result, f.err = proposal.Wait(context.Background())
		s.arrive(f)
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
	s.backlog.prepend(s.held...)
	s.held = nil
}

func (s *Sequencer) accepted(f *flight) {
	f.decided()
	for _, x := range f.specs {
		x.flying--
	}
	o := f.result.(*ledger.Outcome)
	for _, part := range f.parts {
		p := part.p
		if p.control != nil {
			var r reply
			if p.create != "" {
				r.log, r.err = s.o.Ledger.LogByName(p.create)
			}
			s.answer(p, r)
			continue
		}
		for i := range part.recorded {
			if part.recorded[i].Duplicate {
				s.m.Duplicates.Add(1)
			} else {
				s.m.Entries.Add(1)
			}
		}
		s.answer(p, reply{result: &Result{part.recorded, o.Tree(p.Log)}})
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
			s.answerAll(f, f.err)
		case !ok:
			// The command is in the log for good. This node did not apply it: it is damaged, and what the others did is not known here.
			err, isErr := f.result.(error)
			if !isErr {
				err = fmt.Errorf("the state machine answered %T", f.result)
			}
			unsure = true
			s.answerAll(f, fmt.Errorf("%w: %w", ErrUnknown, err))
		case o.Decision == ledger.Accepted:
			s.accepted(f)
		default:
			s.refused(o.Decision)
			for _, part := range f.parts {
				if p := part.p; s.again(p) {
					again = append(again, p)
				}
			}
		}
	}
	s.flying = nil
	s.backlog.prepend(slices.Concat(again, s.held)...)
	s.held = nil
	s.specs.clear()
	if unsure {
		s.unsettled = true
	}
}

func (s *Sequencer) answerAll(f *flight, err error) {
	f.decided()
	for _, part := range f.parts {
		s.answer(part.p, reply{err: err})
	}
}

// again makes p, of a command that was refused for certain, ready to be composed once more. It reports false when that has been tried
// often enough.
func (s *Sequencer) again(p *pending) bool {
	s.m.Recomposed.Add(1)
	if p.attempt++; p.attempt >= maxRecompose {
		s.answer(p, reply{err: fmt.Errorf("%w: refused %d times", ErrNotApplied, maxRecompose)})
		return false
	}
	p.state.Store(stateQueued) // it is in no command now, so its caller may leave
	return true
}

// refused counts. Two wrong roots in a term mean that this node's arithmetic cannot be trusted to lead: it gives leadership up, and
// composes nothing more in this term whether or not there is another node to take it.
func (s *Sequencer) refused(d ledger.Decision) {
	s.m.Refused.Add(1)
	s.m.RefusedBy[min(d, ledger.RefusedVersion)].Add(1)
	s.o.Logger.Warn("a command was refused and is composed again", "decision", d)
	if d != ledger.RefusedAfter {
		return
	}
	if s.refusals++; s.refusals == 2 {
		err := fmt.Errorf("%w: %w: two commands of this node had wrong roots, so its memory or processor is at fault; it appends nothing more "+
			"in this term; start it again, on another machine if this recurs", ErrNotApplied, ledger.ErrQuarantined)
		s.distrust.Store(&distrust{s.term, err})
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
	ctx, cancel := context.WithTimeout(context.Background(), barrierTimeout)
	defer cancel()
	if err := s.o.Proposer.Barrier(ctx); err != nil {
		s.failBacklog(fmt.Errorf("%w: %w", ErrNotApplied, err))
		return false
	}
	s.specs.clear()
	// The term as it was before the barrier: if it has moved on since, the barrier may not have been of the new one.
	if s.term != term {
		s.refusals = 0
	}
	s.term, s.unsettled = term, false
	return true
}

func (s *Sequencer) failBacklog(err error) {
	for !s.backlog.empty() {
		s.answer(s.backlog.pop(), reply{err: err})
	}
}

// flush composes and proposes one command from the backlog.
func (s *Sequencer) flush() {
	if s.o.Proposer.Term() != s.term || s.unsettled {
		if len(s.flying) > 0 {
			s.land(<-s.landed)
			return
		}
		if !s.settle() {
			return
		}
	}
	if err := s.Distrust(); err != nil {
		s.failBacklog(err)
		return
	}
	b := s.newBuilder()
	defer b.close()
compose:
	for !s.backlog.empty() && !b.full() {
		p := s.backlog.waiting[0]
		if p.control != nil {
			// A control command is submitted alone: everything before it is applied, nothing is composed beside it.
			if len(b.parts) > 0 || len(s.flying) > 0 {
				break
			}
			s.control(s.backlog.pop())
			return
		}
		if b.entries > 0 && b.entries+len(p.Events) > ledger.MaxCommandEntries {
			break
		}
		s.backlog.pop()
		switch err := b.add(p); err {
		case nil:
		case errHold:
			s.held = append(s.held, p)
		case errFull:
			s.backlog.prepend(p)
			break compose
		case errGone:
			s.release(p)
		default:
			s.refuse(p, err)
		}
	}
	if len(b.parts) > 0 {
		command, specs := b.command()
		s.launch(command, b.parts, specs)
	} else if !s.backlog.empty() && len(s.flying) > 0 {
		// Only a control command is left, and it waits for what is in flight.
		s.land(<-s.landed)
	}
	s.specs.trim()
}
