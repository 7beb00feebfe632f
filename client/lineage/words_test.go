package lineage_test

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/provledger/provledger/client/lineage"
)

func TestParseID(t *testing.T) {
	const text = "01890a5d-ac96-774b-bcce-b302099a8057"
	for _, s := range []string{text, strings.ToUpper(text)} {
		if id, err := lineage.ParseID(s); err != nil || id.String() != text {
			t.Errorf("%s: %v, %v", s, id, err)
		}
	}
	for _, s := range []string{
		"", " ", text[1:], text + "0", "{" + text + "}", "urn:uuid:" + text, strings.ReplaceAll(text, "-", ""), strings.ReplaceAll(text, "-", "_"),
		"0189-0a5dac96-774b-bcce-b302099a8057", text[:35] + "g", text[:35] + "\n", "00000000-0000-0000-0000-000000000000",
	} {
		if id, err := lineage.ParseID(s); err == nil || id != (lineage.ID{}) {
			t.Errorf("%q: %v, %v", s, id, err)
		}
	}
	a, b := lineage.NewID(), lineage.NewID()
	if a == b || a.String() > b.String() {
		t.Errorf("new ids %s, %s: UUIDv7 in order are wanted", a, b)
	}
}

func TestParseDigest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := genDigest(true).Draw(t, "digest")
		s := d.String()
		name, digits, _ := strings.Cut(s, ":")
		for _, s := range []string{s, name + ":" + strings.ToUpper(digits)} {
			if got, err := lineage.ParseDigest(s); err != nil || got != d {
				t.Fatalf("%s: %v, %v", s, got, err)
			}
		}
		if digits != strings.ToLower(digits) {
			t.Fatalf("%s is not lower case", s)
		}
		for bit := range 8 * len(s) {
			b := []byte(s)
			b[bit/8] ^= 1 << (bit % 8)
			got, err := lineage.ParseDigest(string(b))
			if upper := strings.EqualFold(string(b), s) && string(b[:len(name)]) == name; err == nil && (got == d) != upper {
				t.Fatalf("%s: flipped to %q and read as %s", s, b, got)
			}
		}
	})
	hex64 := strings.Repeat("0a", 32)
	if d, err := lineage.ParseDigest("dirHash1:" + hex64); err != nil || d.String() != "dirHash:"+hex64 {
		t.Errorf("dirHash1: %v, %v", d, err)
	}
	for _, s := range []string{
		"", ":", "sha256", "sha256:", hex64, ":" + hex64, "SHA256:" + hex64, "sha-256:" + hex64, "name:" + hex64, "unknown(19):" + hex64, "crc32:00000000",
		"sha256:" + hex64[1:], "sha256:" + hex64 + "00", "sha256:" + hex64[:62] + "0g", "sha256: " + hex64[1:], "sha256:0x" + hex64[2:], "sha256:" + hex64 + ":",
		"sha512:" + hex64, "md5:" + hex64, "sha512:" + strings.Repeat("00", 65), "gitCommit:" + hex64[:42], "sha256:" + strings.Repeat("é", 32),
	} {
		if d, err := lineage.ParseDigest(s); err == nil || !d.IsZero() {
			t.Errorf("%q: %v, %v", s, d, err)
		}
	}
	if s := (lineage.Digest{}).String(); s != "" {
		t.Errorf("zero digest is %q", s)
	}
}

func TestDigestProves(t *testing.T) {
	for a, n := range sizes {
		for _, n := range n {
			d := lineage.Digest{Algorithm: a, Value: strings.Repeat("x", n)}
			weak := n < 32 || a == lineage.OMSRoot
			if d.Proves() == weak {
				t.Errorf("%s of %d bytes proves: %v", a, n, d.Proves())
			}
		}
	}
	for _, d := range []lineage.Digest{{}, {Algorithm: lineage.NameHMAC, Value: strings.Repeat("x", 32)}, {Algorithm: 99, Value: strings.Repeat("x", 32)}} {
		if d.Proves() {
			t.Errorf("%v proves", d)
		}
	}
}

// TestWords: each word that is printed is read back, and nothing else is; every value prints something.
func TestWords(t *testing.T) {
	for name, c := range map[string]struct {
		text  func(uint8) string
		parse func(string) (uint8, error)
		known uint8
	}{
		"kind":      {func(v uint8) string { return lineage.Kind(v).String() }, func(s string) (uint8, error) { v, err := lineage.ParseKind(s); return uint8(v), err }, 5},
		"run":       {func(v uint8) string { return lineage.RunState(v).String() }, func(s string) (uint8, error) { v, err := lineage.ParseRunState(s); return uint8(v), err }, 6},
		"lifecycle": {func(v uint8) string { return lineage.LifecycleVerb(v).String() }, func(s string) (uint8, error) { v, err := lineage.ParseLifecycleVerb(s); return uint8(v), err }, 9},
		"access":    {func(v uint8) string { return lineage.AccessVerb(v).String() }, func(s string) (uint8, error) { v, err := lineage.ParseAccessVerb(s); return uint8(v), err }, 4},
		"role":      {func(v uint8) string { return lineage.Role(v).String() }, func(s string) (uint8, error) { v, err := lineage.ParseRole(s); return uint8(v), err }, 3},
		"artifact":  {func(v uint8) string { return lineage.ArtifactKind(v).String() }, func(s string) (uint8, error) { v, err := lineage.ParseArtifactKind(s); return uint8(v), err }, 6},
		"purpose":   {func(v uint8) string { return lineage.Purpose(v).String() }, func(s string) (uint8, error) { v, err := lineage.ParsePurpose(s); return uint8(v), err }, 14},
	} {
		for v := range 256 {
			s := c.text(uint8(v))
			got, err := c.parse(s)
			if known := v >= 1 && v <= int(c.known); known && (err != nil || int(got) != v) {
				t.Errorf("%s %d: %q is read as %d, %v", name, v, s, got, err)
			} else if !known && (err == nil || v > 0 && s != fmt.Sprintf("unknown(%d)", v)) {
				t.Errorf("%s %d: %q is read as %d", name, v, s, got)
			}
		}
		if _, err := c.parse("nonsense"); err == nil || !strings.Contains(err.Error(), c.text(1)) {
			t.Errorf("%s: the error does not list the words: %v", name, err)
		}
	}
	if s := lineage.ActionText(0, 0, "") + lineage.ActionText(200, 7, ""); s != "unknown(0)unknown(7)" {
		t.Errorf("actions of unknown kinds: %q", s)
	}
}
