package rpc

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/provledger/provledger/client/eventpb"
	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/checkpoint"
	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/merkle"
	"github.com/provledger/provledger/internal/sequencer"
	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

// Append implements the method of the service.
func (s *Service) Append(ctx context.Context, r *ledgerv1.AppendRequest) (*ledgerv1.AppendResponse, error) {
	resp, _, err := lead(ctx, s, leading[*ledgerv1.AppendResponse]{
		again: true, // under the same event id: it has one answer
		local: func(ctx context.Context) (*ledgerv1.AppendResponse, error) {
			return hereKnown(ctx, s, r, (*Backend).appendOne)
		},
		remote: there[ledgerv1.AppendResponse](ledgerv1.LedgerService_Append_FullMethodName, r),
	})
	return resp, err
}

// BatchAppend implements the method of the service.
func (s *Service) BatchAppend(ctx context.Context, r *ledgerv1.BatchAppendRequest) (*ledgerv1.BatchAppendResponse, error) {
	resp, _, err := lead(ctx, s, leading[*ledgerv1.BatchAppendResponse]{
		again: true,
		local: func(ctx context.Context) (*ledgerv1.BatchAppendResponse, error) {
			return hereKnown(ctx, s, r, (*Backend).appendBatch)
		},
		remote: there[ledgerv1.BatchAppendResponse](ledgerv1.LedgerService_BatchAppend_FullMethodName, r),
	})
	return resp, err
}

// caller is who makes a call, and how that is known.
type caller struct {
	principal string
	authn     lineage.Authn
}

// here makes a change on this node.
func here[Q, R any](ctx context.Context, s *Service, r Q, f func(*Backend, context.Context, caller, Q) (R, error)) (resp R, err error) {
	b, ctx, release, err := s.held.acquire(ctx, callUnary)
	if err != nil {
		return resp, err
	}
	defer release()
	var who caller
	if who.principal, who.authn, err = s.o.Identify(ctx); err != nil {
		return resp, err
	}
	return f(b, ctx, who, r)
}

// hereKnown is here for a change to a log that should exist. A node that has just come to lead may not have applied yet that it was created.
func hereKnown[Q, R any](ctx context.Context, s *Service, r Q, f func(*Backend, context.Context, caller, Q) (R, error)) (R, error) {
	resp, err := here(ctx, s, r, f)
	if errors.Is(err, ledger.ErrNotFound) && s.o.Router != nil {
		if err := s.fence(ctx); err != nil {
			return resp, err
		}
		return here(ctx, s, r, f)
	}
	return resp, err
}

// there makes a change on another node.
func there[R any, P interface {
	*R
	proto.Message
}](method string, r proto.Message) func(context.Context, grpc.ClientConnInterface) (P, error) {
	return func(ctx context.Context, cc grpc.ClientConnInterface) (P, error) {
		return forward[R, P](ctx, cc, method, r)
	}
}

func (b *Backend) appendOne(ctx context.Context, who caller, r *ledgerv1.AppendRequest) (*ledgerv1.AppendResponse, error) {
	if r.GetEvent() == nil {
		return nil, invalid("event", "is required")
	}
	out, err := b.append(ctx, who, r.GetLog(), []*ledgerv1.Event{r.GetEvent()}, proto.Size(r))
	if err != nil {
		return nil, err
	}
	e := &out.Recorded[0]
	size := out.Tree.Head().Size
	hashes, err := merkle.ProveInclusion(e.Index, size, out.Tree)
	if err != nil {
		return nil, unproven(err)
	}
	note, err := b.checkpointOf(out.Tree)
	if err != nil {
		return nil, unproven(err)
	}
	return &ledgerv1.AppendResponse{
		Index: e.Index, LeafHash: e.LeafHash[:], TreeSize: size, Duplicate: e.Duplicate,
		Receipt: &ledgerv1.Receipt{
			Leaf: e.Leaf, BodyState: ledgerv1.BodyState_BODY_STATE_OPENED, Body: eventpb.FromParts(e.Body),
			Proof: checkpoint.TlogProof{Index: e.Index, Hashes: hashes, Checkpoint: note}.Text(),
		},
	}, nil
}

