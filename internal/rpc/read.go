package rpc

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"

	"google.golang.org/grpc"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/merkle"
	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

func (b *Backend) getEntry(ctx context.Context, r *ledgerv1.GetEntryRequest) (*ledgerv1.GetEntryResponse, error) {
	g, t, err := b.tree(r.GetLog())
	if err != nil {
		return nil, err
	}
	index, err := b.selected(ctx, g.Number, r.GetEntry())
	if err != nil {
		return nil, err
	}
	e, err := b.Ledger.Entry(g.Number, index, true)
	if err != nil {
		return nil, err
	}
	size := max(t.Head().Size, index+1) // it may have been recorded after the tree was taken
	return &ledgerv1.GetEntryResponse{Entry: entryMessage(&e, r.GetSkipBody()), TreeSize: size}, nil
}

// selected resolves an entry selector to an index.
func (b *Backend) selected(ctx context.Context, log uint32, sel *ledgerv1.EntrySelector) (uint64, error) {
	switch by := sel.GetBy().(type) {
	case *ledgerv1.EntrySelector_Index:
		return by.Index, nil
	case *ledgerv1.EntrySelector_LeafHash:
		if len(by.LeafHash) != merkle.HashSize {
			return 0, invalid("entry.leaf_hash", fmt.Sprintf("has %d bytes, not %d", len(by.LeafHash), merkle.HashSize))
		}
		return b.Finder.ByLeafHash(ctx, log, merkle.Hash(by.LeafHash))
	case *ledgerv1.EntrySelector_EventId:
		id, err := lineage.ParseID(by.EventId)
		if err != nil {
			return 0, invalid("entry.event_id", err.Error())
		}
		indexes, err := b.Ledger.ByEventID(log, id)
		if err != nil {
			return 0, err
		}
		if len(indexes) == 0 {
			return 0, fmt.Errorf("event id %s: %w", id, ledger.ErrNotFound)
		}
		return indexes[0], nil
	}
	return 0, invalid("entry", "one of index, leaf_hash, event_id is required")
}

// entryMessage copies what e has, so that the message may outlive the store's memory.
func entryMessage(e *ledger.Entry, skipBody bool) *ledgerv1.Entry {
	m := &ledgerv1.Entry{Index: e.Index, Leaf: append([]byte(nil), e.Leaf...)}
	switch {
	case e.Erased:
		m.BodyState = ledgerv1.BodyState_BODY_STATE_ERASED
	case skipBody:
		m.BodyState = ledgerv1.BodyState_BODY_STATE_WITHHELD
	default:
		m.BodyState = ledgerv1.BodyState_BODY_STATE_OPENED
		for i := range e.Body {
			p := &e.Body[i]
			m.Body = append(m.Body, &ledgerv1.BodyPart{Part: uint32(p.Kind), Key: append([]byte(nil), p.Key[:]...), Content: append([]byte(nil), p.Content...)})
		}
	}
	return m
}

func messageBytes(m *ledgerv1.Entry) int {
	n := len(m.Leaf) + 32
	for _, p := range m.Body {
		n += len(p.Content) + 48
	}
	return n
}

// errPageFull ends a walk; it never leaves the package.
var errPageFull = errors.New("page full")

// collector gathers a page.
type collector struct {
	entries  []*ledgerv1.Entry
	most     int
	bytes    int
	skipBody bool
	next     uint64 // index after the last entry taken
}

func (c *collector) add(e *ledger.Entry) error {
	m := entryMessage(e, c.skipBody)
	n := messageBytes(m)
	if len(c.entries) > 0 && (len(c.entries) == c.most || c.bytes+n > maxPageBytes) {
		return errPageFull
	}
	c.entries, c.bytes, c.next = append(c.entries, m), c.bytes+n, e.Index+1
	return nil
}

