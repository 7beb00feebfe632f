package merkle

import (
	"fmt"
	"math/bits"
)

// Edge is the right edge of a growing tree: all that is needed to append leaves and to know the root, without a look at what is
// stored. It takes at most 64 KiB, however large the tree.
//
// An Edge must not be used from two goroutines at once, and must not be copied but by [Edge.Clone]: an Edge is the only one
// that writes beyond the length of its partial tiles, which is what lets clones and views share them.
type Edge struct {
	size uint64

	// peaks[h] is the root of the perfect subtree of height h of the compact range [0, size): valid if bit h of size is set.
	peaks [64]Hash

	// tiles[l] is the partial tile at level l. What has been appended is never changed, since clones and views share it. The
	// spare capacity, if any, belongs to this Edge alone.
	tiles [TileLevels][]Hash
}

// NewEdge returns the edge of the empty tree.
func NewEdge() *Edge { return &Edge{} }

// Append adds a leaf, given by its hash. For each tile that this leaf completes, it calls full, if not nil, lowest level first,
// before Size grows. It costs one node hash a leaf on average and allocates only when a partial tile starts.
func (e *Edge) Append(leafHash Hash, full func(Tile)) {
	e.push(0, leafHash)
	node, height := leafHash, 0
	for ; e.size>>height&1 == 1; height++ {
		node = NodeHash(e.peaks[height], node)
		if (height+1)%TileHeight == 0 {
			// The perfect subtree that was just closed is a whole tile, and its root the next hash one level up.
			level := height / TileHeight
			if full != nil {
				full(Tile{
					ID:     TileID{Level: uint8(level), Index: e.size >> (TileHeight * (level + 1))},
					Hashes: [TileWidth]Hash(e.tiles[level]),
				})
			}
			e.tiles[level] = nil // not [:0]: views may still read it
			e.push(level+1, node)
		}
	}
	e.peaks[height] = node
	e.size++
}

// push appends a hash to the partial tile of a level. A tile without spare capacity is new, or shared with the Edge that this
// one was cloned from: it is copied first.
func (e *Edge) push(level int, h Hash) {
	tile := e.tiles[level]
	if len(tile) == cap(tile) {
		tile = make([]Hash, len(tile), TileWidth)
		copy(tile, e.tiles[level])
	}
	e.tiles[level] = append(tile, h)
}

// Size returns the number of leaves.
func (e *Edge) Size() uint64 { return e.size }

// Root returns the root of the tree, [EmptyRoot] if it has no leaf. It costs at most one node hash a bit of Size.
func (e *Edge) Root() Hash {
	if e.size == 0 {
		return EmptyRoot()
	}
	height := bits.TrailingZeros64(e.size)
	root := e.peaks[height]
	for height++; e.size>>height != 0; height++ {
		if e.size>>height&1 == 1 {
			root = NodeHash(e.peaks[height], root)
		}
	}
	return root
}

// CompactRange returns the roots of the maximal perfect subtrees of [0, Size), left to right. No hash is computed. It is the
// Left of the [RangeProof] of any run that begins at Size, that is, of the leaves appended next.
func (e *Edge) CompactRange() []Hash {
	peaks := make([]Hash, 0, bits.OnesCount64(e.size))
	for height := bits.Len64(e.size) - 1; height >= 0; height-- {
		if e.size>>height&1 == 1 {
			peaks = append(peaks, e.peaks[height])
		}
	}
	return peaks
}

// Clone returns an independent Edge of the same tree. It shares the partial tiles: the clone copies one before its first append
// to it, the original goes on in place, behind what the clone can see.
func (e *Edge) Clone() *Edge {
	c := &Edge{size: e.size, peaks: e.peaks}
	for level, tile := range e.tiles {
		c.tiles[level] = tile[:len(tile):len(tile)]
	}
	return c
}

// View returns the edge as it is now, for any number of concurrent readers, while the Edge goes on growing.
func (e *Edge) View() View { return View{e.Clone()} }

// View is an immutable right edge. The zero View is that of the empty tree.
type View struct {
	edge *Edge // a clone that nobody appends to; nil for the empty tree
}

// Size returns the number of leaves.
func (v View) Size() uint64 {
	if v.edge == nil {
		return 0
	}
	return v.edge.size
}

// Edge returns an edge that continues from the view on its own.
func (v View) Edge() *Edge {
	if v.edge == nil {
		return NewEdge()
	}
	return v.edge.Clone()
}

// Root returns the root of the tree, as [Edge.Root].
func (v View) Root() Hash {
	if v.edge == nil {
		return EmptyRoot()
	}
	return v.edge.Root()
}

// CompactRange returns the maximal perfect subtrees of [0, Size), as [Edge.CompactRange].
func (v View) CompactRange() []Hash {
	if v.edge == nil {
		return nil
	}
	return v.edge.CompactRange()
}

// PartialTile returns the 1 to 255 hashes of a tile, and true, if it is the partial tile of its level. The caller must not
// change them.
func (v View) PartialTile(id TileID) ([]Hash, bool) {
	if id.Level >= TileLevels || v.edge == nil {
		return nil, false
	}
	tile := v.edge.tiles[id.Level]
	if len(tile) == 0 || id.Index != v.edge.size>>(TileHeight*uint(id.Level))/TileWidth {
		return nil, false
	}
	return tile, true
}

// PartialWidth returns the number of hashes, 0 to 255, in the partial tile at a level of a tree of the given size (C2SP
// tlog-tiles). At 0 there is no such tile.
func PartialWidth(level uint8, size uint64) int {
	return int(size >> (TileHeight * uint(level)) % TileWidth)
}

// RestoreEdge rebuilds the edge of a tree of the given size from what is stored. It calls leaves at most once, for the hashes of
// the n <= 255 leaves from first on that fill no tile yet, and tile for the full tiles, at most 255 a level, whose roots make up
// the partial tiles above. The result is as good as what it is given: compare its Root with the recorded one.
func RestoreEdge(size uint64, leaves func(first, n uint64) ([]Hash, error), tile func(TileID) ([]Hash, error)) (*Edge, error) {
	e := &Edge{size: size}
	for level := range TileLevels {
		width := PartialWidth(uint8(level), size)
		if width == 0 {
			continue
		}
		first := size>>(TileHeight*level) - uint64(width)
		partial := make([]Hash, 0, TileWidth)
		if level == 0 {
			hashes, err := leaves(first, uint64(width))
			if err != nil {
				return nil, fmt.Errorf("merkle: restore edge: leaves %d to %d: %w", first, size, err)
			}
			if len(hashes) != width {
				return nil, fmt.Errorf("merkle: restore edge: leaves %d to %d: got %d hashes, want %d", first, size, len(hashes), width)
			}
			partial = append(partial, hashes...)
		} else {
			for i := range uint64(width) {
				id := TileID{Level: uint8(level - 1), Index: first + i}
				hashes, err := tile(id)
				if err != nil {
					return nil, fmt.Errorf("merkle: restore edge: %s: %w", TilePath(id, TileWidth), err)
				}
				if len(hashes) != TileWidth {
					return nil, fmt.Errorf("merkle: restore edge: %s: got %d hashes, want %d", TilePath(id, TileWidth), len(hashes), TileWidth)
				}
				partial = append(partial, perfectRoot(hashes))
			}
		}
		e.tiles[level] = partial
		rest := partial
		for bit := TileHeight - 1; bit >= 0; bit-- {
			if width>>bit&1 == 1 {
				e.peaks[TileHeight*level+bit] = perfectRoot(rest[:1<<bit])
				rest = rest[1<<bit:]
			}
		}
	}
	return e, nil
}
