package lineage_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/provledger/provledger/client/lineage"
)

func TestCheckRecordedAccepts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e, s := genEvent.Draw(t, "event"), genStamp.Draw(t, "stamp")
		leaf, body, err := countingComposer().Compose(nil, e, s)
		if err != nil {
			t.Fatal(err)
		}
		for _, hashName := range []func(lineage.Name) lineage.Hash{testHashName, nil} {
			if err := lineage.CheckRecorded(e, leaf, keysOf(body), hashName); err != nil {
				t.Fatal(err)
			}
		}
		again, err := e.BodyParts(keysOf(body))
		if diff := cmp.Diff(body, again, cmp.Comparer(func(a, b lineage.BodyPart) bool {
			return a.Kind == b.Kind && a.Key == b.Key && bytes.Equal(a.Content, b.Content)
		})); err != nil || diff != "" && len(body) > 0 {
			t.Fatalf("%v\n%s", err, diff)
		}
	})
}

// TestCheckRecordedCatches changes each field of an event that was recorded; with the reference key and without.
func TestCheckRecordedCatches(t *testing.T) {
	other := func(d lineage.Digest) lineage.Digest {
		return lineage.Digest{Algorithm: d.Algorithm, Value: strings.Repeat("z", len(d.Value))}
	}
	changes := []struct {
		says   string
		change func(e *lineage.Event)
	}{
		{"event id", func(e *lineage.Event) { e.ID[15] ^= 1 }},
		{"kind or action", func(e *lineage.Event) { e.Action = uint8(lineage.RunComplete) }},
		{"kind or action", func(e *lineage.Event) { e.Kind = lineage.KindLifecycle }},
		{"kind or action", func(e *lineage.Event) { e.Kind, e.Action, e.PredicateType = lineage.KindAttestation, 0, "p" }},
		{"source", func(e *lineage.Event) { e.Source = lineage.Native }},
		{"occurrence time", func(e *lineage.Event) { e.OccurredAt++ }},
		{"occurrence time", func(e *lineage.Event) { e.OccurredAt = 0 }},
		{"initiator", func(e *lineage.Event) { e.Initiator += "x" }},
		{"initiator", func(e *lineage.Event) { e.Initiator = "" }},
		{"run", func(e *lineage.Event) { e.RunID[0] ^= 1 }},
		{"run", func(e *lineage.Event) { e.ParentRunID = lineage.ID{} }},
		{"job", func(e *lineage.Event) { e.Job = lineage.Name{} }},
		{"", func(e *lineage.Event) { e.Job.Name += "x" }},
		{"", func(e *lineage.Event) { e.Job.Namespace, e.Job.Version = e.Job.Version, e.Job.Namespace }},
		{"references", func(e *lineage.Event) { e.References = e.References[:3] }},
		{"references", func(e *lineage.Event) { e.References = append(e.References, e.References[1]) }},
		{"references", func(e *lineage.Event) { e.References[0], e.References[1] = e.References[1], e.References[0] }},
		{"references", func(e *lineage.Event) { e.References[0].Role = lineage.Output }},
		{"references", func(e *lineage.Event) { e.References[0].Kind = lineage.Model }},
		{"references", func(e *lineage.Event) { e.References[0].Purpose = 0 }},
		{"references", func(e *lineage.Event) { e.References[0].Known = lineage.Computed }},
		{"references", func(e *lineage.Event) { e.References[0].Digest = other(e.References[0].Digest) }},
		{"references", func(e *lineage.Event) { e.References[0].Aliases[1] = other(e.References[0].Aliases[1]) }},
		{"references", func(e *lineage.Event) { e.References[0].Aliases = e.References[0].Aliases[:1] }},
		{"references", func(e *lineage.Event) { e.References[0].Name = lineage.Name{} }},
		{"references", func(e *lineage.Event) { e.References[1].Name.Name = "new" }},
		{"", func(e *lineage.Event) { e.References[2].Name.Version = "x" }},
		{"body", func(e *lineage.Event) { e.References[0].URI += "x" }},
		{"body", func(e *lineage.Event) { e.References[2].MediaType = "" }},
		{"body", func(e *lineage.Event) { e.References[1].Size = 1 }},
		{"target", func(e *lineage.Event) { e.Target = lineage.Name{} }},
		{"", func(e *lineage.Event) { e.Target.Name = "production" }},
		{"entries", func(e *lineage.Event) { e.Entries = e.Entries[1:] }},
		{"entries", func(e *lineage.Event) { e.Entries[0] = 1 }},
		{"policy", func(e *lineage.Event) { e.Policy = other(e.Policy) }},
		{"policy", func(e *lineage.Event) { e.Policy = lineage.Digest{} }},
		{"expiry", func(e *lineage.Event) { e.ExpiresAt-- }},
		{"body", func(e *lineage.Event) { e.Documents[0].Content = append(bytes.Clone(e.Documents[0].Content), ' ') }},
		{"body", func(e *lineage.Event) { e.Documents[0].Name = "p" }},
		{"body", func(e *lineage.Event) { e.Documents[1].MediaType = "p" }},
		{"body", func(e *lineage.Event) { e.Documents = e.Documents[:1] }},
		{"parts", func(e *lineage.Event) { e.Documents = nil }},
	}
	leaf, body := composeSample(t, sampleEvents()["full run"])
	for i, c := range changes {
		e := sampleEvents()["full run"]
		c.change(e)
		for _, hashName := range []func(lineage.Name) lineage.Hash{testHashName, nil} {
			err := lineage.CheckRecorded(e, leaf, keysOf(body), hashName)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("change %d, %s: got %v", i, c.says, err)
			}
		}
	}
}

