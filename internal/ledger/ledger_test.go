package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/provledger/provledger/internal/merkle"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fataler is what testing.TB and rapid.T have in common.
type fataler interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

var quiet = slog.New(slog.DiscardHandler)

func testOptions(fs vfs.FS) Options {
	return Options{
		FS: fs, Dir: "state", ClusterID: testCluster, Logger: quiet, MemTableBytes: 1 << 20, BlockCacheBytes: 1 << 20,
		Die: func(reason string, err error) { panic(fmt.Sprintf("die: %s: %v", reason, err)) },
	}
}

func mustOpen(t fataler, o Options) *Ledger {
	t.Helper()
	l, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func mustClose(t fataler, l *Ledger) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := l.Close(ctx); err != nil {
		t.Fatal(err)
	}
}

// apply applies the entries of a script from the given one on, and compares decisions.
func (s *script) apply(t fataler, l *Ledger, from, to int) {
	t.Helper()
	for i, r := range l.Apply(s.entries[from:to]) {
		want := s.want[from+i]
		o, ok := r.(*Outcome)
		if want == 0 && r == nil {
			continue
		}
		if !ok || o.Decision != want {
			t.Fatalf("entry %d: %v (%v), the model says %v", from+i, r, l.Quarantined(), want)
		}
	}
}

