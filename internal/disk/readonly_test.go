package disk

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// Looking at a store changes nothing in it, so that looking at a damaged one cannot make it worse (H13).
func TestReadOnly(t *testing.T) {
	mem := vfs.NewMem()
	o := Options{
		FS: mem, Dir: "state", Name: "state", MemTableBytes: 1 << 20, BlockCacheBytes: 1 << 20, Logger: slog.New(slog.DiscardHandler),
		Die: func(reason string, err error) { t.Errorf("died: %s: %v", reason, err) },
	}
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.DB.Set([]byte("key"), []byte("value"), pebble.NoSync); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	o.ReadOnly = true
	o.FS = errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		lock := op.Kind == errorfs.OpLock || strings.HasSuffix(op.Path, "LOCK")
		if op.Kind.ReadOrWrite() == errorfs.OpIsWrite && op.Kind != errorfs.OpFileClose && !lock {
			t.Errorf("a read-only store writes: kind %d, %s", op.Kind, op.Path)
		}
		return nil
	}))
	if s, err = Open(o); err != nil {
		t.Fatal(err)
	}
	if v, ok, err := s.DurableValue([]byte("key")); err != nil || !ok || string(v) != "value" {
		t.Errorf("value %q, %v, %v", v, ok, err)
	}
	if err := s.Abandon(); err != nil {
		t.Error(err)
	}
}
