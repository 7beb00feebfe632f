package merkle

import (
	"fmt"
	"math/bits"
	"slices"
)

// TileReader gives access to the hashes of the tree that is being proved.
type TileReader interface {
	// ReadTile returns at least the first width hashes (1 <= width <= 256) of a tile. Proof functions ask at most once for a
	// tile, only for hashes that a tree of the given size has, and do not change what they get.
	ReadTile(id TileID, width int) ([]Hash, error)
}

// TileReaderFunc is a function that serves as [TileReader].
type TileReaderFunc func(id TileID, width int) ([]Hash, error)

// ReadTile calls f.
func (f TileReaderFunc) ReadTile(id TileID, width int) ([]Hash, error) { return f(id, width) }

// RootAt returns the root of the first size leaves. [EmptyRoot] needs no tile.
func RootAt(size uint64, r TileReader) (Hash, error) {
	if size == 0 {
		return EmptyRoot(), nil
	}
	hashes, err := (plan{{0, size}}).subtreeRoots(r)
	if err != nil {
		return Hash{}, err
	}
	return hashes[0], nil
}

// ProveInclusion returns the inclusion proof of leaf index in the tree of the first size leaves: the siblings on the way from
// the leaf up to a child of the root (RFC 6962 section 2.1.1).
func ProveInclusion(index, size uint64, r TileReader) ([]Hash, error) {
	if index >= size {
		return nil, fmt.Errorf("%w: leaf %d of a tree of size %d", ErrRange, index, size)
	}
	return planInclusion(index, size).subtreeRoots(r)
}

// ProveConsistency returns the proof that the tree of the first size2 leaves extends that of the first size1 (RFC 6962 section
// 2.1.2). It is empty if size1 is 0, of which the RFC says nothing, or equals size2.
func ProveConsistency(size1, size2 uint64, r TileReader) ([]Hash, error) {
	if size1 > size2 {
		return nil, fmt.Errorf("%w: consistency from size %d to the smaller size %d", ErrRange, size1, size2)
	}
	return planConsistency(size1, size2).subtreeRoots(r)
}

// ProveRange returns the proof of the run of leaves [begin, end) in the tree of the first size leaves; begin < end <= size.
func ProveRange(begin, end, size uint64, r TileReader) (RangeProof, error) {
	if begin >= end || end > size {
		return RangeProof{}, fmt.Errorf("%w: run [%d, %d) of a tree of size %d", ErrRange, begin, end, size)
	}
	left := appendPerfect(nil, 0, begin)
	all := appendPerfect(left, end, size)
	hashes, err := readNodes(all, r)
	if err != nil {
		return RangeProof{}, err
	}
	return RangeProof{Left: hashes[:len(left):len(left)], Right: hashes[len(left):]}, nil
}

// span is the half-open run of leaves under one node of the tree.
type span struct{ begin, end uint64 }

// plan lists the nodes whose hashes make up a proof, in the order of the proof.
type plan []span

// planInclusion follows PATH of RFC 6962 section 2.1.1 from the root down to the leaf.
func planInclusion(index, size uint64) plan {
	var p plan
	for at := (span{0, size}); at.end-at.begin > 1; {
		split := at.begin + splitPoint(at.end-at.begin)
		if index < split {
			p = append(p, span{split, at.end})
			at.end = split
		} else {
			p = append(p, span{at.begin, split})
			at.begin = split
		}
	}
	slices.Reverse(p)
	return p
}

// planConsistency follows SUBPROOF of RFC 6962 section 2.1.2 from the root down to the right edge of the older tree.
func planConsistency(size1, size2 uint64) plan {
	if size1 == 0 || size1 == size2 {
		return nil
	}
	var p plan
	at := span{0, size2}
	for at.end != size1 {
		split := at.begin + splitPoint(at.end-at.begin)
		if size1 <= split {
			p = append(p, span{split, at.end})
			at.end = split
		} else {
			p = append(p, span{at.begin, split})
			at.begin = split
		}
	}
	if at.begin > 0 { // else it is the whole older tree, whose root the verifier has
		p = append(p, at)
	}
	slices.Reverse(p)
	return p
}

// splitPoint returns the largest power of two below n, which must be at least 2.
func splitPoint(n uint64) uint64 { return 1 << (bits.Len64(n-1) - 1) }

// subtreeRoots returns the hash of each node of the plan.
func (p plan) subtreeRoots(r TileReader) ([]Hash, error) {
	// A node at the right edge is not perfect: it is folded from the perfect subtrees below it.
	var nodes []node
	ends := make([]int, len(p))
	for i, s := range p {
		nodes = appendPerfect(nodes, s.begin, s.end)
		ends[i] = len(nodes)
	}
	hashes, err := readNodes(nodes, r)
	if err != nil {
		return nil, err
	}
	roots := make([]Hash, len(p))
	begin := 0
	for i, end := range ends {
		roots[i] = foldRight(hashes[begin:end])
		begin = end
	}
	return roots, nil
}

// node is the perfect subtree of the given height whose first leaf is index*2^height.
type node struct {
	height uint
	index  uint64
}

// appendPerfect appends the maximal perfect subtrees of the run of leaves [begin, end), left to right.
func appendPerfect(nodes []node, begin, end uint64) []node {
	for begin < end {
		height := perfectHeight(begin, end)
		nodes = append(nodes, node{height, begin >> height})
		begin += 1 << height
	}
	return nodes
}

// perfectHeight returns the height of the largest perfect subtree that starts with leaf begin and ends by end > begin.
func perfectHeight(begin, end uint64) uint {
	fits := uint(bits.Len64(end-begin)) - 1
	if begin == 0 {
		return fits // zero is aligned to anything
	}
	return min(fits, uint(bits.TrailingZeros64(begin)))
}

// tile returns where the hash of a perfect subtree comes from: it is the root over hashes [begin, end) of the tile.
func (n node) tile() (id TileID, begin, end int) {
	above := n.height % TileHeight // levels between the tile's hashes and the node
	first := n.index << above
	begin = int(first % TileWidth)
	return TileID{Level: uint8(n.height / TileHeight), Index: first / TileWidth}, begin, begin + 1<<above
}

// readNodes returns the hash of each node. It reads each tile at most once, as wide as any of the nodes needs it.
func readNodes(nodes []node, r TileReader) ([]Hash, error) {
	type read struct {
		id     TileID
		width  int
		hashes []Hash
	}
	// A proof needs about two tiles a level: a search is quicker than a map.
	reads := make([]read, 0, 2*TileLevels)
	find := func(id TileID) *read {
		for i := range reads {
			if reads[i].id == id {
				return &reads[i]
			}
		}
		reads = append(reads, read{id: id})
		return &reads[len(reads)-1]
	}
	for _, n := range nodes {
		id, _, end := n.tile()
		t := find(id)
		t.width = max(t.width, end)
	}
	for i := range reads {
		t := &reads[i]
		hashes, err := r.ReadTile(t.id, t.width)
		if err != nil {
			return nil, fmt.Errorf("merkle: read %s: %w", TilePath(t.id, t.width), err)
		}
		if len(hashes) < t.width {
			return nil, fmt.Errorf("merkle: read %s: got %d hashes, want at least %d", TilePath(t.id, t.width), len(hashes), t.width)
		}
		t.hashes = hashes
	}
	hashes := make([]Hash, len(nodes))
	for i, n := range nodes {
		id, begin, end := n.tile()
		hashes[i] = perfectRoot(find(id).hashes[begin:end])
	}
	return hashes, nil
}
