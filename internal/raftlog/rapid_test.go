package raftlog

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"
	"pgregory.net/rapid"
)

// TestAgainstModel drives a store and a slice through the same calls, clean and unclean stops in between.
func TestAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		fs := vfs.NewCrashableMem()
		s := mustOpen2(t, fs)
		defer func() { _ = s.Close() }()
		var m model
		check := func() {
			got, err := observe(s)
			if err != nil || !got.equal(m) {
				t.Fatalf("store has %v, model %v: %v", got, m, err)
			}
			// The edges of the index.
			first, last := m.bounds()
			for _, i := range []uint64{0, first - 1, last + 1, last + 1000} {
				if first <= i && i <= last && last > 0 {
					continue
				}
				if err := s.GetLog(i, new(raft.Log)); !errors.Is(err, raft.ErrLogNotFound) {
					t.Fatalf("GetLog(%d) of [%d, %d]: %v", i, first, last, err)
				}
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"step": func(t *rapid.T) {
				st := m.next(rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0)))
				if err := st.do(s); err != nil {
					t.Fatalf("%v: %v", st, err)
				}
				m = m.apply(st)
			},
			"delete anything": func(t *rapid.T) {
				first, last := m.bounds()
				lo := rapid.Uint64Range(first-min(first, 2), last+2).Draw(t, "min")
				hi := rapid.Uint64Range(first-min(first, 2), last+2).Draw(t, "max")
				err := s.DeleteRange(lo, hi)
				if hole := last > 0 && lo <= hi && lo > first && hi < last; hole != (err != nil) {
					t.Fatalf("DeleteRange(%d, %d) of [%d, %d]: %v", lo, hi, first, last, err)
				}
				if err == nil && lo <= hi && hi > 0 {
					m = m.apply(step{min: lo, max: hi})
				}
			},
			"gap": func(t *rapid.T) {
				_, last := m.bounds()
				if last == 0 {
					t.Skip("an empty log takes any index")
				}
				if err := s.StoreLog(entry(last+rapid.SampledFrom([]uint64{0, 2, 100}).Draw(t, "gap"), 9, 1)); err == nil {
					t.Fatal("stored an entry that does not follow")
				}
			},
			"reopen": func(t *rapid.T) {
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				s = mustOpen2(t, fs)
			},
			"power cut": func(t *rapid.T) {
				clone := fs.CrashClone(vfs.CrashCloneCfg{})
				_ = s.Close()
				fs = clone
				s = mustOpen2(t, fs)
			},
			"": func(*rapid.T) { check() },
		})
	})
}

func mustOpen2(t *rapid.T, fs vfs.FS) *Store {
	s, err := Open(testOptions(fs))
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	return s
}
