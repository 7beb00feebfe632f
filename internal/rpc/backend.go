package rpc

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/sequencer"
)

// Backend is what a service answers from. A node that was repaired gets a new ledger, and everything that rests on it, while the service
// goes on: see [Service.Swap].
type Backend struct {
	Ledger      *ledger.Ledger
	Appender    Appender
	Checkpoints Checkpointer
	Finder      Finder
}

// pauseGrace is how long [Service.Pause] lets unary calls finish by themselves: a commit takes milliseconds.
const pauseGrace = time.Second

var (
	// errDraining ends a watch on a server that stops; the client goes on elsewhere, or here after the restart.
	errDraining = status.Error(codes.Unavailable, "the server is stopping; watch again from the next index")
	// errPaused is the answer of a node that has no ledger at the moment.
	errPaused = fmt.Errorf("%w: this node is joining the cluster or being repaired", sequencer.ErrNotApplied)
)

// kind of a call: what ends it early.
type kind uint8

const (
	callUnary  kind = iota
	callStream      // ends with Pause
	callWatch       // ends with Drain too
)

// holder hands the backend to calls and knows which of them have it.
type holder struct {
	mu       sync.Mutex
	backend  *Backend
	paused   bool
	draining bool
	calls    map[*holding]struct{}
	idle     chan struct{} // closed when calls is empty, if somebody waits for that
}

// holding is one call that has the backend.
type holding struct {
	kind   kind
	cancel context.CancelCauseFunc
}

// acquire gives a call the backend until release. The context ends early, with errPaused or errDraining as its cause, when the call has to.
func (h *holder) acquire(ctx context.Context, k kind) (_ *Backend, _ context.Context, release func(), err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.paused || h.backend == nil:
		return nil, ctx, nil, errPaused
	case h.draining && k == callWatch:
		return nil, ctx, nil, errDraining
	}
	ctx, cancel := context.WithCancelCause(ctx)
	c := &holding{k, cancel}
	h.calls[c] = struct{}{}
	return h.backend, ctx, func() {
		cancel(nil)
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.calls, c)
		if len(h.calls) == 0 && h.idle != nil {
			close(h.idle)
			h.idle = nil
		}
	}, nil
}

// end cancels the calls of some kinds.
func (h *holder) end(why error, is func(kind) bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for c := range h.calls {
		if is(c.kind) {
			c.cancel(why)
		}
	}
}

// Drain ends the watches, which would otherwise last as long as their clients like, and admits no new ones. Everything else goes on.
func (s *Service) Drain() {
	s.held.mu.Lock()
	s.held.draining = true
	s.held.mu.Unlock()
	s.held.end(errDraining, func(k kind) bool { return k == callWatch })
}

// Pause takes the backend away: it returns when no call uses it any more. Streams end at once and unary calls after [pauseGrace]; new calls
// fail with Unavailable and NOT_APPLIED, or go to the leader if another node leads. [Service.Swap] ends the pause.
func (s *Service) Pause() {
	h := &s.held
	h.mu.Lock()
	h.paused = true
	if h.idle == nil {
		h.idle = make(chan struct{})
	}
	idle := h.idle
	if len(h.calls) == 0 {
		close(idle)
		h.idle = nil
	}
	h.mu.Unlock()
	h.end(errPaused, func(k kind) bool { return k != callUnary })
	select {
	case <-idle:
		return
	case <-time.After(pauseGrace):
	}
	h.end(errPaused, func(kind) bool { return true })
	<-idle
}

// Swap makes new calls use another backend; nil means that this node has none: it is joining or being repaired. Calls that are running keep
// the one that they have: [Service.Pause] before says when it is not used any more.
func (s *Service) Swap(b *Backend) {
	s.held.mu.Lock()
	defer s.held.mu.Unlock()
	s.held.backend, s.held.paused = b, false
}

// ended replaces the error of a call that was ended by us.
func ended(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); err != nil && (errors.Is(cause, errPaused) || cause == errDraining) {
		return cause
	}
	return err
}