// compare holds a ledger to the model.
func (s *script) compare(t fataler, l *Ledger) {
	t.Helper()
	if got, want := l.Applied(), (Applied{s.m.index, s.m.term, s.m.digest}); got != want {
		t.Fatalf("applied %+v, the model %+v", got, want)
	}
	if l.CommandVersion() != s.m.version {
		t.Fatalf("command version %d, the model %d", l.CommandVersion(), s.m.version)
	}
	if l.LocalPrincipal() != s.m.local {
		t.Fatalf("local principal %q, the model %q", l.LocalPrincipal(), s.m.local)
	}
	registry := map[uint32]Log{}
	for _, g := range l.Logs() {
		registry[g.Number] = g
	}
	if !maps.Equal(registry, s.m.registry) {
		t.Fatalf("registry %v, the model %v", registry, s.m.registry)
	}
	for n, g := range s.m.logs {
		tree, err := l.Tree(n)
		if err != nil {
			t.Fatal(err)
		}
		if tree.Head() != s.m.head(n) {
			t.Fatalf("log %d: head %+v, the model %+v", n, tree.Head(), s.m.head(n))
		}
		i := 0
		err = l.Entries(n, 0, tree.Head().Size, true, func(e *Entry) error {
			if e.Index != uint64(i) || !bytes.Equal(e.Leaf, g.leaves[i]) {
				return fmt.Errorf("entry %d differs from the model", i)
			}
			i++
			return nil
		})
		if err != nil || i != len(g.leaves) {
			t.Fatalf("log %d: %d entries, the model has %d: %v", n, i, len(g.leaves), err)
		}
	}
	if err := l.Check(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// dump returns everything that is stored.
func dump(t fataler, l *Ledger) map[string]string {
	t.Helper()
	all := map[string]string{}
	it, err := l.db.NewIter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	for it.First(); it.Valid(); it.Next() {
		all[string(it.Key())] = string(it.Value())
	}
	return all
}

// checkWriteOnce reports a key that is gone or has another value, but for heads and the applied record (S14).
func checkWriteOnce(t fataler, before, after map[string]string) {
	t.Helper()
	for k, v := range before {
		if k[0] != tagHead && k[0] != tagApplied && after[k] != v {
			t.Fatalf("key %x was %x and is %x", k, v, after[k])
		}
	}
}

// drawStep adds one entry to a script: a good command or one that is spoilt in one of the ways that the state machine knows.
func (s *script) drawStep(t *rapid.T) {
	s.tick()
	logs := slices.Sorted(maps.Keys(s.m.registry))
	log := rapid.SampledFrom(logs[1:]).Draw(t, "log") // system takes control entries only, here
	n := rapid.SampledFrom([]int{1, 2, 15, 16, 17, 40, 300}).Draw(t, "n")
	data := s.command(s.section(log, s.some(log, n)...))
	sec := &data.Sections[0]
	keys := maps.Clone(s.keys) // genesis entries that are refused have made some
	switch rapid.SampledFrom([]string{
		"good", "good", "good", "two logs", "new log", "membership", "stale size", "stale root", "wrong after", "earlier",
		"same log twice", "unknown log", "number taken", "name taken", "no control", "stale new log", "base forgotten",
		"new opaque log", "raise", "raise and more", "version entry alone", "member", "member of version 1", "newer version", "older version",
	}).Draw(t, "step") {
	case "two logs":
		if other := rapid.SampledFrom(logs[1:]).Draw(t, "other"); other != log {
			data.Sections = append(data.Sections, s.section(other, s.some(other, 3)...))
		}
	case "new log":
		data = s.createLog(testLog(s.nextLog, fmt.Sprintf("log-%d", s.nextLog)))
		s.nextLog++
	case "membership":
		s.membership()
		return
	case "stale size":
		sec.Before.Size--
	case "stale root":
		sec.Before.Root[rapid.IntRange(0, 31).Draw(t, "byte")] ^= 1
	case "wrong after":
		sec.After.Root[rapid.IntRange(0, 31).Draw(t, "byte")] ^= 1
	case "earlier":
		sec.After.RecordedAt = s.m.head(log).RecordedAt - 1
	case "same log twice":
		data.Sections = append(data.Sections, data.Sections[0])
	case "unknown log":
		sec.Log = 4_000_000
	case "number taken":
		data = s.createLog(testLog(MainLog, fmt.Sprintf("log-%d", s.nextLog)))
	case "name taken":
		data = s.createLog(testLog(s.nextLog, MainName))
	case "no control":
		sec.Entries[len(sec.Entries)-1].Control = true
	case "stale new log":
		data = s.createLog(testLog(s.nextLog, fmt.Sprintf("log-%d", s.nextLog)))
		data.Sections[0].Before.Root[0] ^= 1
	case "new opaque log":
		data = s.createLog(testOpaque(s.nextLog, fmt.Sprintf("log-%d", s.nextLog)))
		s.nextLog++
	case "raise":
		if s.m.version == MaxCommandVersion {
			return
		}
		data = s.raise()
	case "raise and more":
		if s.m.version == MaxCommandVersion {
			return
		}
		data = s.raise()
		data.Sections = append(data.Sections, *sec)
	case "version entry alone":
		data = s.raise()
		data.Version = s.m.version
	case "member":
		data = s.member()
	case "member of version 1":
		data = s.member()
		data.Version = 1
	case "newer version":
		data.Version = MaxCommandVersion
	case "older version":
		data.Version = 1
	case "base forgotten":
		data.Base.Index += 1 << 40
	}
	if s.add(data.encoded()) != Accepted {
		s.keys = keys
	}
}

// TestAgainstModel runs random commands through the ledger in several ways: each must end in the model's state and digest.
func TestAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newScript(rapid.Uint64().Draw(t, "seed"))
		s.bootstrap()
		for range rapid.IntRange(0, 12).Draw(t, "steps") {
			s.drawStep(t)
		}
		// One entry a call; nothing stored is ever overwritten; a refused command changes the applied record only.
		single := mustOpen(t, testOptions(vfs.NewMem()))
		before := dump(t, single)
		for i := range s.entries {
			s.apply(t, single, i, i+1)
			after := dump(t, single)
			checkWriteOnce(t, before, after)
			if d := s.want[i]; d != Accepted {
				delete(before, string(appliedKey))
				now := maps.Clone(after)
				delete(now, string(appliedKey))
				if !maps.Equal(before, now) {
					t.Fatalf("entry %d, %v, changed something", i, d)
				}
			}
			before = after
		}
		s.compare(t, single)

		// Some at a time, with tiny memtables, stopped and killed in between: what a crash takes is replayed.
		o := testOptions(vfs.NewMem())
		o.MemTableBytes = 64 << 10
		l := mustOpen(t, o)
		for at := 0; at < len(s.entries); {
			to := min(at+rapid.IntRange(1, 6).Draw(t, "batch"), len(s.entries))
			s.apply(t, l, at, to)
			at = to
			switch rapid.IntRange(0, 5).Draw(t, "stop") {
			case 0:
				mustClose(t, l)
				l = mustOpen(t, o)
			case 1:
				d, err := l.Durable()
				if err != nil {
					t.Fatal(err)
				}
				if err := l.Abandon(); err != nil {
					t.Fatal(err)
				}
				l = mustOpen(t, o)
				// Pebble may have flushed since.
				up := l.Applied()
				if up.Index < d.Index || up.Digest != s.digests[up.Index] {
					t.Fatalf("came up at %+v, durable was %d", up, d.Index)
				}
				for at > 0 && s.entries[at-1].Index > up.Index {
					at--
				}
			}
		}
		// Entries that come again are skipped.
		for _, r := range l.Apply(s.entries) {
			if r != nil {
				t.Fatalf("applied again: %v", r)
			}
		}
		s.compare(t, l)
		if !maps.Equal(dump(t, single), dump(t, l)) {
			t.Fatal("the stores differ")
		}
		mustClose(t, single)
		mustClose(t, l)
	})
}

