package raftlog

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"
)

// TestFormat pins the bytes of docs/format-raftlog.md. The checksums were computed by an independent bit-by-bit CRC-32C
// (crc32c below), not by the code under test.
func TestFormat(t *testing.T) {
	h := segmentHeader{sequence: 3, firstBatch: 7, firstIndex: 40, oldest: 2}
	copy(h.nonce[:], "0123456789abcdef")
	hb := h.appendTo(nil)
	want := unhex(t, `504c524146545347 00000001 00000000 30313233343536373839616263646566
		0000000000000003 0000000000000007 0000000000000028 0000000000000002`)
	want = be32(want, crc32c(want))
	if !bytes.Equal(hb[:segmentHeaderLen], want) || len(hb) != blockSize || !allZero(hb[segmentHeaderLen:]) {
		t.Errorf("segment header\n%x\nwant\n%x", hb[:segmentHeaderLen], want)
	}

	seed := slices.Concat(h.nonce[:], unhex(t, "0000000000000003 0000000000000007"))
	rec := unhex(t, `00000038 01 05 0000 00000002 0000000000000028 0000000000000009 000000006553f100 00000005 00000000`)
	rec = append(rec, "XYabcdef"...)
	rec = slices.Concat(be32(nil, crc32c(slices.Concat(seed, rec))), rec)
	bh := unhex(t, "504c5242 00000001 0000000000000007 00000038")
	bh = be32(bh, crc32c(slices.Concat(seed, rec[:4])))
	bh = be32(bh, crc32c(slices.Concat(seed, bh)))
	bh = append(bh, 0, 0, 0, 0)
	e := entryRecord(&raft.Log{Index: 40, Term: 9, Type: raft.LogConfiguration, Extensions: []byte("XY"), Data: []byte("abcdef"),
		AppendedAt: time.Unix(1700000000, 5)})
	if got := appendBatch(nil, h.seed(), 7, []record{e}); !bytes.Equal(got, slices.Concat(bh, rec)) {
		t.Errorf("batch\n%x\nwant\n%x", got, slices.Concat(bh, rec))
	}

	for _, c := range []struct {
		r    record
		want string
	}{
		{record{kind: kindSuffixDelete, index: 12}, "00000030 02 00 0000 00000000 000000000000000c 0000000000000000 0000000000000000 00000000 00000000"},
		{record{kind: kindHeadDelete, index: 13, oldest: 2}, "00000030 03 00 0000 00000000 000000000000000d 0000000000000002 0000000000000000 00000000 00000000"},
	} {
		want := unhex(t, c.want)
		want = slices.Concat(be32(nil, crc32c(slices.Concat(seed, want))), want)
		if got := c.r.appendTo(nil, batchSeed(h.seed(), 7)); !bytes.Equal(got, want) {
			t.Errorf("record %d\n%x\nwant\n%x", c.r.kind, got, want)
		}
	}

	m := markRecord{generation: 6, position: position{sequence: 3, batch: 8}}
	want = unhex(t, "504c524146544d4b 0000000000000006 0000000000000003 0000000000000008")
	if got := m.appendTo(nil); !bytes.Equal(got, be32(want, crc32c(want))) {
		t.Errorf("mark\n%x", got)
	}
	v := voteRecord{generation: 4, hasTerm: true, term: 2, hasVote: true, voteTerm: 1, candidate: []byte("node")}
	want = append(unhex(t, "504c524146545654 0000000000000004 00000003 00000004 0000000000000002 0000000000000001"), "node"...)
	if got := v.appendTo(nil); !bytes.Equal(got, be32(want, crc32c(want))) {
		t.Errorf("vote\n%x", got)
	}
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	must(t, err)
	return b
}

func be32(b []byte, v uint32) []byte { return append(b, byte(v>>24), byte(v>>16), byte(v>>8), byte(v)) }

func allZero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

// crc32c is CRC-32C written out from its polynomial, bit by bit.
func crc32c(b []byte) uint32 {
	c := ^uint32(0)
	for _, x := range b {
		c ^= uint32(x)
		for range 8 {
			c = c>>1 ^ 0x82f63b78&-(c&1)
		}
	}
	return ^c
}

