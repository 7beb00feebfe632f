package cluster

import (
	"context"
	"fmt"

	"github.com/provledger/provledger/internal/consensus"
	"github.com/provledger/provledger/internal/peerapi"
)

// Replace puts the running node at an address in the place of a dead member: the new node is added and catches up, the dead one is removed,
// the new one gets its vote. With the dead one's address, the dead one goes first. progress is told of each step. What has been done stays
// when it is broken off, and doing it again goes on there. It is refused while the dead one answers, unless forced.
func (c *Controller) Replace(ctx context.Context, id, address string, force bool, progress func(string)) error {
	if progress == nil {
		progress = func(string) {}
	}
	r := replacement{c: c, dead: id, address: address, force: force, progress: progress}
	for _, step := range []func(context.Context) error{r.begin, r.add, r.await, r.removeDead, r.promote} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// replacement is a Replace under way.
type replacement struct {
	c             *Controller
	dead, address string
	force         bool
	progress      func(string)

	voter bool             // what the dead one is, or was
	node  consensus.Server // the new one
}

func (r *replacement) say(format string, args ...any) { r.progress(fmt.Sprintf(format, args...)) }

// begin finds out what the dead one is, and removes it first if the new one is to have its address.
func (r *replacement) begin(ctx context.Context) error {
	return r.c.change(ctx, func(m membership) error {
		old := m.find(r.dead)
		if old == nil {
			was, ok, err := r.c.was(r.dead)
			if err != nil {
				return err
			}
			if !ok {
				return noMember(m, r.dead)
			}
			r.voter = was.Voter
			r.say("node %s is removed already", r.dead)
			return nil
		}
		r.voter = old.Voter
		if r.dead == r.c.o.NodeID {
			return refused("node %s leads, so it is not dead", r.dead)
		}
		if err := r.checkDead(ctx, old); err != nil {
			return err
		}
		if old.Address != r.address {
			return nil
		}
		// Nothing is removed for a node that is not there, or that could not be added.
		st, err := r.c.meet(ctx, r.address)
		if err != nil {
			return err
		}
		without := membership{index: m.index}
		for _, s := range m.servers {
			if s.ID != r.dead {
				without.servers = append(without.servers, s)
			}
		}
		if err := r.c.checkCandidate(without, candidate{st, r.address, r.voter, r.dead}); err != nil {
			return err
		}
		r.say("removing node %s, whose address the new node has", r.dead)
		return r.c.remove(ctx, m, r.dead, r.force)
	})
}

// checkDead refuses to replace a node that is alive.
func (r *replacement) checkDead(ctx context.Context, old *consensus.Server) error {
	st, err := r.c.dial(ctx, old.ID, old.Address)
	if err != nil || st.NodeID.String() != old.ID || r.force {
		return nil
	}
	return refused("node %s answers at %s and is %s: it is not dead; remove it if it is to go, or use --force", old.ID, old.Address, st.State)
}

// add makes the new node a non-voter. It is not to vote before the dead one is gone, so no wish is recorded.
func (r *replacement) add(ctx context.Context) error {
	return r.c.change(ctx, func(m membership) error {
		if s := m.at(r.address); s != nil && s.ID != r.dead {
			r.node = *s
			r.say("node %s at %s is a member already", s.ID, s.Address)
			return nil
		}
		st, err := r.c.meet(ctx, r.address)
		if err != nil {
			return err
		}
		if st.NodeID.String() == r.dead {
			return refused("node %s itself answers at %s", r.dead, r.address)
		}
		if err := r.c.admit(ctx, m, candidate{st, r.address, false, r.dead}); err != nil {
			return err
		}
		r.node = consensus.Server{ID: st.NodeID.String(), Address: r.address}
		r.say("node %s at %s is added as a non-voter", r.node.ID, r.address)
		return nil
	})
}

// await returns when the new node has caught up.
func (r *replacement) await(ctx context.Context) error {
	if r.node.Voter {
		return nil
	}
	last := ""
	for !r.c.caughtUp(r.node.ID) {
		if !r.c.o.Raft.IsLeader() {
			return r.c.notLeader()
		}
		if r.c.membership().find(r.node.ID) == nil {
			return refused("node %s was removed meanwhile", r.node.ID)
		}
		if text := r.lag(ctx); text != last {
			last = text
			r.say("waiting for node %s to catch up: %s", r.node.ID, text)
		}
		if err := r.c.nextLook(ctx); err != nil {
			return refused("node %s has not caught up yet (%s); do this again to go on: %w", r.node.ID, last, err)
		}
	}
	r.say("node %s has caught up", r.node.ID)
	return nil
}

func (r *replacement) lag(ctx context.Context) string {
	st, err := r.c.dial(ctx, r.node.ID, r.node.Address)
	if err != nil {
		return "it does not answer"
	}
	if st.State == peerapi.StateQuarantined {
		return "it is quarantined: " + st.Quarantine
	}
	own := r.c.o.Self(ctx).Applied
	if st.Applied >= own {
		return "it has everything, and has to keep up for a moment"
	}
	return fmt.Sprintf("%d raft entries to go", own-st.Applied)
}

func (r *replacement) removeDead(ctx context.Context) error {
	return r.c.change(ctx, func(m membership) error {
		old := m.find(r.dead)
		if old == nil {
			return nil
		}
		if err := r.checkDead(ctx, old); err != nil {
			return err
		}
		if err := r.c.remove(ctx, m, r.dead, r.force); err != nil {
			return err
		}
		r.say("node %s is removed", r.dead)
		return nil
	})
}

func (r *replacement) promote(ctx context.Context) error {
	if !r.voter {
		r.say("node %s stays a non-voter, as node %s was", r.node.ID, r.dead)
		return nil
	}
	return r.c.change(ctx, func(m membership) error {
		s := m.find(r.node.ID)
		if s == nil {
			return refused("node %s was removed meanwhile", r.node.ID)
		}
		if !s.Voter {
			if err := r.c.promote(ctx, m, *s, r.dead); err != nil {
				return err
			}
		}
		r.say("node %s votes in the place of node %s", r.node.ID, r.dead)
		return nil
	})
}
