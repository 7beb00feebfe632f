package checkpoint

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/provledger/provledger/internal/merkle"
)

// cosigner is a witness with its private key.
type cosigner struct {
	name    string
	id      uint32
	private ed25519.PrivateKey
}

func newCosigner(name string, n byte) *cosigner {
	private := ed25519.NewKeyFromSeed(testSeed(n)[:])
	return &cosigner{name, keyID(name, typeCosignature, private[32:]), private}
}

func (c *cosigner) vkey() string {
	return formatVKey(c.name, c.id, typeCosignature, c.private[32:])
}

// line returns a cosignature/v1 line of C2SP tlog-cosignature.
func (c *cosigner) line(text string, seconds uint64) string {
	sig := ed25519.Sign(c.private, fmt.Appendf(nil, "cosignature/v1\ntime %d\n%s", seconds, text))
	return line(c.name, c.id, append(binary.BigEndian.AppendUint64(nil, seconds), sig...))
}

// mldsaLine returns a line by the key of mldsaVKey. Nobody can tell whether it is good.
func mldsaLine(name string, n byte) string {
	return line(name, keyID(name, typeMLDSA44, bytes.Repeat([]byte{n}, mldsa44PublicBytes)), make([]byte, 8+2420))
}

func mustParsePolicy(t testing.TB, text string) *Policy {
	t.Helper()
	p, err := ParsePolicy([]byte(text))
	if err != nil {
		t.Fatalf("policy:\n%s%v", text, err)
	}
	return p
}

// The policy of the specification's example: 2 of three and any of three.
func TestPolicyQuorum(t *testing.T) {
	c := testCheckpoint()
	k := testKey(t, c.Origin, 1)
	var x, y [3]*cosigner
	text := "# who is who\nlog " + k.VKey() + " https://log.example/\n\n"
	for i := range 3 {
		x[i] = newCosigner(fmt.Sprintf("x%d.example", i+1), byte(10+i))
		y[i] = newCosigner(fmt.Sprintf("y%d.example", i+1), byte(20+i))
		text += fmt.Sprintf("witness X%d %s\nwitness Y%d\t%s https://y.example/ \n", i+1, x[i].vkey(), i+1, y[i].vkey())
	}
	text += "group X-witnesses 2 X1 X2 X3\n  group Y-witnesses any Y1 Y2 Y3\n\t# both\ngroup X-and-Y all X-witnesses Y-witnesses\nquorum X-and-Y\n"
	p := mustParsePolicy(t, text)
	if got, want := p.Logs(), []LogKey{{c.Origin, k.VKey()}}; !slices.Equal(got, want) {
		t.Errorf("Logs() = %v, want %v", got, want)
	}
	signed := string(mustSign(t, c, k))
	for mask := range 1 << 6 {
		note := signed
		var names []string
		inX, inY := 0, 0
		for i := range 3 {
			if mask>>(2*i)&1 == 1 {
				note += x[i].line(c.Text(), 1)
				names = append(names, fmt.Sprintf("X%d", i+1))
				inX++
			}
			if mask>>(2*i+1)&1 == 1 {
				note += y[i].line(c.Text(), MaxSize)
				names = append(names, fmt.Sprintf("Y%d", i+1))
				inY++
			}
		}
		got, verdict, err := p.Verify([]byte(note))
		if inX >= 2 && inY >= 1 {
			want := Verdict{LogKey: k.VKey(), Witnesses: names, Quorum: "X-and-Y"}
			if err != nil || got != c || !cmp.Equal(verdict, want) {
				t.Errorf("%v: got %v, %v, %v", names, got, verdict, err)
			}
		} else if !errors.Is(err, ErrNoQuorum) || got != (Checkpoint{}) || !cmp.Equal(verdict, Verdict{}) {
			t.Errorf("%v: got %v, %v, %v, want ErrNoQuorum", names, got, verdict, err)
		}
	}
}