// TestBatchIsWhole: after a torn write a batch of the same number is written at the same place. However the sectors of
// the two attempts mix, the result is one of them or no batch, even where every record is whole.
func TestBatchIsWhole(t *testing.T) {
	h := segmentHeader{nonce: newNonce(), sequence: 1}
	const count, size = 8, 1024 // the batch header and the first record share the first two sectors
	attempt := func(term uint64) []byte {
		var records []record
		for i := range uint64(count) {
			n := size - recordHeaderLen
			if i == 0 {
				n -= batchHeaderLen
			}
			records = append(records, record{kind: kindEntry, index: 10 + i, term: term, data: make([]byte, n)})
		}
		return appendBatch(nil, h.seed(), 5, records)
	}
	one, two := attempt(1), attempt(2)
	if len(one) != count*size {
		t.Fatalf("batch of %d bytes", len(one))
	}
	for mix := range 1 << count {
		mixed := slices.Clone(one)
		for i := range count {
			if mix>>i&1 == 1 {
				copy(mixed[i*size:(i+1)*size], two[i*size:])
			}
		}
		_, err := decodeBatch(mixed, h.seed(), func(record, int, int) {})
		if whole := mix == 0 || mix == 1<<count-1; whole != (err == nil) {
			t.Fatalf("mix %b: %v", mix, err)
		}
	}
}

// TestMarkWindow is the promise about damage behind the mark: in the last batch it looks like a torn write, in any batch
// before it is found.
func TestMarkWindow(t *testing.T) {
	mem := vfs.NewCrashableMem()
	o := testOptions(mem)
	o.MarkInterval = time.Hour
	s := mustOpen(t, o)
	for i := uint64(1); i <= 4; i++ {
		must(t, s.StoreLog(entry(i, 1, 5000)))
	}
	disk := mem.CrashClone(vfs.CrashCloneCfg{})
	g := s.segs[0]
	for i, r := range g.refs {
		trial := disk.CrashClone(vfs.CrashCloneCfg{})
		data, err := trial.UnsafeGetFileDataBuffer("node/raft/" + g.file.name)
		must(t, err)
		data[r.offset+r.length/2] ^= 4
		err = expect(trial, model{log: entries(1, 3, 1, 5000)})
		if last := i == len(g.refs)-1; last && err != nil || !last && !errors.Is(err, ErrCorrupt) {
			t.Errorf("damage to batch %d of %d: %v", i+1, len(g.refs), err)
		}
	}
	mustClose(t, s)
}

// TestNonce: each use of a file has a nonce of its own, or leftovers of a roll-over that a power cut tore would check.
func TestNonce(t *testing.T) {
	s := mustOpen(t, testOptions(vfs.NewMem()))
	uses := map[[16]byte]uint64{}
	for i := uint64(1); i < 60; i++ {
		must(t, s.StoreLog(entry(i, 1, 50000)))
		must(t, s.DeleteRange(1, i-1))
		g := s.segs[len(s.segs)-1]
		if other, ok := uses[g.nonce]; ok && other != g.sequence || g.nonce == [16]byte{} {
			t.Fatalf("segments %d and %d have the nonce %x", other, g.sequence, g.nonce)
		}
		uses[g.nonce] = g.sequence
	}
	if len(uses) < 10 {
		t.Fatalf("only %d segments", len(uses))
	}
	mustClose(t, s)
}

