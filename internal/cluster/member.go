package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/consensus"
	"github.com/provledger/provledger/internal/peer"
	"github.com/provledger/provledger/internal/peerapi"
	"github.com/provledger/provledger/internal/sequencer"
)

// Add makes the running node at an address a member. It becomes a non-voter at once, and a voter, if it is to be one, once it has caught
// up. Adding it again changes nothing.
func (c *Controller) Add(ctx context.Context, address string, voter bool) (Member, error) {
	var out Member
	err := c.change(ctx, func(m membership) error {
		st, err := c.meet(ctx, address)
		if err != nil {
			return err
		}
		if err := c.admit(ctx, m, candidate{st, address, voter, ""}); err != nil {
			return err
		}
		out = c.memberOf(sight{Server: *c.membership().find(st.NodeID.String()), Status: st})
		return nil
	})
	return out, err
}

// meet asks the node at an address, whoever it is, that is to become a member.
func (c *Controller) meet(ctx context.Context, address string) (peerapi.Status, error) {
	st, err := c.dial(ctx, "", address)
	if err == nil || errors.Is(err, ErrRefused) {
		return st, err
	}
	if by, ok := errors.AsType[*peer.RefusedError](err); ok { // the peer port of another cluster's node lets nobody ask for a status
		if id := by.By.ClusterID; id != c.o.ClusterID && id != (lineage.ID{}) {
			return st, anotherCluster(address, id)
		}
		return st, refused("the node at %s refuses this one: %w", address, err)
	}
	return st, refused("nobody answers at %s; start the new node there, with an empty directory and --join, and do this again: %w", address, err)
}

func anotherCluster(address string, id lineage.ID) error {
	return refused("the node at %s belongs to another cluster, %s; only a node with an empty directory can join", address, id)
}

// dial asks the node at an address, which must be a HOST:PORT.
func (c *Controller) dial(ctx context.Context, id, address string) (peerapi.Status, error) {
	if err := checkAddress(address); err != nil {
		return peerapi.Status{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, 3*lookTimeout)
	defer cancel()
	st, err := c.o.Peers.Status(ctx, id, address)
	if err != nil {
		return st, fmt.Errorf("%w: %w", peerapi.ErrUnreachable, err)
	}
	return st, nil
}

func checkAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil || host == "" || port == "" || strings.ContainsAny(address, "@ ") {
		return refused("%q is no peer address; it needs the form HOST:PORT", address)
	}
	return nil
}

// candidate is a node that is to become a member.
type candidate struct {
	peerapi.Status
	address  string
	voter    bool
	replaces string // id of the member whose place it takes
}

// admit makes a candidate a non-voter, unless it is a member already.
func (c *Controller) admit(ctx context.Context, m membership, n candidate) error {
	id := n.NodeID.String()
	if err := c.checkCandidate(m, n); err != nil {
		return err
	}
	old := m.find(id)
	if old != nil && old.Address == n.address {
		if !old.Voter {
			return c.wish(ctx, *old, n.voter)
		}
		return nil
	}
	if old != nil {
		return c.move(ctx, m, *old, n)
	}
	if _, ok, err := c.was(id); err != nil {
		return err
	} else if ok {
		return refused("node %s was removed from this cluster and does not return under its id; start it with an empty directory, as a new node", id)
	}
	if err := c.prepare(ctx); err != nil {
		return err
	}
	if err := c.translate("add "+id, c.o.Raft.AddNonvoter(ctx, id, n.address, m.index)); err != nil {
		return err
	}
	c.setWish(id, n.voter)
	c.o.Logger.Info("node added", "node", id, "address", n.address, "to_vote", n.voter)
	c.record(ctx, Record{Action: actionAdded, NodeID: id, Address: n.address, Voter: n.voter, Replaces: n.replaces})
	return nil
}

// checkCandidate refuses who cannot be a member at this address.
func (c *Controller) checkCandidate(m membership, n candidate) error {
	id := n.NodeID.String()
	switch {
	case n.NodeID == (lineage.ID{}):
		return refused("the node at %s has no ledger directory yet; start it with --join and the address of a member", n.address)
	case n.ClusterID != c.o.ClusterID:
		if n.ClusterID == (lineage.ID{}) {
			return refused("the node at %s has not heard of this cluster yet; start it with --join and the address of a member", n.address)
		}
		return anotherCluster(n.address, n.ClusterID)
	case n.MaxCommand < c.o.History.CommandVersion():
		return refused("node %s at %s runs %s, which knows commands up to version %d; this cluster uses %d: upgrade it first", id, n.address,
			n.Version, n.MaxCommand, c.o.History.CommandVersion())
	}
	if other := m.at(n.address); other != nil && other.ID != id {
		return refused("%w: %s is that of %s, and %s is another node; if that member lost its directory, put the new node in its place: "+
			"ledgerctl cluster replace %s %s", peerapi.ErrAddressTaken, n.address, other.ID, id, other.ID, n.address)
	}
	return nil
}

