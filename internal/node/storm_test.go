package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/checkpoint"
	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/merkle"
	"github.com/provledger/provledger/internal/sequencer"
)

// fullStorm asks for every crash point instead of a sample: PROVLEDGER_STORM=full.
var fullStorm = os.Getenv("PROVLEDGER_STORM") == "full"

const stormDir = "node/ledger"

// recordedEvent is an event that somebody was told is recorded.
type recordedEvent struct {
	log   string
	e     *lineage.Event
	index uint64
	leaf  []byte
}

// issuedNote is a checkpoint that left.
type issuedNote struct {
	vkey string
	note []byte
}

// history is what the outside world knows of a ledger.
type history struct {
	mu       sync.Mutex
	recorded []recordedEvent
	notes    []issuedNote
	logs     []string
	sent     map[lineage.ID]bool
}

// known is a copy of what is known now. The slices only grow.
func (h *history) known() *history {
	h.mu.Lock()
	defer h.mu.Unlock()
	k := &history{recorded: h.recorded[:len(h.recorded):len(h.recorded)], notes: h.notes[:len(h.notes):len(h.notes)], logs: h.logs[:len(h.logs):len(h.logs)], sent: map[lineage.ID]bool{}}
	for id := range h.sent {
		k.sent[id] = true
	}
	return k
}

// storm runs a script on a node and cuts the power at file operations.
type storm struct {
	seed   uint64
	every  uint64 // crash at every n-th file operation
	offset uint64
	nested uint64              // cut the power during the recovery of every n-th clone too, 0: never
	tamper func(vfs.FS) vfs.FS // breaks the disk under test
	config func(*Config)

	mem     *vfs.MemFS
	history *history

	mu     sync.Mutex // held over a crash: nothing else happens to the disk meanwhile
	ops    uint64
	clones uint64
	found  []crash
	failed error
}

// crash is what a power cut left of the disk, with what was known before it. It is looked at when the run is over: a node that stood still
// meanwhile would see a disk that hangs.
type crash struct {
	disk    *vfs.MemFS
	known   *history
	where   string
	percent int
	inner   *storm // cuts the power of the recovery too
}

func (s *storm) stopped() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed != nil
}

func (s *storm) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed == nil {
		s.failed = err
	}
}

// disk is the disk of the node under test.
func (s *storm) disk() vfs.FS {
	var fs vfs.FS = s.mem
	if s.tamper != nil {
		fs = s.tamper(fs)
	}
	return errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
			s.crash(op)
		}
		return nil
	}))
}

// crash is called before each operation of any of the node's goroutines.
func (s *storm) crash(op errorfs.Op) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ops++
	if s.failed != nil || s.ops%s.every != s.offset%s.every {
		return
	}
	known := s.history.known() // before the clones: what is told later need not be in them
	for i, percent := range []int{0, 50, 100} {
		c := crash{
			disk:  s.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rand.New(rand.NewPCG(s.seed, s.ops*4+uint64(i)))}),
			known: known.known(), percent: percent,
			where: fmt.Sprintf("seed %d, crash at file operation %d (%v of %s) keeping %d %%", s.seed, s.ops, op.Kind, op.Path, percent),
		}
		if s.clones++; s.nested > 0 && s.clones%s.nested == 0 {
			c.inner = &storm{seed: s.seed + s.ops, every: 37, offset: s.clones, mem: c.disk, history: c.known, config: s.config}
		}
		s.found = append(s.found, c)
	}
}

// check looks at what the crashes of a run left, up to the first violation.
func (s *storm) check() error {
	for i := range s.found {
		c := &s.found[i]
		var err error
		if c.inner != nil {
			if err = checkDisk(c.inner.disk(), c.known, s.config); err == nil {
				err = c.inner.check()
			}
		} else {
			err = checkDisk(c.disk, c.known, s.config)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", c.where, err)
		}
		*c = crash{} // a disk is large
	}
	return s.failed
}

// stormConfig has small limits, so that the log is cut and memtables are flushed all the time.
func stormConfig(fs vfs.FS, logger *slog.Logger, die func(string, error)) Config {
	return Config{
		Dir: stormDir, FS: fs, Logger: logger, Die: die, SlowWarn: -1, SlowKill: time.Hour,
		SegmentBytes: 64 << 10, MemTableBytes: 64 << 10, BlockCacheBytes: 1 << 20, TrailingLogs: 4, SnapshotBytes: 1,
	}
}

// logs keeps what a node says, for the case that it fails.
type logs struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logs) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// opened is a node whose death is noticed.
type opened struct {
	*Node
	logs    *logs
	mu      sync.Mutex
	dead    string
	died    chan struct{} // closed at the first death
	once    sync.Once
	onDeath func() // may be nil
}

