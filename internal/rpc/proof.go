package rpc

import (
	"context"
	"fmt"

	"github.com/provledger/provledger/client/eventpb"
	"github.com/provledger/provledger/internal/checkpoint"
	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/merkle"
	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

// receipt proves a stored entry, read with its body, in a tree.
func (b *Backend) receipt(e *ledger.Entry, t *ledger.Tree, skipBody bool) (*ledgerv1.Receipt, error) {
	hashes, err := merkle.ProveInclusion(e.Index, t.Head().Size, t)
	if err != nil {
		return nil, err
	}
	note, err := b.checkpointOf(t)
	if err != nil {
		return nil, err
	}
	m := &ledgerv1.Receipt{
		Leaf: e.Leaf, BodyState: ledgerv1.BodyState_BODY_STATE_OPENED,
		Proof: checkpoint.TlogProof{Index: e.Index, Hashes: hashes, Checkpoint: note}.Text(),
	}
	switch {
	case e.Erased:
		m.BodyState = ledgerv1.BodyState_BODY_STATE_ERASED
	case skipBody && len(e.Body) > 0: // there is nothing to withhold of an entry without a body
		m.BodyState = ledgerv1.BodyState_BODY_STATE_WITHHELD
	default:
		m.Body = eventpb.FromParts(e.Body)
	}
	return m, nil
}

// sizeOrCurrent checks a tree size of a request; 0 means the current one.
func sizeOrCurrent(field string, size, current uint64) (uint64, error) {
	if size == 0 {
		return current, nil
	}
	if size > current {
		return 0, beyond(field, size, current)
	}
	return size, nil
}

// signedAt returns the root of a tree at a size, and the signed note over it.
func (b *Backend) signedAt(g ledger.Log, t *ledger.Tree, size uint64) (root merkle.Hash, note []byte, err error) {
	if root, err = t.RootAt(size); err != nil {
		return root, nil, err
	}
	note, err = b.Checkpoints.Checkpoint(g.Origin, size, root)
	return root, note, err
}

func (b *Backend) getInclusionProof(ctx context.Context, r *ledgerv1.GetInclusionProofRequest) (*ledgerv1.GetInclusionProofResponse, error) {
	g, t, err := b.tree(r.GetLog())
	if err != nil {
		return nil, err
	}
	size, err := sizeOrCurrent("tree_size", r.GetTreeSize(), t.Head().Size)
	if err != nil {
		return nil, err
	}
	index, err := b.selected(ctx, g.Number, r.GetEntry())
	if err != nil {
		return nil, err
	}
	if index >= size {
		return nil, fmt.Errorf("entry %d at tree size %d: %w", index, size, ledger.ErrNotFound)
	}
	hashes, err := merkle.ProveInclusion(index, size, t)
	if err != nil {
		return nil, err
	}
	root, note, err := b.signedAt(g, t, size)
	if err != nil {
		return nil, err
	}
	leaf, err := leafHash(index, t)
	if err != nil {
		return nil, err
	}
	return &ledgerv1.GetInclusionProofResponse{
		Index: index, TreeSize: size, LeafHash: leaf[:], RootHash: root[:], Hashes: hashBytes(hashes), Checkpoint: note,
	}, nil
}

// leafHash reads a leaf hash from its tile.
func leafHash(index uint64, t *ledger.Tree) (merkle.Hash, error) {
	at := int(index % merkle.TileWidth)
	tile, err := t.ReadTile(merkle.TileID{Index: index / merkle.TileWidth}, at+1)
	if err != nil {
		return merkle.Hash{}, err
	}
	return tile[at], nil
}

func (b *Backend) getConsistencyProof(_ context.Context, r *ledgerv1.GetConsistencyProofRequest) (*ledgerv1.GetConsistencyProofResponse, error) {
	g, t, err := b.tree(r.GetLog())
	if err != nil {
		return nil, err
	}
	second, err := sizeOrCurrent("second_size", r.GetSecondSize(), t.Head().Size)
	if err != nil {
		return nil, err
	}
	if current := t.Head().Size; r.GetFirstSize() > current {
		return nil, beyond("first_size", r.GetFirstSize(), current)
	}
	if r.GetFirstSize() > second {
		return nil, invalid("first_size", fmt.Sprintf("%d is larger than the second size %d", r.GetFirstSize(), second))
	}
	hashes, err := merkle.ProveConsistency(r.GetFirstSize(), second, t)
	if err != nil {
		return nil, err
	}
	_, note, err := b.signedAt(g, t, second)
	if err != nil {
		return nil, err
	}
	return &ledgerv1.GetConsistencyProofResponse{FirstSize: r.GetFirstSize(), SecondSize: second, Hashes: hashBytes(hashes), Checkpoint: note}, nil
}

func (b *Backend) getCheckpoint(_ context.Context, r *ledgerv1.GetCheckpointRequest) (*ledgerv1.GetCheckpointResponse, error) {
	_, t, err := b.tree(r.GetLog())
	if err != nil {
		return nil, err
	}
	note, err := b.checkpointOf(t)
	if err != nil {
		return nil, err
	}
	return &ledgerv1.GetCheckpointResponse{Checkpoint: note, TreeSize: t.Head().Size}, nil
}
