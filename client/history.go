package client

import (
	"fmt"
	"math/bits"
	"math/rand/v2"
	"slices"

	"github.com/provledger/provledger/internal/merkle"
)

const (
	// maxWaiting is how many checkpoints may wait to be connected before a check is due at once: it bounds memory to some 300 kB a log.
	maxWaiting = 1024

	// maxSampled is how many waiting checkpoints beside the newest one check proves. A proof costs a round trip and about as much as an
	// append, so proving thousands would halve the throughput of a busy log with many writers.
	maxSampled = 16
)

// keptPast is how many trees are known after seen has moved on: more than there are commands in flight.
const keptPast = 64

// point is a tree that the log has signed. Of the note only a reference is kept.
type point struct {
	size uint64
	root merkle.Hash
	note []byte
}

// prefix is what the proof of one receipt shows about an older tree: its size and root.
type prefix struct {
	size uint64
	root merkle.Hash
}

// history connects the trees that a log signs into one. It is pure: whoever holds it fetches proofs and guards it by a lock.
type history struct {
	seen point             // newest tree that extends everything remembered
	open map[uint64]point  // signed trees, by size, that are not connected with seen yet
	next map[uint64]extend // by size of the older tree: what receipts' own proofs showed
	past []point           // what seen was before, oldest first: answers that were overtaken are still of these
}

// extend says that tree extends one of the given root.
type extend struct {
	root merkle.Hash
	tree point
}

func newHistory(seen point) history {
	return history{seen: seen, open: make(map[uint64]point), next: make(map[uint64]extend)}
}

// add takes note of a signed tree and of what its proof showed about an older one. The error is a fork, with both notes.
func (h *history) add(p point, from prefix) error {
	connected := false
	for _, known := range append(h.past, h.seen) {
		if known.size == p.size && known.root != p.root || known.size == from.size && known.root != from.root {
			return fork(known, p)
		}
		connected = connected || known.size == p.size
	}
	if connected {
		return nil
	}
	if o, ok := h.open[p.size]; ok && o.root != p.root {
		return fork(o, p)
	}
	if o, ok := h.open[from.size]; ok && o.root != from.root {
		return fork(o, p)
	}
	h.open[p.size] = p
	h.next[from.size] = extend{from.root, p}
	for {
		n, ok := h.next[h.seen.size]
		if !ok {
			return nil
		}
		if n.root != h.seen.root {
			return fork(h.seen, n.tree)
		}
		delete(h.next, h.seen.size)
		if n.tree.size > h.seen.size {
			h.move(n.tree)
			delete(h.open, h.seen.size)
		}
	}
}

// move makes a tree that extends seen the one that is seen.
func (h *history) move(p point) {
	if len(h.past) == keptPast {
		h.past = append(h.past[:0], h.past[1:]...)
	}
	h.past = append(h.past, h.seen)
	h.seen = p
}

// sample returns the points that a check proves: the newest first, then some of the others.
func (h *history) sample() []point {
	all := make([]point, 0, len(h.open))
	for _, p := range h.open {
		all = append(all, p)
	}
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	for i := range all {
		if all[i].size > all[0].size {
			all[0], all[i] = all[i], all[0]
		}
	}
	return all[:min(len(all), 1+maxSampled)]
}

// checked takes the outcome of a check: newest was proven to extend base, what seen was then, and what waited then is dealt with.
func (h *history) checked(base, newest point, waited []uint64) {
	for _, size := range waited {
		delete(h.open, size)
	}
	switch {
	case h.seen.size == base.size && newest.size > base.size:
		h.move(newest)
	case newest.size > h.seen.size: // seen moved on meanwhile: both extend base, which does not yet say that they agree
		h.open[newest.size] = newest
	}
	for size := range h.next {
		if size < h.seen.size {
			delete(h.next, size)
		}
	}
}

// forkError says that two signed trees contradict each other.
type forkError struct{ a, b point }

func fork(a, b point) error { return &forkError{a, b} }

func (e *forkError) Error() string {
	if e.a.size == e.b.size {
		return fmt.Sprintf("two roots for size %d: %s and %s", e.a.size, e.a.root, e.b.root)
	}
	return fmt.Sprintf("the tree of size %d with root %s does not extend that of size %d with root %s", e.b.size, e.b.root, e.a.size, e.a.root)
}

func (e *forkError) Unwrap() error { return ErrFork }

// leftSiblings returns the roots of the maximal perfect subtrees of [0, index), left to right, out of the inclusion proof of leaf
// index: the siblings on the left of the path. The proof must have been verified.
func leftSiblings(index, size uint64, proof []merkle.Hash) []merkle.Hash {
	inner := bits.Len64(index ^ (size - 1)) // from here up every sibling is on the left (RFC 9162 section 2.1.3.2)
	var left []merkle.Hash
	for i, h := range proof {
		if i >= inner || index>>i&1 == 1 {
			left = append(left, h)
		}
	}
	slices.Reverse(left)
	return left
}

// prefixOf returns the tree of the leaves before index, whose maximal perfect subtrees are given left to right.
func prefixOf(index uint64, left []merkle.Hash) prefix {
	if len(left) == 0 {
		return prefix{0, merkle.EmptyRoot()}
	}
	root := left[len(left)-1]
	for i := len(left) - 2; i >= 0; i-- {
		root = merkle.NodeHash(left[i], root)
	}
	return prefix{index, root}
}
