package ledger

import (
	"encoding/json"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"path"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/provledger/provledger/internal/merkle"
)

// A quarantine is told once, whoever finds the damage and however often, and at once to whoever asks too late.
func TestOnQuarantine(t *testing.T) {
	_, l := simple(t, vfs.NewMem(), 5)
	defer mustClose(t, l)
	var told atomic.Int32
	l.OnQuarantine(func(err error) {
		if told.Add(1); !errors.Is(err, ErrQuarantined) || !errors.Is(err, ErrCorrupt) {
			t.Errorf("told %v", err)
		}
		if l.Quarantined() == nil || len(l.Evidence()) == 0 { // no lock is held
			t.Error("told before it is so")
		}
	})
	done := make(chan struct{})
	for range 4 {
		go func() {
			_ = l.found(corrupt("test"))
			done <- struct{}{}
		}()
	}
	for range 4 {
		<-done
	}
	if told.Load() != 1 {
		t.Errorf("told %d times", told.Load())
	}
	late := 0
	l.OnQuarantine(func(error) { late++ })
	if late != 1 {
		t.Errorf("told %d times who came late", late)
	}
}

// Somebody else finds this node damaged while a call of Apply is under way: nothing of the call is written, and it says so.
func TestQuarantineDuringApply(t *testing.T) {
	s, l := simple(t, vfs.NewMem(), 5)
	defer mustClose(t, l)
	before, stored := l.Applied(), dump(t, l)
	at := len(s.entries)
	s.add(s.good(3).encoded())
	s.add(s.good(3).encoded())
	w := l.newWriter(0)
	if o, err := w.command(&s.entries[at]); err != nil || o.Decision != Accepted {
		t.Fatal(o, err)
	}
	l.enterQuarantine(corrupt("found by a reader"))
	w.commit()
	if !w.lost || !errors.Is(w.stopped, ErrQuarantined) {
		t.Errorf("lost %v, stopped %v", w.lost, w.stopped)
	}
	for i, r := range l.Apply(s.entries[at:]) {
		if err, _ := r.(error); !errors.Is(err, ErrQuarantined) {
			t.Errorf("entry %d: %v", i, r)
		}
	}
	if l.Applied() != before || !maps.Equal(stored, dump(t, l)) {
		t.Error("something was written")
	}
}

// The same through Apply itself, at the last moment: when the store is about to be written.
func TestApplyInQuarantineSaysSo(t *testing.T) {
	s, l := simple(t, vfs.NewMem(), 5)
	defer mustClose(t, l)
	before := l.Applied()
	at := len(s.entries)
	s.add(s.good(3).encoded())
	l.storing.Lock()
	results := make(chan []any)
	go func() { results <- l.Apply(s.entries[at:]) }()
	for { // until Apply has decided and waits
		if d, ok := l.recent.get(s.entries[at].Index); ok && d == s.m.digest {
			break
		}
	}
	l.enterQuarantine(corrupt("found by a reader"))
	l.storing.Unlock()
	if err, _ := (<-results)[0].(error); !errors.Is(err, ErrQuarantined) {
		t.Errorf("result %v", err)
	}
	if l.Applied() != before {
		t.Error("applied advanced")
	}
}

// What is written down about a quarantine shows an edge in memory that is not that of the head.
func TestEvidence(t *testing.T) {
	s, l := simple(t, vfs.NewMem(), 300)
	defer mustClose(t, l)
	bad := flippedEdge(s, MainLog)
	l.edges[MainLog] = bad
	l.enterQuarantine(corrupt("test"))
	var e evidence
	if err := json.Unmarshal(l.Evidence(), &e); err != nil {
		t.Fatal(err)
	}
	main := e.Logs[MainLog]
	if !strings.Contains(e.Reason, "damaged: test") || e.Cluster != testCluster.String() || e.Applied.Index != s.m.index || e.Applied.Digest != s.m.digest.String() || e.Version != 1 {
		t.Errorf("%+v", e)
	}
	if main.Name != MainName || main.Size != 301 || main.Root != s.m.head(MainLog).Root.String() || main.EdgeRoot != bad.Root().String() {
		t.Errorf("%+v", main)
	}
	if n := len(e.Recent); n != len(s.entries) || e.Recent[n-1].Digest != s.m.digest.String() {
		t.Errorf("recent %+v", e.Recent)
	}
}

