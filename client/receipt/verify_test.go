package receipt

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"github.com/provledger/provledger/client/lineage"
)

var update = flag.Bool("update", false, "rewrite golden files and the example in docs/format.md")

// witness cosigns as C2SP tlog-cosignature says, written out here from the specification.
type witness struct {
	name, vkey string
	id         uint32
	key        ed25519.PrivateKey
}

func newWitness(t testing.TB, name string, seed byte) *witness {
	t.Helper()
	w := &witness{name: name, key: ed25519.NewKeyFromSeed(append(make([]byte, 31), seed))}
	public := append([]byte{4}, w.key.Public().(ed25519.PublicKey)...)
	sum := sha256.Sum256(append([]byte(name+"\n"), public...))
	w.id = binary.BigEndian.Uint32(sum[:])
	w.vkey = fmt.Sprintf("%s+%08x+%s", name, w.id, base64.StdEncoding.EncodeToString(public))
	return w
}

func (w *witness) Name() string    { return w.name }
func (w *witness) KeyHash() uint32 { return w.id }
func (w *witness) Sign(msg []byte) ([]byte, error) {
	const now = 1_780_000_000
	sig := ed25519.Sign(w.key, fmt.Appendf(nil, "cosignature/v1\ntime %d\n%s", now, msg))
	return append(binary.BigEndian.AppendUint64(nil, now), sig...), nil
}

// badSigner signs something else.
type badSigner struct{ note.Signer }

func (s badSigner) Sign(msg []byte) ([]byte, error) { return s.Signer.Sign(append(msg, 'x')) }

// last returns the named check, the last of that name.
func (r *Result) last(name string) Check {
	for i := len(r.Checks) - 1; i >= 0; i-- {
		if r.Checks[i].Name == name {
			return r.Checks[i]
		}
	}
	return Check{Name: "no check " + name, Outcome: -1}
}

func TestVerifyOutcomes(t *testing.T) {
	l, at := filled(t)
	bare := l.add(&lineage.Event{ID: lineage.ID{9}, Kind: lineage.KindRun, Action: 1, RunID: lineage.ID{1}})
	stranger := newTestLog(t, testOrigin, 2)                                            // same origin, other key
	elsewhere := newTestLog(t, strings.Replace(testOrigin, "main", "other", 1), 3)      // other log
	opaque := newTestLog(t, strings.Replace(testOrigin, "/lineage/", "/opaque/", 1), 4) // a log of any bytes
	foreign := newTestLog(t, "example.com/log", 5)                                      // no ledger of ours
	for _, l := range []*testLog{stranger, elsewhere, opaque, foreign} {
		for range 4 {
			l.add(runEvent())
		}
	}
	fork, _ := filled(t)
	fork.leaves[1] = append([]byte(nil), fork.leaves[2]...)

	type change func(r *Receipt)
	for _, c := range []struct {
		name    string
		log     *testLog
		policy  *Policy
		index   uint64
		state   BodyState
		change  change
		check   string
		outcome Outcome
	}{
		{"good", l, l.policy(), at, Opened, nil, CheckInclusion, Verified},
		{"withheld", l, l.policy(), at, Withheld, nil, CheckInclusion, Verified},
		{"erased", l, l.policy(), at, Erased, nil, CheckInclusion, Verified},
		{"genesis", l, l.policy(), 0, Opened, nil, CheckGenesis, Verified},
		{"no policy", l, nil, at, Opened, nil, CheckLogKey, Unknown},
		{"another log", elsewhere, l.policy(), 1, Opened, nil, CheckLogKey, Unknown},
		{"another key", stranger, l.policy(), 1, Opened, nil, CheckSignature, NotVerified},
		// A doubt hides no contradiction.
		{"no policy, index of a neighbour", l, nil, at, Opened, func(r *Receipt) { r.Proof.Index-- }, CheckInclusion, NotVerified},
		{"no policy, body of a neighbour", l, nil, at, Opened, func(r *Receipt) { r.Body = l.bodies[at-1] }, CheckBody, NotVerified},
		{"another log, other leaf", elsewhere, l.policy(), 1, Withheld, func(r *Receipt) { r.Leaf = l.leaves[at] }, CheckInclusion, NotVerified},
		{"another log, bad line by a known key", elsewhere, l.policy(), 1, Opened, func(r *Receipt) {
			r.Proof.Checkpoint = addSignature(t, r.Proof.Checkpoint, badSigner{l.key})
		}, CheckSignature, NotVerified},
		{"no body withheld", l, l.policy(), bare, Withheld, nil, CheckBody, NotVerified},
		{"no body erased", l, l.policy(), bare, Erased, nil, CheckBody, NotVerified},
		{"no body", l, l.policy(), bare, Opened, nil, CheckBody, Verified},
		{"opaque log", opaque, opaque.policy(), 1, Opened, nil, CheckOrigin, NotVerified},
		{"foreign log", foreign, foreign.policy(), 1, Opened, nil, CheckOrigin, NotVerified},
		{"checkpoint of a fork", l, l.policy(), at, Opened, func(r *Receipt) { r.Proof.Checkpoint = fork.checkpoint() }, CheckInclusion, NotVerified},
		{"index of a neighbour", l, l.policy(), at, Opened, func(r *Receipt) { r.Proof.Index-- }, CheckInclusion, NotVerified},
		{"one hash less", l, l.policy(), at, Opened, func(r *Receipt) { r.Proof.Hashes = r.Proof.Hashes[1:] }, CheckInclusion, NotVerified},
		{"leaf of a neighbour", l, l.policy(), at, Withheld, func(r *Receipt) { r.Leaf = l.leaves[at-1] }, CheckInclusion, NotVerified},
		{"body of a neighbour", l, l.policy(), at, Opened, func(r *Receipt) { r.Body = l.bodies[at-1] }, CheckBody, NotVerified},
		{"one part of two", l, l.policy(), at, Opened, func(r *Receipt) { r.Body = r.Body[:1] }, CheckBody, NotVerified},
		{"opened without parts", l, l.policy(), at, Opened, func(r *Receipt) { r.Body = nil }, CheckBody, NotVerified},
		{"withheld with parts", l, l.policy(), at, Withheld, func(r *Receipt) { r.Body = l.bodies[at] }, CheckReceipt, NotVerified},
		{"unknown state", l, l.policy(), at, "", nil, CheckReceipt, NotVerified},
		{"no leaf", l, l.policy(), at, Withheld, func(r *Receipt) { r.Leaf = nil }, CheckLeaf, NotVerified},
		{"no signed note", l, l.policy(), at, Withheld, func(r *Receipt) { r.Proof.Checkpoint = nil }, CheckReceipt, NotVerified},
	} {
		r := c.log.receipt(c.index, c.state)
		if c.change != nil {
			c.change(r)
		}
		res := Verify(r, c.policy, nil, Require{})
		if got := res.last(c.check); got.Outcome != c.outcome || res.Outcome != c.outcome || got.Detail == "" {
			t.Errorf("%s: want %s %s\n%s", c.name, c.check, c.outcome, res.text())
		}
		signed := res.last(CheckSignature).Outcome == Verified && res.last(CheckInclusion).Outcome == Verified
		if (res.Facts != nil) != (c.outcome == Verified) || (res.Origin != "") != signed {
			t.Errorf("%s: facts %v, origin %q", c.name, res.Facts, res.Origin)
		}
		if c.name == "unknown state" || c.name == "withheld with parts" || c.name == "no signed note" {
			continue // not even looked at further
		}
		if len(res.NotChecked) == 0 {
			t.Errorf("%s: claims to have checked everything", c.name)
		}
	}
}

