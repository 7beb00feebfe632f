// Package ledger is the deterministic state machine: commands in, trees and entries out.
//
// It keeps every log of a node in one Pebble store without a WAL; what a crash takes is replayed from the raft log. Every command
// carries the size and root of each log it touches before and after, composed by the proposer; [Ledger.Apply] recomputes both from the
// bytes that it stores and refuses or quarantines on a difference, so that no receipt over a wrong root can leave.
//
// Decisions read only the command, raft's index and term, and the state as of the previous command: there is no clock, no randomness
// and no goroutine here, and replay decides alike. One goroutine calls Apply; everything else may be called from any.
//
// docs/format.md, "State store" and "Raft commands", specifies the bytes.
package ledger

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sort"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/disk"
	"github.com/provledger/provledger/internal/merkle"
)

// Built-in logs.
const (
	SystemLog uint32 = 0 // "system": registry, principals, control
	MainLog   uint32 = 1 // "main": the default log

	SystemName = "system"
	MainName   = "main"
)

// Errors by class; callers test with errors.Is.
var (
	ErrNotFound    = errors.New("not found")
	ErrConflict    = errors.New("already exists")
	ErrInvalid     = errors.New("invalid request")
	ErrOverloaded  = errors.New("overloaded")
	ErrQuarantined = errors.New("this node is quarantined")
	ErrCorrupt     = errors.New("the state store is damaged")
)

// Log describes a log. It never changes.
type Log struct {
	Number    uint32
	Name      string
	Origin    string
	Kind      lineage.LogKind
	VKey      string
	CreatedAt int64 // microseconds since the Unix epoch
}

// Head is the state of a log.
type Head struct {
	Size       uint64
	Root       merkle.Hash
	RecordedAt int64 // of the newest entry, microseconds since the Unix epoch
}

// Options of a ledger.
type Options struct {
	FS        vfs.FS
	Dir       string
	ClusterID lineage.ID
	Logger    *slog.Logger
	// Die ends the process: called when the store fails in a way after which going on could lose or fork.
	Die func(reason string, err error)
	// MemTableBytes, BlockCacheBytes, ReadOnly, SlowWarn and SlowKill are passed to disk.Open.
	MemTableBytes      uint64
	BlockCacheBytes    int64
	ReadOnly           bool
	SlowWarn, SlowKill time.Duration
}

// Ledger is the state machine and its read side.
type Ledger struct {
	o    Options
	disk *disk.Store
	db   *pebble.DB

	// Owned by the goroutine that calls Apply.
	applied appliedRecord
	recent  recentDigests
	scratch applyScratch

	mu          sync.RWMutex
	registry    map[uint32]Log
	byName      map[string]uint32
	byOrigin    map[string]uint32
	trees       map[uint32]*Tree // published; loaded on first use
	edges       map[uint32]*merkle.Edge
	published   appliedRecord
	local       string
	staged      map[uint32]uint64 // staged records: how far data beyond a log's head were fetched ahead
	installs    uint64            // number of installations since the start
	quarantine  error
	onDamage    func(error)   // told of the quarantine, once
	changed     chan struct{} // closed and replaced at every publication
	referenceOf map[uint32]lineage.Key

	// storing is held by whoever writes a batch: Apply, and a catch-up that stages data beside it. It comes before mu.
	storing sync.Mutex
}

// Applied says how far the state machine is.
type Applied struct {
	Index, Term uint64
	Digest      merkle.Hash // chain digest over all decisions so far
}

// Open opens or creates the state store and checks what it finds: the trees of the built-in logs are rebuilt and their roots compared
// with the recorded heads. An error wraps ErrCorrupt when the store is damaged or contradicts itself.
func Open(o Options) (*Ledger, error) {
	l := &Ledger{
		o: o, registry: map[uint32]Log{}, byName: map[string]uint32{}, byOrigin: map[string]uint32{}, trees: map[uint32]*Tree{}, edges: map[uint32]*merkle.Edge{},
		changed: make(chan struct{}), referenceOf: map[uint32]lineage.Key{}, staged: map[uint32]uint64{},
	}
	s, err := disk.Open(disk.Options{
		FS: o.FS, Dir: o.Dir, Name: "state", MemTableBytes: o.MemTableBytes, BlockCacheBytes: o.BlockCacheBytes,
		ReadOnly: o.ReadOnly, Logger: o.Logger, Die: o.Die, SlowWarn: o.SlowWarn, SlowKill: o.SlowKill,
		Damaged: func(err error) { l.enterQuarantine(corrupt("%w", err)) },
	})
	if errors.Is(err, disk.ErrDamaged) {
		err = corrupt("%w", err)
	}
	if err != nil {
		return nil, err
	}
	l.disk, l.db = s, s.DB
	if err := l.load(); err != nil {
		return nil, errors.Join(err, s.Abandon())
	}
	return l, nil
}

