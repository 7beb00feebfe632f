package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"

	"github.com/provledger/provledger/client"
)

// errBusy is the errors.Is target of a ledger directory that another process has open.
var errBusy = errors.New("the ledger directory is in use")

// busyError is such an error in the words of who noticed.
type busyError struct{ error }

func (busyError) Is(target error) bool { return target == errBusy }

// session is an open ledger. Close it as soon as possible: while an embedded ledger is open nobody else can use it.
type session struct {
	*client.Client
	closeNode func() error // of an embedded ledger; nil for a daemon, and once it is closed
}

// Close ends the checks of the client and closes the ledger. Its error may be that a receipt handed out before is of a forked log. Closing
// again does nothing.
func (s *session) Close() error {
	err := s.Client.Close()
	if s.closeNode != nil {
		err = errors.Join(err, s.closeNode())
		s.closeNode = nil
	}
	return err
}

// openLedger opens the ledger of --ledger. Verbs that only read do not create one: an empty ledger answers nothing.
func (a *app) openLedger(ctx context.Context, create bool) (*session, error) {
	to, err := parseTarget(a.ledger)
	if err != nil {
		return nil, err
	}
	return a.openTarget(ctx, to, create)
}

func (a *app) openTarget(ctx context.Context, to target, create bool) (*session, error) {
	policy, err := a.policy()
	if err != nil {
		return nil, err
	}
	o := client.Options{Trust: policy, StateDir: a.stateDir, Target: to.String(), Timeout: a.timeout}
	if to.directory != "" {
		return a.openEmbedded(ctx, to.directory, create, o)
	}
	if o.TLS, err = a.tls(); err != nil {
		return nil, err
	}
	c, err := client.Dial(to.address, o)
	if err != nil {
		return nil, err
	}
	return &session{Client: c}, nil
}

// systemRoots as --tls-ca means the certificates that the system trusts.
const systemRoots = "system"

// tls returns nil without --tls-ca. A ledger proves what it says either way; TLS keeps others from reading and says who is connected.
func (a *app) tls() (*tls.Config, error) {
	switch a.tlsCA {
	case "":
		return nil, nil
	case systemRoots:
		return &tls.Config{MinVersion: tls.VersionTLS13}, nil
	}
	pem, err := os.ReadFile(a.tlsCA)
	if err != nil {
		return nil, fmt.Errorf("--tls-ca: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("--tls-ca %s: no certificate in PEM form", a.tlsCA)
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool}, nil
}
