package eventpb

import (
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/provledger/provledger/client/lineage"
	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

const (
	eventID = "01890a5d-ac96-774b-bcce-b302099a8057"
	runID   = "01890a5d-ac96-774b-bcce-b302099a8058"
	hex32   = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
)

// fullMessage has every field of the API set, each to a value of its own.
func fullMessage() *ledgerv1.Event {
	return &ledgerv1.Event{
		EventId: eventID, Action: &ledgerv1.Event_Run{Run: ledgerv1.RunState_RUN_STATE_COMPLETE}, Source: ledgerv1.Source_SOURCE_DERIVED,
		OccurredAtUs: 1, Initiator: "job:7", RunId: runID, ParentRunId: eventID,
		Job: &ledgerv1.Name{Namespace: "a", Name: "b", Version: "c"},
		References: []*ledgerv1.Reference{{
			Role: ledgerv1.Role_ROLE_OUTPUT, Kind: ledgerv1.ArtifactKind_ARTIFACT_KIND_MODEL, Purpose: ledgerv1.Purpose_PURPOSE_BASE_MODEL,
			Known: ledgerv1.Known_KNOWN_CLAIMED, Digest: "sha256:" + hex32, Name: &ledgerv1.Name{Name: "m"},
			Aliases: []string{"md5:" + hex32[:32]}, Uri: "s3://b/m", MediaType: "application/x", Size: 9,
		}},
		Target: &ledgerv1.Name{Name: "prod"}, Entries: []uint64{1, 2}, Policy: "sha256:" + hex32, ExpiresAtUs: 2,
		Documents: []*ledgerv1.Document{{MediaType: "text/plain", Name: "d", Content: []byte("x")}},
	}
}

func TestEventRoundTrip(t *testing.T) {
	m := fullMessage()
	for field := range allFields(m) {
		if !m.ProtoReflect().Has(field) && field.ContainingOneof() == nil {
			t.Errorf("fullMessage leaves %s out", field.Name())
		}
	}
	messages := []*ledgerv1.Event{m, {}, {EventId: eventID}}
	for _, set := range []func(*ledgerv1.Event){
		func(m *ledgerv1.Event) {
			m.Action = &ledgerv1.Event_Attestation{Attestation: "https://slsa.dev/provenance/v1"}
		},
		func(m *ledgerv1.Event) {
			m.Action = &ledgerv1.Event_Lifecycle{Lifecycle: ledgerv1.LifecycleVerb_LIFECYCLE_VERB_FLAGGED}
		},
		func(m *ledgerv1.Event) {
			m.Action = &ledgerv1.Event_Access{Access: ledgerv1.AccessVerb_ACCESS_VERB_DENIED}
		},
	} {
		m := fullMessage()
		set(m)
		messages = append(messages, m)
	}
	for _, m := range messages {
		e, err := ToEvent(m)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(m, FromEvent(e), protocmp.Transform()); diff != "" {
			t.Errorf("round trip (-want +got):\n%s", diff)
		}
	}
}

func TestToEventFields(t *testing.T) {
	e, err := ToEvent(fullMessage())
	if err != nil {
		t.Fatal(err)
	}
	raw, _ := hex.DecodeString(hex32)
	d := lineage.Digest{Algorithm: lineage.SHA256, Value: string(raw)}
	want := &lineage.Event{
		ID: e.ID, Kind: lineage.KindRun, Action: uint8(lineage.RunComplete), Source: lineage.Derived, OccurredAt: 1, Initiator: "job:7",
		RunID: e.RunID, ParentRunID: e.ID, Job: lineage.Name{Namespace: "a", Name: "b", Version: "c"},
		References: []lineage.Reference{{
			Role: lineage.Output, Kind: lineage.Model, Purpose: lineage.BaseModel, Known: lineage.Claimed, Digest: d,
			Name: lineage.Name{Name: "m"}, Aliases: []lineage.Digest{{Algorithm: lineage.MD5, Value: string(raw[:16])}},
			URI: "s3://b/m", MediaType: "application/x", Size: 9,
		}},
		Target: lineage.Name{Name: "prod"}, Entries: []uint64{1, 2}, Policy: d, ExpiresAt: 2,
		Documents: []lineage.Document{{MediaType: "text/plain", Name: "d", Content: []byte("x")}},
	}
	if diff := cmp.Diff(want, e); diff != "" {
		t.Error(diff)
	}
	if e.ID.String() != eventID || e.RunID.String() != runID {
		t.Errorf("ids %s, %s", e.ID, e.RunID)
	}
}

// TestEnumsAgree holds the numbers of the API to those of the leaf, and the words to each other.
func TestEnumsAgree(t *testing.T) {
	for prefix, c := range map[string]struct {
		numbers map[string]int32
		text    func(uint8) string
	}{
		"RUN_STATE_":      {ledgerv1.RunState_value, func(v uint8) string { return lineage.RunState(v).String() }},
		"LIFECYCLE_VERB_": {ledgerv1.LifecycleVerb_value, func(v uint8) string { return lineage.LifecycleVerb(v).String() }},
		"ACCESS_VERB_":    {ledgerv1.AccessVerb_value, func(v uint8) string { return lineage.AccessVerb(v).String() }},
		"SOURCE_":         {ledgerv1.Source_value, func(v uint8) string { return lineage.Source(v).String() }},
		"ROLE_":           {ledgerv1.Role_value, func(v uint8) string { return lineage.Role(v).String() }},
		"ARTIFACT_KIND_":  {ledgerv1.ArtifactKind_value, func(v uint8) string { return lineage.ArtifactKind(v).String() }},
		"PURPOSE_":        {ledgerv1.Purpose_value, func(v uint8) string { return lineage.Purpose(v).String() }},
		"KNOWN_":          {ledgerv1.Known_value, func(v uint8) string { return lineage.Known(v).String() }},
	} {
		for name, v := range c.numbers {
			if v == 0 {
				continue
			}
			word := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(name, prefix), "_", "-"))
			if got := c.text(uint8(v)); got != word {
				t.Errorf("%s = %d is %q in the leaf", name, v, got)
			}
		}
		// The leaf has no value that the API lacks.
		for v := range 256 {
			got := c.text(uint8(v))
			if _, ok := c.numbers[prefix+strings.ToUpper(strings.ReplaceAll(got, "-", "_"))]; got != "" && !strings.HasPrefix(got, "unknown") && !ok {
				t.Errorf("%s%q = %d is not in the API", prefix, got, v)
			}
		}
	}
}

