package disk

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// death keeps the reasons of a Die.
type death struct {
	mu      sync.Mutex
	reasons []string
}

func (d *death) die(reason string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.reasons = append(d.reasons, fmt.Sprintf("%s: %v", reason, err))
}

func (d *death) wait(t *testing.T) string {
	t.Helper()
	for range 5000 {
		d.mu.Lock()
		n := len(d.reasons)
		d.mu.Unlock()
		if n > 0 {
			return d.reasons[0]
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("survived")
	return ""
}

func open(t *testing.T, fs vfs.FS, d *death, edit func(*Options)) *Store {
	t.Helper()
	o := Options{FS: fs, Dir: "node/state", Name: "state", MemTableBytes: 256 << 10, BlockCacheBytes: 1 << 20, Logger: slog.New(slog.DiscardHandler), Die: d.die}
	if edit != nil {
		edit(&o)
	}
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func set(t *testing.T, s *Store, key, value string) {
	t.Helper()
	if err := s.DB.Set([]byte(key), []byte(value), pebble.NoSync); err != nil {
		t.Fatal(err)
	}
}

// durable reads what survives, "" if nothing.
func durable(t *testing.T, s *Store, key string) string {
	t.Helper()
	v, ok, err := s.DurableValue([]byte(key))
	if err != nil || !ok && v != nil {
		t.Fatal(v, ok, err)
	}
	return string(v)
}

// What DurableValue says is what a power cut leaves, and a flush makes it so (H1).
func TestDurableValue(t *testing.T) {
	var d death
	mem := vfs.NewCrashableMem()
	s := open(t, mem, &d, nil)
	set(t, s, "kk", "other")
	set(t, s, "k", "1")
	if v := durable(t, s, "k"); v != "" {
		t.Errorf("%q before any flush", v)
	}
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	set(t, s, "k", "2")
	if v := durable(t, s, "k"); v != "1" {
		t.Errorf("%q after a flush at 1", v)
	}
	clone := mem.CrashClone(vfs.CrashCloneCfg{})
	c := open(t, clone, &d, nil)
	if v := durable(t, c, "k"); v != "1" {
		t.Errorf("a power cut left %q", v)
	}
	if err := c.Abandon(); err != nil {
		t.Error(err)
	}
	if err := s.Close(t.Context()); err != nil { // H4
		t.Fatal(err)
	}
	c = open(t, mem.CrashClone(vfs.CrashCloneCfg{}), &d, nil)
	if v := durable(t, c, "k"); v != "2" {
		t.Errorf("a clean stop left %q", v)
	}
	if err := c.Abandon(); err != nil {
		t.Error(err)
	}
}

// A flush that does not end ends with its context; Close, and a goroutine that is left behind, do not panic.
func TestFlushGivesUp(t *testing.T) {
	var d death
	release := make(chan struct{})
	var armed atomic.Bool
	fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if armed.Load() && op.Kind == errorfs.OpCreate && strings.HasSuffix(op.Path, ".sst") {
			<-release
		}
		return nil
	}))
	s := open(t, fs, &d, nil)
	set(t, s, "k", "1")
	armed.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	for _, f := range []func(context.Context) error{s.Flush, s.Close} {
		if err := f(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	}
	close(release)
	armed.Store(false)
	gone, leave := context.WithCancel(t.Context())
	leave()
	for range 50 {
		_ = s.Flush(gone)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// A store that cannot write, or whose disk hangs, ends the process: Pebble itself would try for ever (H5, H7).
func TestDies(t *testing.T) {
	for name, c := range map[string]struct {
		fault error // nil: hang
		want  string
	}{
		"disk full": {syscall.ENOSPC, "cannot write"},
		"I/O error": {syscall.EIO, "cannot write"},
		"other":     {errors.New("odd"), "cannot write"},
		"hang":      {nil, "hangs"},
	} {
		t.Run(name, func(t *testing.T) {
			var d death
			var armed atomic.Bool
			release := make(chan struct{})
			fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
				if !armed.Load() || !strings.HasSuffix(op.Path, ".sst") || op.Kind.ReadOrWrite() == errorfs.OpIsRead {
					return nil
				}
				if c.fault == nil {
					<-release
				}
				return c.fault
			}))
			s := open(t, fs, &d, func(o *Options) { o.SlowWarn, o.SlowKill = 10*time.Millisecond, 50*time.Millisecond })
			set(t, s, "k", "1")
			armed.Store(true)
			go func() { _ = s.Flush(t.Context()) }()
			if why := d.wait(t); !strings.Contains(why, c.want) || c.fault != nil && !strings.Contains(why, c.fault.Error()) {
				t.Error(why)
			}
			armed.Store(false)
			close(release)
			if err := s.Close(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// One hiccup that Pebble's second attempt cures is not the end.
func TestHiccup(t *testing.T) {
	var d death
	var faults atomic.Int32
	fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpCreate && strings.HasSuffix(op.Path, ".sst") && faults.Add(-1) >= 0 {
			return errors.New("hiccup")
		}
		return nil
	}))
	s := open(t, fs, &d, nil)
	for i := range 4 {
		set(t, s, "k", fmt.Sprint(i))
		faults.Store(maxBackgroundErrors - 1)
		if err := s.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if len(d.reasons) > 0 {
		t.Errorf("died of %v", d.reasons)
	}
}

// At whatever file operation of making, filling and opening a store the power goes, and in whatever order directory entries become
// durable, the store opens.
func TestPowerCuts(t *testing.T) {
	var d death
	mem := vfs.NewCrashableMem()
	if err := mem.MkdirAll("node", 0o700); err != nil {
		t.Fatal(err)
	}
	root, err := mem.OpenDir("/")
	if err == nil {
		err = errors.Join(root.Sync(), root.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	clones := uint64(0)
	var mu sync.Mutex
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind.ReadOrWrite() == errorfs.OpIsRead {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		for _, percent := range []int{0, 30, 50, 70, 100} {
			clones++
			clone := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rand.New(rand.NewPCG(clones, 1))})
			s, err := Open(Options{FS: clone, Dir: "node/state", Name: "state", MemTableBytes: 256 << 10, BlockCacheBytes: 1 << 20, Logger: slog.New(slog.DiscardHandler), Die: d.die})
			if err != nil {
				t.Errorf("operation %v of %s, %d %%: %v", op.Kind, op.Path, percent, err)
				continue
			}
			if err := s.Abandon(); err != nil {
				t.Error(err)
			}
		}
		return nil
	}))
	for range 3 {
		s := open(t, fs, &d, nil)
		for i := range 3 {
			set(t, s, fmt.Sprint(i), strings.Repeat("x", 1000))
			if err := s.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if clones < 200 {
		t.Errorf("only %d clones", clones)
	}
	if len(d.reasons) > 0 {
		t.Errorf("died of %v", d.reasons)
	}
}

func TestFreeBytes(t *testing.T) {
	mem := vfs.NewMem()
	if n, err := FreeBytes(mem, "x"); n != ^uint64(0) || err != nil {
		t.Errorf("a disk that cannot say: %d, %v", n, err)
	}
	mem.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: 7, TotalBytes: 9, UsedBytes: 2})
	if n, err := FreeBytes(mem, "x"); n != 7 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if n, err := FreeBytes(vfs.Default, t.TempDir()); n == 0 || n == ^uint64(0) || err != nil {
		t.Errorf("a real disk: %d, %v", n, err)
	}
	if _, err := FreeBytes(vfs.Default, t.TempDir()+"/nowhere"); err == nil {
		t.Error("a directory that is not there has room")
	}
}