func TestPolicyVerify(t *testing.T) {
	c := testCheckpoint()
	k, second := testKey(t, c.Origin, 1), testKey(t, c.Origin, 2)
	otherLog, stranger := testKey(t, "example.com/other", 3), testKey(t, "example.com/stranger", 4)
	w := newCosigner("w.example", 11)
	impostor := newCosigner("w.example", 12)
	signed := string(mustSign(t, c, k))
	own := signed[len(c.Text())+1:]
	logs := "log " + k.VKey() + "\nlog " + otherLog.VKey() + "\n"
	none := logs + "quorum none\n"
	one := logs + "witness w " + w.vkey() + "\nquorum w\n"
	listed := logs + "witness w " + w.vkey() + "\nquorum none\n"
	badCosignature := line(w.name, w.id, make([]byte, 72))
	hybrid := logs + "witness w " + w.vkey() + "\nwitness q " + mldsaVKey("q.example", 5) + "\n"
	quantumLog := "log " + mldsaVKey(c.Origin, 6) + "\n"

	for _, test := range []struct {
		name, policy, note string
		want               error
	}{
		{"no quorum asked for", none, signed, nil},
		{"strangers are ignored", none, signed + impostor.line(c.Text(), 1) + badCosignature, nil},
		{"second key of the log", logs + "log " + second.VKey() + "\nquorum none\n", string(mustSign(t, c, second)), nil},
		{"both keys of the log", logs + "log " + second.VKey() + "\nquorum none\n", signed + string(mustSign(t, c, second)[len(c.Text())+1:]), nil},
		{"key that the policy lacks", none, string(mustSign(t, c, second)), ErrBadSignature},
		{"no signature of the log", none, c.Text() + "\n" + w.line(c.Text(), 1), ErrBadSignature},
		{"bad one beside a good one of the log", none, signed + line(k.Name(), k.KeyHash(), make([]byte, 64)), ErrBadSignature},
		{"bad one of the log's second key", logs + "log " + second.VKey() + "\nquorum none\n", signed + line(second.Name(), second.KeyHash(), make([]byte, 64)), ErrBadSignature},
		{"bad one of another log", none, signed + line(otherLog.Name(), otherLog.KeyHash(), make([]byte, 64)), ErrBadSignature},
		{"unknown log", none, string(mustSign(t, Checkpoint{Origin: stranger.Name(), Size: 1}, stranger)), ErrUnknownLog},
		{"policy without logs", "quorum none\n", signed, ErrUnknownLog},
		{"origin altered", none, strings.Replace(signed, "example.com/b", "example.com/c", 1), ErrBadSignature},
		{"size altered", none, strings.Replace(signed, "2085", "2086", 1), ErrBadSignature},
		{"witness", one, signed + w.line(c.Text(), 1679315147), nil},
		{"witness before the log", one, c.Text() + "\n" + w.line(c.Text(), 1) + own, nil},
		{"witness twice", one, signed + w.line(c.Text(), 1) + w.line(c.Text(), 2), nil},
		{"time 0", one, signed + w.line(c.Text(), 0), nil},
		{"time 2^63", one, signed + w.line(c.Text(), 1<<63), ErrBadSignature},
		{"witness is absent", one, signed, ErrNoQuorum},
		{"witness of the same name", one, signed + impostor.line(c.Text(), 1), ErrNoQuorum},
		{"witness cosigned another tree", one, signed + w.line(Checkpoint{c.Origin, 1, merkle.Hash{}}.Text(), 1), ErrBadSignature},
		{"witness signed without a time", one, signed + line(w.name, w.id, ed25519.Sign(w.private, []byte(c.Text()))), ErrBadSignature},
		{"cosignature cut short", one, signed + line(w.name, w.id, make([]byte, 71)), ErrBadSignature},
		{"bad cosignature that no quorum needs", listed, signed + badCosignature, ErrBadSignature},
		{"good, then bad cosignature", one, signed + w.line(c.Text(), 1) + badCosignature, ErrBadSignature},
		{"not a note", none, "hello", ErrMalformed},
		{"extension line", none, c.Text() + "ext\n\n" + own, ErrMalformed},

		{"ML-DSA witness not asked for", hybrid + "quorum w\n", signed + w.line(c.Text(), 1) + mldsaLine("q.example", 5), nil},
		{"any, Ed25519 suffices", hybrid + "group g any w q\nquorum g\n", signed + w.line(c.Text(), 1) + mldsaLine("q.example", 5), nil},
		{"any, ML-DSA only", hybrid + "group g any w q\nquorum g\n", signed + mldsaLine("q.example", 5), ErrUnsupportedKey},
		{"all", hybrid + "group g all w q\nquorum g\n", signed + w.line(c.Text(), 1) + mldsaLine("q.example", 5), ErrUnsupportedKey},
		{"all, Ed25519 is absent", hybrid + "group g all w q\nquorum g\n", signed + mldsaLine("q.example", 5), ErrNoQuorum},
		{"all, ML-DSA is absent", hybrid + "group g all w q\nquorum g\n", signed + w.line(c.Text(), 1), ErrNoQuorum},
		{"ML-DSA witness", hybrid + "quorum q\n", signed + mldsaLine("q.example", 5), ErrUnsupportedKey},
		{"bad Ed25519 beside ML-DSA", hybrid + "quorum q\n", signed + mldsaLine("q.example", 5) + badCosignature, ErrBadSignature},
		{"log signs with ML-DSA only", quantumLog + "quorum none\n", c.Text() + "\n" + mldsaLine(c.Origin, 6), ErrUnsupportedKey},
		{"log is known by ML-DSA only, which is absent", quantumLog + "quorum none\n", signed, ErrBadSignature},
		{"log signs with both types", quantumLog + logs + "quorum none\n", signed + mldsaLine(c.Origin, 6), nil},
		{"ML-DSA log, quorum not met", quantumLog + "witness w " + w.vkey() + "\nquorum w\n", c.Text() + "\n" + mldsaLine(c.Origin, 6), ErrNoQuorum},
	} {
		p := mustParsePolicy(t, test.policy)
		got, verdict, err := p.Verify([]byte(test.note))
		if !errors.Is(err, test.want) || err == nil && got != c {
			t.Errorf("%s: got %v, %v, want %v", test.name, got, err, test.want)
		}
		if err == nil && verdict.LogKey == "" || err != nil && (got != (Checkpoint{}) || !cmp.Equal(verdict, Verdict{})) {
			t.Errorf("%s: verdict %v beside error %v", test.name, verdict, err)
		}
		// Of several keys of the log that signed, the verdict names the first in the policy that could be verified.
		if strings.Contains(test.name, "both") && verdict.LogKey != k.VKey() {
			t.Errorf("%s: the verdict rests on %s", test.name, verdict.LogKey)
		}
	}
}

