package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
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

// embedded is a ledger that is open in this process.
type embedded struct {
	node   *node.Node
	end    *end
	server *grpc.Server
	served chan error
	conn   *grpc.ClientConn
	closed chan struct{}
}

// end is how an embedded ledger ends before it is closed: its node asks for the end of the process when going on could lose or fork data.
// The goroutine that asked never goes on (see node.Config.Die), so here it is enough that nobody uses the node again: every call in flight
// and to come fails, and the process lives on to say so and to keep what could not be recorded.
type end struct {
	once sync.Once
	came chan struct{}
	err  error
}

func newEnd() *end { return &end{came: make(chan struct{})} }

func (e *end) die(reason string, err error) {
	e.once.Do(func() {
		e.err = fmt.Errorf("the ledger had to stop: %s", reason)
		if err != nil {
			e.err = fmt.Errorf("the ledger had to stop: %s: %s", reason, firstLine(err.Error()))
		}
		close(e.came)
	})
}

// cause returns why; nil if it goes on.
func (e *end) cause() error {
	select {
	case <-e.came:
		return e.err
	default:
		return nil
	}
}

// within runs f, which may never return once the node is at its end.
func (e *end) within(f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		if cause := e.cause(); cause != nil {
			return cause
		}
		return err
	case <-e.came:
		return e.err
	}
}

// embeddedConfig is that of ledgerd but for what makes a new ledger small and quick to open: it is filled with zeros two segments long.
func (a *app) embeddedConfig(dir string) node.Config {
	return node.Config{
		Dir:          dir,
		Authn:        lineage.AuthnOSUser, // whoever may open the directory is who the operating system says
		LockTimeout:  a.lockTimeout,
		SegmentBytes: embeddedSegmentBytes,
		MinFreeBytes: a.minFree,
		Logger:       slog.New(&embeddedLog{app: a}),
	}
}

// probe looks at a ledger directory before it is opened: fresh means that there is no ledger yet. It changes nothing.
func (a *app) probe(dir string) (fresh bool, err error) {
	return node.Probe(a.embeddedConfig(dir))
}

func isNoSpace(err error) bool { return errors.Is(err, node.ErrNoSpace) }

// openEmbedded opens the ledger in a directory within this process: the same node as in ledgerd, behind an in-memory listener instead of
// a port, so that everything that a client checks is checked here too. This file, and no other of ledgerctl, imports the server.
func (a *app) openEmbedded(ctx context.Context, dir string, create bool, o client.Options) (*session, error) {
	remembered, err := client.RememberedAt(a.stateDir, o.Target)
	if err != nil {
		return nil, err
	}
	// A ledger that was there and is gone must not be replaced by an empty one silently: nobody would miss it.
	gone := len(remembered) > 0 && !a.newLedger
	x, c := &embedded{end: newEnd(), served: make(chan error, 1)}, a.embeddedConfig(dir)
	c.Die, c.Existing = x.end.die, !create || gone
	err = x.end.within(func() (err error) {
		x.node, err = node.Open(ctx, c)
		return err
	})
	switch {
	case errors.Is(err, node.ErrNoLedger):
		return nil, noLedger(dir, gone)
	case errors.Is(err, node.ErrBusy):
		return nil, busyError{err}
	case err != nil:
		return nil, hinted(fmt.Errorf("embedded ledger %s: %w", dir, err), openHint(err))
	}
	if create {
		// Waiting for space, as with a daemon, would be waiting for nobody.
		if err := x.node.Ready(); errors.Is(err, node.ErrNoSpace) {
			return nil, errors.Join(err, x.closeNode())
		}
	}
	if x.node.Created() {
		// A ledger is data, not source: git must not pick it up with the project around it.
		if err := os.WriteFile(filepath.Join(dir, ".gitignore"), []byte("*\n"), 0o644); err != nil {
			return nil, errors.Join(err, x.closeNode())
		}
		a.note("created a new ledger in %s", dir)
	}
	pipe := bufconn.Listen(pipeBytes)
	x.server = x.node.NewServer()
	go func() { x.served <- x.server.Serve(pipe) }()
	x.conn, err = grpc.NewClient("passthrough:embedded",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return pipe.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		x.server.Stop()
		return nil, errors.Join(err, <-x.served, x.closeNode())
	}
	x.closed = make(chan struct{})
	go func() {
		select {
		case <-x.end.came:
			_ = x.conn.Close() // what waits for an answer fails
		case <-x.closed:
		}
	}()
	return &session{client.New(x.conn, o), x}, nil
}

func (x *embedded) close() error {
	defer close(x.closed)
	return errors.Join(x.conn.Close(), x.end.within(func() error {
		x.server.Stop()
		return errors.Join(<-x.served, x.closeNode())
	}))
}

func (x *embedded) closeNode() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	return x.end.within(func() error { return x.node.Close(ctx) })
}

// noLedger says that there is none in a directory, and whether one is known to have been there.
func noLedger(dir string, gone bool) error {
	if gone {
		return hinted(fmt.Errorf("the ledger in %s is gone: there was one, which is remembered", dir),
			"Put it back if it was moved or deleted. To start a new one there: --new-ledger.")
	}
	return fmt.Errorf("there is no ledger in %s; `ledgerctl run` and `ledgerctl record` create one, --ledger names another", dir)
}

// openHint says what to do about a directory that cannot be opened.
func openHint(err error) string {
	if errors.Is(err, syscall.EROFS) || errors.Is(err, os.ErrPermission) {
		return "Opening a ledger writes to its directory, even if only to read it: copy the directory to where you may write, or talk to the daemon that owns it."
	}
	return ""
}

// embeddedLog passes the errors of an embedded ledger on in one line each: the details are for the logs of a daemon.
type embeddedLog struct {
	app   *app
	attrs []slog.Attr
}

func (l *embeddedLog) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.LevelError
}

func (l *embeddedLog) Handle(_ context.Context, r slog.Record) error {
	if strings.HasPrefix(r.Message, "stopping at once") {
		return nil // it is the error that comes back, see end
	}
	s := firstLine(r.Message)
	add := func(x slog.Attr) bool {
		s += " " + x.Key + "=" + firstLine(fmt.Sprint(x.Value.Any()))
		return true
	}
	for _, x := range l.attrs {
		add(x)
	}
	r.Attrs(add)
	l.app.note("ledgerctl: embedded ledger: %s", plain(s))
	return nil
}

func (l *embeddedLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &embeddedLog{l.app, append(l.attrs[:len(l.attrs):len(l.attrs)], attrs...)}
}

func (l *embeddedLog) WithGroup(string) slog.Handler { return l }

// exportKey returns the private key of the log from a ledger directory, and its verifier key.
func (a *app) exportKey(dir string) (private []byte, vkey string, err error) {
	private, vkey, err = node.ExportKey(dir, a.log, slog.New(&embeddedLog{app: a}))
	if errors.Is(err, node.ErrBusy) {
		return nil, "", hinted(err, "Stop the process that has the directory open, and try again.")
	}
	return private, vkey, err
}
