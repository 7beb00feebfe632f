package consensus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// fenceTimeout bounds a round of the read fence: a few round trips to a busy peer. Who reads tries again.
const fenceTimeout = 2 * time.Second

var (
	// ErrNotLeader: this node does not lead, or a newer leader may exist.
	ErrNotLeader = errors.New("not the leader")
	// ErrNoMajority: too few voters answered to tell whether this node still leads.
	ErrNoMajority = errors.New("no majority of voters answered")
)

// fence is the state of linearizable reads. Reads that arrive while a round is under way share the one after it.
type fence struct {
	mu      sync.Mutex
	running bool
	next    *round // collects reads; nil: none has arrived
	rounds  uint64 // begun so far
	reads   uint64 // that came
	failed  uint64 // rounds

	ctx    context.Context // ends when Close begins
	cancel context.CancelCauseFunc

	// barrier is the term of the last barrier. Used by the round that is under way only.
	barrier uint64
}

func newFence() fence {
	ctx, cancel := context.WithCancelCause(context.Background())
	return fence{ctx: ctx, cancel: cancel}
}

// round is one question to the voters.
type round struct {
	done      chan struct{} // closed when the fields below are set
	delivered uint64
	err       error
}

// ReadIndex returns an index such that a machine that has applied it (WaitDelivered, on any node) has every command that
// was acknowledged anywhere before the call. Only a leader can tell: it notes what it has delivered, then asks the other
// voters for their terms. A majority of voters at exactly its own term, itself included, proves that no newer leader had
// been elected when the index was noted, for a leader needs a majority whose terms are raised for good before it is one.
// What leaders before this one acknowledged is covered by a barrier, once a term. No clock and no lease has a part in it.
//
// One round serves all reads that arrived before it began. Errors wrap ErrNotLeader, ErrNoMajority, ErrClosed or the
// cause of ctx; nothing is known then, and another call may succeed.
func (c *Consensus) ReadIndex(ctx context.Context) (delivered uint64, err error) {
	f := &c.fence
	f.mu.Lock()
	f.reads++
	if f.next == nil {
		f.next = &round{done: make(chan struct{})}
	}
	r := f.next
	if !f.running {
		c.mu.Lock()
		closed := c.closed
		if !closed {
			c.asked.Add(1)
		}
		c.mu.Unlock()
		if closed {
			f.next = nil
			f.mu.Unlock()
			return 0, fmt.Errorf("consensus: read: %w", ErrClosed)
		}
		f.running = true
		go c.fenceRounds()
	}
	f.mu.Unlock()
	select {
	case <-r.done:
	case <-ctx.Done():
		return 0, fmt.Errorf("consensus: read: %w", context.Cause(ctx))
	}
	if r.err != nil {
		return 0, fmt.Errorf("consensus: read: %w", r.err)
	}
	return r.delivered, nil
}

// fenceRounds runs rounds until no read is left.
func (c *Consensus) fenceRounds() {
	defer c.asked.Done()
	f := &c.fence
	for {
		f.mu.Lock()
		r := f.next
		if f.next = nil; r == nil {
			f.running = false
			f.mu.Unlock()
			return
		}
		f.rounds++
		f.mu.Unlock()
		r.delivered, r.err = c.fenceRound()
		if r.err != nil {
			f.mu.Lock()
			f.failed++
			f.mu.Unlock()
		}
		close(r.done)
	}
}

func (c *Consensus) fenceRound() (delivered uint64, err error) {
	ctx, cancel := context.WithTimeout(c.fence.ctx, fenceTimeout)
	defer cancel()
	term := c.Term()
	if !c.IsLeader() {
		return 0, ErrNotLeader
	}
	if c.fence.barrier != term {
		if err := c.Barrier(ctx); err != nil {
			if ctx.Err() != nil {
				return 0, fmt.Errorf("%w: barrier: %w", ErrNoMajority, context.Cause(ctx))
			}
			return 0, fmt.Errorf("%w: barrier: %w", ErrNotLeader, err)
		}
		if !c.leads(term) { // the barrier may be one of another term
			return 0, ErrNotLeader
		}
		c.fence.barrier = term
	}
	// The barrier has covered earlier leaders; all that this one has acknowledged it has delivered. From here on only a
	// newer leader could have acknowledged more.
	delivered = c.fsm.delivered.Load()
	if err := c.confirm(ctx, term); err != nil {
		return 0, err
	}
	if !c.leads(term) {
		return 0, ErrNotLeader
	}
	return delivered, nil
}

// leads says that this node is leader of term. Both are read without a lock: a leader of another term is told by the term
// before or after, which never goes back.
func (c *Consensus) leads(term uint64) bool {
	return c.Term() == term && c.IsLeader() && c.Term() == term
}

// confirm returns nil when a majority of voters has said, after the call, that its term is term.
func (c *Consensus) confirm(ctx context.Context, term uint64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		term uint64
		err  error
	}
	voters := c.log.members.latest().voters()
	need, asked := len(voters)/2+1, 0
	answers := make(chan answer, len(voters))
	for _, id := range voters {
		if id == raft.ServerID(c.conf.NodeID) {
			need--
			continue
		}
		asked++
		go func() {
			t, err := c.conf.Term(ctx, string(id))
			answers <- answer{t, err}
		}()
	}
	var errs []error
	for ; need > 0; asked-- {
		if asked < need {
			return fmt.Errorf("%w: %w", ErrNoMajority, errors.Join(errs...))
		}
		select {
		case a := <-answers:
			switch {
			case a.err != nil:
				errs = append(errs, a.err)
			case a.term > term:
				return fmt.Errorf("%w: a voter is in term %d, this node leads in %d", ErrNotLeader, a.term, term)
			case a.term < term:
				errs = append(errs, fmt.Errorf("a voter is in term %d, this node leads in %d", a.term, term))
			default:
				need--
			}
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrNoMajority, errors.Join(append(errs, context.Cause(ctx))...))
		}
	}
	return nil
}

// WaitDelivered returns nil when the machine has applied everything up to index, which is one that ReadIndex or a
// proposal gave. Errors wrap ErrClosed or the cause of ctx.
func (c *Consensus) WaitDelivered(ctx context.Context, index uint64) error {
	for {
		changed := c.fsm.progress()
		if c.fsm.delivered.Load() >= index {
			return nil
		}
		select {
		case <-changed:
		case <-c.closing:
			return fmt.Errorf("consensus: wait for index %d: %w", index, ErrClosed)
		case <-ctx.Done():
			return fmt.Errorf("consensus: wait for index %d: %w", index, context.Cause(ctx))
		}
	}
}
