package rpc_test

import (
	"testing"

	"github.com/provledger/provledger/client/lineage"
	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

// TestNothingToWithhold: a receipt says of an entry without a body that it is opened, whoever asks.
func TestNothingToWithhold(t *testing.T) {
	c := serve(t, openNode(t).NewServer())
	id := func() string { return lineage.NewID().String() }
	bare := &ledgerv1.Event{EventId: id(), RunId: id(), Action: &ledgerv1.Event_Run{Run: ledgerv1.RunState_RUN_STATE_START}}
	full := &ledgerv1.Event{EventId: id(), RunId: id(), Action: &ledgerv1.Event_Run{Run: ledgerv1.RunState_RUN_STATE_START},
		Documents: []*ledgerv1.Document{{Content: []byte("x")}}}
	for want, e := range map[ledgerv1.BodyState]*ledgerv1.Event{
		ledgerv1.BodyState_BODY_STATE_OPENED: bare, ledgerv1.BodyState_BODY_STATE_WITHHELD: full,
	} {
		if _, err := c.Append(t.Context(), &ledgerv1.AppendRequest{Event: e}); err != nil {
			t.Fatal(err)
		}
		r, err := c.GetReceipt(t.Context(), &ledgerv1.GetReceiptRequest{
			Entry: &ledgerv1.EntrySelector{By: &ledgerv1.EntrySelector_EventId{EventId: e.EventId}}, SkipBody: true,
		})
		if err != nil {
			t.Fatal(err)
		}
		if got := r.Receipt.BodyState; got != want || len(r.Receipt.Body) > 0 {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
