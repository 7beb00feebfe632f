package eventpb

import (
	"bytes"
	"iter"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

func allFields(m proto.Message) iter.Seq[protoreflect.FieldDescriptor] {
	return func(yield func(protoreflect.FieldDescriptor) bool) {
		fields := m.ProtoReflect().Descriptor().Fields()
		for i := range fields.Len() {
			if !yield(fields.Get(i)) {
				return
			}
		}
	}
}

const goldenJSON = `{
  "eventId": "01890a5d-ac96-774b-bcce-b302099a8057",
  "run": "RUN_STATE_COMPLETE",
  "source": "SOURCE_DERIVED",
  "occurredAtUs": "1",
  "initiator": "job:7",
  "runId": "01890a5d-ac96-774b-bcce-b302099a8058",
  "parentRunId": "01890a5d-ac96-774b-bcce-b302099a8057",
  "job": {
    "namespace": "a",
    "name": "b",
    "version": "c"
  },
  "references": [
    {
      "role": "ROLE_OUTPUT",
      "kind": "ARTIFACT_KIND_MODEL",
      "purpose": "PURPOSE_BASE_MODEL",
      "known": "KNOWN_CLAIMED",
      "digest": "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
      "name": {
        "name": "m"
      },
      "aliases": [
        "md5:9f86d081884c7d659a2feaa0c55ad015"
      ],
      "uri": "s3://b/m",
      "mediaType": "application/x",
      "size": "9"
    }
  ],
  "target": {
    "name": "prod"
  },
  "entries": [
    "1",
    "2"
  ],
  "policy": "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
  "expiresAtUs": "2",
  "documents": [
    {
      "mediaType": "text/plain",
      "name": "d",
      "content": "eA=="
    }
  ]
}
`

func TestMarshalJSON(t *testing.T) {
	e, err := ToEvent(fullMessage())
	if err != nil {
		t.Fatal(err)
	}
	b, err := MarshalJSON(e)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(goldenJSON, string(b)); diff != "" {
		t.Error(diff)
	}
	again, err := ParseJSON(b)
	if diff := cmp.Diff(e, again); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	e.Initiator = "\xff"
	if _, err := MarshalJSON(e); err == nil {
		t.Error("bad UTF-8 written")
	}
}

func TestParseJSONRefuses(t *testing.T) {
	for _, c := range []struct{ json, says string }{
		{`{"eventId": "x", "surprise": 1}`, `(line 1:18): unknown field "surprise"`},
		{"{\n\"references\": [{\"rolle\": 1}]}", `(line 2:17): unknown field "rolle"`},
		{`{"run": "RUN_STATE_NOPE"}`, `RUN_STATE_NOPE`},
		{`{"eventId": "x", "eventId": "y"}`, `duplicate field "eventId"`},
		{`{"run": 1, "access": 1}`, `oneof`},
		{`{"initiator": `, `unexpected`},
		{``, `unexpected`},
		{`{} {}`, `unexpected token`},
		{`{"initiator": "` + "\xff" + `"}`, `UTF-8`},
		{`{"references": [{}, {"digest": "sha256:zz"}]}`, `references[1].digest: digest "sha256:zz"`},
		{`{"eventId": "nope"}`, `event_id: "nope" is not a UUID`},
		{`{"source": 300}`, `source: unknown value 300`},
	} {
		e, err := ParseJSON([]byte(c.json))
		if e != nil || err == nil || !strings.Contains(err.Error(), c.says) || strings.ContainsAny(err.Error(), "\u00a0\n") {
			t.Errorf("%s: got %v, %v, want %s", c.json, e, err, c.says)
		}
	}
}

// FuzzParseJSON: what is accepted is written back as JSON that says the same, in one form.
func FuzzParseJSON(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := ParseJSON(b)
		if err != nil {
			return
		}
		first, err := MarshalJSON(e)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseJSON(first)
		if err != nil {
			t.Fatalf("own output refused: %v\n%s", err, first)
		}
		second, err := MarshalJSON(again)
		if err != nil || !bytes.Equal(first, second) {
			t.Fatalf("%v: %s became %s", err, first, second)
		}
		// The validity of an event does not change on the way.
		if (e.Validate() == nil) != (again.Validate() == nil) {
			t.Fatalf("%v, then %v", e.Validate(), again.Validate())
		}
	})
}