// move gives a member another address, unless a copy of it runs at the old one.
func (c *Controller) move(ctx context.Context, m membership, old consensus.Server, n candidate) error {
	if st, err := c.dial(ctx, old.ID, old.Address); err == nil && st.NodeID == n.NodeID && st.BootID != n.BootID {
		return refused("node %s runs at %s and at %s: two processes have copies of one directory; stop one of them and start it with an empty directory",
			old.ID, old.Address, n.address)
	}
	if err := c.prepare(ctx); err != nil {
		return err
	}
	change := c.o.Raft.AddNonvoter
	if old.Voter {
		change = c.o.Raft.AddVoter
	}
	if err := c.translate("move "+old.ID, change(ctx, old.ID, n.address, m.index)); err != nil {
		return err
	}
	c.o.Logger.Info("node moved", "node", old.ID, "from", old.Address, "to", n.address)
	c.record(ctx, Record{Action: actionMoved, NodeID: old.ID, Address: n.address, Voter: old.Voter || c.wished(old.ID)})
	return nil
}

// wish says whether a non-voter is to vote once it has caught up, and has it recorded if that is new.
func (c *Controller) wish(ctx context.Context, s consensus.Server, voter bool) error {
	if c.wished(s.ID) == voter {
		return nil
	}
	if err := c.prepare(ctx); err != nil {
		return err
	}
	c.setWish(s.ID, voter)
	c.record(ctx, Record{Action: actionAdded, NodeID: s.ID, Address: s.Address, Voter: voter})
	return nil
}

func (c *Controller) setWish(id string, voter bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wishes[id] = voter
}

func (c *Controller) wished(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.wishes[id]
}

// Join answers a node that asks to be a member. Its certificate must be valid for the address that it claims, and it must answer there.
func (c *Controller) Join(ctx context.Context, r peer.Remote, q peerapi.JoinRequest) (peerapi.JoinReply, error) {
	reply := peerapi.JoinReply{ClusterID: c.o.ClusterID}
	if !c.o.Raft.IsLeader() {
		if s := c.membership().find(c.o.Raft.Leader()); s != nil && s.ID != c.o.NodeID {
			reply.Leader = s.Address
		}
		return reply, nil
	}
	if r.NodeID != q.NodeID {
		return reply, refused("node %s asks for node %s", r.NodeID, q.NodeID)
	}
	if r.ClusterID != c.o.ClusterID && r.ClusterID != (lineage.ID{}) {
		return reply, refused("node %s belongs to another cluster, %s", r.NodeID, r.ClusterID)
	}
	if err := checkAddress(q.Address); err != nil {
		return reply, err
	}
	if err := c.o.CheckName(r.Certificate, q.Address); err != nil {
		return reply, refused("the certificate of node %s is not valid for %s, which it claims to be reached at: %w", q.NodeID, q.Address, err)
	}
	err := c.change(ctx, func(m membership) error { return c.join(ctx, m, r, q) })
	reply.Admitted = err == nil
	return reply, err
}

func (c *Controller) join(ctx context.Context, m membership, r peer.Remote, q peerapi.JoinRequest) error {
	id := q.NodeID.String()
	if s := m.find(id); s != nil && s.Address == q.Address {
		if s.Voter || c.known(id) {
			return nil // an operator's word stands over what the node was started with
		}
		return c.wish(ctx, *s, q.Voter)
	}
	if s := m.at(q.Address); s != nil && s.ID != id { // before it is dialled: the text matters more than whether it answers
		return c.checkCandidate(m, candidate{peerapi.Status{NodeID: q.NodeID, ClusterID: c.o.ClusterID, MaxCommand: ^uint8(0)}, q.Address, false, ""})
	}
	st, err := c.dial(ctx, id, q.Address)
	if err != nil {
		return fmt.Errorf("node %s does not answer at %s, where it claims to be: %w", id, q.Address, err)
	}
	if st.NodeID != q.NodeID || st.BootID != r.BootID {
		return refused("another process than the one that asks answers at %s, as node %s", q.Address, st.NodeID)
	}
	return c.admit(ctx, m, candidate{st, q.Address, q.Voter, ""})
}

// known reports whether it is known whether a non-voter is to vote.
func (c *Controller) known(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.wishes[id]
	return ok
}