// flipFile flips one bit of a file.
func flipFile(t *testing.T, fs vfs.FS, name string, bit int64) {
	t.Helper()
	f, err := fs.OpenReadWrite(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, bit/8); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	b[0] ^= 1 << (bit % 8)
	if _, err := f.WriteAt(b, bit/8); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestFlippedBitsOnDisk flips bits of the state store's files, of a store that is closed and of one that is open. Such a store is refused
// with ErrCorrupt, or it opens and serves and applies either what was written or nothing: a read that meets the damage quarantines. It never
// ends the process, hangs or gives other bytes.
func TestFlippedBitsOnDisk(t *testing.T) {
	flips := 100
	if testing.Short() {
		flips = 40
	}
	mem := vfs.NewCrashableMem()
	o := testOptions(mem)
	s := newScript(9)
	s.bootstrap()
	l := mustOpen(t, o)
	s.apply(t, l, 0, 1)
	for range 6 { // several tables
		at := len(s.entries)
		s.add(s.good(300).encoded())
		s.apply(t, l, at, len(s.entries))
		if err := l.Flush(t.Context(), s.m.index); err != nil {
			t.Fatal(err)
		}
	}
	applied := len(s.entries)
	s.add(s.good(300).encoded())
	mustClose(t, l)
	rng := rand.New(rand.NewPCG(9, 9))
	refused, quarantined, harmless, older := 0, 0, 0, 0
	for i := range flips {
		fs := mem.CrashClone(vfs.CrashCloneCfg{})
		names, err := fs.List("state")
		if err != nil {
			t.Fatal(err)
		}
		name := path.Join("state", names[rng.IntN(len(names))])
		info, err := fs.Stat(name)
		if err != nil || info.Size() == 0 || info.IsDir() || strings.HasSuffix(name, "LOCK") {
			continue
		}
		bit := rng.Int64N(info.Size() * 8)
		open := i%2 == 0
		o.FS = fs
		if !open {
			flipFile(t, fs, name, bit)
		}
		l, err := Open(o)
		if err != nil {
			// Pebble's own format files are text: a version that it does not know is no rot to it.
			if !errors.Is(err, ErrCorrupt) && !strings.Contains(name, "marker.") && !strings.Contains(name, "OPTIONS") {
				t.Errorf("bit %d of %s: %v", bit, name, err)
			}
			refused++
			continue
		}
		if open {
			flipFile(t, fs, name, bit)
		}
		if strings.Contains(name, "MANIFEST") && l.Applied().Index < s.entries[applied-1].Index {
			older++ // H13: the raft log shows it, which begins too late for that
			if err := l.Abandon(); err != nil {
				t.Error(err)
			}
			continue
		}
		// Read everything, then apply.
		err = l.Entries(MainLog, 0, 1801, true, func(e *Entry) error {
			if string(e.Leaf) != string(s.m.logs[MainLog].leaves[e.Index]) {
				t.Errorf("bit %d of %s: entry %d reads otherwise", bit, name, e.Index)
			}
			return nil
		})
		if tree, terr := l.Tree(MainLog); terr == nil && err == nil {
			for n := range uint64(7) {
				if _, err = tree.ReadTile(merkle.TileID{Index: n}, 256); err != nil {
					break
				}
			}
		}
		if err != nil && l.Quarantined() == nil {
			t.Errorf("bit %d of %s: reads give %v, and nobody is told", bit, name, err)
		}
		r := l.Apply(s.entries[applied:])[0]
		switch l.Quarantined() {
		case nil:
			if r, ok := r.(*Outcome); !ok || r.Decision != Accepted {
				t.Errorf("bit %d of %s: %v", bit, name, r)
			}
			harmless++
		default:
			quarantined++
			if err, _ := r.(error); err != nil && !errors.Is(err, ErrQuarantined) {
				t.Errorf("bit %d of %s: %v", bit, name, r)
			}
		}
		if err := l.Abandon(); err != nil {
			t.Log(err)
		}
	}
	t.Logf("%d refused, %d quarantined, %d harmless, %d older", refused, quarantined, harmless, older)
	if quarantined == 0 || refused == 0 && !testing.Short() {
		t.Error("this test tests nothing")
	}
}
