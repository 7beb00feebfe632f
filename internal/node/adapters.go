package node

import (
	"context"
	"errors"
	"fmt"

	"github.com/provledger/provledger/internal/consensus"
	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/sequencer"
)

// machine is the ledger as consensus sees it: neither knows the other.
type machine struct{ l *ledger.Ledger }

func (m machine) Apply(entries []consensus.Entry) []any {
	batch := make([]ledger.LogEntry, len(entries))
	for i, e := range entries {
		batch[i] = ledger.LogEntry(e)
	}
	return m.l.Apply(batch)
}

func (m machine) Durable() (consensus.Position, error) {
	p, err := m.l.Durable()
	return consensus.Position(p), err
}

func (m machine) Flush(ctx context.Context, index uint64) error { return m.l.Flush(ctx, index) }

// proposer is consensus as the sequencer sees it.
// A catch-up replaces the instance.
type proposer struct{ n *Node }

func (p proposer) Propose(command []byte) sequencer.Proposal {
	return proposal{p.n.raft().Propose(command)}
}
func (p proposer) Barrier(ctx context.Context) error { return p.n.raft().Barrier(ctx) }
func (p proposer) Term() uint64                      { return p.n.raft().Term() }
func (p proposer) StepDown() error                   { return p.n.raft().StepDown() }

type proposal struct{ p *consensus.Proposal }

// Wait translates the two classes of errors; everything that is not certainly out is unknown.
func (p proposal) Wait(ctx context.Context) (any, error) {
	result, _, err := p.p.Wait(ctx)
	switch {
	case err == nil:
		return result, nil
	case errors.Is(err, consensus.ErrNotApplied):
		return nil, fmt.Errorf("%w: %w", sequencer.ErrNotApplied, err)
	}
	return nil, fmt.Errorf("%w: %w", sequencer.ErrUnknown, err)
}
