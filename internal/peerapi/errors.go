package peerapi

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/peer"
)

// Errors by class, beside those of the ledger. A client's error wraps the class that the server's did.
var (
	// ErrNotMember: only members of the cluster may ask that, and the caller is none.
	ErrNotMember = errors.New("not a member of the cluster")
	// ErrFresh: there is no ledger here yet.
	ErrFresh = errors.New("this node belongs to no cluster yet")
	// ErrNotLeader: only the leader can do that. Nothing was done; ask the leader.
	ErrNotLeader = errors.New("this node does not lead")
	// ErrRefused: it must not be done. The text says why, and what to do instead.
	ErrRefused = errors.New("refused")
	// ErrAddressTaken: another member has that address. It may be replaced, so asking again later is of use.
	ErrAddressTaken = errors.New("the address belongs to another member")
	// ErrBusy: this node serves as many streams as it may.
	ErrBusy = errors.New("too many streams")
	// ErrUnreachable: the peer did not answer.
	ErrUnreachable = errors.New("peer unreachable")
	// ErrMalformed: the peer's answer makes no sense.
	ErrMalformed = errors.New("malformed answer of a peer")
)

const errorDomain = "provledger.node"

// classes is the one table between errors, status codes and reasons. The first match counts. The reason travels in an ErrorInfo and
// decides at the client; a status without one comes from gRPC itself, and there the code decides.
var classes = []struct {
	is     error
	code   codes.Code
	reason string
}{
	{ErrNotMember, codes.PermissionDenied, "NOT_MEMBER"},
	{ErrFresh, codes.FailedPrecondition, "FRESH"},
	{ErrNotLeader, codes.Unavailable, "NOT_LEADER"},
	{ErrAddressTaken, codes.AlreadyExists, "ADDRESS_TAKEN"},
	{ErrRefused, codes.FailedPrecondition, "REFUSED"},
	{ErrBusy, codes.ResourceExhausted, "BUSY"},
	{ledger.ErrQuarantined, codes.FailedPrecondition, "QUARANTINED"},
	{ledger.ErrInvalid, codes.InvalidArgument, "INVALID"},
	{ledger.ErrNotFound, codes.NotFound, "NOT_FOUND"},
	{ledger.ErrOverloaded, codes.ResourceExhausted, "OVERLOADED"},
	{ledger.ErrCorrupt, codes.DataLoss, "CORRUPT"},
	{context.DeadlineExceeded, codes.DeadlineExceeded, ""},
	{context.Canceled, codes.Canceled, ""},
	{ErrUnreachable, codes.Unavailable, ""},
}

// toStatus turns an error of the backend into a status. What is in no class keeps its text: the caller is a node of the same cluster.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	for _, c := range classes {
		if !errors.Is(err, c.is) {
			continue
		}
		st := status.New(c.code, err.Error())
		if c.reason != "" {
			if full, err := st.WithDetails(&errdetails.ErrorInfo{Reason: c.reason, Domain: errorDomain}); err == nil {
				st = full
			}
		}
		return st.Err()
	}
	return status.Error(codes.Internal, err.Error())
}

// RemoteError is an error that a peer answered, or that kept it from answering. When the peer refused the connection it wraps a
// *[peer.RefusedError] too.
type RemoteError struct {
	Peer  string // as the client was told
	Text  string
	class error // what it wraps; nil if it has no class
}

func (e *RemoteError) Error() string { return fmt.Sprintf("node %s: %s", e.Peer, e.Text) }
func (e *RemoteError) Unwrap() error { return e.class }

// fromStatus is the way back.
func fromStatus(id string, err error) error {
	if err == nil {
		return nil
	}
	st := status.Convert(err)
	e := &RemoteError{Peer: id, Text: st.Message()}
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == errorDomain {
			for _, c := range classes {
				if c.reason != "" && c.reason == info.GetReason() {
					e.class = c.is
					return e
				}
			}
		}
	}
	for _, c := range classes {
		if c.reason == "" && c.code == st.Code() {
			e.class = c.is
		}
	}
	if refused, ok := errors.AsType[*peer.RefusedError](err); ok {
		e.class = errors.Join(e.class, refused)
	}
	return e
}
