package merkle

import (
	"bytes"
	"crypto"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/tlog"
)

var oracle = rfc6962.New(crypto.SHA256)

// The leaf set that Certificate Transparency implementations test with, its leaf hashes, and the roots of its first n leaves.
var (
	ctLeaves = []string{"", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"}
	ctHashes = []string{
		"6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
		"96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
		"0298d122906dcfc10892cb53a73992fc5b9f493ea4c9badb27b791b4127a7fe7",
		"07506a85fd9dd2f120eb694f86011e5bb4662e5c415a62917033d4a9624487e7",
		"bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
		"4271a26be0d8a84f0bd54c8c302e7cb3a3b5d1fa6780a40bcce2873477dab658",
		"b08693ec2e721597130641e8211e7eedccb4c26413963eee6c1e2ed16ffb1a5f",
		"46f6ffadd3d06a09ff3c5860d2755c8b9819db7df44251788c7d8e3180de8eb1",
	}
	ctRoots = []string{
		"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
		"6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
		"fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
		"aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
		"d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
		"4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
		"76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
		"ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
		"5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
	}
)

func ctTree(t testing.TB) (*grown, []Hash) {
	t.Helper()
	g := newGrown()
	var leaves []Hash
	for _, text := range ctLeaves {
		leaf, err := hex.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		leaves = append(leaves, LeafHash(leaf))
	}
	g.append(t, leaves...)
	return g, leaves
}

// Section 2.1: hashes of leaves and trees.
func TestHashVectors(t *testing.T) {
	if got := base64.StdEncoding.EncodeToString(rootBytes(EmptyRoot())); got != "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=" {
		t.Errorf("EmptyRoot = %s", got)
	}
	if got := NewEdge().Root().String(); got != ctRoots[0] {
		t.Errorf("root of the empty edge = %s", got)
	}
	_, leaves := ctTree(t)
	e := NewEdge()
	for i, leaf := range leaves {
		if leaf.String() != ctHashes[i] {
			t.Errorf("leaf %d: got %s, want %s", i, leaf, ctHashes[i])
		}
		e.Append(leaf, nil)
		if got := e.Root().String(); got != ctRoots[i+1] {
			t.Errorf("root of %d leaves: got %s, want %s", i+1, got, ctRoots[i+1])
		}
	}
	e = NewEdge()
	for i, want := range []string{
		"022a6979e6dab7aa5ae4c3e5e45f7e977112a7e63593820dbec1ec738a24f93c",
		"b137985ff484fb600db93107c77b0365c80d78f5b429ded0fd97361d077999eb",
		"36642e73c2540ab121e3a6bf9545b0a24982cd830eb13d3cd19de3ce6c021ec1",
	} {
		e.Append(LeafHash([]byte{"abc"[i]}), nil)
		if got := e.Root().String(); got != want {
			t.Errorf("root of %q: got %s, want %s", "abc"[:i+1], got, want)
		}
	}
}

func rootBytes(h Hash) []byte { return h[:] }

// The two ways of hashing a leaf must agree, and with the oracle, on either side of the limit between them.
func TestLeafHashLengths(t *testing.T) {
	data := bytes.Repeat([]byte("provenance"), 7000)
	for _, n := range []int{0, 1, 31, 32, 55, 56, 63, 64, 330, stackLeaf - 1, stackLeaf, stackLeaf + 1, 65535} {
		if got, want := LeafHash(data[:n]), Hash(oracle.HashLeaf(data[:n])); got != want {
			t.Errorf("leaf of %d bytes: got %s, want %s", n, got, want)
		}
	}
}

func TestHashingDoesNotAllocate(t *testing.T) {
	leaf := make([]byte, stackLeaf)
	var h Hash
	if n := testing.AllocsPerRun(100, func() { h = LeafHash(leaf) }); n != 0 {
		t.Errorf("LeafHash of %d bytes: %v allocations", len(leaf), n)
	}
	if n := testing.AllocsPerRun(100, func() { h = NodeHash(h, h) }); n != 0 {
		t.Errorf("NodeHash: %v allocations", n)
	}
}

// Section 2.1.3: the shapes of well-known proofs, by the first eight bytes of each hash.
func TestProofVectors(t *testing.T) {
	g, _ := ctTree(t)
	short := func(hashes []Hash) string {
		var words []string
		for _, h := range hashes {
			words = append(words, h.String()[:16])
		}
		return strings.Join(words, " ")
	}
	for _, test := range []struct {
		index, size uint64
		want        string
	}{
		{5, 8, "bc1a0643b12e4d2d ca854ea128ed050b d37ee418976dd957"},
		{0, 7, "96a296d224f285c6 5f083f0a1a33ca07 837dbb152e9b0790"},
		{6, 7, "0ebc5d3437fbe2db d37ee418976dd957"},
		{0, 1, ""},
	} {
		p, err := ProveInclusion(test.index, test.size, g.reader(t, test.size))
		if err != nil || short(p) != test.want {
			t.Errorf("inclusion of %d in %d: got %s, %v, want %s", test.index, test.size, short(p), err, test.want)
		}
	}
	for _, test := range []struct {
		size1, size2 uint64
		want         string
	}{
		{3, 7, "0298d122906dcfc1 07506a85fd9dd2f1 fac54203e7cc696c 837dbb152e9b0790"},
		{4, 8, "6b47aaf29ee3c2af"},
		{6, 8, "0ebc5d3437fbe2db ca854ea128ed050b d37ee418976dd957"},
		{5, 5, ""},
		{0, 8, ""},
	} {
		p, err := ProveConsistency(test.size1, test.size2, g.reader(t, test.size2))
		if err != nil || short(p) != test.want {
			t.Errorf("consistency of %d with %d: got %s, %v, want %s", test.size1, test.size2, short(p), err, test.want)
		}
	}
}

// checkInclusion proves a leaf, compares with the reference, and asks both verifiers.
func checkInclusion(t *testing.T, g *grown, ref *reference, index, size uint64) {
	t.Helper()
	p, err := ProveInclusion(index, size, g.reader(t, size))
	if err != nil {
		t.Fatalf("inclusion of %d in %d: %v", index, size, err)
	}
	if want := ref.path(index, 0, size); !slices.Equal(p, want) {
		t.Fatalf("inclusion of %d in %d: got %v, want %v", index, size, p, want)
	}
	leaf, root := ref.leaves[index], ref.mth(0, size)
	if err := VerifyInclusion(leaf, index, size, p, root); err != nil {
		t.Fatal(err)
	}
	if !climb(leaf, index, size, p, root) {
		t.Fatalf("inclusion of %d in %d: refused by the second verifier", index, size)
	}
}

func checkConsistency(t *testing.T, g *grown, ref *reference, size1, size2 uint64) {
	t.Helper()
	p, err := ProveConsistency(size1, size2, g.reader(t, size2))
	if err != nil {
		t.Fatalf("consistency of %d with %d: %v", size1, size2, err)
	}
	if want := ref.proof(size1, size2); !slices.Equal(p, want) {
		t.Fatalf("consistency of %d with %d: got %v, want %v", size1, size2, p, want)
	}
	root1, root2 := ref.mth(0, size1), ref.mth(0, size2)
	if err := VerifyConsistency(size1, size2, root1, root2, p); err != nil {
		t.Fatal(err)
	}
	if !climbTwo(size1, size2, root1, root2, p) {
		t.Fatalf("consistency of %d with %d: refused by the second verifier", size1, size2)
	}
}

// Every size to 2,000: root, full tiles, restored edge, compact range, and proofs of a choice of leaves.
func TestEverySize(t *testing.T) {
	const last = 2000
	leaves := numbered(last)
	ref := newReference(leaves)
	g := newGrown()
	random := rand.New(rand.NewPCG(1, 2))
	for size := uint64(0); ; size++ {
		root := ref.mth(0, size)
		if g.edge.Size() != size || g.edge.Root() != root {
			t.Fatalf("size %d: edge has size %d and root %s, want %s", size, g.edge.Size(), g.edge.Root(), root)
		}
		if got, err := RootAt(size, g.reader(t, size)); err != nil || got != root {
			t.Fatalf("RootAt(%d) = %s, %v, want %s", size, got, err, root)
		}
		if got, want := g.edge.CompactRange(), ref.rangeProof(size, size, size).Left; !slices.Equal(got, want) {
			t.Fatalf("compact range of size %d: got %v, want %v", size, got, want)
		}
		restored, err := RestoreEdge(size, leavesOf(leaves), g.tileOf)
		if err != nil {
			t.Fatalf("restore size %d: %v", size, err)
		}
		compareEdges(t, restored, g.edge)

		if size > 0 {
			indexes := []uint64{0, size - 1, size / 2, size / 256 * 256, random.Uint64N(size), random.Uint64N(size), random.Uint64N(size)}
			for _, index := range indexes {
				if index < size {
					checkInclusion(t, g, ref, index, size)
				}
			}
			for _, older := range []uint64{1, size - 1, size / 2, size / 256 * 256, random.Uint64N(size), random.Uint64N(size)} {
				checkConsistency(t, g, ref, older, size)
			}
		}
		if size == last {
			break
		}
		g.append(t, leaves[size])
	}
	for id, hashes := range g.full {
		for i, h := range hashes {
			width := uint64(1) << (TileHeight * id.Level)
			begin := (id.Index*TileWidth + uint64(i)) * width
			if want := ref.mth(begin, begin+width); h != want {
				t.Fatalf("tile %v hash %d: got %s, want %s", id, i, h, want)
			}
		}
	}
	if got := len(g.full); got != last/256 {
		t.Errorf("%d full tiles, want %d", got, last/256)
	}
}

// compareEdges checks that two edges are the same in all that can be seen, and that they stay so as both grow.
func compareEdges(t *testing.T, got, want *Edge) {
	t.Helper()
	got, want = got.Clone(), want.Clone()
	for range 2 {
		if got.Size() != want.Size() || got.Root() != want.Root() || !slices.Equal(got.CompactRange(), want.CompactRange()) {
			t.Fatalf("edge of size %d: got root %s, want %s of size %d", got.Size(), got.Root(), want.Root(), want.Size())
		}
		for level := range uint8(TileLevels) {
			id := TileID{level, want.Size() >> (TileHeight * level) / TileWidth}
			a, aok := got.View().PartialTile(id)
			b, bok := want.View().PartialTile(id)
			if aok != bok || !slices.Equal(a, b) {
				t.Fatalf("edge of size %d: partial tile %v: got %v, want %v", want.Size(), id, a, b)
			}
			if bok && len(b) != PartialWidth(level, want.Size()) {
				t.Fatalf("edge of size %d: partial tile %v has %d hashes, want %d", want.Size(), id, len(b), PartialWidth(level, want.Size()))
			}
		}
		got.Append(Hash{1}, nil)
		want.Append(Hash{1}, nil)
	}
}

// Every index in every size, and every pair of sizes, across the first boundary of a tile; with the two oracles.
func TestEveryPairAgainstOracles(t *testing.T) {
	last := uint64(300)
	if testing.Short() {
		last = 140
	}
	leaves := numbered(int(last))
	ref := newReference(leaves)
	g := newGrown()
	g.append(t, leaves...)
	var stored []tlog.Hash
	sum := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		var hashes []tlog.Hash
		for _, i := range indexes {
			hashes = append(hashes, stored[i])
		}
		return hashes, nil
	})
	for i, leaf := range leaves {
		hashes, err := tlog.StoredHashesForRecordHash(int64(i), tlog.Hash(leaf), sum)
		if err != nil {
			t.Fatal(err)
		}
		stored = append(stored, hashes...)
	}
	for size := uint64(1); size <= last; size++ {
		root := ref.mth(0, size)
		if got, err := tlog.TreeHash(int64(size), sum); err != nil || Hash(got) != root {
			t.Fatalf("size %d: x/mod has root %s, %v, want %s", size, got, err, root)
		}
		for index := range size {
			checkInclusion(t, g, ref, index, size)
			p := ref.path(index, 0, size)
			if err := proof.VerifyInclusion(oracle, index, size, leaves[index][:], slicesOf(p), root[:]); err != nil {
				t.Fatalf("inclusion of %d in %d: transparency-dev: %v", index, size, err)
			}
			if q, err := tlog.ProveRecord(int64(size), int64(index), sum); err != nil || !slices.Equal(p, fromTlog(q)) {
				t.Fatalf("inclusion of %d in %d: x/mod has %v, %v", index, size, q, err)
			}
			if size <= 130 {
				n, err := proof.Inclusion(index, size)
				if err != nil || !slices.Equal(p, ref.rehash(t, n)) {
					t.Fatalf("inclusion of %d in %d: transparency-dev plans other nodes (%v)", index, size, err)
				}
			}
		}
		for older := uint64(1); older <= size; older++ {
			checkConsistency(t, g, ref, older, size)
			p := ref.proof(older, size)
			root1 := ref.mth(0, older)
			if err := proof.VerifyConsistency(oracle, older, size, slicesOf(p), root1[:], root[:]); err != nil {
				t.Fatalf("consistency of %d with %d: transparency-dev: %v", older, size, err)
			}
			if q, err := tlog.ProveTree(int64(size), int64(older), sum); err != nil || !slices.Equal(p, fromTlog(q)) {
				t.Fatalf("consistency of %d with %d: x/mod has %v, %v", older, size, q, err)
			}
			if size <= 130 {
				n, err := proof.Consistency(older, size)
				if err != nil || !slices.Equal(p, ref.rehash(t, n)) {
					t.Fatalf("consistency of %d with %d: transparency-dev plans other nodes (%v)", older, size, err)
				}
			}
		}
	}
}

