package lineage_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/provledger/provledger/client/lineage"
)

func TestValidateRefuses(t *testing.T) {
	long := func(n int) string { return strings.Repeat("x", n) }
	ref := func(f func(*lineage.Reference)) func(*lineage.Event) {
		return func(e *lineage.Event) { f(&e.References[1]) }
	}
	digest := func(a lineage.Algorithm, n int) lineage.Digest { return lineage.Digest{Algorithm: a, Value: long(n)} }
	for _, c := range []struct {
		path, says string
		change     func(*lineage.Event)
	}{
		{"event_id", "required", func(e *lineage.Event) { e.ID = lineage.ID{} }},
		{"action", "required", func(e *lineage.Event) { e.Kind = 0 }},
		{"action", "required", func(e *lineage.Event) { e.Kind = 6 }},
		{"action", "ledger itself", func(e *lineage.Event) { e.Kind, e.Action = lineage.KindControl, 7 }},
		{"references", "a subject is required", func(e *lineage.Event) { e.Kind, e.Action, e.References = lineage.KindLifecycle, 2, nil }},
		{"references", "a subject is required", func(e *lineage.Event) { e.Kind, e.Action, e.References = lineage.KindAccess, 1, nil }},
		{"run", "required", func(e *lineage.Event) { e.Action = 0 }},
		{"run", "unknown value 7", func(e *lineage.Event) { e.Action = 7 }},
		{"lifecycle", "unknown value 10", func(e *lineage.Event) { e.Kind, e.Action = lineage.KindLifecycle, 10 }},
		{"access", "unknown value 5", func(e *lineage.Event) { e.Kind, e.Action = lineage.KindAccess, 5 }},
		{"attestation", "required", func(e *lineage.Event) { e.Kind, e.Action = lineage.KindAttestation, 0 }},
		{"attestation", "no action", func(e *lineage.Event) { e.Kind, e.PredicateType = lineage.KindAttestation, "p" }},
		{"attestation", "not to a run", func(e *lineage.Event) { e.PredicateType = "p" }},
		{"attestation", "256 bytes exceed 255", func(e *lineage.Event) { e.Kind, e.Action, e.PredicateType = lineage.KindAttestation, 0, long(256) }},
		{"source", "unknown", func(e *lineage.Event) { e.Source = 4 }},
		{"run_id", "required", func(e *lineage.Event) { e.RunID = lineage.ID{} }},
		{"occurred_at_us", "year 9999", func(e *lineage.Event) { e.OccurredAt = -1 }},
		{"occurred_at_us", "year 9999", func(e *lineage.Event) { e.OccurredAt = lineage.MaxTime + 1 }},
		{"expires_at_us", "year 9999", func(e *lineage.Event) { e.ExpiresAt = lineage.MaxTime + 1 }},
		{"initiator", "256 bytes exceed 255", func(e *lineage.Event) { e.Initiator = long(256) }},
		{"initiator", "UTF-8 at byte 1", func(e *lineage.Event) { e.Initiator = "a\xff" }},
		{"initiator", "control character at byte 2", func(e *lineage.Event) { e.Initiator = "ab\n" }},
		{"initiator", "control character at byte 0", func(e *lineage.Event) { e.Initiator = "\u009b" }},
		{"initiator", "control character", func(e *lineage.Event) { e.Initiator = "\x7f" }},
		{"job.name", "required", func(e *lineage.Event) { e.Job = lineage.Name{Namespace: "n"} }},
		{"job.namespace", "1025 bytes exceed 1024", func(e *lineage.Event) { e.Job.Namespace = long(1025) }},
		{"job.name", "1025 bytes exceed 1024", func(e *lineage.Event) { e.Job.Name = long(1025) }},
		{"job.version", "UTF-8", func(e *lineage.Event) { e.Job.Version = "\xc3" }},
		{"target.name", "required", func(e *lineage.Event) { e.Target.Version = "n" }},
		{"references", "1001 exceed 1000", func(e *lineage.Event) { e.References = make([]lineage.Reference, 1001) }},
		{"references[1].role", "required", ref(func(f *lineage.Reference) { f.Role = 0 })},
		{"references[1].role", "required", ref(func(f *lineage.Reference) { f.Role = 4 })},
		{"references[1].kind", "unknown", ref(func(f *lineage.Reference) { f.Kind = 7 })},
		{"references[1].purpose", "unknown", ref(func(f *lineage.Reference) { f.Purpose = 15 })},
		{"references[1].known", "required", ref(func(f *lineage.Reference) { f.Known = 0 })},
		{"references[1].known", "does not fit", ref(func(f *lineage.Reference) { f.Known = lineage.NameOnly })},
		{"references[1].known", "does not fit", ref(func(f *lineage.Reference) { f.Digest, f.Name.Name = lineage.Digest{}, "n" })},
		{"references[1].name.version", "required", ref(func(f *lineage.Reference) {
			f.Digest, f.Name, f.Known = lineage.Digest{}, lineage.Name{Name: "n"}, lineage.StoreVersion
		})},
		{"references[1].digest", "required", ref(func(f *lineage.Reference) { f.Digest = lineage.Digest{} })},
		{"references[1].digest", "64 hex digits, not 62", ref(func(f *lineage.Reference) { f.Digest = digest(lineage.SHA256, 31) })},
		{"references[1].digest", "40 or 64 hex digits, not 42", ref(func(f *lineage.Reference) { f.Digest = digest(lineage.GitCommit, 21) })},
		{"references[1].digest", "unknown algorithm 19", ref(func(f *lineage.Reference) { f.Digest = digest(19, 32) })},
		{"references[1].digest", "unknown algorithm 0", ref(func(f *lineage.Reference) { f.Digest = digest(0, 32) })},
		{"references[1].digest", "alias only", ref(func(f *lineage.Reference) { f.Digest = digest(lineage.SHA1, 20) })},
		{"references[1].digest", "alias only", ref(func(f *lineage.Reference) { f.Digest = digest(lineage.NameHMAC, 32) })},
		{"references[1].aliases", "9 exceed 8", ref(func(f *lineage.Reference) { f.Aliases = make([]lineage.Digest, 9) })},
		{"references[1].aliases[1]", "32 hex digits", ref(func(f *lineage.Reference) {
			f.Aliases = []lineage.Digest{digest(lineage.MD5, 16), digest(lineage.MD5, 15)}
		})},
		{"references[1].aliases[0]", "name instead", ref(func(f *lineage.Reference) { f.Aliases = []lineage.Digest{digest(lineage.NameHMAC, 32)} })},
		{"references[1].name.name", "required", ref(func(f *lineage.Reference) { f.Name.Namespace = "n" })},
		{"references[1].uri", "4097 bytes exceed 4096", ref(func(f *lineage.Reference) { f.URI = long(4097) })},
		{"references[1].media_type", "control", ref(func(f *lineage.Reference) { f.MediaType = "\x00" })},
		{"references[1].size", "negative", ref(func(f *lineage.Reference) { f.Size = -1 })},
		{"entries", "257 exceed 256", func(e *lineage.Event) { e.Entries = make([]uint64, 257) }},
		{"entries[1]", "ascending", func(e *lineage.Event) { e.Entries = []uint64{5, 4} }},
		{"entries[2]", "ascending", func(e *lineage.Event) { e.Entries = []uint64{0, 5, 5} }},
		{"references[1].aliases[0]", "repeats", ref(func(f *lineage.Reference) { f.Aliases = []lineage.Digest{f.Digest} })},
		{"references[1].aliases[2]", "repeats", ref(func(f *lineage.Reference) {
			f.Aliases = []lineage.Digest{digest(lineage.MD5, 16), digest(lineage.SHA1, 20), digest(lineage.MD5, 16)}
		})},
		{"policy", "alias only", func(e *lineage.Event) { e.Policy = digest(lineage.SHA1, 20) }},
		{"policy", "alias only", func(e *lineage.Event) { e.Policy = digest(lineage.NameHMAC, 32) }},
		{"policy", "hex digits", func(e *lineage.Event) { e.Policy = digest(lineage.SHA256, 1) }},
		{"documents", "65 exceed 64", func(e *lineage.Event) { e.Documents = make([]lineage.Document, 65) }},
		{"documents[0].name", "1025 bytes exceed 1024", func(e *lineage.Event) { e.Documents[0].Name = long(1025) }},
		{"documents[0].media_type", "UTF-8", func(e *lineage.Event) { e.Documents[0].MediaType = "\xed\xa0\x80" }},
	} {
		e := typicalEvent()
		if err := e.Validate(); err != nil {
			t.Fatal(err)
		}
		c.change(e)
		err := e.Validate()
		f, ok := errors.AsType[*lineage.FieldError](err)
		if !ok || f.Path != c.path || !strings.Contains(f.Reason, c.says) {
			t.Errorf("%s, %q: got %v", c.path, c.says, err)
		}
		if _, _, err := countingComposer().Compose(nil, e, typicalStamp); err == nil {
			t.Errorf("%s: composed", c.path)
		}
	}
}

