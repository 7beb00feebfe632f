package raftlog

import (
	"fmt"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/hashicorp/raft"
)

// what is in a log, and what comes next.
func contents(t *testing.T, s *Store) string {
	t.Helper()
	logs, err := readAll(s)
	must(t, err)
	return fmt.Sprintf("%s, next %d", span(logs), s.NextIndex())
}

// A log that was reset is empty, and says what comes next, also after it is opened again, from one segment and from many.
func TestReset(t *testing.T) {
	for _, tt := range []struct {
		first, last, next uint64 // first and last of the entries before
		size              int
	}{
		{0, 0, 2, 0},
		{0, 0, 1000, 0},
		{1, 9, 10, 10},
		{1, 9, 1000, 10},
		{1, 9, 5, 10},    // in the middle
		{4, 9, 4, 10},    // just before the first
		{4, 9, 5, 10},    // just the first before it
		{1, 40, 41, 9e3}, // over several segments
		{1, 40, 20, 9e3},
		{1, 40, 7000, 9e3},
	} {
		t.Run(fmt.Sprintf("%d to %d, then %d", tt.first, tt.last, tt.next), func(t *testing.T) {
			fs := vfs.NewMem()
			s := mustOpen(t, testOptions(fs))
			if tt.last > 0 {
				must(t, s.StoreLogs(entries(tt.first, tt.last, 3, tt.size)))
			}
			must(t, s.Reset(tt.next))
			want := fmt.Sprintf("%s, next %d", span(nil), tt.next)
			for range 3 {
				if got := contents(t, s); got != want {
					t.Fatalf("log is %s, want %s", got, want)
				}
				mustClose(t, s)
				s = mustOpen(t, testOptions(fs))
			}
			batch := s.nextBatch
			must(t, s.Reset(tt.next))
			if s.nextBatch != batch {
				t.Error("reset to the same place has written")
			}
			if err := s.Reset(tt.next - 1); err == nil {
				t.Error("reset to an earlier place succeeded")
			}
			must(t, s.StoreLogs(entries(tt.next, tt.next+20, 4, 9e3)))
			must(t, s.DeleteRange(tt.next, tt.next+3))
			mustClose(t, s)
			s = mustOpen(t, testOptions(fs))
			checkLog(t, s, entries(tt.next+4, tt.next+20, 4, 9e3))
			if got := s.NextIndex(); got != tt.next+21 {
				t.Errorf("next is %d", got)
			}
			mustClose(t, s)
		})
	}
}

func TestResetRefuses(t *testing.T) {
	s := mustOpen(t, testOptions(vfs.NewMem()))
	for _, next := range []uint64{0, 1} {
		if err := s.Reset(next); err == nil {
			t.Errorf("reset to %d succeeded", next)
		}
	}
	must(t, s.StoreLogs(entries(5, 9, 1, 1)))
	if err := s.Reset(4); err == nil {
		t.Error("reset to before the first entry succeeded")
	}
	checkLog(t, s, entries(5, 9, 1, 1))
	mustClose(t, s)
	if err := s.Reset(20); err == nil {
		t.Error("reset of a closed log succeeded")
	}
}

// The power goes at each file operation of a reset: what comes up is the log before it or the empty log after it.
func TestResetCrash(t *testing.T) {
	for _, next := range []uint64{5, 30, 31, 500} { // amid the entries, at the last one, behind it, far behind
		for _, unsynced := range []int{0, 50, 100} {
			mem := vfs.NewCrashableMem()
			rng := newRand(next)
			var mu sync.Mutex // the store writes in the background too
			var clones []*vfs.MemFS
			watching := false
			watch := func(on bool) { mu.Lock(); defer mu.Unlock(); watching = on }
			s := mustOpen(t, testOptions(errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
				mu.Lock()
				defer mu.Unlock()
				if watching {
					clones = append(clones, mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: unsynced, RNG: rng}))
				}
				return nil
			}))))
			must(t, s.StoreLogs(entries(1, 30, 2, 4000)))
			before := contents(t, s)
			watch(true)
			must(t, s.Reset(next))
			watch(false)
			after := contents(t, s)
			clones = append(clones, mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: unsynced, RNG: rng}))
			mustClose(t, s)
			if len(clones) < 3 {
				t.Fatalf("%d file operations: this test tests nothing", len(clones)-1)
			}
			for i, disk := range clones {
				c, err := Open(testOptions(disk))
				if err != nil {
					t.Fatalf("reset to %d, crash %d of %d: %v", next, i, len(clones), err)
				}
				got := contents(t, c)
				if got != after && (got != before || i == len(clones)-1) {
					t.Errorf("reset to %d, crash %d of %d: log is %s, want %s or, before the end, %s", next, i, len(clones), got, after, before)
				}
				mustClose(t, c)
			}
		}
	}
}

// Both records of a reset are one batch, a damaged one of which is never half believed.
func TestResetIsOneBatch(t *testing.T) {
	fs := vfs.NewMem()
	s := mustOpen(t, testOptions(fs))
	must(t, s.StoreLogs(entries(1, 10, 2, 100)))
	batch := s.nextBatch
	must(t, s.Reset(5))
	if s.nextBatch != batch+1 {
		t.Errorf("a reset took %d batches", s.nextBatch-batch)
	}
	var l raft.Log
	for i := uint64(1); i <= 10; i++ {
		if err := s.GetLog(i, &l); err != raft.ErrLogNotFound {
			t.Errorf("entry %d after the reset: %v", i, err)
		}
	}
	mustClose(t, s)
}
