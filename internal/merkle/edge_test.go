package merkle

import (
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
)

// Edges that were cloned from each other, in any order and at any time, never see each other's leaves, and views never change.
func TestClonesAndViewsAreIndependent(t *testing.T) {
	type twin struct {
		edge   *Edge
		leaves []Hash
	}
	type shot struct {
		view   View
		leaves []Hash
	}
	random := rand.New(rand.NewPCG(7, 8))
	twins := []twin{{NewEdge(), nil}}
	var shots []shot
	next := 0
	for range 1500 {
		i := random.IntN(len(twins))
		switch random.IntN(4) {
		case 0:
			if len(twins) < 12 {
				twins = append(twins, twin{twins[i].edge.Clone(), slices.Clone(twins[i].leaves)})
			} else { // the original is dropped, as a speculative edge is
				twins[i] = twin{twins[0].edge.Clone(), slices.Clone(twins[0].leaves)}
			}
		case 1:
			shots = append(shots, shot{twins[i].edge.View(), slices.Clone(twins[i].leaves)})
		default:
			for range 1 + random.IntN(120) {
				next++
				leaf := LeafHash([]byte{byte(next), byte(next >> 8), byte(next >> 16)})
				twins[i].edge.Append(leaf, nil)
				twins[i].leaves = append(twins[i].leaves, leaf)
			}
		}
	}
	for _, w := range twins {
		shots = append(shots, shot{w.edge.View(), w.leaves})
	}
	for _, s := range shots {
		ref := newReference(s.leaves)
		size := uint64(len(s.leaves))
		if s.view.Size() != size || s.view.Root() != ref.mth(0, size) {
			t.Fatalf("view of size %d: size %d, root %s, want %s", size, s.view.Size(), s.view.Root(), ref.mth(0, size))
		}
		width := uint64(PartialWidth(0, size))
		tile, ok := s.view.PartialTile(TileID{0, size / TileWidth})
		if ok != (width > 0) || !slices.Equal(tile, s.leaves[size-width:]) {
			t.Fatalf("view of size %d: partial tile changed", size)
		}
		if ok && cap(tile) != len(tile) {
			t.Fatalf("view of size %d: its tile has room for an append that the edge would see", size)
		}
	}
}

// Readers of a view and the edge that grows on share memory without a race (run with -race).
func TestViewsWhileGrowing(t *testing.T) {
	leaves := numbered(3000)
	ref := newReference(leaves)
	var wait sync.WaitGroup
	e := NewEdge()
	for i, leaf := range leaves {
		e.Append(leaf, nil)
		if i%97 != 0 {
			continue
		}
		size := uint64(i + 1)
		want := ref.mth(0, size)
		view, clone := e.View(), e.Clone()
		wait.Go(func() {
			if view.Size() != size || view.Root() != want {
				t.Errorf("view of size %d: size %d, root %s, want %s", size, view.Size(), view.Root(), want)
			}
			if tile, ok := view.PartialTile(TileID{0, size / TileWidth}); ok && tile[len(tile)-1] != leaf {
				t.Errorf("view of size %d: last leaf changed", size)
			}
			clone.Append(Hash{}, nil)
		})
	}
	wait.Wait()
}

func TestZeroView(t *testing.T) {
	var v View
	if v.Size() != 0 || v.Root() != EmptyRoot() || len(v.CompactRange()) != 0 {
		t.Errorf("zero View has size %d, root %s", v.Size(), v.Root())
	}
	if _, ok := v.PartialTile(TileID{}); ok {
		t.Error("zero View has a partial tile")
	}
}

func TestPartialTileOnlyAtTheEdge(t *testing.T) {
	e := NewEdge()
	for _, leaf := range numbered(600) {
		e.Append(leaf, nil)
	}
	v := e.View()
	for id, want := range map[TileID]int{
		{0, 0}: 0, {0, 1}: 0, {0, 2}: 88, {0, 3}: 0, {1, 0}: 2, {1, 1}: 0, {2, 0}: 0, {7, 0}: 0, {8, 0}: 0, {255, 0}: 0,
	} {
		if tile, ok := v.PartialTile(id); ok != (want > 0) || len(tile) != want {
			t.Errorf("partial tile %v has %d hashes, %v, want %d", id, len(tile), ok, want)
		}
	}
}

// A leaf must cost no allocation: only a new partial tile does, one a 256 leaves and level.
func TestAppendAllocations(t *testing.T) {
	e := NewEdge()
	full := func(Tile) {}
	if n := testing.AllocsPerRun(20, func() {
		for range 16 * TileWidth {
			e.Append(Hash{1}, full)
		}
	}); n > 17 {
		t.Errorf("%v allocations for 4096 leaves, want at most 17", n)
	}
}
