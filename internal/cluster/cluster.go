// Package cluster keeps the set of members as the operator wants it, and leadership where it can be used.
//
// Membership changes one step at a time, through the leader, each based on the configuration that its checks saw. What would cost the
// cluster its majority is refused; nothing is ever removed by itself. The leader looks at all members four times a second: it promotes
// who asked to vote and has caught up, raises the version of commands when every voter knows the next one, and hands leadership over
// when its clock is ahead of everybody's, when it lacks the keys of logs or when its disk is too full. It decides from what members say
// now and from what the system log says, so that a new leader goes on where the old one stopped.
//
// Every change is a `member` entry in the system log; docs/format-documents.md, "Member document", has its content, and
// docs/cluster.md the rules.
package cluster

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/consensus"
	"github.com/provledger/provledger/internal/peer"
	"github.com/provledger/provledger/internal/peerapi"
	"github.com/provledger/provledger/internal/sequencer"
)

// Errors by class. They cross the wire between nodes.
var (
	// ErrNotLeader: only the leader changes the cluster. Nothing was done: ask the leader, which the text names if it is known.
	ErrNotLeader = peerapi.ErrNotLeader
	// ErrRefused: the change is not made. The text says why, and what to do instead.
	ErrRefused = peerapi.ErrRefused
	// ErrClock comes with sequencer.ErrNotApplied: the leader's clock is ahead of every other voter's, and nobody took leadership.
	ErrClock = errors.New("this leader's clock is ahead of every other voter's: set it right")
	// ErrSuperseded comes with sequencer.ErrNotApplied: a member has a newer membership than its leader, as after a recovery without this node.
	ErrSuperseded = errors.New("the cluster seems to go on elsewhere, without this node")
)

const (
	// DefaultCaughtUpFor is how long a joiner must keep up before it votes: twelve looks in a row, or a dozen heartbeat timeouts. A replica
	// that is still fetching is behind in nearly all of them; one that keeps up this long answers as fast as a quorum needs. Longer
	// would only prolong the time in which a replaced voter is missing.
	DefaultCaughtUpFor = 3 * time.Second
	// supersededLooks in a row in which a member has a newer membership than the leader are no accident: raft gives a member the leader's within
	// a heartbeat.
	supersededLooks = 8
	// lookEvery is how often a leader looks at the members.
	lookEvery = 250 * time.Millisecond
	// lookTimeout bounds one look: a member that takes longer counts as not reachable.
	lookTimeout = time.Second
	// maxClockLead is how far ahead of every other voter a leader's clock may be: it stamps the entries, and a log's time never goes back,
	// so what it stamps in the future binds its successors.
	maxClockLead = 5 * time.Second
	// changeTimeout bounds one step of a change that nobody waits for with a deadline of their own.
	changeTimeout = 10 * time.Second
	// transferTimeout bounds a transfer of leadership: raft gives up after an election timeout.
	transferTimeout = 5 * time.Second
	// handoverPause is the least time between two handovers by the same node; it doubles up to handoverPauseMax, so that leadership cannot
	// bounce between nodes that both would rather not have it.
	handoverPause    = 10 * time.Second
	handoverPauseMax = 5 * time.Minute
	// raisePause is the time between two attempts to raise the version.
	raisePause = 10 * time.Second
	// maxTransferLag is how many raft entries a voter may lack to be given leadership: raft sends them first, within an election timeout.
	maxTransferLag = 256
	// memberVersion is the first version of commands that has member entries.
	memberVersion = 2
)

// Raft is what changes the membership: consensus. The prevIndex of a change is the index of the configuration that it is based on; with
// another one in place it fails.
type Raft interface {
	IsLeader() bool
	Term() uint64
	Leader() string
	Servers() (servers []consensus.Server, index uint64)
	AddVoter(ctx context.Context, id, address string, prevIndex uint64) error
	AddNonvoter(ctx context.Context, id, address string, prevIndex uint64) error
	Demote(ctx context.Context, id string, prevIndex uint64) error
	Remove(ctx context.Context, id string, prevIndex uint64) error
	Transfer(ctx context.Context, id string) error
}

// Peers asks other nodes.
type Peers interface {
	// Status asks the node at an address. With an id, another node there is an error; with "" whoever is there answers.
	Status(ctx context.Context, id, address string) (peerapi.Status, error)
}

// Recorder writes control entries: the sequencer.
type Recorder interface {
	RecordControl(ctx context.Context, kind lineage.ControlKind, principal string, authn lineage.Authn, document []byte) error
	RaiseVersion(ctx context.Context) error
}

// History reads what was recorded.
type History interface {
	// Records calls fn with the member records of the system log, the newest first, until it returns false.
	Records(fn func(Record) bool) error
	// Principal is who changes that nobody asked for are recorded for.
	Principal() string
	// CommandVersion is the version of commands in use.
	CommandVersion() uint8
}

