package client

import (
	"bytes"
	"context"
	"fmt"

	"github.com/provledger/provledger/client/eventpb"
	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/client/receipt"
	"github.com/provledger/provledger/internal/merkle"
	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

// Recorded says where an event stands in a log, with the receipt that proves it.
type Recorded struct {
	Index     uint64
	LeafHash  [32]byte // SHA-256(0x00 || leaf)
	TreeSize  uint64   // of the receipt's checkpoint
	Duplicate bool     // it had been recorded before
	Receipt   *receipt.Receipt
}

// Append records an event and returns its verified receipt. Sending an event again is safe: the same event id with the same content gives
// the entry that exists. Errors: *lineage.FieldError in the chain if the event is invalid, [*UntrustedError], [ErrNotApplied],
// [ErrUnknown], or the gRPC status of a refusal.
func (c *Client) Append(ctx context.Context, log string, e *lineage.Event) (*Recorded, error) {
	if err := e.Validate(); err != nil {
		return nil, fmt.Errorf("append: %w", err)
	}
	st, err := c.log(ctx, log)
	if err != nil {
		return nil, unsent(err)
	}
	before := st.seen()
	resp, err := write(ctx, c, "append", c.rpc.Append, &ledgerv1.AppendRequest{Log: st.name, Event: eventpb.FromEvent(e)})
	if err != nil {
		return nil, err
	}
	r, p, from, err := c.verifyReceipt(st, resp.GetReceipt())
	if err != nil {
		return nil, err
	}
	hash := merkle.LeafHash(r.Leaf)
	switch {
	case r.Proof.Index != resp.GetIndex():
		return nil, untrusted(st.name, "append: index %d, the receipt proves %d", resp.GetIndex(), r.Proof.Index)
	case !bytes.Equal(resp.GetLeafHash(), hash[:]):
		return nil, untrusted(st.name, "append: leaf hash %x, the receipt proves %s", resp.GetLeafHash(), hash)
	case resp.GetTreeSize() != p.size:
		return nil, untrusted(st.name, "append: tree size %d, the receipt proves %d", resp.GetTreeSize(), p.size)
	}
	if err := lineage.CheckRecorded(e, r.Leaf, keysOf(r.Body), nil); err != nil {
		return nil, untrusted(st.name, "append: %w", err)
	}
	if err := c.settle(ctx, st, before, p, from); err != nil {
		return nil, err
	}
	return &Recorded{Index: resp.GetIndex(), LeafHash: hash, TreeSize: p.size, Duplicate: resp.GetDuplicate(), Receipt: r}, nil
}

// unsent marks the failure of what goes before an append.
func unsent(err error) error { return &outcomeError{ErrNotApplied, err} }

func keysOf(parts []lineage.BodyPart) []lineage.Key {
	keys := make([]lineage.Key, len(parts))
	for i := range parts {
		keys[i] = parts[i].Key
	}
	return keys
}

// verifyReceipt checks all of a receipt but who it is for: the leaf is in the tree, the log signed the tree, the body opens the leaf.
func (c *Client) verifyReceipt(st *logState, m *ledgerv1.Receipt) (*receipt.Receipt, point, prefix, error) {
	r, err := eventpb.ToReceipt(m)
	if err != nil {
		return nil, point{}, prefix{}, untrusted(st.name, "malformed receipt: %w", err)
	}
	p, err := c.open(st, r.Proof.Checkpoint)
	if err != nil {
		return nil, point{}, prefix{}, err
	}
	if err := merkle.VerifyInclusion(merkle.LeafHash(r.Leaf), r.Proof.Index, p.size, r.Proof.Hashes, p.root); err != nil {
		return nil, point{}, prefix{}, untrusted(st.name, "receipt: %w", err)
	}
	if _, err := openBody(r.Leaf, r.BodyState, r.Body); err != nil {
		return nil, point{}, prefix{}, untrusted(st.name, "receipt of entry %d: %w", r.Proof.Index, err)
	}
	return r, p, prefixOf(r.Proof.Index, leftSiblings(r.Proof.Index, p.size, r.Proof.Hashes)), nil
}

// openBody decodes a leaf and checks that a body is the one that it commits to, if the body is there.
func openBody(leaf []byte, state receipt.BodyState, body []lineage.BodyPart) (*lineage.Leaf, error) {
	l, err := lineage.ParseLeaf(leaf)
	if err != nil {
		return nil, err
	}
	if state == receipt.Opened {
		return l, lineage.OpenBody(l, body)
	}
	if len(body) > 0 {
		return nil, fmt.Errorf("%w: the body is %s and yet there", lineage.ErrCommitment, state)
	}
	return l, nil
}

// Batch is the verified outcome of AppendBatch. It derives each event's receipt when asked, from one proof for all. It refers to the
// events, which must not be changed.
type Batch struct {
	TreeSize   uint64
	Checkpoint []byte // signed note under which all events are proven

	events  []*lineage.Event
	results []*ledgerv1.AppendResult
	proof   *receipt.VerifiedBatch
}

// Len returns the number of events.
func (b *Batch) Len() int { return len(b.results) }

// Index returns the index of the i-th event.
func (b *Batch) Index(i int) uint64 { return b.results[i].Index }

// LeafHash returns SHA-256(0x00 || leaf) of the i-th event.
func (b *Batch) LeafHash(i int) [32]byte { return merkle.LeafHash(b.results[i].Leaf) }

// Duplicate reports whether the i-th event had been recorded before.
func (b *Batch) Duplicate(i int) bool { return b.results[i].Duplicate }

// Recorded returns the i-th event's place and receipt.
func (b *Batch) Recorded(i int) (*Recorded, error) {
	r, err := b.Receipt(i)
	if err != nil {
		return nil, err
	}
	return &Recorded{Index: b.Index(i), LeafHash: b.LeafHash(i), TreeSize: b.TreeSize, Duplicate: b.Duplicate(i), Receipt: r}, nil
}

// Receipt returns the receipt of the i-th event, body opened. It fails only if the event was changed since it was sent.
func (b *Batch) Receipt(i int) (*receipt.Receipt, error) {
	var body []lineage.BodyPart
	keys, err := toKeys(nil, b.results[i].BodyKeys)
	if err == nil {
		body, err = b.events[i].BodyParts(keys)
	}
	if err == nil {
		_, err = openBody(b.results[i].Leaf, receipt.Opened, body)
	}
	if err != nil {
		return nil, fmt.Errorf("receipt of event %d: the event was changed since it was sent: %w", i, err)
	}
	return b.proof.Receipt(i, receipt.Opened, body)
}

// AppendBatch records many events, all or none: at most 4,096, and 4 MiB. Everything is verified when it returns. Errors are those of
// [Client.Append].
func (c *Client) AppendBatch(ctx context.Context, log string, events []*lineage.Event) (*Batch, error) {
	req := &ledgerv1.BatchAppendRequest{Events: make([]*ledgerv1.Event, len(events))}
	for i, e := range events {
		if err := e.Validate(); err != nil {
			return nil, fmt.Errorf("append batch: events[%d].%w", i, err)
		}
		req.Events[i] = eventpb.FromEvent(e)
	}
	st, err := c.log(ctx, log)
	if err != nil {
		return nil, unsent(err)
	}
	req.Log = st.name
	before := st.seen()
	resp, err := write(ctx, c, "append batch", c.rpc.BatchAppend, req)
	if err != nil {
		return nil, err
	}
	p, err := c.open(st, resp.GetCheckpoint())
	if err != nil {
		return nil, err
	}
	if resp.GetTreeSize() != p.size {
		return nil, untrusted(st.name, "append batch: tree size %d, the checkpoint has %d", resp.GetTreeSize(), p.size)
	}
	b, from, err := verifyBatch(st, events, resp)
	if err != nil {
		return nil, untrusted(st.name, "append batch: %w", err)
	}
	b.TreeSize, b.Checkpoint = p.size, p.note
	if err := c.settle(ctx, st, before, p, from); err != nil {
		return nil, err
	}
	return b, nil
}

// verifyBatch checks that every leaf is in the tree and says what was sent. It also returns the tree that stood before the last run, which
// is where new events are.
func verifyBatch(st *logState, events []*lineage.Event, resp *ledgerv1.BatchAppendResponse) (*Batch, prefix, error) {
	b := &Batch{events: events, results: resp.GetResults()}
	if len(b.results) != len(events) || len(events) == 0 {
		return nil, prefix{}, fmt.Errorf("%d results for %d events", len(b.results), len(events))
	}
	proof := &receipt.Batch{Entries: make([]receipt.BatchEntry, len(b.results)), Checkpoint: resp.GetCheckpoint()}
	var keys []lineage.Key
	for i, r := range b.results {
		var err error
		if keys, err = toKeys(keys[:0], r.GetBodyKeys()); err == nil {
			err = lineage.CheckRecorded(events[i], r.GetLeaf(), keys, nil)
		}
		if err != nil {
			return nil, prefix{}, fmt.Errorf("event %d: %w", i, err)
		}
		proof.Entries[i] = receipt.BatchEntry{Index: r.GetIndex(), Leaf: r.GetLeaf()}
	}
	var from prefix
	for _, m := range resp.GetRuns() {
		r := receipt.Run{First: m.GetFirstIndex(), Count: m.GetCount()}
		var err error
		if r.Left, err = toHashes(m.GetLeft()); err == nil {
			r.Right, err = toHashes(m.GetRight())
		}
		if err != nil {
			return nil, prefix{}, err
		}
		proof.Runs = append(proof.Runs, r)
		from = prefixOf(r.First, r.Left)
	}
	var err error
	b.proof, err = receipt.FromBatch(proof, st.policy)
	return b, from, err
}

func toKeys(keys []lineage.Key, list [][]byte) ([]lineage.Key, error) {
	for _, k := range list {
		if len(k) != len(lineage.Key{}) {
			return nil, fmt.Errorf("body key of %d bytes", len(k))
		}
		keys = append(keys, lineage.Key(k))
	}
	return keys, nil
}

// toHashes converts the hashes of a proof.
func toHashes(list [][]byte) ([]merkle.Hash, error) {
	hashes := make([]merkle.Hash, len(list))
	for i, h := range list {
		if len(h) != merkle.HashSize {
			return nil, fmt.Errorf("%w: hash of %d bytes", merkle.ErrProof, len(h))
		}
		hashes[i] = merkle.Hash(h)
	}
	return hashes, nil
}