// No command can change the access bindings yet; what a command was authorised against is compared all the same.
func TestOlderBindingsAreRefused(t *testing.T) {
	s, l := simple(t, vfs.NewMem(), 1)
	defer mustClose(t, l)
	at := len(s.entries)
	l.applied.bindings, s.m.bindings = 3, 3
	old := s.good(1)
	old.Bindings = 2
	if d := s.add(old.encoded()); d != RefusedBindings {
		t.Fatal(d)
	}
	s.add(s.good(1).encoded())
	s.apply(t, l, at, len(s.entries))
	s.compare(t, l)
}

// simple is a script with a good command of n entries after the bootstrap, applied to a new ledger.
func simple(t fataler, fs vfs.FS, n int) (*script, *Ledger) {
	t.Helper()
	s := newScript(1)
	s.bootstrap()
	s.membership()
	s.tick()
	s.add(s.command(s.section(MainLog, s.events(MainLog, n)...)).encoded())
	l := mustOpen(t, testOptions(fs))
	s.apply(t, l, 0, len(s.entries))
	return s, l
}

func (s *script) good(n int) *Command {
	s.tick()
	return s.command(s.section(MainLog, s.events(MainLog, n)...))
}

// A refused command that would create a log must not create it, even if what was decided before it in the same call is written in the
// middle of it.
func TestRefusedLogIsNotRegistered(t *testing.T) {
	s, l := simple(t, vfs.NewMem(), 3)
	defer mustClose(t, l)
	at := len(s.entries)
	stale := s.createLog(testLog(7, "stale"))
	stale.Sections[0].Before.Size--
	s.add(s.good(2).encoded())
	s.add(stale.encoded())
	s.apply(t, l, at, len(s.entries))
	s.compare(t, l)
	if _, err := l.LogByName("stale"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a refused command registered a log: %v", err)
	}
	// It can still be created.
	at = len(s.entries)
	if d := s.add(s.createLog(testLog(7, "stale")).encoded()); d != Accepted {
		t.Fatal(d)
	}
	s.apply(t, l, at, len(s.entries))
	s.compare(t, l)
	if g, err := l.LogByOrigin(testLog(7, "stale").Origin); err != nil || g.Number != 7 {
		t.Errorf("by origin: %+v, %v", g, err)
	}
}

// died runs f with a Die that ends its goroutine, and returns the reason.
func died(l *Ledger, f func()) (reason string) {
	l.o.Die = func(r string, err error) { reason = r; runtime.Goexit() }
	var wg sync.WaitGroup
	wg.Go(f)
	wg.Wait()
	return reason
}

// What this program cannot decode ends it: to skip it would make this replica differ from its peers (H15).
func TestUndecodableCommandDies(t *testing.T) {
	for name, spoil := range map[string]func(b []byte) []byte{
		"version":      func(b []byte) []byte { b[0] = MaxCommandVersion + 1; return b },
		"checksum":     func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
		"cut short":    func(b []byte) []byte { return b[:3] },
		"empty":        func(b []byte) []byte { return nil },
		"other bytes":  func(b []byte) []byte { return recrc(append(b, 0)) },
		"no entries":   func(b []byte) []byte { return recrc(bytes.Replace(b, []byte{0, 0, 0, 1}, []byte{0, 0, 0, 0}, 1)) },
		"other ledger": func(b []byte) []byte { b[commandHead] ^= 1; return recrc(b) },
	} {
		t.Run(name, func(t *testing.T) {
			s, l := simple(t, vfs.NewMem(), 1)
			defer func() { mustClose(t, l) }()
			before := dump(t, l)
			data := spoil(s.good(1).encoded())
			if died(l, func() { l.Apply([]LogEntry{{Index: 100, Term: 1, Data: data}}) }) == "" {
				t.Error("survived")
			}
			if !maps.Equal(before, dump(t, l)) {
				t.Error("something was stored")
			}
		})
	}
}

