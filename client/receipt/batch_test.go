package receipt

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/provledger/provledger/internal/checkpoint"
	"github.com/provledger/provledger/internal/merkle"
)

// perfect returns the roots of the maximal perfect subtrees of the leaves [begin, end), found by trying.
func (l *testLog) perfect(begin, end int) (roots []merkle.Hash) {
	for begin < end {
		width := 1
		for begin%(2*width) == 0 && begin+2*width <= end {
			width *= 2
		}
		roots = append(roots, l.root(begin, begin+width))
		begin += width
	}
	return roots
}

// batch is what a ledger answers for entries at the given indexes.
func (l *testLog) batch(indexes ...uint64) *Batch {
	b := &Batch{Checkpoint: l.checkpoint()}
	in := map[uint64]bool{}
	for _, i := range indexes {
		b.Entries = append(b.Entries, BatchEntry{Index: i, Leaf: l.leaves[i]})
		in[i] = true
	}
	for i := 0; i < len(l.leaves); i++ {
		first := i
		for in[uint64(i)] {
			i++
		}
		if n := i - first; n > 0 {
			b.Runs = append(b.Runs, Run{First: uint64(first), Count: uint64(n), Left: l.perfect(0, first), Right: l.perfect(i, len(l.leaves))})
		}
	}
	return b
}

// TestBatchReceipts: what a batch derives is, to the byte, what the ledger gives for each entry; for every set of entries of small trees.
func TestBatchReceipts(t *testing.T) {
	l := newTestLog(t, testOrigin, 1)
	most := 8
	if testing.Short() {
		most = 6
	}
	for size := 2; size <= most; size++ {
		e := runEvent()
		e.ID[2] = byte(size)
		l.add(e)
		policy := l.policy()
		single := make([][]byte, size)
		for i := range single {
			single[i] = l.receipt(uint64(i), Opened).Encode()
		}
		for set := uint(1); set < 1<<size; set++ {
			var indexes []uint64
			for i := range size {
				if set>>i&1 == 1 {
					indexes = append(indexes, uint64(i))
				}
			}
			v, err := FromBatch(l.batch(indexes...), policy)
			if err != nil {
				t.Fatalf("size %d, set %b: %v", size, set, err)
			}
			if v.TreeSize != uint64(size) || v.Origin != testOrigin {
				t.Fatalf("size %d: %d, %s", size, v.TreeSize, v.Origin)
			}
			for n, i := range indexes {
				r, err := v.Receipt(n, Opened, l.bodies[i])
				if err != nil || !bytes.Equal(r.Encode(), single[i]) {
					t.Fatalf("size %d, set %b, entry %d: %v, %s", size, set, i, err, r.Encode())
				}
			}
		}
	}
}

// TestBatchOrder: results stand in the order of the request, and an event that was sent twice stands twice.
func TestBatchOrder(t *testing.T) {
	l, _ := filled(t)
	order := []uint64{5, 2, 5, 1, 6, 2}
	v, err := FromBatch(l.batch(order...), l.policy())
	if err != nil {
		t.Fatal(err)
	}
	for n, i := range order {
		r, err := v.Receipt(n, Withheld, nil)
		if err != nil || r.Proof.Index != i || Verify(r, l.policy(), nil, Require{}).Outcome != Verified {
			t.Errorf("entry %d: %v, %v", n, r, err)
		}
	}
	if _, err := v.Receipt(0, Withheld, l.bodies[5]); !errors.Is(err, ErrMalformed) {
		t.Errorf("withheld with a body: %v", err)
	}
}

