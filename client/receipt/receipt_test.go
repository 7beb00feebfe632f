package receipt

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/checkpoint"
)

// samples are the receipts that the exhaustive tests go through: with and without body, without parts, and with a signature line by a key
// that the policy does not know.
func samples(t testing.TB) (files map[string][]byte, policy *Policy, check independent) {
	l, at := filled(t)
	stranger, err := checkpoint.NewKey(testOrigin, &[32]byte{0: 99})
	if err != nil {
		t.Fatal(err)
	}
	extra := l.receipt(at, Opened)
	extra.Proof.Checkpoint = addSignature(t, extra.Proof.Checkpoint, stranger)
	bare := newTestLog(t, testOrigin, 1)
	bare.add(&lineage.Event{ID: lineage.ID{9}, Kind: lineage.KindRun, Action: 1, RunID: lineage.ID{1}})
	files = map[string][]byte{
		"bare":     bare.receipt(1, Opened).Encode(),
		"opened":   l.receipt(at, Opened).Encode(),
		"withheld": l.receipt(at, Withheld).Encode(),
		"erased":   l.receipt(at, Erased).Encode(),
		"genesis":  l.receipt(0, Opened).Encode(),
		"extra":    extra.Encode(),
	}
	return files, l.policy(), independent{origin: testOrigin, key: publicKey(t, l.key.VKey()), schema: schemaFile(t)}
}