func openStorm(ctx context.Context, fs vfs.FS, edit func(*Config)) (*opened, error) {
	o := &opened{logs: &logs{}, died: make(chan struct{})}
	c := stormConfig(fs, slog.New(slog.NewTextHandler(o.logs, &slog.HandlerOptions{Level: slog.LevelWarn})), func(reason string, err error) {
		o.mu.Lock()
		o.once.Do(func() { close(o.died) })
		o.dead = fmt.Sprintf("%s: %v", reason, err)
		if o.onDeath != nil {
			o.onDeath()
		}
		o.mu.Unlock()
		// The node sees to it that this goroutine goes no further, not even through its deferred calls.
	})
	if edit != nil {
		edit(&c)
	}
	// A node may die while it opens, on the goroutine that opens it, which then goes no further.
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		o.Node, err = Open(ctx, c)
	}()
	select {
	case <-done:
	case <-o.died:
		return nil, fmt.Errorf("open: %w\n%s", o.death(), o.logs.text())
	}
	if err != nil {
		return nil, fmt.Errorf("open: %w\n%s", err, o.logs.text())
	}
	return o, nil
}

func (o *opened) death() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.dead != "" {
		return fmt.Errorf("died: %s", o.dead)
	}
	return nil
}

// checkDisk opens what a power cut left and holds it to what the world knows: nothing told is missing, indexes are what they were, the
// store proves itself, every checkpoint that left is still true, and it goes on from there.
func checkDisk(fs vfs.FS, known *history, config func(*Config)) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	n, err := openStorm(ctx, fs, config)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w\n%s", err, n.logs.text())
		}
		err = errors.Join(err, n.Close(ctx), n.death())
	}()
	if err := n.Ledger().Check(ctx); err != nil {
		return err
	}
	if err := known.holds(ctx, n); err != nil {
		return err
	}
	// It goes on: one more event in each log, and a checkpoint that extends all before.
	for _, g := range n.Ledger().Logs()[1:] {
		if err := known.append(ctx, n, g.Name, testEvent(1)); err != nil {
			return fmt.Errorf("go on in %s: %w", g.Name, err)
		}
	}
	if err := known.holds(ctx, n); err != nil {
		return fmt.Errorf("after going on: %w", err)
	}
	return n.Ledger().Check(ctx)
}

func stormRequest(n *Node, g ledger.Log, events ...*lineage.Event) sequencer.Request {
	return sequencer.Request{Log: g.Number, Events: events, Principal: n.Ledger().LocalPrincipal(), Authn: lineage.AuthnOSUser, Size: 400 * len(events)}
}

