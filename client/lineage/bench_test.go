package lineage_test

import (
	"testing"

	"github.com/provledger/provledger/client/lineage"
)

// typicalEvent is the event that the project's figures are about: three references, a job, a document of 300 bytes.
func typicalEvent() *lineage.Event {
	doc := make([]byte, 300)
	for i := range doc {
		doc[i] = byte(' ' + i%90)
	}
	ref := func(role lineage.Role, kind lineage.ArtifactKind, purpose lineage.Purpose, n byte) lineage.Reference {
		value := make([]byte, 32)
		value[0] = n
		return lineage.Reference{
			Role: role, Kind: kind, Purpose: purpose, Known: lineage.Computed, Digest: lineage.Digest{Algorithm: lineage.SHA256, Value: string(value)},
		}
	}
	return &lineage.Event{
		ID: lineage.ID{1, 15: 1}, Kind: lineage.KindRun, Action: uint8(lineage.RunComplete), OccurredAt: 1_780_000_000_000_000,
		RunID: lineage.ID{2, 15: 2}, Job: lineage.Name{Namespace: "training", Name: "fraud-model"},
		References: []lineage.Reference{
			ref(lineage.Input, lineage.Dataset, lineage.TrainingData, 1), ref(lineage.Input, lineage.Code, lineage.SourceCode, 2),
			ref(lineage.Output, lineage.Model, 0, 3),
		},
		Documents: []lineage.Document{{MediaType: "application/json", Name: "parameters", Content: doc}},
	}
}

var typicalStamp = lineage.Stamp{RecordedAt: 1_780_000_000_000_001, Principal: "local:5f2c9e7a41d8b306", Authn: lineage.AuthnOSUser}

func BenchmarkCompose(b *testing.B) {
	e, c := typicalEvent(), countingComposer()
	buf := make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := c.Compose(buf, e, typicalStamp); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppendLeaf(b *testing.B) {
	d, err := countingComposer().Prepare(typicalEvent())
	if err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		buf = d.AppendLeaf(buf[:0], typicalStamp)
	}
	b.ReportMetric(float64(len(buf)), "leaf-bytes")
}

func BenchmarkCheckRecorded(b *testing.B) {
	e := typicalEvent()
	leaf, body, err := countingComposer().Compose(nil, e, typicalStamp)
	if err != nil {
		b.Fatal(err)
	}
	keys := []lineage.Key{body[0].Key, body[1].Key}
	b.ReportAllocs()
	for b.Loop() {
		if err := lineage.CheckRecorded(e, leaf, keys, nil); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParseLeaf(b *testing.B) {
	leaf, _, err := countingComposer().Compose(nil, typicalEvent(), typicalStamp)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := lineage.ParseLeaf(leaf); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParseDigest(b *testing.B) {
	s := typicalEvent().References[0].Digest.String()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := lineage.ParseDigest(s); err != nil {
			b.Fatal(err)
		}
	}
}