func (b *Backend) appendBatch(ctx context.Context, who caller, r *ledgerv1.BatchAppendRequest) (*ledgerv1.BatchAppendResponse, error) {
	out, err := b.append(ctx, who, r.GetLog(), r.GetEvents(), proto.Size(r))
	if err != nil {
		return nil, err
	}
	resp := &ledgerv1.BatchAppendResponse{Results: make([]*ledgerv1.AppendResult, len(out.Recorded)), TreeSize: out.Tree.Head().Size}
	results := make([]ledgerv1.AppendResult, len(out.Recorded))
	for i := range out.Recorded {
		e := &out.Recorded[i]
		results[i].Index, results[i].Leaf, results[i].Duplicate = e.Index, e.Leaf, e.Duplicate
		results[i].BodyKeys = make([][]byte, len(e.Body))
		for j := range e.Body {
			results[i].BodyKeys[j] = e.Body[j].Key[:]
		}
		resp.Results[i] = &results[i]
	}
	if resp.Runs, err = proveRuns(out); err != nil {
		return nil, unproven(err)
	}
	if resp.Checkpoint, err = b.checkpointOf(out.Tree); err != nil {
		return nil, unproven(err)
	}
	return resp, nil
}

// unproven says that the events are recorded and no receipt could be made. To the caller that is an unknown outcome: sending them again
// under the same ids tells.
func unproven(err error) error {
	return fmt.Errorf("%w: %w: %w", sequencer.ErrUnknown, errUnproven, err)
}

var errUnproven = errors.New("recorded, but no receipt can be given")

func (b *Backend) append(ctx context.Context, who caller, log string, messages []*ledgerv1.Event, size int) (*sequencer.Result, error) {
	if n := len(messages); n == 0 || n > ledger.MaxCommandEntries {
		return nil, invalid("events", fmt.Sprintf("%d; a request has 1 to %d", n, ledger.MaxCommandEntries))
	}
	g, err := b.Ledger.LogByName(log)
	if err != nil {
		return nil, err
	}
	if g.Number == ledger.SystemLog {
		return nil, invalid("log", "the system log is written by the ledger itself")
	}
	if b.Ledger.Frozen(g) {
		return nil, invalid("log", "it is of the ledger that this one succeeded, and frozen; append to its successor")
	}
	events := make([]*lineage.Event, len(messages))
	for i, m := range messages {
		if events[i], err = eventpb.ToEvent(m); err != nil {
			return nil, within(i, len(messages), err)
		}
	}
	out, err := b.Appender.Append(ctx, sequencer.Request{Log: g.Number, Events: events, Principal: who.principal, Authn: who.authn, Size: size})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// proveRuns makes one proof for each run of consecutive indexes: a resent batch mixes old and new events.
func proveRuns(out *sequencer.Result) ([]*ledgerv1.RunProof, error) {
	indexes := make([]uint64, len(out.Recorded))
	for i := range out.Recorded {
		indexes[i] = out.Recorded[i].Index
	}
	slices.Sort(indexes)
	indexes = slices.Compact(indexes)
	var runs []*ledgerv1.RunProof
	size := out.Tree.Head().Size
	for i := 0; i < len(indexes); {
		j := i + 1
		for j < len(indexes) && indexes[j] == indexes[j-1]+1 {
			j++
		}
		p, err := merkle.ProveRange(indexes[i], indexes[j-1]+1, size, out.Tree)
		if err != nil {
			return nil, err
		}
		runs = append(runs, &ledgerv1.RunProof{FirstIndex: indexes[i], Count: uint64(j - i), Left: hashBytes(p.Left), Right: hashBytes(p.Right)})
		i = j
	}
	return runs, nil
}

func hashBytes(hashes []merkle.Hash) [][]byte {
	b := make([][]byte, len(hashes))
	for i := range hashes {
		b[i] = hashes[i][:]
	}
	return b
}