func (b *Backend) listEntries(_ context.Context, r *ledgerv1.ListEntriesRequest) (*ledgerv1.ListEntriesResponse, error) {
	g, t, err := b.tree(r.GetLog())
	if err != nil {
		return nil, err
	}
	size, err := pageSize(r.GetPageSize())
	if err != nil {
		return nil, err
	}
	at := position{kind: pageList, log: g.Number, next: r.GetFirstIndex(), size: t.Head().Size}
	if err := at.resume(r.GetPageToken(), t.Head().Size); err != nil {
		return nil, err
	}
	c := collector{most: size, skipBody: r.GetSkipBody(), next: at.next}
	if at.next < at.size {
		err = b.Ledger.Entries(g.Number, at.next, at.size, !r.GetSkipBody(), c.add)
		if err != nil && !errors.Is(err, errPageFull) {
			return nil, err
		}
	}
	resp := &ledgerv1.ListEntriesResponse{Entries: c.entries, TreeSize: at.size}
	if c.next < at.size {
		at.next = c.next
		resp.NextPageToken = at.token()
	}
	return resp, nil
}

func (b *Backend) streamEntries(ctx context.Context, r *ledgerv1.StreamEntriesRequest, stream grpc.ServerStreamingServer[ledgerv1.StreamEntriesResponse]) error {
	g, t, err := b.tree(r.GetLog())
	if err != nil {
		return err
	}
	size := t.Head().Size
	end := r.GetEndIndex()
	if end == 0 {
		end = size
	}
	if end > size {
		return beyond("end_index", end, size)
	}
	if r.GetFirstIndex() > end {
		return invalid("first_index", fmt.Sprintf("%d is after the end %d", r.GetFirstIndex(), end))
	}
	return b.sendRange(ctx, g.Number, r.GetFirstIndex(), end, r.GetSkipBody(), func(entries []*ledgerv1.Entry) error {
		return stream.Send(&ledgerv1.StreamEntriesResponse{Entries: entries, TreeSize: size})
	})
}

// sendRange sends [first, end) in messages of bounded size. Each message is read by a walk of its own, so that a slow receiver does not
// hold the store's iterators.
func (b *Backend) sendRange(ctx context.Context, log uint32, first, end uint64, skipBody bool, send func([]*ledgerv1.Entry) error) error {
	for first < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		c := collector{most: maxPage, skipBody: skipBody, next: first}
		if err := b.Ledger.Entries(log, first, end, !skipBody, c.add); err != nil && !errors.Is(err, errPageFull) {
			return err
		}
		if err := send(c.entries); err != nil {
			return err
		}
		first = c.next
	}
	return nil
}

func (b *Backend) watch(ctx context.Context, r *ledgerv1.WatchRequest, stream grpc.ServerStreamingServer[ledgerv1.WatchResponse]) error {
	first := r.GetFirstIndex()
	for {
		g, t, err := b.tree(r.GetLog())
		if err != nil {
			return err
		}
		size := t.Head().Size
		if first < size {
			note, err := b.checkpointOf(t)
			if err != nil {
				return err
			}
			err = b.sendRange(ctx, g.Number, first, size, r.GetSkipBody(), func(entries []*ledgerv1.Entry) error {
				return stream.Send(&ledgerv1.WatchResponse{Entries: entries, Checkpoint: note, TreeSize: size})
			})
			if err != nil {
				return err
			}
			first = size
		}
		if err := b.Ledger.WaitSize(ctx, g.Number, first+1); err != nil {
			return err
		}
	}
}

func (b *Backend) findEntries(ctx context.Context, r *ledgerv1.FindEntriesRequest) (*ledgerv1.FindEntriesResponse, error) {
	g, t, err := b.tree(r.GetLog())
	if err != nil {
		return nil, err
	}
	q, err := query(r)
	if err != nil {
		return nil, err
	}
	size, err := pageSize(r.GetPageSize())
	if err != nil {
		return nil, err
	}
	at := position{kind: pageFind, log: g.Number, query: fingerprint(r), next: r.GetFirstIndex(), size: t.Head().Size}
	if err := at.resume(r.GetPageToken(), t.Head().Size); err != nil {
		return nil, err
	}
	end := min(at.size, at.next+maxScan)
	c := collector{most: size, skipBody: r.GetSkipBody(), next: at.next}
	if at.next < end {
		switch err := b.Finder.Find(ctx, g.Number, q, at.next, end, c.add); {
		case errors.Is(err, errPageFull):
			end = c.next
		case err != nil:
			return nil, err
		}
	}
	resp := &ledgerv1.FindEntriesResponse{Entries: c.entries, TreeSize: at.size}
	if end < at.size {
		at.next = end
		resp.NextPageToken = at.token()
	}
	return resp, nil
}