// TestImplausibleSegments: what checks but does not fit together is damage too.
func TestImplausibleSegments(t *testing.T) {
	for name, edit := range map[string]func(h *segmentHeader, records []record){
		"first index": func(h *segmentHeader, _ []record) {
			if h.sequence == 2 {
				h.firstIndex += 5
			}
		},
		"first batch": func(h *segmentHeader, _ []record) {
			if h.sequence == 2 {
				h.firstBatch++
			}
		},
		"index": func(h *segmentHeader, records []record) {
			if len(records) == 1 && records[0].index == 7 {
				records[0].index = 8
			}
		},
		"oldest beyond newest": func(h *segmentHeader, records []record) {
			if len(records) == 1 && records[0].kind == kindHeadDelete {
				records[0].oldest = 99
			}
		},
	} {
		mem := vfs.NewMem()
		s := mustOpen(t, testOptions(&tamperFS{FS: mem, write: func(f vfs.File, name string, p []byte, off int64) (int, error) {
			if isSegment(name) {
				p = rewriteBatch(f, p, off, edit)
			}
			return f.WriteAt(p, off)
		}}))
		for i := uint64(1); i <= 9; i++ {
			must(t, s.StoreLog(entry(i, 1, 9000)))
		}
		must(t, s.DeleteRange(1, 2))
		mustClose(t, s)
		if _, err := Open(testOptions(mem)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestMissingFiles: a file that is gone is damage, not a new store.
func TestMissingFiles(t *testing.T) {
	build := func() (*vfs.MemFS, []string) {
		fs := vfs.NewMem()
		s := mustOpen(t, testOptions(fs))
		must(t, s.StoreLogs(entries(1, 30, 1, 6000)))
		var live []string
		for _, g := range s.segs {
			live = append(live, g.file.name)
		}
		mustClose(t, s)
		return fs, live
	}
	_, live := build()
	for _, name := range append(live, markName, voteName) {
		fs, _ := build()
		must(t, fs.Remove("node/raft/"+name))
		if _, err := Open(testOptions(fs)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("without %s: %v", name, err)
		}
		f, err := fs.Create("node/raft/"+name, vfs.WriteCategoryUnspecified)
		must(t, err)
		must(t, f.Close())
		if _, err := Open(testOptions(fs)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("with an empty %s: %v", name, err)
		}
	}
	fs, _ := build()
	if _, err := Open(Options{FS: fs, Dir: "node", Logger: quiet}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a directory of something else: %v", err)
	}
}

// TestReadChecks: damage under a running store is found by the read, and the guard ends the process.
func TestReadChecks(t *testing.T) {
	fs := vfs.NewMem()
	s := mustOpen(t, testOptions(fs))
	must(t, s.StoreLogs(entries(1, 3, 1, 3000)))
	g := s.segs[0]
	data, err := fs.UnsafeGetFileDataBuffer("node/raft/" + g.file.name)
	must(t, err)
	for bit := range g.refs[1].length * 8 {
		if bit%997 != 0 {
			continue
		}
		at := g.refs[1].offset + bit/8
		data[at] ^= 1 << (bit % 8)
		if err := s.GetLog(2, new(raft.Log)); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("bit %d of entry 2 flipped: %v", bit, err)
		}
		var d death
		guard := Guard(s, GuardOptions{Durable: func() uint64 { return 0 }, Applied: func() uint64 { return 0 }, Die: d.die, Logger: quiet})
		if alive(func() { _ = guard.GetLog(2, new(raft.Log)) }) {
			t.Fatal("the guard let a damaged entry through")
		}
		data[at] ^= 1 << (bit % 8)
	}
	checkLog(t, s, entries(1, 3, 1, 3000))
	g.refs[0] = g.refs[1]
	if err := s.GetLog(1, new(raft.Log)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("entry 2 in the place of entry 1: %v", err)
	}
	mustClose(t, s)
}

// TestLargeEntry: an entry beyond the segment size gets a segment of its own, which is reused like any other.
func TestLargeEntry(t *testing.T) {
	fs := vfs.NewMem()
	s := mustOpen(t, testOptions(fs))
	want := slices.Concat(entries(1, 3, 1, 10), entries(4, 4, 1, 3*testSegment), entries(5, 9, 1, 20000))
	must(t, s.StoreLogs(want))
	checkLog(t, s, want)
	mustClose(t, s)
	s = mustOpen(t, testOptions(fs))
	checkLog(t, s, want)
	must(t, s.DeleteRange(1, 8))
	must(t, s.StoreLogs(entries(10, 10, 1, 3*testSegment)))
	checkLog(t, s, slices.Concat(entries(9, 9, 1, 20000), entries(10, 10, 1, 3*testSegment)))
	mustClose(t, s)
	names, err := fs.List("node/raft")
	must(t, err)
	large := 0
	for _, n := range names {
		info, err := fs.Stat("node/raft/" + n)
		must(t, err)
		if info.Size() > testSegment {
			large++
		}
	}
	if large != 1 {
		t.Errorf("%d large files, want 1 used twice", large)
	}
	s = mustOpen(t, testOptions(fs))
	if err := s.StoreLog(&raft.Log{Index: 11, Data: make([]byte, maxEntryBytes+1)}); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("entry above the limit: %v", err)
	}
	must(t, s.StoreLog(entry(11, 1, 5)))
	mustClose(t, s)
}

// TestRecycling: in steady state the log lives in the same few files, and Bytes follows it.
func TestRecycling(t *testing.T) {
	fs := vfs.NewMem()
	s := mustOpen(t, testOptions(fs))
	var peak int64
	for i := uint64(1); i <= 2000; i++ {
		must(t, s.StoreLog(entry(i, 1, 4500)))
		if i > 20 {
			must(t, s.DeleteRange(1, i-20))
		}
		peak = max(peak, s.Bytes())
	}
	if live := int64(len(s.segs)) * testSegment; s.Bytes() > live || peak > 8*testSegment {
		t.Errorf("Bytes is %d at the end, %d at most, with %d bytes of files in use", s.Bytes(), peak, live)
	}
	bytes := s.Bytes()
	mustClose(t, s)
	names, err := fs.List("node/raft")
	must(t, err)
	if len(names) > 10 {
		t.Errorf("%d files for a log of 20 entries", len(names))
	}
	s = mustOpen(t, testOptions(fs))
	if s.Bytes() != bytes {
		t.Errorf("Bytes is %d after reopening, was %d", s.Bytes(), bytes)
	}
	mustClose(t, s)
}

// TestSegmentBytesChanges: the size of segments may change between opens.
func TestSegmentBytesChanges(t *testing.T) {
	fs := vfs.NewMem()
	var want []*raft.Log
	for i, size := range []int64{testSegment, 2 * testSegment, minSegmentBytes, testSegment + 1} {
		o := testOptions(fs)
		o.SegmentBytes = size
		s := mustOpen(t, o)
		logs := entries(uint64(i)*20+1, uint64(i)*20+20, 1, 7000)
		must(t, s.StoreLogs(logs))
		want = append(want, logs...)
		checkLog(t, s, want)
		mustClose(t, s)
	}
	o := testOptions(fs)
	o.SegmentBytes = minSegmentBytes - 1
	if _, err := Open(o); err == nil {
		t.Error("accepted segments too small to hold a batch")
	}
}

// TestReadWhileWriting reads through appends, cuts and recycling; -race watches.
func TestReadWhileWriting(t *testing.T) {
	s := mustOpen(t, testOptions(vfs.NewMem()))
	done := make(chan struct{})
	var wg sync.WaitGroup
	for r := range 3 {
		wg.Go(func() {
			rng := newRand(uint64(r))
			for {
				select {
				case <-done:
					return
				default:
				}
				first, _ := s.FirstIndex()
				last, _ := s.LastIndex()
				if last < first || last == 0 {
					continue
				}
				i := first + uint64(rng.IntN(int(last-first+1)))
				l := new(raft.Log)
				if err := s.GetLog(i, l); err == nil && !sameEntry(l, entry(i, l.Term, len(l.Data))) || err != nil && err != raft.ErrLogNotFound {
					t.Errorf("GetLog(%d): %v", i, err)
					return
				}
			}
		})
	}
	next := uint64(1)
	for i := range 400 {
		must(t, s.StoreLogs(entries(next, next+4, uint64(i), 3000)))
		if next += 5; i%5 == 0 {
			must(t, s.DeleteRange(next-3, next-1))
			next -= 3
		}
		if next > 40 {
			must(t, s.DeleteRange(1, next-30))
		}
	}
	close(done)
	wg.Wait()
	mustClose(t, s)
}

// TestVote: what is acknowledged is in both slots, a vote never goes back or changes within its term.
func TestVote(t *testing.T) {
	fs := vfs.NewMem()
	s := mustOpen(t, testOptions(fs))
	num := func(key string) uint64 {
		n, err := s.GetUint64([]byte(key))
		if err != nil && err.Error() != "not found" {
			t.Fatal(err)
		}
		return n
	}
	must(t, s.SetUint64([]byte(keyCurrentTerm), 5))
	must(t, step{voteTerm: 5, cand: "a"}.do(s))
	must(t, step{voteTerm: 5, cand: "a"}.do(s))
	for _, st := range []step{{term: 4}, {voteTerm: 4, cand: "a"}, {voteTerm: 5, cand: "b"}, {voteTerm: 6, cand: strings.Repeat("x", maxCandidateBytes+1)}} {
		if err := st.do(s); err == nil {
			t.Errorf("accepted %v", st)
		}
	}
	mustClose(t, s)
	s = mustOpen(t, testOptions(fs))
	if err := s.Set([]byte(keyLastVoteCand), []byte("b")); err == nil {
		t.Error("accepted a candidate without a term")
	}
	// A term without its candidate is no vote (issue 661): not in memory, not on disk.
	must(t, s.SetUint64([]byte(keyLastVoteTerm), 9))
	if n := num(keyLastVoteTerm); n != 5 {
		t.Errorf("vote term %d before its candidate, want 5", n)
	}
	must(t, s.SetUint64([]byte(keyCurrentTerm), 9)) // another write must not carry it along
	mustClose(t, s)
	s = mustOpen(t, testOptions(fs))
	if n := num(keyLastVoteTerm); n != 5 || num(keyCurrentTerm) != 9 {
		t.Errorf("vote term %d, term %d after reopening, want 5 and 9", n, num(keyCurrentTerm))
	}
	must(t, step{voteTerm: 9, cand: strings.Repeat("x", maxCandidateBytes)}.do(s))
	mustClose(t, s)
	for slot := range 2 { // either slot alone is enough
		f, err := fs.OpenReadWrite("node/raft/vote", vfs.WriteCategoryUnspecified)
		must(t, err)
		must(t, writeSlot(f, slot, []byte("gone")))
		must(t, f.Close())
		if err := expect(fs, model{term: 9, voteTerm: 9, cand: strings.Repeat("x", maxCandidateBytes)}); err != nil {
			t.Errorf("slot %d gone: %v", slot, err)
		}
	}
}

// TestRealFiles runs on the operating system's file system.
func TestRealFiles(t *testing.T) {
	o := Options{Dir: path.Join(t.TempDir(), "a", "b", "raft"), SegmentBytes: 1 << 20, Logger: quiet}
	s := mustOpen(t, o)
	want := entries(1, 60, 1, 100_000)
	must(t, s.StoreLogs(want))
	must(t, step{voteTerm: 2, cand: "me"}.do(s))
	mustClose(t, s)
	s = mustOpen(t, o)
	checkLog(t, s, want)
	must(t, s.DeleteRange(1, 55))
	must(t, s.StoreLogs(entries(61, 80, 2, 100_000)))
	mustClose(t, s)
	must(t, os.MkdirAll(o.Dir+newSuffix, 0o755)) // left by an interrupted creation
	s = mustOpen(t, o)
	checkLog(t, s, append(want[55:60:60], entries(61, 80, 2, 100_000)...))
	mustClose(t, s)
	if _, err := os.Stat(o.Dir + newSuffix); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left over: %v", err)
	}
	empty := t.TempDir()
	mustClose(t, mustOpen(t, Options{Dir: empty, SegmentBytes: 1 << 20, Logger: quiet}))
}