// TestCheckRecordedFlips flips every bit of a recorded leaf. Only what the ledger itself says may differ: time, principal, authentication,
// and, for those without the reference key, the hashes of names.
func TestCheckRecordedFlips(t *testing.T) {
	e := sampleEvents()["full run"]
	leaf, body := composeSample(t, e)
	original, err := lineage.ParseLeaf(leaf)
	if err != nil {
		t.Fatal(err)
	}
	// ledgerSaid makes equal what the ledger may say freely.
	ledgerSaid := func(l *lineage.Leaf, names bool) {
		l.RecordedAt, l.Principal, l.Authn = original.RecordedAt, original.Principal, original.Authn
		if !names || l.Job == nil || l.Target == nil || len(l.References) != len(original.References) {
			return
		}
		l.Job, l.Target = original.Job, original.Target
		for i := range l.References {
			f, g := &l.References[i], &original.References[i]
			if f.Identity.Algorithm == lineage.NameHMAC {
				f.Identity = g.Identity
			}
			if n := len(f.Aliases); n > 0 && n == len(g.Aliases) && f.Aliases[n-1].Algorithm == lineage.NameHMAC {
				f.Aliases[n-1] = g.Aliases[n-1]
			}
		}
	}
	accepted := map[bool]int{}
	for bit := range 8 * len(leaf) {
		flipped := bytes.Clone(leaf)
		flipped[bit/8] ^= 1 << (bit % 8)
		for withKey, hashName := range map[bool]func(lineage.Name) lineage.Hash{true: testHashName, false: nil} {
			if lineage.CheckRecorded(e, flipped, keysOf(body), hashName) != nil {
				continue
			}
			accepted[withKey]++
			l, err := lineage.ParseLeaf(flipped)
			if err != nil {
				t.Fatalf("bit %d: accepted what does not parse: %v", bit, err)
			}
			ledgerSaid(l, !withKey)
			if !bytes.Equal(lineage.AppendLeaf(nil, l), leaf) {
				t.Errorf("bit %d, reference key %v: not caught", bit, withKey)
			}
		}
	}
	if accepted[true] == 0 || accepted[false] < accepted[true]+5*256 {
		t.Errorf("flips of what the ledger says: %v", accepted)
	}
}

