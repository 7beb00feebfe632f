package client

import (
	"errors"
	"fmt"
	"strings"
)

var (
	// ErrNotApplied says that an append was not recorded and will not be: it can be sent again freely, or dropped.
	ErrNotApplied = errors.New("nothing was recorded")

	// ErrUnknown says that it is not known whether an append was recorded. Sending it again under the same event id tells.
	ErrUnknown = errors.New("it is not known whether it was recorded; send it again with the same event id")

	// ErrNotFound says that the log has no such entry. That is the server's word: absence is not proven.
	ErrNotFound = errors.New("not found (completeness not proven)")

	// ErrClosed says that the client was closed.
	ErrClosed = errors.New("client is closed")
)

// What an [*UntrustedError] can be, for errors.Is. Anything else is an answer that does not verify.
var (
	// ErrFork says that the log has two histories: a signed checkpoint does not extend another one.
	ErrFork = errors.New("the log has forked")

	// ErrRollback says that the log is shorter than it was.
	ErrRollback = errors.New("the log lost entries")

	// ErrOtherLedger says that another ledger lives where the remembered one did.
	ErrOtherLedger = errors.New("another ledger than the remembered one")

	// ErrOtherKey says that the log shows another key than the remembered one.
	ErrOtherKey = errors.New("another key than the remembered one")
)

// UntrustedError says that a server's answer does not verify. It is never retried: the server, or what stands between, is broken or
// lies.
type UntrustedError struct {
	Log string // name of the log
	Err error

	// Evidence are the signed checkpoints that contradict each other, if that is what is wrong. Keep them: together they prove it to
	// anyone who has the log's key.
	Evidence [][]byte
}

func (e *UntrustedError) Error() string {
	return fmt.Sprintf("log %q cannot be trusted: %v", e.Log, e.Err)
}

func (e *UntrustedError) Unwrap() error { return e.Err }

func untrusted(log, format string, args ...any) error {
	return &UntrustedError{Log: log, Err: fmt.Errorf(format, args...)}
}

// outcomeError is the failure of an append together with what is known about its effect.
type outcomeError struct{ outcome, err error }

func (e *outcomeError) Error() string   { return fmt.Sprintf("%v: %v", e.outcome, e.err) }
func (e *outcomeError) Unwrap() []error { return []error{e.outcome, e.err} }

// AmbiguousError says that a text names more than one artifact.
type AmbiguousError struct {
	Text       string
	Candidates []Candidate
	More       bool // there are more than are listed
}

func (e *AmbiguousError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%q is ambiguous; it may be", e.Text)
	for _, c := range e.Candidates {
		fmt.Fprintf(&b, "\n  %s", c)
	}
	if e.More {
		b.WriteString("\n  ...")
	}
	return b.String()
}