// fingerprint binds a page token to what was looked for.
func fingerprint(r *ledgerv1.FindEntriesRequest) uint64 {
	h := fnv.New64a()
	list := func(texts ...string) {
		for _, t := range texts {
			fmt.Fprintf(h, "%d:%s", len(t), t)
		}
		fmt.Fprint(h, ";")
	}
	fmt.Fprint(h, r.GetPrefix(), r.GetMembers())
	list(r.GetDigests()...)
	for _, n := range r.GetNames() {
		list(n.GetNamespace(), n.GetName(), n.GetVersion())
	}
	list(r.GetRunIds()...)
	list(r.GetEventIds()...)
	return h.Sum64()
}

func query(r *ledgerv1.FindEntriesRequest) (q ledger.Query, err error) {
	n := len(r.GetDigests()) + len(r.GetNames()) + len(r.GetRunIds()) + len(r.GetEventIds())
	if n == 0 || n > maxKeys {
		return q, invalid("digests", fmt.Sprintf("%d keys in all; 1 to %d digests, names, run ids and event ids are required", n, maxKeys))
	}
	q.Members = r.GetMembers()
	for i, text := range r.GetDigests() {
		if r.GetPrefix() {
			p, err := digestPrefix(text)
			if err != nil {
				return q, invalid(fmt.Sprintf("digests[%d]", i), err.Error())
			}
			q.DigestPrefixes = append(q.DigestPrefixes, p)
			continue
		}
		d, err := lineage.ParseDigest(text)
		if err != nil {
			return q, invalid(fmt.Sprintf("digests[%d]", i), err.Error())
		}
		q.Digests = append(q.Digests, d)
	}
	for i, m := range r.GetNames() {
		n := lineage.Name{Namespace: m.GetNamespace(), Name: m.GetName(), Version: m.GetVersion()}
		if n.Name == "" || max(len(n.Namespace), len(n.Name), len(n.Version)) > lineage.MaxNameBytes {
			return q, invalid(fmt.Sprintf("names[%d]", i), fmt.Sprintf("a name is required, and each part has at most %d bytes", lineage.MaxNameBytes))
		}
		q.Names = append(q.Names, n)
	}
	if q.RunIDs, err = ids("run_ids", r.GetRunIds()); err != nil {
		return q, err
	}
	q.EventIDs, err = ids("event_ids", r.GetEventIds())
	return q, err
}

func ids(field string, texts []string) (out []lineage.ID, err error) {
	for i, text := range texts {
		id, err := lineage.ParseID(text)
		if err != nil {
			return nil, invalid(fmt.Sprintf("%s[%d]", field, i), err.Error())
		}
		out = append(out, id)
	}
	return out, nil
}

func (b *Backend) getReceipt(ctx context.Context, r *ledgerv1.GetReceiptRequest) (*ledgerv1.GetReceiptResponse, error) {
	g, t, err := b.tree(r.GetLog())
	if err != nil {
		return nil, err
	}
	index, err := b.selected(ctx, g.Number, r.GetEntry())
	if err != nil {
		return nil, err
	}
	e, err := b.Ledger.Entry(g.Number, index, true)
	if err != nil {
		return nil, err
	}
	if index >= t.Head().Size {
		// Recorded after the tree was taken.
		if t, err = b.Ledger.Tree(g.Number); err != nil {
			return nil, err
		}
	}
	rec, err := b.receipt(&e, t, r.GetSkipBody())
	if err != nil {
		return nil, err
	}
	return &ledgerv1.GetReceiptResponse{Index: index, TreeSize: t.Head().Size, Receipt: rec}, nil
}