// Promote makes a non-voter a voter. It waits until the node has caught up, as long as ctx allows.
func (c *Controller) Promote(ctx context.Context, id string) error {
	for {
		done := false
		err := c.change(ctx, func(m membership) error {
			s := m.find(id)
			if s == nil {
				return noMember(m, id)
			}
			if done = s.Voter; done {
				return nil
			}
			st, err := c.dial(ctx, id, s.Address)
			if err != nil {
				return refused("node %s does not answer at %s, and a voter that does not answer only weakens the cluster: %w", id, s.Address, err)
			}
			if st.Quarantine != "" {
				return refused("node %s is quarantined: %s", id, st.Quarantine)
			}
			if st.MaxCommand < c.o.History.CommandVersion() {
				return refused("node %s knows commands up to version %d, the cluster uses %d: upgrade it first", id, st.MaxCommand, c.o.History.CommandVersion())
			}
			if !c.caughtUp(id) {
				return nil
			}
			done = true
			return c.promote(ctx, m, *s, "")
		})
		if err != nil || done {
			return err
		}
		if err := c.nextLook(ctx); err != nil {
			return refused("node %s has not caught up yet; it is promoted once it has if it is asked for again, or was added to vote: %w", id, err)
		}
	}
}

func (c *Controller) promote(ctx context.Context, m membership, s consensus.Server, replaces string) error {
	if err := c.prepare(ctx); err != nil {
		return err
	}
	if err := c.translate("promote "+s.ID, c.o.Raft.AddVoter(ctx, s.ID, s.Address, m.index)); err != nil {
		return err
	}
	c.o.Logger.Info("node promoted to voter", "node", s.ID, "address", s.Address)
	c.record(ctx, Record{Action: actionPromoted, NodeID: s.ID, Address: s.Address, Voter: true, Replaces: replaces})
	return nil
}

// caughtUp reports whether a member has kept up with this leader long enough, and until now.
func (c *Controller) caughtUp(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	k, ok := c.keeps[id]
	return ok && k.last.Sub(k.first) >= c.o.CaughtUpFor && time.Since(k.last) <= 4*(lookEvery+lookTimeout)
}

