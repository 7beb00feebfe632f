package receipt

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"
	"github.com/google/go-cmp/cmp"

	"github.com/provledger/provledger/client/lineage"
)

// lines breaks hex into lines of 32 bytes.
func lines(b []byte) string {
	var out []string
	for ; len(b) > 32; b = b[32:] {
		out = append(out, hex.EncodeToString(b[:32]))
	}
	return strings.Join(append(out, hex.EncodeToString(b)), "\n")
}

// diagnostic is the leaf in diagnostic notation, a pair a line, by the general codec.
func diagnostic(t *testing.T, leaf []byte) string {
	rest := leaf[len("pvleaf\x00"):]
	if rest[0]>>5 != 5 || rest[0]&31 > 23 {
		t.Fatalf("map head %x", rest[0])
	}
	var out []string
	for pairs := rest[1:]; len(pairs) > 0; {
		var pair [2]string
		for i := range pair {
			var err error
			if pair[i], pairs, err = cbor.DiagnoseFirst(pairs); err != nil {
				t.Fatal(err)
			}
		}
		out = append(out, pair[0]+": "+pair[1])
	}
	return strings.Join(out, "\n")
}

// TestFormatExample recomputes every byte of the worked example in docs/format.md.
func TestFormatExample(t *testing.T) {
	l := newTestLog(t, testOrigin, 1)
	at := l.add(runEvent())
	other := runEvent()
	other.ID[1] = 1
	l.add(other)
	r := l.receipt(at, Opened)
	file := r.Encode()
	policy := "log " + l.key.VKey() + "\nquorum none\n"
	res := VerifyFile(file, mustPolicy(t, policy), []Subject{subject("model")}, Require{})
	if res.Outcome != Verified {
		t.Fatal(res.text())
	}
	var body, tree []string
	for _, p := range r.Body {
		body = append(body, fmt.Sprintf("part %d, %s\nkey %x\n%s", p.Kind, p.Kind, p.Key, lines(p.Content)))
	}
	for i, leaf := range l.leaves {
		tree = append(tree, fmt.Sprintf("leaf %d %x", i, sha256.Sum256(append([]byte{0}, leaf...))))
	}
	tree = append(tree, fmt.Sprintf("root   %s", l.root(0, len(l.leaves))))
	want := map[string]string{
		"policy": policy, "leaf": lines(r.Leaf), "diagnostic": diagnostic(t, r.Leaf), "body": strings.Join(body, "\n\n"), "tree": strings.Join(tree, "\n"),
		"receipt": string(file), "verdict": res.text() + "not checked:\n  " + strings.Join(res.NotChecked, "\n  ") + "\nclaims:\n  " + strings.Join(res.Claims, "\n  "),
	}
	const path = "../../docs/format.md"
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(<!-- example: ([a-z]+) -->\n)(?:\n```\n(?s:(.*?))\n```\n)?")
	found := map[string]string{}
	for _, m := range block.FindAllStringSubmatch(string(text), -1) {
		found[m[2]] = m[3]
	}
	for name := range want {
		want[name] = strings.TrimSuffix(want[name], "\n")
	}
	if *update {
		text = block.ReplaceAllFunc(text, func(b []byte) []byte {
			m := block.FindSubmatch(b)
			return fmt.Appendf(nil, "%s\n```\n%s\n```\n", m[1], want[string(m[2])])
		})
		for path, content := range map[string][]byte{path: text, "testdata/example.policy": []byte(policy), "testdata/example.receipt": file} {
			if err := os.WriteFile(path, content, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		return
	}
	if diff := cmp.Diff(want, found); diff != "" {
		t.Errorf("docs/format.md (-computed +written):\n%s", diff)
	}
	for path, content := range map[string]string{"testdata/example.policy": policy, "testdata/example.receipt": string(file)} {
		if got, err := os.ReadFile(path); err != nil || string(got) != content {
			t.Errorf("%s: %v, not what is computed", path, err)
		}
	}
	// The second verifier, with nothing but what the page shows.
	vkey := strings.TrimPrefix(strings.Split(found["policy"], "\n")[0], "log ")
	origin, _, _ := strings.Cut(vkey, "+")
	if err := (independent{origin: origin, key: publicKey(t, vkey), schema: schemaFile(t)}).verify([]byte(found["receipt"] + "\n")); err != nil {
		t.Error(err)
	}
	// Name hashes by the page: length-prefixed strings under the reference key.
	leaf, err := lineage.ParseLeaf(r.Leaf)
	if err != nil || *leaf.Job != lineage.HashName(&testReferenceKey, runEvent().Job) {
		t.Errorf("job hash: %v", err)
	}
}
