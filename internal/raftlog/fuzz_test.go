package raftlog

import (
	"bytes"
	"hash/crc32"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"
)

// FuzzSegment decodes arbitrary bytes as a segment file: header block, then batches. What is accepted must encode to the
// same bytes. Checksums would stop the fuzzer at the door, so it may ask to have them mended.
func FuzzSegment(f *testing.F) {
	h := segmentHeader{sequence: 3, firstBatch: 7, firstIndex: 40, oldest: 2}
	e := entryRecord(&raft.Log{Index: 40, Term: 9, Type: raft.LogConfiguration, Extensions: []byte("XY"), Data: []byte("abcdef"), AppendedAt: time.Unix(1, 5)})
	noop := entryRecord(&raft.Log{Index: 41, Term: 9, Type: raft.LogNoop})
	head := h.appendTo(nil)[:segmentHeaderLen]
	f.Add(head, appendBatch(nil, h.seed(), 7, []record{e, noop}), false)
	f.Add(head, appendBatch(nil, h.seed(), 8, []record{{kind: kindSuffixDelete, index: 40}}), true)
	f.Add(head, appendBatch(nil, h.seed(), 9, []record{{kind: kindHeadDelete, index: 40, oldest: 3}}), true)
	f.Add([]byte{}, []byte{}, false)
	f.Fuzz(func(t *testing.T, head, batch []byte, mend bool) {
		if mend {
			mendHeader(head)
		}
		h, ok := decodeSegmentHeader(head)
		if ok {
			if got := h.appendTo(nil)[:segmentHeaderLen]; !bytes.Equal(got, head[:segmentHeaderLen]) {
				t.Fatalf("header %x encodes to %x", head[:segmentHeaderLen], got)
			}
		}
		if mend {
			mendBatch(batch, h.seed())
		}
		var records []record
		bh, err := decodeBatch(batch, h.seed(), func(r record, offset, size int) {
			if size != r.size() {
				t.Fatalf("record of %d bytes has size %d", size, r.size())
			}
			records = append(records, r)
		})
		if err != nil {
			return
		}
		if got := appendBatch(nil, h.seed(), bh.number, records); !bytes.Equal(got, batch[:len(got)]) {
			t.Fatalf("batch %x encodes to %x", batch, got)
		}

		// The same bytes as the newest segment of a store: Open must not panic, nor lose the batch when it fits.
		h.sequence, h.oldest, h.firstBatch = 1, 1, 1
		fs := vfs.NewMem()
		mustClose(t, mustOpen(t, testOptions(fs)))
		file, err := fs.OpenReadWrite("node/raft/"+slotName(1), vfs.WriteCategoryUnspecified)
		must(t, err)
		_, err = file.WriteAt(append(h.appendTo(nil), appendBatch(nil, h.seed(), 1, records)...), 0)
		must(t, err)
		must(t, file.Close())
		s, err := Open(testOptions(fs))
		if err != nil {
			return
		}
		for _, r := range records[len(records)-1:] {
			if last, _ := s.LastIndex(); r.kind == kindEntry && last != r.index {
				t.Fatalf("last index %d, want %d", last, r.index)
			}
		}
		mustClose(t, s)
	})
}

func mendHeader(b []byte) {
	if len(b) >= segmentHeaderLen {
		copy(b[64:], be32(nil, checksum(0, b[:64])))
	}
}

// mendBatch sets all checksums of a batch as far as its lengths make sense.
func mendBatch(b []byte, segment uint32) {
	if len(b) < batchHeaderLen {
		return
	}
	number := uint64(0)
	for _, x := range b[8:16] {
		number = number<<8 | uint64(x)
	}
	seed := batchSeed(segment, number)
	sum := seed
	for rest := b[batchHeaderLen:]; len(rest) >= recordHeaderLen; {
		n := int(rest[4])<<24 | int(rest[5])<<16 | int(rest[6])<<8 | int(rest[7])
		if n < recordHeaderLen || n > len(rest) {
			break
		}
		copy(rest, be32(nil, checksum(seed, rest[4:n])))
		sum = checksum(sum, rest[:4])
		rest = rest[n:]
	}
	copy(b[20:], be32(nil, sum))
	copy(b[24:], be32(nil, checksum(seed, b[:24])))
}

func FuzzVote(f *testing.F) {
	for _, v := range []voteRecord{
		{generation: 1},
		{generation: 4, hasTerm: true, term: 2},
		{generation: 5, hasTerm: true, term: 2, hasVote: true, voteTerm: 1, candidate: []byte("node")},
	} {
		f.Add(v.appendTo(nil), true)
	}
	f.Fuzz(func(t *testing.T, b []byte, mend bool) {
		if mend && len(b) >= voteHeaderLen+4 {
			if end := voteHeaderLen + int(b[22])<<8 + int(b[23]); end+4 <= len(b) {
				copy(b[end:], be32(nil, checksum(0, b[:end])))
			}
		}
		v, ok := decodeVote(b)
		if !ok {
			return
		}
		if got := v.appendTo(nil); !bytes.Equal(got, b[:len(got)]) {
			t.Fatalf("vote %x encodes to %x", b, got)
		}
	})
}

func FuzzMark(f *testing.F) {
	m := markRecord{generation: 6, position: position{sequence: 3, batch: 8}}
	f.Add(m.appendTo(nil), true)
	f.Add([]byte{}, false)
	f.Fuzz(func(t *testing.T, b []byte, mend bool) {
		if mend && len(b) >= markLen {
			copy(b[32:], be32(nil, checksum(0, b[:32])))
		}
		m, ok := decodeMark(b)
		if !ok {
			return
		}
		if got := m.appendTo(nil); !bytes.Equal(got, b[:markLen]) {
			t.Fatalf("mark %x encodes to %x", b, got)
		}
	})
}

func checksum(seed uint32, b []byte) uint32 { return crc32.Update(seed, castagnoli, b) }
