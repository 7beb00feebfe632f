package disk

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var key, value = []byte("key"), []byte("value")

// deaths counts the calls of Die. A death blocks its goroutine, as in production, until the test is over.
type deaths struct {
	reasons chan string
	over    chan struct{}
}

func newDeaths() *deaths {
	return &deaths{reasons: make(chan string, 100), over: make(chan struct{})}
}

func (d *deaths) die(reason string, err error) {
	d.reasons <- reason
	<-d.over
}

func open(t *testing.T, fs vfs.FS, d *deaths, change func(*Options)) *Store {
	t.Helper()
	o := Options{
		FS: fs, Dir: "state", Name: "state", MemTableBytes: 1 << 20, BlockCacheBytes: 1 << 20,
		Logger: slog.New(slog.DiscardHandler), Die: func(reason string, err error) { t.Errorf("died: %s: %v", reason, err) },
	}
	if d != nil {
		o.Die = d.die
	}
	if change != nil {
		change(&o)
	}
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func set(t *testing.T, s *Store) {
	t.Helper()
	if err := s.DB.Set(key, value, pebble.NoSync); err != nil {
		t.Fatal(err)
	}
}

// isTable says whether an operation concerns a table or its creation, not the store's other files.
func isTable(op errorfs.Op) bool { return strings.HasSuffix(op.Path, ".sst") }

// What is durable is what a power cut leaves, neither more nor less: everything about the raft log is decided by it (H1).
func TestDurableValueIsWhatAPowerCutLeaves(t *testing.T) {
	fs := vfs.NewCrashableMem()
	s := open(t, fs, nil, nil)
	defer s.Abandon()
	afterPowerCut := func() bool {
		c := open(t, fs.CrashClone(vfs.CrashCloneCfg{}), nil, nil)
		defer c.Abandon()
		_, closer, err := c.DB.Get(key)
		if err == nil {
			closer.Close()
		} else if !errors.Is(err, pebble.ErrNotFound) {
			t.Fatal(err)
		}
		return err == nil
	}
	set(t, s)
	for _, want := range []bool{false, true} {
		v, ok, err := s.DurableValue(key)
		if err != nil || ok != want || ok && string(v) != string(value) {
			t.Errorf("flushed %v: durable value %q, %v, %v", want, v, ok, err)
		}
		if got := afterPowerCut(); got != want {
			t.Errorf("flushed %v: a power cut leaves it: %v", want, got)
		}
		if err := s.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// A store that was closed is complete without a replay; one that was abandoned is as a crash leaves it (H4).
func TestCloseFlushes(t *testing.T) {
	for name, end := range map[string]func(*Store) error{
		"close":   func(s *Store) error { return s.Close(context.Background()) },
		"abandon": func(s *Store) error { return s.Abandon() },
	} {
		fs := vfs.NewCrashableMem()
		s := open(t, fs, nil, nil)
		set(t, s)
		if err := end(s); err != nil {
			t.Fatal(err)
		}
		s = open(t, fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: rand.New(rand.NewPCG(1, 1))}), nil, nil)
		_, ok, err := s.DurableValue(key)
		if err != nil || ok != (name == "close") {
			t.Errorf("%s: the value is there: %v, %v", name, ok, err)
		}
		if err := s.Abandon(); err != nil {
			t.Error(err)
		}
	}
}

// A store that cannot write ends the process: at once where a retry cannot help, at the third failure in a row otherwise (H5). Pebble
// would go on trying for ever and say so to nobody.
func TestBackgroundErrorDies(t *testing.T) {
	for _, tc := range []struct {
		name     string
		err      error
		failures int // before the disk works again; 0: never
		tries    int // that are made
		dies     bool
	}{
		{"full disk", syscall.ENOSPC, 0, 1, true},
		{"I/O error", syscall.EIO, 0, 1, true},
		{"others", errors.New("injected"), 0, maxBackgroundErrors, true},
		{"hiccup", errors.New("injected"), maxBackgroundErrors - 1, maxBackgroundErrors, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tries := make(chan struct{}, 100)
			heal := new(errorfs.Toggle)
			heal.Injector = errorfs.InjectorFunc(func(op errorfs.Op) error {
				if op.Kind != errorfs.OpCreate || !isTable(op) {
					return nil
				}
				tries <- struct{}{}
				if tc.failures > 0 && len(tries) > tc.failures {
					return nil
				}
				return tc.err
			})
			heal.On()
			d := newDeaths()
			s := open(t, errorfs.Wrap(vfs.NewMem(), heal), d, nil)
			set(t, s)
			flushed := make(chan error, 1)
			ctx, cancel := context.WithCancel(t.Context())
			go func() { flushed <- s.Flush(ctx) }()
			if tc.dies {
				if reason := <-d.reasons; !strings.Contains(reason, "cannot write") {
					t.Errorf("died of %q", reason)
				}
			} else if err := <-flushed; err != nil {
				t.Error(err)
			}
			if got := len(tries); got != tc.tries {
				t.Errorf("%d tries, want %d", got, tc.tries)
			}
			heal.Off()
			close(d.over)
			cancel()
			if err := s.Abandon(); err != nil {
				t.Error(err)
			}
			if !tc.dies && len(d.reasons) > 0 {
				t.Errorf("died of a hiccup: %s", <-d.reasons)
			}
		})
	}
}

