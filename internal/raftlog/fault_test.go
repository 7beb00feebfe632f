package raftlog

import (
	"errors"
	"fmt"
	"path"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/hashicorp/raft"
)

// death is a Die for tests: it keeps the reasons and ends the goroutine, so that it never returns to the caller.
type death struct {
	mu      sync.Mutex
	reasons []string
	errs    []error
}

func (d *death) die(reason string, err error) {
	d.mu.Lock()
	d.reasons = append(d.reasons, reason)
	d.errs = append(d.errs, err)
	d.mu.Unlock()
	runtime.Goexit()
}

func (d *death) get() ([]string, []error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.reasons), slices.Clone(d.errs)
}

// alive runs f in a goroutine that Die may end, and tells whether it came back.
func alive(f func()) bool {
	returned := false
	var wg sync.WaitGroup
	wg.Go(func() { f(); returned = true })
	wg.Wait()
	return returned
}

// guarded opens a store behind a guard. Everything below or at durable is durable, below or at applied applied.
func guarded(t *testing.T, fs vfs.FS, d *death, durable, applied uint64) (*Store, *Guarded) {
	t.Helper()
	o := testOptions(fs)
	o.Die = d.die
	s := mustOpen(t, o)
	g := Guard(s, GuardOptions{
		Durable: func() uint64 { return durable }, Applied: func() uint64 { return applied },
		Warn: time.Second, Kill: 5 * time.Second, Die: d.die, Logger: quiet,
	})
	return s, g
}

var errDisk = errors.New("disk broke")

// TestFailedWrites fails each write and each sync of the append, delete, vote and term paths, both when nothing was
// written and when everything was. The guarded store must die at once and never touch the file again; what is found
// afterwards is the state before or after the call.
func TestFailedWrites(t *testing.T) {
	before := model{}.apply(step{store: entries(1, 10, 1, 2000)}).apply(step{term: 1})
	for _, st := range []step{
		{store: entries(11, 13, 1, 3000)},
		{store: entries(11, 20, 1, 9000)}, // rolls over
		{min: 8, max: 10},
		{min: 1, max: 5},
		{term: 7},
		{voteTerm: 7, cand: "me"},
	} {
		for _, kind := range []errorfs.OpKind{errorfs.OpFileWriteAt, errorfs.OpFileSyncData} {
			for nth := 1; nth <= 2; nth++ {
				for _, written := range []bool{false, true} {
					name := fmt.Sprintf("%v/%v/%d/written=%v", st, map[bool]string{true: "write", false: "sync"}[kind == errorfs.OpFileWriteAt], nth, written)
					t.Run(name, func(t *testing.T) { failedWrite(t, before, st, kind, nth, written) })
				}
			}
		}
	}
}

func failedWrite(t *testing.T, before model, st step, kind errorfs.OpKind, nth int, written bool) {
	mem := vfs.NewCrashableMem()
	var armed atomic.Bool
	var failed, touched atomic.Int32
	// hit says whether this operation is the one to fail; what follows on the files of the path is counted.
	hit := func(k errorfs.OpKind, name string) bool {
		if !armed.Load() || !isSegment(name) && name != voteName {
			return false
		}
		if failed.Load() > 0 {
			if k != errorfs.OpRemove { // of a spare that could not be made
				touched.Add(1)
			}
			return false
		}
		if k != kind {
			return false
		}
		nth--
		if nth == 0 {
			failed.Add(1)
			return true
		}
		return false
	}
	var fs vfs.FS
	if written {
		fs = &tamperFS{FS: mem, dataOnly: true,
			write: func(f vfs.File, name string, p []byte, off int64) (int, error) {
				n, err := f.WriteAt(p, off)
				if hit(errorfs.OpFileWriteAt, name) {
					return n, errDisk
				}
				return n, err
			},
			sync: func(f vfs.File, name string, dir bool) error {
				err := f.Sync()
				if !dir && hit(errorfs.OpFileSyncData, name) {
					return errDisk
				}
				return err
			}}
	} else {
		fs = errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if hit(op.Kind, path.Base(op.Path)) {
				return errDisk
			}
			return nil
		}))
	}
	var d death
	s, g := guarded(t, fs, &d, 100, 7)
	for _, st := range []step{{store: before.log}, {term: 1}} {
		must(t, st.do(g))
	}
	s.spares.mu.Lock()
	running := s.spares.running
	s.spares.mu.Unlock()
	if running != nil {
		<-running // the spare in the background is not the path under test
	}
	armed.Store(true)
	came := alive(func() {
		if err := st.do(g); err != nil {
			t.Errorf("the guard let %v through", err)
		}
	})
	if failed.Load() == 0 {
		if !came {
			t.Fatal("died without a failure")
		}
		mustClose(t, s)
		t.Skipf("the call has fewer such operations")
	}
	if came {
		t.Fatal("survived")
	}
	_, errs := d.get()
	if len(errs) != 1 || !errors.Is(errs[0], errDisk) {
		t.Fatalf("died of %v", errs)
	}
	// Nothing goes on after the failure, whoever asks.
	for _, again := range []step{{store: entries(11, 11, 1, 1)}, {min: 10, max: 10}, {term: 9}, {voteTerm: 9, cand: "x"}} {
		if err := again.do(s); !errors.Is(err, errDisk) {
			t.Errorf("%v after the failure: %v", again, err)
		}
	}
	must(t, s.Close())
	if n := touched.Load(); n != 0 {
		t.Errorf("%d operations after the failure", n)
	}
	for _, percent := range []int{0, 50, 100} {
		clone := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: newRand(uint64(percent))})
		if err := checkClone(clone, before.partial(st), nil, newRand(1), false); err != nil {
			t.Errorf("keeping %d %%: %v", percent, err)
		}
	}
}