// rehash gives the proof that transparency-dev would make from the nodes that it plans.
func (r *reference) rehash(t *testing.T, n proof.Nodes) []Hash {
	t.Helper()
	var hashes [][]byte
	for _, id := range n.IDs {
		begin, end := id.Coverage()
		h := r.mth(begin, end)
		hashes = append(hashes, h[:])
	}
	hashes, err := n.Rehash(hashes, oracle.HashChildren)
	if err != nil {
		t.Fatal(err)
	}
	var p []Hash
	for _, h := range hashes {
		p = append(p, Hash(h))
	}
	return p
}

func slicesOf(hashes []Hash) [][]byte {
	out := make([][]byte, len(hashes))
	for i := range hashes {
		out[i] = hashes[i][:]
	}
	return out
}

func fromTlog(hashes []tlog.Hash) []Hash {
	out := make([]Hash, len(hashes))
	for i, h := range hashes {
		out[i] = Hash(h)
	}
	return out
}

// A tree that reaches three levels of tiles, with distinct leaves.
func TestThreeLevels(t *testing.T) {
	const last = 66_000
	leaves := numbered(last)
	ref := newReference(leaves)
	g := newGrown()
	g.append(t, leaves...)
	if g.edge.Root() != ref.mth(0, last) {
		t.Fatalf("root of %d leaves: got %s, want %s", last, g.edge.Root(), ref.mth(0, last))
	}
	f := compact.RangeFactory{Hash: oracle.HashChildren}
	r := f.NewEmptyRange(0)
	for _, leaf := range leaves {
		if err := r.Append(leaf[:], nil); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := slicesOf(g.edge.CompactRange()), r.Hashes(); !slices.EqualFunc(got, want, bytes.Equal) {
		t.Errorf("compact range differs from transparency-dev: got %x, want %x", got, want)
	}
	if i := slices.Index(g.order, TileID{1, 0}); i != 256 || g.order[255] != (TileID{0, 255}) {
		t.Errorf("tile 1/000 completed in place %d after %v, want 256 after 0/255", i, g.order[255])
	}
	for id, hashes := range g.full {
		width := uint64(1) << (TileHeight * id.Level)
		for i, h := range hashes {
			begin := (id.Index*TileWidth + uint64(i)) * width
			if want := ref.mth(begin, begin+width); h != want {
				t.Fatalf("tile %v hash %d: got %s, want %s", id, i, h, want)
			}
		}
	}
	random := rand.New(rand.NewPCG(3, 4))
	for _, size := range []uint64{65534, 65535, 65536, 65537, 65791, 65792, 65793, last} {
		restored, err := RestoreEdge(size, leavesOf(leaves), g.tileOf)
		if err != nil || restored.Root() != ref.mth(0, size) {
			t.Fatalf("restore size %d: %v", size, err)
		}
		for range 20 {
			index := random.Uint64N(size)
			checkInclusion(t, g, ref, index, size)
			checkConsistency(t, g, ref, index+1, size)
		}
		checkInclusion(t, g, ref, size-1, size)
	}
}

// equal is a tree of any size whose leaves are all equal, so that perfect subtrees of one height have one hash.
type equal struct{ height [64]Hash }

func newEqual() *equal {
	e := new(equal)
	e.height[0] = LeafHash([]byte("same"))
	for h := 1; h < len(e.height); h++ {
		e.height[h] = NodeHash(e.height[h-1], e.height[h-1])
	}
	return e
}

func (e *equal) root(size uint64) Hash {
	k := largestPowerBelow(size)
	if size == 1 || size == 2*k {
		return e.height[perfectHeight(0, size)]
	}
	return NodeHash(e.root(k), e.root(size-k))
}

func (e *equal) tile(id TileID) []Hash {
	return slices.Repeat([]Hash{e.height[TileHeight*id.Level]}, TileWidth)
}

func (e *equal) reader(t *testing.T, size uint64) TileReader {
	return TileReaderFunc(func(id TileID, width int) ([]Hash, error) {
		if has := size >> (TileHeight * id.Level); id.Index*TileWidth+uint64(width) > has {
			t.Fatalf("size %d: %d hashes of tile %v read, level has %d", size, width, id, has)
		}
		return e.tile(id)[:width], nil
	})
}

func TestLargeTrees(t *testing.T) {
	e := newEqual()
	random := rand.New(rand.NewPCG(5, 6))
	sizes := []uint64{1 << 24, 1<<32 - 1, 1 << 32, 1<<32 + 1, 1<<40 - 1, 1 << 40, 1<<40 + 1, 1<<63 - 1, 1 << 63, 1<<64 - 1}
	for range 300 {
		sizes = append(sizes, 1+random.Uint64N(1<<(1+random.UintN(40))))
	}
	for _, size := range sizes {
		root := e.root(size)
		r := e.reader(t, size)
		if got, err := RootAt(size, r); err != nil || got != root {
			t.Fatalf("RootAt(%d) = %s, %v, want %s", size, got, err, root)
		}
		for _, index := range []uint64{0, size - 1, random.Uint64N(size), size - 1 - random.Uint64N(min(size, 300))} {
			p, err := ProveInclusion(index, size, r)
			if err != nil {
				t.Fatal(err)
			}
			if err := VerifyInclusion(e.height[0], index, size, p, root); err != nil {
				t.Fatal(err)
			}
			if !climb(e.height[0], index, size, p, root) {
				t.Fatalf("inclusion of %d in %d: refused by the second verifier", index, size)
			}
			if err := proof.VerifyInclusion(oracle, index, size, e.height[0][:], slicesOf(p), root[:]); err != nil {
				t.Fatalf("inclusion of %d in %d: transparency-dev: %v", index, size, err)
			}
			older := index + 1
			root1 := e.root(older)
			if p, err = ProveConsistency(older, size, r); err != nil {
				t.Fatal(err)
			}
			if err := VerifyConsistency(older, size, root1, root, p); err != nil {
				t.Fatal(err)
			}
			if !climbTwo(older, size, root1, root, p) {
				t.Fatalf("consistency of %d with %d: refused by the second verifier", older, size)
			}
			n := min(1+random.Uint64N(1000), size-index)
			proof, err := ProveRange(index, index+n, size, r)
			if err != nil {
				t.Fatal(err)
			}
			tree, err := NewRangeTree(index, slices.Repeat([]Hash{e.height[0]}, int(n)), size, proof)
			if err != nil || tree.Root() != root {
				t.Fatalf("range [%d, %d) of %d: %v", index, index+n, size, err)
			}
			at := index + random.Uint64N(n)
			if p, err = tree.Inclusion(at); err != nil {
				t.Fatal(err)
			}
			if err := VerifyInclusion(e.height[0], at, size, p, root); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestRestoreLargeEdge(t *testing.T) {
	e := newEqual()
	same := func(_, n uint64) ([]Hash, error) { return slices.Repeat(e.height[:1], int(n)), nil }
	for _, size := range []uint64{1<<24 + 1, 1<<32 - 1, 1<<40 - 2, 987_654_321_012} {
		edge, err := RestoreEdge(size, same, func(id TileID) ([]Hash, error) { return e.tile(id), nil })
		if err != nil {
			t.Fatal(err)
		}
		for range 3 { // across the boundary, where tiles of every level fill at once
			if edge.Root() != e.root(edge.Size()) {
				t.Fatalf("size %d: root differs", edge.Size())
			}
			edge.Append(e.height[0], func(tile Tile) {
				if !slices.Equal(tile.Hashes[:], e.tile(tile.ID)) {
					t.Errorf("size %d: tile %v differs", edge.Size(), tile.ID)
				}
			})
		}
	}
}

func TestRestoreRefusesWrongLengths(t *testing.T) {
	g := newGrown()
	leaves := numbered(600)
	g.append(t, leaves...)
	failed := errors.New("disk gone")
	for name, test := range map[string]struct {
		leaves func(first, n uint64) ([]Hash, error)
		tile   func(TileID) ([]Hash, error)
	}{
		"a leaf short":     {func(first, n uint64) ([]Hash, error) { return leaves[first : first+n-1], nil }, g.tileOf},
		"a leaf over":      {func(first, n uint64) ([]Hash, error) { return leaves[first-1 : first+n], nil }, g.tileOf},
		"a tile not whole": {leavesOf(leaves), func(id TileID) ([]Hash, error) { return g.full[id][:255], nil }},
		"no leaves":        {func(uint64, uint64) ([]Hash, error) { return nil, failed }, g.tileOf},
		"no tile":          {leavesOf(leaves), func(TileID) ([]Hash, error) { return nil, failed }},
	} {
		e, err := RestoreEdge(600, test.leaves, test.tile)
		if err == nil || e != nil {
			t.Errorf("%s: got edge %v, want an error", name, e)
		}
		if strings.HasPrefix(name, "no ") && !errors.Is(err, failed) {
			t.Errorf("%s: the reader's error is lost: %v", name, err)
		}
	}
}

// What is wrong with a request or a reader is said, and is no proof.
func TestProveErrors(t *testing.T) {
	g := newGrown()
	g.append(t, numbered(600)...)
	r := g.reader(t, 600)
	_, inclusion := ProveInclusion(600, 600, r)
	_, empty := ProveInclusion(0, 0, r)
	_, shrunk := ProveConsistency(600, 599, r)
	_, nothing := ProveRange(5, 5, 600, r)
	_, past := ProveRange(5, 601, 600, r)
	for i, err := range []error{inclusion, empty, shrunk, nothing, past} {
		if !errors.Is(err, ErrRange) {
			t.Errorf("request %d: got %v, want ErrRange", i, err)
		}
	}
	failed := errors.New("disk gone")
	if _, err := ProveInclusion(3, 600, TileReaderFunc(func(TileID, int) ([]Hash, error) { return nil, failed })); !errors.Is(err, failed) {
		t.Errorf("got %v, want the reader's error", err)
	}
	if _, err := ProveInclusion(3, 600, TileReaderFunc(func(_ TileID, width int) ([]Hash, error) { return make([]Hash, width-1), nil })); err == nil {
		t.Error("a tile that is too short made a proof")
	}
}

// Anything but the one right proof fails, with ErrProof, before and after hashing.
func TestMutatedProofsFail(t *testing.T) {
	leaves := numbered(300)
	ref := newReference(leaves)
	for _, size := range []uint64{1, 2, 3, 5, 7, 8, 100, 255, 256, 257, 300} {
		root := ref.mth(0, size)
		for _, index := range []uint64{0, 1, size / 3, size / 2, size - 1} {
			if index >= size {
				continue
			}
			p := ref.path(index, 0, size)
			refused := func(what string, err error) {
				t.Helper()
				if !errors.Is(err, ErrProof) {
					t.Errorf("inclusion of %d in %d: %s: got %v, want ErrProof", index, size, what, err)
				}
			}
			for name, q := range mutations(p) {
				refused(name, VerifyInclusion(leaves[index], index, size, q, root))
				if climb(leaves[index], index, size, q, root) {
					t.Errorf("second verifier accepts inclusion of %d in %d: %s", index, size, name)
				}
			}
			refused("other leaf", VerifyInclusion(flipped(leaves[index], 9), index, size, p, root))
			refused("other root", VerifyInclusion(leaves[index], index, size, p, flipped(root, 200)))
			refused("index = size", VerifyInclusion(leaves[index], size, size, p, root))
			refused("size 0", VerifyInclusion(leaves[index], 0, 0, p, root))
			refused("huge index", VerifyInclusion(leaves[index], 1<<64-1, size, p, root))
			for other := range size {
				if other != index {
					refused(fmt.Sprintf("as index %d", other), VerifyInclusion(leaves[index], other, size, p, root))
				}
			}
		}
		for _, older := range []uint64{1, 2, size / 3, size / 2, size - 1, size} {
			if older < 1 || older > size {
				continue
			}
			p := ref.proof(older, size)
			root1 := ref.mth(0, older)
			refused := func(what string, err error) {
				t.Helper()
				if !errors.Is(err, ErrProof) {
					t.Errorf("consistency of %d with %d: %s: got %v, want ErrProof", older, size, what, err)
				}
			}
			for name, q := range mutations(p) {
				refused(name, VerifyConsistency(older, size, root1, root, q))
				if climbTwo(older, size, root1, root, q) {
					t.Errorf("second verifier accepts consistency of %d with %d: %s", older, size, name)
				}
			}
			refused("other old root", VerifyConsistency(older, size, flipped(root1, 0), root, p))
			refused("other new root", VerifyConsistency(older, size, root1, flipped(root, 255), p))
			refused("size1 > size2", VerifyConsistency(size+1, size, root1, root, p))
			refused("size1 = 0", VerifyConsistency(0, size, root1, root, p))
			for other := uint64(1); other <= size; other++ {
				if other != older {
					refused(fmt.Sprintf("as size %d", other), VerifyConsistency(other, size, root1, root, p))
				}
			}
		}
	}
}

// mutations returns proofs that each differ from p in one way.
func mutations(p []Hash) map[string][]Hash {
	all := map[string][]Hash{
		"one more at the end":   append(slices.Clone(p), Hash{}),
		"one more at the start": append([]Hash{{}}, p...),
	}
	if n := len(p); n > 0 {
		all["one less at the end"] = p[:n-1]
		all["one less at the start"] = p[1:]
		all["last one twice"] = append(slices.Clone(p), p[n-1])
		for i := range p {
			q := slices.Clone(p)
			q[i] = flipped(q[i], i*37%256)
			all[fmt.Sprintf("bit in hash %d flipped", i)] = q
			if i > 0 {
				q = slices.Clone(p)
				q[i-1], q[i] = q[i], q[i-1]
				all[fmt.Sprintf("hashes %d and %d swapped", i-1, i)] = q
			}
		}
	}
	return all
}

func flipped(h Hash, bit int) Hash {
	h[bit/8] ^= 1 << (bit % 8)
	return h
}

// What RFC 6962 leaves open about the empty tree.
func TestConsistencyFromEmpty(t *testing.T) {
	root := LeafHash(nil)
	if err := VerifyConsistency(0, 1, EmptyRoot(), root, nil); err != nil {
		t.Error(err)
	}
	if err := VerifyConsistency(0, 0, EmptyRoot(), EmptyRoot(), nil); err != nil {
		t.Error(err)
	}
	for i, err := range []error{
		VerifyConsistency(0, 1, Hash{}, root, nil),
		VerifyConsistency(0, 1, EmptyRoot(), root, []Hash{{}}),
		VerifyConsistency(0, 0, EmptyRoot(), root, nil),
		VerifyConsistency(0, 0, root, root, nil),
		VerifyConsistency(1, 0, root, EmptyRoot(), nil),
	} {
		if !errors.Is(err, ErrProof) {
			t.Errorf("case %d: got %v, want ErrProof", i, err)
		}
	}
}