// Whatever bit of a cosigned checkpoint is flipped, the policy refuses it, unless it lies in the line of a stranger.
func TestPolicyEveryBitFlip(t *testing.T) {
	c := testCheckpoint()
	k := testKey(t, c.Origin, 1)
	w := newCosigner("w.example", 11)
	p := mustParsePolicy(t, "log "+k.VKey()+"\nwitness w "+w.vkey()+"\nquorum w\n")
	signed := []byte(string(mustSign(t, c, k)) + w.line(c.Text(), 1679315147))
	needed := len(signed)
	signed = append(signed, newCosigner("stranger.example", 12).line(c.Text(), 1)...)
	_, verdict, err := p.Verify(signed)
	if err != nil {
		t.Fatal(err)
	}
	passed := 0
	for bit := range 8 * len(signed) {
		flipped := bytes.Clone(signed)
		flipped[bit/8] ^= 1 << (bit % 8)
		got, v, err := p.Verify(flipped)
		switch {
		case err == nil && bit/8 < needed:
			t.Errorf("bit %d of byte %d (%q) flipped: verified", bit%8, bit/8, signed[bit/8])
		case err == nil && (got != c || !cmp.Equal(v, verdict)):
			t.Errorf("bit %d of byte %d flipped: other facts %v, %v", bit%8, bit/8, got, v)
		case err == nil:
			passed++
		case errors.Is(err, ErrUnknownLog), errors.Is(err, ErrUnsupportedKey):
			t.Errorf("bit %d of byte %d flipped: %v, want NOT verified", bit%8, bit/8, err)
		}
	}
	if passed == 0 {
		t.Error("no flip within a stranger's line was let pass: those lines are not ignored")
	}
}