func (l *Ledger) load() error {
	v, ok, err := l.get(appliedKey)
	if err != nil {
		return err
	}
	l.applied.cluster = l.o.ClusterID
	if ok {
		if l.applied, err = parseApplied(v); err != nil {
			return err
		}
		if l.applied.cluster != l.o.ClusterID {
			return fmt.Errorf("%w: it belongs to cluster %s, the directory says %s", ErrCorrupt, l.applied.cluster, l.o.ClusterID)
		}
	}
	l.recent.add(l.applied.index, l.applied.digest)
	l.published = l.applied
	err = l.scanPrefix(registryPrefix, func(k, v []byte) error {
		g, err := parseLog(v)
		if err != nil {
			return err
		}
		l.register(g)
		return nil
	})
	if err != nil {
		return err
	}
	if l.staged, err = stagedIn(l.db); err != nil {
		return err
	}
	if v, ok, err := l.get(localKey); err != nil {
		return err
	} else if ok {
		if l.local, err = parseLocal(v); err != nil {
			return err
		}
	}
	// Other logs are checked when they are first used, so that opening does not grow with their number.
	for _, n := range []uint32{SystemLog, MainLog} {
		if _, ok := l.registry[n]; ok {
			if _, err := l.loadTree(n); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *Ledger) register(g Log) {
	l.registry[g.Number] = g
	l.byName[g.Name] = g.Number
	l.byOrigin[g.Origin] = g.Number
}

// Close makes the state durable and closes the store. When ctx ends first, what is not durable is replayed at the next start.
func (l *Ledger) Close(ctx context.Context) error { return l.disk.Close(ctx) }

// Abandon closes the store as a crash would.
func (l *Ledger) Abandon() error { return l.disk.Abandon() }

// ClusterID returns the id of the cluster that the ledger belongs to.
func (l *Ledger) ClusterID() lineage.ID { return l.o.ClusterID }

// LocalPrincipal returns the principal of callers as long as there is no access control; empty until the ledger is bootstrapped.
func (l *Ledger) LocalPrincipal() string {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.local
}

// Applied returns how far the published state is.
func (l *Ledger) Applied() Applied {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.published.public()
}

// CommandVersion returns the version of commands in use: the one that a proposer writes. It is 1 until a version entry raises it.
func (l *Ledger) CommandVersion() uint8 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.published.commandVersion()
}

// Logs returns the logs by number.
func (l *Ledger) Logs() []Log {
	l.mu.RLock()
	defer l.mu.RUnlock()
	logs := make([]Log, 0, len(l.registry))
	for _, g := range l.registry {
		logs = append(logs, g)
	}
	sort.Slice(logs, func(i, j int) bool { return logs[i].Number < logs[j].Number })
	return logs
}

// LogByName returns a log; the empty name means main. The error wraps ErrNotFound.
func (l *Ledger) LogByName(name string) (Log, error) {
	if name == "" {
		name = MainName
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	if n, ok := l.byName[name]; ok {
		return l.registry[n], nil
	}
	return Log{}, fmt.Errorf("log %q: %w", name, ErrNotFound)
}

// LogByOrigin returns a log by the origin of its checkpoints. The error wraps ErrNotFound.
func (l *Ledger) LogByOrigin(origin string) (Log, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if n, ok := l.byOrigin[origin]; ok {
		return l.registry[n], nil
	}
	return Log{}, fmt.Errorf("log of origin %q: %w", origin, ErrNotFound)
}

// LogByNumber returns a log.
func (l *Ledger) LogByNumber(n uint32) (Log, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if g, ok := l.registry[n]; ok {
		return g, nil
	}
	return Log{}, fmt.Errorf("log number %d: %w", n, ErrNotFound)
}

// WaitSize returns when the published tree of a log has at least size entries, or with ctx's error.
func (l *Ledger) WaitSize(ctx context.Context, log uint32, size uint64) error {
	for {
		l.mu.RLock()
		changed, quarantine := l.changed, l.quarantine
		l.mu.RUnlock()
		if quarantine != nil {
			return quarantine
		}
		t, err := l.Tree(log)
		if err != nil {
			return err
		}
		if t.head.Size >= size {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Position is what survives a power cut: see [Ledger.Durable].
type Position struct {
	Index, Term        uint64
	ConfigurationIndex uint64
	Configuration      []byte
}

// Durable returns the applied record that survives a power cut now. It is written in the same batch as the data that it speaks of, and
// memtables are flushed in order, so everything up to it is durable too (H1).
func (l *Ledger) Durable() (Position, error) {
	v, ok, err := l.disk.DurableValue(appliedKey)
	if err != nil || !ok {
		return Position{}, err
	}
	a, err := parseApplied(v)
	if err != nil {
		return Position{}, err
	}
	return Position{a.index, a.term, a.configIndex, a.config}, nil
}

// Flush returns nil only when the durable index is at least index.
func (l *Ledger) Flush(ctx context.Context, index uint64) error {
	if err := l.disk.Flush(ctx); err != nil {
		return err
	}
	p, err := l.Durable()
	if err == nil && p.Index < index {
		err = fmt.Errorf("flushed, but only up to index %d of %d", p.Index, index)
	}
	return err
}