// TestMarkFailureDies: a mark that cannot be written ends the process although no call failed.
func TestMarkFailureDies(t *testing.T) {
	var armed atomic.Bool
	fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if armed.Load() && path.Base(op.Path) == markName && op.Kind == errorfs.OpFileWriteAt {
			return errDisk
		}
		return nil
	}))
	died := make(chan error, 1)
	o := testOptions(fs)
	o.Die = func(_ string, err error) { died <- err; runtime.Goexit() }
	s := mustOpen(t, o)
	armed.Store(true)
	must(t, s.StoreLog(entry(1, 1, 10)))
	if err := <-died; !errors.Is(err, errDisk) {
		t.Fatalf("died of %v", err)
	}
	if err := s.StoreLog(entry(2, 1, 10)); !errors.Is(err, errDisk) {
		t.Fatalf("StoreLog after the failure: %v", err)
	}
	must(t, s.Close())
}

// TestMarkHangDies: nobody waits for the mark, so a mark that hangs must be noticed by itself.
func TestMarkHangDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		var armed atomic.Bool
		fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
			if armed.Load() && path.Base(op.Path) == markName && op.Kind == errorfs.OpFileSyncData {
				<-release
			}
			return nil
		}))
		var d death
		o := testOptions(fs)
		o.Die = d.die
		s := mustOpen(t, o)
		armed.Store(true)
		must(t, s.StoreLog(entry(1, 1, 10)))
		time.Sleep(markHang - time.Millisecond)
		if reasons, _ := d.get(); len(reasons) > 0 {
			t.Fatalf("died early: %v", reasons)
		}
		time.Sleep(2 * time.Second)
		if reasons, _ := d.get(); len(reasons) != 1 {
			t.Fatalf("died %d times: %v", len(reasons), reasons)
		}
		close(release)
		must(t, s.Close())
	})
}

// TestMarkKeepsUp: the mark is at most one interval behind, without a call that waits for it, and then stands in both
// slots; an idle store writes nothing.
func TestMarkKeepsUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var writes atomic.Int32
		fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
			if path.Base(op.Path) == markName && op.Kind == errorfs.OpFileWriteAt {
				writes.Add(1)
			}
			return nil
		}))
		o := testOptions(fs)
		o.MarkInterval = DefaultMarkInterval
		s := mustOpen(t, o)
		marked := func() (n int, highest uint64) {
			for slot := range 2 {
				b, err := readSlot(s.mark.file, slot)
				must(t, err)
				if r, ok := decodeMark(b); ok {
					if r.batch > highest {
						n, highest = 0, r.batch
					}
					if r.batch == highest {
						n++
					}
				}
			}
			return n, highest
		}
		for i := uint64(1); i <= 100; i++ {
			must(t, s.StoreLog(entry(i, 1, 10)))
			time.Sleep(7 * time.Millisecond)
			behind := (i - 1) * 7 // ms since batch 1 was acknowledged; batch b at 7(b-1)
			if _, b := marked(); behind >= 100 && b*7 < behind-100 {
				t.Fatalf("batch %d acknowledged, mark at %d", i, b)
			}
		}
		time.Sleep(2 * DefaultMarkInterval)
		synctest.Wait()
		if n, b := marked(); n != 2 || b != 100 {
			t.Fatalf("mark at %d in %d slots, want 100 in both", b, n)
		}
		idle := writes.Load()
		time.Sleep(time.Hour)
		synctest.Wait()
		mustClose(t, s)
		if n := writes.Load(); n != idle {
			t.Errorf("%d mark writes while idle", n-idle)
		}
	})
}

