package client

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/provledger/provledger/internal/merkle"
)

// world grows a tree and keeps every root and proof: the oracle.
type world struct {
	name  string
	edge  *merkle.Edge
	tiles map[merkle.TileID][]merkle.Hash
	roots []merkle.Hash // by size
}

func newWorld(name string, size int) *world {
	w := &world{name: name, edge: merkle.NewEdge(), tiles: map[merkle.TileID][]merkle.Hash{}, roots: []merkle.Hash{merkle.EmptyRoot()}}
	w.grow("common", size)
	return w
}

func (w *world) grow(salt string, n int) {
	for range n {
		h := merkle.LeafHash(fmt.Appendf(nil, "%s %d", salt, w.edge.Size()))
		w.edge.Append(h, func(t merkle.Tile) { w.tiles[t.ID] = t.Hashes[:] })
		w.roots = append(w.roots, w.edge.Root())
	}
}

func (w *world) point(size int) point {
	return point{uint64(size), w.roots[size], fmt.Appendf(nil, "%s %d", w.name, size)}
}

func (w *world) ReadTile(id merkle.TileID, width int) ([]merkle.Hash, error) {
	if p, ok := w.edge.View().PartialTile(id); ok {
		return p, nil
	}
	return w.tiles[id], nil
}

func (w *world) prefix(t *testing.T, index, size int) prefix {
	t.Helper()
	proof, err := merkle.ProveInclusion(uint64(index), uint64(size), w)
	if err != nil {
		t.Fatal(err)
	}
	return prefixOf(uint64(index), leftSiblings(uint64(index), uint64(size), proof))
}

// What an inclusion proof shows of the tree before its leaf, against the tree itself, for all leaves of all sizes.
func TestPrefixOfEveryProof(t *testing.T) {
	const most = 300
	w := newWorld("w", most)
	for size := 1; size <= most; size++ {
		for index := range size {
			if p := w.prefix(t, index, size); p.size != uint64(index) || p.root != w.roots[index] {
				t.Fatalf("leaf %d of %d shows %+v, want root %s", index, size, p, w.roots[index])
			}
		}
	}
}

// However receipts of an honest log arrive, there is no alarm; and when each tree begins where another ends, they all connect.
func TestHistoryOfAnHonestLog(t *testing.T) {
	w := newWorld("w", 400)
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 0))
		h := newHistory(w.point(100))
		type step struct{ index, size int }
		var steps []step
		gaps := seed%2 == 1 // others write in between
		for at := 100; at < 390; {
			if gaps {
				at += rng.IntN(3)
			}
			size := min(at+1+rng.IntN(8), 400)
			for i := at; i < size; i++ {
				steps = append(steps, step{i, size})
			}
			at = size
		}
		// Answers overtake each other a little.
		for i := range steps {
			j := min(i+rng.IntN(12), len(steps)-1)
			steps[i], steps[j] = steps[j], steps[i]
		}
		for _, s := range steps {
			if err := h.add(w.point(s.size), w.prefix(t, s.index, s.size)); err != nil {
				t.Fatalf("seed %d: false alarm: %v", seed, err)
			}
		}
		if !gaps && (len(h.open) != 0 || h.seen.size < 390) {
			t.Fatalf("seed %d: seen %d with %d waiting", seed, h.seen.size, len(h.open))
		}
		if h.seen.root != w.roots[h.seen.size] {
			t.Fatalf("seed %d: seen is of no tree", seed)
		}
	}
}

// Trees of a fork never become what is seen, as long as a true one is: at once if a proof shows it, else they wait for the check.
func TestHistoryOfAForkedLog(t *testing.T) {
	a, b := newWorld("a", 100), newWorld("b", 100)
	a.grow("a", 100)
	b.grow("b", 100)
	alarms := 0
	for seed := range uint64(500) {
		rng := rand.New(rand.NewPCG(seed, 1))
		h := newHistory(a.point(101 + rng.IntN(20)))
		for range 30 {
			w := a
			if rng.IntN(4) == 0 {
				w = b
			}
			size := 102 + rng.IntN(98)
			err := h.add(w.point(size), w.prefix(t, rng.IntN(size), size))
			if err != nil {
				f, ok := errors.AsType[*forkError](err)
				if !ok || !errors.Is(err, ErrFork) || f.a.note == nil || f.b.note == nil || f.a.note[0] == f.b.note[0] {
					t.Fatalf("seed %d: alarm %v without evidence of both histories", seed, err)
				}
				alarms++
				break
			}
			if h.seen.root != a.roots[h.seen.size] {
				t.Fatalf("seed %d: a tree of the fork is seen as the log", seed)
			}
		}
	}
	if alarms < 250 {
		t.Errorf("only %d of 500 forks raised an alarm from the proofs alone", alarms)
	}
}

// A check proves the newest tree always, and no more than it should.
func TestSample(t *testing.T) {
	w := newWorld("w", 200)
	h := newHistory(w.point(1))
	if len(h.sample()) != 0 {
		t.Fatal("nothing waits, something is sampled")
	}
	for size := 199; size > 10; size-- {
		if err := h.add(w.point(size), prefix{0, merkle.EmptyRoot()}); err != nil {
			t.Fatal(err)
		}
	}
	for range 20 {
		s := h.sample()
		if len(s) != 1+maxSampled || s[0].size != 199 {
			t.Fatalf("%d sampled, the first of size %d", len(s), s[0].size)
		}
	}
}

// While a check fetches its proof, other receipts move seen on. Both trees extend the old one, which does not mean that they agree.
func TestCheckThatWasOvertaken(t *testing.T) {
	a, b := newWorld("a", 100), newWorld("b", 100)
	a.grow("a", 20)
	b.grow("b", 20)
	h := newHistory(a.point(100))
	base := h.seen
	if err := h.add(b.point(110), prefix{3, a.roots[3]}); err != nil { // waits; the check takes it
		t.Fatal(err)
	}
	if err := h.add(a.point(105), a.prefix(t, 100, 105)); err != nil || h.seen.size != 105 {
		t.Fatalf("seen %d, %v", h.seen.size, err)
	}
	h.checked(base, b.point(110), []uint64{110})
	if h.seen.size != 105 || len(h.open) != 1 {
		t.Errorf("seen %d with %d waiting: a tree was taken over that is proven against another", h.seen.size, len(h.open))
	}
}

// A fork is noticed at once also where the proof speaks of a tree that seen has left behind, and where seen arrives only later at the size
// that a waiting proof speaks of.
func TestForksThatProofsShow(t *testing.T) {
	a, b := newWorld("a", 100), newWorld("b", 100)
	a.grow("a", 50)
	b.grow("b", 50)
	h := newHistory(a.point(105))
	if err := h.add(a.point(120), a.prefix(t, 105, 120)); err != nil || h.seen.size != 120 {
		t.Fatalf("seen %d, %v", h.seen.size, err)
	}
	if err := h.add(b.point(130), b.prefix(t, 105, 130)); !errors.Is(err, ErrFork) {
		t.Errorf("a tree beside a past one: %v", err)
	}
	h = newHistory(a.point(105))
	if err := h.add(b.point(130), b.prefix(t, 120, 130)); err != nil {
		t.Fatal(err)
	}
	if err := h.add(a.point(120), a.prefix(t, 105, 120)); !errors.Is(err, ErrFork) {
		t.Errorf("seen arrives where a waiting tree parted: %v", err)
	}
}