// recrc makes a spoilt command whole again as far as the checksum goes.
func recrc(b []byte) []byte {
	copy(b[1:], seal(b[commandHead:])[len(b)-commandHead:])
	return b
}

// A proposer whose decisions differ from ours quarantines us before anything is applied; what came before it in the call is kept.
func TestOtherDecisionsQuarantine(t *testing.T) {
	s, l := simple(t, vfs.NewMem(), 5)
	defer mustClose(t, l)
	for _, base := range []uint64{s.entries[0].Index, s.entries[1].Index, s.entries[2].Index} { // a command, a membership, the newest
		if d, ok := l.recent.get(base); !ok || d != s.digests[base] {
			t.Errorf("the decision at %d is not remembered", base)
		}
	}
	at := len(s.entries)
	s.add(s.good(2).encoded())
	bad := s.good(2)
	bad.Base.Digest[5] ^= 1
	good := s.entries[at]
	r := l.Apply([]LogEntry{good, {Index: good.Index + 1, Term: 9, Data: bad.encoded()}, {Index: good.Index + 2, Term: 9, Data: bad.encoded()}})
	if o, ok := r[0].(*Outcome); !ok || o.Decision != Accepted {
		t.Errorf("the command before: %v", r[0])
	}
	for _, r := range r[1:] {
		if err, ok := r.(error); !ok || !errors.Is(err, ErrQuarantined) {
			t.Errorf("got %v", r)
		}
	}
	if l.Applied().Index != good.Index {
		t.Errorf("applied up to %d, want %d", l.Applied().Index, good.Index)
	}
	if _, err := l.Tree(MainLog); !errors.Is(err, ErrQuarantined) {
		t.Errorf("serves trees: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := l.WaitSize(ctx, MainLog, 1<<40); !errors.Is(err, ErrQuarantined) {
		t.Errorf("WaitSize: %v", err)
	}
	// Nothing is applied any more.
	if r := l.Apply([]LogEntry{{Index: good.Index + 5, Configuration: true}}); !errors.Is(r[0].(error), ErrQuarantined) || l.Applied().Index != good.Index {
		t.Errorf("goes on: %v", r)
	}
}

// flippedEdge is an edge of the same size with another last leaf.
func flippedEdge(s *script, log uint32) *merkle.Edge {
	e := merkle.NewEdge()
	leaves := s.m.logs[log].leaves
	for i, leaf := range leaves {
		if i == len(leaves)-1 {
			leaf = append([]byte("x"), leaf...)
		}
		e.Append(merkle.LeafHash(leaf), nil)
	}
	return e
}

// Damage in memory heals: the edge is read again, and the command that met it is accepted.
func TestDamagedEdgeHeals(t *testing.T) {
	for name, damage := range map[string]func(s *script, l *Ledger){
		"edge": func(s *script, l *Ledger) { l.edges[MainLog] = flippedEdge(s, MainLog) },
		"head": func(s *script, l *Ledger) {
			bad := *l.trees[MainLog]
			bad.head.Root[3] ^= 4
			l.trees[MainLog] = &bad
		},
		"edge and head": func(s *script, l *Ledger) {
			e := flippedEdge(s, MainLog)
			l.edges[MainLog] = e
			l.trees[MainLog] = &Tree{l: l, log: MainLog, head: Head{e.Size(), e.Root(), 0}, view: e.View()}
		},
		"time": func(s *script, l *Ledger) {
			bad := *l.trees[MainLog]
			bad.head.RecordedAt = 1 << 60
			l.trees[MainLog] = &bad
		},
		"edge of what is not yet written": nil,
	} {
		t.Run(name, func(t *testing.T) {
			s, l := simple(t, vfs.NewMem(), 300)
			defer mustClose(t, l)
			at := len(s.entries)
			if damage != nil {
				damage(s, l)
				s.add(s.good(3).encoded())
				s.apply(t, l, at, len(s.entries))
			} else {
				// The second command of a call meets a damaged edge that the first left: the batch has to be written before it is read.
				s.add(s.good(3).encoded())
				w := l.newWriter(0)
				if o, err := w.command(&s.entries[at]); err != nil || o.Decision != Accepted {
					t.Fatal(o, err)
				}
				w.edges[MainLog] = flippedEdge(s, MainLog)
				s.add(s.good(3).encoded())
				if o, err := w.command(&s.entries[at+1]); err != nil || o.Decision != Accepted {
					t.Fatal(o, err)
				}
				w.commit()
			}
			s.compare(t, l)
		})
	}
}

// edit changes a stored value behind the ledger's back.
func edit(t *testing.T, l *Ledger, key []byte, f func(v []byte) []byte) {
	t.Helper()
	v, ok, err := l.get(key)
	if err != nil || !ok {
		t.Fatalf("%x: %v, %v", key, ok, err)
	}
	if v = f(v); v == nil {
		err = l.db.Delete(key, pebble.NoSync)
	} else {
		err = l.db.Set(key, v, pebble.NoSync)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func flip(at int) func(v []byte) []byte {
	return func(v []byte) []byte { v[(at+len(v))%len(v)] ^= 0x10; return v }
}

func remove([]byte) []byte { return nil }

// damages are ways in which what is stored of the main log can be wrong. found says whether the right edge shows it: the rest is for
// Check. The log has 1 genesis entry and 700 entries of one command, in chunks of 16 from 1 on.
var damages = []struct {
	name  string
	key   []byte
	edit  func([]byte) []byte
	found bool
}{
	{"leaf in the partial tile", appendChunkKey(nil, tagLeaves, MainLog, 1+16*42), flip(-1), true},
	{"length in the partial tile", appendChunkKey(nil, tagLeaves, MainLog, 1+16*42), flip(18), true},
	{"chunk of the partial tile gone", appendChunkKey(nil, tagLeaves, MainLog, 1+16*42), remove, true},
	{"tile under the edge", appendTileKey(nil, MainLog, merkle.TileID{Index: 1}), flip(77), true},
	{"tile cut short", appendTileKey(nil, MainLog, merkle.TileID{Index: 1}), func(v []byte) []byte { return v[:len(v)-32] }, true},
	{"tile gone", appendTileKey(nil, MainLog, merkle.TileID{Index: 0}), remove, true},
	{"head", logKey(tagHead, MainLog), flip(12), true},
	{"head, whole", logKey(tagHead, MainLog), func(v []byte) []byte {
		h, _ := parseHead(v)
		h.Root[0] ^= 1
		return h.encode()
	}, true},
	{"head, smaller", logKey(tagHead, MainLog), func(v []byte) []byte {
		h, _ := parseHead(v)
		h.Size--
		return h.encode()
	}, true},
	{"head, later", logKey(tagHead, MainLog), func(v []byte) []byte {
		h, _ := parseHead(v)
		h.RecordedAt++
		return h.encode()
	}, false},
	{"leaf in a full tile", appendChunkKey(nil, tagLeaves, MainLog, 1+16*3), flip(-1), false},
	{"time of an entry", appendChunkKey(nil, tagLeaves, MainLog, 1+16*3), flip(7), false},
	{"chunk of a full tile gone", appendChunkKey(nil, tagLeaves, MainLog, 1+16*3), remove, false},
	{"body", appendChunkKey(nil, tagBodies, MainLog, 1+16*3), flip(60), false},
	{"body gone", appendChunkKey(nil, tagBodies, MainLog, 1+16*3), remove, false},
	{"registry", logKey(tagRegistry, MainLog), func(v []byte) []byte {
		g, _ := parseLog(v)
		g.VKey = "another"
		return g.encode()
	}, false},
	{"local principal", localKey, func([]byte) []byte { return encodeLocal("local:mallory") }, false},
}

// Damage in the store is found by Check, refused by Open where the right edge shows it, and quarantines a node that meets it: no
// receipt over it can leave.
func TestDamagedStore(t *testing.T) {
	for _, d := range damages {
		t.Run(d.name, func(t *testing.T) {
			fs := vfs.NewMem()
			s, l := simple(t, fs, 700)
			if err := l.Check(t.Context()); err != nil {
				t.Fatal(err)
			}
			edit(t, l, d.key, d.edit)
			if err := l.Check(t.Context()); !errors.Is(err, ErrCorrupt) {
				t.Errorf("Check: %v", err)
			} else {
				t.Log(err)
			}
			if err := l.Quarantined(); err != nil {
				t.Error("a check quarantines")
			}
			// A command that does not match makes this node look.
			stale := s.good(1)
			stale.Sections[0].Before.Size--
			r := l.Apply([]LogEntry{{Index: 100, Term: 1, Data: stale.encoded()}})
			if err, _ := r[0].(error); d.found != errors.Is(err, ErrQuarantined) || d.found != errors.Is(l.Quarantined(), ErrCorrupt) {
				t.Errorf("a stale command: %v", r[0])
			}
			if d.found && l.Applied().Index == 100 {
				t.Error("applied in quarantine")
			}
			mustClose(t, l)
			l, err := Open(testOptions(fs))
			if d.found != errors.Is(err, ErrCorrupt) {
				t.Errorf("Open: %v", err)
			}
			if err == nil {
				if err := l.Check(t.Context()); !errors.Is(err, ErrCorrupt) {
					t.Errorf("Check after Open: %v", err)
				}
				mustClose(t, l)
			}
		})
	}
}

// An event id that leads astray is for Check alone: nothing else reads all of them.
func TestCheckLooksEventIDsUp(t *testing.T) {
	s, l := simple(t, vfs.NewMem(), 20)
	defer mustClose(t, l)
	leafID := s.m.logs[MainLog].ids[7]
	key := append(logKey(tagEventID, MainLog), leafID...)
	for name, f := range map[string]func([]byte) []byte{"other index": flip(-1), "gone": remove} {
		old, _, _ := l.get(key)
		edit(t, l, key, f)
		if err := l.Check(t.Context()); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
		if err := l.db.Set(key, old, pebble.NoSync); err != nil {
			t.Fatal(err)
		}
	}
	stray := append(logKey(tagEventID, MainLog), make([]byte, 20)...)
	for _, k := range [][]byte{stray, {0x77, 1, 2, 3, 4, 5}, appendTileKey(nil, 99, merkle.TileID{})} {
		if err := l.db.Set(k, make([]byte, 8), pebble.NoSync); err != nil {
			t.Fatal(err)
		}
		if err := l.Check(t.Context()); !errors.Is(err, ErrCorrupt) {
			t.Errorf("stray key %x: %v", k, err)
		}
		if err := l.db.Delete(k, pebble.NoSync); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Check(t.Context()); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Check(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Check under an ended context: %v", err)
	}
}

// A reader that meets damage quarantines the node; one that asks for what is not there does not.
func TestReadersQuarantine(t *testing.T) {
	for name, read := range map[string]func(l *Ledger) error{
		"Entry":   func(l *Ledger) error { _, err := l.Entry(MainLog, 1+16*3+2, false); return err },
		"Entries": func(l *Ledger) error { return l.Entries(MainLog, 0, 100, false, func(*Entry) error { return nil }) },
		"ReadTile": func(l *Ledger) error {
			t, _ := l.Tree(MainLog)
			_, err := t.ReadTile(merkle.TileID{Index: 0}, 256)
			return err
		},
	} {
		_, l := simple(t, vfs.NewMem(), 700)
		edit(t, l, appendChunkKey(nil, tagLeaves, MainLog, 1+16*3), remove)
		edit(t, l, appendTileKey(nil, MainLog, merkle.TileID{Index: 0}), remove)
		tree, _ := l.Tree(MainLog)
		for _, id := range []merkle.TileID{{Index: 2}, {Index: 3}, {Level: 1, Index: 0}, {Level: 1, Index: 1}, {Level: 7, Index: 0}, {Level: 200, Index: 1 << 63}} {
			if _, err := tree.ReadTile(id, 256); err == nil || errors.Is(err, ErrCorrupt) {
				t.Errorf("tile %v outside the tree: %v", id, err)
			}
		}
		if _, err := l.Entry(MainLog, 701, false); !errors.Is(err, ErrNotFound) {
			t.Errorf("entry beyond the tree: %v", err)
		}
		if err := l.Quarantined(); err != nil {
			t.Fatal(err)
		}
		if err := read(l); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
		if err := l.Quarantined(); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s met damage and nobody was told: %v", name, err)
		}
		mustClose(t, l)
	}
}

// A store that is of another ledger is refused.
func TestOpenRefusesOtherCluster(t *testing.T) {
	fs := vfs.NewMem()
	_, l := simple(t, fs, 1)
	mustClose(t, l)
	o := testOptions(fs)
	o.ClusterID[0] ^= 1
	if _, err := Open(o); !errors.Is(err, ErrCorrupt) {
		t.Error(err)
	}
}

// Logs beyond the built-in ones are checked when they are first used.
func TestLogsLoadOnFirstUse(t *testing.T) {
	fs := vfs.NewMem()
	s, l := simple(t, fs, 1)
	at := len(s.entries)
	s.add(s.createLog(testLog(2, "second")).encoded())
	s.add(s.command(s.section(2, s.events(2, 20)...)).encoded())
	s.apply(t, l, at, len(s.entries))
	edit(t, l, appendChunkKey(nil, tagLeaves, 2, 1), flip(-1))
	mustClose(t, l)
	l = mustOpen(t, testOptions(fs))
	defer mustClose(t, l)
	if _, err := l.Tree(MainLog); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Tree(2); !errors.Is(err, ErrCorrupt) || l.Quarantined() == nil {
		t.Errorf("first use of a damaged log: %v, %v", err, l.Quarantined())
	}
}

// Readers prove from a tree while Apply extends it.
func TestReadWhileApplying(t *testing.T) {
	s, l := simple(t, vfs.NewMem(), 10)
	at := len(s.entries)
	for i := range 60 {
		s.add(s.good(1 + s.rng.IntN(30)).encoded())
		if i%6 == 0 {
			s.add(s.createLog(testLog(uint32(10+i), fmt.Sprint("log-", i))).encoded())
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	var readers sync.WaitGroup
	for r := range 3 {
		readers.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(r), 2))
			old, _ := l.Tree(MainLog)
			for ctx.Err() == nil {
				tree, err := l.Tree(MainLog)
				if err != nil {
					t.Error(err)
					return
				}
				h := tree.Head()
				i := rng.Uint64N(h.Size)
				e, err := l.Entry(MainLog, i, true)
				if err != nil {
					t.Error(err)
					return
				}
				proof, err := merkle.ProveInclusion(i, h.Size, tree)
				if err == nil {
					err = merkle.VerifyInclusion(merkle.LeafHash(e.Leaf), i, h.Size, proof, h.Root)
				}
				if err != nil {
					t.Errorf("entry %d at size %d: %v", i, h.Size, err)
					return
				}
				if proof, err = merkle.ProveConsistency(old.Head().Size, h.Size, tree); err == nil {
					err = merkle.VerifyConsistency(old.Head().Size, h.Size, old.Head().Root, h.Root, proof)
				}
				if err != nil {
					t.Errorf("from size %d to %d: %v", old.Head().Size, h.Size, err)
					return
				}
				if root, err := tree.RootAt(old.Head().Size); err != nil || root != old.Head().Root {
					t.Errorf("root at %d: %s, %v", old.Head().Size, root, err)
					return
				}
				if rng.IntN(8) == 0 {
					old = tree
				}
			}
		})
	}
	readers.Go(func() { // a check runs beside appends and new logs
		for ctx.Err() == nil {
			if err := l.Check(ctx); err != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
				return
			}
		}
	})
	waited := make(chan error, 1)
	go func() { waited <- l.WaitSize(ctx, MainLog, uint64(len(s.m.logs[MainLog].leaves))) }()
	for i := at; i < len(s.entries); i++ {
		s.apply(t, l, i, i+1)
	}
	if err := <-waited; err != nil {
		t.Error(err)
	}
	if err := l.Check(t.Context()); err != nil {
		t.Error(err)
	}
	cancel()
	readers.Wait()
	if err := l.WaitSize(ctx, MainLog, 1<<40); !errors.Is(err, context.Canceled) {
		t.Errorf("WaitSize: %v", err)
	}
	s.compare(t, l)
	mustClose(t, l)
}
