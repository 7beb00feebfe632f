package merkle

import (
	"fmt"
	"math/bits"
)

// RangeProof proves a run [begin, end) of leaves of a tree at once. Left holds the roots of the maximal perfect subtrees of
// [0, begin), Right those of [end, size), both from left to right: at most 64 and 126 hashes. Its form is fixed by begin, end
// and size.
type RangeProof struct{ Left, Right []Hash }

// RangeTree holds the part of a tree that lies above a run of leaves. It is what a batch receipt proves, and it derives each
// leaf's own inclusion proof. It is immutable.
type RangeTree struct {
	begin, end, size uint64
	right            []Hash

	// levels[h] holds neighbouring nodes of height h: those above the run, and the siblings of the outermost. The last node of a
	// level of the tree may be imperfect; one without a sibling stands at the next level as it is (RFC 6962 never doubles it).
	levels []level
	root   Hash
}

// level is a row of nodes of one height, the first of which has number first.
type level struct {
	first  uint64
	hashes []Hash
}

// NewRangeTree computes the tree above leaves, given by their hashes, of which the first has number begin, in a tree of the given
// size. A run or proof whose lengths do not fit begin and size is refused with [ErrProof] before anything is hashed. Nothing is
// verified until the caller has compared Root with a root that it trusts.
func NewRangeTree(begin uint64, leaves []Hash, size uint64, p RangeProof) (*RangeTree, error) {
	n := uint64(len(leaves))
	if n == 0 || begin >= size || n > size-begin {
		return nil, fmt.Errorf("%w: run of %d leaves from %d in a tree of size %d", ErrProof, n, begin, size)
	}
	end := begin + n
	if got, want := len(p.Left), bits.OnesCount64(begin); got != want {
		return nil, fmt.Errorf("%w: run [%d, %d) of size %d: got %d hashes on the left, want %d", ErrProof, begin, end, size, got, want)
	}
	if got, want := len(p.Right), perfectCount(end, size); got != want {
		return nil, fmt.Errorf("%w: run [%d, %d) of size %d: got %d hashes on the right, want %d", ErrProof, begin, end, size, got, want)
	}

	t := &RangeTree{begin: begin, end: end, size: size, right: p.Right, levels: make([]level, 0, bits.Len64(size-1))}
	left, right := p.Left, p.Right
	row := make([]Hash, 1, n+2) // one free place on either side, for the siblings
	row = append(row, leaves...)
	first, past := begin, end // the row has the nodes first to past of its height, from place 1
	last := size - 1          // number of the last node of this height
	for height := uint(0); last > 0; height++ {
		if first%2 == 1 {
			first--
			row[0] = left[len(left)-1]
			left = left[:len(left)-1]
		} else {
			row = row[1:]
		}
		if past%2 == 1 && past <= last {
			if past < size>>height { // the sibling is perfect
				row = append(row, right[0])
				right = right[1:]
			} else { // it is the end of the tree: all that is left
				row = append(row, foldRight(right))
				right = nil
			}
			past++
		}
		t.levels = append(t.levels, level{first, row})

		above := make([]Hash, 1, len(row)/2+3)
		for i := 0; i+1 < len(row); i += 2 {
			above = append(above, NodeHash(row[i], row[i+1]))
		}
		if len(row)%2 == 1 {
			above = append(above, row[len(row)-1])
		}
		row, first, past, last = above, first/2, (past+1)/2, last/2
	}
	t.root = row[1]
	return t, nil
}

// perfectCount returns the number of maximal perfect subtrees of the run of leaves [begin, end).
func perfectCount(begin, end uint64) int {
	n := 0
	for begin < end {
		begin += 1 << perfectHeight(begin, end)
		n++
	}
	return n
}

// Root returns the root that the run and its proof lead to.
func (t *RangeTree) Root() Hash { return t.root }

// Inclusion returns the inclusion proof of a leaf of the run in the whole tree, the same that [ProveInclusion] gives. A leaf
// outside the run is [ErrRange].
func (t *RangeTree) Inclusion(index uint64) ([]Hash, error) {
	if index < t.begin || index >= t.end {
		return nil, fmt.Errorf("%w: leaf %d of the run [%d, %d)", ErrRange, index, t.begin, t.end)
	}
	inner, border := pathShape(index, t.size)
	proof := make([]Hash, 0, inner+border)
	for height, l := range t.levels {
		// Only the last node of its height can lack a sibling, and then the sibling's place is past the row.
		if at := (index>>height ^ 1) - l.first; at < uint64(len(l.hashes)) {
			proof = append(proof, l.hashes[at])
		}
	}
	return proof, nil
}

// Range returns the proof of a part [begin, end) of the run, the same that [ProveRange] gives, so that several runs of one batch
// get their proofs without a look at stored tiles. A part that is empty or not within the run is [ErrRange].
func (t *RangeTree) Range(begin, end uint64) (RangeProof, error) {
	if begin < t.begin || begin >= end || end > t.end {
		return RangeProof{}, fmt.Errorf("%w: part [%d, %d) of the run [%d, %d)", ErrRange, begin, end, t.begin, t.end)
	}
	var p RangeProof
	for _, n := range appendPerfect(nil, 0, begin) {
		p.Left = append(p.Left, t.levels[n.height].at(n.index))
	}
	for _, n := range appendPerfect(nil, end, t.size) {
		if n.index<<n.height >= t.end {
			// From here on both runs have the same perfect subtrees to their right.
			p.Right = append(p.Right, t.right[len(t.right)-perfectCount(n.index<<n.height, t.size):]...)
			break
		}
		p.Right = append(p.Right, t.levels[n.height].at(n.index))
	}
	return p, nil
}

// at returns the node with the given number, which must be in the row.
func (l level) at(index uint64) Hash { return l.hashes[index-l.first] }
