package consensus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

var (
	// ErrLogMismatch: the log does not continue what the machine holds. One of the two lost data or belongs to another
	// node; starting would skip or fork entries.
	ErrLogMismatch = errors.New("consensus: raft log and state machine contradict each other")
	// ErrNotMember: the stored cluster configuration does not name this node, or there is none: Bootstrap was never called.
	ErrNotMember = errors.New("consensus: this node is not in the cluster configuration")
	// ErrSoleVoter: there is no other voter to hand leadership to.
	ErrSoleVoter = errors.New("consensus: the only voter cannot step down")
)

// Consensus is a running raft node. All methods may be called from any goroutine.
type Consensus struct {
	conf   Config
	raft   *raft.Raft
	log    *gate
	fsm    *fsm
	logger *logger

	transport *transport
	fence     fence

	snapshots, snapshotFailures atomic.Uint64

	leadership leadership

	// slots holds a token for everything that raft was asked and has not answered yet.
	slots chan struct{}
	// queue holds the same proposals in the order in which raft got them. Sent to under mu, so that its order is that of
	// raft and closing it is safe.
	queue    chan *Proposal
	resolved chan struct{} // closed when resolve has returned

	// asked counts what waits for an answer of raft apart from proposals.
	asked sync.WaitGroup

	compactDone chan struct{} // closed when compact has returned
	tuning      sync.Mutex    // held over a change of raft's configuration
	cancel      context.CancelFunc

	mu     sync.Mutex
	closed bool // no proposal enters raft any more

	closing   chan struct{} // closed with closed = true
	abandoned chan struct{} // closed when Close gives up on proposals that raft has not answered
	stopped   chan struct{} // closed when no goroutine is left that could touch Store or Machine
	closeOnce sync.Once
	closeErr  error
}

// Bootstrap writes the first configuration of a cluster of one, this node, into a new store. address is as in Config. It
// is synced when it returns. An error leaves the store in an undefined state: the caller discards it and starts afresh. A store that is not
// new is refused.
func Bootstrap(store Store, nodeID, address string) error {
	return bootstrap(store, nodeID, Server{ID: nodeID, Address: cmp.Or(address, nodeID)})
}

// bootstrap makes servers, among them nodeID, the voters of a new cluster.
func bootstrap(store Store, nodeID string, servers ...Server) error {
	c, err := Config{NodeID: nodeID, Store: store, Machine: noMachine{}}.withDefaults()
	if err != nil {
		return err
	}
	var conf raft.Configuration
	for _, s := range servers {
		conf.Servers = append(conf.Servers, raft.Server{
			Suffrage: raft.Voter, ID: raft.ServerID(s.ID), Address: raft.ServerAddress(s.Address),
		})
	}
	// The transport is used by protocol versions before 3 only.
	rc := c.raftConfig(newLogger(c.Logger, hclog.Warn), nil)
	if err := raft.BootstrapCluster(rc, store, store, snapshots{noMachine{}}, nil, conf); err != nil {
		return fmt.Errorf("consensus: bootstrap: %w", err)
	}
	return nil
}

// noMachine is the machine of a node that has none yet.
type noMachine struct{}

func (noMachine) Apply(e []Entry) []any               { return make([]any, len(e)) }
func (noMachine) Durable() (Position, error)          { return Position{}, nil }
func (noMachine) Flush(context.Context, uint64) error { return nil }

// Open starts raft on a store that was bootstrapped or, with Config.Joining, may be new. Entries above the machine's
// durable position are delivered to it once a leader is known, which on a cluster of one is within a few fsyncs; Open does
// not wait for that, see WaitLeader. errors.Is ErrLogMismatch and ErrNotMember are reasons to stay down.
func Open(c Config) (*Consensus, error) {
	s := c.Stream
	c, err := c.withDefaults()
	if err != nil {
		if s != nil {
			err = errors.Join(err, s.Close())
		}
		return nil, err
	}
	self := raft.ServerAddress(c.Address)
	if s != nil {
		return open(c, newStreamTransport(s, self, newLogger(c.Logger, hclog.Warn)))
	}
	_, t := raft.NewInmemTransport(self) // there is nobody to talk to
	return open(c, newTransport(t, self, plainAddress))
}