// TestCheckRecordedCatchesOmission: without the reference key the hash of a name cannot be checked, that there is one can.
func TestCheckRecordedCatchesOmission(t *testing.T) {
	e := sampleEvents()["full run"]
	leaf, body := composeSample(t, e)
	for name, change := range map[string]func(l *lineage.Leaf){
		"job":            func(l *lineage.Leaf) { l.Job = nil },
		"target":         func(l *lineage.Leaf) { l.Target = nil },
		"name alias":     func(l *lineage.Leaf) { f := &l.References[0]; f.Aliases = f.Aliases[:len(f.Aliases)-1] },
		"name identity":  func(l *lineage.Leaf) { l.References[2].Identity = l.References[0].Identity },
		"last reference": func(l *lineage.Leaf) { l.References = l.References[:3] },
		"parent run":     func(l *lineage.Leaf) { l.ParentRunID = lineage.ID{1} },
	} {
		l, err := lineage.ParseLeaf(leaf)
		if err != nil {
			t.Fatal(err)
		}
		change(l)
		if err := lineage.CheckRecorded(e, lineage.AppendLeaf(nil, l), keysOf(body), nil); err == nil {
			t.Errorf("%s: not caught", name)
		}
	}
	// With one reference, so that no other one differs.
	one := sampleEvents()["full run"]
	one.References = one.References[:1]
	leafOfOne, bodyOfOne := composeSample(t, one)
	parsed, err := lineage.ParseLeaf(leafOfOne)
	if err != nil {
		t.Fatal(err)
	}
	f := &parsed.References[0]
	f.Aliases = f.Aliases[:len(f.Aliases)-1]
	if err := lineage.CheckRecorded(one, lineage.AppendLeaf(nil, parsed), keysOf(bodyOfOne), nil); err == nil {
		t.Error("the only name alias: not caught")
	}
	// The other way round: a name that nobody sent.
	e.Job, e.Target = lineage.Name{}, lineage.Name{}
	without, body := composeSample(t, e)
	l, err := lineage.ParseLeaf(without)
	if err != nil {
		t.Fatal(err)
	}
	l.Job = &lineage.Hash{1}
	if err := lineage.CheckRecorded(e, lineage.AppendLeaf(nil, l), keysOf(body), nil); err == nil {
		t.Error("added job: not caught")
	}
}

func TestCheckRecordedKeys(t *testing.T) {
	e := sampleEvents()["full run"]
	leaf, body := composeSample(t, e)
	keys := keysOf(body)
	for name, k := range map[string][]lineage.Key{"none": nil, "one": keys[:1], "three": append(keys[:2:2], keys[0]), "swapped": {keys[1], keys[0]}} {
		if err := lineage.CheckRecorded(e, leaf, k, nil); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if err := lineage.CheckRecorded(e, leaf[:len(leaf)-1], keys, nil); !errors.Is(err, lineage.ErrLeaf) {
		t.Errorf("no leaf: %v", err)
	}
}

// TestCheckErased: after erasure the leaf alone decides, and it still says which parts there were.
func TestCheckErased(t *testing.T) {
	leaf, body := composeSample(t, sampleEvents()["full run"])
	for _, hashName := range []func(lineage.Name) lineage.Hash{testHashName, nil} {
		if err := lineage.CheckErased(sampleEvents()["full run"], leaf, hashName); err != nil {
			t.Errorf("the same event: %v", err)
		}
	}
	if err := lineage.CheckRecorded(sampleEvents()["full run"], leaf, nil, testHashName); err == nil {
		t.Error("an erased body passes for one that is there")
	}
	for name, c := range map[string]struct {
		change func(e *lineage.Event)
		same   bool
	}{
		"name of the job":    {func(e *lineage.Event) { e.Job.Name += "x" }, false},
		"reference":          {func(e *lineage.Event) { e.References = e.References[:3] }, false},
		"occurrence":         {func(e *lineage.Event) { e.OccurredAt++ }, false},
		"no documents":       {func(e *lineage.Event) { e.Documents = nil }, false},
		"document":           {func(e *lineage.Event) { e.Documents[0].Content = []byte("x") }, true}, // nobody can tell any more
		"URI":                {func(e *lineage.Event) { e.References[0].URI += "x" }, true},
		"document too large": {func(e *lineage.Event) { e.Documents[0].Content = make([]byte, 2*lineage.MaxBodyBytes) }, false},
	} {
		e := sampleEvents()["full run"]
		c.change(e)
		if err := lineage.CheckErased(e, leaf, testHashName); (err == nil) != c.same {
			t.Errorf("%s: %v", name, err)
		}
	}
	plain := sampleEvents()["attestation"]
	without, _ := composeSample(t, plain)
	if err := lineage.CheckErased(plain, without, testHashName); err != nil {
		t.Error(err)
	}
	plain.Documents = []lineage.Document{{Name: "new"}}
	if err := lineage.CheckErased(plain, without, testHashName); err == nil {
		t.Error("a body that there never was: accepted")
	}
	if err := lineage.CheckErased(plain, leaf[:9], testHashName); !errors.Is(err, lineage.ErrLeaf) || len(body) != 2 {
		t.Errorf("no leaf: %v", err)
	}
}
