package raftlog

import (
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"
)

// Each durable write of a batch is told once, and the number of segments follows them.
func TestObserve(t *testing.T) {
	var took []time.Duration
	s, err := Open(Options{FS: vfs.NewMem(), Dir: "log", SegmentBytes: minSegmentBytes, Observe: func(d time.Duration) { took = append(took, d) }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.Segments() != 1 {
		t.Errorf("%d segments in a new log", s.Segments())
	}
	before := len(took)
	for i := range 3 {
		if err := s.StoreLogs([]*raft.Log{{Index: uint64(i + 1), Term: 1, Data: make([]byte, minSegmentBytes/2)}}); err != nil {
			t.Fatal(err)
		}
	}
	if got := len(took) - before; got < 3 {
		t.Errorf("%d writes were told of at least 3", got)
	}
	for _, d := range took {
		if d < 0 || d > time.Minute {
			t.Errorf("a write took %v", d)
		}
	}
	if s.Segments() < 2 {
		t.Errorf("%d segments for three entries of half a segment", s.Segments())
	}
}
