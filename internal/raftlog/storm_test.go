package raftlog

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// full asks for every crash point and every seed instead of a sample.
var full = os.Getenv("PROVLEDGER_STORM") == "full"

// storm runs a script on a crashable file system and cuts the power at file operations.
type storm struct {
	seed   uint64
	steps  int
	every  int                      // crash at every n-th file operation
	only   func(op errorfs.Op) bool // which file operations count, nil = all that change something
	tamper func(vfs.FS) vfs.FS      // breaks the store under test, nil = intact

	mem     *vfs.MemFS
	mu      sync.Mutex
	rng     *rand.Rand
	acked   model
	pending *step
	ops     int
	clones  int
	stopped bool
}

// run goes on to the first violation.
func (st *storm) run() (violations []error) {
	st.mem = vfs.NewCrashableMem()
	st.rng = rand.New(rand.NewPCG(st.seed, 1))
	report := func(err error) {
		violations = append(violations, err)
		st.stopped = true
	}
	var fs vfs.FS = errorfs.Wrap(st.mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		st.before(op, report)
		return nil
	}))
	if st.tamper != nil {
		fs = st.tamper(fs)
	}
	script := rand.New(rand.NewPCG(st.seed, 2))
	s, err := Open(testOptions(fs))
	if err != nil {
		return append(violations, err)
	}
	defer func() { _ = s.Close() }() // after a violation; else it is closed below
	m := model{}
	for i := 0; i < st.steps && !st.stop(); i++ {
		next := m.next(script)
		st.mu.Lock()
		st.pending = &next
		st.mu.Unlock()
		if err := next.do(s); err != nil {
			report(fmt.Errorf("step %d, %v: %w", i, next, err))
			break
		}
		m = m.apply(next)
		st.mu.Lock()
		st.acked, st.pending = m, nil
		st.mu.Unlock()
		if script.IntN(40) == 0 { // a clean stop in between
			if err := s.Close(); err != nil {
				report(err)
				return violations
			}
			if s, err = Open(testOptions(fs)); err != nil {
				report(fmt.Errorf("step %d: reopen: %w", i, err))
				return violations
			}
			if got, err := observe(s); err != nil || !got.equal(m) {
				report(fmt.Errorf("step %d: reopened with %v, want %v: %v", i, got, m, err))
			}
		}
	}
	if err := s.Close(); err != nil && !st.stop() {
		report(err)
	}
	return violations
}

func (st *storm) stop() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.stopped
}

// before is called before each operation of the store on its file system, from any of its goroutines.
func (st *storm) before(op errorfs.Op, report func(error)) {
	if op.Kind.ReadOrWrite() == errorfs.OpIsRead || st.only != nil && !st.only(op) {
		return
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	st.ops++
	if st.stopped || st.ops%st.every != 0 {
		return
	}
	allowed := []model{st.acked}
	if st.pending != nil {
		allowed = st.acked.partial(*st.pending)
	}
	for _, percent := range []int{0, 50, 100} {
		clone := st.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: st.rng})
		st.clones++
		if err := checkClone(clone, allowed, st.tamper, st.rng, st.clones%16 == 0); err != nil {
			report(fmt.Errorf("seed %d, crash at file operation %d (%v of %s) keeping %d %%, pending %v: %w",
				st.seed, st.ops, op.Kind, op.Path, percent, st.pending, err))
			return
		}
	}
}

// checkClone opens the disk as a power cut left it. It must hold one of the allowed states, keep what it showed through
// another power cut, and go on working. With nested, the power is cut at each operation of the recovery as well.
func checkClone(disk *vfs.MemFS, allowed []model, tamper func(vfs.FS) vfs.FS, rng *rand.Rand, nested bool) error {
	if nested {
		if err := checkNested(disk, allowed, rng); err != nil {
			return err
		}
	}
	var fs vfs.FS = disk
	if tamper != nil {
		fs = tamper(fs)
	}
	s, err := Open(testOptions(fs))
	if err != nil {
		return err
	}
	defer s.Close() // after a violation; else it is closed below
	got, err := observe(s)
	if err != nil {
		return err
	}
	found := false
	for _, m := range allowed {
		found = found || got.equal(m)
	}
	if !found {
		return fmt.Errorf("found %v, acknowledged was %v", got, allowed[0])
	}
	again := disk.CrashClone(vfs.CrashCloneCfg{})
	// Go on, through a roll-over.
	next := got
	for i := range 3 {
		_, last := next.bounds()
		st := step{store: entries(last+1, last+2, next.term+1, 100+20000*i)}
		if err := st.do(s); err != nil {
			return fmt.Errorf("go on: %w", err)
		}
		next = next.apply(st)
	}
	if err := s.Close(); err != nil {
		return err
	}
	if err := expect(fs, next); err != nil {
		return fmt.Errorf("after going on: %w", err)
	}
	if err := expect(again, got); err != nil {
		return fmt.Errorf("after a second power cut: %w", err)
	}
	return nil
}

