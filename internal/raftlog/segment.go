package raftlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/hashicorp/raft"
)

// Sizes of the format (docs/format-raftlog.md). All integers are big-endian.
const (
	// blockSize is the unit that batches start on and are padded to. It is the page and the physical sector of the
	// disks that we run on: a write never shares a block with data that is already acknowledged.
	blockSize = 4096

	formatVersion    = 1
	segmentHeaderLen = 68 // meaningful bytes of the header block; the rest of the block is zero
	batchHeaderLen   = 32
	recordHeaderLen  = 48

	// maxEntryBytes bounds Data plus Extensions of one entry: eight times the largest command that a node accepts
	// (8 MiB), so that only a bug reaches it.
	maxEntryBytes = 64 << 20

	// maxSegmentBytes keeps offsets, lengths and batch counts of a segment within 32 bits with room to spare.
	maxSegmentBytes = 1 << 30

	// minSegmentBytes holds the header block and three blocks of batches.
	minSegmentBytes = 4 * blockSize
)

// Kinds of record.
const (
	kindEntry        = 1 // a raft log entry
	kindSuffixDelete = 2 // entries above index are gone
	kindHeadDelete   = 3 // entries below index are gone, segments below oldest are not needed
)

var (
	segmentMagic = [8]byte{'P', 'L', 'R', 'A', 'F', 'T', 'S', 'G'}
	batchMagic   = [4]byte{'P', 'L', 'R', 'B'}
	castagnoli   = crc32.MakeTable(crc32.Castagnoli)
)

// Reasons why bytes are not a batch. They surface inside ErrCorrupt messages only.
var (
	errShort      = errors.New("cut short")
	errNoHeader   = errors.New("no valid batch header")
	errChecksum   = errors.New("checksum mismatch")
	errBadRecord  = errors.New("malformed record")
	errBadBatch   = errors.New("records do not match the batch header")
	errOutOfOrder = errors.New("unexpected batch number")
)

func align(n int64) int64 { return (n + blockSize - 1) &^ (blockSize - 1) }

// segmentHeader makes a file a segment. It fills the first block of the file.
type segmentHeader struct {
	nonce      [16]byte // random for each use of the file: makes every checksum of an earlier use invalid
	sequence   uint64   // position among the segments, from 1
	firstBatch uint64   // number of the first batch in the segment, from 1
	firstIndex uint64   // index of the next entry when the segment was begun
	oldest     uint64   // lowest sequence still needed when the segment was begun
}

// appendTo appends the header block, blockSize bytes.
func (h *segmentHeader) appendTo(b []byte) []byte {
	start := len(b)
	b = append(b, segmentMagic[:]...)
	b = binary.BigEndian.AppendUint32(b, formatVersion)
	b = binary.BigEndian.AppendUint32(b, 0)
	b = append(b, h.nonce[:]...)
	b = binary.BigEndian.AppendUint64(b, h.sequence)
	b = binary.BigEndian.AppendUint64(b, h.firstBatch)
	b = binary.BigEndian.AppendUint64(b, h.firstIndex)
	b = binary.BigEndian.AppendUint64(b, h.oldest)
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
	return append(b, make([]byte, blockSize-segmentHeaderLen)...)
}

func decodeSegmentHeader(b []byte) (segmentHeader, bool) {
	var h segmentHeader
	if len(b) < segmentHeaderLen || [8]byte(b) != segmentMagic {
		return h, false
	}
	if crc32.Checksum(b[:64], castagnoli) != binary.BigEndian.Uint32(b[64:]) {
		return h, false
	}
	if binary.BigEndian.Uint32(b[8:]) != formatVersion || binary.BigEndian.Uint32(b[12:]) != 0 {
		return h, false
	}
	h.nonce = [16]byte(b[16:])
	h.sequence = binary.BigEndian.Uint64(b[32:])
	h.firstBatch = binary.BigEndian.Uint64(b[40:])
	h.firstIndex = binary.BigEndian.Uint64(b[48:])
	h.oldest = binary.BigEndian.Uint64(b[56:])
	if h.sequence == 0 || h.firstBatch == 0 || h.oldest == 0 || h.oldest > h.sequence {
		return segmentHeader{}, false
	}
	return h, true
}

