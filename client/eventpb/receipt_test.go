package eventpb

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/client/receipt"
	"github.com/provledger/provledger/internal/checkpoint"
	"github.com/provledger/provledger/internal/merkle"
	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

func sampleReceipt(t *testing.T, state receipt.BodyState) *receipt.Receipt {
	t.Helper()
	key, err := checkpoint.NewKey("example.org/log", &[32]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	signed, err := checkpoint.Sign(checkpoint.Checkpoint{Origin: "example.org/log", Size: 2, Root: merkle.Hash{1}}, key)
	if err != nil {
		t.Fatal(err)
	}
	r := &receipt.Receipt{Leaf: []byte("leaf"), BodyState: state, Proof: checkpoint.TlogProof{Index: 1, Hashes: []merkle.Hash{{2}}, Checkpoint: signed}}
	if state == receipt.Opened {
		r.Body = []lineage.BodyPart{{Kind: lineage.PartDocuments, Key: lineage.Key{3}, Content: []byte("content")}}
	}
	return r
}

func TestReceiptRoundTrip(t *testing.T) {
	for _, state := range []receipt.BodyState{receipt.Opened, receipt.Withheld, receipt.Erased} {
		r := sampleReceipt(t, state)
		got, err := ToReceipt(FromReceipt(r))
		if diff := cmp.Diff(r, got); err != nil || diff != "" {
			t.Errorf("%s: %v\n%s", state, err, diff)
		}
	}
}

func TestToReceiptRefuses(t *testing.T) {
	for path, change := range map[string]func(m *ledgerv1.Receipt){
		"body_state":  func(m *ledgerv1.Receipt) { m.BodyState = 0 },
		"body[0].key": func(m *ledgerv1.Receipt) { m.Body[0].Key = nil },
		"proof":       func(m *ledgerv1.Receipt) { m.Proof = strings.TrimSuffix(m.Proof, "\n") },
	} {
		m := FromReceipt(sampleReceipt(t, receipt.Opened))
		change(m)
		r, err := ToReceipt(m)
		if f, ok := errors.AsType[*lineage.FieldError](err); !ok || f.Path != path || r != nil {
			t.Errorf("%s: %v, %v", path, r, err)
		}
	}
	if _, err := ToReceipt(nil); err == nil {
		t.Error("no receipt accepted")
	}
}

func TestToBatch(t *testing.T) {
	hash := func(b byte) []byte { return append(make([]byte, 31), b) }
	m := &ledgerv1.BatchAppendResponse{
		Results:    []*ledgerv1.AppendResult{{Index: 7, Leaf: []byte("a")}, {Index: 3, Leaf: []byte("b"), Duplicate: true}},
		Runs:       []*ledgerv1.RunProof{{FirstIndex: 3, Count: 1, Left: [][]byte{hash(1), hash(2)}, Right: [][]byte{hash(3)}}, {FirstIndex: 7, Count: 1}},
		Checkpoint: []byte("note"),
	}
	want := &receipt.Batch{
		Entries:    []receipt.BatchEntry{{Index: 7, Leaf: []byte("a")}, {Index: 3, Leaf: []byte("b")}},
		Runs:       []receipt.Run{{First: 3, Count: 1, Left: []merkle.Hash{{31: 1}, {31: 2}}, Right: []merkle.Hash{{31: 3}}}, {First: 7, Count: 1}},
		Checkpoint: []byte("note"),
	}
	got, err := ToBatch(m)
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	m.Runs[0].Left[1] = m.Runs[0].Left[1][1:]
	if _, err := ToBatch(m); err == nil || !strings.HasPrefix(err.Error(), "runs[0].left") {
		t.Error(err)
	}
	m.Runs[0].Left, m.Runs[0].Right[0] = nil, nil
	if _, err := ToBatch(m); err == nil || !strings.HasPrefix(err.Error(), "runs[0].right") {
		t.Error(err)
	}
}