// plainAddress is how raft's in-memory transport finds a peer.
func plainAddress(_ raft.ServerID, a raft.ServerAddress) raft.ServerAddress { return a }

// open is Open for a configuration with its defaults, over a given transport, which it closes if there is an error.
func open(c Config, t *transport) (_ *Consensus, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, t.Close())
		}
	}()
	d, err := c.Machine.Durable()
	if err != nil {
		return nil, fmt.Errorf("consensus: read the durable position: %w", err)
	}
	if err := checkLog(c.Store, d); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	n := &Consensus{
		conf:        c,
		log:         &gate{LogStore: c.Store, base: d, durable: c.Machine.Durable},
		fsm:         &fsm{machine: c.Machine, ctx: ctx},
		transport:   t,
		logger:      newLogger(c.Logger, hclog.Error), // until start says otherwise
		leadership:  newLeadership(),
		fence:       newFence(),
		slots:       make(chan struct{}, c.MaxAppendEntries),
		queue:       make(chan *Proposal, c.MaxAppendEntries),
		resolved:    make(chan struct{}),
		compactDone: make(chan struct{}),
		cancel:      cancel,
		closing:     make(chan struct{}),
		abandoned:   make(chan struct{}),
		stopped:     make(chan struct{}),
	}
	n.fsm.delivered.Store(d.Index)
	n.fsm.configured = n.log.members.apply
	if d.ConfigurationIndex > 0 {
		n.log.members.see(&raft.Log{Index: d.ConfigurationIndex, Type: raft.LogConfiguration, Data: d.Configuration})
		n.log.members.apply(d.ConfigurationIndex)
	}
	n.raft, err = raft.NewRaft(c.raftConfig(n.logger, n.leadership.notify), n.fsm, n.log, c.Store, snapshots{c.Machine}, t)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("consensus: start raft: %w", err)
	}
	n.raft.RegisterObserver(n.leadership.observer())
	t.start(n)
	go n.leadership.watch(func() { n.logger.SetLevel(hclog.Warn) })
	go n.resolve()
	go n.compact(ctx, d.Index)
	if err := n.start(); err != nil {
		return nil, errors.Join(err, n.Close(context.Background()))
	}
	return n, nil
}

// start lets a sole voter campaign at once: nobody could be disturbed by it or know of a better leader. raft has no call
// for that, but a follower whose HeartbeatTimeout is lowered by ReloadConfig - here by the nanosecond that raftConfig
// added - restarts its timer at zero, finds that it never heard of a leader, and votes for itself. With other voters the
// timeouts stay as they are.
func (c *Consensus) start() error {
	if !c.conf.Joining && !c.log.members.has(raft.ServerID(c.conf.NodeID)) {
		return fmt.Errorf("%w: node %q, servers %v", ErrNotMember, c.conf.NodeID, c.log.members.latest().servers)
	}
	if !c.soleVoter() {
		c.logger.SetLevel(hclog.Warn)
		return nil
	}
	c.tuning.Lock()
	defer c.tuning.Unlock()
	// raft warns of the timeout that it is made to see here. Errors only, until this node leads.
	rc := c.raft.ReloadableConfig()
	rc.HeartbeatTimeout, rc.ElectionTimeout = c.conf.HeartbeatTimeout, c.conf.HeartbeatTimeout
	if err := c.raft.ReloadConfig(rc); err != nil {
		return fmt.Errorf("consensus: set timeouts: %w", err)
	}
	return nil
}

// IsLeader says that this node leads, as far as it knows: a newer leader may exist that it has not heard of.
func (c *Consensus) IsLeader() bool { return c.raft.State() == raft.Leader }

// Term is the current election term.
func (c *Consensus) Term() uint64 { return c.raft.CurrentTerm() }

// WaitLeader returns nil when this node leads. Entries of earlier terms may still be on their way to the machine then; a
// Barrier waits for them.
func (c *Consensus) WaitLeader(ctx context.Context) error { return c.leadership.wait(ctx, c.closing) }