func TestParsePolicyRefuses(t *testing.T) {
	a, b := newCosigner("a.example", 1), newCosigner("b.example", 2)
	k := testKey(t, "example.com/log", 1)
	renamed := newCosigner("renamed.example", 1)
	renamedLog := testKey(t, "example.com/renamed", 1)
	two := "witness A " + a.vkey() + "\nwitness B " + b.vkey() + "\n"
	for _, test := range []struct {
		name, text string
		want       error
	}{
		{"empty", "", ErrMalformed},
		{"no quorum", two, ErrMalformed},
		{"two quorums", "quorum none\nquorum none\n", ErrMalformed},
		{"no final LF", "quorum none", ErrMalformed},
		{"CR LF", "quorum none\r\n", ErrMalformed},
		{"form feed", "quorum\fnone\n", ErrMalformed},
		{"NUL in a comment", "# \x00\nquorum none\n", ErrMalformed},
		{"DEL in a comment", "# \x7f\nquorum none\n", ErrMalformed},
		{"too large", "quorum none\n" + strings.Repeat("#\n", MaxPolicyBytes/2), ErrMalformed},
		{"unknown word", "Quorum none\n", ErrMalformed},
		{"comment behind a line", "quorum none # really\n", ErrMalformed},
		{"quorum not defined", "quorum A\n", ErrMalformed},
		{"quorum defined below", "quorum A\n" + two, ErrMalformed},
		{"quorum of two", two + "quorum A B\n", ErrMalformed},
		{"quorum without name", "quorum\n", ErrMalformed},
		{"log without key", "log\nquorum none\n", ErrMalformed},
		{"log with too much", "log " + k.VKey() + " url more\nquorum none\n", ErrMalformed},
		{"witness without key", "witness A\nquorum none\n", ErrMalformed},
		{"witness with too much", "witness A " + a.vkey() + " url more\nquorum none\n", ErrMalformed},
		{"witness called none", "witness none " + a.vkey() + "\nquorum none\n", ErrMalformed},
		{"name twice", "witness A " + a.vkey() + "\nwitness A " + b.vkey() + "\nquorum none\n", ErrMalformed},
		{"group with the name of a witness", two + "group A any B\nquorum none\n", ErrMalformed},
		{"group called none", two + "group none any B\nquorum none\n", ErrMalformed},
		{"witness twice under another name", "witness A " + a.vkey() + "\nwitness B " + renamed.vkey() + "\nquorum none\n", ErrMalformed},
		{"log twice", "log " + k.VKey() + "\nlog " + k.VKey() + "\nquorum none\n", ErrMalformed},
		{"log twice under another name", "log " + k.VKey() + "\nlog " + renamedLog.VKey() + "\nquorum none\n", ErrMalformed},
		{"group without members", two + "group G any\nquorum none\n", ErrMalformed},
		{"group of itself", two + "group G any G\nquorum none\n", ErrMalformed},
		{"group of none", two + "group G any none\nquorum none\n", ErrMalformed},
		{"member not defined", two + "group G any A C\nquorum none\n", ErrMalformed},
		{"member twice in a group", two + "group G any A A\nquorum none\n", ErrMalformed},
		{"member of two groups", two + "group G any A\ngroup H any A B\nquorum none\n", ErrMalformed},
		{"group in two groups", two + "group G any A\ngroup H any G\ngroup I any G B\nquorum none\n", ErrMalformed},
		{"threshold 0", two + "group G 0 A B\nquorum none\n", ErrMalformed},
		{"threshold over n", two + "group G 3 A B\nquorum none\n", ErrMalformed},
		{"threshold -1", two + "group G -1 A B\nquorum none\n", ErrMalformed},
		{"threshold 01", two + "group G 01 A B\nquorum none\n", ErrMalformed},
		{"threshold huge", two + "group G 18446744073709551617 A B\nquorum none\n", ErrMalformed},
		{"threshold ALL", two + "group G ALL A B\nquorum none\n", ErrMalformed},
		{"bad key", "log " + k.VKey() + "x\nquorum none\n", ErrMalformed},
		{"cosigner as a log", "log " + a.vkey() + "\nquorum none\n", ErrUnsupportedKey},
		{"log as a witness", "witness K " + k.VKey() + "\nquorum none\n", ErrUnsupportedKey},
	} {
		if p, err := ParsePolicy([]byte(test.text)); !errors.Is(err, test.want) || p != nil {
			t.Errorf("%s: got %v, %v, want %v", test.name, p, err, test.want)
		}
	}
}

