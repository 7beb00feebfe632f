package raftlog

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// newSuffix names the directory in which a store is put together before it gets its name: a directory with the right
// name is a complete store, whatever interrupted its creation.
const newSuffix = ".new"

// dirMode keeps others out: entries hold the bodies of events.
const dirMode = 0o700

// windowBytes is the read size of recovery: batches are read in runs, not one call each.
const windowBytes = 256 << 10

func (s *Store) open() error {
	names, err := s.fs.List(s.dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		err = s.create()
	case err == nil && len(names) == 0:
		if err = s.fs.Remove(s.dir); err == nil {
			err = s.create()
		}
	}
	if err != nil {
		return err
	}
	if names, err = s.fs.List(s.dir); err != nil {
		return err
	}
	// A process killed between rename and sync left a name that is not durable yet; likewise the names of spares.
	if err := errors.Join(syncDir(s.fs, s.fs.PathDir(s.dir)), syncDir(s.fs, s.dir)); err != nil {
		return err
	}
	if err := s.fs.RemoveAll(s.dir + newSuffix); err != nil {
		return err
	}
	return s.recover(names)
}

// create puts an empty store together beside its place and renames it there.
func (s *Store) create() error {
	if err := mkdirAll(s.fs, s.fs.PathDir(s.dir)); err != nil {
		return err
	}
	dir := s.dir + newSuffix
	if err := s.fs.RemoveAll(dir); err != nil {
		return err
	}
	if err := s.fs.MkdirAll(dir, dirMode); err != nil {
		return err
	}
	write := func(name string, size int64, blocks ...[]byte) error {
		f, err := writeZeros(s.fs, s.fs.PathJoin(dir, name), size, nil)
		if err != nil {
			return err
		}
		for i, b := range blocks {
			if err := writeSlot(f, i, b); err != nil {
				return errors.Join(err, f.Close())
			}
		}
		return f.Close()
	}
	g := segment{segmentHeader: segmentHeader{nonce: newNonce(), sequence: 1, firstBatch: 1, firstIndex: 1, oldest: 1}}
	even, odd := markRecord{generation: 2, position: position{sequence: 1}}, markRecord{generation: 1, position: position{sequence: 1}}
	v := voteRecord{generation: 1}
	err := write(slotName(1), s.segmentBytes, g.appendTo(nil))
	if err == nil {
		err = write(markName, 2*blockSize, even.appendTo(nil), odd.appendTo(nil))
	}
	if err == nil {
		err = write(voteName, 2*blockSize, v.appendTo(nil), v.appendTo(nil))
	}
	if err == nil {
		err = syncDir(s.fs, dir)
	}
	if err == nil {
		err = s.fs.Rename(dir, s.dir)
	}
	if vfs.IsNoSpaceError(err) {
		err = fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

// mkdirAll makes dir and its missing parents, durably.
func mkdirAll(fs vfs.FS, dir string) error {
	if _, err := fs.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	parent := fs.PathDir(dir)
	if parent == dir {
		return nil
	}
	if err := mkdirAll(fs, parent); err != nil {
		return err
	}
	if err := fs.MkdirAll(dir, dirMode); err != nil {
		return err
	}
	return syncDir(fs, parent)
}

// recover reads the store. Until all of it has been found whole it writes nothing.
func (s *Store) recover(names []string) error {
	for _, name := range []string{markName, voteName} {
		if !slices.Contains(names, name) {
			return fmt.Errorf("%w: file %s is missing", ErrCorrupt, name)
		}
	}
	if err := s.vote.open(s.fs, s.fs.PathJoin(s.dir, voteName)); err != nil {
		return err
	}
	marked, err := s.mark.open(s.fs, s.fs.PathJoin(s.dir, markName))
	if err != nil {
		return err
	}
	found, err := s.openSegments(names)
	if err != nil {
		return err
	}
	newest, tail, err := s.readSegments(found)
	if err != nil {
		return err
	}
	if last := tail.next - 1; newest.sequence < marked.sequence || last < marked.batch {
		return fmt.Errorf("%w: it ends at batch %d in segment %d, but batch %d in segment %d was acknowledged",
			ErrCorrupt, last, newest.sequence, marked.batch, marked.sequence)
	}
	// No header is what follows the last batch of every healthy log; a header without its batch is one that was cut short.
	if tail.bad != nil && !errors.Is(tail.bad, errNoHeader) {
		s.log.Info("raft log: dropped a batch that was never acknowledged", "segment", newest.sequence, "batch", tail.next,
			"offset", tail.end, "reason", tail.bad)
	}

	// From here on everything is known to be whole.
	if err := s.vote.repair(); err != nil {
		return fmt.Errorf("repair term and vote: %w", err)
	}
	if tail.last > 0 && tail.next-1 > marked.batch {
		if err := newest.rewrite(tail.last, tail.end); err != nil {
			return fmt.Errorf("rewrite last batch: %w", err)
		}
	}
	s.nextBatch = tail.next
	s.mark.acked = position{sequence: newest.sequence, batch: tail.next - 1}
	if n := len(s.segs); tail.last == 0 && n > 1 {
		// A header without a batch may be in the page cache only: the last batch, and the mark with it, is one before.
		s.mark.acked.sequence = s.segs[n-2].sequence
	}
	if err := s.mark.write(s.mark.acked); err != nil {
		return fmt.Errorf("write mark: %w", err)
	}
	return s.keepSpares()
}

// openSegments opens all segment files. What has a valid header is returned; the rest is spare.
func (s *Store) openSegments(names []string) ([]*segment, error) {
	var found []*segment
	for _, name := range names {
		slot, ok := parseSlot(name)
		if !ok {
			continue
		}
		s.spares.lastSlot = max(s.spares.lastSlot, slot)
		f, err := s.fs.OpenReadWrite(s.fs.PathJoin(s.dir, name), vfs.WriteCategoryUnspecified)
		if err != nil {
			return nil, err
		}
		file := slotFile{File: f, name: name}
		s.spares.add(file) // closed from there if Open fails; sorted out by readSegments and keepSpares
		b, err := readUpTo(f, make([]byte, segmentHeaderLen), 0)
		if err != nil {
			return nil, err
		}
		h, ok := decodeSegmentHeader(b)
		if !ok {
			continue
		}
		info, err := f.Stat()
		if err != nil {
			return nil, err
		}
		file.size = info.Size()
		found = append(found, &segment{segmentHeader: h, file: file, sum: h.seed(), end: blockSize})
	}
	return found, nil
}

// readSegments finds the needed segments, reads them and rebuilds the index from their records.
func (s *Store) readSegments(found []*segment) (newest *segment, tail scan, err error) {
	if len(found) == 0 {
		return nil, tail, fmt.Errorf("%w: no segment", ErrCorrupt)
	}
	slices.SortFunc(found, func(a, b *segment) int {
		if a.sequence < b.sequence {
			return -1
		}
		return 1
	})
	newest = found[len(found)-1]

	// The newest segment first, for it names the oldest that is needed: in its header and, later, in its head deletes.
	if tail, err = newest.scan(0); err != nil {
		return nil, tail, err
	}
	oldest := newest.oldest
	for _, o := range tail.ops {
		oldest = max(oldest, o.oldest)
	}
	if oldest > newest.sequence {
		return nil, tail, fmt.Errorf("%w: segment %d needs segment %d", ErrCorrupt, newest.sequence, oldest)
	}
	needed := found[max(0, len(found)-int(min(newest.sequence-oldest+1, uint64(len(found))))):]
	for i, g := range needed {
		if want := newest.sequence - uint64(len(needed)-1-i); g.sequence != want || i == 0 && g.sequence != oldest {
			return nil, tail, fmt.Errorf("%w: segments %d to %d are needed, found %d in the place of %d",
				ErrCorrupt, oldest, newest.sequence, g.sequence, want)
		}
	}

	for i, g := range needed {
		sc := tail
		if g != newest {
			next := needed[i+1].firstBatch
			if sc, err = g.scan(next); err != nil {
				return nil, tail, err
			}
			if sc.next != next {
				return nil, tail, fmt.Errorf("%w: segment %d, batch %d at offset %d: %w", ErrCorrupt, g.sequence, sc.next, sc.end, sc.bad)
			}
		}
		s.spares.remove(g.file.name)
		if err := s.replay(g, sc); err != nil {
			return nil, tail, err
		}
	}
	return newest, tail, nil
}

// replay adds segment g to the index.
func (s *Store) replay(g *segment, sc scan) error {
	if s.first <= s.last && g.firstIndex != s.last+1 {
		return fmt.Errorf("%w: segment %d begins at index %d, after index %d", ErrCorrupt, g.sequence, g.firstIndex, s.last)
	}
	s.addSegment(g)
	for _, o := range sc.ops {
		switch o.kind {
		case kindEntry:
			if s.first <= s.last && o.index != s.last+1 {
				return fmt.Errorf("%w: segment %d has index %d after index %d", ErrCorrupt, g.sequence, o.index, s.last)
			}
			s.addEntry(o.index, o.ref)
		case kindSuffixDelete:
			s.cutSuffix(o.index)
		case kindHeadDelete:
			s.cutHead(o.index)
		}
	}
	g.end = sc.end
	s.bytes.Add(g.end)
	return nil
}

// scan is what reading a segment found.
type scan struct {
	ops  []op
	next uint64 // number of the first batch that was not read
	last int64  // offset of the last good batch, 0 if there is none
	end  int64  // offset behind it
	bad  error  // why there is no good batch at end; nil if the segment is full or the limit was reached
}

// op is the gist of a record.
type op struct {
	kind   uint8
	index  uint64
	oldest uint64
	ref    ref
}

// scan reads the batches of a segment up to, and without, batch number limit. limit 0 says that this is the newest
// segment: there the first bad batch ends it, unless a valid header of a later batch lies behind. A batch is written
// only when the one before is durable, so such a header shows that the bad batch had been acknowledged.
func (g *segment) scan(limit uint64) (scan, error) {
	w := window{file: g.file}
	sc := scan{next: g.firstBatch, end: blockSize}
	for sc.end+batchHeaderLen <= g.file.size && (limit == 0 || sc.next < limit) {
		ops, size, bad, err := g.readBatch(&w, sc.end, sc.next)
		if err != nil {
			return sc, err
		}
		if bad != nil {
			sc.bad = bad
			break
		}
		sc.ops = append(sc.ops, ops...)
		sc.next, sc.last, sc.end = sc.next+1, sc.end, sc.end+size
	}
	if limit != 0 || sc.bad == nil {
		return sc, nil
	}
	for off := sc.end + blockSize; off < g.file.size; off += blockSize {
		b, err := w.read(off, batchHeaderLen)
		if err != nil {
			return sc, err
		}
		if h, ok := decodeBatchHeader(b, g.sum); ok && h.number > sc.next {
			return sc, fmt.Errorf("%w: segment %d, batch %d at offset %d: %w, but batch %d follows at offset %d",
				ErrCorrupt, g.sequence, sc.next, sc.end, sc.bad, h.number, off)
		}
	}
	return sc, nil
}

// readBatch reads the batch at off, which must have the given number. bad says why it is not one.
func (g *segment) readBatch(w *window, off int64, number uint64) (ops []op, size int64, bad, err error) {
	b, err := w.read(off, batchHeaderLen)
	if err != nil {
		return nil, 0, nil, err
	}
	h, ok := decodeBatchHeader(b, g.sum)
	if !ok {
		return nil, 0, errNoHeader, nil
	}
	if h.number != number {
		return nil, 0, errOutOfOrder, nil
	}
	if b, err = w.read(off, batchHeaderLen+int(h.length)); err != nil {
		return nil, 0, nil, err
	}
	_, bad = decodeBatch(b, g.sum, func(r record, at, size int) {
		ops = append(ops, op{kind: r.kind, index: r.index, oldest: r.oldest, ref: ref{
			offset: uint32(off + int64(at)), length: uint32(size), batch: uint32(number - g.firstBatch)}})
	})
	return ops, align(batchHeaderLen + int64(h.length)), bad, nil
}

// rewrite writes the last batch once more, byte for byte, and syncs it: it lies behind the mark, so it may have been
// read from a page cache whose fsync never came, or failed, and it is about to be believed.
func (g *segment) rewrite(from, to int64) error {
	if from == blockSize {
		from = 0 // the header went with the first batch
	}
	b, err := readUpTo(g.file, make([]byte, to-from), from)
	if err != nil {
		return err
	}
	if _, err := g.file.WriteAt(b, from); err != nil {
		return err
	}
	return g.file.SyncData()
}

// window reads a file in large pieces.
type window struct {
	file slotFile
	buf  []byte // a piece of the file
	off  int64  // where it begins
}

// read returns n bytes from offset off, fewer at the end of the file. They are valid until the next read.
func (w *window) read(off int64, n int) ([]byte, error) {
	if off < w.off || off+int64(n) > w.off+int64(len(w.buf)) {
		want := max(n, int(min(windowBytes, w.file.size-off)))
		if cap(w.buf) < want {
			w.buf = make([]byte, want)
		}
		b, err := readUpTo(w.file, w.buf[:want], off)
		if err != nil {
			return nil, err
		}
		w.buf, w.off = b, off
	}
	b := w.buf[off-w.off:]
	return b[:min(n, len(b))], nil
}

// keepSpares sorts out the files that are not needed: those of full size are spares, others (half-made spares, another
// SegmentBytes) are removed.
func (s *Store) keepSpares() error {
	for _, f := range s.spares.take() {
		info, err := f.Stat()
		if err != nil {
			return errors.Join(err, f.Close())
		}
		if f.size = info.Size(); f.size >= s.segmentBytes && f.size%blockSize == 0 {
			s.spares.add(f)
			continue
		}
		if err := errors.Join(f.Close(), s.fs.Remove(s.fs.PathJoin(s.dir, f.name))); err != nil {
			return err
		}
	}
	return nil
}