// seed is the checksum state shared by everything in the segment.
func (h *segmentHeader) seed() uint32 {
	b := append(make([]byte, 0, 24), h.nonce[:]...)
	return crc32.Checksum(binary.BigEndian.AppendUint64(b, h.sequence), castagnoli)
}

// batchSeed extends a segment's seed by a batch number. CRC-32C is a bijection of its starting state, so bytes that
// check under one seed never check under another: what an earlier use of the file, or an earlier batch at the same
// offset, left behind cannot be taken for current.
func batchSeed(segment uint32, number uint64) uint32 {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], number)
	return crc32.Update(segment, castagnoli, b[:])
}

// record is one record of a batch. For deletes only kind, index and, for a head delete, oldest are set.
type record struct {
	kind       uint8
	logType    raft.LogType
	index      uint64 // entry: its index; suffix delete: the new last index; head delete: the new first index
	term       uint64
	oldest     uint64 // head delete: lowest segment sequence still needed (stored in the place of term)
	appendedAt time.Time
	extensions []byte
	data       []byte
}

func entryRecord(l *raft.Log) record {
	return record{kind: kindEntry, logType: l.Type, index: l.Index, term: l.Term, appendedAt: l.AppendedAt,
		extensions: l.Extensions, data: l.Data}
}

func (r *record) size() int { return recordHeaderLen + len(r.extensions) + len(r.data) }

// appendTo appends the record. Its first four bytes are its checksum.
func (r *record) appendTo(b []byte, seed uint32) []byte {
	start := len(b)
	b = append(b, 0, 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(r.size()))
	b = append(b, r.kind, byte(r.logType), 0, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.extensions)))
	b = binary.BigEndian.AppendUint64(b, r.index)
	if r.kind == kindEntry {
		b = binary.BigEndian.AppendUint64(b, r.term)
		// Seconds and nanoseconds, not UnixNano: the zero time must survive.
		b = binary.BigEndian.AppendUint64(b, uint64(r.appendedAt.Unix()))
		b = binary.BigEndian.AppendUint32(b, uint32(r.appendedAt.Nanosecond()))
	} else {
		b = binary.BigEndian.AppendUint64(b, r.oldest)
		b = append(b, make([]byte, 12)...)
	}
	b = append(b, 0, 0, 0, 0)
	b = append(b, r.extensions...)
	b = append(b, r.data...)
	binary.BigEndian.PutUint32(b[start:], crc32.Update(seed, castagnoli, b[start+4:]))
	return b
}

// decodeRecord reads the record at the beginning of b; the record's extensions and data alias b. It accepts exactly
// what appendTo writes.
func decodeRecord(b []byte, seed uint32) (r record, size int, err error) {
	if len(b) < recordHeaderLen {
		return r, 0, errShort
	}
	n := binary.BigEndian.Uint32(b[4:])
	if n < recordHeaderLen || uint64(n) > uint64(len(b)) {
		return r, 0, errShort
	}
	b = b[:n]
	if crc32.Update(seed, castagnoli, b[4:]) != binary.BigEndian.Uint32(b) {
		return r, 0, errChecksum
	}
	ext := binary.BigEndian.Uint32(b[12:])
	if uint64(ext) > uint64(n)-recordHeaderLen || binary.BigEndian.Uint16(b[10:]) != 0 || binary.BigEndian.Uint32(b[44:]) != 0 {
		return r, 0, errBadRecord
	}
	r.kind = b[8]
	r.index = binary.BigEndian.Uint64(b[16:])
	nsec := binary.BigEndian.Uint32(b[40:])
	switch r.kind {
	case kindEntry:
		if nsec >= 1e9 || r.index == 0 {
			return r, 0, errBadRecord
		}
		r.logType = raft.LogType(b[9])
		r.term = binary.BigEndian.Uint64(b[24:])
		if t := time.Unix(int64(binary.BigEndian.Uint64(b[32:])), int64(nsec)).UTC(); !t.IsZero() {
			r.appendedAt = t
		}
		if ext > 0 {
			r.extensions = b[recordHeaderLen : recordHeaderLen+ext : recordHeaderLen+ext]
		}
		if n > recordHeaderLen+ext {
			r.data = b[recordHeaderLen+ext : n : n]
		}
	case kindSuffixDelete, kindHeadDelete:
		r.oldest = binary.BigEndian.Uint64(b[24:])
		if n != recordHeaderLen || b[9] != 0 || nsec != 0 || binary.BigEndian.Uint64(b[32:]) != 0 ||
			(r.kind == kindHeadDelete) != (r.oldest != 0) {
			return r, 0, errBadRecord
		}
	default:
		return r, 0, errBadRecord
	}
	return r, int(n), nil
}