// Two keys that a signature line cannot tell apart must not both be in a policy: one would be judged by the other's signature.
func TestParsePolicyRefusesCollidingKeys(t *testing.T) {
	seen := make(map[uint32][]byte)
	for i := uint64(0); ; i++ { // a 32-bit id repeats within a few hundred thousand keys
		public := binary.BigEndian.AppendUint64(make([]byte, 24, 32), i)
		id := keyID("w", typeCosignature, public)
		if first, ok := seen[id]; ok {
			text := fmt.Sprintf("witness A %s\nwitness B %s\nquorum none\n",
				formatVKey("w", id, typeCosignature, first), formatVKey("w", id, typeCosignature, public))
			if p, err := ParsePolicy([]byte(text)); !errors.Is(err, ErrMalformed) {
				t.Errorf("got %v, %v, want ErrMalformed", p, err)
			}
			return
		}
		seen[id] = public
	}
}

// C2SP tlog-policy: names are opaque bytes; words of the syntax are names like others; a log may be its own witness.
func TestParsePolicyAccepts(t *testing.T) {
	k := testKey(t, "example.com/log", 1)
	same, b, c := newCosigner("a.example", 1), newCosigner("b.example", 2), newCosigner("c.example", 3)
	p := mustParsePolicy(t, "log "+k.VKey()+"\nwitness K "+same.vkey()+"\nwitness \u212a "+b.vkey()+"\nwitness \xff# "+c.vkey()+
		"\ngroup all all K \u212a\n \t \ngroup any 2 all \xff#\nquorum any\n#\n")
	if got := p.members[p.quorum]; got.name != "any" || got.threshold != 2 {
		t.Errorf("quorum is %v", got)
	}

	// At least 32 logs, witnesses and groups must be supported.
	text := ""
	for i := range byte(100) {
		text += "log " + testKey(t, fmt.Sprintf("log%d.example", i), 100+i).VKey() + "\n"
		text += fmt.Sprintf("witness W%d %s\n", i, newCosigner(fmt.Sprintf("w%d.example", i), 100+i).vkey())
		if i == 0 {
			text += "group G0 any W0\n"
		} else {
			text += fmt.Sprintf("group G%d all G%d W%d\n", i, i-1, i)
		}
	}
	p = mustParsePolicy(t, text+"quorum G99\n")
	if len(p.Logs()) != 100 || len(p.members) != 200 {
		t.Errorf("got %d logs and %d members", len(p.Logs()), len(p.members))
	}
}

// format writes a policy in a plain form.
func (p *Policy) format() string {
	var b strings.Builder
	for _, l := range p.Logs() {
		fmt.Fprintf(&b, "log %s\n", l.VKey)
	}
	for _, m := range p.members {
		if m.witness != nil {
			fmt.Fprintf(&b, "witness %s %s\n", m.name, m.witness.vkey())
			continue
		}
		fmt.Fprintf(&b, "group %s %d", m.name, m.threshold)
		for _, i := range m.members {
			fmt.Fprintf(&b, " %s", p.members[i].name)
		}
		b.WriteString("\n")
	}
	if p.quorum == noMember {
		return b.String() + "quorum none\n"
	}
	return b.String() + "quorum " + p.members[p.quorum].name + "\n"
}

func FuzzParsePolicy(f *testing.F) {
	c := testCheckpoint()
	k := testKey(f, c.Origin, 1)
	a, b := newCosigner("a.example", 11), newCosigner("b.example", 12)
	f.Add([]byte("log " + k.VKey() + " url\n# c\nquorum none\n"))
	f.Add([]byte("log " + k.VKey() + "\nwitness A " + a.vkey() + "\nwitness B " + b.vkey() + "\ngroup G any A B\ngroup H all G\nquorum H\n"))
	signed := []byte(string(mustSign(f, c, k)) + a.line(c.Text(), 1))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := ParsePolicy(text)
		if err != nil {
			if !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrUnsupportedKey) || p != nil {
				t.Fatalf("got %v, %v", p, err)
			}
			return
		}
		q, err := ParsePolicy([]byte(p.format()))
		if err != nil || q.format() != p.format() {
			t.Fatalf("%q prints as %q, which reads as %v, %v", text, p.format(), q, err)
		}
		got1, verdict1, err1 := p.Verify(signed)
		got2, verdict2, err2 := q.Verify(signed)
		if got1 != got2 || !cmp.Equal(verdict1, verdict2) || (err1 == nil) != (err2 == nil) {
			t.Fatalf("verdicts differ: %v, %v and %v, %v", verdict1, err1, verdict2, err2)
		}
		if err1 == nil && (got1 != c || verdict1.LogKey != k.VKey()) {
			t.Fatalf("verified %v on %v", got1, verdict1)
		}
	})
}
