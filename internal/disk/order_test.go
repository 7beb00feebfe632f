package disk

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// At whatever file operation of making, filling and opening a store the power goes, and in whatever order directory entries become
// durable, the store opens.
func TestOpensAfterPowerCuts(t *testing.T) {
	mem := vfs.NewCrashableMem()
	if err := mem.MkdirAll("state", 0o700); err != nil {
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
			s, err := Open(Options{
				FS: mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rand.New(rand.NewPCG(clones, 1))}), Dir: "state", Name: "state",
				MemTableBytes: 1 << 20, BlockCacheBytes: 1 << 20, Logger: slog.New(slog.DiscardHandler),
				Die: func(reason string, err error) { t.Errorf("died: %s: %v", reason, err) },
			})
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
		s := open(t, fs, nil, nil)
		for range 3 {
			set(t, s)
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
}

// A flush whose caller has gone may come to Pebble late; a store that was closed meanwhile would panic.
func TestCloseWaitsForFlushes(t *testing.T) {
	gone, leave := context.WithCancel(t.Context())
	leave()
	for range 20 {
		s := open(t, vfs.NewMem(), nil, nil)
		set(t, s)
		for range 20 {
			_ = s.Flush(gone)
		}
		if err := s.Abandon(); err != nil {
			t.Error(err)
		}
	}
}