// A MANIFEST that cannot be written is where Pebble itself gives up, by its logger. That is a death like any other, not a panic.
func TestPebbleGivingUpDies(t *testing.T) {
	died := make(chan string, 1)
	l := logger{slog.New(slog.DiscardHandler), "state", func(reason string, err error) {
		died <- reason
		runtime.Goexit()
	}}
	go l.Fatalf("MANIFEST flush failed: %v", syscall.ENOSPC)
	if reason := <-died; !strings.Contains(reason, "state store") || !strings.Contains(reason, syscall.ENOSPC.Error()) {
		t.Errorf("died of %q", reason)
	}
}

// A disk that hangs ends the process (H7), and a flush that waits for it lets its caller go.
func TestSlowDiskDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind == errorfs.OpFileWrite && isTable(op) {
				<-release
			}
			return nil
		}))
		d := newDeaths()
		s := open(t, fs, d, func(o *Options) { o.SlowWarn, o.SlowKill = time.Second, 10*time.Second })
		set(t, s)
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if err := s.Flush(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("flush of a hanging disk: %v", err)
		}
		if len(d.reasons) != 0 {
			t.Errorf("died after 3 s: %s", <-d.reasons)
		}
		began := time.Now()
		if reason := <-d.reasons; !strings.Contains(reason, "hangs") {
			t.Errorf("died of %q", reason)
		}
		if waited := time.Since(began) + 3*time.Second; waited < 10*time.Second || waited > 15*time.Second {
			t.Errorf("died after %v, want a little more than 10 s", waited)
		}
		close(d.over)
		close(release)
		if err := s.Abandon(); err != nil {
			t.Error(err)
		}
	})
}

// Looking at a store changes nothing in it.
func TestReadOnly(t *testing.T) {
	mem := vfs.NewMem()
	s := open(t, mem, nil, nil)
	set(t, s)
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind.ReadOrWrite() == errorfs.OpIsWrite && op.Kind != errorfs.OpFileClose && !strings.HasSuffix(op.Path, "LOCK") && op.Kind != errorfs.OpLock {
			t.Errorf("a read-only store writes: %v", op)
		}
		return nil
	}))
	s = open(t, fs, nil, func(o *Options) { o.ReadOnly = true })
	if v, ok, err := s.DurableValue(key); err != nil || !ok || string(v) != string(value) {
		t.Errorf("value %q, %v, %v", v, ok, err)
	}
	if err := s.Abandon(); err != nil {
		t.Error(err)
	}
}

// What the file system cannot say is no reason to refuse.
func TestFreeBytes(t *testing.T) {
	if free, err := FreeBytes(vfs.NewMem(), "/"); err != nil || free != ^uint64(0) {
		t.Errorf("memory: %d, %v", free, err)
	}
	if free, err := FreeBytes(vfs.Default, t.TempDir()); err != nil || free == 0 || free == ^uint64(0) {
		t.Errorf("disk: %d, %v", free, err)
	}
	if _, err := FreeBytes(vfs.Default, t.TempDir()+"/missing"); err == nil {
		t.Error("a missing directory has space")
	}
}

// Whoever wants to go on with a store that cannot be read back is told, by a read and by a compaction, and the process lives; nobody else
// does. A store whose files are gone is damaged too.
func TestDamaged(t *testing.T) {
	for _, listens := range []bool{true, false} {
		mem := vfs.NewMem()
		s := open(t, mem, nil, nil)
		set(t, s)
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		names, err := mem.List("state")
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if !strings.HasSuffix(name, ".sst") {
				continue
			}
			f, err := mem.OpenReadWrite("state/"+name, vfs.WriteCategoryUnspecified)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt([]byte("xxxxxxxx"), 0); err != nil { // in the first block
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
		}
		told := make(chan error, 100)
		d := newDeaths()
		close(d.over)
		s = open(t, mem, d, func(o *Options) {
			if listens {
				o.Damaged = func(err error) { told <- err }
			}
		})
		if _, _, err := s.DB.Get(key); !pebble.IsCorruptionError(err) {
			t.Errorf("read: %v", err)
		}
		if listens {
			if err := <-told; !errors.Is(err, ErrDamaged) || !pebble.IsCorruptionError(err) {
				t.Errorf("told %v", err)
			}
		}
		for range maxBackgroundErrors { // as a compaction over it, which is tried again for ever
			s.backgroundError(pebble.ErrCorruption)
		}
		if died := len(d.reasons) > 0; died == listens {
			t.Errorf("somebody listens: %v; died: %v", listens, died)
		}
		if err := s.Abandon(); err != nil {
			t.Error(err)
		}
		for _, name := range names {
			if strings.HasSuffix(name, ".sst") {
				if err := mem.Remove("state/" + name); err != nil {
					t.Fatal(err)
				}
			}
		}
		_, err = Open(Options{FS: mem, Dir: "state", Name: "state", MemTableBytes: 1 << 20, BlockCacheBytes: 1 << 20, Logger: slog.New(slog.DiscardHandler), Die: d.die})
		if !errors.Is(err, ErrDamaged) {
			t.Errorf("open without its table: %v", err)
		}
	}
}
