package checkpoint

import (
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/provledger/provledger/internal/merkle"
)

const emptyRoot64 = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="

func testCheckpoint() Checkpoint {
	return Checkpoint{Origin: "example.com/behind-the-sofa", Size: 20852163, Root: merkle.LeafHash([]byte("x"))}
}

// C2SP tlog-checkpoint: the body of the empty tree, and one whose three lines come from the specification of cosignatures.
func TestText(t *testing.T) {
	empty := Checkpoint{Origin: "example.com/log", Root: merkle.EmptyRoot()}
	if got, want := empty.Text(), "example.com/log\n0\n"+emptyRoot64+"\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	const text = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
	c, err := Parse(text)
	if err != nil || c.Text() != text || c.Size != 20852163 || c.Root.String() != "0ac5186a91863e8e1d90c808014aa89bf5da8e3ee1d9f07630f0378f68f1ab62" {
		t.Errorf("got %v, %v", c, err)
	}
	largest := Checkpoint{Origin: strings.Repeat("o", MaxNameBytes), Size: MaxSize, Root: merkle.Hash{1}}
	if got, err := Parse(largest.Text()); err != nil || got != largest {
		t.Errorf("got %v, %v", got, err)
	}
	if got, bound := len(largest.Text()), largest.textBytes(); got != bound {
		t.Errorf("largest text has %d bytes, bound says %d", got, bound)
	}
}

func TestParseRefuses(t *testing.T) {
	const root = "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I="
	for _, test := range []struct{ name, text, says string }{
		{"nothing", "", "three lines"},
		{"no final LF", "o\n1\n" + root, "three lines"},
		{"two lines", "o\n1\n", "three lines"},
		{"extension line", "o\n1\n" + root + "\nextension\n", "extension"},
		{"empty extension line", "o\n1\n" + root + "\n\n", "extension"},
		{"no origin", "\n1\n" + root + "\n", "origin"},
		{"long origin", strings.Repeat("o", 256) + "\n1\n" + root + "\n", "origin"},
		{"origin with CR", "o\r\n1\n" + root + "\n", "origin"},
		{"origin with NUL", "o\x00\n1\n" + root + "\n", "origin"},
		{"origin not UTF-8", "o\xff\n1\n" + root + "\n", "origin"},
		{"size 00", "o\n00\n" + emptyRoot64 + "\n", "size"},
		{"size 01", "o\n01\n" + root + "\n", "size"},
		{"size +1", "o\n+1\n" + root + "\n", "size"},
		{"size -1", "o\n-1\n" + root + "\n", "size"},
		{"size 1_0", "o\n1_0\n" + root + "\n", "size"},
		{"size with space", "o\n 1\n" + root + "\n", "size"},
		{"size 0x1", "o\n0x1\n" + root + "\n", "size"},
		{"size with full-width digit", "o\n\uff11\n" + root + "\n", "size"},
		{"no size", "o\n\n" + root + "\n", "size"},
		{"size 2^63", "o\n9223372036854775808\n" + root + "\n", "size"},
		{"size 20 digits", "o\n10000000000000000000\n" + root + "\n", "size"},
		{"31 bytes", "o\n1\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxqw==\n", "root"},
		{"33 bytes", "o\n1\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2Jh\n", "root"},
		{"no root", "o\n1\n\n", "root"},
		{"trailing bits", "o\n1\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2J=\n", "root"},
		{"no padding", "o\n1\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I\n", "root"},
		{"URL alphabet", "o\n1\nCsUYapGGPo4dkMgIAUqom_Xajj7h2fB2MPA3j2jxq2I=\n", "root"},
		{"CR in the root", "o\n1\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\r\n", "root"},
		{"size 0 with a root", "o\n0\n" + root + "\n", "size 0"},
	} {
		c, err := Parse(test.text)
		if !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), test.says) || c != (Checkpoint{}) {
			t.Errorf("%s: got %v, %v, want ErrMalformed that says %q", test.name, c, err, test.says)
		}
	}
}

func TestSignRefuses(t *testing.T) {
	k := testKey(t, "example.com/log", 1)
	for name, c := range map[string]Checkpoint{
		"other origin":       {Origin: "example.com/other", Size: 1, Root: merkle.Hash{1}},
		"no origin":          {Size: 1, Root: merkle.Hash{1}},
		"size over 2^63-1":   {Origin: k.Name(), Size: math.MaxInt64 + 1, Root: merkle.Hash{1}},
		"size 0 with a root": {Origin: k.Name(), Root: merkle.Hash{1}},
	} {
		if signed, err := Sign(c, k); !errors.Is(err, ErrMalformed) || signed != nil {
			t.Errorf("%s: got %q, %v, want ErrMalformed", name, signed, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(testCheckpoint().Text())
	f.Add("example.com/log\n0\n" + emptyRoot64 + "\n")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := Parse(text)
		if err != nil {
			if !errors.Is(err, ErrMalformed) || c != (Checkpoint{}) {
				t.Fatalf("Parse(%q) = %v, %v, want ErrMalformed", text, c, err)
			}
			return
		}
		if got := c.Text(); got != text {
			t.Fatalf("Parse(%q) prints as %q", text, got)
		}
		if len(text) > c.textBytes() {
			t.Fatalf("text of %d bytes, bound says %d", len(text), c.textBytes())
		}
	})
}
