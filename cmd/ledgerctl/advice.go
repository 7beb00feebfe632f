package main

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/provledger/provledger/client"
)

var (
	// wire is what gRPC puts before what a ledger says, and around why it has no connection.
	wire      = regexp.MustCompile(`rpc error: code = \w+ desc = `)
	transport = regexp.MustCompile(`connection error: desc = "(?:transport: )?((?:[^"\\]|\\.)*)"`)
	noSuchLog = regexp.MustCompile(`log "([^"]*)": not found`)
)

// message is the text of an error for people.
func message(err error) string {
	return transport.ReplaceAllString(wire.ReplaceAllString(err.Error(), ""), "no connection: $1")
}

// hintedError is an error with what to do about it.
type hintedError struct {
	error
	hint string
}

func (e *hintedError) Unwrap() error { return e.error }

// hinted adds a hint to an error, if there is one.
func hinted(err error, hint string) error {
	if err == nil || hint == "" {
		return err
	}
	return &hintedError{err, hint}
}

// maxLine is what is shown of an error from deep inside: some come with pages.
const maxLine = 400

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	if len(s) > maxLine {
		s = strings.ToValidUTF8(s[:maxLine], "") + ".."
	}
	return s
}

// advice says what to do next about an error, if there is something to do.
func advice(err error) string {
	if h, ok := errors.AsType[*hintedError](err); ok {
		return h.hint
	}
	switch {
	case errors.Is(err, client.ErrFork), errors.Is(err, client.ErrRollback):
		return "Do not rely on this ledger: it contradicts what it signed before (a restored copy, or a manipulation). Keep the state directory as evidence."
	case errors.Is(err, client.ErrOtherKey):
		return "The ledger signs with another key than before. If the key was changed on purpose, pin the new one with --trust."
	case errors.Is(err, client.ErrOtherLedger):
		return "If the ledger was replaced on purpose, accept the new one with --new-ledger."
	case errors.Is(err, errBusy):
		return "Another process has the ledger open. Wait for it, raise --lock-timeout, or talk to the daemon with --ledger HOST:PORT."
	}
	var s interface{ GRPCStatus() *status.Status }
	if errors.As(err, &s) {
		switch s.GRPCStatus().Code() {
		case codes.NotFound:
			if m := noSuchLog.FindStringSubmatch(err.Error()); m != nil {
				return fmt.Sprintf("`ledgerctl log list` shows the logs; `ledgerctl log create %s` creates one.", m[1])
			}
		case codes.Unavailable, codes.DeadlineExceeded:
			switch text := err.Error(); {
			case strings.Contains(text, "looked like an HTTP/1.1 header"):
				return "That is an HTTP port: --ledger takes the gRPC port, which ledgerd logs as grpc=."
			case strings.Contains(text, "server preface"):
				return "The port may speak TLS: connect with --tls-ca FILE, or --tls-ca system for the authorities that the system trusts. A peer port takes no clients."
			case strings.Contains(text, "first record does not look like a TLS handshake"):
				return "The port does not speak TLS: leave --tls-ca out."
			case strings.Contains(text, "failed to verify certificate"):
				return "The server's certificate is not trusted: --tls-ca FILE names the authority that signed it."
			}
			if strings.Contains(err.Error(), "there is no leader") {
				return "The cluster has no leader. `ledgerctl cluster status` shows which voters are missing."
			}
			return "Is ledgerd running there? Start one with `ledgerd`, or use a directory: --ledger ./.ledger needs no daemon."
		case codes.FailedPrecondition:
			if strings.Contains(err.Error(), "this node is behind") {
				return "The node has fewer entries than asked for. Try again, or name the other nodes too: --ledger HOST:PORT,HOST:PORT."
			}
		case codes.AlreadyExists:
			return "That event id was recorded before with other content. An id is for one event: choose a new one."
		}
	}
	return ""
}
