package consensus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// Defaults of Config, with their reasons. Commands are up to 1 MiB under load (8 MiB at the very most), and every limit
// inside raft counts commands, not bytes.
const (
	// DefaultHeartbeatTimeout: a follower that hears nothing for one to two times this long campaigns. 250 ms gives a
	// failover of about 0.5 s at the median and still is a hundred times a fsync plus a round trip.
	DefaultHeartbeatTimeout = 250 * time.Millisecond
	// DefaultMaxAppendEntries bounds a message to 16 MiB of commands at the usual maximum, raft's queue before the
	// machine to 128 such groups, and the proposals in flight.
	DefaultMaxAppendEntries = 16
	// DefaultTrailingLogs is how many entries stay behind the newest one when the log is compacted. Their use is to spare
	// a lagging follower the long way round; a sole voter has none. 64 entries are at most 64 MiB at 1 MiB a command, one
	// segment of the log, and leave the entry at the durable index in place, so that its term can be compared at the next
	// start. (The library's default, 10,240 entries, would be 10 GiB.)
	DefaultTrailingLogs = 64
	// DefaultTrailingBytes is some seconds at full rate, hours at usual ones. A follower that is away for longer catches up
	// outside raft, which costs what it lacks and no more.
	DefaultTrailingBytes = 256 << 20
	// DefaultSnapshotEvery bounds the age of what a restart has to replay.
	DefaultSnapshotEvery = 30 * time.Second
	// DefaultSnapshotBytes bounds the amount of what a restart has to replay: about one memtable, which the machine would
	// flush about now anyway.
	DefaultSnapshotBytes = 64 << 20
)

const (
	// commitTimeout: the leader tells followers about a new commit index within one to two times this when no further
	// command carries it. Costs nothing on a cluster of one.
	commitTimeout = 10 * time.Millisecond
	// fallbackSnapshotInterval and fallbackSnapshotThreshold keep raft's own trigger, which counts entries, far behind
	// ours, which counts bytes and time.
	fallbackSnapshotInterval  = 10 * time.Minute
	fallbackSnapshotThreshold = 1 << 16
	// maxMaxAppendEntries is the library's limit.
	maxMaxAppendEntries = 1024
	// minHeartbeatTimeout keeps the leader lease, two thirds of it, above the library's minimum of 5 ms.
	minHeartbeatTimeout = 10 * time.Millisecond
)

// Config says how to open a Consensus. The first three fields are required, zero means the default for all others.
type Config struct {
	// NodeID is this node's raft ServerID. It never changes.
	NodeID string
	// Store keeps log, term and vote. The caller opens it before Open and closes it after Close.
	Store Store
	// Machine is what commands are applied to. The caller opens it before Open and closes it after Close.
	Machine StateMachine

	// Address is the peer address, HOST:PORT, that this node advertises: its raft ServerAddress. Default: NodeID, that of a
	// node without one.
	Address string
	// Stream connects to other nodes. It is for one Consensus, which closes it, also when Open fails. The address that it dials is that of the
	// cluster's configuration with the node id in front, "ID@ADDRESS". nil: memory, for a cluster of one.
	Stream raft.StreamLayer
	// Joining says that the cluster's configuration need not name this node yet, and that the store may be empty: the node
	// waits until a leader adds it.
	Joining bool
	// Term asks another node for its current term, over a connection apart from raft's. It returns when its context
	// ends. Required for ReadIndex with more than one voter.
	Term func(ctx context.Context, nodeID string) (uint64, error)
	// Behind is told, each time that the leader tries, that the leader's log begins after the end of this node. It must
	// not block: other messages wait behind it.
	Behind func(Behind)

	// Logger gets raft's warnings and errors. Default: slog.Default().
	Logger *slog.Logger
	// HeartbeatTimeout is how long a follower waits for its leader before it campaigns (one to two times this), and how
	// long an election may take. At least 10 ms. A cluster of one does not wait for it.
	HeartbeatTimeout time.Duration
	// MaxAppendEntries is the most commands that are stored, sent or applied as one group, and the most proposals in
	// flight. 1 to 1,024.
	MaxAppendEntries int
	// TrailingLogs is how many of the newest log entries compaction leaves in place. Default: DefaultTrailingLogs in a
	// cluster of one, else as many as TrailingBytes holds.
	TrailingLogs uint64
	// TrailingBytes is how much of the log compaction leaves in place for followers that lag or are away, if there is more
	// than one server, TrailingLogs is 0 and LogBytes is set. It is a target: entries are counted by their average size.
	TrailingBytes int64
	// SnapshotEvery is the longest time that applied entries stay in memory only, as long as flushing works.
	SnapshotEvery time.Duration
	// LogBytes returns the bytes that the log occupies. It is called a few times a second. nil: only SnapshotEvery
	// triggers.
	LogBytes func() int64
	// SnapshotBytes is by how much the log may grow before the machine is flushed and the log compacted.
	SnapshotBytes int64
}