// TestLeafBeyondSchema: in the tree, signed and not understood.
func TestLeafBeyondSchema(t *testing.T) {
	l, at := filled(t)
	next := append([]byte(nil), l.leaves[at]...)
	next[len(lineage.LeafTag)+2] = 2
	parsed, err := lineage.ParseLeaf(l.leaves[at])
	if err != nil {
		t.Fatal(err)
	}
	unknownKey := lineage.AppendLeaf(nil, parsed)
	unknownKey[len(lineage.LeafTag)]++ // one pair more: 21 => 0
	unknownKey = append(unknownKey, 0x15, 0)
	secondGenesis := l.leaves[0]
	for _, c := range []struct {
		name    string
		leaf    []byte
		check   string
		outcome Outcome
	}{
		{"schema 2", next, CheckLeaf, Unknown},
		{"unknown key", unknownKey, CheckLeaf, NotVerified},
		{"any bytes", []byte("hello"), CheckLeaf, NotVerified},
		{"second genesis", secondGenesis, CheckGenesis, NotVerified},
	} {
		i := l.addLeaf(c.leaf, nil)
		res := Verify(l.receipt(i, Withheld), l.policy(), []Subject{subject("model")}, Require{Kind: "run"})
		if res.last(c.check).Outcome != c.outcome || res.Outcome != c.outcome || res.last(CheckInclusion).Outcome != Verified || res.Facts != nil {
			t.Errorf("%s: %s", c.name, res.text())
		}
		if res.last(CheckSubject).Outcome != Unknown || res.last(CheckRequire).Outcome != Unknown {
			t.Errorf("%s: judged what is not understood: %s", c.name, res.text())
		}
	}
}

