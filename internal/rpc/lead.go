package rpc

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/provledger/provledger/internal/cluster"
	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/sequencer"
	"github.com/provledger/provledger/internal/signer"
)

const (
	// leaderHeader is the response header with the address of the leader for clients.
	leaderHeader = "provledger-leader"
	// forwardedKey marks a call that another node passed on: it is not passed on again, so two nodes that each take the other for the
	// leader cannot play ball with it.
	forwardedKey = "provledger-forwarded"

	// answerShare of a caller's deadline, between answerMargin and maxAnswerMargin, is kept to tell how the call ended: an outcome that
	// arrives too late tells nobody, and a node that is busy needs a moment to say it.
	answerShare     = 20
	answerMargin    = 20 * time.Millisecond
	maxAnswerMargin = 250 * time.Millisecond
	// hopMargin is how much less time the leader gets than this node has.
	hopMargin = 5 * time.Millisecond
	// attemptTimeout bounds one attempt at the leader: one that hangs, and is leader still for all that this node knows, costs one attempt
	// and not the call.
	attemptTimeout = 5 * time.Second
	// leaderWatch is how often the leader of a call in flight is looked at, from then on.
	leaderWatch = 100 * time.Millisecond
	// Pause before the n-th attempt: firstPause * 2^n, at most maxPause.
	firstPause = 5 * time.Millisecond
	maxPause   = 200 * time.Millisecond
	// forwardedPatience is how long a call that was passed on waits for this node to become the leader: who passed it on may have heard of
	// the election a little earlier.
	forwardedPatience = 50 * time.Millisecond
	// noKeyPatience is how long an append to a log whose key the leader lacks waits for leadership to move to a node that has it.
	noKeyPatience = 2 * time.Second
	// maxAnswerBytes is the largest answer that is passed on: that to a full batch repeats leaves and keys, less than three times the
	// request.
	maxAnswerBytes = 4 * MaxRequestBytes
)

// outcome is what is known of an attempt that failed.
type outcome uint8

const (
	final      outcome = iota // the answer: another attempt has the same
	notApplied                // nothing happened
	unknown                   // it may have happened
)

// judge tells from an error what became of a change.
func judge(err error) outcome {
	switch {
	case errors.Is(err, errUnproven):
		return final // the leader has recorded it and refuses to sign: nobody else will while it leads
	case errors.Is(err, sequencer.ErrUnknown):
		return unknown
	case errors.Is(err, sequencer.ErrNotApplied), errors.Is(err, sequencer.ErrKey), errors.Is(err, signer.ErrNoKey), errors.Is(err, cluster.ErrNotLeader):
		return notApplied
	case errors.Is(err, ledger.ErrQuarantined):
		return unknown // what is refused before anything is proposed wraps ErrNotApplied
	}
	s, ok := status.FromError(err)
	if !ok {
		return final
	}
	switch reason, _ := reasonOf(s); reason {
	case reasonNotApplied, reasonNoKey:
		return notApplied
	case reasonUnknown, reasonQuarantined:
		return unknown
	case "":
		switch s.Code() { // of the connection between nodes, which cannot tell whether the request got through
		case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
			return unknown
		}
	}
	return final
}

// reasonOf returns the reason that one of our statuses has.
func reasonOf(s *status.Status) (reason string, md map[string]string) {
	for _, d := range s.Details() {
		if i, ok := d.(*errdetails.ErrorInfo); ok && i.Domain == errorDomain {
			return i.Reason, i.Metadata
		}
	}
	return "", nil
}

func lacksKey(err error) bool {
	if errors.Is(err, sequencer.ErrKey) || errors.Is(err, signer.ErrNoKey) {
		return true
	}
	s, ok := status.FromError(err)
	if !ok {
		return false
	}
	reason, _ := reasonOf(s)
	return reason == reasonNoKey
}

// forwarded reports whether another node passed the call on.
func forwarded(ctx context.Context) bool {
	md, _ := metadata.FromIncomingContext(ctx)
	return len(md.Get(forwardedKey)) > 0
}

// ours returns a context that ends in time for the caller to hear of it.
func ours(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return ctx, func() {}
	}
	left := time.Until(deadline)
	return context.WithDeadline(ctx, deadline.Add(-min(max(left/answerShare, answerMargin), maxAnswerMargin, left/4)))
}

// leading is a change that the leader makes.
type leading[R any] struct {
	local  func(context.Context) (R, error)
	remote func(context.Context, grpc.ClientConnInterface) (R, error)
	// again permits another attempt after one of unknown outcome.
	again bool
	// patient lets an attempt at another node take as long as the caller has: a change of the cluster may wait for a node to catch up.
	patient bool
}