// TestNoSpace: a full disk shows when a segment is made, leaves no partial file and refuses the append that needs it;
// once there is room the append works.
func TestNoSpace(t *testing.T) {
	for _, kind := range []errorfs.OpKind{errorfs.OpOpen, errorfs.OpFileWrite, errorfs.OpFileSync, errorfs.OpOpenDir} {
		mem := vfs.NewCrashableMem()
		var fullDisk atomic.Bool
		fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
			base := path.Base(op.Path)
			if fullDisk.Load() && op.Kind == kind && (isSegment(base) && base != slotName(1) || base == "raft") {
				return syscall.ENOSPC
			}
			return nil
		}))
		s := mustOpen(t, testOptions(fs))
		fullDisk.Store(true)
		var err error
		var m model
		for i := uint64(1); err == nil && i < 20; i++ {
			if err = s.StoreLog(entry(i, 1, 9000)); err == nil {
				m = m.apply(step{store: entries(i, i, 1, 9000)})
			}
		}
		if !errors.Is(err, ErrNoSpace) || !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("append without room: %v", err)
		}
		if len(m.log) != 5 {
			t.Errorf("%d entries fitted one segment, expected 5", len(m.log))
		}
		names, err := mem.List("node/raft")
		must(t, err)
		slices.Sort(names)
		if want := []string{slotName(1), markName, voteName}; !slices.Equal(names, want) {
			t.Errorf("directory holds %v, want %v", names, want)
		}
		fullDisk.Store(false)
		st := step{store: entries(6, 9, 1, 9000)}
		must(t, st.do(s))
		m = m.apply(st)
		mustClose(t, s)
		if err := expect(mem, m); err != nil {
			t.Error(err)
		}
	}
}

// TestLastBatchIsRewritten: a batch behind the mark may have been read from a page cache that never reached the disk.
// Open must write it again, not only sync it, for a failed fsync leaves pages that look clean.
func TestLastBatchIsRewritten(t *testing.T) {
	for batches, want := range map[uint64]int64{1: 0 /* with the header */, 2: 2 * blockSize} {
		mem := vfs.NewCrashableMem()
		o := testOptions(mem)
		o.MarkInterval = time.Hour
		s := mustOpen(t, o)
		for i := range batches {
			must(t, s.StoreLog(entry(i+1, 1, 100)))
		}
		disk := mem.CrashClone(vfs.CrashCloneCfg{})
		mustClose(t, s)
		var segment []int64
		var marks atomic.Int32
		fs := errorfs.Wrap(disk, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind == errorfs.OpFileWriteAt && isSegment(path.Base(op.Path)) {
				segment = append(segment, op.Offset)
			}
			if op.Kind == errorfs.OpFileWriteAt && path.Base(op.Path) == markName {
				marks.Add(1)
			}
			return nil
		}))
		mustClose(t, mustOpen(t, testOptions(fs)))
		if !slices.Equal(segment, []int64{want}) || marks.Load() != 2 {
			t.Errorf("%d batches: wrote to the segment at %v, want %v, and %d marks, want 2", batches, segment, want, marks.Load())
		}
		// Now the mark covers it. Opening writes the mark once more, for it too may have been in a page cache only.
		segment = nil
		marks.Store(0)
		s = mustOpen(t, testOptions(fs))
		time.Sleep(5 * time.Millisecond)
		mustClose(t, s)
		if len(segment) != 0 || marks.Load() != 1 {
			t.Errorf("%d batches: wrote to the segment at %v, and %d marks, want 1, when all was marked", batches, segment, marks.Load())
		}
	}
}