func TestGenesisChecks(t *testing.T) {
	l := newTestLog(t, testOrigin, 1)
	other := newTestLog(t, strings.Replace(testOrigin, "main", "other", 1), 1)
	for name, first := range map[string][]byte{"genesis of another log": other.leaves[0], "run": l.leaves[l.add(runEvent())]} {
		forged := newTestLog(t, testOrigin, 1)
		forged.leaves[0] = first
		forged.add(runEvent())
		if res := Verify(forged.receipt(0, Withheld), forged.policy(), nil, Require{}); res.Outcome != NotVerified || res.last(CheckGenesis).Outcome != NotVerified {
			t.Errorf("entry 0 is a %s: %s", name, res.text())
		}
	}
}

// TestGenesisAgrees: what a log says of itself is what its origin says.
func TestGenesisAgrees(t *testing.T) {
	digest := sha256Of("another schema")
	for name, c := range map[string]struct {
		change func(g *lineage.Leaf)
		want   Outcome
	}{
		"as it is":              {func(*lineage.Leaf) {}, Verified},
		"a later schema":        {func(g *lineage.Leaf) { g.Control.SchemaID, g.Control.SchemaDigest = "provledger/leaf/2", digest }, Verified},
		"without index version": {func(g *lineage.Leaf) { g.Control.IndexFunction = 0 }, Verified},
		"other origin":          {func(g *lineage.Leaf) { g.Control.Origin += "x" }, NotVerified},
		"other kind":            {func(g *lineage.Leaf) { g.Control.LogKind = lineage.OpaqueLog }, NotVerified},
		"other cluster":         {func(g *lineage.Leaf) { g.Control.ClusterID[0]++ }, NotVerified},
		"other name":            {func(g *lineage.Leaf) { g.Control.LogName = "mainx" }, NotVerified},
		"no name":               {func(g *lineage.Leaf) { g.Control.LogName = "" }, NotVerified},
		"other hash":            {func(g *lineage.Leaf) { g.Control.HashAlgorithm = lineage.SHA512256 }, NotVerified},
		"key of another":        {func(g *lineage.Leaf) { g.Control.VKey = "x" + g.Control.VKey }, NotVerified},
		"other schema digest":   {func(g *lineage.Leaf) { g.Control.SchemaDigest = digest }, NotVerified},
		"SHA-512 of a schema": {func(g *lineage.Leaf) {
			g.Control.SchemaID, g.Control.SchemaDigest = "provledger/leaf/2", dig(lineage.SHA512, 64, "s")
		}, NotVerified},
		"no reference key": {func(g *lineage.Leaf) { g.Bodies = nil }, NotVerified},
	} {
		l := newTestLog(t, testOrigin, 1)
		l.leaves[0], l.bodies[0] = l.genesis(c.change)
		l.add(runEvent())
		if res := Verify(l.receipt(0, Withheld), l.policy(), nil, Require{}); res.Outcome != c.want {
			t.Errorf("%s: %s", name, res.text())
		}
	}
}

// TestBodyMustFit: a ledger that commits to names which its leaf has no place for contradicts itself.
func TestBodyMustFit(t *testing.T) {
	for name, content := range map[string][]byte{
		"a job too many": lineage.AppendIdentifiers(nil, lineage.Identifiers{Job: lineage.Name{Name: "j"}, Target: lineage.Name{Name: "t"}}),
		"not CBOR":       []byte("hello"),
	} {
		l := newTestLog(t, testOrigin, 1)
		leaf, err := lineage.ParseLeaf(l.leaves[l.add(&lineage.Event{ID: lineage.ID{1}, Kind: lineage.KindRun, Action: 1, RunID: lineage.ID{1}, Target: lineage.Name{Name: "t"}})])
		if err != nil {
			t.Fatal(err)
		}
		part := lineage.BodyPart{Kind: lineage.PartIdentifiers, Content: content}
		leaf.Bodies = []lineage.Commitment{{Part: part.Kind, MAC: lineage.Commit(part.Kind, &part.Key, part.Content)}}
		i := l.addLeaf(lineage.AppendLeaf(nil, leaf), []lineage.BodyPart{part})
		if res := Verify(l.receipt(i, Opened), l.policy(), nil, Require{}); res.Outcome != NotVerified || res.last(CheckBody).Outcome != NotVerified {
			t.Errorf("%s: %s", name, res.text())
		}
	}
}

func TestFailedRunIsRecorded(t *testing.T) {
	l := newTestLog(t, testOrigin, 1)
	e := runEvent()
	e.Action = uint8(lineage.RunFail)
	r := l.receipt(l.add(e), Opened)
	res := Verify(r, l.policy(), []Subject{subject("model")}, Require{})
	if res.Outcome != Verified || res.Facts.Outcome != "fail" {
		t.Errorf("outcome of the run %q: %s", res.Facts.Outcome, res.text())
	}
	res = Verify(r, l.policy(), []Subject{subject("model")}, Require{Outcome: "complete"})
	if res.Outcome != NotVerified || res.last(CheckRequire).Outcome != NotVerified || res.Facts == nil {
		t.Error(res.text())
	}
}

