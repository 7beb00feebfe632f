package merkle

import (
	"fmt"
	"math/bits"
)

// VerifyInclusion checks that the tree of the given size and root has, as its leaf number index, one with the given hash (RFC
// 9162 section 2.1.3.2). Any failure is [ErrProof]. A proof of wrong length is refused before anything is hashed.
func VerifyInclusion(leaf Hash, index, size uint64, proof []Hash, root Hash) error {
	if index >= size {
		return fmt.Errorf("%w: leaf %d of a tree of size %d", ErrProof, index, size)
	}
	inner, border := pathShape(index, size)
	if len(proof) != inner+border {
		return fmt.Errorf("%w: inclusion of leaf %d in size %d: got %d hashes, want %d", ErrProof, index, size, len(proof), inner+border)
	}
	got := climbInner(leaf, proof[:inner], index)
	got = climbBorder(got, proof[inner:])
	if got != root {
		return fmt.Errorf("%w: inclusion of leaf %d in size %d: got root %s, want %s", ErrProof, index, size, got, root)
	}
	return nil
}

// VerifyConsistency checks that the tree of size2 leaves and root2 extends that of size1 leaves and root1 (RFC 9162 section
// 2.1.4.2). Any failure is [ErrProof]. Every tree extends the empty one: if size1 is 0, root1 must be [EmptyRoot] and the proof
// empty. A proof of wrong length is refused before anything is hashed.
func VerifyConsistency(size1, size2 uint64, root1, root2 Hash, proof []Hash) error {
	if size1 > size2 {
		return fmt.Errorf("%w: consistency from size %d to the smaller size %d", ErrProof, size1, size2)
	}
	if size1 == 0 && root1 != EmptyRoot() {
		return fmt.Errorf("%w: consistency from size 0: got root %s, want %s", ErrProof, root1, EmptyRoot())
	}
	if size1 == size2 && root1 != root2 {
		return fmt.Errorf("%w: two roots for size %d: %s and %s", ErrProof, size1, root1, root2)
	}
	if size1 == 0 || size1 == size2 {
		if len(proof) != 0 {
			return fmt.Errorf("%w: consistency from size %d to %d: got %d hashes, want 0", ErrProof, size1, size2, len(proof))
		}
		return nil
	}

	// The proof is the path of the older tree's last leaf, less the part that lies within the perfect subtree which ends the
	// older tree. That subtree is the start of the path. If it is the whole older tree, the proof leaves it out.
	height := bits.TrailingZeros64(size1)
	inner, border := pathShape(size1-1, size2)
	inner -= height
	whole := size1 == 1<<height
	want := inner + border
	if !whole {
		want++
	}
	if len(proof) != want {
		return fmt.Errorf("%w: consistency from size %d to %d: got %d hashes, want %d", ErrProof, size1, size2, len(proof), want)
	}
	start := root1
	if !whole {
		start, proof = proof[0], proof[1:]
	}
	position := (size1 - 1) >> height

	// The older tree has no right siblings: only the left ones of the path count.
	got1 := start
	for i, h := range proof[:inner] {
		if position>>i&1 == 1 {
			got1 = NodeHash(h, got1)
		}
	}
	got1 = climbBorder(got1, proof[inner:])
	if got1 != root1 {
		return fmt.Errorf("%w: consistency from size %d to %d: got old root %s, want %s", ErrProof, size1, size2, got1, root1)
	}
	got2 := climbInner(start, proof[:inner], position)
	got2 = climbBorder(got2, proof[inner:])
	if got2 != root2 {
		return fmt.Errorf("%w: consistency from size %d to %d: got new root %s, want %s", ErrProof, size1, size2, got2, root2)
	}
	return nil
}

// pathShape returns the number of siblings on the path from leaf index to the root of a tree of the given size: inner ones up
// to where the path meets that of the last leaf, which may lie on either side, and border ones above, which all lie to the left.
func pathShape(index, size uint64) (inner, border int) {
	inner = bits.Len64(index ^ (size - 1))
	return inner, bits.OnesCount64(index >> inner)
}

// climbInner hashes from a node up through siblings. Bit i of position says whether the path is the right child at step i.
func climbInner(node Hash, siblings []Hash, position uint64) Hash {
	for i, h := range siblings {
		if position>>i&1 == 1 {
			node = NodeHash(h, node)
		} else {
			node = NodeHash(node, h)
		}
	}
	return node
}

// climbBorder hashes from a node up through siblings that all lie to its left.
func climbBorder(node Hash, siblings []Hash) Hash {
	for _, h := range siblings {
		node = NodeHash(h, node)
	}
	return node
}
