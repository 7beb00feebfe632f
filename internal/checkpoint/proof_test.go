package checkpoint

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/provledger/provledger/internal/merkle"
)

// C2SP tlog-proof, format.
func TestTlogProof(t *testing.T) {
	c := testCheckpoint()
	k := testKey(t, c.Origin, 1)
	signed := mustSign(t, c, k)
	p := TlogProof{Index: 73894, Hashes: []merkle.Hash{merkle.EmptyRoot(), c.Root}, Checkpoint: signed}
	want := "c2sp.org/tlog-proof@v1\nindex 73894\n" + emptyRoot64 + "\n" + strings.Split(c.Text(), "\n")[2] + "\n\n" + string(signed)
	if got := p.Text(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, q := range []TlogProof{p, {Index: 0, Checkpoint: signed}, {Index: c.Size - 1, Hashes: make([]merkle.Hash, MaxProofHashes), Checkpoint: signed}} {
		got, err := ParseTlogProof(q.Text())
		if err != nil || got.Index != q.Index || !slices.Equal(got.Hashes, q.Hashes) || string(got.Checkpoint) != string(q.Checkpoint) {
			t.Errorf("got %v, %v, want %v", got, err, q)
		}
	}

	text := p.Text()
	note := string(signed)
	for _, test := range []struct{ name, text string }{
		{"nothing", ""},
		{"no checkpoint", strings.TrimSuffix(text, note)},
		{"no empty line", strings.Replace(text, "\n\n", "\n", 1)},
		{"two empty lines", strings.Replace(text, "\n\n", "\n\n\n", 1)},
		{"other version", strings.Replace(text, "@v1", "@v2", 1)},
		{"extra line", strings.Replace(text, "index", "extra AAAA\nindex", 1)},
		{"no index", strings.Replace(text, "index 73894\n", "", 1)},
		{"index twice", strings.Replace(text, "index 73894\n", "index 73894\nindex 73894\n", 1)},
		{"index 073894", strings.Replace(text, "73894", "073894", 1)},
		{"index with a space", strings.Replace(text, "73894", " 73894", 1)},
		{"index and a space", strings.Replace(text, "73894", "73894 ", 1)},
		{"index +1", strings.Replace(text, "73894", "+1", 1)},
		{"index = size", strings.Replace(text, "73894", "20852163", 1)},
		{"index 2^63", strings.Replace(text, "73894", "9223372036854775808", 1)},
		{"CR LF", strings.ReplaceAll(text, "\n", "\r\n")},
		{"stray bits", strings.Replace(text, "SuFU=", "SuFV=", 1)},
		{"hash of 31 bytes", strings.Replace(text, emptyRoot64, "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxqw==", 1)},
		{"64 hashes", TlogProof{1, make([]merkle.Hash, 64), signed}.Text()},
		{"line over", text + "\n"},
		{"bad checkpoint", strings.Replace(text, "20852163", "0020852163", 1)},
		{"checkpoint without signature", strings.TrimSuffix(text, note) + c.Text()},
		{"too large", text + strings.Repeat("x", MaxTlogProofBytes)},
	} {
		if got, err := ParseTlogProof(test.text); !errors.Is(err, ErrMalformed) || got.Checkpoint != nil {
			t.Errorf("%s: got %v, %v, want ErrMalformed", test.name, got, err)
		}
	}
	if got := len(TlogProof{MaxSize, make([]merkle.Hash, MaxProofHashes), make([]byte, MaxNoteBytes)}.Text()); got != MaxTlogProofBytes {
		t.Errorf("largest text has %d bytes, MaxTlogProofBytes is %d", got, MaxTlogProofBytes)
	}
}

// The whole chain of an offline verifier: text, policy, inclusion. No flipped bit gets through it.
func TestTlogProofEveryBitFlip(t *testing.T) {
	leaf := merkle.LeafHash([]byte("event"))
	siblings := []merkle.Hash{merkle.LeafHash([]byte("left")), merkle.LeafHash([]byte("right"))}
	root := merkle.NodeHash(merkle.NodeHash(siblings[0], leaf), siblings[1])
	c := Checkpoint{Origin: "example.com/log", Size: 3, Root: root}
	k := testKey(t, c.Origin, 1)
	policy := mustParsePolicy(t, "log "+k.VKey()+"\nquorum none\n")
	verify := func(text string) error {
		p, err := ParseTlogProof(text)
		if err != nil {
			return err
		}
		c, _, err := policy.Verify(p.Checkpoint)
		if err != nil {
			return err
		}
		return merkle.VerifyInclusion(leaf, p.Index, c.Size, p.Hashes, c.Root)
	}
	text := TlogProof{Index: 1, Hashes: siblings, Checkpoint: mustSign(t, c, k)}.Text()
	if err := verify(text); err != nil {
		t.Fatal(err)
	}
	for bit := range 8 * len(text) {
		b := []byte(text)
		b[bit/8] ^= 1 << (bit % 8)
		if verify(string(b)) == nil {
			t.Errorf("bit %d of byte %d (%q) flipped: verified", bit%8, bit/8, text[bit/8])
		}
	}
}

func FuzzParseTlogProof(f *testing.F) {
	c := testCheckpoint()
	signed := mustSign(f, c, testKey(f, c.Origin, 1))
	f.Add(TlogProof{Index: 0, Checkpoint: signed}.Text())
	f.Add(TlogProof{Index: 73894, Hashes: []merkle.Hash{{1}, c.Root}, Checkpoint: signed}.Text())
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParseTlogProof(text)
		if err != nil {
			if !errors.Is(err, ErrMalformed) || p.Checkpoint != nil {
				t.Fatalf("got %v, %v, want ErrMalformed", p, err)
			}
			return
		}
		if got := p.Text(); got != text {
			t.Fatalf("%q prints as %q", text, got)
		}
		if len(p.Hashes) > MaxProofHashes || p.Index >= MaxSize {
			t.Fatalf("%d hashes, index %d", len(p.Hashes), p.Index)
		}
	})
}