// nextLook returns after the next look of Run.
func (c *Controller) nextLook(ctx context.Context) error {
	c.mu.Lock()
	looked := c.looked
	c.mu.Unlock()
	select {
	case <-looked:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func noMember(m membership, id string) error {
	all := make([]string, len(m.servers))
	for i, s := range m.servers {
		all[i] = s.ID
	}
	return refused("%s is no member; members are %s", id, strings.Join(all, ", "))
}

// Demote makes a voter a non-voter. force does it though too few of the other voters answer.
func (c *Controller) Demote(ctx context.Context, id string, force bool) error {
	return c.change(ctx, func(m membership) error {
		s := m.find(id)
		if s == nil {
			return noMember(m, id)
		}
		if !s.Voter {
			return c.wish(ctx, *s, false)
		}
		if err := c.mayLose(ctx, m, id, "demoting", force); err != nil {
			return err
		}
		if err := c.prepare(ctx); err != nil {
			return err
		}
		if err := c.translate("demote "+id, c.o.Raft.Demote(ctx, id, m.index)); err != nil {
			return err
		}
		c.setWish(id, false)
		c.o.Logger.Info("node demoted to non-voter", "node", id)
		c.record(ctx, Record{Action: actionDemoted, NodeID: id, Address: s.Address})
		return nil
	})
}

// Remove takes a member out of the cluster. force does it though too few of the other voters answer. Removing what is no member, but was,
// changes nothing.
func (c *Controller) Remove(ctx context.Context, id string, force bool) error {
	return c.change(ctx, func(m membership) error { return c.remove(ctx, m, id, force) })
}

func (c *Controller) remove(ctx context.Context, m membership, id string, force bool) error {
	s := m.find(id)
	if s == nil {
		if _, ok, err := c.was(id); err != nil || ok {
			return err
		}
		return noMember(m, id)
	}
	if s.Voter {
		if err := c.mayLose(ctx, m, id, "removing", force); err != nil {
			return err
		}
	}
	if err := c.prepare(ctx); err != nil {
		return err
	}
	if err := c.translate("remove "+id, c.o.Raft.Remove(ctx, id, m.index)); err != nil {
		return err
	}
	c.mu.Lock()
	delete(c.wishes, id)
	delete(c.keeps, id)
	c.mu.Unlock()
	c.o.Logger.Info("node removed", "node", id, "address", s.Address)
	c.record(ctx, Record{Action: actionRemoved, NodeID: id, Address: s.Address, Voter: s.Voter})
	return nil
}

// mayLose makes sure that the cluster goes on without a voter. When it is this node, leadership is handed over first, and the caller is
// sent there.
func (c *Controller) mayLose(ctx context.Context, m membership, id, what string, force bool) error {
	rest := 0
	var away []string
	sights := c.look(ctx, m)
	for i := range sights {
		s := &sights[i]
		if !s.Server.Voter || s.Server.ID == id {
			continue
		}
		rest++
		if !s.reachable() {
			away = append(away, fmt.Sprintf("%s at %s (%v)", s.Server.ID, s.Server.Address, s.err))
		}
	}
	if rest == 0 {
		return refused("%s is the last voter", id)
	}
	if have := rest - len(away); have < rest/2+1 && !force {
		return refused("%s %s would leave %d voters, of which only %d answer, and %d are needed: the cluster could record nothing more. Not answering: %s. "+
			"Bring them back first, or replace them; --force does it nevertheless", what, id, rest, have, rest/2+1, strings.Join(away, ", "))
	}
	if id != c.o.NodeID {
		return nil
	}
	best, why := c.bestVoter(sights, func(*sight) string { return "" })
	if best == nil {
		return refused("%s leads, and nobody can take leadership over: %s", id, why)
	}
	if err := c.transfer(ctx, best.Server.ID); err != nil {
		return err
	}
	return fmt.Errorf("%w: it has handed leadership to %s, which now has to do it", ErrNotLeader, best.Server.ID)
}

// Transfer hands leadership to a voter, or to the one that is furthest along if id is empty.
func (c *Controller) Transfer(ctx context.Context, id string) error {
	return c.change(ctx, func(m membership) error {
		if id == c.o.NodeID {
			return nil
		}
		sights := c.look(ctx, m)
		if id == "" {
			best, why := c.bestVoter(sights, func(*sight) string { return "" })
			if best == nil {
				return refused("nobody can take leadership over: %s", why)
			}
			return c.transfer(ctx, best.Server.ID)
		}
		s := sightOf(sights, id)
		if s == nil {
			return noMember(m, id)
		}
		if !s.Server.Voter {
			return refused("node %s does not vote, so it cannot lead", id)
		}
		if why := unfit(s, sightOf(sights, c.o.NodeID)); why != "" {
			return refused("node %s %s", id, why)
		}
		return c.transfer(ctx, id)
	})
}

// unfit says why a voter should not lead in the place of self, "" if it may.
func unfit(s, self *sight) string {
	switch {
	case !s.reachable():
		return fmt.Sprintf("does not answer (%v)", s.err)
	case s.Quarantine != "":
		return "is quarantined: " + s.Quarantine
	case s.State != peerapi.StateServing:
		return "is " + s.State
	case self == nil:
		return ""
	case s.MissingKeyCount > self.MissingKeyCount:
		return fmt.Sprintf("lacks the keys of %d logs (%s)", s.MissingKeyCount, strings.Join(s.MissingKeys, ", "))
	case s.Full && !self.Full:
		return "has a disk too full to take appends"
	case s.Applied+maxTransferLag < self.Applied:
		return fmt.Sprintf("is %d raft entries behind", self.Applied-s.Applied)
	case s.behind() > maxClockLead:
		return fmt.Sprintf("has a clock that is %s ahead", s.behind().Round(time.Millisecond))
	}
	return ""
}

// bestVoter returns the voter that is furthest along of those that are fit to lead and that not gives no reason against; nil and why if there is none.
func (c *Controller) bestVoter(sights []sight, not func(*sight) string) (best *sight, why string) {
	self := sightOf(sights, c.o.NodeID)
	var reasons []string
	for i := range sights {
		s := &sights[i]
		if !s.Server.Voter || s.Server.ID == c.o.NodeID {
			continue
		}
		reason := unfit(s, self)
		if reason == "" {
			reason = not(s)
		}
		switch {
		case reason != "":
			reasons = append(reasons, fmt.Sprintf("%s %s", s.Server.ID, reason))
		case best == nil || s.Applied > best.Applied:
			best = s
		}
	}
	if len(reasons) == 0 {
		reasons = []string{"there is no other voter"}
	}
	return best, strings.Join(reasons, "; ")
}

func (c *Controller) transfer(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, transferTimeout)
	defer cancel()
	if err := c.o.Raft.Transfer(ctx, id); err != nil {
		return fmt.Errorf("hand leadership to %s: %w: %w", id, sequencer.ErrNotApplied, err)
	}
	c.o.Logger.Info("leadership handed over", "to", id)
	return nil
}