// withDefaults returns c with every zero field set, or an error that names all faults.
func (c Config) withDefaults() (Config, error) {
	var faults []error
	if c.NodeID == "" {
		faults = append(faults, errors.New("no NodeID"))
	}
	if c.Store == nil {
		faults = append(faults, errors.New("no Store"))
	}
	if c.Machine == nil {
		faults = append(faults, errors.New("no Machine"))
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.HeartbeatTimeout == 0 {
		c.HeartbeatTimeout = DefaultHeartbeatTimeout
	}
	if c.HeartbeatTimeout < minHeartbeatTimeout {
		faults = append(faults, fmt.Errorf("HeartbeatTimeout %v is below %v", c.HeartbeatTimeout, minHeartbeatTimeout))
	}
	if c.MaxAppendEntries == 0 {
		c.MaxAppendEntries = DefaultMaxAppendEntries
	}
	if c.MaxAppendEntries < 1 || c.MaxAppendEntries > maxMaxAppendEntries {
		faults = append(faults, fmt.Errorf("MaxAppendEntries %d is not within 1..%d", c.MaxAppendEntries, maxMaxAppendEntries))
	}
	if c.Address == "" {
		c.Address = c.NodeID
	}
	if c.Term == nil {
		c.Term = func(context.Context, string) (uint64, error) { return 0, errors.New("no way to ask for a term") }
	}
	if c.Behind == nil {
		c.Behind = func(Behind) {}
	}
	if c.TrailingBytes == 0 {
		c.TrailingBytes = DefaultTrailingBytes
	}
	if c.TrailingBytes < 0 {
		faults = append(faults, fmt.Errorf("TrailingBytes %d is negative", c.TrailingBytes))
	}
	if c.SnapshotEvery == 0 {
		c.SnapshotEvery = DefaultSnapshotEvery
	}
	if c.SnapshotEvery < 0 {
		faults = append(faults, fmt.Errorf("SnapshotEvery %v is negative", c.SnapshotEvery))
	}
	if c.LogBytes == nil {
		c.LogBytes = func() int64 { return 0 }
	}
	if c.SnapshotBytes == 0 {
		c.SnapshotBytes = DefaultSnapshotBytes
	}
	if c.SnapshotBytes < 0 {
		faults = append(faults, fmt.Errorf("SnapshotBytes %d is negative", c.SnapshotBytes))
	}
	if len(faults) > 0 {
		return Config{}, fmt.Errorf("consensus: config: %w", errors.Join(faults...))
	}
	return c, nil
}

// raftConfig is the library's configuration for c, whose defaults are set.
func (c Config) raftConfig(logger hclog.Logger, leadership chan<- bool) *raft.Config {
	// One nanosecond above the wanted timeout: lowering a running instance's timeout makes a follower look at its timer
	// at once, see Consensus.start.
	timeout := c.HeartbeatTimeout + 1
	return &raft.Config{
		ProtocolVersion:    raft.ProtocolVersionMax,
		LocalID:            raft.ServerID(c.NodeID),
		HeartbeatTimeout:   timeout,
		ElectionTimeout:    timeout,
		LeaderLeaseTimeout: c.HeartbeatTimeout * 2 / 3,
		CommitTimeout:      commitTimeout,
		MaxAppendEntries:   c.MaxAppendEntries,
		// Buffers the channel of proposals to MaxAppendEntries, so that what waits during a fsync is stored by the next
		// one as a group. Consensus.submit relies on that size.
		BatchApplyCh:      true,
		TrailingLogs:      cmp.Or(c.TrailingLogs, DefaultTrailingLogs), // see Consensus.retain
		SnapshotInterval:  fallbackSnapshotInterval,
		SnapshotThreshold: fallbackSnapshotThreshold,
		// Only Close shuts raft down; the classification of ErrRaftShutdown rests on that.
		ShutdownOnRemove: false,
		NotifyCh:         leadership,
		Logger:           logger,
		// The machine restores itself; raft only reads the metadata.
		NoSnapshotRestoreOnStart: true,
		NoLegacyTelemetry:        true,
		// Replays into a bounded queue before anybody reads it (raft v1.8.0, restoreFromCommittedLogs runs before
		// runFSM): it would hang on a long log.
		RestoreCommittedLogs: false,
	}
}