// batchHeader precedes the records of a batch.
type batchHeader struct {
	number  uint64 // consecutive over all segments, from 1
	records uint32
	length  uint32 // bytes of the records, without header and padding
	sum     uint32 // CRC-32C (seeded) of the checksums of the records, in order: binds them to this header
}

// appendBatch appends a batch, without padding. The header's sum is what keeps a batch whole: after a torn write the
// same number is written again at the same offset, and without it the header of one attempt could be completed by
// records of the other, each valid by itself.
func appendBatch(b []byte, segment uint32, number uint64, records []record) []byte {
	start := len(b)
	seed := batchSeed(segment, number)
	b = append(b, make([]byte, batchHeaderLen)...)
	sum := seed
	for i := range records {
		at := len(b)
		b = records[i].appendTo(b, seed)
		sum = crc32.Update(sum, castagnoli, b[at:at+4])
	}
	h := b[start:]
	copy(h, batchMagic[:])
	binary.BigEndian.PutUint32(h[4:], uint32(len(records)))
	binary.BigEndian.PutUint64(h[8:], number)
	binary.BigEndian.PutUint32(h[16:], uint32(len(h)-batchHeaderLen))
	binary.BigEndian.PutUint32(h[20:], sum)
	binary.BigEndian.PutUint32(h[24:], crc32.Update(seed, castagnoli, h[:24]))
	return b
}

func decodeBatchHeader(b []byte, segment uint32) (batchHeader, bool) {
	var h batchHeader
	if len(b) < batchHeaderLen || [4]byte(b) != batchMagic {
		return h, false
	}
	h.records = binary.BigEndian.Uint32(b[4:])
	h.number = binary.BigEndian.Uint64(b[8:])
	h.length = binary.BigEndian.Uint32(b[16:])
	h.sum = binary.BigEndian.Uint32(b[20:])
	if binary.BigEndian.Uint32(b[24:]) != crc32.Update(batchSeed(segment, h.number), castagnoli, b[:24]) {
		return batchHeader{}, false
	}
	if h.records == 0 || h.number == 0 || h.length > maxSegmentBytes || binary.BigEndian.Uint32(b[28:]) != 0 {
		return batchHeader{}, false
	}
	return h, true
}

// decodeBatch reads the batch at the beginning of b and calls each for its records, offset being the place of the
// record in b. Nothing is to be believed of those calls unless decodeBatch returns nil.
func decodeBatch(b []byte, segment uint32, each func(r record, offset, size int)) (batchHeader, error) {
	h, ok := decodeBatchHeader(b, segment)
	if !ok {
		return h, errNoHeader
	}
	if uint64(len(b)) < batchHeaderLen+uint64(h.length) {
		return h, errShort
	}
	b = b[:batchHeaderLen+int(h.length)]
	seed := batchSeed(segment, h.number)
	sum, off := seed, batchHeaderLen
	for i := range h.records {
		r, n, err := decodeRecord(b[off:], seed)
		if err != nil {
			return h, fmt.Errorf("record %d: %w", i, err)
		}
		sum = crc32.Update(sum, castagnoli, b[off:off+4])
		each(r, off, n)
		off += n
	}
	if off != len(b) || sum != h.sum {
		return h, errBadBatch
	}
	return h, nil
}
