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
	"github.com/provledger/provledger/internal/cluster"
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
	reasonNoKey       = "NO_KEY"    // not applied: another node may have the log's key, and will lead
	reasonBehind      = "BEHIND"    // the node has a smaller tree than the caller
	reasonNotFound    = "NOT_FOUND" // metadata "tree_size" says at which size
	reasonRefused     = "REFUSED"   // a change of the cluster
)

const (
	// overloadedRetry is the pause that an overloaded node asks for.
	overloadedRetry = time.Second
	// shortRetry is the pause that a node asks for which waited for a leader in vain: an election takes a second or two.
	shortRetry = 200 * time.Millisecond
)

// annotatedError is an error with metadata for its ErrorInfo.
type annotatedError struct {
	error
	key, value string
}

func (e *annotatedError) Unwrap() error { return e.error }

// annotate adds metadata to an error; an empty value says nothing.
func annotate(err error, key, value string) error {
	if err == nil || value == "" {
		return err
	}
	return &annotatedError{err, key, value}
}

// annotations collects the metadata of an error.
func annotations(err error) map[string]string {
	var md map[string]string
	for {
		a, ok := errors.AsType[*annotatedError](err)
		if !ok {
			return md
		}
		if md == nil {
			md = make(map[string]string)
		}
		if _, outer := md[a.key]; !outer {
			md[a.key] = a.value
		}
		err = a.error
	}
}

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
	{sequencer.ErrKey, codes.Unavailable, reasonNoKey},
	{signer.ErrNoKey, codes.Unavailable, reasonNoKey},
	{sequencer.ErrNotApplied, codes.Unavailable, reasonNotApplied},
	{cluster.ErrNotLeader, codes.Unavailable, reasonNotApplied},
	{cluster.ErrRefused, codes.FailedPrecondition, reasonRefused},
	{ledger.ErrQuarantined, codes.FailedPrecondition, reasonQuarantined},
	{ledger.ErrConflict, codes.AlreadyExists, ""},
	{ledger.ErrInvalid, codes.InvalidArgument, ""},
	{errBehind, codes.FailedPrecondition, reasonBehind},
	{ledger.ErrNotFound, codes.NotFound, reasonNotFound},
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
		return st, false // of another node, or made with its status
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

// statusOf is an error as its status.
func statusOf(err error) error {
	if err == nil {
		return nil
	}
	st, _ := toStatus(err)
	return st.Err()
}

func withDetails(st *status.Status, err error, reason string) *status.Status {
	var details []protoadapt.MessageV1
	if f, ok := errors.AsType[*lineage.FieldError](err); ok {
		details = append(details, &errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: f.Path, Description: f.Reason}}})
	}
	if reason != "" {
		details = append(details, &errdetails.ErrorInfo{Reason: reason, Domain: errorDomain, Metadata: annotations(err)})
	}
	switch {
	case reason == reasonOverloaded:
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(overloadedRetry)})
	case st.Code() == codes.Unavailable && reason != "":
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(shortRetry)})
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