func BenchmarkStoreLogs(b *testing.B) {
	for _, c := range []struct{ count, size int }{{1, 64 << 10}, {16, 4 << 10}} {
		b.Run(fmt.Sprintf("%dx%dKiB", c.count, c.size>>10), func(b *testing.B) {
			s := mustOpen(b, Options{Dir: path.Join(b.TempDir(), "raft"), Logger: quiet})
			b.SetBytes(int64(c.count * c.size))
			logs := entries(1, uint64(c.count), 1, c.size)
			for b.Loop() {
				must(b, s.StoreLogs(logs))
				for _, l := range logs {
					l.Index += uint64(c.count)
				}
				// Keep a few segments, as compaction does: the steady state is recycled files.
				if next := logs[0].Index; next%4096 < uint64(c.count) {
					must(b, s.DeleteRange(1, next-1024))
				}
			}
			mustClose(b, s)
		})
	}
}

func BenchmarkGetLog(b *testing.B) {
	s := mustOpen(b, Options{Dir: path.Join(b.TempDir(), "raft"), Logger: quiet})
	must(b, s.StoreLogs(entries(1, 256, 1, 4<<10)))
	b.SetBytes(4 << 10)
	var l raft.Log
	i := uint64(0)
	for b.Loop() {
		must(b, s.GetLog(i%256+1, &l))
		i++
	}
	mustClose(b, s)
}