func schemaFile(t testing.TB) []byte {
	b, err := os.ReadFile("../../docs/leaf.cddl")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func publicKey(t testing.TB, vkey string) []byte {
	b, err := base64.StdEncoding.DecodeString(vkey[strings.LastIndex(vkey, "+")+1:])
	if err != nil || len(b) != 33 {
		t.Fatal(vkey, err)
	}
	return b[1:]
}

func TestFileRoundTrip(t *testing.T) {
	files, _, _ := samples(t)
	for name, f := range files {
		r, err := Parse(f)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if again := r.Encode(); !bytes.Equal(again, f) {
			t.Errorf("%s: %s", name, cmp.Diff(string(f), string(again)))
		}
		if !json.Valid(f) {
			t.Errorf("%s: not JSON", name)
		}
	}
}

// TestParseRefusesOtherForms: the same JSON value in any other spelling is no receipt.
func TestParseRefusesOtherForms(t *testing.T) {
	files, policy, check := samples(t)
	good := string(files["opened"])
	replace := func(old, by string) string {
		s := strings.Replace(good, old, by, 1)
		if s == good {
			t.Fatalf("%q is not in the receipt", old)
		}
		return s
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, files["opened"]); err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(files["opened"], &m); err != nil {
		t.Fatal(err)
	}
	sorted, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]string{
		"empty": "", "null": "null", "array": "[]", "text": "\"receipt\"",
		"compact": compact.String(), "sorted keys": string(sorted) + "\n",
		"CRLF": strings.ReplaceAll(good, "\n", "\r\n"), "no last line feed": strings.TrimSuffix(good, "\n"), "two line feeds": good + "\n",
		"byte order mark": "\ufeff" + good, "leading space": " " + good, "trailing value": good + "{}",
		"tab": replace("  \"leaf\"", "\t\"leaf\""), "space before colon": replace(`"leaf":`, `"leaf" :`),
		"unknown key":                replace("\n  \"leaf\"", "\n  \"note\": 1,\n  \"leaf\""),
		"duplicate key":              replace("\n  \"leaf\"", "\n  \"bodyState\": \"opened\",\n  \"leaf\""),
		"duplicate key, other value": replace("\n  \"leaf\"", "\n  \"bodyState\": \"erased\",\n  \"leaf\""),
		"key in other case":          replace(`"leaf"`, `"Leaf"`),
		"unknown key in a part":      replace(`{"part": 1,`, `{"note": 1, "part": 1,`),
		"missing body":               replace("\"body\": [", "\"Body\": ["),
		"null body":                  string(bytes.Replace(files["withheld"], []byte("[]"), []byte("null"), 1)),
		"spaced empty body":          string(bytes.Replace(files["withheld"], []byte("[]"), []byte("[ ]"), 1)),
		"escaped letter":             replace(`"opened"`, `"\u006fpened"`),
		"escaped slash":              replace("application/", `application\/`),
		"escaped dash":               replace("—", `\u2014`),
		"line feed as \\u000a":       replace(`@v1\n`, `@v1\u000a`),
		"part as float":              replace(`"part": 1`, `"part": 1.0`),
		"part as text":               replace(`"part": 1`, `"part": "1"`),
		"part with a zero":           replace(`"part": 1`, `"part": 01`),
		"part above a byte":          replace(`"part": 1`, `"part": 257`),
		"media type":                 replace("receipt.v1", "receipt.v2"),
		"body state":                 replace(`"opened"`, `"open"`),
		"unpadded base64":            replace(`=`, ``),
		"line feed in base64":        replace(`"leaf": "`, `"leaf": "\n`),
		"URL-safe base64":            strings.ReplaceAll(good, "/", "_"),
		"short key":                  replace(`"key": "`, `"key": "AAAA`),
		"opened body of a withheld":  replace(`"opened"`, `"withheld"`),
		"extra line":                 replace(`@v1\n`, `@v1\nextra AAAA\n`),
		"invalid UTF-8":              replace("—", "\xe2\x80"),
	} {
		if _, err := Parse([]byte(f)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
		if res := VerifyFile([]byte(f), policy, nil, Require{}); res.Outcome != NotVerified || res.Facts != nil || res.Checks[0].Name != CheckReceipt {
			t.Errorf("%s: %s", name, res.text())
		}
		if err := check.verify([]byte(f)); err == nil {
			t.Errorf("%s: the second verifier accepts it", name)
		}
	}
	if _, err := Parse(make([]byte, MaxFileBytes+1)); !errors.Is(err, ErrMalformed) {
		t.Errorf("too large: %v", err)
	}
}

// TestLargestReceipt: what the limits allow fits the file limit.
func TestLargestReceipt(t *testing.T) {
	l := newTestLog(t, testOrigin, 1)
	r := l.receipt(0, Opened)
	r.Leaf = make([]byte, lineage.MaxLeafBytes)
	r.Body = []lineage.BodyPart{{Kind: 1}, {Kind: 2, Content: make([]byte, lineage.MaxBodyBytes)}, {Kind: 3}}
	for range 63 {
		r.Proof.Hashes = append(r.Proof.Hashes, [32]byte{})
	}
	f := r.Encode()
	if _, err := Parse(f); err != nil || len(f)+2*checkpoint.MaxNoteBytes > MaxFileBytes {
		t.Errorf("%d bytes: %v", len(f), err)
	}
	r.Body[0].Content = []byte{0}
	if _, err := Parse(r.Encode()); !errors.Is(err, ErrMalformed) {
		t.Errorf("body of 1 MiB and a byte: %v", err)
	}
}

// TestBitFlips flips every bit of every sample. Each flip fails, but inside the signature line that the policy does not need, where the
// result is the same in every field. The second verifier says the same of each.
func TestBitFlips(t *testing.T) {
	files, policy, check := samples(t)
	delete(files, "erased") // withheld by another word
	for name, f := range files {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			flipAll(t, name, f, policy, check)
		})
	}
}

// stride is the distance of the bits to flip: each one, but for short runs, which race builds make too.
func stride() int {
	if testing.Short() {
		return 29
	}
	return 1
}

func flipAll(t *testing.T, name string, f []byte, policy *Policy, check independent) {
	want := VerifyFile(f, policy, nil, Require{})
	if want.Outcome != Verified {
		t.Fatalf("%s: %s", name, want.text())
	}
	if err := check.verify(f); err != nil {
		t.Fatalf("%s: second verifier: %v", name, err)
	}
	unneeded := len(f)
	if name == "extra" {
		unneeded = bytes.LastIndex(f, []byte("—"))
	}
	passed := 0
	for bit := 0; bit < 8*len(f); bit += stride() {
		flipped := bytes.Clone(f)
		flipped[bit/8] ^= 1 << (bit % 8)
		got := VerifyFile(flipped, policy, nil, Require{})
		if err := check.verify(flipped); (err == nil) != (got.Outcome == Verified) {
			t.Fatalf("%s: bit %d: second verifier: %v, first: %s", name, bit, err, got.text())
		}
		if got.Outcome != Verified {
			if got.Facts != nil {
				t.Fatalf("%s: bit %d: facts of what is not verified", name, bit)
			}
			continue
		}
		passed++
		if bit/8 < unneeded {
			t.Fatalf("%s: bit %d (%q) does not count", name, bit, f[bit/8])
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("%s: bit %d: verified, with another result:\n%s", name, bit, diff)
		}
	}
	if (passed > 0) != (name == "extra") {
		t.Errorf("%s: %d flips passed", name, passed)
	}
	t.Logf("%s: %d bytes, %d of %d flips in a signature that nobody needs passed", name, len(f), passed, 8*len(f))
}