// TestGuardH1: a head delete never reaches beyond the durable index, and is no error.
func TestGuardH1(t *testing.T) {
	var d death
	for _, c := range []struct{ durable, min, max, first uint64 }{
		{6, 1, 9, 7},  // clamped
		{6, 1, 4, 5},  // not reached
		{0, 1, 9, 1},  // nothing durable
		{6, 1, 10, 7}, // the whole log, as raft asks after an install
	} {
		s, g := guarded(t, vfs.NewMem(), &d, c.durable, 10)
		must(t, g.StoreLogs(entries(1, 10, 1, 10)))
		if !alive(func() { must(t, g.DeleteRange(c.min, c.max)) }) {
			t.Fatal("died")
		}
		checkLog(t, s, entries(c.first, 10, 1, 10))
		mustClose(t, s)
	}
}

// TestGuardH18: a suffix with applied entries is never deleted; one without is, the whole log included.
func TestGuardH18(t *testing.T) {
	for _, c := range []struct {
		applied, min uint64
		dies         bool
	}{
		{7, 7, true}, {7, 2, true}, {7, 8, false}, {0, 1, false}, {0, 5, false},
	} {
		var d death
		s, g := guarded(t, vfs.NewMem(), &d, 0, c.applied)
		must(t, g.StoreLogs(entries(1, 10, 1, 10)))
		came := alive(func() { must(t, g.DeleteRange(c.min, 10)) })
		if came == c.dies {
			t.Errorf("applied %d, delete [%d, 10]: came back %v", c.applied, c.min, came)
		}
		want := entries(1, 10, 1, 10)
		if !c.dies {
			want = want[:c.min-1]
		}
		checkLog(t, s, want)
		mustClose(t, s)
	}
}

// TestGuardH6: an error of any call ends the process, a missing entry or key does not.
func TestGuardH6(t *testing.T) {
	var d death
	s, g := guarded(t, vfs.NewMem(), &d, 0, 0)
	must(t, g.StoreLog(entry(1, 1, 10)))
	if !alive(func() {
		if err := g.GetLog(5, new(raft.Log)); err != raft.ErrLogNotFound {
			t.Errorf("GetLog: %v", err)
		}
		// raft compares the text.
		if _, err := g.GetUint64([]byte(keyCurrentTerm)); err == nil || err.Error() != "not found" {
			t.Errorf("GetUint64: %v", err)
		}
		if _, err := g.Get([]byte(keyLastVoteCand)); err == nil || err.Error() != "not found" {
			t.Errorf("Get: %v", err)
		}
	}) {
		t.Fatal("died of a missing entry or key")
	}
	for name, call := range map[string]func(){
		"gap":    func() { _ = g.StoreLog(entry(9, 1, 10)) },
		"key":    func() { _ = g.Set([]byte("other"), nil) },
		"number": func() { _ = g.SetUint64([]byte("other"), 1) },
	} {
		if alive(call) {
			t.Errorf("%s: survived", name)
		}
	}
	mustClose(t, s)
	if alive(func() { _, _ = g.LastIndex() }) {
		t.Error("closed: survived")
	}
}

// TestGuardH7: a call that hangs is warned of, then ends the process.
func TestGuardH7(t *testing.T) {
	for name, call := range map[string]func(g *Guarded){
		"StoreLogs":   func(g *Guarded) { _ = g.StoreLog(entry(2, 1, 10)) },
		"DeleteRange": func(g *Guarded) { _ = g.DeleteRange(1, 1) },
		"SetUint64":   func(g *Guarded) { _ = g.SetUint64([]byte(keyCurrentTerm), 4) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				release := make(chan struct{})
				var armed atomic.Bool
				fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
					if armed.Load() && path.Base(op.Path) != markName && op.Kind == errorfs.OpFileSyncData {
						<-release
					}
					return nil
				}))
				var d death
				s, g := guarded(t, fs, &d, 100, 0)
				must(t, g.StoreLog(entry(1, 1, 10)))
				armed.Store(true)
				go call(g)
				time.Sleep(4900 * time.Millisecond)
				if reasons, _ := d.get(); len(reasons) > 0 {
					t.Fatalf("died early: %v", reasons)
				}
				time.Sleep(time.Second)
				if reasons, _ := d.get(); len(reasons) != 1 {
					t.Fatalf("died %d times: %v", len(reasons), reasons)
				}
				close(release)
				synctest.Wait()
				mustClose(t, s)
			})
		})
	}
}
