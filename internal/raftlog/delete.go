package raftlog

import "fmt"

// DeleteRange implements raft.LogStore: it removes the entries with indexes in [min, max] and returns when that is
// durable. The range must reach the first or the last entry, for a log has no holes; one that reaches both empties the
// log, after which any index may follow. Deleting what is not there is no error. Errors are those of StoreLogs.
//
// A delete is a record of its own batch. Nothing is overwritten and no number is moved back: a suffix that was cut in
// place, or by moving the end back, could be read again after a crash.
func (s *Store) DeleteRange(min, max uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(); err != nil {
		return err
	}
	if s.first > s.last || min > max || min > s.last || max < s.first {
		return nil
	}
	if max > s.last {
		max = s.last
	}
	var r record
	switch {
	case min <= s.first:
		r = record{kind: kindHeadDelete, index: max + 1}
	case max == s.last:
		r = record{kind: kindSuffixDelete, index: min - 1}
	default:
		return fmt.Errorf("raftlog: delete of [%d, %d] leaves a hole in [%d, %d]", min, max, s.first, s.last)
	}
	g, _, err := s.room([]record{r})
	if err != nil {
		return err
	}
	if r.kind == kindHeadDelete {
		// What the record makes spare may be overwritten once the record is durable, never before: the header of a
		// segment that is begun for this record still names the oldest one needed without it.
		r.oldest = g.sequence
		if max < s.last {
			r.oldest = s.find(max + 1).sequence
		}
	}
	return s.writeBatch(g, []record{r})
}

// Reset empties the log, whatever it holds, and makes next the index that NextIndex reports, durably, in one batch. It is for
// a state machine that was brought to next - 1 by other means than this log. next must be above 1, not below the first
// index, and, if the log is empty, not below NextIndex; at NextIndex nothing is to be done. Errors are those of StoreLogs.
func (s *Store) Reset(next uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(); err != nil {
		return err
	}
	empty := s.first > s.last
	switch {
	case next < 2, empty && next <= s.last, !empty && next < s.first:
		return fmt.Errorf("raftlog: reset to index %d of a log that is [%d, %d]", next, s.first, s.last)
	case empty && next == s.last+1:
		return nil
	}
	var records []record
	if !empty && s.last >= next {
		// The head delete alone would leave what is at next and beyond.
		records = append(records, record{kind: kindSuffixDelete, index: next - 1})
	}
	records = append(records, record{kind: kindHeadDelete, index: next})
	g, _, err := s.room(records) // both fit any segment
	if err != nil {
		return err
	}
	records[len(records)-1].oldest = g.sequence
	return s.writeBatch(g, records)
}
