package receipt

import (
	"fmt"
	"slices"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/checkpoint"
	"github.com/provledger/provledger/internal/merkle"
)

// Batch is what proves many entries of one log at once, as BatchAppend returns it: the leaves, one proof for each contiguous run of them
// and one checkpoint. It takes a signature and about one hash an entry to verify, where single receipts take a proof each.
type Batch struct {
	Entries    []BatchEntry
	Runs       []Run  // ascending, apart; together they cover the index of every entry and nothing else
	Checkpoint []byte // signed note
}

// BatchEntry is one entry of a batch. An event that was recorded before may stand in a batch twice, or with an index far back.
type BatchEntry struct {
	Index uint64
	Leaf  []byte
}

// Run proves the leaves [First, First+Count) of the checkpoint's tree.
type Run struct {
	First, Count uint64
	// Left and Right are the roots of the maximal perfect subtrees of [0, First) and of [First+Count, tree size), left to right.
	Left, Right []merkle.Hash
}

// VerifiedBatch is a batch whose every leaf is proven to be in the tree of the checkpoint.
type VerifiedBatch struct {
	Origin   string
	TreeSize uint64

	checkpoint []byte
	entries    []BatchEntry
	trees      []*merkle.RangeTree
	runs       []Run
}

// FromBatch verifies a batch under a policy: checkpoint, quorum and the place of every leaf. It does not read the leaves. Errors wrap
// [ErrMalformed], merkle's or checkpoint's.
func FromBatch(b *Batch, p *Policy) (*VerifiedBatch, error) {
	c, _, err := p.p.Verify(b.Checkpoint)
	if err != nil {
		return nil, err
	}
	return b.under(c)
}

// under verifies the batch's leaves under a verified checkpoint.
func (b *Batch) under(c checkpoint.Checkpoint) (*VerifiedBatch, error) {
	v := &VerifiedBatch{Origin: c.Origin, TreeSize: c.Size, checkpoint: b.Checkpoint, entries: b.Entries, runs: b.Runs}
	order := make([]int, len(b.Entries))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(i, j int) int {
		switch x, y := b.Entries[i].Index, b.Entries[j].Index; {
		case x < y:
			return -1
		case x > y:
			return 1
		}
		return 0
	})
	next := 0 // place in order of the first entry that no run has taken
	var hashes []merkle.Hash
	for n, run := range b.Runs {
		if n > 0 && run.First <= b.Runs[n-1].First+b.Runs[n-1].Count {
			return nil, fmt.Errorf("%w: batch: runs[%d] does not stand apart from the one before it", ErrMalformed, n)
		}
		if run.Count > uint64(len(b.Entries)) || run.First+run.Count < run.First {
			return nil, fmt.Errorf("%w: batch: runs[%d] has %d leaves, the batch %d", ErrMalformed, n, run.Count, len(b.Entries))
		}
		hashes = hashes[:0]
		for index := run.First; index < run.First+run.Count; index++ {
			if next == len(order) || b.Entries[order[next]].Index != index {
				return nil, fmt.Errorf("%w: batch: runs[%d] covers entry %d, whose leaf is missing or lies outside a run", ErrMalformed, n, index)
			}
			h := merkle.LeafHash(b.Entries[order[next]].Leaf)
			hashes = append(hashes, h)
			for next++; next < len(order) && b.Entries[order[next]].Index == index; next++ {
				if merkle.LeafHash(b.Entries[order[next]].Leaf) != h {
					return nil, fmt.Errorf("%w: batch: two leaves for entry %d", ErrMalformed, index)
				}
			}
		}
		tree, err := merkle.NewRangeTree(run.First, hashes, c.Size, merkle.RangeProof{Left: run.Left, Right: run.Right})
		if err != nil {
			return nil, fmt.Errorf("batch: runs[%d]: %w", n, err)
		}
		if tree.Root() != c.Root {
			return nil, fmt.Errorf("batch: runs[%d]: %w: root %s, the checkpoint has %s", n, merkle.ErrProof, tree.Root(), c.Root)
		}
		v.trees = append(v.trees, tree)
	}
	if next != len(order) {
		return nil, fmt.Errorf("%w: batch: entry %d is in no run", ErrMalformed, b.Entries[order[next]].Index)
	}
	return v, nil
}

// Receipt derives the receipt of entry i of the batch, the same that the ledger would give at this tree size: with the body, if state is
// Opened. Leaf, body and checkpoint are shared.
func (v *VerifiedBatch) Receipt(i int, state BodyState, body []lineage.BodyPart) (*Receipt, error) {
	e := &v.entries[i]
	n, _ := slices.BinarySearchFunc(v.runs, e.Index, func(r Run, index uint64) int {
		switch {
		case index < r.First:
			return 1
		case index >= r.First+r.Count:
			return -1
		}
		return 0
	})
	hashes, err := v.trees[n].Inclusion(e.Index)
	if err != nil {
		return nil, err
	}
	r := &Receipt{
		Leaf: e.Leaf, BodyState: state, Body: body,
		Proof: checkpoint.TlogProof{Index: e.Index, Hashes: hashes, Checkpoint: v.checkpoint},
	}
	return r, r.check()
}
