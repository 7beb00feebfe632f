package consensus

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/hashicorp/raft"

	"github.com/provledger/provledger/internal/raftlog"
)

func openSegments(t *testing.T, fs vfs.FS) *raftlog.Store {
	t.Helper()
	s, err := raftlog.Open(raftlog.Options{FS: fs, Dir: "raft", SegmentBytes: 64 << 10, Logger: testLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// describe says what a log holds: its ends, what comes next, and the current term.
func describe(t *testing.T, s *raftlog.Store) string {
	t.Helper()
	first, err1 := s.FirstIndex()
	last, err2 := s.LastIndex()
	term, err3 := s.GetUint64([]byte("CurrentTerm"))
	if err3 != nil && err3.Error() == "not found" {
		err3 = nil
	}
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d to %d, next %d, term %d", first, last, s.NextIndex(), term)
}

func TestResetLog(t *testing.T) {
	for name, tt := range map[string]struct {
		emptied uint64     // index that the log was emptied for before
		entries [][]uint64 // from, to, term
		term    uint64     // current term, 0: never set
		at      Position
		want    string // the log after it; "" for ErrLogMismatch and a log as it was
	}{
		"new node":                     {0, nil, 0, Position{Index: 7, Term: 3}, "0 to 0, next 8, term 3"},
		"ends before":                  {0, [][]uint64{{1, 5, 1}}, 2, Position{Index: 7, Term: 3}, "0 to 0, next 8, term 3"},
		"ends before, in a later term": {0, [][]uint64{{1, 5, 1}}, 9, Position{Index: 7, Term: 3}, "0 to 0, next 8, term 9"},
		"ends at it":                   {0, [][]uint64{{1, 5, 1}, {6, 7, 3}}, 3, Position{Index: 7, Term: 3}, "1 to 7, next 8, term 3"},
		"goes on behind it":            {0, [][]uint64{{1, 5, 1}, {6, 9, 3}}, 4, Position{Index: 7, Term: 3}, "1 to 9, next 10, term 4"},
		"other term at it":             {0, [][]uint64{{1, 5, 1}, {6, 7, 2}}, 2, Position{Index: 7, Term: 3}, "0 to 0, next 8, term 3"},
		"other term at it and on":      {0, [][]uint64{{1, 5, 1}, {6, 20, 2}}, 2, Position{Index: 7, Term: 3}, "0 to 0, next 8, term 3"},
		"begins right behind it":       {8, [][]uint64{{8, 9, 3}}, 3, Position{Index: 7, Term: 3}, "8 to 9, next 10, term 3"},
		"begins later":                 {9, [][]uint64{{9, 12, 3}}, 3, Position{Index: 7, Term: 3}, ""},
		"was emptied for it":           {8, nil, 3, Position{Index: 7, Term: 3}, "0 to 0, next 8, term 3"},
		"was emptied for one before":   {5, nil, 3, Position{Index: 7, Term: 3}, "0 to 0, next 8, term 3"},
		"was emptied for one later":    {9, nil, 3, Position{Index: 7, Term: 3}, ""},
		"no position":                  {0, [][]uint64{{1, 5, 1}}, 1, Position{}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			fs := vfs.NewMem()
			s := openSegments(t, fs)
			var err error
			if tt.emptied > 0 {
				err = s.Reset(tt.emptied)
			}
			for _, e := range tt.entries {
				for i := e[0]; i <= e[1]; i++ {
					err = errors.Join(err, s.StoreLog(&raft.Log{Index: i, Term: e[2]}))
				}
			}
			if tt.term > 0 {
				err = errors.Join(err, s.SetUint64([]byte("CurrentTerm"), tt.term))
			}
			if err != nil {
				t.Fatal(err)
			}
			before := describe(t, s)
			for range 2 { // it may be called again, after the log was opened again too
				err := ResetLog(s, tt.at)
				want := tt.want
				if want == "" {
					if !errors.Is(err, ErrLogMismatch) {
						t.Errorf("error %v, want ErrLogMismatch", err)
					}
					want = before
				} else if err != nil {
					t.Fatal(err)
				}
				if got := describe(t, s); got != want {
					t.Errorf("log is %s, want %s", got, want)
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				s = openSegments(t, fs)
			}
			if tt.want != "" {
				if err := checkLog(s, tt.at); err != nil {
					t.Errorf("the log does not fit the machine: %v", err)
				}
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// The power goes at each file operation of ResetLog. The machine is at its new position by then. What comes up starts, or
// is refused until ResetLog is called again, and starts then.
func TestResetLogCrash(t *testing.T) {
	at := Position{Index: 40, Term: 5}
	for _, last := range []uint64{30, 60} { // the old log ends before the position, or goes on with entries of another term
		for _, unsynced := range []int{0, 50, 100} {
			mem := vfs.NewCrashableMem()
			var mu sync.Mutex // the log writes in the background too
			var clones []*vfs.MemFS
			watching := false
			watch := func(on bool) { mu.Lock(); defer mu.Unlock(); watching = on }
			fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(errorfs.Op) error {
				mu.Lock()
				defer mu.Unlock()
				if watching {
					clones = append(clones, mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: unsynced, RNG: rand.New(rand.NewPCG(last, 1))}))
				}
				return nil
			}))
			s := openSegments(t, fs)
			for i := uint64(1); i <= last; i++ {
				if err := s.StoreLog(&raft.Log{Index: i, Term: 2, Data: make([]byte, 3000)}); err != nil {
					t.Fatal(err)
				}
			}
			watch(true)
			if err := ResetLog(s, at); err != nil {
				t.Fatal(err)
			}
			watch(false)
			clones = append(clones, mem.CrashClone(vfs.CrashCloneCfg{}))
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			refused := 0
			for i, disk := range clones {
				s := openSegments(t, disk)
				if err := checkLog(s, at); err != nil {
					refused++
					if !errors.Is(err, ErrLogMismatch) || i == len(clones)-1 {
						t.Errorf("crash %d of %d: %v", i, len(clones), err)
					}
					if err := ResetLog(s, at); err != nil {
						t.Errorf("crash %d of %d: %v", i, len(clones), err)
					}
				}
				if err := checkLog(s, at); err != nil {
					t.Errorf("crash %d of %d, completed: %v", i, len(clones), err)
				}
				if got, want := describe(t, s), "0 to 0, next 41, term 5"; got != want {
					t.Errorf("crash %d of %d: log is %s, want %s", i, len(clones), got, want)
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			}
			if refused == 0 || refused == len(clones) {
				t.Errorf("%d of %d clones were refused: this test tests nothing", refused, len(clones))
			}
		}
	}
}

// An empty log is believed only if it says that it was emptied to continue at the machine's position (H9 i).
func TestCheckEmptyLog(t *testing.T) {
	for next, fits := range map[uint64]bool{0: false, 39: false, 40: false, 41: true, 42: false} {
		s := openSegments(t, vfs.NewMem())
		if next > 0 {
			if err := s.Reset(next); err != nil {
				t.Fatal(err)
			}
		}
		err := checkLog(s, Position{Index: 40, Term: 1})
		if fits != (err == nil) || err != nil && !errors.Is(err, ErrLogMismatch) {
			t.Errorf("log that continues at %d, machine at 40: %v", next, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	s := openSegments(t, vfs.NewMem())
	if err := checkLog(s, Position{}); err != nil {
		t.Errorf("new node: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := checkLog(raft.NewInmemStore(), Position{Index: 1, Term: 1}); !errors.Is(err, ErrLogMismatch) {
		t.Errorf("empty log without a record: %v, want ErrLogMismatch", err)
	}
}
