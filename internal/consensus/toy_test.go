package consensus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// toyState is all that a toy holds: the commands in order, and the position after the last one.
type toyState struct {
	at       Position
	commands []string
	indexes  []uint64
}

// toy is a state machine that appends commands to a list. It keeps what a power cut would leave (durable) apart from
// what is visible (live), and tells every entry that it was handed.
type toy struct {
	mu            sync.Mutex
	live, durable toyState
	delivered     []Entry // all of them, skipped ones too
	flushes       int
	// flush, if set, stands in for Flush.
	flush func(ctx context.Context, index uint64) error
	// hold, if set, is received from before each Apply.
	hold chan struct{}
}

var _ StateMachine = (*toy)(nil)

func (y *toy) Apply(entries []Entry) []any {
	y.mu.Lock()
	hold := y.hold
	y.mu.Unlock()
	if hold != nil {
		<-hold
	}
	y.mu.Lock()
	defer y.mu.Unlock()
	results := make([]any, len(entries))
	for i, e := range entries {
		e.Data = bytes.Clone(e.Data)
		y.delivered = append(y.delivered, e)
		if e.Index <= y.live.at.Index {
			continue
		}
		y.live.at.Index, y.live.at.Term = e.Index, e.Term
		switch {
		case e.Configuration:
			y.live.at.ConfigurationIndex, y.live.at.Configuration = e.Index, e.Data
		case strings.HasPrefix(string(e.Data), "refuse"):
			results[i] = errRefused
		default:
			y.live.commands = append(y.live.commands, string(e.Data))
			y.live.indexes = append(y.live.indexes, e.Index)
			results[i] = len(y.live.commands)
		}
	}
	return results
}

var errRefused = errors.New("refused by the toy")

func (y *toy) Durable() (Position, error) {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.durable.at, nil
}

func (y *toy) Flush(ctx context.Context, index uint64) error {
	y.mu.Lock()
	y.flushes++
	flush := y.flush
	y.mu.Unlock()
	if flush != nil {
		return flush(ctx, index)
	}
	y.makeDurable()
	return nil
}

func (y *toy) makeDurable() {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.durable = y.live.clone()
}

func (s toyState) clone() toyState {
	s.commands, s.indexes = slices.Clone(s.commands), slices.Clone(s.indexes)
	return s
}

// powerCut returns the machine that comes back: what was durable, and no memory of anything else.
func (y *toy) powerCut() *toy {
	y.mu.Lock()
	defer y.mu.Unlock()
	return &toy{live: y.durable.clone(), durable: y.durable.clone()}
}

func (y *toy) commands() []string {
	y.mu.Lock()
	defer y.mu.Unlock()
	return slices.Clone(y.live.commands)
}

// memStore is raft's in-memory store with the head clamp that the package comment demands of a Store, and faults.
type memStore struct {
	*raft.InmemStore
	durable func() uint64 // nil: no clamp

	mu      sync.Mutex
	storeAs func(logs []*raft.Log) error // stands in for StoreLogs
	slow    chan struct{}                // if set, FirstIndex receives from it first
	deletes [][2]uint64                  // ranges as raft asked for them
}

func newMemStore(y *toy) *memStore {
	return &memStore{InmemStore: raft.NewInmemStore(), durable: func() uint64 { d, _ := y.Durable(); return d.Index }}
}

func (m *memStore) StoreLogs(logs []*raft.Log) error {
	m.mu.Lock()
	storeAs := m.storeAs
	m.mu.Unlock()
	if storeAs != nil {
		return storeAs(logs)
	}
	return m.InmemStore.StoreLogs(logs)
}

func (m *memStore) FirstIndex() (uint64, error) {
	m.mu.Lock()
	slow := m.slow
	m.mu.Unlock()
	if slow != nil {
		<-slow
	}
	return m.InmemStore.FirstIndex()
}

func (m *memStore) DeleteRange(lo, hi uint64) error {
	m.mu.Lock()
	m.deletes = append(m.deletes, [2]uint64{lo, hi})
	m.mu.Unlock()
	if first, _ := m.FirstIndex(); m.durable != nil && lo <= first {
		if hi = min(hi, m.durable()); hi < lo {
			return nil
		}
	}
	return m.InmemStore.DeleteRange(lo, hi)
}

func (m *memStore) deleted() [][2]uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.deletes)
}

const testNode = "node-1"

// node is one node of a test: what is on its disks and what runs on top.
type node struct {
	*Consensus
	toy      *toy
	store    *memStore
	segments *segmentLog // in place of store, if set
}

// testConfig never takes a snapshot by itself.
func testConfig(t testing.TB, s Store, y StateMachine) Config {
	return Config{
		NodeID: testNode, Store: s, Machine: y, Logger: testLogger(t),
		SnapshotEvery: 24 * time.Hour, TrailingLogs: 2,
	}
}

// start bootstraps and opens a cluster of one that leads.
func start(t testing.TB, change ...func(*Config)) *node {
	t.Helper()
	y := &toy{}
	s := newMemStore(y)
	if err := Bootstrap(s, testNode, ""); err != nil {
		t.Fatal(err)
	}
	return reopen(t, s, y, change...)
}

func reopen(t testing.TB, s *memStore, y *toy, change ...func(*Config)) *node {
	t.Helper()
	conf := testConfig(t, s, y)
	for _, f := range change {
		f(&conf)
	}
	c, err := Open(conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second) // t.Context has ended by now
		defer cancel()
		if err := c.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	if err := c.WaitLeader(t.Context()); err != nil {
		t.Fatal(err)
	}
	return &node{Consensus: c, toy: y, store: s}
}

// powerCut stops n without a chance to flush and starts what is left of it.
func (n *node) powerCut(t testing.TB, change ...func(*Config)) *node {
	t.Helper()
	left := n.toy.powerCut() // before Close, which may flush nothing but must not be able to help either
	if err := n.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.store.durable = func() uint64 { d, _ := left.Durable(); return d.Index }
	return reopen(t, n.store, left, change...)
}

func (n *node) propose(t testing.TB, command string) (any, uint64) {
	t.Helper()
	result, index, err := n.Propose([]byte(command)).Wait(t.Context())
	if err != nil {
		t.Fatalf("propose %q: %v", command, err)
	}
	return result, index
}

func (n *node) barrier(t testing.TB) {
	t.Helper()
	if err := n.Barrier(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// snapshot runs the round that compact runs, now.
func (n *node) snapshot() error { return n.raft.Snapshot().Error() }

// testLogger writes to the test's log, until the test ends: raft's network transport does not wait for its goroutines.
func testLogger(t testing.TB) *slog.Logger {
	w := &logWriter{t: t}
	t.Cleanup(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.ended = true
	})
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

type logWriter struct {
	t     testing.TB
	mu    sync.Mutex
	ended bool
}

func (w *logWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.ended {
		w.t.Logf("%s", bytes.TrimSpace(b))
	}
	return len(b), nil
}

func command(i int) string { return fmt.Sprintf("command %d", i) }
