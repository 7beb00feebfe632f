package consensus

import (
	"context"
	"errors"
	"fmt"

	"github.com/hashicorp/raft"
)

// The two classes of failure. Every error of Proposal.Wait and of Barrier is exactly one of them.
var (
	// ErrNotApplied: the command is in no log and never will be. Proposing it again is safe.
	ErrNotApplied = errors.New("not applied")
	// ErrUnknown: the command may be applied, now or later, or never. Only a later look at the state can tell.
	ErrUnknown = errors.New("outcome unknown")
)

// Reasons, wrapped together with ErrNotApplied.
var (
	// ErrClosed: Close was called before.
	ErrClosed = errors.New("consensus is closed")
	// ErrBusy: Config.MaxAppendEntries proposals are in flight. Wait for one.
	ErrBusy = errors.New("too many proposals in flight")
)

// Proposal is a command on its way. Any number of goroutines may wait for it.
type Proposal struct {
	future    raft.Future     // read by Consensus.resolve only
	abandoned <-chan struct{} // Consensus.abandoned

	done   chan struct{} // closed when the fields below are set
	result any
	index  uint64
	err    error // as raft gave it
}

// Wait returns the machine's result for the command and the command's log index. err wraps ErrNotApplied or ErrUnknown;
// a result that is itself an error is a result. When ctx ends first, err wraps ErrUnknown and the cause, and the proposal
// goes on: a later Wait may learn its end.
func (p *Proposal) Wait(ctx context.Context) (result any, index uint64, err error) {
	select {
	case <-p.done: // what is known wins over a context that has ended
	default:
		select {
		case <-p.done:
		case <-p.abandoned:
			return nil, 0, fmt.Errorf("consensus: %w: %w", ErrUnknown, ErrClosed)
		case <-ctx.Done():
			return nil, 0, fmt.Errorf("consensus: %w: %w", ErrUnknown, context.Cause(ctx))
		}
	}
	if p.err != nil {
		return nil, 0, classify(p.err)
	}
	return p.result, p.index, nil
}

// classify wraps an error of a raft proposal or barrier as ErrNotApplied or ErrUnknown. Read from raft v1.8.0:
//
//   - ErrNotLeader is answered by the loops of followers and candidates to what they take from the channel of proposals,
//     and by a leader that removes itself, all before dispatchLogs, the only place that gives a proposal an index.
//   - ErrLeadershipTransferInProgress: answered by the leader's loop, likewise before dispatchLogs.
//   - ErrEnqueueTimeout: the proposal was not even put on the channel. (Consensus sets no such timeout.)
//   - ErrLeadershipLost: answered to all that is in flight, stored here and perhaps elsewhere; the next leader may commit it.
//   - ErrRaftShutdown comes from two places: from ApplyLog before the channel, which Consensus rules out by never proposing
//     once Shutdown may have been called, and from processLogs for entries that are COMMITTED but did not reach the machine.
//     Hence unknown.
//   - ErrAbortedByRestore: stored, perhaps sent. Consensus never restores; if it did, nothing would be certain.
//   - Anything else is an error of the store: it may have been written before it failed, and a leader's error does not
//     recall what a peer has.
func classify(err error) error {
	class := ErrUnknown
	for _, e := range []error{
		raft.ErrNotLeader, raft.ErrLeadershipTransferInProgress, raft.ErrEnqueueTimeout, ErrClosed, ErrBusy,
	} {
		if errors.Is(err, e) {
			class = ErrNotApplied
		}
	}
	return fmt.Errorf("consensus: %w: %w", class, err)
}

// Propose puts a command into the log, if this node leads. Commands enter the log in the order of the calls. It does not
// wait: with Config.MaxAppendEntries proposals in flight the new one fails at once with ErrBusy (and ErrNotApplied).
// data is kept and must not be changed any more.
func (c *Consensus) Propose(data []byte) *Proposal {
	select {
	case c.slots <- struct{}{}:
	default:
		return failed(ErrBusy)
	}
	return c.submit(func() raft.Future { return c.raft.ApplyLog(raft.Log{Data: data}, 0) })
}

// Barrier returns nil when everything that was committed before the call is applied here. Only a leader can do it. Its
// errors are those of Proposal.Wait; both classes mean no more than "not known to be applied".
func (c *Consensus) Barrier(ctx context.Context) error {
	select {
	case c.slots <- struct{}{}:
	case <-c.closing:
		return classify(ErrClosed)
	case <-ctx.Done():
		return fmt.Errorf("consensus: %w: %w", ErrNotApplied, context.Cause(ctx))
	}
	_, _, err := c.submit(func() raft.Future { return c.raft.Barrier(0) }).Wait(ctx)
	return err
}

// submit hands something to raft, under the slot that the caller took, and has its answer waited for. It never blocks for long: raft's channel of
// proposals buffers MaxAppendEntries, as many as there are slots, and a slot is given back only when raft has answered,
// which it does only to what it took from the channel. The same count bounds the queue to resolve.
func (c *Consensus) submit(send func() raft.Future) *Proposal {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		<-c.slots
		return failed(ErrClosed)
	}
	p := &Proposal{done: make(chan struct{}), abandoned: c.abandoned, future: send()}
	c.queue <- p
	return p
}

func failed(err error) *Proposal {
	p := &Proposal{done: make(chan struct{}), err: err}
	close(p.done)
	return p
}

// resolve takes proposals in their order and waits for raft's answer to each. raft answers in that order too, but for
// refusals, which then wait for the proposals ahead of them. One goroutine does it because a future of raft can only be
// waited for, by one goroutine, without end: this keeps the waiting of callers apart from it.
func (c *Consensus) resolve() {
	defer close(c.resolved)
	for p := range c.queue {
		if err := p.future.Error(); err != nil {
			p.err = err
		} else if f, ok := p.future.(raft.ApplyFuture); ok {
			p.result, p.index = f.Response(), f.Index()
		}
		p.future = nil
		<-c.slots // first: who has seen the end of one proposal may make another
		close(p.done)
	}
}