// holds compares a node with what is known of its ledger.
func (h *history) holds(ctx context.Context, n *opened) error {
	byLog := map[string][]recordedEvent{}
	for _, r := range h.recorded {
		byLog[r.log] = append(byLog[r.log], r)
	}
	for _, name := range h.logs {
		if _, err := n.Ledger().LogByName(name); err != nil {
			return fmt.Errorf("log %s was created: %w", name, err)
		}
	}
	for name, told := range byLog {
		g, err := n.Ledger().LogByName(name)
		if err != nil {
			return fmt.Errorf("%d events are recorded in it: %w", len(told), err)
		}
		// Sent again, each must be known, at its old index.
		events := make([]*lineage.Event, 0, len(told))
		var first []recordedEvent
		seen := map[lineage.ID]bool{}
		for _, r := range told {
			if !seen[r.e.ID] {
				seen[r.e.ID] = true
				events, first = append(events, r.e), append(first, r)
			}
		}
		out, err := n.Sequencer().Append(ctx, stormRequest(n.Node, g, events...))
		if err != nil {
			return fmt.Errorf("send again to %s: %w", name, err)
		}
		for i, r := range first {
			if got := out.Recorded[i]; !got.Duplicate || got.Index != r.index || !bytes.Equal(got.Leaf, r.leaf) {
				return fmt.Errorf("event %s of log %s was recorded at %d; sent again: at %d, duplicate %v", r.e.ID, name, r.index, got.Index, got.Duplicate)
			}
		}
		err = n.Ledger().Entries(g.Number, 1, out.Tree.Head().Size, false, func(e *ledger.Entry) error {
			leaf, err := lineage.ParseLeaf(e.Leaf)
			if err == nil && !h.sent[leaf.EventID] {
				err = fmt.Errorf("entry %d of log %s was sent by nobody (S9)", e.Index, name)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	for _, i := range h.notes {
		if err := i.holds(n.Ledger()); err != nil {
			return err
		}
	}
	return nil
}

// holds proves that a checkpoint that left is of an earlier state of the tree.
func (i issuedNote) holds(l *ledger.Ledger) error {
	v, err := checkpoint.NewVerifier(i.vkey)
	if err != nil {
		return err
	}
	c, err := checkpoint.Open(i.note, v)
	if err != nil {
		return err
	}
	g, err := l.LogByOrigin(c.Origin)
	if err != nil {
		return err
	}
	if g.VKey != i.vkey {
		return fmt.Errorf("%s has key %s, had %s", c.Origin, g.VKey, i.vkey)
	}
	t, err := l.Tree(g.Number)
	if err != nil {
		return err
	}
	head := t.Head()
	if c.Size > head.Size {
		return fmt.Errorf("a checkpoint of %s left at size %d, the tree has %d", c.Origin, c.Size, head.Size)
	}
	proof, err := merkle.ProveConsistency(c.Size, head.Size, t)
	if err == nil {
		err = merkle.VerifyConsistency(c.Size, head.Size, c.Root, head.Root, proof)
	}
	if err != nil {
		return fmt.Errorf("checkpoint of %s at size %d: %w", c.Origin, c.Size, err)
	}
	return nil
}

// append sends events and notes what comes back, with a checkpoint.
func (h *history) append(ctx context.Context, n *opened, log string, events ...*lineage.Event) error {
	h.mu.Lock()
	for _, e := range events {
		h.sent[e.ID] = true
	}
	h.mu.Unlock()
	g, err := n.Ledger().LogByName(log)
	if err != nil {
		return err
	}
	out, err := n.Sequencer().Append(ctx, stormRequest(n.Node, g, events...))
	if err != nil {
		return err
	}
	head := out.Tree.Head()
	note, err := n.Signer().Checkpoint(g.Origin, head.Size, head.Root)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, e := range events {
		h.recorded = append(h.recorded, recordedEvent{log, e, out.Recorded[i].Index, out.Recorded[i].Leaf})
	}
	h.notes = append(h.notes, issuedNote{g.VKey, note})
	return nil
}

// run goes through the script, or to the first violation.
func (s *storm) run(rounds int) error {
	s.mem = vfs.NewCrashableMem()
	s.history = &history{sent: map[lineage.ID]bool{}}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	disk := s.disk()
	for restart := range 2 {
		n, err := openStorm(ctx, disk, s.config)
		if err != nil {
			s.fail(err)
			break
		}
		n.mu.Lock()
		n.onDeath = cancel // nobody would answer
		n.mu.Unlock()
		for round := 0; round < rounds && !s.stopped() && n.death() == nil; round++ {
			if err := s.round(ctx, n, restart*rounds+round); err != nil {
				s.fail(fmt.Errorf("restart %d, round %d: %w\n%s", restart, round, err, n.logs.text()))
			}
		}
		if err := errors.Join(n.Close(ctx), n.death()); err != nil {
			s.fail(err)
		}
	}
	return s.check()
}

// round appends in batches and one by one, to two logs, sends some again, and lets the log be cut.
func (s *storm) round(ctx context.Context, n *opened, round int) error {
	batch := make([]*lineage.Event, 30)
	for i := range batch {
		batch[i] = testEvent(i)
	}
	if err := s.history.append(ctx, n, "main", batch...); err != nil {
		return err
	}
	if round == 0 {
		g, err := n.Sequencer().CreateLog(ctx, "second", n.Ledger().LocalPrincipal(), lineage.AuthnOSUser)
		if err != nil {
			return err
		}
		s.history.mu.Lock()
		s.history.logs = append(s.history.logs, g.Name)
		s.history.mu.Unlock()
	}
	var wg sync.WaitGroup
	errs := make(chan error, 100)
	for w := range 4 {
		wg.Go(func() {
			for i := range 5 {
				if err := s.history.append(ctx, n, []string{"main", "second"}[w%2], testEvent(i)); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	if err := s.history.append(ctx, n, "second", batch[:10]...); err != nil { // another log, so not duplicates
		return err
	}
	if err := s.history.append(ctx, n, "main", append([]*lineage.Event{testEvent(0)}, batch[3:8]...)...); err != nil {
		return err
	}
	select {
	case err := <-errs:
		return err
	case <-time.After(260 * time.Millisecond): // consensus looks at its log four times a second
	}
	return nil
}

// TestCrashStorm cuts the power of a whole node at its file operations: at every 13th, or, pass by pass, at all of them.
func TestCrashStorm(t *testing.T) {
	every, passes := uint64(13), uint64(1)
	if testing.Short() {
		every = 41
	}
	if fullStorm {
		passes = every
	}
	for offset := range passes {
		s := &storm{seed: 1 + offset, every: every, offset: offset, nested: 10}
		if err := s.run(3); err != nil {
			t.Fatalf("every %d from %d: %v", every, offset, err)
		}
		// What the storm is about has happened.
		n, err := openStorm(t.Context(), s.mem, nil)
		if err != nil {
			t.Fatal(err)
		}
		first := n.raft().Stats().First
		if err := n.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if first < 10 || s.clones < 30 {
			t.Errorf("the log begins at %d after %d crashes: this test tests nothing", first, s.clones)
		}
		t.Logf("%d file operations, %d clones, %d events, %d checkpoints, log begins at %d", s.ops, s.clones, len(s.history.recorded), len(s.history.notes), first)
	}
}

// TestBootstrapInterrupted cuts the power while a ledger is made.
func TestBootstrapInterrupted(t *testing.T) {
	every := uint64(1)
	if testing.Short() {
		every = 7
	}
	s := &storm{seed: 7, every: every, nested: 11, mem: vfs.NewCrashableMem(), history: &history{sent: map[lineage.ID]bool{}}}
	n, err := openStorm(t.Context(), s.disk(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if !n.Created() {
		t.Error("nothing was created")
	}
	if err := errors.Join(n.Close(t.Context()), n.death(), s.check()); err != nil {
		t.Error(err)
	}
	t.Logf("%d file operations, %d clones", s.ops, s.clones)
}

// lossy is a disk that forgets some syncs, once it is armed.
type lossy struct {
	vfs.FS
	drop  func(name string, dir bool) bool
	armed func() bool
}

func (l *lossy) file(f vfs.File, err error, name string, dir bool) (vfs.File, error) {
	if err != nil || !l.drop(name, dir) {
		return f, err
	}
	return &lossyFile{f, l}, nil
}

func (l *lossy) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := l.FS.Create(name, c)
	return l.file(f, err, name, false)
}

func (l *lossy) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	f, err := l.FS.OpenReadWrite(name, c, o...)
	return l.file(f, err, name, false)
}

func (l *lossy) ReuseForWrite(old, name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := l.FS.ReuseForWrite(old, name, c)
	return l.file(f, err, name, false)
}

func (l *lossy) OpenDir(name string) (vfs.File, error) {
	f, err := l.FS.OpenDir(name)
	return l.file(f, err, name, true)
}

type lossyFile struct {
	vfs.File
	l *lossy
}

func (f *lossyFile) Sync() error {
	if f.l.armed() {
		return nil
	}
	return f.File.Sync()
}

func (f *lossyFile) SyncData() error {
	if f.l.armed() {
		return nil
	}
	return f.File.SyncData()
}

func (f *lossyFile) SyncTo(length int64) (bool, error) {
	if f.l.armed() {
		return false, nil
	}
	return f.File.SyncTo(length)
}

// TestCrashStormFindsBrokenRules: a harness that passes whatever the disk does proves nothing. Each of these breaks one rule.
func TestCrashStormFindsBrokenRules(t *testing.T) {
	in := func(dir, name string) bool { return strings.HasPrefix(name, path.Join(stormDir, dir)+"/") }
	for _, c := range []struct {
		name string
		late bool // only when the second log is there: what goes wrong then is not the bootstrap
		drop func(name string, dir bool) bool
	}{
		{"answers before the raft log is synced", true, func(name string, dir bool) bool { return !dir && in("raft", name) }},
		{"the raft log is not synced at all", false, func(name string, dir bool) bool { return !dir && in("raft", name) }},
		{"the state is not synced when the log is cut (H1)", true, func(name string, dir bool) bool { return in("state", name) }},
		{"FORMAT before its content", false, func(name string, dir bool) bool { return path.Base(name) == formatFile+temporarySuffix }},
		{"the secret is not synced", false, func(name string, dir bool) bool { return path.Base(name) == secretFile+temporarySuffix }},
		{"the directory is not synced", false, func(name string, dir bool) bool { return dir && name == stormDir }},
		{"the parent directory is not synced", false, func(name string, dir bool) bool { return dir && name == path.Dir(stormDir) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel() // they mostly wait for the log to be cut
			s := &storm{seed: 3, every: 11}
			s.tamper = func(fs vfs.FS) vfs.FS {
				return &lossy{fs, c.drop, func() bool {
					if !c.late {
						return true
					}
					s.history.mu.Lock()
					defer s.history.mu.Unlock()
					return len(s.history.logs) > 0
				}}
			}
			err := s.run(3)
			if err == nil {
				t.Errorf("the storm did not notice, in %d operations", s.ops)
				return
			}
			first, _, _ := strings.Cut(err.Error(), "\n")
			t.Logf("found: %s", first)
		})
	}
}
