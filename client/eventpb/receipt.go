package eventpb

import (
	"fmt"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/client/receipt"
	"github.com/provledger/provledger/internal/checkpoint"
	"github.com/provledger/provledger/internal/merkle"
	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

// ToReceipt converts a receipt; leaf and body contents are shared. Errors are *lineage.FieldError.
func ToReceipt(m *ledgerv1.Receipt) (*receipt.Receipt, error) {
	parts, err := ToParts(m.GetBody())
	if err != nil {
		return nil, err
	}
	r := &receipt.Receipt{Leaf: m.GetLeaf(), Body: parts}
	switch m.GetBodyState() {
	case ledgerv1.BodyState_BODY_STATE_OPENED:
		r.BodyState = receipt.Opened
	case ledgerv1.BodyState_BODY_STATE_WITHHELD:
		r.BodyState = receipt.Withheld
	case ledgerv1.BodyState_BODY_STATE_ERASED:
		r.BodyState = receipt.Erased
	default:
		return nil, &lineage.FieldError{Path: "body_state", Reason: fmt.Sprintf("unknown value %d", m.GetBodyState())}
	}
	if r.Proof, err = checkpoint.ParseTlogProof(m.GetProof()); err != nil {
		return nil, &lineage.FieldError{Path: "proof", Reason: err.Error()}
	}
	return r, nil
}

// FromReceipt converts a receipt; the result shares memory with r.
func FromReceipt(r *receipt.Receipt) *ledgerv1.Receipt {
	m := &ledgerv1.Receipt{Leaf: r.Leaf, Body: FromParts(r.Body), Proof: r.Proof.Text()}
	switch r.BodyState {
	case receipt.Opened:
		m.BodyState = ledgerv1.BodyState_BODY_STATE_OPENED
	case receipt.Withheld:
		m.BodyState = ledgerv1.BodyState_BODY_STATE_WITHHELD
	case receipt.Erased:
		m.BodyState = ledgerv1.BodyState_BODY_STATE_ERASED
	}
	return m
}

// ToBatch converts what proves a batch; leaves and checkpoint are shared. Errors are *lineage.FieldError.
func ToBatch(m *ledgerv1.BatchAppendResponse) (*receipt.Batch, error) {
	b := &receipt.Batch{
		Entries: make([]receipt.BatchEntry, len(m.GetResults())), Runs: make([]receipt.Run, len(m.GetRuns())), Checkpoint: m.GetCheckpoint(),
	}
	for i, r := range m.GetResults() {
		b.Entries[i] = receipt.BatchEntry{Index: r.GetIndex(), Leaf: r.GetLeaf()}
	}
	for i, r := range m.GetRuns() {
		var err error
		run := &b.Runs[i]
		run.First, run.Count = r.GetFirstIndex(), r.GetCount()
		if run.Left, err = toHashes(r.GetLeft()); err != nil {
			return nil, &lineage.FieldError{Path: fmt.Sprintf("runs[%d].left", i), Reason: err.Error()}
		}
		if run.Right, err = toHashes(r.GetRight()); err != nil {
			return nil, &lineage.FieldError{Path: fmt.Sprintf("runs[%d].right", i), Reason: err.Error()}
		}
	}
	return b, nil
}

func toHashes(b [][]byte) ([]merkle.Hash, error) {
	if len(b) == 0 {
		return nil, nil
	}
	hashes := make([]merkle.Hash, len(b))
	for i := range b {
		if len(b[i]) != merkle.HashSize {
			return nil, fmt.Errorf("hash of %d bytes, not %d", len(b[i]), merkle.HashSize)
		}
		hashes[i] = merkle.Hash(b[i])
	}
	return hashes, nil
}
