package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/provledger/provledger/client"
	"github.com/provledger/provledger/client/eventpb"
	"github.com/provledger/provledger/client/lineage"
	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

// outcome is what a producer knows about an append after its call returned.
type outcome int

const (
	acknowledged outcome = iota
	notApplied           // definitely not, and never
	unknown              // perhaps
)

// op is one append as its producer saw it.
type op struct {
	events            []*lineage.Event
	invoked, returned time.Duration // since the history began, monotonic
	outcome           outcome
	err               error

	// Of acknowledged appends.
	indexes  []uint64
	leaves   [][]byte
	receipts []*ledgerv1.Receipt // of unary appends
	note     []byte              // signed checkpoint
	size     uint64
}

// history is everything that all producers saw.
type history struct {
	began time.Time

	mu    sync.Mutex
	ops   []*op
	notes map[string]bool // every signed checkpoint that anybody got, by its text
	floor uint64          // largest tree size that anybody was told of by an append or a linearizable read
}

func newHistory() *history { return &history{began: time.Now(), notes: make(map[string]bool)} }

func (h *history) now() time.Duration { return time.Since(h.began) }

func (h *history) add(o *op) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, o)
	if len(o.note) > 0 {
		h.notes[string(o.note)] = true
	}
	if o.outcome == acknowledged {
		h.floor = max(h.floor, o.size)
	}
}

// sentAt says that an append is another attempt of one that was first sent earlier: its answer may be about that.
func (h *history) sentAt(o *op, first time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	o.invoked = first
}

func (h *history) sawCheckpoint(note []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.notes[string(note)] = true
}

func (h *history) count(want outcome) (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, o := range h.ops {
		if o.outcome == want {
			n += len(o.events)
		}
	}
	return n
}

// newEvent makes an event as a training stage would send it; no two are alike.
func newEvent(r *rand.Rand) *lineage.Event {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], r.Uint64())
	in, out := sha256.Sum256(b[:4]), sha256.Sum256(b[:])
	return &lineage.Event{
		ID: lineage.NewID(), Kind: lineage.KindRun, Action: uint8(lineage.RunComplete), Source: lineage.Native,
		OccurredAt: time.Now().UnixMicro(), RunID: lineage.NewID(), Job: lineage.Name{Namespace: "e2e", Name: "train"},
		References: []lineage.Reference{
			{Role: lineage.Input, Kind: lineage.Dataset, Purpose: lineage.TrainingData, Known: lineage.Computed, Digest: lineage.Digest{Algorithm: lineage.SHA256, Value: string(in[:])}, URI: "file:///data/train.csv"},
			{Role: lineage.Output, Kind: lineage.Model, Known: lineage.Computed, Digest: lineage.Digest{Algorithm: lineage.SHA256, Value: string(out[:])}},
		},
		Documents: []lineage.Document{{MediaType: "application/json", Name: "metrics", Content: fmt.Appendf(nil, `{"loss":%d}`, r.IntN(1000))}},
	}
}

// classify turns a call's error into what is known. The reason in the details is the server's word; without one, only the transport
// spoke and nothing is known.
func classify(err error) outcome {
	if err == nil {
		return acknowledged
	}
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && (info.Reason == "NOT_APPLIED" || info.Reason == "OVERLOADED") {
			return notApplied
		}
	}
	return unknown
}

// appendRaw appends by a bare gRPC call: one attempt, no verification, the server's answer as it is.
func (h *history) appendRaw(ctx context.Context, conn grpc.ClientConnInterface, e *lineage.Event) *op {
	o := &op{events: []*lineage.Event{e}, invoked: h.now()}
	resp, err := ledgerv1.NewLedgerServiceClient(conn).Append(ctx, &ledgerv1.AppendRequest{Event: eventpb.FromEvent(e)})
	o.returned, o.err, o.outcome = h.now(), err, classify(err)
	if err == nil {
		o.indexes, o.size = []uint64{resp.Index}, resp.TreeSize
		o.leaves, o.receipts = [][]byte{resp.Receipt.GetLeaf()}, []*ledgerv1.Receipt{resp.Receipt}
		o.note = []byte(noteOf(resp.Receipt.GetProof()))
	}
	h.add(o)
	return o
}

// appendBatchRaw appends many events by a bare gRPC call.
func (h *history) appendBatchRaw(ctx context.Context, conn grpc.ClientConnInterface, events []*lineage.Event) *op {
	req := &ledgerv1.BatchAppendRequest{}
	for _, e := range events {
		req.Events = append(req.Events, eventpb.FromEvent(e))
	}
	o := &op{events: events, invoked: h.now()}
	resp, err := ledgerv1.NewLedgerServiceClient(conn).BatchAppend(ctx, req)
	o.returned, o.err, o.outcome = h.now(), err, classify(err)
	if err == nil {
		for _, r := range resp.Results {
			o.indexes, o.leaves = append(o.indexes, r.Index), append(o.leaves, r.Leaf)
		}
		o.note, o.size = resp.Checkpoint, resp.TreeSize
	}
	h.add(o)
	return o
}

// appendClient appends by the public client, which retries across a restart and verifies what it gets.
func (h *history) appendClient(ctx context.Context, c *client.Client, e *lineage.Event) *op {
	o := &op{events: []*lineage.Event{e}, invoked: h.now()}
	rec, err := c.Append(ctx, "", e)
	o.returned, o.err = h.now(), err
	switch {
	case err == nil:
		o.outcome = acknowledged
		o.indexes, o.size = []uint64{rec.Index}, rec.TreeSize
		o.leaves, o.note = [][]byte{rec.Receipt.Leaf}, rec.Receipt.Proof.Checkpoint
		o.receipts = []*ledgerv1.Receipt{eventpb.FromReceipt(rec.Receipt)}
	case errors.Is(err, client.ErrNotApplied):
		o.outcome = notApplied
	default:
		o.outcome = unknown
	}
	h.add(o)
	return o
}

func cloneReceipt(m *ledgerv1.Receipt) *ledgerv1.Receipt { return proto.Clone(m).(*ledgerv1.Receipt) }
