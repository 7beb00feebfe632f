package raftlog

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"sort"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// flipStorm fills a store, stops it and flips single bits all over its files. Each time the store must either be refused
// with ErrCorrupt or hold everything. It returns the violations found, the number of refusals and of full openings.
// Writes that drop selects, nil for none, are lost once the store is created.
func flipStorm(t *testing.T, seed uint64, clean bool, drop func(name string, off int64) bool, perFile int) (violations []error, refused, whole int) {
	t.Helper()
	mem := vfs.NewCrashableMem()
	var created atomic.Bool
	fs := &tamperFS{FS: mem, write: func(f vfs.File, name string, p []byte, off int64) (int, error) {
		if drop != nil && created.Load() && drop(name, off) {
			return len(p), nil
		}
		return f.WriteAt(p, off)
	}}
	rng := rand.New(rand.NewPCG(seed, 3))
	s := mustOpen(t, testOptions(fs))
	created.Store(true)
	var m model
	for range 60 {
		st := m.next(rng)
		must(t, st.do(s))
		m = m.apply(st)
	}
	// The last calls change both files that can lie: a vote, and batches over several segments.
	_, last := m.bounds()
	for _, st := range []step{{voteTerm: m.voteTerm + 9, cand: "last"}, {store: entries(last+1, last+16, m.term+1, 9000)}, {store: entries(last+17, last+18, m.term+1, 5000)}} {
		must(t, st.do(s))
		m = m.apply(st)
	}
	if clean {
		mustClose(t, s)
	} else {
		// Long enough for the mark in both slots: 200 ms at the default interval.
		if drop == nil {
			waitMarked(t, s)
		} else {
			time.Sleep(20 * time.Millisecond)
		}
		defer mustClose(t, s)
	}
	disk := mem.CrashClone(vfs.CrashCloneCfg{})
	if err := expect(disk.CrashClone(vfs.CrashCloneCfg{}), m); err != nil {
		t.Fatalf("without a flip: %v", err)
	}
	names, err := disk.List("node/raft")
	must(t, err)
	sort.Strings(names)
	for _, name := range names {
		file := path.Join("node/raft", name)
		data, err := disk.UnsafeGetFileDataBuffer(file)
		must(t, err)
		// All headers and slots, and a sample of the rest.
		var bits []int
		heads := min(2*blockSize, len(data))
		for i := range heads {
			if i%blockSize < 80 && (full || rng.IntN(4) == 0) {
				bits = append(bits, i*8+rng.IntN(8))
			}
		}
		for range perFile {
			bits = append(bits, rng.IntN(len(data)*8))
		}
		for _, bit := range bits {
			trial := disk.CrashClone(vfs.CrashCloneCfg{})
			data, err := trial.UnsafeGetFileDataBuffer(file)
			must(t, err)
			data[bit/8] ^= 1 << (bit % 8)
			err = expect(trial, m)
			switch {
			case err == nil:
				whole++
			case errors.Is(err, ErrCorrupt):
				refused++
			default:
				violations = append(violations, fmt.Errorf("seed %d, clean %v, bit %d of byte %d of %s: %w", seed, clean, bit%8, bit/8, name, err))
				if drop != nil {
					return violations, refused, whole // one is what the caller looks for
				}
			}
		}
	}
	return violations, refused, whole
}

// waitMarked waits until both slots of the mark name the last batch.
func waitMarked(t *testing.T, s *Store) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		want := s.nextBatch - 1
		s.mu.Unlock()
		both := true
		for slot := range 2 {
			b, err := readSlot(s.mark.file, slot)
			must(t, err)
			r, ok := decodeMark(b)
			both = both && ok && r.batch == want
		}
		if both {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the mark did not catch up")
		}
	}
}

func TestFlipStorm(t *testing.T) {
	seeds, perFile := uint64(1), 120
	if testing.Short() {
		perFile = 20
	}
	if full {
		seeds, perFile = 3, 1000
	}
	for seed := range seeds {
		for _, clean := range []bool{true, false} {
			violations, refused, whole := flipStorm(t, seed, clean, nil, perFile)
			for _, err := range violations {
				t.Error(err)
			}
			if refused == 0 || whole == 0 {
				t.Errorf("seed %d: %d refused, %d whole: the storm hit one kind of place only", seed, refused, whole)
			}
			t.Logf("seed %d, clean stop %v: %d refused, %d whole", seed, clean, refused, whole)
		}
	}
}

// TestFlipStormFindsBrokenRules breaks the two rules that protect against damage of what is synced.
func TestFlipStormFindsBrokenRules(t *testing.T) {
	for _, c := range []struct {
		name string
		drop func(name string, off int64) bool
	}{
		{"the second vote slot is never written", func(name string, off int64) bool { return name == voteName && off == slotOffset1 }},
		{"the mark is never written", func(name string, off int64) bool { return name == markName }},
	} {
		t.Run(c.name, func(t *testing.T) {
			for seed := range uint64(3) {
				if found, _, _ := flipStorm(t, seed, false, c.drop, 200); len(found) > 0 {
					t.Logf("found: %v", found[0])
					return
				}
			}
			t.Error("the storm did not notice")
		})
	}
}
