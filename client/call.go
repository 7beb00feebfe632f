package client

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// attemptTimeout bounds one attempt, so that a server that hangs costs one attempt and not the operation. A commit takes
	// milliseconds; a failover seconds.
	attemptTimeout = 15 * time.Second
	// shortAttemptTimeout is that where there are other nodes to ask.
	shortAttemptTimeout = 5 * time.Second

	// Pause before the n-th attempt: random below firstPause * 2^n, at most maxPause.
	firstPause = 50 * time.Millisecond
	maxPause   = 2 * time.Second

	// Domain and reasons of google.rpc.ErrorInfo in the statuses of the ledger service.
	errorDomain          = "provledger"
	reasonNotApplied     = "NOT_APPLIED"
	reasonUnknownOutcome = "UNKNOWN_OUTCOME"
	reasonNotSigning     = "NOT_SIGNING"
	reasonNoKey          = "NO_KEY"
	reasonBehind         = "BEHIND"
	reasonQuarantined    = "QUARANTINED"
)

// method is a unary method of the generated client.
type method[Q, R any] func(ctx context.Context, req *Q, opts ...grpc.CallOption) (*R, error)

// withTimeout gives an operation its overall deadline if the caller set none.
func (c *Client) withTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, c.o.Timeout)
}

// read calls a method that changes nothing, again and again until it answers, refuses, or the time is up.
func read[Q, R any](ctx context.Context, c *Client, what string, m method[Q, R], req *Q) (*R, error) {
	resp, _, err := call(ctx, c, what, m, req)
	return resp, err
}

// write does the same for a method that records something under an id, and says what is known if it fails.
func write[Q, R any](ctx context.Context, c *Client, what string, m method[Q, R], req *Q) (*R, error) {
	resp, outcome, err := call(ctx, c, what, m, req)
	if err != nil && outcome != nil {
		err = &outcomeError{outcome, err}
	}
	return resp, err
}

// call does the attempts. outcome is what a failure of them all means for a write: nil if the server refused the request for good.
func call[Q, R any](ctx context.Context, c *Client, what string, m method[Q, R], req *Q) (resp *R, outcome error, err error) {
	return attempts(ctx, c, what, m, req, manner{})
}

// manner is how attempts are made.
type manner struct {
	whole bool // one attempt may take all of the time
	once  bool // no other attempt after one that may have had an effect
}

func attempts[Q, R any](ctx context.Context, c *Client, what string, m method[Q, R], req *Q, how manner) (resp *R, outcome error, err error) {
	ctx, cancel := c.withTimeout(ctx)
	defer cancel()
	outcome = ErrNotApplied // until an attempt may have had an effect
	for n := 0; ; n++ {
		attempt, cancel := ctx, context.CancelFunc(func() {})
		if !how.whole {
			attempt, cancel = context.WithTimeout(ctx, c.attemptTimeout())
		}
		resp, err = m(attempt, req, grpc.MaxCallRecvMsgSize(MaxMessageBytes))
		cancel()
		if err == nil {
			return resp, nil, nil
		}
		v := judge(err)
		if isCode(err, codes.Unavailable) && c.pool.wrongServer() {
			v = verdict{}
		}
		others := n+1 < c.pool.size() // that were not asked yet
		if !v.mayHaveEffect && others && elsewhere(err) {
			v.retry = true
		}
		if v.mayHaveEffect {
			outcome = ErrUnknown
		}
		if !v.retry || ctx.Err() != nil || how.once && outcome == ErrUnknown {
			if v.refused && outcome == ErrNotApplied {
				outcome = nil
			}
			return nil, outcome, fmt.Errorf("%s: %w", what, err)
		}
		pause := max(v.pause, rand.N(min(firstPause<<min(n, 10), maxPause)))
		if others && v.pause == 0 {
			pause = 0 // the next node need not be waited for
		}
		if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < pause {
			return nil, outcome, fmt.Errorf("%s: gave up after %d attempts: %w", what, n+1, err)
		}
		c.logger.DebugContext(ctx, "retrying", "call", what, "attempt", n+1, "pause", pause, "err", err)
		select {
		case <-ctx.Done():
			return nil, outcome, fmt.Errorf("%s: %w", what, err)
		case <-time.After(pause):
		}
	}
}

func (c *Client) attemptTimeout() time.Duration {
	if c.pool.size() > 1 {
		return shortAttemptTimeout
	}
	return attemptTimeout
}

// verdict is what an error of one attempt means.
type verdict struct {
	retry         bool          // another attempt may succeed
	pause         time.Duration // the server asked for
	mayHaveEffect bool          // the request may have been carried out
	refused       bool          // the server understood and said no
}

func judge(err error) verdict {
	s, _ := status.FromError(err)
	reason, _ := reasonOf(err)
	var pause time.Duration
	asked := false
	for _, d := range s.Details() {
		if d, ok := d.(*errdetails.RetryInfo); ok {
			pause, asked = d.GetRetryDelay().AsDuration(), true
		}
	}
	v := verdict{pause: pause}
	switch s.Code() {
	case codes.Unavailable, codes.DeadlineExceeded:
		// Without a reason it comes from the transport, which cannot tell whether the request got through.
		v.retry, v.mayHaveEffect = true, true
	case codes.ResourceExhausted:
		// Overload comes with RetryInfo and before anything is queued; a message over the limit comes without.
		v.retry, v.refused = asked, !asked
	case codes.Aborted, codes.Canceled, codes.Internal, codes.Unknown, codes.DataLoss:
		v.mayHaveEffect = true
	default:
		v.refused = true
	}
	switch reason { // what the server knows of the outcome wins over what the code suggests
	case reasonNotApplied, reasonNoKey:
		v.mayHaveEffect = false
	case reasonUnknownOutcome, reasonNotSigning: // it may be recorded and only the receipt refused
		v.mayHaveEffect, v.refused = true, false
	}
	return v
}

// isCode reports whether err is a gRPC status with the given code.
func isCode(err error, code codes.Code) bool {
	var s interface{ GRPCStatus() *status.Status }
	return errors.As(err, &s) && s.GRPCStatus().Code() == code
}