// Options of a controller. Raft, Peers, Recorder, History, Self and Now are required.
type Options struct {
	ClusterID lineage.ID
	NodeID    string
	// Address is the peer address that this node advertises; "" if it has none.
	Address  string
	Raft     Raft
	Peers    Peers
	Recorder Recorder
	History  History
	// Self is this node's status.
	Self func(ctx context.Context) peerapi.Status
	// Now is the clock that entries are stamped by, microseconds since the Unix epoch.
	Now    func() int64
	Logger *slog.Logger
	// CaughtUpFor is how long a joiner must keep up before it votes; 0 means DefaultCaughtUpFor.
	CaughtUpFor time.Duration
	// CheckName holds an address to a certificate; nil means peer.CheckName.
	CheckName func(cert *x509.Certificate, address string) error
}

// Controller changes the cluster, and watches over it while this node leads. It may be used from any goroutine.
type Controller struct {
	o Options
	// changing holds a token while a change is made: one at a time.
	changing chan struct{}
	// clock is why no appends are allowed; nil if they are.
	clock atomic.Pointer[error]
	// superseded is why a leader that others seem to have left behind allows no appends; nil if it does.
	superseded atomic.Pointer[error]
	// ahead is how far this leader's clock is ahead of the closest other voter's, nanoseconds.
	ahead atomic.Int64

	mu     sync.Mutex
	term   uint64           // of the leadership that the following is about; 0 none
	wishes map[string]bool  // non-voters: whether they are to vote once they have caught up
	keeps  map[string]since // members: since when they have kept up
	looked chan struct{}    // closed and replaced after each look of Run

	// Owned by Run.
	watch watch
}

// since is an unbroken series of looks in which a member kept up.
type since struct{ first, last time.Time }

// New returns a controller. Run has to be called for what it does by itself.
func New(o Options) *Controller {
	if o.CaughtUpFor == 0 {
		o.CaughtUpFor = DefaultCaughtUpFor
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.CheckName == nil {
		o.CheckName = peer.CheckName
	}
	return &Controller{
		o: o, changing: make(chan struct{}, 1), wishes: map[string]bool{}, keeps: map[string]since{}, looked: make(chan struct{}),
	}
}

// AppendAllowed returns nil, or why this leader refuses appends: an error that wraps sequencer.ErrNotApplied and ErrClock or ErrSuperseded.
func (c *Controller) AppendAllowed() error {
	if err := c.superseded.Load(); err != nil {
		return *err
	}
	if err := c.clock.Load(); err != nil {
		return *err
	}
	return nil
}

// Caller is who asks for a change.
type Caller struct {
	Principal string
	Authn     lineage.Authn
}

type callerKey struct{}

// WithCaller says for whom the changes under a context are made. Without it they are the ledger's own.
func WithCaller(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

func (c *Controller) caller(ctx context.Context) Caller {
	if x, ok := ctx.Value(callerKey{}).(Caller); ok && x.Principal != "" {
		return x
	}
	return Caller{c.o.History.Principal(), lineage.AuthnLedger}
}

// membership is a configuration that a change is based on.
type membership struct {
	servers []consensus.Server
	index   uint64
}

func (m membership) find(id string) *consensus.Server {
	if i := slices.IndexFunc(m.servers, func(s consensus.Server) bool { return s.ID == id }); i >= 0 {
		return &m.servers[i]
	}
	return nil
}

func (m membership) at(address string) *consensus.Server {
	if i := slices.IndexFunc(m.servers, func(s consensus.Server) bool { return s.Address == address }); i >= 0 {
		return &m.servers[i]
	}
	return nil
}

func (c *Controller) membership() membership {
	servers, index := c.o.Raft.Servers()
	return membership{servers, index}
}

// change runs fn alone, on the leader, with the current membership.
func (c *Controller) change(ctx context.Context, fn func(m membership) error) error {
	select {
	case c.changing <- struct{}{}:
		defer func() { <-c.changing }()
	case <-ctx.Done():
		return fmt.Errorf("%w: another change of the cluster is under way: %w", sequencer.ErrNotApplied, context.Cause(ctx))
	}
	if !c.o.Raft.IsLeader() {
		return c.notLeader()
	}
	return fn(c.membership())
}

func (c *Controller) notLeader() error {
	id := c.o.Raft.Leader()
	if id == "" || id == c.o.NodeID {
		return fmt.Errorf("%w: it knows of no leader now", ErrNotLeader)
	}
	if s := c.membership().find(id); s != nil {
		return fmt.Errorf("%w: node %s at %s does", ErrNotLeader, id, s.Address)
	}
	return fmt.Errorf("%w: node %s does", ErrNotLeader, id)
}

// translate gives an error of raft the class that callers know.
func (c *Controller) translate(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, consensus.ErrUnknown):
		return fmt.Errorf("%s: %w: %w", what, sequencer.ErrUnknown, err)
	case !c.o.Raft.IsLeader():
		return fmt.Errorf("%s: %w: %w", what, c.notLeader(), err)
	}
	return fmt.Errorf("%s: %w: %w", what, sequencer.ErrNotApplied, err)
}

func refused(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrRefused, fmt.Errorf(format, args...))
}
