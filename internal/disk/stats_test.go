package disk

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

func TestStats(t *testing.T) {
	s := open(t, vfs.NewMem(), nil, nil)
	if got := s.Stats(); got.Flushes != 0 || got.Tables != 0 || got.MemTableBytes == 0 {
		t.Errorf("a new store: %+v", got)
	}
	set(t, s)
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := s.Stats(); got.Flushes != 1 || got.Tables != 1 || got.Bytes == 0 || got.BackgroundErrors+got.SlowOperations+got.Damaged+got.WriteStalls != 0 {
		t.Errorf("after a flush: %+v", got)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// A stall counts from its beginning to its end; an end without a beginning counts nothing.
func TestStalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c counts
		c.unstall()
		for range 2 {
			c.stall()
			time.Sleep(3 * time.Second)
			c.unstall()
			time.Sleep(time.Second)
		}
		if got := time.Duration(c.stalledFor.Load()); got != 6*time.Second || c.stalls.Load() != 2 {
			t.Errorf("%d stalls of %v in all, want 2 of 6s", c.stalls.Load(), got)
		}
	})
}
