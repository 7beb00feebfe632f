package merkle

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// checkRange proves a run, compares with the reference, and derives everything that a run gives.
func checkRange(t *testing.T, g *grown, ref *reference, begin, end, size uint64) {
	t.Helper()
	p, err := ProveRange(begin, end, size, g.reader(t, size))
	if err != nil {
		t.Fatalf("range [%d, %d) of %d: %v", begin, end, size, err)
	}
	want := ref.rangeProof(begin, end, size)
	if !slices.Equal(p.Left, want.Left) || !slices.Equal(p.Right, want.Right) {
		t.Fatalf("range [%d, %d) of %d: got %v, want %v", begin, end, size, p, want)
	}
	run := slices.Clone(ref.leaves[begin:end])
	tree, err := NewRangeTree(begin, run, size, p)
	if err != nil {
		t.Fatal(err)
	}
	clear(run) // the tree must not live on the caller's memory
	if tree.Root() != ref.mth(0, size) {
		t.Fatalf("range [%d, %d) of %d: got root %s, want %s", begin, end, size, tree.Root(), ref.mth(0, size))
	}
	for index := begin; index < end; index++ {
		path, err := tree.Inclusion(index)
		if err != nil || !slices.Equal(path, ref.path(index, 0, size)) {
			t.Fatalf("leaf %d of range [%d, %d) of %d: got %v, %v, want %v", index, begin, end, size, path, err, ref.path(index, 0, size))
		}
	}
	n := end - begin
	for _, part := range []span{{begin, end}, {begin + n/3, end}, {begin, begin + (n+1)/2}, {begin + n/2, begin + n/2 + 1}} {
		if part.begin == part.end {
			continue
		}
		got, err := tree.Range(part.begin, part.end)
		want := ref.rangeProof(part.begin, part.end, size)
		if err != nil || !slices.Equal(got.Left, want.Left) || !slices.Equal(got.Right, want.Right) {
			t.Fatalf("part %v of range [%d, %d) of %d: got %v, %v, want %v", part, begin, end, size, got, err, want)
		}
	}
	for _, index := range []uint64{begin - 1, end, size} {
		if _, err := tree.Inclusion(index); !errors.Is(err, ErrRange) {
			t.Fatalf("leaf %d of range [%d, %d): got %v, want ErrRange", index, begin, end, err)
		}
	}
	for _, part := range []span{{begin, begin}, {begin - 1, end}, {begin, end + 1}, {end, begin}} {
		if _, err := tree.Range(part.begin, part.end); !errors.Is(err, ErrRange) {
			t.Fatalf("part %v of range [%d, %d): got %v, want ErrRange", part, begin, end, err)
		}
	}
}

// Every run in every size to 40, then runs of any kind across tiles.
func TestRanges(t *testing.T) {
	const last = 3000
	leaves := numbered(last)
	ref := newReference(leaves)
	g := newGrown()
	g.append(t, leaves...)
	for size := uint64(1); size <= 40; size++ {
		for begin := range size {
			for end := begin + 1; end <= size; end++ {
				checkRange(t, g, ref, begin, end, size)
			}
		}
	}
	random := rand.New(rand.NewPCG(9, 10))
	for range 200 {
		size := 1 + random.Uint64N(last)
		begin := random.Uint64N(size)
		end := begin + 1 + random.Uint64N(min(size-begin, 700))
		checkRange(t, g, ref, begin, end, size)
	}
	checkRange(t, g, ref, 255, 257, 257)
	checkRange(t, g, ref, 256, 512, 512)
	checkRange(t, g, ref, 1000, 2000, 2000)
}

// The compact range before a batch is the left side of the batch's proof: nothing need be read to prove what was just appended.
func TestRangeFromCompactRange(t *testing.T) {
	leaves := numbered(700)
	e := NewEdge()
	for begin := uint64(0); begin < 600; begin += 37 {
		before := e.View()
		for _, leaf := range leaves[begin : begin+37] {
			e.Append(leaf, nil)
		}
		tree, err := NewRangeTree(begin, leaves[begin:begin+37], e.Size(), RangeProof{Left: before.CompactRange()})
		if err != nil || tree.Root() != e.Root() {
			t.Fatalf("batch at %d: %v", begin, err)
		}
	}
}

func TestMutatedRangesFail(t *testing.T) {
	leaves := numbered(300)
	ref := newReference(leaves)
	for _, test := range []struct{ begin, end, size uint64 }{
		{0, 1, 1}, {0, 1, 2}, {1, 2, 2}, {3, 6, 7}, {5, 9, 13}, {100, 200, 300}, {0, 299, 300}, {1, 300, 300}, {255, 257, 300},
	} {
		p := ref.rangeProof(test.begin, test.end, test.size)
		run := leaves[test.begin:test.end]
		root := ref.mth(0, test.size)
		refused := func(what string, begin uint64, run []Hash, size uint64, p RangeProof) {
			t.Helper()
			tree, err := NewRangeTree(begin, run, size, p)
			if err != nil && !errors.Is(err, ErrProof) {
				t.Errorf("%v: %s: got %v, want ErrProof", test, what, err)
			}
			if err == nil && tree.Root() == root {
				t.Errorf("%v: %s: accepted", test, what)
			}
		}
		for name, q := range mutations(p.Left) {
			refused("left: "+name, test.begin, run, test.size, RangeProof{q, p.Right})
		}
		for name, q := range mutations(p.Right) {
			refused("right: "+name, test.begin, run, test.size, RangeProof{p.Left, q})
		}
		for name, q := range mutations(run) {
			refused("run: "+name, test.begin, q, test.size, p)
		}
		for begin := range test.size {
			if begin != test.begin {
				refused(fmt.Sprintf("begin %d", begin), begin, run, test.size, p)
			}
		}
		refused("no leaves", test.begin, nil, test.size, p)
		refused("size 0", test.begin, run, 0, p)
		refused("begin overflows", 1<<64-1, run, 1<<64-1, p)
	}
}
