package client

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

func failure(code codes.Code, reason string, retry time.Duration) error {
	var d []protoadapt.MessageV1
	if reason != "" {
		d = append(d, &errdetails.ErrorInfo{Domain: errorDomain, Reason: reason})
	}
	if retry > 0 {
		d = append(d, &errdetails.RetryInfo{RetryDelay: durationpb.New(retry)})
	}
	s, err := status.New(code, "test").WithDetails(d...)
	if err != nil {
		panic(err)
	}
	return s.Err()
}

// Each way in which an attempt can fail: is there another one, and what is said in the end.
func TestFailures(t *testing.T) {
	for _, x := range []struct {
		err     error
		retried bool
		outcome error // nil: refused for good
	}{
		{failure(codes.Unavailable, reasonNotApplied, 0), true, ErrNotApplied},
		{failure(codes.Unavailable, reasonUnknownOutcome, 0), true, ErrUnknown},
		{failure(codes.Unavailable, "", 0), true, ErrUnknown}, // the transport: it may have got through
		{failure(codes.DeadlineExceeded, reasonUnknownOutcome, 0), true, ErrUnknown},
		{failure(codes.DeadlineExceeded, reasonNotApplied, 0), true, ErrNotApplied},
		{failure(codes.ResourceExhausted, "OVERLOADED", time.Second), true, ErrNotApplied},
		{failure(codes.ResourceExhausted, "", 0), false, nil}, // a message over the limit
		{failure(codes.FailedPrecondition, reasonNotSigning, 0), false, ErrUnknown},
		{failure(codes.FailedPrecondition, "QUARANTINED", 0), false, nil},
		{failure(codes.Internal, "", 0), false, ErrUnknown},
		{failure(codes.DataLoss, "", 0), false, ErrUnknown},
		{failure(codes.InvalidArgument, "", 0), false, nil},
		{failure(codes.AlreadyExists, "", 0), false, nil},
		{failure(codes.NotFound, "", 0), false, nil},
		{failure(codes.PermissionDenied, "", 0), false, nil},
		{failure(codes.Unimplemented, "", 0), false, nil},
	} {
		synctest.Test(t, func(t *testing.T) {
			c := New(nil, Options{StateDir: noMemory})
			attempts, start := 0, time.Now()
			m := func(context.Context, *ledgerv1.AppendRequest, ...grpc.CallOption) (*ledgerv1.AppendResponse, error) {
				attempts++
				return nil, x.err
			}
			_, err := write(t.Context(), c, "append", m, &ledgerv1.AppendRequest{})
			name := x.err.Error()
			if (attempts > 1) != x.retried {
				t.Errorf("%s: %d attempts", name, attempts)
			}
			for _, o := range []error{ErrNotApplied, ErrUnknown} {
				if errors.Is(err, o) != (o == x.outcome) {
					t.Errorf("%s: %v, want outcome %v", name, err, x.outcome)
				}
			}
			if status.Code(err) != status.Code(x.err) {
				t.Errorf("%s: the status got lost in %v", name, err)
			}
			if took := time.Since(start); took > DefaultTimeout {
				t.Errorf("%s: gave up after %v", name, took)
			}
			if x.retried && attempts > 200 {
				t.Errorf("%s: %d attempts in %v: no backoff", name, attempts, time.Since(start))
			}
		})
	}
}

// One attempt of unknown outcome makes the whole unknown, whatever comes after; and success after failures is success.
func TestOutcomeAddsUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New(nil, Options{StateDir: noMemory})
		run := func(errs ...error) error {
			n := 0
			_, err := write(t.Context(), c, "append", func(context.Context, *ledgerv1.AppendRequest, ...grpc.CallOption) (*ledgerv1.AppendResponse, error) {
				n++
				return &ledgerv1.AppendResponse{}, errs[n-1]
			}, &ledgerv1.AppendRequest{})
			return err
		}
		notApplied, unknown := failure(codes.Unavailable, reasonNotApplied, 0), failure(codes.Unavailable, reasonUnknownOutcome, 0)
		if err := run(notApplied, unknown, notApplied, nil); err != nil {
			t.Errorf("success in the end: %v", err)
		}
		if err := run(unknown, notApplied, failure(codes.InvalidArgument, "", 0)); !errors.Is(err, ErrUnknown) {
			t.Errorf("unknown, then refused: %v", err)
		}
		if err := run(notApplied, failure(codes.InvalidArgument, "", 0)); errors.Is(err, ErrUnknown) || !isCode(err, codes.InvalidArgument) {
			t.Errorf("not applied, then refused: %v", err)
		}
	})
}

// A server that accepts and never answers costs one attempt, not the operation; the pause that a server asks for is kept; the caller's
// deadline holds.
func TestTiming(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New(nil, Options{StateDir: noMemory})
		n, start := 0, time.Now()
		_, err := read(t.Context(), c, "read", func(ctx context.Context, _ *ledgerv1.GetLogRequest, _ ...grpc.CallOption) (*ledgerv1.GetLogResponse, error) {
			if n++; n == 1 {
				<-ctx.Done()
				return nil, status.FromContextError(ctx.Err()).Err()
			}
			if n == 2 {
				return nil, failure(codes.ResourceExhausted, "", 3*time.Second)
			}
			return &ledgerv1.GetLogResponse{}, nil
		}, &ledgerv1.GetLogRequest{})
		if took := time.Since(start); err != nil || took < attemptTimeout+3*time.Second || took > attemptTimeout+3*time.Second+maxPause {
			t.Errorf("%v after %v", err, took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		start = time.Now()
		_, err = read(ctx, c, "read", func(context.Context, *ledgerv1.GetLogRequest, ...grpc.CallOption) (*ledgerv1.GetLogResponse, error) {
			return nil, failure(codes.Unavailable, "", 0)
		}, &ledgerv1.GetLogRequest{})
		if took := time.Since(start); err == nil || took > 100*time.Millisecond {
			t.Errorf("%v after %v, the deadline was 100 ms", err, took)
		}
	})
}

// An append whose answer is lost is sent again under its id, and recorded once.
func TestLostAnswer(t *testing.T) {
	lost := 0
	c := newLedger(t).dial(Options{}, grpc.WithUnaryInterceptor(
		func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, next grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			err := next(ctx, method, req, reply, cc, opts...)
			if method == ledgerv1.LedgerService_Append_FullMethodName && lost < 3 {
				lost++
				return status.Error(codes.Unavailable, "connection reset")
			}
			return err
		}))
	r := mustAppend(t, c, event("x"))
	if r.Index != 1 || r.TreeSize != 2 || !r.Duplicate || lost != 3 {
		t.Errorf("%+v after %d lost answers, want one entry", r, lost)
	}
}