func TestResultJSON(t *testing.T) {
	l, at := filled(t)
	res := Verify(l.receipt(at, Opened), l.policy(), []Subject{subject("model")}, Require{Job: "fraud-model"})
	b, err := json.Marshal(res)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Outcome    string
		Checks     []struct{ Name, Outcome, Detail string }
		NotChecked []string
		Claims     []string
		Index      uint64
		TreeSize   uint64
		Facts      struct {
			Outcome, RecordedAt, OccurredAt, Principal, Authn, Initiator string
			Job                                                          struct{ Namespace, Name string }
			References                                                   []struct{ Role, Identity, URI string }
		}
		Matches []struct {
			Reference int
			Claimed   bool
		}
	}
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	f := got.Facts
	if got.Outcome != "verified" || got.Index != at || got.TreeSize != 7 || len(got.Checks) != 10 || got.Checks[0].Outcome != "verified" ||
		f.RecordedAt != "2026-05-28T20:26:40.000004Z" || f.OccurredAt != "2026-05-28T20:26:39.000000Z" || f.Outcome != "complete" ||
		f.Principal != "local:5f2c9e7a41d8b306" || f.Authn != "os-user" || f.Initiator != "ci:1834" || f.Job.Namespace != "training" ||
		f.References[0].URI != "file:data.csv" || !strings.HasPrefix(f.References[1].Identity, "sha256:") || len(got.Matches) != 1 || !got.Matches[0].Claimed {
		t.Errorf("%s", b)
	}
	claims := strings.Join(got.Claims, "\n")
	for _, s := range []string{"occurred_at", "initiator", "references[1]: digest stated by the producer", "recorded_at"} {
		if !strings.Contains(claims, s) {
			t.Errorf("claims do not say %q:\n%s", s, claims)
		}
	}
	for o := Verified; o <= Unknown; o++ {
		if text, err := o.MarshalText(); err != nil || o.String() == "" || len(text) == 0 {
			t.Errorf("outcome %d: %s, %v", o, text, err)
		}
	}
	if _, err := Outcome(3).MarshalText(); err == nil {
		t.Error("an outcome that does not exist has a name")
	}
	if worst(Unknown, NotVerified) != NotVerified || worst(NotVerified, Unknown) != NotVerified || worst(Verified, Unknown) != Unknown {
		t.Error("a contradiction must outrank a doubt")
	}
}

// TestNotChecked: each thing that was left out is said, and only then.
func TestNotChecked(t *testing.T) {
	l := newTestLog(t, testOrigin, 1)
	e := runEvent()
	e.Entries, e.Policy, e.ExpiresAt = []uint64{0}, sha256Of("policy"), 1_790_000_000_000_000
	rich := l.add(e)
	plain := l.add(&lineage.Event{ID: lineage.ID{9}, Kind: lineage.KindRun, Action: 1, RunID: lineage.ID{1}})
	w := newWitness(t, "w.example", 11)
	witnessed := mustPolicy(t, "log "+l.key.VKey()+"\nwitness w "+w.vkey+"\nquorum w\n")
	say := func(r *Receipt, p *Policy, subjects ...Subject) string {
		return strings.Join(Verify(r, p, subjects, Require{}).NotChecked, "\n")
	}
	cosigned := l.receipt(plain, Opened)
	cosigned.Proof.Checkpoint = addSignature(t, cosigned.Proof.Checkpoint, w)
	for _, c := range []struct{ phrase, with, without string }{
		{"true or approved", say(cosigned, witnessed), ""},
		{"asks for no witness", say(l.receipt(plain, Opened), l.policy()), say(cosigned, witnessed)},
		{"is withheld", say(l.receipt(rich, Withheld), l.policy()), say(l.receipt(rich, Opened), l.policy())},
		{"is erased", say(l.receipt(rich, Erased), l.policy()), say(l.receipt(rich, Opened), l.policy())},
		{"name hashes", say(l.receipt(rich, Opened), l.policy()), say(l.receipt(plain, Opened), l.policy())},
		{"entries that this one relies on", say(l.receipt(rich, Opened), l.policy()), say(l.receipt(plain, Opened), l.policy())},
		{"only its digest", say(l.receipt(rich, Opened), l.policy()), say(l.receipt(plain, Opened), l.policy())},
		{"expires at 2026", say(l.receipt(rich, Opened), l.policy()), say(l.receipt(plain, Opened), l.policy())},
		{"any file", say(l.receipt(rich, Opened), l.policy()), say(l.receipt(rich, Opened), l.policy(), subject("model"))},
	} {
		if !strings.Contains(c.with, c.phrase) || strings.Contains(c.without, c.phrase) {
			t.Errorf("%q must be in\n%s\nand not in\n%s", c.phrase, c.with, c.without)
		}
	}
}
