package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/provledger/provledger/client"
	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/node"
)

const (
	// embeddedSegmentBytes is the size of new raft log segments: twice the largest command. ledgerd may go on with larger ones.
	embeddedSegmentBytes = 16 << 20

	// pipeBytes is the buffer of the in-memory connection: a full batch fits, so that a request is one hand-over.
	pipeBytes = 4 << 20

	// closeTimeout is how long an embedded ledger may take to close. What is not flushed by then is replayed when it is opened again.
	closeTimeout = 10 * time.Second
)

// openEmbedded opens the ledger in a directory within this process: the same node as in ledgerd, behind an in-memory listener instead of
// a port, so that everything that a client checks is checked here too. This file, and no other of ledgerctl, imports the server.
func (a *app) openEmbedded(ctx context.Context, dir string, create bool, o client.Options) (*session, error) {
	if err := checkLedgerDir(dir, create); err != nil {
		return nil, err
	}
	n, err := node.Open(ctx, node.Config{
		Dir:         dir,
		Authn:       lineage.AuthnOSUser, // whoever may open the directory is who the operating system says
		LockTimeout: a.lockTimeout,
		// A new ledger is filled with zeros two segments long before its first entry: small ones make it small and quick to open.
		SegmentBytes: embeddedSegmentBytes,
		Die: func(reason string, err error) {
			a.note("ledgerctl: the embedded ledger had to stop: %s: %v", reason, err)
			exit(a.deathCode)
		},
		Logger: slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelError})),
	})
	if errors.Is(err, node.ErrBusy) {
		return nil, busyError{err}
	}
	if err != nil {
		return nil, fmt.Errorf("embedded ledger %s: %w", dir, err)
	}
	if n.Created() {
		// A ledger is data, not source: git must not pick it up with the project around it.
		if err := os.WriteFile(filepath.Join(dir, ".gitignore"), []byte("*\n"), 0o644); err != nil {
			return nil, errors.Join(err, closeNode(n))
		}
		a.note("created a new ledger in %s", dir)
		o.AcceptNew = true
	}
	pipe, served := bufconn.Listen(pipeBytes), make(chan error, 1)
	server := n.NewServer()
	go func() { served <- server.Serve(pipe) }()
	conn, err := grpc.NewClient("passthrough:embedded",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return pipe.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	stop := func() error {
		server.Stop()
		return errors.Join(<-served, closeNode(n))
	}
	if err != nil {
		return nil, errors.Join(err, stop())
	}
	return &session{client.New(conn, o), func() error { return errors.Join(conn.Close(), stop()) }}, nil
}

func closeNode(n *node.Node) error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	return n.Close(ctx)
}

// checkLedgerDir keeps verbs that only read from making an empty ledger, which would answer every question with nothing.
func checkLedgerDir(dir string, create bool) error {
	if create {
		return os.MkdirAll(dir, 0o700)
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) || err == nil && len(entries) == 0 {
		return fmt.Errorf("there is no ledger in %s; `ledgerctl run` and `ledgerctl record` create one, --ledger names another", dir)
	}
	return err
}