func TestLimitsAreReached(t *testing.T) {
	e := typicalEvent()
	e.Initiator, e.Job.Name, e.Job.Namespace = strings.Repeat("i", 255), strings.Repeat("j", 1024), strings.Repeat("é", 512)
	e.OccurredAt, e.ExpiresAt, e.Entries = lineage.MaxTime, lineage.MaxTime, make([]uint64, 256)
	for i := range e.Entries {
		e.Entries[i] = 1<<64 - 256 + uint64(i)
	}
	e.References[0].URI, e.References[0].MediaType = strings.Repeat("u", 4096), strings.Repeat("m", 1024)
	for i := range 8 {
		e.References[0].Aliases = append(e.References[0].Aliases, lineage.Digest{Algorithm: lineage.SHA512, Value: strings.Repeat(string(rune('a'+i)), 64)})
	}
	e.References[0].Name.Name = "n"
	for len(e.References) < 1000 {
		e.References = append(e.References, e.References[1])
	}
	for len(e.Documents) < 64 {
		e.Documents = append(e.Documents, lineage.Document{})
	}
	leaf, _, err := countingComposer().Compose(nil, e, lineage.Stamp{RecordedAt: lineage.MaxTime, Principal: strings.Repeat("p", 255)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lineage.ParseLeaf(leaf); err != nil {
		t.Fatal(err)
	}
	e.References = append(e.References, e.References[1])
	if err := e.Validate(); !errors.Is(err, lineage.ErrTooLarge) {
		t.Errorf("1,001 references: %v", err)
	}
}

// TestLeafLimit fills a leaf to its last byte. The limit counts the longest principal, so that no event is too large for some callers only.
func TestLeafLimit(t *testing.T) {
	stamp := lineage.Stamp{RecordedAt: lineage.MaxTime, Principal: strings.Repeat("p", lineage.MaxPrincipal)}
	e := typicalEvent()
	size := func() int {
		leaf, _, err := countingComposer().Compose(nil, e, stamp)
		if err != nil {
			t.Fatalf("%d references: %v", len(e.References), err)
		}
		return len(leaf)
	}
	fill := lineage.Reference{Role: lineage.Input, Known: lineage.Claimed, Digest: lineage.Digest{Algorithm: lineage.SHA512, Value: strings.Repeat("a", 64)}}
	for size() < lineage.MaxLeafBytes-200 {
		e.References = append(e.References, fill)
	}
	e.Initiator = strings.Repeat("i", 30) // below the border of one- and two-byte lengths
	e.Initiator = strings.Repeat("i", 30+lineage.MaxLeafBytes-size())
	if n := size(); n != lineage.MaxLeafBytes {
		t.Fatalf("%d bytes", n)
	}
	for range 2 {
		e.Initiator += "i"
		_, _, err := countingComposer().Compose(nil, e, typicalStamp)
		f, ok := errors.AsType[*lineage.FieldError](err)
		if !ok || f.Path != "references" || !errors.Is(err, lineage.ErrTooLarge) {
			t.Fatalf("65,536 bytes: %v", err)
		}
	}
}

func TestBodyLimit(t *testing.T) {
	e := typicalEvent()
	e.Documents[0].Content = make([]byte, 1<<19)
	_, body := composeSample(t, e)
	n := 0
	for _, p := range body {
		n += len(p.Content)
	}
	e.Documents[0].Content = make([]byte, 1<<19+lineage.MaxBodyBytes-n)
	_, body = composeSample(t, e)
	if n := len(body[0].Content) + len(body[1].Content); n != lineage.MaxBodyBytes {
		t.Fatalf("%d bytes", n)
	}
	for _, more := range []int{1, lineage.MaxBodyBytes, 3 * lineage.MaxBodyBytes} {
		e.Documents[0].Content = make([]byte, 1<<19+lineage.MaxBodyBytes-n+more)
		_, _, err := countingComposer().Compose(nil, e, typicalStamp)
		if f, ok := errors.AsType[*lineage.FieldError](err); !ok || f.Path != "documents" || !errors.Is(err, lineage.ErrTooLarge) {
			t.Errorf("%d bytes too many: %v", more, err)
		}
	}
}

// TestDraftStamps: what is prepared once may be stamped again, with the bytes that composing at once gives.
func TestDraftStamps(t *testing.T) {
	for name, e := range sampleEvents() {
		d, err := countingComposer().Prepare(e)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range []lineage.Stamp{typicalStamp, {RecordedAt: 1, Principal: "p"}, typicalStamp} {
			want, body, err := countingComposer().Compose([]byte("before"), e, s)
			if err != nil {
				t.Fatal(err)
			}
			if got := d.AppendLeaf([]byte("before"), s); !bytes.Equal(got, want) {
				t.Errorf("%s: draft and composer differ", name)
			}
			if len(body) != len(d.Body) {
				t.Errorf("%s: %d parts, draft has %d", name, len(body), len(d.Body))
			}
		}
	}
}
