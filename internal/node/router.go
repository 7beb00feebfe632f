package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc"

	"github.com/provledger/provledger/internal/consensus"
	"github.com/provledger/provledger/internal/sequencer"
)

// routePoll bounds how long a call that waits for a leader may miss one: raft may be restarted meanwhile, after a catch-up.
const routePoll = 50 * time.Millisecond

// router is where calls go, as rpc sees it.
type router struct{ n *Node }

// Leader waits until a leader is known. local says that it is this node; else cc leads there. hint is the leader's address for clients,
// empty when not known.
func (r router) Leader(ctx context.Context) (local bool, cc grpc.ClientConnInterface, hint string, err error) {
	for {
		c := r.n.raft()
		changed := c.LeaderChanged()
		switch id := c.Leader(); {
		case id == r.n.dir.NodeID.String() && c.IsLeader():
			return true, nil, r.n.apiAddress(), nil
		case id != "" && id != r.n.dir.NodeID.String():
			if conn, err := r.n.peers.conn(id); err == nil {
				return false, conn, r.n.hints.get(id), nil
			}
		}
		t := time.NewTimer(routePoll)
		select {
		case <-changed:
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return false, nil, "", fmt.Errorf("%w: there is no leader: %w", sequencer.ErrNotApplied, context.Cause(ctx))
		}
		t.Stop()
	}
}

// ReadIndex returns a raft index at or above everything that was acknowledged before the call, by whichever leader.
func (r router) ReadIndex(ctx context.Context) (uint64, error) {
	for {
		index, err := r.readIndex(ctx)
		if err == nil || ctx.Err() != nil {
			return index, err
		}
		// The leader has changed under the question, or did not answer: ask again, within the caller's deadline.
		if perr := pause(ctx, routePoll); perr != nil {
			return 0, fmt.Errorf("%w: %w", sequencer.ErrNotApplied, errors.Join(perr, err))
		}
	}
}

func (r router) readIndex(ctx context.Context) (uint64, error) {
	local, _, _, err := r.Leader(ctx)
	if err != nil {
		return 0, err
	}
	if local {
		return r.n.raft().ReadIndex(ctx)
	}
	client, err := r.n.peers.client(r.n.raft().Leader())
	if err != nil {
		return 0, err
	}
	return client.ReadIndex(ctx)
}

// WaitApplied returns when this node has applied everything up to index.
func (r router) WaitApplied(ctx context.Context, index uint64) error {
	for {
		c := r.n.raft()
		err := c.WaitDelivered(ctx, index)
		if err == nil || ctx.Err() != nil || c == r.n.raft() && !errors.Is(err, consensus.ErrClosed) {
			return err
		}
		if err := pause(ctx, routePoll); err != nil { // raft is being restarted
			return err
		}
	}
}

// term asks a voter for its current term, for the read fence.
func (n *Node) term(ctx context.Context, id string) (uint64, error) {
	client, err := n.peers.client(id)
	if err != nil {
		return 0, err
	}
	return client.Term(ctx)
}

// addressOf is where the membership has a node.
func (n *Node) addressOf(id string) (string, bool) {
	c := n.consensus.Load()
	if c == nil {
		return "", false
	}
	servers, _ := c.Servers()
	i := slices.IndexFunc(servers, func(s consensus.Server) bool { return s.ID == id })
	if i < 0 {
		return "", false
	}
	return servers[i].Address, true
}
