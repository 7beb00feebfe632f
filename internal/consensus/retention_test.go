package consensus

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

func TestTrailingLogs(t *testing.T) {
	for _, tt := range []struct {
		keep, size int64
		entries    uint64
		want       uint64
	}{
		{256 << 20, 0, 0, minTrailingLogs},           // no figures
		{256 << 20, 10 << 20, 0, minTrailingLogs},    // an empty log
		{256 << 20, 10 << 20, 2560, 65536},           // 4 KiB each
		{256 << 20, 1 << 30, 1024, 256},              // 1 MiB each
		{256 << 20, 8 << 30, 1024, 64},               // 8 MiB each: 32 would be in flight
		{256 << 20, 1 << 62, 1 << 50, 1 << 16 * 1.0}, // no overflow
	} {
		if got := trailingLogs(tt.keep, tt.size, tt.entries); got != tt.want {
			t.Errorf("to keep %d of %d bytes in %d entries: %d, want %d", tt.keep, tt.size, tt.entries, got, tt.want)
		}
	}
}

// With a second server the log is kept by bytes, alone by count, and as configured if that says so.
func TestRetention(t *testing.T) {
	run := func(t *testing.T, servers int, trailing uint64) (kept uint64) {
		synctest.Test(t, func(t *testing.T) {
			c := newCluster()
			c.segmented = true
			ids := []string{"n1", "n2"}[:servers]
			c.found(t, ids...)
			for _, id := range ids {
				c.open(t, id, func(conf *Config) {
					conf.TrailingLogs, conf.TrailingBytes = trailing, 100*8192
					conf.SnapshotEvery = time.Second
					conf.LogBytes = c.nodes[id].segments.Bytes
				})
			}
			id, _ := c.leader(t, ids...)
			n := c.nodes[id]
			for range 400 {
				n.propose(t, string(bytes.Repeat([]byte{'x'}, 6000))) // two blocks each
			}
			for range 3 { // the last snapshot looks at a log of such entries only
				time.Sleep(2 * time.Second)
				n.propose(t, string(bytes.Repeat([]byte{'x'}, 6000)))
			}
			time.Sleep(2 * time.Second)
			s := n.Stats()
			kept = s.Last + 1 - s.First
		})
		return kept
	}
	if got := run(t, 1, 0); got > DefaultTrailingLogs+2 {
		t.Errorf("alone %d entries are kept, want %d", got, DefaultTrailingLogs)
	}
	if got := run(t, 2, 0); got < 80 || got > 110 {
		t.Errorf("of two %d entries are kept, want about 100", got)
	}
	if got := run(t, 2, 7); got > 9 {
		t.Errorf("%d entries are kept, want 7", got)
	}
}

// The gate keeps the entry at the durable index, and stands in for it where the log was emptied.
func TestGate(t *testing.T) {
	y := &toy{durable: toyState{at: Position{Index: 5, Term: 3}}}
	s := raft.NewInmemStore()
	g := &gate{LogStore: s, base: y.durable.at, durable: y.Durable}
	var l raft.Log
	if err := g.GetLog(5, &l); err != nil || l.Index != 5 || l.Term != 3 {
		t.Errorf("entry at the start position: %+v, %v", l, err)
	}
	for _, i := range []uint64{4, 6} {
		if err := g.GetLog(i, &l); err != raft.ErrLogNotFound {
			t.Errorf("entry %d: %v, want raft.ErrLogNotFound", i, err)
		}
	}
	if err := g.StoreLogs(history(1, 10)); err != nil {
		t.Fatal(err)
	}
	if err := g.GetLog(5, &l); err != nil || l.Term != 2 {
		t.Errorf("entry that the log holds: %+v, %v", l, err)
	}
	for _, tt := range []struct{ from, to, first, last uint64 }{
		{1, 3, 4, 10},
		{4, 8, 5, 10}, // up to below the durable index
		{5, 9, 5, 10},
		{8, 10, 5, 7}, // a suffix is no head
	} {
		if err := g.DeleteRange(tt.from, tt.to); err != nil {
			t.Fatal(err)
		}
		first, _ := s.FirstIndex()
		last, _ := s.LastIndex()
		if first != tt.first || last != tt.last {
			t.Errorf("after a delete of [%d, %d] the log is [%d, %d], want [%d, %d]", tt.from, tt.to, first, last, tt.first, tt.last)
		}
	}
}
