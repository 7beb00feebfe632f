package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/cluster"
	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/sequencer"
	"github.com/provledger/provledger/internal/signer"
)

// Every class of error that a handler can return, bare and as the layers below wrap it.
func TestStatusTable(t *testing.T) {
	field := &lineage.FieldError{Path: "references[2].digest", Reason: "is odd"}
	covered := make(map[error]bool)
	for _, x := range []struct {
		err      error
		code     codes.Code
		reason   string
		field    string
		retry    bool
		internal bool
	}{
		{err: ledger.ErrNotFound, code: codes.NotFound, reason: "NOT_FOUND"},
		{err: ledger.ErrConflict, code: codes.AlreadyExists},
		{err: ledger.ErrInvalid, code: codes.InvalidArgument},
		{err: invalid("page_size", "is negative"), code: codes.InvalidArgument, field: "page_size"},
		{err: fmt.Errorf("%w: %w", ledger.ErrInvalid, field), code: codes.InvalidArgument, field: field.Path},
		{err: within(3, 5, &lineage.FieldError{Path: "event_id", Reason: "is required"}), code: codes.InvalidArgument, field: "events[3].event_id"},
		{err: within(0, 1, &lineage.FieldError{Path: "event_id", Reason: "is required"}), code: codes.InvalidArgument, field: "event_id"},
		{err: ledger.ErrOverloaded, code: codes.ResourceExhausted, reason: "OVERLOADED", retry: true},
		{err: ledger.ErrQuarantined, code: codes.FailedPrecondition, reason: "QUARANTINED"},
		{err: ledger.ErrCorrupt, code: codes.DataLoss, internal: true},
		{err: beyond("tree_size", 9, 3), code: codes.FailedPrecondition},
		{err: errBeyond, code: codes.FailedPrecondition},
		{err: sequencer.ErrNotApplied, code: codes.Unavailable, reason: "NOT_APPLIED", retry: true},
		{err: fmt.Errorf("%w: %w", sequencer.ErrNotApplied, sequencer.ErrKey), code: codes.Unavailable, reason: "NO_KEY", retry: true},
		{err: fmt.Errorf("%w: %w", sequencer.ErrUnknown, signer.ErrNoKey), code: codes.Unavailable, reason: "UNKNOWN_OUTCOME", retry: true},
		{err: signer.ErrNoKey, code: codes.Unavailable, reason: "NO_KEY", retry: true},
		{err: errBehind, code: codes.FailedPrecondition, reason: "BEHIND"},
		{err: sequencer.ErrUnknown, code: codes.Unavailable, reason: "UNKNOWN_OUTCOME", retry: true},
		{err: fmt.Errorf("%w: %w", sequencer.ErrNotApplied, context.DeadlineExceeded), code: codes.DeadlineExceeded, reason: "NOT_APPLIED"},
		{err: fmt.Errorf("%w: %w", sequencer.ErrUnknown, context.DeadlineExceeded), code: codes.DeadlineExceeded, reason: "UNKNOWN_OUTCOME"},
		{err: fmt.Errorf("%w: %w", sequencer.ErrUnknown, context.Canceled), code: codes.Canceled, reason: "UNKNOWN_OUTCOME"},
		{err: signer.ErrFork, code: codes.FailedPrecondition, reason: "NOT_SIGNING"},
		{err: signer.ErrBehind, code: codes.Unavailable, reason: "NOT_SIGNING", retry: true},
		{err: cluster.ErrNotLeader, code: codes.Unavailable, reason: "NOT_APPLIED", retry: true},
		{err: cluster.ErrRefused, code: codes.FailedPrecondition, reason: "REFUSED"},
		{err: context.DeadlineExceeded, code: codes.DeadlineExceeded},
		{err: context.Canceled, code: codes.Canceled},
		{err: status.Error(codes.PermissionDenied, "no"), code: codes.PermissionDenied},
		{err: io.ErrUnexpectedEOF, code: codes.Internal, internal: true},
	} {
		for _, err := range []error{x.err, fmt.Errorf("log %q: %w", "main", x.err)} {
			st, internal := toStatus(err)
			if st.Code() != x.code || internal != x.internal {
				t.Errorf("%v: %s, internal %v; want %s, %v", err, st.Code(), internal, x.code, x.internal)
			}
			var reason, path string
			retry := false
			for _, d := range st.Details() {
				switch d := d.(type) {
				case *errdetails.ErrorInfo:
					reason = d.Reason
					if d.Domain != "provledger" {
						t.Errorf("%v: domain %q", err, d.Domain)
					}
				case *errdetails.BadRequest:
					path = d.FieldViolations[0].Field
				case *errdetails.RetryInfo:
					retry = d.RetryDelay.AsDuration() > 0
				default:
					t.Errorf("%v: detail %T", err, d)
				}
			}
			if reason != x.reason || path != x.field || retry != x.retry {
				t.Errorf("%v: reason %q, field %q, retry %v; want %q, %q, %v", err, reason, path, retry, x.reason, x.field, x.retry)
			}
		}
		for i := range classes {
			if errors.Is(x.err, classes[i].is) {
				covered[classes[i].is] = true
			}
		}
	}
	for _, c := range classes {
		if !covered[c.is] {
			t.Errorf("no case of %v", c.is)
		}
	}
	if st, _ := toStatus(errors.New("secret detail")); st.Message() != "internal error; the server's log has it" {
		t.Errorf("an internal error tells the caller %q", st.Message())
	}
}

// A token that went through the client unchanged resumes; anything else is refused with a field error.
func TestPageTokens(t *testing.T) {
	p := position{kind: pageFind, log: 7, query: 5, next: 300, size: 1000}
	q := position{kind: pageFind, log: 7, query: 5}
	if err := q.resume(p.token(), 1000); err != nil || q != p {
		t.Fatalf("%+v, %v", q, err)
	}
	for name, x := range map[string]struct {
		token   string
		kind    byte
		log     uint32
		current uint64
	}{
		"of another kind of request":     {p.token(), pageList, 7, 1000},
		"of another log":                 {p.token(), pageFind, 8, 1000},
		"of another question":            {position{pageFind, 7, 6, 300, 1000}.token(), pageFind, 7, 1000},
		"of a tree that this node lacks": {p.token(), pageFind, 7, 999},
		"that ends before it begins":     {position{pageFind, 7, 5, 11, 10}.token(), pageFind, 7, 1000},
		"that is no base64":              {"!", pageFind, 7, 1000},
		"with a byte more":               {p.token() + "AA", pageFind, 7, 1000},
		"with a byte less":               {p.token()[:len(p.token())-2], pageFind, 7, 1000},
		"with a sign":                    {"Zi43LjUuKzMwMC4xMDAw", pageFind, 7, 1000}, // f.7.5.+300.1000
		"that is long":                   {string(make([]byte, 4096)), pageFind, 7, 1000},
	} {
		q := position{kind: x.kind, log: x.log, query: 5}
		before := q
		err := q.resume(x.token, x.current)
		if f, ok := errors.AsType[*lineage.FieldError](err); !ok || f.Path != "page_token" || q != before {
			t.Errorf("a token %s: %v, position %+v", name, err, q)
		}
	}
}

// Resuming any text either refuses it or takes exactly what token wrote.
func FuzzPageToken(f *testing.F) {
	f.Add(position{pageList, 1, 0, 2, 3}.token())
	f.Fuzz(func(t *testing.T, token string) {
		p := position{kind: pageList, log: 1}
		if token != "" && p.resume(token, 1<<40) == nil && p.token() != token {
			t.Errorf("%q was read as %+v", token, p)
		}
	})
}
