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
	embedded *embedded // nil for a daemon, and once it is closed
}

// Close ends the checks of the client and closes the ledger. Its error may be that a receipt handed out before is of a forked log. Closing
// again does nothing.
func (s *session) Close() error {
	if err := s.stopped(); err != nil {
		return err // nobody answers any more
	}
	err := s.Client.Close()
	if s.embedded != nil {
		err = errors.Join(err, s.embedded.close())
		s.embedded = nil
	}
	return err
}

// stopped returns why an embedded ledger had to stop; nil as long as it did not.
func (s *session) stopped() error {
	if s.embedded == nil {
		return nil
	}
	return s.embedded.end.cause()
}

// withLedger opens the ledger of --ledger for f and closes it again. What closing finds out counts; that an embedded ledger had to stop
// explains whatever f saw of it. Verbs that only read do not create a ledger: an empty one answers nothing.
func (a *app) withLedger(ctx context.Context, create bool, f func(*session) error) error {
	to, err := parseTarget(a.ledger)
	if err != nil {
		return err
	}
	s, err := a.openTarget(ctx, to, create)
	if err != nil {
		return err
	}
	err = f(s)
	if stopped := s.stopped(); stopped != nil {
		return stopped
	}
	if bad := s.Close(); err == nil {
		err = bad
	}
	return err
}

func (a *app) openTarget(ctx context.Context, to target, create bool) (*session, error) {
	policy, err := a.policy()
	if err != nil {
		return nil, err
	}
	o := client.Options{Trust: policy, StateDir: a.stateDir, Target: to.String(), Timeout: a.timeout, AcceptNew: a.newLedger, Discover: true}
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
