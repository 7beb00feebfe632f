// Package merkle is the arithmetic of the ledger's trees: hashing, growing, proving and verifying.
//
// # Contract
//
// Trees are those of RFC 6962 section 2.1 (RFC 9162 section 2.1 hashes alike) over SHA-256. Functions are pure: no clock, no
// network, no goroutine, no storage. Stored hashes come in through [TileReader] and go out through the callback of
// [Edge.Append]. Proof planning never reads a tile twice for one proof.
//
// What a disk or a peer can cause comes back as an error: [ErrProof] when a proof does not verify, [ErrRange] when an index or
// a size does not fit the tree, the reader's own error when a tile cannot be had.
//
// # Format
//
//	leaf hash   SHA-256(0x00 || leaf bytes)
//	node hash   SHA-256(0x01 || left || right)
//	empty tree  SHA-256 of nothing
//
// A tree of n > 1 leaves splits at the largest power of two below n. A lone last node is never doubled.
//
// Hashes are stored in tiles (C2SP tlog-tiles): tile n at level l holds the roots of the 256 perfect subtrees of 256^l leaves
// each that begin at leaf n*256^(l+1). Only full tiles are stored, once. The unfinished tiles, at most one a level, are the
// right edge of the tree and live in memory in an [Edge].
package merkle

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
)

// HashSize is the length of a hash in bytes.
const HashSize = sha256.Size

// TileHeight is the number of tree levels that one tile spans. C2SP tlog-tiles fixes it.
const TileHeight = 8

// TileWidth is the number of hashes in a full tile.
const TileWidth = 1 << TileHeight

// TileLevels is the number of tile levels that a tree with a 64-bit size can have.
const TileLevels = 64 / TileHeight

// Domain separation of RFC 6962 section 2.1: without it an inner node could be passed off as a leaf.
const (
	leafPrefix = 0x00
	nodePrefix = 0x01
)

// stackLeaf is the largest leaf, in bytes, that is hashed from a copy on the stack. Event leaves are about 330 bytes, and one
// call over contiguous bytes is faster than a streaming hash, which also allocates.
const stackLeaf = 1024

var (
	// ErrProof is the errors.Is target of every verification that fails. Such a proof shows nothing about the tree.
	ErrProof = errors.New("merkle: proof does not verify")

	// ErrRange is the errors.Is target of a request for a leaf or a size that the tree does not have.
	ErrRange = errors.New("merkle: outside the tree")
)

// Hash is a SHA-256 hash: of a leaf, of an inner node, or of a whole tree.
type Hash [HashSize]byte

// String returns the hash in lower-case hex, 64 characters.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// EmptyRoot returns the root of the tree without leaves: SHA-256 of nothing (RFC 6962 section 2.1).
func EmptyRoot() Hash {
	return Hash{
		0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24,
		0x27, 0xae, 0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
	}
}

// LeafHash returns the hash of a leaf, which may be empty (RFC 6962 section 2.1). Leaves up to 1 KiB cost no allocation.
func LeafHash(leaf []byte) Hash {
	if len(leaf) <= stackLeaf {
		var buf [1 + stackLeaf]byte
		buf[0] = leafPrefix
		return sha256.Sum256(buf[:1+copy(buf[1:], leaf)])
	}
	h := sha256.New()
	h.Write([]byte{leafPrefix})
	h.Write(leaf)
	var sum Hash
	h.Sum(sum[:0])
	return sum
}

// NodeHash returns the hash of an inner node from those of its children (RFC 6962 section 2.1). It does not allocate.
func NodeHash(left, right Hash) Hash {
	var buf [1 + 2*HashSize]byte
	buf[0] = nodePrefix
	copy(buf[1:], left[:])
	copy(buf[1+HashSize:], right[:])
	return sha256.Sum256(buf[:])
}

// TileID names a tile: tile Index at Level holds the roots of the perfect subtrees of height 8*Level numbered from 256*Index.
type TileID struct {
	Level uint8
	Index uint64
}

// Tile is a full tile.
type Tile struct {
	ID     TileID
	Hashes [TileWidth]Hash
}

// perfectRoot returns the root over hashes, whose number is a power of two: the roots, left to right, of neighbouring perfect
// subtrees of one height.
func perfectRoot(hashes []Hash) Hash {
	if len(hashes) == 1 {
		return hashes[0]
	}
	half := len(hashes) / 2
	return NodeHash(perfectRoot(hashes[:half]), perfectRoot(hashes[half:]))
}

// foldRight returns the root over the roots of adjacent subtrees of falling height, left to right, as the right edge of a tree
// has them. There must be at least one.
func foldRight(hashes []Hash) Hash {
	root := hashes[len(hashes)-1]
	for i := len(hashes) - 2; i >= 0; i-- {
		root = NodeHash(hashes[i], root)
	}
	return root
}
