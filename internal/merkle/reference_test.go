package merkle

import (
	"fmt"
	"math/bits"
	"testing"
)

// reference is RFC 6962 section 2.1 taken literally, over the leaf hashes of one tree. It is the oracle of this package: slow,
// recursive, and knowing nothing of tiles. MTH is memoised, or the exhaustive tests would take minutes.
type reference struct {
	leaves []Hash
	memo   map[span]Hash
}

func newReference(leaves []Hash) *reference {
	return &reference{leaves: leaves, memo: make(map[span]Hash)}
}

// mth is MTH(D[begin:end]) of section 2.1.
func (r *reference) mth(begin, end uint64) Hash {
	switch end - begin {
	case 0:
		return EmptyRoot()
	case 1:
		return r.leaves[begin]
	}
	if h, ok := r.memo[span{begin, end}]; ok {
		return h
	}
	k := largestPowerBelow(end - begin)
	h := NodeHash(r.mth(begin, begin+k), r.mth(begin+k, end))
	r.memo[span{begin, end}] = h
	return h
}

// path is PATH(m, D[begin:end]) of section 2.1.1, m counted from begin.
func (r *reference) path(m, begin, end uint64) []Hash {
	n := end - begin
	if n == 1 {
		return nil
	}
	k := largestPowerBelow(n)
	if m < k {
		return append(r.path(m, begin, begin+k), r.mth(begin+k, end))
	}
	return append(r.path(m-k, begin+k, end), r.mth(begin, begin+k))
}

// proof is PROOF(m, D[n]) of section 2.1.2.
func (r *reference) proof(m, n uint64) []Hash {
	if m == 0 {
		return nil
	}
	return r.subproof(m, 0, n, true)
}

func (r *reference) subproof(m, begin, end uint64, b bool) []Hash {
	n := end - begin
	if m == n {
		if b {
			return nil
		}
		return []Hash{r.mth(begin, end)}
	}
	k := largestPowerBelow(n)
	if m <= k {
		return append(r.subproof(m, begin, begin+k, b), r.mth(begin+k, end))
	}
	return append(r.subproof(m-k, begin+k, end, false), r.mth(begin, begin+k))
}

// largestPowerBelow returns the k of section 2.1: a power of two with k < n <= 2k.
func largestPowerBelow(n uint64) uint64 {
	k := uint64(1)
	for k < n-k { // not 2*k < n, which overflows
		k *= 2
	}
	return k
}

// rangeProof lists maximal perfect subtrees by trying every one that could be.
func (r *reference) rangeProof(begin, end, size uint64) RangeProof {
	cover := func(from, to uint64) []Hash {
		var hashes []Hash
		for from < to {
			width := uint64(1)
			for from%(2*width) == 0 && from+2*width <= to {
				width *= 2
			}
			hashes = append(hashes, r.mth(from, from+width))
			from += width
		}
		return hashes
	}
	return RangeProof{Left: cover(0, begin), Right: cover(end, size)}
}

// climb and climbTwo are the second, independent verifier: the algorithms of RFC 9162 with their two counters fn and sn, where
// verify.go works with bit counts.

// climb is RFC 9162 section 2.1.3.2.
func climb(leaf Hash, index, size uint64, proof []Hash, root Hash) bool {
	if index >= size {
		return false
	}
	fn, sn := index, size-1
	r := leaf
	for _, p := range proof {
		if sn == 0 {
			return false
		}
		if fn&1 == 1 || fn == sn {
			r = NodeHash(p, r)
			if fn&1 == 0 {
				for fn != 0 && fn&1 == 0 {
					fn >>= 1
					sn >>= 1
				}
			}
		} else {
			r = NodeHash(r, p)
		}
		fn >>= 1
		sn >>= 1
	}
	return sn == 0 && r == root
}

// climbTwo is RFC 9162 section 2.1.4.2, with the cases that the RFC leaves out as VerifyConsistency defines them.
func climbTwo(first, second uint64, firstHash, secondHash Hash, path []Hash) bool {
	switch {
	case first > second:
		return false
	case first == second:
		return len(path) == 0 && firstHash == secondHash && (first > 0 || firstHash == EmptyRoot())
	case first == 0:
		return len(path) == 0 && firstHash == EmptyRoot()
	case len(path) == 0:
		return false
	}
	if bits.OnesCount64(first) == 1 {
		path = append([]Hash{firstHash}, path...)
	}
	fn, sn := first-1, second-1
	for fn&1 == 1 {
		fn >>= 1
		sn >>= 1
	}
	fr, sr := path[0], path[0]
	for _, c := range path[1:] {
		if sn == 0 {
			return false
		}
		if fn&1 == 1 || fn == sn {
			fr, sr = NodeHash(c, fr), NodeHash(c, sr)
			for fn&1 == 0 && fn != 0 {
				fn >>= 1
				sn >>= 1
			}
		} else {
			sr = NodeHash(sr, c)
		}
		fn >>= 1
		sn >>= 1
	}
	return sn == 0 && fr == firstHash && sr == secondHash
}

// numbered returns n leaf hashes, all different.
func numbered(n int) []Hash {
	leaves := make([]Hash, n)
	for i := range leaves {
		leaves[i] = LeafHash(fmt.Appendf(nil, "leaf %d", i))
	}
	return leaves
}

// grown is a tree as a ledger keeps it: the edge in memory, full tiles in a store.
type grown struct {
	edge  *Edge
	full  map[TileID][]Hash
	order []TileID
}

func newGrown() *grown { return &grown{edge: NewEdge(), full: make(map[TileID][]Hash)} }

func (g *grown) append(t testing.TB, leaves ...Hash) {
	t.Helper()
	for _, leaf := range leaves {
		g.edge.Append(leaf, func(tile Tile) {
			if _, ok := g.full[tile.ID]; ok {
				t.Fatalf("size %d: full tile %v written a second time", g.edge.Size(), tile.ID)
			}
			g.full[tile.ID] = tile.Hashes[:]
			g.order = append(g.order, tile.ID)
		})
	}
}

// reader serves the tree of the given size and no more. It fails the test if a tile is read twice, or hashes are asked for that
// a tree of that size does not have.
func (g *grown) reader(t testing.TB, size uint64) TileReader {
	t.Helper()
	view := g.edge.View()
	seen := make(map[TileID]bool)
	return TileReaderFunc(func(id TileID, width int) ([]Hash, error) {
		if seen[id] {
			t.Fatalf("size %d: tile %v read twice", size, id)
		}
		seen[id] = true
		if has := size >> (TileHeight * uint(id.Level)); width < 1 || width > TileWidth || id.Index*TileWidth+uint64(width) > has {
			t.Fatalf("size %d: %d hashes of tile %v read, level has %d", size, width, id, has)
		}
		if hashes, ok := g.full[id]; ok {
			return hashes, nil
		}
		if hashes, ok := view.PartialTile(id); ok {
			return hashes, nil
		}
		return nil, fmt.Errorf("tile %v is neither full nor partial at size %d", id, view.Size())
	})
}

// leavesOf and tileOf serve RestoreEdge.
func leavesOf(leaves []Hash) func(first, n uint64) ([]Hash, error) {
	return func(first, n uint64) ([]Hash, error) { return leaves[first : first+n], nil }
}

func (g *grown) tileOf(id TileID) ([]Hash, error) {
	hashes, ok := g.full[id]
	if !ok {
		return nil, fmt.Errorf("tile %v was not stored", id)
	}
	return hashes, nil
}
