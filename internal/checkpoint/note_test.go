package checkpoint

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"github.com/provledger/provledger/internal/merkle"
)

func testSeed(n byte) *[ed25519.SeedSize]byte {
	seed := sha256.Sum256([]byte{'s', 'e', 'e', 'd', n})
	return &seed
}

func testKey(t testing.TB, name string, n byte) *Key {
	t.Helper()
	k, err := NewKey(name, testSeed(n))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func testVerifier(t testing.TB, k *Key) note.Verifier {
	t.Helper()
	v, err := NewVerifier(k.VKey())
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func mustSign(t testing.TB, c Checkpoint, k *Key) []byte {
	t.Helper()
	signed, err := Sign(c, k)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

// line returns a signature line, composed here once more and by other means.
func line(name string, id uint32, blob []byte) string {
	return "— " + name + " " + base64.StdEncoding.EncodeToString(append(binary.BigEndian.AppendUint32(nil, id), blob...)) + "\n"
}

// C2SP signed-note: the key of the specification, and the same key as a cosigner.
func TestVKeyVectors(t *testing.T) {
	const vkey = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
	v, err := NewVerifier(vkey)
	if err != nil || v.Name() != "example.com/foo" || v.KeyHash() != 0x530d903a {
		t.Fatalf("got %v, %v", v, err)
	}
	const cosigner = "example.com/foo+7c264079+BOkyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
	if c, err := parseVKey(cosigner); err != nil || c.id != 0x7c264079 || c.vkey() != cosigner {
		t.Errorf("cosigner: got %v, %v", c, err)
	}
	if _, err := NewVerifier(cosigner); !errors.Is(err, ErrUnsupportedKey) {
		t.Errorf("cosigner as a log: got %v, want ErrUnsupportedKey", err)
	}
	for _, test := range []struct {
		name, vkey string
		want       error
	}{
		{"empty", "", ErrMalformed},
		{"name only", "example.com/foo", ErrMalformed},
		{"wrong id", strings.Replace(vkey, "530d903a", "530d903b", 1), ErrMalformed},
		{"upper-case id", strings.Replace(vkey, "530d903a", "530D903A", 1), ErrMalformed},
		{"short id", strings.Replace(vkey, "530d903a", "530d903", 1), ErrMalformed},
		{"other name", strings.Replace(vkey, "foo", "fop", 1), ErrMalformed},
		{"no name", vkey[len("example.com/foo"):], ErrMalformed},
		{"space in name", "example com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k", ErrMalformed},
		{"short key", "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3Q==", ErrMalformed},
		{"no key", "example.com/foo+530d903a+", ErrMalformed},
		{"trailing space", vkey + " ", ErrMalformed},
		{"trailing LF", vkey + "\n", ErrMalformed},
		{"LF within", vkey[:40] + "\n" + vkey[40:], ErrMalformed},
		{"ECDSA", "example.com/foo+530d903a+AukyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k", ErrUnsupportedKey},
		{"ML-DSA-44 of wrong length", "example.com/foo+530d903a+BukyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k", ErrMalformed},
	} {
		if v, err := NewVerifier(test.vkey); !errors.Is(err, test.want) || v != nil {
			t.Errorf("%s: got %v, %v, want %v", test.name, v, err, test.want)
		}
	}
	// Stray bits behind a key of 33 bytes cannot occur, 44 characters hold them exactly; an ML-DSA key has two.
	mldsa := mldsaVKey("w", 1)
	stray := mldsa[:len(mldsa)-2] + string(mldsa[len(mldsa)-2]+1) + mldsa[len(mldsa)-1:]
	if _, err := parseVKey(mldsa); err != nil {
		t.Errorf("ML-DSA-44 key: %v", err)
	}
	if _, err := parseVKey(stray); !errors.Is(err, ErrMalformed) {
		t.Errorf("stray bits in base64: got %v, want ErrMalformed", err)
	}
}

// mldsaVKey returns the text of a key of type 0x06. No signature can be made by it.
func mldsaVKey(name string, n byte) string {
	public := bytes.Repeat([]byte{n}, mldsa44PublicBytes)
	return formatVKey(name, keyID(name, typeMLDSA44, public), typeMLDSA44, public)
}

func TestKeyNames(t *testing.T) {
	for _, name := range []string{"", "a b", "a+b", "a\tb", "a\nb", "a\u00a0b", "a\u2003b", "a\x01b", "a\xffb", strings.Repeat("n", 256)} {
		if k, err := NewKey(name, testSeed(1)); !errors.Is(err, ErrMalformed) || k != nil {
			t.Errorf("NewKey(%q) = %v, %v, want ErrMalformed", name, k, err)
		}
	}
	for _, name := range []string{"a", "example.com/ü", strings.Repeat("n", 255)} {
		k, err := NewKey(name, testSeed(1))
		if err != nil {
			t.Errorf("NewKey(%q): %v", name, err)
			continue
		}
		signer, err := note.NewSigner(fmt.Sprintf("PRIVATE+KEY+%s+%08x+%s", name, k.KeyHash(),
			base64.StdEncoding.EncodeToString(append([]byte{1}, testSeed(1)[:]...))))
		if err != nil || signer.KeyHash() != k.KeyHash() {
			t.Errorf("x/mod does not make the same key of %q: %v", name, err)
		}
		if v, err := note.NewVerifier(k.VKey()); err != nil || v.Name() != name {
			t.Errorf("x/mod does not read %s: %v", k.VKey(), err)
		}
	}
}

func TestKeyDoesNotPrintItsSeed(t *testing.T) {
	k := testKey(t, "example.com/log", 1)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		got := fmt.Sprintf(verb, k)
		seed := testSeed(1)
		for _, secret := range []string{fmt.Sprintf("%x", seed[:4]), fmt.Sprintf("%v", seed[:4])[1:8], fmt.Sprintf("%#x, %#x", seed[0], seed[1])} {
			if strings.Contains(got, secret) {
				t.Errorf("%s prints the seed: %s", verb, got)
			}
		}
	}
}

func TestSignIsThatOfXMod(t *testing.T) {
	for _, c := range []Checkpoint{
		testCheckpoint(),
		{Origin: "o", Root: merkle.EmptyRoot()},
		{Origin: strings.Repeat("ö", 127), Size: MaxSize, Root: merkle.Hash{255}},
	} {
		k := testKey(t, c.Origin, 7)
		want, err := note.Sign(&note.Note{Text: c.Text()}, k)
		if err != nil {
			t.Fatal(err)
		}
		got := mustSign(t, c, k)
		if !bytes.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
		if opened, err := Open(got, testVerifier(t, k)); err != nil || opened != c {
			t.Errorf("Open: %v, %v", opened, err)
		}
	}
}

func TestSignAllocations(t *testing.T) {
	c := testCheckpoint()
	k := testKey(t, c.Origin, 1)
	if n := testing.AllocsPerRun(20, func() {
		if _, err := Sign(c, k); err != nil {
			t.Fatal(err)
		}
	}); n > 2 {
		t.Errorf("%v allocations, want at most 2: the note and, within Ed25519, its signature", n)
	}
}

// C2SP signed-note, format and signatures: what must be refused, and what must not.
func TestOpen(t *testing.T) {
	c := testCheckpoint()
	k := testKey(t, c.Origin, 1)
	v := testVerifier(t, k)
	signed := string(mustSign(t, c, k))
	text, own, _ := strings.Cut(signed, "\n\n")
	text += "\n"
	stranger := line("stranger.example", 0x01020304, bytes.Repeat([]byte{9}, 64))
	sameName := line(k.Name(), 0x01020304, bytes.Repeat([]byte{9}, 64))
	sameID := line("stranger.example", k.KeyHash(), bytes.Repeat([]byte{9}, 64))
	bad := line(k.Name(), k.KeyHash(), bytes.Repeat([]byte{9}, 64))
	other := testKey(t, "example.com/other", 2)
	signature := func(text string) string {
		sig, err := k.Sign([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return line(k.Name(), k.KeyHash(), sig)
	}
	strangers := func(n int) string { return strings.Repeat(stranger, n) }

	for _, test := range []struct {
		name, note string
		want       error
	}{
		{"as signed", signed, nil},
		{"strangers around", text + "\n" + stranger + sameName + own + sameID, nil},
		{"signed twice", text + "\n" + own + own, nil},
		{"17 signatures", text + "\n" + strangers(16) + own, nil},
		{"most signatures", text + "\n" + strangers(MaxSignatures-1) + own, nil},
		{"too many signatures", text + "\n" + strangers(MaxSignatures) + own, ErrMalformed},
		{"largest note", text + "\n" + own + padded(MaxNoteBytes-len(signed)), nil},
		{"too large", text + "\n" + own + padded(MaxNoteBytes-len(signed)+4), ErrMalformed},
		{"nothing", "", ErrMalformed},
		{"no signature", text, ErrMalformed},
		{"empty signature block", text + "\n", ErrMalformed},
		{"no empty line", text + own, ErrMalformed},
		{"no final LF", signed[:len(signed)-1], ErrMalformed},
		{"LF over", signed + "\n", ErrMalformed},
		{"text over", signed + "more\n", ErrMalformed},
		{"CR LF", strings.ReplaceAll(signed, "\n", "\r\n"), ErrMalformed},
		{"CR at the end", strings.TrimSuffix(signed, "\n") + "\r\n", ErrMalformed},
		{"NUL", text + "\n" + stranger + "\x00\n" + own, ErrMalformed},
		{"tab", text + "\n" + strings.Replace(own, " ", "\t", 1), ErrMalformed},
		{"not UTF-8", text + "\n" + own + line("x\xff", 1, make([]byte, 64)), ErrMalformed},
		{"hyphen for dash", text + "\n" + strings.Replace(own, "—", "-", 1), ErrMalformed},
		{"two spaces", text + "\n" + strings.Replace(own, " ", "  ", 1), ErrMalformed},
		{"space at the end", text + "\n" + strings.TrimSuffix(own, "\n") + " \n", ErrMalformed},
		{"no name", text + "\n" + own + line("", 1, make([]byte, 64)), ErrMalformed},
		{"plus in a name", text + "\n" + own + line("a+b", 1, make([]byte, 64)), ErrMalformed},
		{"key id only", text + "\n" + own + line("a", 1, nil), ErrMalformed},
		{"no base64", text + "\n" + own + "— a \n", ErrMalformed},
		{"stray bits", text + "\n" + own + "— a AAAAAAB=\n", ErrMalformed},
		{"strangers only", text + "\n" + stranger, ErrBadSignature},
		{"same name only", text + "\n" + sameName, ErrBadSignature},
		{"same id only", text + "\n" + sameID, ErrBadSignature},
		{"bad", text + "\n" + bad, ErrBadSignature},
		{"good, then bad", text + "\n" + own + bad, ErrBadSignature},
		{"bad, then good", text + "\n" + bad + own, ErrBadSignature},
		{"signature cut short", text + "\n" + line(k.Name(), k.KeyHash(), make([]byte, 63)), ErrBadSignature},
		{"signature of another text", strings.Replace(text, "2", "3", 1) + "\n" + own, ErrBadSignature},
		{"other log", string(mustSign(t, Checkpoint{Origin: other.Name(), Size: 1}, other)), ErrBadSignature},
		{"other origin, our key", "example.com/other\n1\n" + emptyRoot64 + "\n\n" + signature("example.com/other\n1\n"+emptyRoot64+"\n"), ErrBadSignature},
		{"extension line, well signed", text + "extension\n\n" + signature(text+"extension\n"), ErrMalformed},
		{"empty line in the text, well signed", text + "\nmore\n\n" + signature(text+"\nmore\n"), ErrMalformed},
		{"size 00, well signed", "x\n00\n" + emptyRoot64 + "\n\n" + signature("x\n00\n"+emptyRoot64+"\n"), ErrMalformed},
	} {
		got, err := Open([]byte(test.note), v)
		if !errors.Is(err, test.want) || err == nil && got != c || err != nil && got != (Checkpoint{}) {
			t.Errorf("%s: got %v, %v, want %v", test.name, got, err, test.want)
		}
	}
}

// padded returns signature lines by strangers of n bytes together. Base64 grows by four.
func padded(n int) string {
	const lines = MaxSignatures - 1
	each := n / lines
	var b strings.Builder
	for i := range lines {
		size := each
		if i == lines-1 {
			size = n - each*(lines-1)
		}
		head := "— " + strings.Repeat("s", 1+(size-len("— s \n"))%4) + " "
		b.WriteString(head + strings.Repeat("A", size-len(head)-1) + "\n")
	}
	return b.String()
}

// Whatever bit of a signed checkpoint is flipped, it does not open; in a stranger's line, what is opened stays the same.
func TestEveryBitFlip(t *testing.T) {
	c := testCheckpoint()
	k := testKey(t, c.Origin, 1)
	v := testVerifier(t, k)
	signed := mustSign(t, c, k)
	own := len(signed)
	signed = append(signed, line("stranger.example", 0x01020304, bytes.Repeat([]byte{9}, 64))...)
	passed := 0
	for bit := range 8 * len(signed) {
		flipped := bytes.Clone(signed)
		flipped[bit/8] ^= 1 << (bit % 8)
		got, err := Open(flipped, v)
		switch {
		case err == nil && bit/8 < own:
			t.Errorf("bit %d of byte %d (%q) flipped: opened", bit%8, bit/8, signed[bit/8])
		case err == nil && got != c:
			t.Errorf("bit %d of byte %d flipped: other facts %v", bit%8, bit/8, got)
		case err == nil:
			passed++
		case !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrBadSignature):
			t.Errorf("bit %d of byte %d flipped: %v", bit%8, bit/8, err)
		}
	}
	if passed == 0 {
		t.Error("no flip within a stranger's line was let pass: those lines are not ignored")
	}
}

// C2SP tlog-cosignature, Ed25519 signed message.
func TestCosignedMessage(t *testing.T) {
	const text = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
	const want = "cosignature/v1\ntime 1679315147\n" + text
	if got := string(cosignedMessage(1679315147, []byte(text))); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func FuzzOpen(f *testing.F) {
	c := testCheckpoint()
	k := testKey(f, c.Origin, 1)
	v := testVerifier(f, k)
	f.Add(mustSign(f, c, k))
	f.Add([]byte(string(mustSign(f, c, k)) + line("stranger.example", 1, make([]byte, 72))))
	f.Add([]byte("o\n0\n" + emptyRoot64 + "\n\n— o AAAAAAA=\n"))
	f.Fuzz(func(t *testing.T, signed []byte) {
		got, err := Open(signed, v)
		if err == nil {
			// Only what the key signed opens, and then x/mod agrees: our rules are stricter, never laxer.
			n, err := note.Open(signed, note.VerifierList(v))
			if err != nil || n.Text != got.Text() || !bytes.HasPrefix(signed, []byte(got.Text()+"\n")) {
				t.Fatalf("opened as %v, x/mod: %v", got, err)
			}
			if got != c {
				t.Fatalf("opened %v, which was never signed", got)
			}
		} else if !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrBadSignature) || got != (Checkpoint{}) {
			t.Fatalf("got %v, %v", got, err)
		}
		n, err := parseNote(signed)
		if err != nil {
			return
		}
		again := string(n.text) + "\n"
		for _, s := range n.signatures {
			again += line(s.name, s.id, s.blob)
		}
		if again != string(signed) {
			t.Fatalf("%q prints as %q", signed, again)
		}
	})
}

func BenchmarkSign(b *testing.B) {
	c := testCheckpoint()
	k := testKey(b, c.Origin, 1)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Sign(c, k); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	c := testCheckpoint()
	k := testKey(b, c.Origin, 1)
	signed, v := mustSign(b, c, k), testVerifier(b, k)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Open(signed, v); err != nil {
			b.Fatal(err)
		}
	}
}