// LeaderChanges tells when this node gains (true) or loses (false) leadership. There is one channel, for one receiver; of
// changes that are not received in time only the newest is kept. It is never closed.
func (c *Consensus) LeaderChanges() <-chan bool { return c.leadership.changes }

// Close refuses new proposals, waits for those in flight, and stops raft. nil means that Store and Machine will not be
// touched any more. When ctx ends first, proposals without an answer end with ErrUnknown and Close returns an error; raft
// goes on stopping behind it, may still touch Store and Machine while the machine's current Apply lasts, and may leave a
// goroutine that waits for an answer that nobody gives any more: the process should end. Later calls return what the
// first one returned. Leadership is not handed over, see StepDown.
func (c *Consensus) Close(ctx context.Context) error {
	c.closeOnce.Do(func() { c.closeErr = c.close(ctx) })
	return c.closeErr
}

func (c *Consensus) close(ctx context.Context) error {
	c.mu.Lock()
	c.closed = true
	close(c.closing)
	close(c.queue)
	c.mu.Unlock()
	c.fence.cancel(ErrClosed)

	var errs []error
	answered := make(chan struct{})
	go func() {
		<-c.resolved
		c.asked.Wait()
		close(answered)
	}()
	select {
	case <-answered:
	case <-ctx.Done():
		errs = append(errs, fmt.Errorf("consensus: close: %d proposals without an answer: %w", len(c.slots), context.Cause(ctx)))
	}
	// A flush that is under way ends here, raft's snapshot goroutine waits for it.
	c.cancel()
	down := c.raft.Shutdown()
	go func() {
		if err := down.Error(); err != nil {
			c.logger.Error("shutdown", "error", err)
		}
		c.log.shut()
		<-c.compactDone
		close(c.leadership.stop)
		<-c.leadership.done
		close(c.stopped)
	}()
	select {
	case <-c.stopped:
	case <-ctx.Done():
		errs = append(errs, fmt.Errorf("consensus: close: raft has not stopped: %w", context.Cause(ctx)))
	}
	if len(errs) > 0 {
		close(c.abandoned)
	}
	return errors.Join(errs...)
}

// Stats is a snapshot of what a node's raft is doing. Fields are read one after the other, not at one instant.
type Stats struct {
	Leader bool
	Term   uint64
	// First and Last are the ends of the log, Committed is the commit index as this node knows it.
	First, Last, Committed uint64
	// Delivered is the index of the last entry that the machine has applied; no-ops and barriers do not count.
	Delivered uint64
	// InFlight is the number of proposals and barriers without an answer.
	InFlight int
	// Snapshots and SnapshotFailures count flush-and-compact rounds since Open.
	Snapshots, SnapshotFailures uint64
	// LeaderContact is how long ago this node last heard of the leader; 0 on the leader, and negative if it never did.
	LeaderContact time.Duration
	// FenceReads were served by FenceRounds of questions, of which FencesFailed left it open whether this node leads.
	FenceReads, FenceRounds, FencesFailed uint64
}

// Stats returns current figures. It never touches the machine, and after Close not the store: First is 0 then.
func (c *Consensus) Stats() Stats {
	s := Stats{
		Leader: c.IsLeader(), Term: c.Term(),
		Last: c.raft.LastIndex(), Committed: c.raft.CommitIndex(), Delivered: c.fsm.delivered.Load(),
		InFlight: len(c.slots), Snapshots: c.snapshots.Load(), SnapshotFailures: c.snapshotFailures.Load(),
	}
	if first, err := c.log.FirstIndex(); err == nil {
		s.First = first
	}
	if !s.Leader {
		if s.LeaderContact = -1; !c.raft.LastContact().IsZero() {
			s.LeaderContact = time.Since(c.raft.LastContact())
		}
	}
	c.fence.mu.Lock()
	s.FenceReads, s.FenceRounds, s.FencesFailed = c.fence.reads, c.fence.rounds, c.fence.failed
	c.fence.mu.Unlock()
	return s
}