func TestToEventRefuses(t *testing.T) {
	unknown := func(m proto.Message) { m.ProtoReflect().SetUnknown([]byte{0xf8, 0x07, 0x01}) }
	for _, c := range []struct {
		change func(*ledgerv1.Event)
		path   string
	}{
		{func(m *ledgerv1.Event) { m.EventId = "x" }, "event_id"},
		{func(m *ledgerv1.Event) { m.EventId = "{" + eventID + "}" }, "event_id"},
		{func(m *ledgerv1.Event) { m.RunId = strings.ReplaceAll(runID, "-", "") }, "run_id"},
		{func(m *ledgerv1.Event) { m.ParentRunId = "00000000-0000-0000-0000-000000000000" }, "parent_run_id"},
		{func(m *ledgerv1.Event) { m.Policy = "sha256:00" }, "policy"},
		{func(m *ledgerv1.Event) { m.Source = 256 + 1 }, "source"},
		{func(m *ledgerv1.Event) { m.Action = &ledgerv1.Event_Run{Run: 256 + 3} }, "run"},
		{func(m *ledgerv1.Event) { m.Action = &ledgerv1.Event_Lifecycle{Lifecycle: -1} }, "lifecycle"},
		{func(m *ledgerv1.Event) { m.Action = &ledgerv1.Event_Access{Access: 1 << 16} }, "access"},
		{func(m *ledgerv1.Event) { m.References[0].Digest = "crc32:00" }, "references[0].digest"},
		{func(m *ledgerv1.Event) { m.References[0].Digest = "name:" + hex32 }, "references[0].digest"},
		{func(m *ledgerv1.Event) { m.References[0].Role = 256 }, "references[0].role"},
		{func(m *ledgerv1.Event) { m.References[0].Kind = 256 }, "references[0].kind"},
		{func(m *ledgerv1.Event) { m.References[0].Purpose = 256 }, "references[0].purpose"},
		{func(m *ledgerv1.Event) { m.References[0].Known = 256 }, "references[0].known"},
		{func(m *ledgerv1.Event) { m.References[0].Aliases = append(m.References[0].Aliases, "") }, "references[0].aliases[1]"},
		{func(m *ledgerv1.Event) { unknown(m) }, "event"},
		{func(m *ledgerv1.Event) { unknown(m.Job) }, "job"},
		{func(m *ledgerv1.Event) { unknown(m.Target) }, "target"},
		{func(m *ledgerv1.Event) { unknown(m.References[0]) }, "references[0]"},
		{func(m *ledgerv1.Event) { unknown(m.References[0].Name) }, "references[0].name"},
		{func(m *ledgerv1.Event) { unknown(m.Documents[0]) }, "documents[0]"},
	} {
		m := fullMessage()
		c.change(m)
		e, err := ToEvent(m)
		f, ok := errors.AsType[*lineage.FieldError](err)
		if e != nil || !ok || f.Path != c.path || f.Reason == "" {
			t.Errorf("%s: got %v, %v", c.path, e, err)
		}
	}
}

// TestNil: what a caller in the same process can build and no wire message can.
func TestNil(t *testing.T) {
	if e, err := ToEvent(nil); err != nil || e.Validate() == nil {
		t.Errorf("nil event: %v, %v", e, err)
	}
	m := &ledgerv1.Event{References: []*ledgerv1.Reference{nil}, Documents: []*ledgerv1.Document{nil}}
	if e, err := ToEvent(m); err != nil || len(e.References) != 1 || len(e.Documents) != 1 {
		t.Errorf("nil elements: %v, %v", e, err)
	}
	if _, err := ToParts([]*ledgerv1.BodyPart{nil}); err == nil {
		t.Error("nil body part accepted")
	}
}

func TestParts(t *testing.T) {
	parts := []lineage.BodyPart{
		{Kind: lineage.PartIdentifiers, Key: lineage.Key{1}, Content: []byte("a")},
		{Kind: lineage.PartDocuments, Key: lineage.Key{2}, Content: []byte("b")},
	}
	got, err := ToParts(FromParts(parts))
	if diff := cmp.Diff(parts, got); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	if got, err := ToParts(FromParts(nil)); got != nil || err != nil {
		t.Errorf("no parts: %v, %v", got, err)
	}
	for path, p := range map[string]*ledgerv1.BodyPart{
		"body[0].key":  {Part: 1, Key: make([]byte, 31)},
		"body[0].part": {Part: 256, Key: make([]byte, 32)},
	} {
		_, err := ToParts([]*ledgerv1.BodyPart{p})
		if f, ok := errors.AsType[*lineage.FieldError](err); !ok || f.Path != path {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func BenchmarkToEvent(b *testing.B) {
	m := fullMessage()
	m.References = append(m.References, m.References[0], m.References[0])
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ToEvent(m); err != nil {
			b.Fatal(err)
		}
	}
}
