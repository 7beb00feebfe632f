package client

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/provledger/provledger/client/lineage"
	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

// What a client pays to believe a batch of 1,000: every leaf compared with what was sent, every leaf proven, one signature.
func BenchmarkVerifyBatch(b *testing.B) {
	var resp *ledgerv1.BatchAppendResponse
	l := newLedger(b)
	c := l.dial(Options{}, mangle(func(_ string, reply any) {
		if r, ok := reply.(*ledgerv1.BatchAppendResponse); ok {
			resp = proto.CloneOf(r)
		}
	}))
	events := make([]*lineage.Event, 1000)
	for i := range events {
		events[i] = event(fmt.Sprint("out", i), "in1", "in2")
	}
	if _, err := c.AppendBatch(b.Context(), "", events); err != nil {
		b.Fatal(err)
	}
	st := c.logs["main"]
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := verifyBatch(st, events, resp); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(events)), "ns/event")
}
