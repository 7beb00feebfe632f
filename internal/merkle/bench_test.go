package merkle

import (
	"fmt"
	"testing"
)

func BenchmarkLeafHash(b *testing.B) {
	leaf := make([]byte, 330)
	b.ReportAllocs()
	for b.Loop() {
		LeafHash(leaf)
	}
}

func BenchmarkEdgeAppend(b *testing.B) {
	e := NewEdge()
	full := func(Tile) {}
	b.ReportAllocs()
	for b.Loop() {
		e.Append(Hash{1}, full)
	}
}

func BenchmarkEdgeRoot(b *testing.B) {
	e := newEdgeOf(b, 1<<20-1)
	for b.Loop() {
		e.Root()
	}
}

// sink makes what a benchmark builds escape to the heap, as it does in use.
var sink *Edge

func BenchmarkEdgeClone(b *testing.B) {
	e := newEdgeOf(b, 1<<20-1)
	b.ReportAllocs()
	for b.Loop() {
		sink = e.Clone()
	}
}

func newEdgeOf(b *testing.B, size uint64) *Edge {
	b.Helper()
	e := newEqual()
	edge, err := RestoreEdge(size, func(_, n uint64) ([]Hash, error) { return e.tile(TileID{})[:n], nil },
		func(id TileID) ([]Hash, error) { return e.tile(id), nil })
	if err != nil {
		b.Fatal(err)
	}
	return edge
}

func BenchmarkProveInclusion(b *testing.B) {
	e := newEqual()
	tiles := make([][]Hash, TileLevels)
	for level := range tiles {
		tiles[level] = e.tile(TileID{Level: uint8(level)})
	}
	r := TileReaderFunc(func(id TileID, _ int) ([]Hash, error) { return tiles[id.Level], nil })
	for _, size := range []uint64{100_000, 10_000_000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			b.ReportAllocs()
			index := uint64(0)
			for b.Loop() {
				index = (index + 7919) % size
				if _, err := ProveInclusion(index, size, r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkRangeTree1000(b *testing.B) {
	leaves := numbered(1000)
	left := newEdgeOf(b, 1_000_003).CompactRange()
	b.ReportAllocs()
	for b.Loop() {
		tree, err := NewRangeTree(1_000_003, leaves, 1_001_003, RangeProof{Left: left})
		if err != nil {
			b.Fatal(err)
		}
		for i := range uint64(1000) {
			if _, err := tree.Inclusion(1_000_003 + i); err != nil {
				b.Fatal(err)
			}
		}
	}
}