// lead makes a change on the leader, wherever that is, in as many attempts as the caller's deadline permits. unsure says that an attempt
// before the last one may have had an effect.
func lead[R any](ctx context.Context, s *Service, c leading[R]) (resp R, unsure bool, err error) {
	if s.o.Router == nil {
		resp, err = c.local(ctx)
		return resp, false, err
	}
	if forwarded(ctx) {
		resp, err = leadHere(ctx, s, c)
		return resp, false, err
	}
	caller := ctx
	ctx, cancel := ours(ctx)
	defer cancel()
	known, hint := sequencer.ErrNotApplied, ""
	last := errors.New("there is no leader")
	var keyless time.Time
	for n := 0; ; n++ {
		local, cc, h, err := s.o.Router.Leader(ctx)
		if err != nil {
			return resp, known == sequencer.ErrUnknown, s.undecided(caller, known, last, hint)
		}
		if hint = h; hint != "" {
			_ = grpc.SetHeader(caller, metadata.Pairs(leaderHeader, hint)) // there is none in a direct call
		}
		s.o.Metrics.attempted(n, local)
		if local {
			resp, err = c.local(ctx)
		} else {
			var cancel context.CancelFunc = func() {}
			try := ctx
			if !c.patient {
				try, cancel = context.WithTimeout(ctx, attemptTimeout)
			}
			resp, err = attempt(try, s, cc, c.remote)
			cancel()
		}
		if err == nil {
			return resp, known == sequencer.ErrUnknown, nil
		}
		switch o := judge(err); {
		case o == final && known == sequencer.ErrUnknown && overloaded(err):
			return resp, true, s.undecided(caller, known, err, hint) // it says nothing of the attempts before
		case o == final:
			return resp, known == sequencer.ErrUnknown, err
		case o == unknown:
			known = sequencer.ErrUnknown
		}
		last = err
		if lacksKey(err) {
			if keyless.IsZero() {
				keyless = time.Now()
			}
			if time.Since(keyless) > noKeyPatience && known == sequencer.ErrNotApplied {
				return resp, false, annotateLocal(err, hint)
			}
		}
		if known == sequencer.ErrUnknown && !c.again || !pause(ctx, n) {
			return resp, known == sequencer.ErrUnknown, s.undecided(caller, known, last, hint)
		}
	}
}

func overloaded(err error) bool {
	s, _ := status.FromError(err)
	return errors.Is(err, ledger.ErrOverloaded) || s.Code() == codes.ResourceExhausted
}

// leadHere makes a change that another node passed on because it takes this one for the leader. It does not insist.
func leadHere[R any](ctx context.Context, s *Service, c leading[R]) (resp R, err error) {
	short, cancel := context.WithTimeout(ctx, forwardedPatience)
	local, _, hint, err := s.o.Router.Leader(short)
	cancel()
	if err != nil || !local {
		return resp, annotate(fmt.Errorf("%w: this node does not lead", sequencer.ErrNotApplied), "leader", hint)
	}
	ctx, cancel = ours(ctx)
	defer cancel()
	return c.local(ctx)
}

// undecided is the error of a change that was not made in time, with what is known. What ended the attempts is our own deadline, not the
// caller's, so the caller hears of it as Unavailable; only if the call is over on the caller's side too that counts.
func (s *Service) undecided(caller context.Context, known, last error, hint string) error {
	s.o.Metrics.ended(known == sequencer.ErrUnknown)
	err := fmt.Errorf("%w: %s", known, textOf(last))
	if cause := caller.Err(); cause != nil {
		err = fmt.Errorf("%w: %w", err, cause)
	}
	return annotate(err, "leader", hint)
}

// hasStatus reports whether an error is a status, as those of other nodes are.
func hasStatus(err error) bool {
	_, ok := status.FromError(err)
	return ok
}

// textOf is what an error says, without the wire's words around it.
func textOf(err error) string {
	if s, ok := status.FromError(err); ok {
		return s.Message()
	}
	return err.Error()
}

// pause waits before the next attempt; false if ctx ends first.
func pause(ctx context.Context, n int) bool {
	t := time.NewTimer(min(firstPause<<min(n, 10), maxPause))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// attempt asks the leader once. It ends early when another node is the leader: the old one may be paused or cut off and never answer.
func attempt[R any](ctx context.Context, s *Service, cc grpc.ClientConnInterface, f func(context.Context, grpc.ClientConnInterface) (R, error)) (R, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if deadline, ok := ctx.Deadline(); ok {
		ctx, cancel = context.WithDeadline(ctx, deadline.Add(-min(hopMargin, time.Until(deadline)/4)))
		defer cancel()
	}
	var mu sync.Mutex // t is set before look uses it
	var t *time.Timer
	look := func() {
		if local, now, _, err := s.o.Router.Leader(ctx); err == nil && (local || now != cc) {
			cancel()
		}
		if ctx.Err() == nil {
			mu.Lock()
			defer mu.Unlock()
			t.Reset(leaderWatch)
		}
	}
	mu.Lock()
	t = time.AfterFunc(leaderWatch, look)
	mu.Unlock()
	defer t.Stop()
	return f(metadata.AppendToOutgoingContext(ctx, forwardedKey, "1"), cc)
}
