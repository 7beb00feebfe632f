package catchup

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/goleak"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/merkle"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var cluster = lineage.ID{0xc1, 7: 0x70, 8: 0x80, 15: 1}

func openLedger(t testing.TB, fs vfs.FS) *ledger.Ledger {
	t.Helper()
	l, err := ledger.Open(ledger.Options{
		FS: fs, Dir: "state", ClusterID: cluster, Logger: slog.New(slog.DiscardHandler), MemTableBytes: 4 << 20, BlockCacheBytes: 4 << 20,
		Die: func(reason string, err error) { panic(fmt.Sprintf("die: %s: %v", reason, err)) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Abandon(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// history makes commands by hand, for any number of ledgers that apply all or a part of them.
type history struct {
	t       testing.TB
	edges   map[uint32]*merkle.Edge
	heads   map[uint32]ledger.Head
	base    ledger.Applied
	entries []ledger.LogEntry
	now     int64
	last    uint64 // event id
	scratch *ledger.Ledger
}

func newHistory(t testing.TB) *history {
	h := &history{t: t, edges: map[uint32]*merkle.Edge{}, heads: map[uint32]ledger.Head{}, now: 1_700_000_000_000_000, scratch: openLedger(t, vfs.NewMem())}
	main := h.log(ledger.MainLog, ledger.MainName)
	system := h.log(ledger.SystemLog, ledger.SystemName)
	h.command(
		h.section(ledger.SystemLog, h.genesis(system), h.control(lineage.ControlPrincipal, &lineage.Control{Principal: "local:a"}), h.created(main)),
		h.section(ledger.MainLog, h.genesis(main)))
	return h
}

func (h *history) id() (id lineage.ID) {
	h.last++
	binary.BigEndian.PutUint64(id[:], h.last)
	return id
}

func (h *history) log(n uint32, name string) ledger.Log {
	o := lineage.Origin{Host: "example.org", Cluster: cluster, Kind: lineage.LineageLog, Name: name}
	return ledger.Log{Number: n, Name: name, Origin: o.String(), Kind: lineage.LineageLog, VKey: "vkey of " + name, CreatedAt: h.now}
}

func (h *history) control(kind lineage.ControlKind, c *lineage.Control, body ...lineage.BodyPart) ledger.CommandEntry {
	l := &lineage.Leaf{
		EventID: h.id(), Kind: lineage.KindControl, Action: uint8(kind), Source: lineage.Native, RecordedAt: h.now, Principal: "local:a", Authn: lineage.AuthnLedger, Control: c,
	}
	for i := range body {
		l.Bodies = append(l.Bodies, lineage.Commitment{Part: body[i].Kind, MAC: lineage.Commit(body[i].Kind, &body[i].Key, body[i].Content)})
	}
	return ledger.CommandEntry{EventID: l.EventID, Principal: l.Principal, Authn: l.Authn, Control: true, Leaf: lineage.AppendLeaf(nil, l), Body: lineage.AppendBody(nil, body)}
}

func (h *history) genesis(g ledger.Log) ledger.CommandEntry {
	return h.control(lineage.ControlGenesis, &lineage.Control{
		Origin: g.Origin, LogKind: g.Kind, ClusterID: cluster, HashAlgorithm: lineage.SHA256, CreatedAt: g.CreatedAt, VKey: g.VKey,
		SchemaID: lineage.SchemaID, SchemaDigest: lineage.SchemaDigest(), IndexFunction: 1, LogName: g.Name,
	}, lineage.BodyPart{Kind: lineage.PartReferenceKey, Content: make([]byte, 32)})
}

func (h *history) created(g ledger.Log) ledger.CommandEntry {
	return h.control(lineage.ControlLog, &lineage.Control{Origin: g.Origin, LogKind: g.Kind, CreatedAt: g.CreatedAt, VKey: g.VKey, LogNumber: g.Number, LogName: g.Name})
}

func (h *history) create(n uint32) {
	g := h.log(n, fmt.Sprint("log-", n))
	h.command(h.section(ledger.SystemLog, h.created(g)), h.section(n, h.genesis(g)))
}

// events makes n run events with a document of so many bytes.
func (h *history) events(n, size int) (entries []ledger.CommandEntry) {
	c := lineage.Composer{NewKey: func() lineage.Key { return lineage.Key{1} }, HashName: func(lineage.Name) lineage.Hash { return lineage.Hash{} }}
	for range n {
		e := &lineage.Event{ID: h.id(), Kind: lineage.KindRun, Action: uint8(lineage.RunComplete), RunID: lineage.ID{1},
			Documents: []lineage.Document{{MediaType: "text/plain", Content: bytes.Repeat([]byte{byte(h.last)}, size)}}}
		leaf, body, err := c.Compose(nil, e, lineage.Stamp{RecordedAt: h.now, Principal: "local:a", Authn: lineage.AuthnOSUser})
		if err != nil {
			h.t.Fatal(err)
		}
		entries = append(entries, ledger.CommandEntry{EventID: e.ID, Principal: "local:a", Authn: lineage.AuthnOSUser, Leaf: leaf, Body: lineage.AppendBody(nil, body)})
	}
	return entries
}

func (h *history) section(log uint32, entries ...ledger.CommandEntry) ledger.Section {
	if h.edges[log] == nil {
		h.edges[log] = merkle.NewEdge()
		h.heads[log] = ledger.Head{Root: merkle.EmptyRoot()}
	}
	s := ledger.Section{Log: log, Before: h.heads[log], Entries: entries}
	for i := range entries {
		h.edges[log].Append(merkle.LeafHash(entries[i].Leaf), nil)
	}
	s.After = ledger.Head{Size: h.edges[log].Size(), Root: h.edges[log].Root(), RecordedAt: h.now}
	h.heads[log] = s.After
	return s
}

func (h *history) command(sections ...ledger.Section) {
	h.t.Helper()
	data := ledger.AppendCommand(nil, &ledger.Command{ClusterID: cluster, Base: h.base, Sections: sections})
	e := ledger.LogEntry{Index: h.base.Index + 1, Term: 1, Data: data}
	h.entries = append(h.entries, e)
	h.apply(h.scratch, len(h.entries)-1)
	h.base = h.scratch.Applied()
	h.now++
}

// grow appends n events to a log, in commands of up to 40.
func (h *history) grow(log uint32, n, size int) {
	h.t.Helper()
	for ; n > 0; n -= 40 {
		h.command(h.section(log, h.events(min(n, 40), size)...))
	}
}

// apply applies the commands from the given one on.
func (h *history) apply(l *ledger.Ledger, from int) {
	h.t.Helper()
	for _, r := range l.Apply(h.entries[from:]) {
		if o, ok := r.(*ledger.Outcome); !ok || o.Decision != ledger.Accepted {
			h.t.Fatal(r)
		}
	}
}

// node returns a ledger with the first n commands; all if n is negative.
func (h *history) node(n int) *ledger.Ledger {
	h.t.Helper()
	l := openLedger(h.t, vfs.NewMem())
	if n < 0 {
		n = len(h.entries)
	}
	for _, r := range l.Apply(h.entries[:n]) {
		if o, ok := r.(*ledger.Outcome); !ok || o.Decision != ledger.Accepted {
			h.t.Fatal(r)
		}
	}
	return l
}

// source serves a ledger of this process; its hooks make it lie. A signature is the true text of what was signed: nobody can make one up.
type source struct {
	id     string
	l      *ledger.Ledger
	served atomic.Int64 // entries

	export     func(*ledger.Export) error
	chunk      func(log uint32, c *ledger.Chunk) error
	checkpoint func(log uint32, size uint64, note []byte) ([]byte, error)
	decision   func(merkle.Hash) merkle.Hash
}

func (s *source) ID() string { return s.id }

func (s *source) Export(ctx context.Context) (*ledger.Export, error) {
	e, err := s.l.Export()
	if err == nil && s.export != nil {
		err = s.export(e)
	}
	return e, err
}

func (s *source) Chunks(ctx context.Context, log uint32, first, end uint64, fn func(ledger.Chunk) error) error {
	err := s.l.Chunks(log, first, end, func(c ledger.Chunk) error {
		c.Leaves, c.Bodies = bytes.Clone(c.Leaves), bytes.Clone(c.Bodies)
		if s.chunk != nil {
			if err := s.chunk(log, &c); err != nil {
				return err
			}
		}
		if err := fn(c); err != nil {
			return err
		}
		s.served.Add(int64(c.Count))
		for i := range c.Leaves { // the memory is mine again
			c.Leaves[i] = 0xff
		}
		return ctx.Err()
	})
	if errors.Is(err, errShort) {
		return nil
	}
	return err
}

var errShort = errors.New("ends early")

func note(log uint32, size uint64, root merkle.Hash) []byte {
	return fmt.Appendf(nil, "signed: log %d, size %d, root %s", log, size, root)
}

func (s *source) Checkpoint(ctx context.Context, log uint32, size uint64) ([]byte, error) {
	t, err := s.l.Tree(log)
	if err != nil {
		return nil, err
	}
	root, err := t.RootAt(size)
	if err != nil {
		return nil, err
	}
	n := note(log, size, root)
	if s.checkpoint != nil {
		return s.checkpoint(log, size, n)
	}
	return n, nil
}

func (s *source) DecisionAt(ctx context.Context, index uint64) (merkle.Hash, bool, error) {
	d, ok := s.l.DecisionAt(index)
	if s.decision != nil {
		d = s.decision(d)
	}
	return d, ok, nil
}

func verifyNote(g ledger.Log, n []byte, size uint64, root merkle.Hash) error {
	if !bytes.Equal(n, note(g.Number, size, root)) {
		return fmt.Errorf("%q does not sign size %d, root %s", n, size, root)
	}
	return nil
}

// lines collects what was logged.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func options(l *ledger.Ledger, log *lines, sources ...*source) Options {
	o := Options{Ledger: l, Verify: verifyNote, Parallel: 3, Window: 32 << 10, Stall: 5 * time.Second, Logger: slog.New(slog.NewTextHandler(log, nil))}
	for _, s := range sources {
		o.Sources = append(o.Sources, s)
	}
	return o
}

// install finishes a catch-up and holds the result to a replica that applied everything.
func install(t *testing.T, l *ledger.Ledger, stage *ledger.Stage, want *ledger.Ledger) {
	t.Helper()
	if err := stage.Install(t.Context()); err != nil {
		t.Fatal(err)
	}
	a, err := l.Export()
	if err != nil {
		t.Fatal(err)
	}
	b, err := want.Export()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.Encode(), b.Encode()) {
		t.Fatalf("installed %+v, want %+v", a, b)
	}
	if err := l.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// three returns a history with three replicas that have all of it, and one that stopped after a few commands.
func three(t *testing.T, size int) (h *history, sources []*source, behind *ledger.Ledger) {
	h = newHistory(t)
	h.grow(ledger.MainLog, 100, 10)
	at := len(h.entries)
	h.create(2)
	h.create(3)
	h.grow(ledger.MainLog, 1000, size)
	h.grow(2, 200, size)
	h.grow(3, 30, size)
	for i := range 3 {
		sources = append(sources, &source{id: fmt.Sprint("node-", i), l: h.node(-1)})
	}
	return h, sources, h.node(at)
}

// TestFetch: a replica that is behind and one that is new come to the same state, from all peers at once, and then follow by commands.
func TestFetch(t *testing.T) {
	h, sources, behind := three(t, 300)
	for name, l := range map[string]*ledger.Ledger{"behind": behind, "new": openLedger(t, vfs.NewMem())} {
		var log lines
		var last Progress
		o := options(l, &log, sources...)
		o.MinIndex = h.base.Index
		o.Progress = func(p Progress) {
			if p.Entries <= last.Entries || p.Entries > p.Total || p.Total < 1200 {
				t.Errorf("progress %+v after %+v", p, last)
			}
			last = p
		}
		stage, e, err := Fetch(t.Context(), o)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if last.Entries != last.Total || last.Bytes < 1200*300 || e.Index != h.base.Index {
			t.Errorf("%s: progress %+v, export at %d", name, last, e.Index)
		}
		install(t, l, stage, sources[0].l)
		if log.String() != "" {
			t.Errorf("%s: logged %s", name, &log)
		}
	}
	for _, s := range sources {
		if s.served.Load() < 100 {
			t.Errorf("%s served %d entries", s.id, s.served.Load())
		}
	}
	at := len(h.entries)
	h.grow(ledger.MainLog, 50, 10)
	h.apply(behind, at)
}

// Each kind of lie or failure costs the peer that is at fault, and nothing else.
func TestLyingSources(t *testing.T) {
	once := func(f func(log uint32, c *ledger.Chunk) error) func(uint32, *ledger.Chunk) error {
		n := 0
		var mu sync.Mutex
		return func(log uint32, c *ledger.Chunk) error {
			mu.Lock()
			defer mu.Unlock()
			if n++; n != 5 {
				return nil
			}
			return f(log, c)
		}
	}
	h, sources, _ := three(t, 300)
	for name, c := range map[string]struct {
		lie  func(s *source)
		says string // in the log, beside the peer's name
	}{
		"leaf": {func(s *source) {
			s.chunk = once(func(_ uint32, c *ledger.Chunk) error { c.Leaves[len(c.Leaves)-3] ^= 4; return nil })
		}, "chunk refused"},
		"leaf that parses": {func(s *source) {
			s.chunk = once(func(_ uint32, c *ledger.Chunk) error {
				// A flipped bit of the run id.
				i := bytes.LastIndex(c.Leaves, append([]byte{0x50, 1}, make([]byte, 15)...))
				if i < 0 {
					return errors.New("no run id")
				}
				c.Leaves[i+9] ^= 1
				return nil
			})
		}, "does not sign"},
		"body": {func(s *source) {
			s.chunk = once(func(_ uint32, c *ledger.Chunk) error { c.Bodies[100] ^= 1; return nil })
		}, "body does not match"},
		"boundary": {func(s *source) { s.chunk = once(func(_ uint32, c *ledger.Chunk) error { c.Count--; return nil }) }, "chunk refused"},
		"place":    {func(s *source) { s.chunk = once(func(_ uint32, c *ledger.Chunk) error { c.First++; return nil }) }, "chunk refused"},
		"gap":      {func(s *source) { s.chunk = once(func(_ uint32, c *ledger.Chunk) error { c.First += 16; return nil }) }, "chunk refused"},
		"nothing":  {func(s *source) { s.chunk = func(uint32, *ledger.Chunk) error { return errShort } }, "nothing came"},
		"fails":    {func(s *source) { s.chunk = func(uint32, *ledger.Chunk) error { return errors.New("no") } }, "a peer failed"},
		"checkpoints": {func(s *source) {
			s.checkpoint = func(_ uint32, _ uint64, n []byte) ([]byte, error) { n[len(n)-1] ^= 1; return n, nil }
		}, "does not verify"},
		"export root":    {func(s *source) { s.export = func(e *ledger.Export) error { e.Logs[1].Root[0] ^= 1; return nil } }, "is signed, the export has"},
		"export key":     {func(s *source) { s.export = func(e *ledger.Export) error { e.Logs[2].VKey = "mallory"; return nil } }, "the system log says"},
		"export shrinks": {func(s *source) { s.export = func(e *ledger.Export) error { e.Logs[1].Size = 3; return nil } }, "different histories"},
		"export cluster": {func(s *source) { s.export = func(e *ledger.Export) error { e.ClusterID[0]++; return nil } }, "of cluster"},
		"export digest":  {func(s *source) { s.export = func(e *ledger.Export) error { e.Digest[0]++; return nil } }, "contradicted"},
		"old export":     {func(s *source) { s.export = func(e *ledger.Export) error { e.Index = 2; return nil } }, "is needed"},
		"no export":      {func(s *source) { s.export = func(e *ledger.Export) error { return errors.New("no") } }, "no export"},
	} {
		t.Run(name, func(t *testing.T) {
			liar := &source{id: "liar", l: sources[0].l}
			c.lie(liar)
			l := h.node(4)
			var log lines
			o := options(l, &log, &source{id: "b", l: sources[1].l}, &source{id: "c", l: sources[2].l}, liar)
			o.MinIndex = h.base.Index
			// The liar comes first where the export is taken from.
			o.Sources = append([]Source{o.Sources[1], liar}, o.Sources[0])
			stage, _, err := Fetch(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			install(t, l, stage, sources[1].l)
			if s := log.String(); !strings.Contains(s, c.says) || !strings.Contains(s, "peer=liar") || strings.Contains(s, "peer=b") || strings.Contains(s, "peer=c") {
				t.Errorf("logged, want %q:\n%s", c.says, s)
			}
		})
	}
}

// A peer that stalls is left out after a while; a short answer is followed by another question.
func TestSlowSources(t *testing.T) {
	_, sources, l := three(t, 100)
	var log lines
	o := options(l, &log, sources...)
	o.Stall = 200 * time.Millisecond
	stuck := make(chan struct{})
	sources[1].chunk = func(uint32, *ledger.Chunk) error {
		<-stuck
		return errors.New("late")
	}
	time.AfterFunc(time.Second, func() { close(stuck) })
	short := 0
	var mu sync.Mutex
	sources[2].chunk = func(uint32, *ledger.Chunk) error {
		mu.Lock()
		defer mu.Unlock()
		if short++; short%7 == 0 {
			return errShort
		}
		return nil
	}
	stage, _, err := Fetch(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	install(t, l, stage, sources[0].l)
	for line := range strings.Lines(log.String()) {
		if strings.Contains(line, "without this peer") && !strings.Contains(line, "peer=node-1") {
			t.Errorf("logged: %s", line)
		}
	}
}

// Without anybody who can sign, Verify decides; a wrong signature for what this replica has means that this replica is damaged.
func TestUnsigned(t *testing.T) {
	_, sources, l := three(t, 10)
	for _, s := range sources {
		s.checkpoint = func(log uint32, _ uint64, n []byte) ([]byte, error) {
			if log == 2 {
				return nil, errors.New("no key")
			}
			return n, nil
		}
	}
	var log lines
	o := options(l, &log, sources...)
	if _, _, err := Fetch(t.Context(), o); !errors.Is(err, errUnsigned) || !strings.Contains(err.Error(), "log-2") {
		t.Errorf("without a signature: %v", err)
	}
	o.Verify = func(g ledger.Log, n []byte, size uint64, root merkle.Hash) error {
		if n == nil {
			return nil
		}
		return verifyNote(g, n, size, root)
	}
	stage, _, err := Fetch(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	install(t, l, stage, sources[0].l)
	if log.String() != "" {
		t.Errorf("logged:\n%s", &log)
	}
}

// Where the peers' signatures contradict what is here, here is the damage: nothing is changed, and the caller is told.
func TestOwnHistoryIsWrong(t *testing.T) {
	_, sources, _ := three(t, 10)
	other := newHistory(t)
	other.grow(ledger.MainLog, 1, 11) // instead of the first hundred
	for other.base.Index < 3 {
		other.grow(ledger.MainLog, 1, 11)
	}
	l := other.node(-1)
	before := l.Applied()
	var log lines
	if _, _, err := Fetch(t.Context(), options(l, &log, sources...)); !errors.Is(err, ledger.ErrDiverged) {
		t.Errorf("%v\n%s", err, &log)
	}
	if l.Applied() != before || l.Quarantined() != nil {
		t.Errorf("applied %+v, %v", l.Applied(), l.Quarantined())
	}
}

// Peers that know different histories are no base to build upon, and none at all is said so.
func TestNoExport(t *testing.T) {
	h, sources, l := three(t, 10)
	var log lines
	sources[0].decision = func(d merkle.Hash) merkle.Hash { d[0] ^= 1; return d } // each denies the other one's
	sources[1].decision = sources[0].decision
	if _, _, err := Fetch(t.Context(), options(l, &log, sources[:2]...)); !errors.Is(err, ErrDisagree) {
		t.Errorf("two histories: %v", err)
	}
	o := options(l, &log, sources...)
	o.MinIndex = h.base.Index + 1
	if _, _, err := Fetch(t.Context(), o); !errors.Is(err, ErrNoSource) {
		t.Errorf("nobody is that far: %v", err)
	}
	if _, _, err := Fetch(t.Context(), options(l, &log)); !errors.Is(err, ErrNoSource) {
		t.Errorf("no source: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := Fetch(ctx, options(l, &log, sources...)); !errors.Is(err, context.Canceled) {
		t.Errorf("ended: %v", err)
	}
}

// What one catch-up has kept costs the next nothing; a log that was cut meanwhile makes it go on.
func TestResumeAndMove(t *testing.T) {
	h, sources, l := three(t, 300)
	var log lines
	o := options(l, &log, sources[0])
	var n atomic.Int32
	sources[0].chunk = func(uint32, *ledger.Chunk) error {
		if n.Add(1) > 50 { // main's first windows
			return errors.New("away")
		}
		return nil
	}
	if _, _, err := Fetch(t.Context(), o); !errors.Is(err, ErrNoSource) {
		t.Fatal(err)
	}
	staged, err := l.Staged()
	if err != nil || len(staged) < 2 {
		t.Fatalf("staged %v, %v", staged, err)
	}
	o = options(l, &log, sources[1])
	moved := false
	o.MovedIndex = func() uint64 {
		if !moved {
			moved = true
			at := len(h.entries)
			h.grow(ledger.MainLog, 70, 10)
			h.apply(sources[1].l, at)
		}
		return h.base.Index
	}
	stage, e, err := Fetch(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if e.Index != h.base.Index {
		t.Errorf("fetched up to %d of %d", e.Index, h.base.Index)
	}
	install(t, l, stage, sources[1].l)
	missing := uint64(1000 + 200 + 30 + 70 + 2 + 2) // the last are genesis entries, and those of the system log
	for _, s := range staged {
		missing -= s.End - s.First
	}
	// A chunk that two windows share is fetched twice.
	if got := uint64(sources[1].served.Load()); got < missing || got > missing+missing/4+100 {
		t.Errorf("the second attempt took %d entries for %d that were missing", got, missing)
	}
}