// checkNested cuts the power at each operation of a recovery.
func checkNested(disk *vfs.MemFS, allowed []model, rng *rand.Rand) error {
	base := disk.CrashClone(vfs.CrashCloneCfg{})
	var mu sync.Mutex
	var first error
	s, err := Open(testOptions(errorfs.Wrap(base, errorfs.InjectorFunc(func(op errorfs.Op) error {
		mu.Lock()
		defer mu.Unlock()
		if op.Kind.ReadOrWrite() == errorfs.OpIsWrite && first == nil {
			clone := base.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: rng})
			if err := checkClone(clone, allowed, nil, rng, false); err != nil {
				first = fmt.Errorf("crash during recovery at %v of %s: %w", op.Kind, op.Path, err)
			}
		}
		return nil
	}))))
	if err != nil {
		return err
	}
	err = s.Close()
	mu.Lock()
	defer mu.Unlock()
	if first != nil {
		return first
	}
	return err
}

// expect opens a disk and compares.
func expect(fs vfs.FS, want model) error {
	s, err := Open(testOptions(fs))
	if err != nil {
		return err
	}
	got, err := observe(s)
	if cerr := s.Close(); err == nil {
		err = cerr
	}
	if err == nil && !got.equal(want) {
		err = fmt.Errorf("found %v, want %v", got, want)
	}
	return err
}

// Operations that some breaches show at alone: those on directories, and the sync of a batch.
func atDirectory(op errorfs.Op) bool {
	return op.Path == "node" || op.Path == "node/raft" || op.Path == "node/raft"+newSuffix
}
func atBatch(op errorfs.Op) bool {
	return op.Kind == errorfs.OpFileSyncData && isSegment(path.Base(op.Path))
}

func TestCrashStorm(t *testing.T) {
	seeds, steps, every := uint64(2), 120, 5
	if testing.Short() {
		seeds, steps, every = 1, 60, 7
	}
	if full {
		seeds, steps, every = 6, 200, 1
	}
	for seed := range seeds {
		for _, st := range []*storm{
			{seed: seed, steps: steps, every: every},
			{seed: seed, steps: steps, every: max(1, every/3), only: atBatch},
			{seed: seed, steps: steps / 2, every: 1, only: atDirectory},
		} {
			for _, err := range st.run() {
				t.Error(err)
			}
			t.Logf("seed %d: %d file operations, %d clones", seed, st.ops, st.clones)
		}
	}
}

// TestKillThenPowerCut kills the process in the middle of a write, of which only the first blocks reach the page cache,
// and never the disk. The next process sees them. What it then shows must survive a power cut at once, and one after the
// mark has followed.
func TestKillThenPowerCut(t *testing.T) {
	kills := 60
	if full {
		kills = 600
	}
	for kill := range kills {
		mem := vfs.NewCrashableMem()
		var mu sync.Mutex
		writes, dead := 0, false
		errKilled := errors.New("killed")
		fs := &tamperFS{FS: mem,
			write: func(f vfs.File, name string, p []byte, off int64) (int, error) {
				mu.Lock()
				defer mu.Unlock()
				if dead {
					return 0, errKilled
				}
				if writes++; writes <= kill {
					return f.WriteAt(p, off)
				}
				dead = true
				n := kill % (len(p)/blockSize + 1) * blockSize
				if _, err := f.WriteAt(p[:n], off); err != nil {
					return 0, err
				}
				return n, errKilled
			},
			sync: func(f vfs.File, name string, dir bool) error {
				mu.Lock()
				defer mu.Unlock()
				if dead {
					return errKilled
				}
				return f.Sync()
			}}
		rng := newRand(uint64(kill % 7))
		var m model
		allowed := []model{m}
		s, err := Open(testOptions(fs))
		for err == nil {
			st := m.next(rng)
			allowed = m.partial(st)
			if err = st.do(s); err == nil {
				m = m.apply(st)
				allowed = []model{m}
			}
		}
		if s != nil {
			_ = s.Close()
		}
		if !errors.Is(err, errKilled) {
			t.Fatalf("kill %d: %v", kill, err)
		}

		s, err = Open(testOptions(mem))
		if err != nil {
			t.Errorf("kill %d: %v", kill, err)
			continue
		}
		got, err := observe(s)
		if err != nil || !slices.ContainsFunc(allowed, got.equal) {
			t.Errorf("kill %d: found %v, acknowledged was %v: %v", kill, got, m, err)
		}
		atOnce := mem.CrashClone(vfs.CrashCloneCfg{})
		waitMarked(t, s)
		later := mem.CrashClone(vfs.CrashCloneCfg{})
		mustClose(t, s)
		for _, disk := range []*vfs.MemFS{atOnce, later} {
			if err := expect(disk, got); err != nil {
				t.Errorf("kill %d, then a power cut: %v", kill, err)
			}
		}
	}
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 4)) }
