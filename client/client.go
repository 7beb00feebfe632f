// Package client talks to a ledger and believes nothing that it hears.
//
// # Contract
//
// Every answer is verified before it is returned: the leaf is in the tree, the checkpoint over the tree is signed by the log's key,
// the body opens the leaf's commitments, and what was recorded says what was sent. What does not verify is an [*UntrustedError] and is
// never retried; what the server refused or could not do is its gRPC status, wrapped.
//
// A call that failed on the way is sent again with the same event id, which gives the one true answer however often it arrives. When
// the time is up, the error says what is known: [ErrNotApplied] (nothing was recorded and nothing will be) or [ErrUnknown] (send it
// again under the same event id to find out).
//
// Any node of a cluster takes any call. Which one answers makes no difference to what is verified, and no node shows a client less than it
// has seen: a node that is behind is waited for or passed over, and if no node has what was seen, entries were lost ([ErrRollback]).
//
// # What is remembered
//
// For each log the client keeps the last checkpoint that it verified, with the log's key, in the user's state directory
// ([DefaultStateDir]): never beside the ledger, since a copied ledger would bring its own memory along. The first key seen for a log
// is trusted from then on, unless [Options.Trust] pins keys.
//
// The first operation of a process on a log begins by proving that the log's present checkpoint extends the remembered one, so a
// ledger that was forked, rolled back or replaced is detected before that operation reports success. Afterwards each new checkpoint
// is connected with the verified ones: at once if its own proof shows it, which is the case as long as nobody else writes in between,
// else within [Options.CheckInterval] and at [Client.Close], by a consistency proof. If many checkpoints wait, the newest is always
// checked and of the others a random sample of [maxSampled]. What a fork could do unnoticed is thus bounded to the receipts of one
// interval; close the client to be sure of them.
package client

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/provledger/provledger/client/receipt"
	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

const (
	// DefaultLog is the log that an empty name means.
	DefaultLog = "main"

	// DefaultTimeout is how long an operation may take in all, retries included, if its context has no deadline.
	DefaultTimeout = 30 * time.Second

	// DefaultCheckInterval is how long a checkpoint may wait to be connected with the verified ones.
	DefaultCheckInterval = 5 * time.Second

	// MaxMessageBytes is the largest message accepted from a server: a page of entries ends at 3 MiB and one more entry may have a
	// body of 1 MiB; the answer to a full batch repeats leaves and keys, which is less than three times the 4 MiB sent.
	MaxMessageBytes = 16 << 20

	// closeTimeout bounds what Close does over the network.
	closeTimeout = 5 * time.Second

	// keepaliveTime finds a dead connection under a silent stream. Servers enforce at least 10 s.
	keepaliveTime    = 30 * time.Second
	keepaliveTimeout = 10 * time.Second

	// The answer to a batch of a thousand events is some 400 KiB: it arrives without waiting for window updates, in few reads.
	bufferBytes      = 128 << 10
	streamWindow     = 1 << 20
	connectionWindow = 4 << 20
)

// Options say how a client works. The zero value is good.
type Options struct {
	// Trust pins the keys of logs (a C2SP tlog-policy). Nil: the first key that a log shows is trusted and remembered.
	Trust *receipt.Policy

	// StateDir is where checkpoints are remembered; "" means [DefaultStateDir], "-" that nothing is remembered.
	StateDir string

	// Target is what the user calls the ledger, an address or an absolute directory. Which ledger lives there is remembered, and
	// another one under the same name is an error. [Dial] fills it in.
	Target string

	// AcceptNew permits that Target is now another ledger than the one remembered, as when the directory was just created.
	AcceptNew bool

	// TLS for [Dial]; nil connects without. Receipts verify either way; TLS keeps others from reading.
	TLS *tls.Config

	// Discover lets [Dial] learn the addresses of the cluster's other members, as they advertise them, so that a client that was given one
	// address survives the loss of that node and reaches the leader directly.
	Discover bool

	// Timeout of an operation whose context has no deadline; 0 means [DefaultTimeout].
	Timeout time.Duration

	// CheckInterval bounds how long a checkpoint may wait to be connected with the verified ones; 0 means [DefaultCheckInterval].
	CheckInterval time.Duration

	// Logger gets retries and deferred checks at debug level; nil discards them.
	Logger *slog.Logger
}

// Client is a connection to one ledger. It is safe for concurrent use. Close it: that completes the checks and remembers.
type Client struct {
	rpc     ledgerv1.LedgerServiceClient
	cluster ledgerv1.ClusterServiceClient
	conn    io.Closer // nil if the connection is the caller's
	pool    *pool     // the same, nil too
	o       Options
	memory  *memory
	logger  *slog.Logger

	mu     sync.Mutex
	logs   map[string]*logState
	closed bool
}

// Dial returns a client of the ledger at an address (host:port, or any gRPC target), or at several, separated by commas: any nodes of one
// cluster. It does not connect: the first call does. Calls go to the first address as long as it answers, and to the leader what it
// alone can do.
func Dial(target string, o Options, opts ...grpc.DialOption) (*Client, error) {
	p, err := newPool(target, o, opts)
	if err != nil {
		return nil, err
	}
	if o.Target == "" {
		o.Target = canonical(addresses(target))
	}
	c := New(p, o)
	c.conn, c.pool = p, p
	return c, nil
}

// New returns a client over a connection that the caller closes after the client.
func New(conn grpc.ClientConnInterface, o Options) *Client {
	if o.Timeout == 0 {
		o.Timeout = DefaultTimeout
	}
	if o.CheckInterval == 0 {
		o.CheckInterval = DefaultCheckInterval
	}
	logger := o.Logger
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &Client{
		rpc: ledgerv1.NewLedgerServiceClient(conn), cluster: ledgerv1.NewClusterServiceClient(conn), o: o,
		memory: newMemory(o.StateDir), logger: logger, logs: make(map[string]*logState),
	}
}

// Close connects every checkpoint that still waits with the verified ones, remembers the newest, and closes the connection that
// [Dial] made. An *UntrustedError from Close means that a receipt handed out before is of a forked log. Further calls fail.
func (c *Client) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	logs := make([]*logState, 0, len(c.logs))
	for _, st := range c.logs {
		logs = append(logs, st)
	}
	c.mu.Unlock()
	slices.SortFunc(logs, func(a, b *logState) int { return strings.Compare(a.name, b.name) })

	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	var errs []error
	for _, st := range logs {
		errs = append(errs, c.finish(ctx, st))
	}
	if c.conn != nil {
		errs = append(errs, c.conn.Close())
	}
	return errors.Join(errs...)
}
