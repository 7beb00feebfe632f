package rpc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/sequencer"
	"github.com/provledger/provledger/internal/signer"
)

// Domain and reasons of google.rpc.ErrorInfo in the service's statuses. Clients decide by them, never by the text.
const (
	errorDomain = "provledger"

	reasonNotApplied  = "NOT_APPLIED"     // retry freely
	reasonUnknown     = "UNKNOWN_OUTCOME" // retry with the same event ids
	reasonQuarantined = "QUARANTINED"
	reasonOverloaded  = "OVERLOADED"
	reasonNotSigning  = "NOT_SIGNING"
)

// overloadedRetry is the pause that an overloaded node asks for.
const overloadedRetry = time.Second

// invalid is an error about one field of a request.
func invalid(field, reason string) error {
	return fmt.Errorf("%w: %w", ledger.ErrInvalid, &lineage.FieldError{Path: field, Reason: reason})
}

// within puts a field error under the event of a request that it is about.
func within(i, n int, err error) error {
	if f, ok := errors.AsType[*lineage.FieldError](err); ok && n > 1 {
		f.Path = fmt.Sprintf("events[%d].%s", i, f.Path)
	}
	return fmt.Errorf("%w: %w", ledger.ErrInvalid, err)
}

// errBeyond marks a tree size that the log has not reached: true later, so a precondition.
var errBeyond = errors.New("beyond the tree")

func beyond(field string, size, current uint64) error {
	return fmt.Errorf("%s: %d is %w of %d entries", field, size, errBeyond, current)
}

// classes is the one table from errors to codes. The first match counts.
var classes = []struct {
	is     error
	code   codes.Code
	reason string
}{
	// What is known about an append comes first, whatever went wrong.
	{sequencer.ErrUnknown, codes.Unavailable, reasonUnknown},
	{sequencer.ErrNotApplied, codes.Unavailable, reasonNotApplied},
	{ledger.ErrQuarantined, codes.FailedPrecondition, reasonQuarantined},
	{ledger.ErrConflict, codes.AlreadyExists, ""},
	{ledger.ErrInvalid, codes.InvalidArgument, ""},
	{ledger.ErrNotFound, codes.NotFound, ""},
	{ledger.ErrOverloaded, codes.ResourceExhausted, reasonOverloaded},
	{errBeyond, codes.FailedPrecondition, ""},
	{signer.ErrFork, codes.FailedPrecondition, reasonNotSigning},
	{signer.ErrBehind, codes.Unavailable, reasonNotSigning},
	{ledger.ErrCorrupt, codes.DataLoss, ""},
	{context.DeadlineExceeded, codes.DeadlineExceeded, ""},
	{context.Canceled, codes.Canceled, ""},
}

// toStatus turns an error of the domain into a status. What is not in the table is internal: its text goes to the log, not to the
// caller. internal reports that.
func toStatus(err error) (st *status.Status, internal bool) {
	if st, ok := status.FromError(err); ok {
		return st, false
	}
	for _, c := range classes {
		if !errors.Is(err, c.is) {
			continue
		}
		code := c.code
		if code == codes.Unavailable && errors.Is(err, context.DeadlineExceeded) {
			code = codes.DeadlineExceeded // the reason still says what is known of the outcome
		} else if code == codes.Unavailable && errors.Is(err, context.Canceled) {
			code = codes.Canceled
		}
		return withDetails(status.New(code, err.Error()), err, c.reason), code == codes.DataLoss
	}
	return status.New(codes.Internal, "internal error; the server's log has it"), true
}

func withDetails(st *status.Status, err error, reason string) *status.Status {
	var details []protoadapt.MessageV1
	if f, ok := errors.AsType[*lineage.FieldError](err); ok {
		details = append(details, &errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: f.Path, Description: f.Reason}}})
	}
	if reason != "" {
		details = append(details, &errdetails.ErrorInfo{Reason: reason, Domain: errorDomain})
	}
	if reason == reasonOverloaded {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(overloadedRetry)})
	}
	if len(details) == 0 {
		return st
	}
	full, err := st.WithDetails(details...)
	if err != nil {
		return st // a status without details is still the right status
	}
	return full
}
