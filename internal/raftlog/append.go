package raftlog

import (
	"crypto/rand"
	"errors"
	"fmt"
	"slices"

	"github.com/hashicorp/raft"
)

// keepBuffer is the largest batch buffer kept between appends: the largest command that a node accepts (8 MiB) with what
// surrounds it.
const keepBuffer = 9 << 20

func newNonce() (n [16]byte) {
	_, _ = rand.Read(n[:]) // never fails: crypto/rand ends the process instead
	return n
}

// StoreLog implements raft.LogStore.
func (s *Store) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// StoreLogs appends entries and returns when they are durable. Their indexes must be consecutive and follow the last
// index, unless the log is empty. It is one write and one fdatasync if the entries fit one segment. An error that wraps
// ErrNoSpace, or that is about the entries, leaves the Store usable; entries of a long call may have been stored up to
// the point of an ErrNoSpace. After any other error the Store is not usable, and it is unknown what was stored.
func (s *Store) StoreLogs(logs []*raft.Log) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(); err != nil {
		return err
	}
	if err := s.checkEntries(logs); err != nil {
		return err
	}
	records := s.records[:0]
	for _, l := range logs {
		records = append(records, entryRecord(l))
	}
	defer func() {
		clear(records) // do not keep the caller's data alive
		s.records = records[:0]
	}()
	for rest := records; len(rest) > 0; {
		g, n, err := s.room(rest)
		if err != nil {
			return err
		}
		if err := s.writeBatch(g, rest[:n]); err != nil {
			return err
		}
		rest = rest[n:]
	}
	return nil
}

// checkEntries refuses what could not be read back as a log. It reads the index without view: writers hold mu.
func (s *Store) checkEntries(logs []*raft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	next := s.last + 1
	if s.first > s.last {
		next = logs[0].Index
	}
	if next == 0 {
		return errors.New("raftlog: entry with index 0")
	}
	for i, l := range logs {
		if l.Index != next+uint64(i) {
			return fmt.Errorf("raftlog: entry with index %d, expected %d", l.Index, next+uint64(i))
		}
		if n := len(l.Data) + len(l.Extensions); n > maxEntryBytes {
			return fmt.Errorf("raftlog: entry %d has %d bytes, at most %d", l.Index, n, maxEntryBytes)
		}
	}
	return nil
}

// room decides where the next batch goes and how many of the records it takes: all in the segment that is written to if
// they fit its rest, else as many as fit in a new one. A new segment is not in s.segs yet.
func (s *Store) room(records []record) (g *segment, n int, err error) {
	g = s.segs[len(s.segs)-1]
	if _, n = fit(records, g.file.size-g.end); n == len(records) {
		return g, n, nil
	}
	size, n := fit(records, s.segmentBytes-blockSize)
	if n == 0 {
		n = 1
		size = align(batchHeaderLen + int64(records[0].size()))
	}
	if size <= g.file.size-g.end { // a segment larger than others
		return g, n, nil
	}
	file, err := s.spare(max(blockSize+size, s.segmentBytes))
	switch {
	case errors.Is(err, ErrNoSpace) || errors.Is(err, errStopped):
		return nil, 0, fmt.Errorf("raftlog: %w", err) // not a broken disk
	case err != nil:
		return nil, 0, s.fail(err)
	}
	h := segmentHeader{nonce: newNonce(), sequence: g.sequence + 1, firstBatch: s.nextBatch, oldest: s.segs[0].sequence}
	if h.firstIndex = s.last + 1; records[0].kind == kindEntry {
		h.firstIndex = records[0].index
	}
	return &segment{segmentHeader: h, file: file, sum: h.seed(), end: blockSize}, n, nil
}

// fit returns the size of the longest batch of leading records that takes at most limit bytes, and their number.
func fit(records []record, limit int64) (size int64, n int) {
	size = batchHeaderLen
	for ; n < len(records); n++ {
		if next := size + int64(records[n].size()); align(next) <= limit {
			size = next
			continue
		}
		break
	}
	return align(size), n
}

// writeBatch writes records as one batch at the end of segment g and returns when they are durable and published. The
// first batch of a segment is written together with the segment's header.
func (s *Store) writeBatch(g *segment, records []record) error {
	size, _ := fit(records, maxSegmentBytes)
	buf, from := slices.Grow(s.buf[:0], int(blockSize+size)), g.end
	if g.end == blockSize {
		buf, from = g.appendTo(buf), 0
	}
	end := len(buf) + int(size)
	buf = appendBatch(buf, g.sum, s.nextBatch, records)
	buf = append(buf, make([]byte, end-len(buf))...)
	if s.buf = buf; cap(buf) > keepBuffer {
		s.buf = nil
	}
	start := s.now()
	if _, err := g.file.WriteAt(buf, from); err != nil {
		return s.fail(fmt.Errorf("write batch %d: %w", s.nextBatch, err))
	}
	if err := g.file.SyncData(); err != nil {
		return s.fail(fmt.Errorf("sync batch %d: %w", s.nextBatch, err))
	}
	s.took(start)
	s.publish(g, records, size)
	return nil
}

// publish brings the index up to a batch of size bytes that has just become durable at the end of g.
func (s *Store) publish(g *segment, records []record, size int64) {
	s.view.Lock()
	if fresh := g != s.segs[len(s.segs)-1]; fresh {
		s.addSegment(g)
		s.bytes.Add(blockSize)
	}
	offset := g.end + batchHeaderLen
	for i := range records {
		r := &records[i]
		switch r.kind {
		case kindEntry:
			s.addEntry(r.index, ref{offset: uint32(offset), length: uint32(r.size()), batch: uint32(s.nextBatch - g.firstBatch)})
		case kindSuffixDelete:
			s.cutSuffix(r.index)
		case kindHeadDelete:
			s.cutHead(r.index)
			s.dropSegments(r.oldest)
		}
		offset += int64(r.size())
	}
	g.end += size
	s.view.Unlock()
	s.bytes.Add(size)
	s.mark.advance(position{sequence: g.sequence, batch: s.nextBatch})
	s.nextBatch++
	if g.end > g.file.size/2 {
		s.prepareSpare() // not earlier: a small log that is opened often should not write a segment each time
	}
}
