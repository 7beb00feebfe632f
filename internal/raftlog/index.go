package raftlog

import (
	"errors"
	"fmt"
	"sort"

	"github.com/hashicorp/raft"
)

// The index in memory: for each live entry its place. The functions that change it are called with Store.view held, or
// by Open.

// addSegment makes g the newest segment.
func (s *Store) addSegment(g *segment) {
	g.first = s.last + 1
	s.segs = append(s.segs, g)
}

// addEntry adds an entry to the newest segment. It follows the last one, or the log is empty.
func (s *Store) addEntry(index uint64, r ref) {
	if s.first > s.last {
		s.first = index
		for _, g := range s.segs {
			g.first = index
		}
	}
	g := s.segs[len(s.segs)-1]
	g.refs = append(g.refs, r)
	s.last = index
}

// cutSuffix removes the entries above last.
func (s *Store) cutSuffix(last uint64) {
	if last >= s.last {
		return
	}
	for i := len(s.segs) - 1; i >= 0 && s.segs[i].first+uint64(len(s.segs[i].refs)) > last+1; i-- {
		g := s.segs[i]
		if g.first > last {
			g.first, g.refs = last+1, g.refs[:0]
			continue
		}
		g.refs = g.refs[:last+1-g.first]
	}
	s.last = last
}

// cutHead removes the entries below first.
func (s *Store) cutHead(first uint64) {
	if first <= s.first {
		return
	}
	if first > s.last {
		s.first, s.last = first, first-1
		for _, g := range s.segs {
			g.first, g.refs = first, g.refs[:0]
		}
		return
	}
	for _, g := range s.segs {
		if g.first >= first {
			break
		}
		n := min(first-g.first, uint64(len(g.refs)))
		g.first, g.refs = g.first+n, g.refs[n:]
		if g.first < first {
			g.first = first // an empty segment
		}
	}
	s.first = first
}

// dropSegments makes the segments below sequence oldest spare.
func (s *Store) dropSegments(oldest uint64) {
	n := 0
	for ; s.segs[n].sequence < oldest; n++ {
		s.bytes.Add(-s.segs[n].end)
		s.spares.add(s.segs[n].file)
	}
	s.segs = append([]*segment(nil), s.segs[n:]...)
}

// find returns the segment that holds entry index, which is within [first, last].
func (s *Store) find(index uint64) *segment {
	// An empty segment begins where its successor does, so the last one that begins at or before index is not empty.
	return s.segs[sort.Search(len(s.segs), func(i int) bool { return s.segs[i].first > index })-1]
}

// FirstIndex implements raft.LogStore: 0 when the log is empty.
func (s *Store) FirstIndex() (uint64, error) {
	s.view.RLock()
	defer s.view.RUnlock()
	if s.first > s.last {
		return 0, s.usable()
	}
	return s.first, s.usable()
}

// LastIndex implements raft.LogStore: 0 when the log is empty.
func (s *Store) LastIndex() (uint64, error) {
	s.view.RLock()
	defer s.view.RUnlock()
	if s.first > s.last {
		return 0, s.usable()
	}
	return s.last, s.usable()
}

// NextIndex returns one more than the last index that the log holds or, if it is empty, held: 1 for a new log, and what
// Reset was given after it.
func (s *Store) NextIndex() uint64 {
	s.view.RLock()
	defer s.view.RUnlock()
	return s.last + 1
}

// GetLog implements raft.LogStore. It reads the entry from its file and checks it. The error is raft.ErrLogNotFound for
// an index that the log does not hold, and wraps ErrCorrupt for a damaged entry. It may run concurrently with writes.
func (s *Store) GetLog(index uint64, l *raft.Log) error {
	s.view.RLock()
	defer s.view.RUnlock()
	if err := s.usable(); err != nil {
		return err
	}
	if index < s.first || index > s.last {
		return raft.ErrLogNotFound
	}
	g := s.find(index)
	at := g.refs[index-g.first]
	b, err := readUpTo(g.file, make([]byte, at.length), int64(at.offset))
	if err != nil {
		return fmt.Errorf("raftlog: read entry %d: %w", index, err)
	}
	r, size, err := decodeRecord(b, batchSeed(g.sum, g.firstBatch+uint64(at.batch)))
	if err == nil && (r.kind != kindEntry || r.index != index || size != len(b)) {
		err = errors.New("another record is in its place")
	}
	if err != nil {
		return fmt.Errorf("raftlog: %w: entry %d, segment %d at offset %d: %w", ErrCorrupt, index, g.sequence, at.offset, err)
	}
	*l = raft.Log{Index: r.index, Term: r.term, Type: r.logType, Data: r.data, Extensions: r.extensions, AppendedAt: r.appendedAt}
	return nil
}
