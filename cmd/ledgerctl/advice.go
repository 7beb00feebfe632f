package main

import (
	"errors"
	"regexp"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/provledger/provledger/client"
)

// wire is what gRPC puts before what a ledger says.
var wire = regexp.MustCompile(`rpc error: code = \w+ desc = `)

// message is the text of an error for people.
func message(err error) string { return wire.ReplaceAllString(err.Error(), "") }

// advice says what to do next about an error, if there is something to do.
func advice(err error) string {
	switch {
	case errors.Is(err, client.ErrFork), errors.Is(err, client.ErrRollback):
		return "Do not rely on this ledger: it contradicts what it signed before (a restored copy, or a manipulation). Keep the state directory as evidence."
	case errors.Is(err, client.ErrOtherKey):
		return "The ledger signs with another key than before. If the key was changed on purpose, pin the new one with --trust."
	case errors.Is(err, errBusy):
		return "Another process has the ledger open. Wait for it, raise --lock-timeout, or talk to the daemon with --ledger HOST:PORT."
	}
	var s interface{ GRPCStatus() *status.Status }
	if errors.As(err, &s) {
		switch s.GRPCStatus().Code() {
		case codes.Unavailable, codes.DeadlineExceeded:
			return "Is ledgerd running there? Start one with `ledgerd`, or use a directory: --ledger ./.ledger needs no daemon."
		case codes.AlreadyExists:
			return "That id was recorded before with other content. An id is for one event: choose a new one."
		}
	}
	return ""
}
