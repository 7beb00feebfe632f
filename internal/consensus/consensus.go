package consensus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

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

	snapshots, snapshotFailures atomic.Uint64

	leadership leadership

	// slots holds a token for everything that raft was asked and has not answered yet.
	slots chan struct{}
	// queue holds the same proposals in the order in which raft got them. Sent to under mu, so that its order is that of
	// raft and closing it is safe.
	queue    chan *Proposal
	resolved chan struct{} // closed when resolve has returned

	compactDone chan struct{} // closed when compact has returned
	cancel      context.CancelFunc

	mu     sync.Mutex
	closed bool // no proposal enters raft any more

	closing   chan struct{} // closed with closed = true
	abandoned chan struct{} // closed when Close gives up on proposals that raft has not answered
	stopped   chan struct{} // closed when no goroutine is left that could touch Store or Machine
	closeOnce sync.Once
	closeErr  error
}

// Bootstrap writes the first configuration of a cluster of one, this node, into a new store. It is synced when it
// returns. An error leaves the store in an undefined state: the caller discards it and starts afresh. A store that is not
// new is refused.
func Bootstrap(store Store, nodeID string) error {
	return bootstrap(store, nodeID, nodeID)
}

// bootstrap makes members, among them nodeID, the voters of a new cluster.
func bootstrap(store Store, nodeID string, members ...string) error {
	c, err := Config{NodeID: nodeID, Store: store, Machine: noMachine{}}.withDefaults()
	if err != nil {
		return err
	}
	var conf raft.Configuration
	for _, id := range members {
		conf.Servers = append(conf.Servers, raft.Server{
			Suffrage: raft.Voter, ID: raft.ServerID(id), Address: raft.ServerAddress(id),
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

// Open starts raft on a store that was bootstrapped. Entries above the machine's durable position are delivered to it
// once a leader is known, which on a cluster of one is within a few fsyncs; Open does not wait for that, see WaitLeader.
// errors.Is ErrLogMismatch and ErrNotMember are reasons to stay down.
func Open(c Config) (*Consensus, error) {
	// Memory only, until there is a second node to talk to. The address is the node id: where a node id lives is resolved
	// outside raft.
	_, t := raft.NewInmemTransport(raft.ServerAddress(c.NodeID))
	return open(c, t)
}

// open is Open over a given transport, which belongs to the Consensus if there is no error.
func open(c Config, t raft.Transport) (*Consensus, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
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
		log:         &gate{LogStore: c.Store},
		fsm:         &fsm{machine: c.Machine, ctx: ctx},
		logger:      newLogger(c.Logger, hclog.Error), // until start says otherwise
		leadership:  newLeadership(),
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
	n.raft, err = raft.NewRaft(c.raftConfig(n.logger, n.leadership.notify), n.fsm, n.log, c.Store, snapshots{c.Machine}, t)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("consensus: start raft: %w", err)
	}
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
	servers := c.raft.GetConfiguration().Configuration().Servers
	var member bool
	for _, s := range servers {
		member = member || s.ID == raft.ServerID(c.conf.NodeID)
	}
	if !member {
		return fmt.Errorf("%w: node %q, servers %v", ErrNotMember, c.conf.NodeID, servers)
	}
	if !c.soleVoter() {
		c.logger.SetLevel(hclog.Warn)
		return nil
	}
	// raft warns of the timeout that it is made to see here. Errors only, until this node leads.
	rc := c.raft.ReloadableConfig()
	rc.HeartbeatTimeout, rc.ElectionTimeout = c.conf.HeartbeatTimeout, c.conf.HeartbeatTimeout
	if err := c.raft.ReloadConfig(rc); err != nil {
		return fmt.Errorf("consensus: set timeouts: %w", err)
	}
	return nil
}

// soleVoter says that this node is the one voter of the latest configuration.
func (c *Consensus) soleVoter() bool {
	var self, others int
	for _, s := range c.raft.GetConfiguration().Configuration().Servers {
		switch {
		case s.Suffrage != raft.Voter:
		case s.ID == raft.ServerID(c.conf.NodeID):
			self++
		default:
			others++
		}
	}
	return self == 1 && others == 0
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

// StepDown hands leadership to the voter that is furthest, and returns nil when this node leads no more. ErrSoleVoter
// when there is none. Proposals fail with ErrNotApplied meanwhile.
func (c *Consensus) StepDown() error {
	if c.soleVoter() {
		return ErrSoleVoter
	}
	select {
	case c.slots <- struct{}{}:
	case <-c.closing:
		return fmt.Errorf("consensus: step down: %w", ErrClosed)
	}
	// Asked for like a proposal, so that Close waits for the answer: a raft that has stopped gives none.
	p := c.submit(func() raft.Future { return c.raft.LeadershipTransfer() })
	select {
	case <-p.done:
	case <-p.abandoned:
		return fmt.Errorf("consensus: step down: %w", ErrClosed)
	}
	if p.err != nil {
		return fmt.Errorf("consensus: step down: %w", p.err)
	}
	return nil
}

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

	var errs []error
	select {
	case <-c.resolved:
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
	return s
}