// TestUnneededWitness: a cosignature that the quorum does without. Flips in its line fail or leave the facts as they are.
func TestUnneededWitness(t *testing.T) {
	l, at := filled(t)
	w := [3]*witness{newWitness(t, "w1.example", 11), newWitness(t, "w2.example", 12), newWitness(t, "w3.example", 13)}
	policy := mustPolicy(t, fmt.Sprintf("log %s\nwitness a %s\nwitness b %s\nwitness c %s\ngroup g 2 a b c\nquorum g\n", l.key.VKey(), w[0].vkey, w[1].vkey, w[2].vkey))
	r := l.receipt(at, Withheld)
	for _, w := range w {
		r.Proof.Checkpoint = addSignature(t, r.Proof.Checkpoint, w)
	}
	f := r.Encode()
	want := VerifyFile(f, policy, nil, Require{})
	if want.Outcome != Verified || len(want.Witnesses) != 3 || want.Quorum != "g" {
		t.Fatal(want.text(), want.Witnesses)
	}
	start, passed := bytes.Index(f, []byte("— w1.example")), 0
	for bit := 0; bit < 8*len(f); bit += stride() {
		flipped := bytes.Clone(f)
		flipped[bit/8] ^= 1 << (bit % 8)
		got := VerifyFile(flipped, policy, nil, Require{})
		if got.Outcome != Verified {
			continue
		}
		passed++
		if bit/8 < start || len(got.Witnesses) != 2 || cmp.Diff(want.Facts, got.Facts) != "" {
			t.Fatalf("bit %d: %s", bit, got.text())
		}
	}
	if passed == 0 {
		t.Error("no cosignature could be spared")
	}
	r.Proof.Checkpoint = addSignature(t, l.checkpoint(), w[2])
	if got := Verify(r, policy, nil, Require{}); got.Outcome != NotVerified || got.last(CheckWitnesses).Outcome != NotVerified || got.Facts != nil {
		t.Error(got.text())
	}
}

func TestTruncations(t *testing.T) {
	files, policy, check := samples(t)
	for name, f := range files {
		for n := range f {
			if res := VerifyFile(f[:n], policy, nil, Require{}); res.Outcome != NotVerified {
				t.Fatalf("%s: %d of %d bytes: %s", name, n, len(f), res.text())
			}
			if check.verify(f[:n]) == nil {
				t.Fatalf("%s: %d of %d bytes: the second verifier accepts it", name, n, len(f))
			}
		}
	}
}

var seedNames = []string{"opened", "withheld", "genesis", "extra", "bare"}

// FuzzParse: what is accepted is written back to the same bytes, and both verifiers agree on it.
func FuzzParse(f *testing.F) {
	_, policy, check := samples(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := Parse(b)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatal(err)
			}
			if check.verify(b) == nil {
				t.Fatal("only the second verifier accepts it")
			}
			return
		}
		if again := r.Encode(); !bytes.Equal(again, b) {
			t.Fatalf("%s\nbecame %s", b, again)
		}
		res := Verify(r, policy, nil, Require{})
		if err := check.verify(b); (err == nil) != (res.Outcome == Verified) {
			t.Fatalf("second verifier: %v, first: %s", err, res.text())
		}
	})
}

// TestSeeds keeps the committed seeds of FuzzParse equal to today's receipts.
func TestSeeds(t *testing.T) {
	files, _, _ := samples(t)
	for _, name := range seedNames {
		path := filepath.Join("testdata", "fuzz", "FuzzParse", name)
		want := fmt.Sprintf("go test fuzz v1\n[]byte(%q)\n", files[name])
		if *update {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("%s is not the seed that today's code gives: %v", path, err)
		}
	}
}