func TestBatchRefuses(t *testing.T) {
	l, _ := filled(t)
	other := newTestLog(t, testOrigin, 2)
	other.add(runEvent())
	for name, change := range map[string]func(b *Batch){
		"changed leaf":       func(b *Batch) { b.Entries[1].Leaf = append(bytes.Clone(b.Entries[1].Leaf), 0) },
		"leaves swapped":     func(b *Batch) { e := b.Entries; e[0].Leaf, e[1].Leaf = e[1].Leaf, e[0].Leaf },
		"entry left out":     func(b *Batch) { b.Entries = b.Entries[1:] },
		"entry in no run":    func(b *Batch) { b.Entries = append(b.Entries, BatchEntry{0, l.leaves[0]}) },
		"last entry too far": func(b *Batch) { b.Entries = append(b.Entries, BatchEntry{6, l.leaves[6]}) },
		"two leaves, one index": func(b *Batch) {
			b.Entries = append(b.Entries, BatchEntry{b.Entries[0].Index, b.Entries[1].Leaf})
		},
		"run left out":      func(b *Batch) { b.Runs = b.Runs[:1] },
		"run twice":         func(b *Batch) { b.Runs = append(b.Runs, b.Runs[1]) },
		"runs not in order": func(b *Batch) { b.Runs[0], b.Runs[1] = b.Runs[1], b.Runs[0] },
		"run split in two": func(b *Batch) {
			b.Runs = []Run{{First: 1, Count: 1, Left: l.perfect(0, 1), Right: l.perfect(2, 7)}, {First: 2, Count: 1, Left: l.perfect(0, 2), Right: l.perfect(3, 7)}, b.Runs[1]}
		},
		"longer run":         func(b *Batch) { b.Runs[0].Count++ },
		"shorter run":        func(b *Batch) { b.Runs[0].Count-- },
		"empty run":          func(b *Batch) { b.Runs[0].Count = 0 },
		"endless run":        func(b *Batch) { b.Runs[1].Count = 1<<64 - 1 },
		"other left":         func(b *Batch) { b.Runs[1].Left[0][0] ^= 1 },
		"other right":        func(b *Batch) { b.Runs[0].Right[0][0] ^= 1 },
		"one left too few":   func(b *Batch) { b.Runs[1].Left = b.Runs[1].Left[1:] },
		"one right too many": func(b *Batch) { b.Runs[1].Right = append(b.Runs[1].Right, merkle.Hash{}) },
		"other key":          func(b *Batch) { b.Checkpoint = other.checkpoint() },
		"signature":          func(b *Batch) { b.Checkpoint = bytes.Replace(b.Checkpoint, []byte("\n7\n"), []byte("\n8\n"), 1) },
		"no checkpoint":      func(b *Batch) { b.Checkpoint = nil },
	} {
		b := l.batch(1, 2, 5)
		if _, err := FromBatch(b, l.policy()); err != nil {
			t.Fatal(err)
		}
		change(b)
		v, err := FromBatch(b, l.policy())
		known := errors.Is(err, ErrMalformed) || errors.Is(err, merkle.ErrProof) || errors.Is(err, checkpoint.ErrBadSignature) || errors.Is(err, checkpoint.ErrMalformed)
		if v != nil || !known {
			t.Errorf("%s: %v, %v", name, v, err)
		}
	}
	if v, err := FromBatch(&Batch{Checkpoint: l.checkpoint()}, l.policy()); err != nil || v.TreeSize != 7 {
		t.Errorf("empty batch: %v", err)
	}
}

// bigBatch is the thousand entries before the last of a log of 4,096.
func bigBatch(b testing.TB) (*Batch, *Policy) {
	l := newTestLog(b, testOrigin, 1)
	leaf := l.leaves[l.add(runEvent())]
	const size, count = 1 << 12, 1000
	for len(l.leaves) < size {
		l.addLeaf(fmt.Appendf(nil, "%s%d", leaf, len(l.leaves)), nil)
	}
	batch := &Batch{Checkpoint: l.checkpoint()}
	for i := uint64(size - count - 1); i < size-1; i++ {
		batch.Entries = append(batch.Entries, BatchEntry{i, l.leaves[i]})
	}
	batch.Runs = []Run{{First: size - count - 1, Count: count, Left: l.perfect(0, size-count-1), Right: l.perfect(size-1, size)}}
	return batch, l.policy()
}

func BenchmarkFromBatch(b *testing.B) {
	batch, policy := bigBatch(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := FromBatch(batch, policy); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(batch.Entries)), "ns/entry")
}

func BenchmarkBatchReceipt(b *testing.B) {
	batch, policy := bigBatch(b)
	v, err := FromBatch(batch, policy)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Receipt(500, Withheld, nil); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVerify(b *testing.B) {
	l, at := filled(b)
	r, p := l.receipt(at, Opened), l.policy()
	b.ReportAllocs()
	for b.Loop() {
		if res := Verify(r, p, []Subject{subject("model")}, Require{}); res.Outcome != Verified {
			b.Fatal(res.text())
		}
	}
}
