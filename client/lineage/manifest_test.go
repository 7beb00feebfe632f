package lineage_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/provledger/provledger/client/lineage"
)

func member(path string) lineage.Member {
	return lineage.Member{Path: path, SHA256: strings.Repeat("0a", 32), Size: 12}
}

// sampleManifests are the seeds of FuzzParseManifest.
func sampleManifests() map[string]any {
	return map[string]any{
		"one":    lineage.NewManifest([]lineage.Member{member("a/b")}).Encode(),
		"two":    lineage.NewManifest([]lineage.Member{member("a"), member("b/c.csv")}).Encode(),
		"escape": lineage.NewManifest([]lineage.Member{member("a\"b <&> é\u2028")}).Encode(),
		"space":  append([]byte(" "), lineage.NewManifest([]lineage.Member{member("a")}).Encode()...),
	}
}

// TestManifestEncoding pins the bytes, with what JSON encoders like to escape.
func TestManifestEncoding(t *testing.T) {
	const path = "a\"b <&> é\u2028"
	got := string(lineage.NewManifest([]lineage.Member{member(path), member("z")}).Encode())
	sum := strings.Repeat("0a", 32)
	want := fmt.Sprintf(`{"dirHash":"%x","files":[{"path":"a\"b <&> é%s","sha256":"%s","size":12},{"path":"z","sha256":"%s","size":12}]}`+"\n",
		sha256.Sum256([]byte(sum+"  "+path+"\n"+sum+"  z\n")), "\u2028", sum, sum)
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	m, err := lineage.ParseManifest([]byte(got))
	if err != nil || m.Size() != 24 || m.Files[1].Digest().String() != "sha256:"+sum {
		t.Errorf("read back: %+v, %v", m, err)
	}
}

func TestParseManifestRefuses(t *testing.T) {
	good := lineage.NewManifest([]lineage.Member{member("a"), member(`b"c`), member("é")}).Encode()
	for i := range good {
		for bit := range 8 {
			bad := bytes.Clone(good)
			bad[i] ^= 1 << bit
			if m, err := lineage.ParseManifest(bad); err == nil && !bytes.Equal(m.Encode(), bad) || err != nil && !errors.Is(err, lineage.ErrManifest) {
				t.Fatalf("bit %d of byte %d (%q): %v", bit, i, bad, err)
			} else if err == nil && !sameFiles(good, bad) {
				t.Fatalf("bit %d of byte %d accepted: %s", bit, i, bad)
			}
		}
	}
	replace := func(old, by string) string {
		s := strings.Replace(string(good), old, by, 1)
		if s == string(good) {
			t.Fatalf("%q is not in the manifest", old)
		}
		return s
	}
	for _, bad := range []string{
		"", "{}", "null", `{"dirHash":"","files":[]}` + "\n", string(good) + "x", string(good) + "\n", string(good[:len(good)-1]), " " + string(good),
		replace(`:`, `: `), replace(`"files"`, `"x":1,"files"`), replace(`"dirHash"`, `"DirHash"`), replace(`\"`, `\u0022`), replace("é", `\u00e9`),
		replace(`"size":12`, `"size":12.0`), replace(`"size":12`, `"size":-1`), replace(`"size":12`, `"size":012`), replace(`,"size":12`, ``),
		replace(`"size":12`, `"size":9223372036854775808`), replace("0a0a", "0A0A"), replace(`"path":"a","sha256"`, `"path":"a","path":"a","sha256"`),
		string(lineage.NewManifest(nil).Encode()),
	} {
		if _, err := lineage.ParseManifest([]byte(bad)); !errors.Is(err, lineage.ErrManifest) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	for _, p := range []string{"/a", "../a", "a/../b", "a//b", "./a", "", ".", "..", "a/", `a\b`, "a\nb", "a\x7f", "a\xff", "a\x00"} {
		m := lineage.NewManifest([]lineage.Member{member(p)})
		if _, err := lineage.ParseManifest(m.Encode()); !errors.Is(err, lineage.ErrManifest) {
			t.Errorf("path %q: %v", p, err)
		}
	}
	for name, files := range map[string][]lineage.Member{"twice": {member("a"), member("a")}, "order": {member("b"), member("a")}} {
		if _, err := lineage.ParseManifest(lineage.NewManifest(files).Encode()); !errors.Is(err, lineage.ErrManifest) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// sameFiles reports whether two manifests list the same files: the dirHash does not cover sizes, the body's commitment does.
func sameFiles(a, b []byte) bool {
	x, err1 := lineage.ParseManifest(a)
	y, err2 := lineage.ParseManifest(b)
	return err1 == nil && err2 == nil && x.DirHash == y.DirHash && len(x.Files) == len(y.Files)
}

func FuzzParseManifest(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := lineage.ParseManifest(b)
		if err != nil {
			return
		}
		if again := m.Encode(); !bytes.Equal(again, b) {
			t.Fatalf("accepted %q, encodes %q", b, again)
		}
		// The paths must be usable below a directory on any system.
		for _, f := range m.Files {
			if !filepath.IsLocal(f.Path) {
				t.Fatalf("accepted path %q", f.Path)
			}
		}
	})
}
