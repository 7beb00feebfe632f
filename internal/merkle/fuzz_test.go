package merkle

import (
	"slices"
	"testing"

	"github.com/transparency-dev/merkle/proof"
)

// hashesOf cuts fuzzed bytes into hashes; at most 70, more than any proof has.
func hashesOf(data []byte) []Hash {
	var hashes []Hash
	for len(data) >= HashSize && len(hashes) < 70 {
		hashes = append(hashes, Hash(data))
		data = data[HashSize:]
	}
	return hashes
}

func bytesOf(hashes []Hash) []byte { return slices.Concat(slicesOf(hashes)...) }

// All three verifiers give one answer, for the root that is given and for the root that the proof leads to.
func FuzzVerifyInclusion(f *testing.F) {
	ref := newReference(numbered(20))
	for _, s := range []struct{ index, size uint64 }{{0, 1}, {0, 2}, {5, 8}, {6, 7}, {19, 20}} {
		leaf, root := ref.leaves[s.index], ref.mth(0, s.size)
		f.Add(s.index, s.size, leaf[:], bytesOf(ref.path(s.index, 0, s.size)), root[:])
	}
	f.Fuzz(func(t *testing.T, index, size uint64, leafBytes, path, rootBytes []byte) {
		var leaf, root Hash
		copy(leaf[:], leafBytes)
		copy(root[:], rootBytes)
		hashes := hashesOf(path)
		check := func(root Hash) bool {
			got := VerifyInclusion(leaf, index, size, hashes, root) == nil
			want := proof.VerifyInclusion(oracle, index, size, leaf[:], slicesOf(hashes), root[:]) == nil
			if second := climb(leaf, index, size, hashes, root); got != want || got != second {
				t.Fatalf("inclusion of %d in %d: VerifyInclusion %v, transparency-dev %v, second verifier %v", index, size, got, want, second)
			}
			return got
		}
		check(root)
		if reached, err := proof.RootFromInclusionProof(oracle, index, size, leaf[:], slicesOf(hashes)); err == nil {
			if !check(Hash(reached)) {
				t.Fatalf("inclusion of %d in %d: the root that the proof leads to is refused", index, size)
			}
			if check(flipped(Hash(reached), int(size%256))) {
				t.Fatalf("inclusion of %d in %d: another root is accepted", index, size)
			}
		}
	})
}

func FuzzVerifyConsistency(f *testing.F) {
	ref := newReference(numbered(20))
	for _, s := range []struct{ size1, size2 uint64 }{{0, 0}, {0, 7}, {1, 1}, {1, 2}, {3, 7}, {4, 8}, {6, 8}, {19, 20}} {
		root1, root2 := ref.mth(0, s.size1), ref.mth(0, s.size2)
		f.Add(s.size1, s.size2, root1[:], root2[:], bytesOf(ref.proof(s.size1, s.size2)))
	}
	f.Fuzz(func(t *testing.T, size1, size2 uint64, root1Bytes, root2Bytes, path []byte) {
		var root1, root2 Hash
		copy(root1[:], root1Bytes)
		copy(root2[:], root2Bytes)
		hashes := hashesOf(path)
		got := VerifyConsistency(size1, size2, root1, root2, hashes) == nil
		want := proof.VerifyConsistency(oracle, size1, size2, slicesOf(hashes), root1[:], root2[:]) == nil
		if size1 == 0 { // v0.0.2 looks at neither root then; our rule is stricter
			want = want && root1 == EmptyRoot() && (size2 > 0 || root2 == EmptyRoot())
		}
		if second := climbTwo(size1, size2, root1, root2, hashes); got != want || got != second {
			t.Fatalf("consistency of %d with %d: VerifyConsistency %v, transparency-dev %v, second verifier %v", size1, size2, got, want, second)
		}
	})
}

// A run of a real tree gives what the reference says, and no flipped bit in leaves or proof leads to the same root.
func FuzzRangeTree(f *testing.F) {
	leaves := numbered(1200)
	ref := newReference(leaves)
	g := newGrown()
	g.append(f, leaves...)
	f.Add(uint16(0), uint16(1), uint16(1), uint32(0))
	f.Add(uint16(3), uint16(3), uint16(7), uint32(999))
	f.Add(uint16(255), uint16(2), uint16(257), uint32(70))
	f.Add(uint16(1000), uint16(200), uint16(1200), uint32(123456))
	f.Fuzz(func(t *testing.T, begin16, n16, size16 uint16, bit uint32) {
		size := 1 + uint64(size16)%uint64(len(leaves))
		begin := uint64(begin16) % size
		end := begin + 1 + uint64(n16)%(size-begin)
		checkRange(t, g, ref, begin, end, size)

		run, p := slices.Clone(leaves[begin:end]), ref.rangeProof(begin, end, size)
		all := [][]Hash{run, p.Left, p.Right}
		at := int(bit/256) % (len(run) + len(p.Left) + len(p.Right))
		for _, hashes := range all {
			if at < len(hashes) {
				hashes[at] = flipped(hashes[at], int(bit%256))
				break
			}
			at -= len(hashes)
		}
		tree, err := NewRangeTree(begin, run, size, p)
		if err != nil {
			t.Fatal(err)
		}
		if tree.Root() == ref.mth(0, size) {
			t.Fatalf("range [%d, %d) of %d: flipped bit %d leads to the same root", begin, end, size, bit)
		}
	})
}
