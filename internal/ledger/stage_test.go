package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"pgregory.net/rapid"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/merkle"
)

func clone(c Chunk) Chunk {
	c.Leaves, c.Bodies = bytes.Clone(c.Leaves), bytes.Clone(c.Bodies)
	return c
}

// chunksOf returns the chunks that hold entries of a log.
func chunksOf(t fataler, l *Ledger, log uint32, first, end uint64) (all []Chunk) {
	t.Helper()
	err := l.Chunks(log, first, end, func(c Chunk) error {
		all = append(all, clone(c))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func mustExport(t fataler, l *Ledger) *Export {
	t.Helper()
	e, err := l.Export()
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseExport(e.Encode())
	if err != nil {
		t.Fatal(err)
	}
	return again
}

func mustStage(t fataler, l *Ledger, e *Export) *Stage {
	t.Helper()
	s, err := l.Stage(e)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// fill stages everything that is missing, some chunks at a time.
func fill(t fataler, s *Stage, from *Ledger, every int) {
	t.Helper()
	for _, m := range s.Missing() {
		for i, c := range chunksOf(t, from, m.Log, m.First, m.End) {
			if err := s.Put(m.Log, c); err != nil {
				t.Fatal(err)
			}
			if i%every == every-1 {
				if err := s.Keep(m.Log); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := s.Keep(m.Log); err != nil {
			t.Fatal(err)
		}
	}
}

// catchUp brings l to what from has.
func catchUp(t fataler, l, from *Ledger) {
	t.Helper()
	s := mustStage(t, l, mustExport(t, from))
	fill(t, s, from, 3)
	if err := s.Install(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// TestCatchUp: two replicas, one of which stops following at a random command, stages what it lacks - with power cuts, and with commands that
// reach it after all - installs it, and goes on by commands. Both stores hold the same bytes in the end (S5, S14), whatever was in between.
func TestCatchUp(t *testing.T) {
	resumed, overtaken := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		s := newScript(rapid.Uint64().Draw(t, "seed"))
		s.bootstrap()
		for range rapid.IntRange(1, 14).Draw(t, "steps") {
			s.drawStep(t)
		}
		leader := mustOpen(t, testOptions(vfs.NewMem()))
		defer mustClose(t, leader)
		at := rapid.IntRange(0, len(s.entries)).Draw(t, "follower stops at")
		to := rapid.IntRange(max(at, 1), len(s.entries)).Draw(t, "export at")
		s.apply(t, leader, 0, to)

		disk := vfs.NewCrashableMem()
		o := testOptions(disk)
		o.MemTableBytes = 64 << 10
		l := mustOpen(t, o)
		s.apply(t, l, 0, at)
		rng := rand.New(rand.NewPCG(1, rapid.Uint64().Draw(t, "crashes")))
		stage := mustStage(t, l, mustExport(t, leader))
		for {
			missing := stage.Missing()
			if len(missing) == 0 {
				break
			}
			m := missing[rng.IntN(len(missing))]
			for i, c := range chunksOf(t, leader, m.Log, m.First, m.End) {
				if err := stage.Put(m.Log, c); err != nil {
					t.Fatal(err)
				}
				if i > 0 && rng.IntN(6) == 0 {
					break
				}
			}
			if rng.IntN(4) == 0 {
				stage.Drop(m.Log)
			} else if err := stage.Keep(m.Log); err != nil {
				t.Fatal(err)
			}
			switch rng.IntN(5) {
			case 0: // a power cut
				o.FS = disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
				disk = o.FS.(*vfs.MemFS)
				if err := l.Abandon(); err != nil {
					t.Fatal(err)
				}
				l = mustOpen(t, o)
				up := l.Applied()
				if up.Digest != s.digests[up.Index] && up.Index > 0 {
					t.Fatalf("came up at %+v", up)
				}
				for at > 0 && s.entries[at-1].Index > up.Index {
					at--
				}
				if staged, err := l.Staged(); err != nil {
					t.Fatal(err)
				} else if len(staged) > 0 {
					resumed++
				}
				stage = mustStage(t, l, mustExport(t, leader))
			case 1: // a leader feeds it after all
				if at < to {
					s.apply(t, l, at, at+1)
					at++
					overtaken++
				}
			}
			if err := l.Check(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if l.Applied().Index < stage.Export().Index {
			if err := stage.Install(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if l.Applied() != leader.Applied() {
			t.Fatalf("installed %+v, want %+v", l.Applied(), leader.Applied())
		}
		if !maps.Equal(dump(t, l), dump(t, leader)) {
			t.Fatal("the stores differ after the installation")
		}
		// From here on both follow, one of them after a power cut too.
		if rng.IntN(2) == 0 {
			if err := l.Flush(t.Context(), l.Applied().Index); err != nil {
				t.Fatal(err)
			}
			o.FS = disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
			if err := l.Abandon(); err != nil {
				t.Fatal(err)
			}
			l = mustOpen(t, o)
			if l.Applied() != leader.Applied() {
				t.Fatalf("a power cut after the installation left %+v", l.Applied())
			}
		}
		defer func() { mustClose(t, l) }()
		s.apply(t, leader, to, len(s.entries))
		s.apply(t, l, to, len(s.entries))
		s.compare(t, l)
		if !maps.Equal(dump(t, l), dump(t, leader)) {
			t.Fatal("the stores differ")
		}
	})
	if resumed == 0 || overtaken == 0 {
		t.Errorf("%d resumed, %d overtaken: this test tests too little", resumed, overtaken)
	}
}

// pair is a replica that has only the first part of what another one has: main is at 1 + 20 entries there, at 1 + 20 + 700 here; the system
// log is longer too, and there are two more logs.
func pair(t fataler) (s *script, ahead, behind *Ledger) {
	t.Helper()
	s, ahead = simple(t, vfs.NewMem(), 20)
	behind = mustOpen(t, testOptions(vfs.NewMem()))
	s.apply(t, behind, 0, len(s.entries))
	at := len(s.entries)
	s.add(s.good(700).encoded())
	s.add(s.createLog(testLog(2, "second")).encoded())
	s.tick()
	s.add(s.command(s.section(2, s.events(2, 40)...)).encoded())
	s.add(s.createLog(testOpaque(3, "third")).encoded())
	s.tick()
	s.add(s.command(s.section(3, s.opaque(40)...)).encoded())
	s.add(s.raise().encoded())
	s.add(s.member().encoded())
	s.membership()
	s.apply(t, ahead, at, len(s.entries))
	return s, ahead, behind
}

// What is staged is seen by nobody: not by readers, not by who looks for duplicates, not by a check, which says where it is.
func TestStagedIsInvisible(t *testing.T) {
	s, ahead, behind := pair(t)
	defer mustClose(t, ahead)
	defer mustClose(t, behind)
	before := behind.Applied()
	stage := mustStage(t, behind, mustExport(t, ahead))
	fill(t, stage, ahead, 10)
	if staged, err := behind.Staged(); err != nil || len(staged) != 4 || staged[1] != (Range{MainLog, 21, 721}) {
		t.Errorf("staged %v, %v", staged, err)
	}
	if err := behind.Check(t.Context()); err != nil {
		t.Error(err)
	}
	if behind.Applied() != before {
		t.Error("applied moved")
	}
	if _, err := behind.Entry(MainLog, 21, true); !errors.Is(err, ErrNotFound) {
		t.Errorf("a staged entry is read: %v", err)
	}
	if err := behind.Chunks(MainLog, 0, 22, nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("a staged chunk is read: %v", err)
	}
	if _, err := behind.Tree(2); !errors.Is(err, ErrNotFound) {
		t.Errorf("a staged log is there: %v", err)
	}
	var id lineage.ID
	copy(id[:], s.m.logs[MainLog].ids[500])
	principal := s.m.logs[MainLog].ids[500][16:]
	if got, err := behind.ByEventID(MainLog, id); err != nil || len(got) > 0 {
		t.Errorf("a staged event id is found: %v, %v", got, err)
	}
	x, err := behind.EventIDs(MainLog)
	if err != nil {
		t.Fatal(err)
	}
	if i, ok, err := x.Lookup(id, principal); ok || err != nil {
		t.Errorf("a staged event id is a duplicate: %d, %v", i, err)
	}
	n := 0
	more, err := x.Newest(10, func(_ lineage.ID, _ string, index uint64) {
		if n++; index >= 21 {
			t.Errorf("entry %d is among the newest", index)
		}
	})
	if n != 10 || !more || err != nil {
		t.Errorf("the newest: %d, more %v, %v", n, more, err)
	}
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	// After the installation all of it is there.
	changed := behind.changed
	old, err := behind.Tree(MainLog)
	if err != nil {
		t.Fatal(err)
	}
	if err := stage.Install(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	default:
		t.Error("who waits is not told")
	}
	s.compare(t, behind)
	if old.Head().Size != 21 {
		t.Error("a tree that a reader holds changed")
	}
	if d, ok := behind.DecisionAt(s.m.index); !ok || d != s.m.digest {
		t.Errorf("the decision that was installed: %s, %v", d, ok)
	}
	if got, err := behind.ByEventID(MainLog, id); err != nil || !slices.Equal(got, []uint64{500}) {
		t.Errorf("by event id: %v, %v", got, err)
	}
	p, err := behind.Durable()
	if m := s.entries[len(s.entries)-1]; err != nil || p.Index != s.m.index || p.ConfigurationIndex != m.Index || !bytes.Equal(p.Configuration, m.Data) {
		t.Errorf("durable: %+v, %v", p, err)
	}
	if staged, err := behind.Staged(); err != nil || len(staged) > 0 {
		t.Errorf("left: %v, %v", staged, err)
	}
	if err := stage.Install(t.Context()); err != nil {
		t.Errorf("a second time: %v", err)
	}
}

// An export that cannot be what this replica is to become is refused, and nothing changes.
func TestStageRefuses(t *testing.T) {
	_, ahead, behind := pair(t)
	defer mustClose(t, ahead)
	defer mustClose(t, behind)
	before := dump(t, behind)
	for name, c := range map[string]struct {
		edit func(e *Export)
		is   error
	}{
		"other cluster":        {func(e *Export) { e.ClusterID[0] ^= 1 }, ErrExport},
		"older":                {func(e *Export) { e.Index = 1 }, ErrExport},
		"older term":           {func(e *Export) { e.Term = 0 }, ErrExport},
		"older configuration":  {func(e *Export) { e.ConfigurationIndex = 0 }, ErrExport},
		"future configuration": {func(e *Export) { e.ConfigurationIndex = e.Index + 1 }, ErrExport},
		"newer commands":       {func(e *Export) { e.CommandVersion = MaxCommandVersion + 1 }, ErrExport},
		"bindings":             {func(e *Export) { e.Bindings++ }, ErrExport},
		"same index":           {func(e *Export) { e.Index, e.Digest[0] = behind.Applied().Index, 1; e.ConfigurationIndex = e.Index }, ErrDiverged},
		"local principal":      {func(e *Export) { e.Local = "local:mallory" }, ErrDiverged},
		"log renamed":          {func(e *Export) { e.Logs[MainLog].Name = "other" }, ErrDiverged},
		"log gone":             {func(e *Export) { e.Logs = slices.Delete(e.Logs, 1, 2) }, ErrDiverged},
		"log shrinks":          {func(e *Export) { e.Logs[MainLog].Size = 20 }, ErrDiverged},
		"other root": {func(e *Export) {
			h, _ := behind.Tree(MainLog)
			e.Logs[MainLog].Head = h.Head()
			e.Logs[MainLog].Root[3] ^= 1
		}, ErrDiverged},
	} {
		e := mustExport(t, ahead)
		c.edit(e)
		if _, err := behind.Stage(e); !errors.Is(err, c.is) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if !maps.Equal(before, dump(t, behind)) {
		t.Error("something changed")
	}
	// What only its entries can show is found before anything is visible.
	for name, c := range map[string]struct {
		edit func(e *Export)
		is   error
	}{
		"root":            {func(e *Export) { e.Logs[MainLog].Root[3] ^= 1 }, ErrDiverged},
		"time":            {func(e *Export) { e.Logs[MainLog].RecordedAt++ }, ErrExport},
		"key of new log":  {func(e *Export) { e.Logs[2].VKey = "mallory" }, ErrExport},
		"command version": {func(e *Export) { e.CommandVersion = 1 }, ErrExport},
		"log too many": {func(e *Export) {
			e.Logs = append(e.Logs, LogState{testLog(9, "ninth"), emptyHead()})
		}, ErrExport},
	} {
		s, ahead, behind := pair(t)
		e := mustExport(t, ahead)
		c.edit(e)
		stage := mustStage(t, behind, e)
		fill(t, stage, ahead, 1000)
		if err := stage.Install(t.Context()); !errors.Is(err, c.is) {
			t.Errorf("%s: %v", name, err)
		}
		if behind.Applied().Index >= s.m.index || behind.Quarantined() != nil {
			t.Errorf("%s: applied %+v, %v", name, behind.Applied(), behind.Quarantined())
		}
		if err := behind.Check(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		// What was fetched is good, so the true export needs nothing more.
		stage = mustStage(t, behind, mustExport(t, ahead))
		if m := stage.Missing(); len(m) > 0 {
			t.Errorf("%s: missing %v", name, m)
		}
		if err := stage.Install(t.Context()); err != nil {
			t.Errorf("%s: the true export: %v", name, err)
		}
		s.compare(t, behind)
		mustClose(t, ahead)
		mustClose(t, behind)
	}
}

// rechunk reads a chunk, lets edit change its first entry, and writes it again.
func rechunk(kind lineage.LogKind, c Chunk, edit func(e *CommandEntry, at *int64)) Chunk {
	leaves, out := cursor{b: c.Leaves}, Chunk{First: c.First, Count: c.Count, Bodies: c.Bodies}
	for len(leaves.b) > 0 {
		e := leaves.storedLeaf(kind)
		x := CommandEntry{EventID: e.EventID, Principal: e.Principal, Authn: e.Authn, Leaf: bytes.Clone(e.Leaf)}
		if edit != nil {
			edit(&x, &e.RecordedAt)
			edit = nil
		}
		out.Leaves = appendStoredLeaf(out.Leaves, kind, e.RecordedAt, &x)
	}
	return out
}

// A chunk that a replica cannot have stored is refused, and the log goes on with the right one.
func TestPutRefuses(t *testing.T) {
	_, ahead, behind := pair(t)
	defer mustClose(t, ahead)
	defer mustClose(t, behind)
	stage := mustStage(t, behind, mustExport(t, ahead))
	all := chunksOf(t, ahead, MainLog, 21, 721)
	first, second := all[0], all[1]
	genesis := chunksOf(t, ahead, MainLog, 0, 1)[0]
	half := func(c Chunk) Chunk { // the first of its entries, in a chunk that says so
		leaves, bodies := cursor{b: c.Leaves}, cursor{b: c.Bodies}
		leaves.storedLeaf(lineage.LineageLog)
		bodies.storedBody()
		return Chunk{c.First, 1, c.Leaves[:len(c.Leaves)-len(leaves.b)], c.Bodies[:len(c.Bodies)-len(bodies.b)]}
	}
	for name, c := range map[string]Chunk{
		"later one":        second,
		"earlier one":      chunksOf(t, ahead, MainLog, 5, 6)[0],
		"no entries":       {First: first.First},
		"count too small":  {first.First, first.Count - 1, first.Leaves, first.Bodies},
		"count too large":  {first.First, first.Count + 1, first.Leaves, first.Bodies},
		"two chunks":       {first.First, 32, slices.Concat(first.Leaves, second.Leaves), slices.Concat(first.Bodies, second.Bodies)},
		"leaves cut":       {first.First, first.Count, first.Leaves[:len(first.Leaves)-1], first.Bodies},
		"bodies cut":       {first.First, first.Count, first.Leaves, first.Bodies[:len(first.Bodies)-1]},
		"bodies of others": {first.First, first.Count, first.Leaves, second.Bodies},
		"genesis again":    {first.First, 1, genesis.Leaves, genesis.Bodies},
		"principal":        rechunk(lineage.LineageLog, first, func(e *CommandEntry, _ *int64) { e.Principal += "x" }),
		"authentication":   rechunk(lineage.LineageLog, first, func(e *CommandEntry, _ *int64) { e.Authn++ }),
		"time":             rechunk(lineage.LineageLog, first, func(_ *CommandEntry, at *int64) { *at++ }),
		"no leaf":          rechunk(lineage.LineageLog, first, func(e *CommandEntry, _ *int64) { e.Leaf = e.Leaf[1:] }),
		"body erased":      {first.First, first.Count, first.Leaves, flip(0)(bytes.Clone(first.Bodies))},
		"body flipped":     {first.First, first.Count, first.Leaves, flip(60)(bytes.Clone(first.Bodies))},
	} {
		if err := stage.Put(MainLog, c); !errors.Is(err, ErrChunk) {
			t.Errorf("%s: %v", name, err)
		}
		if err := stage.Put(77, c); !errors.Is(err, ErrChunk) {
			t.Errorf("%s in a log that does not change: %v", name, err)
		}
	}
	// Event ids that are there already: of an older entry, and twice in what was put.
	old := chunksOf(t, ahead, MainLog, 1, 2)[0]
	old.First = 21
	twice := half(first)
	again := twice
	again.First++
	for name, chunks := range map[string][]Chunk{"of an older entry": {rechunk(lineage.LineageLog, old, nil)}, "twice": {twice, again}} {
		var err error
		for _, c := range chunks {
			if err == nil {
				err = stage.Put(MainLog, c)
			}
		}
		if err == nil {
			err = stage.Keep(MainLog)
		}
		if !errors.Is(err, ErrChunk) {
			t.Errorf("event id %s: %v", name, err)
		}
		stage.Drop(MainLog)
	}
	if h, _ := stage.Head(MainLog); h.Size != 21 {
		t.Errorf("what was refused left the log at %+v", h)
	}
	if staged, err := behind.Staged(); err != nil || len(staged) > 0 {
		t.Errorf("staged %v, %v", staged, err)
	}
	if behind.Quarantined() != nil {
		t.Error("what others send quarantines")
	}
	fill(t, stage, ahead, 7)
	if err := stage.Install(t.Context()); err != nil {
		t.Error(err)
	}
}

// A flipped bit that every other check lets pass is found by the root, and Reset gives up what was kept.
func TestResetGivesUpWhatIsWrong(t *testing.T) {
	s, ahead, behind := pair(t)
	defer mustClose(t, ahead)
	defer mustClose(t, behind)
	stage := mustStage(t, behind, mustExport(t, ahead))
	before := dump(t, behind)
	for log, kind := range map[uint32]lineage.LogKind{MainLog: lineage.LineageLog, 3: lineage.OpaqueLog} {
		first, end := uint64(0), ahead.trees[log].head.Size
		if log == MainLog {
			first = 21
		}
		for i, c := range chunksOf(t, ahead, log, first, end) {
			if i == 1 {
				c = rechunk(kind, c, func(e *CommandEntry, _ *int64) {
					if kind == lineage.OpaqueLog {
						e.Leaf = append(e.Leaf, 1)
						return
					}
					leaf, err := lineage.ParseLeaf(e.Leaf)
					if err != nil {
						t.Fatal(err)
					}
					leaf.EventID[15] ^= 1
					e.Leaf = lineage.AppendLeaf(nil, leaf)
				})
			}
			if err := errors.Join(stage.Put(log, c), stage.Keep(log)); err != nil {
				t.Fatal(err)
			}
		}
		if err := stage.Install(t.Context()); err == nil {
			t.Fatal("installed")
		}
		if err := stage.Reset(log); err != nil {
			t.Fatal(err)
		}
	}
	if !maps.Equal(before, dump(t, behind)) {
		t.Error("something is left")
	}
	// The system log's entries are read anew.
	m := stage.Missing()[0]
	for _, c := range chunksOf(t, ahead, m.Log, m.First, m.End) {
		if err := errors.Join(stage.Put(m.Log, c), stage.Keep(m.Log)); err != nil {
			t.Fatal(err)
		}
	}
	if err := stage.Reset(SystemLog); err != nil {
		t.Fatal(err)
	}
	fill(t, stage, ahead, 5)
	if err := stage.Install(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.compare(t, behind)
}

// A log beyond the bound of what may be in memory has to be kept first.
func TestUnkeptIsBounded(t *testing.T) {
	_, ahead, behind := pair(t)
	defer mustClose(t, ahead)
	defer mustClose(t, behind)
	stage := mustStage(t, behind, mustExport(t, ahead))
	c := chunksOf(t, ahead, MainLog, 21, 22)[0]
	stage.logs[MainLog].bytes = MaxUnkept
	if err := stage.Put(MainLog, c); err == nil || errors.Is(err, ErrChunk) {
		t.Error(err)
	}
}

// Ten thousand logs of which one moved: only that one is touched, and no edge of another is read.
func TestIdleLogsCostNothing(t *testing.T) {
	logs := 10_000
	if testing.Short() {
		logs = 500
	}
	s, ahead := simple(t, vfs.NewMem(), 1)
	defer mustClose(t, ahead)
	at := len(s.entries)
	for i := 0; i < logs; i += 100 {
		var entries []CommandEntry
		var created []Log
		for j := range 100 {
			g := testOpaque(uint32(10+i+j), fmt.Sprint("log-", i+j))
			created, entries = append(created, g), append(entries, s.registered(g))
		}
		sections := []Section{s.section(SystemLog, entries...)}
		for _, g := range created {
			sections = append(sections, s.section(g.Number, s.opaque(1)...))
		}
		s.add(s.command(sections...).encoded())
	}
	for _, r := range ahead.Apply(s.entries[at:]) {
		if o, ok := r.(*Outcome); !ok || o.Decision != Accepted {
			t.Fatal(r)
		}
	}
	fs := vfs.NewMem()
	behind := mustOpen(t, testOptions(fs))
	catchUp(t, behind, ahead)
	mustClose(t, behind)
	behind = mustOpen(t, testOptions(fs))
	defer func() { mustClose(t, behind) }()
	if n := len(behind.trees); n != 2 {
		t.Errorf("%d trees are loaded after a start", n)
	}
	c := s.command(Section{Log: 10, Before: ahead.trees[10].head, Entries: s.opaque(3)})
	edge := ahead.trees[10].Edge()
	for i := range c.Sections[0].Entries {
		edge.Append(merkle.LeafHash(c.Sections[0].Entries[i].Leaf), nil)
	}
	c.Base = Applied{}
	c.Sections[0].After = Head{edge.Size(), edge.Root(), s.now}
	index := ahead.Applied().Index + 1
	if o, ok := ahead.Apply([]LogEntry{{Index: index, Term: s.m.term, Data: c.encoded()}})[0].(*Outcome); !ok || o.Decision != Accepted {
		t.Fatal(o)
	}
	stage := mustStage(t, behind, mustExport(t, ahead))
	if m := stage.Missing(); len(m) != 1 || m[0] != (Range{10, 1, 4}) {
		t.Fatalf("missing %v", m)
	}
	fill(t, stage, ahead, 1)
	if err := stage.Install(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := len(behind.trees); n != 2 {
		t.Errorf("%d trees are loaded", n)
	}
	if !maps.Equal(dump(t, ahead), dump(t, behind)) {
		t.Error("the stores differ")
	}
	b := mustExport(t, behind).Encode()
	if per := len(b) / logs; per > 400 {
		t.Errorf("an export takes %d bytes a log", per)
	}
}

// Readers go on beside an installation; whoever loads a log meanwhile finds it old or new, and afterwards new.
func TestReadBesideInstall(t *testing.T) {
	for range 20 {
		s, ahead, behind := pair(t)
		stage := mustStage(t, behind, mustExport(t, ahead))
		fill(t, stage, ahead, 10)
		behind.mu.Lock()
		clear(behind.trees) // as after a start with logs that nobody used
		clear(behind.edges)
		behind.mu.Unlock()
		done := make(chan struct{})
		for range 2 {
			go func() {
				defer func() { done <- struct{}{} }()
				for {
					tree, err := behind.Tree(MainLog)
					if err != nil {
						t.Error(err)
						return
					}
					if size := tree.Head().Size; size == 721 {
						return
					} else if size != 21 {
						t.Errorf("size %d", size)
						return
					}
					if _, err := behind.Entry(MainLog, 20, true); err != nil {
						t.Error(err)
						return
					}
				}
			}()
		}
		if err := stage.Install(t.Context()); err != nil {
			t.Fatal(err)
		}
		<-done
		<-done
		s.compare(t, behind)
		mustClose(t, ahead)
		mustClose(t, behind)
	}
}

// A quarantined ledger gives nothing and takes nothing: it is to be replaced.
func TestQuarantinedStagesNothing(t *testing.T) {
	_, ahead, behind := pair(t)
	defer mustClose(t, ahead)
	defer mustClose(t, behind)
	e := mustExport(t, ahead)
	stage := mustStage(t, behind, e)
	fill(t, stage, ahead, 10)
	behind.enterQuarantine(errors.New("test"))
	_, err := behind.Stage(e)
	_, exported := behind.Export()
	for name, err := range map[string]error{
		"Stage": err, "Install": stage.Install(t.Context()), "Reset": stage.Reset(MainLog), "Export": exported, "Chunks": behind.Chunks(MainLog, 0, 1, nil),
	} {
		if !errors.Is(err, ErrQuarantined) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, known := behind.DecisionAt(behind.Applied().Index); known {
		t.Error("it says what it decided")
	}
	if !strings.Contains(string(behind.Evidence()), "quarantined: test") {
		t.Errorf("evidence:\n%s", behind.Evidence())
	}
}
