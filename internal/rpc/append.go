package rpc

import (
	"context"
	"fmt"
	"slices"

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
	if r.GetEvent() == nil {
		return nil, invalid("event", "is required")
	}
	out, err := s.append(ctx, r.GetLog(), []*ledgerv1.Event{r.GetEvent()}, proto.Size(r))
	if err != nil {
		return nil, err
	}
	e := &out.Recorded[0]
	size := out.Tree.Head().Size
	hashes, err := merkle.ProveInclusion(e.Index, size, out.Tree)
	if err != nil {
		return nil, unproven(err)
	}
	note, err := s.checkpointOf(out.Tree)
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

// BatchAppend implements the method of the service.
func (s *Service) BatchAppend(ctx context.Context, r *ledgerv1.BatchAppendRequest) (*ledgerv1.BatchAppendResponse, error) {
	out, err := s.append(ctx, r.GetLog(), r.GetEvents(), proto.Size(r))
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
	if resp.Checkpoint, err = s.checkpointOf(out.Tree); err != nil {
		return nil, unproven(err)
	}
	return resp, nil
}

// unproven says that the events are recorded and no receipt could be made. To the caller that is an unknown outcome: sending them again
// under the same ids tells.
func unproven(err error) error {
	return fmt.Errorf("%w: recorded, but no receipt can be given: %w", sequencer.ErrUnknown, err)
}

func (s *Service) append(ctx context.Context, log string, messages []*ledgerv1.Event, size int) (*sequencer.Result, error) {
	if n := len(messages); n == 0 || n > ledger.MaxCommandEntries {
		return nil, invalid("events", fmt.Sprintf("%d; a request has 1 to %d", n, ledger.MaxCommandEntries))
	}
	g, err := s.o.Ledger.LogByName(log)
	if err != nil {
		return nil, err
	}
	if g.Number == ledger.SystemLog {
		return nil, invalid("log", "the system log is written by the ledger itself")
	}
	principal, authn, err := s.o.Identify(ctx)
	if err != nil {
		return nil, err
	}
	events := make([]*lineage.Event, len(messages))
	for i, m := range messages {
		if events[i], err = eventpb.ToEvent(m); err != nil {
			return nil, within(i, len(messages), err)
		}
	}
	out, err := s.o.Appender.Append(ctx, sequencer.Request{Log: g.Number, Events: events, Principal: principal, Authn: authn, Size: size})
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
