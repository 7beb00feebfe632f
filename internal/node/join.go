package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/consensus"
	"github.com/provledger/provledger/internal/peerapi"
)

const (
	// askEvery is how often a node that waits for others asks them, and askTimeout how long one of them may take to answer.
	askEvery   = 300 * time.Millisecond
	askTimeout = 3 * time.Second
	// sayEvery is how often it tells its operator what it waits for.
	sayEvery = 10 * time.Second
	// removalEvery and removalAfter are how often a node without a leader looks whether it was removed, and for how long it must have been
	// without one: an election takes a second.
	removalEvery = time.Second
	removalAfter = 3 * time.Second
	// promoteEvery is how often a node that is to vote says so to the leader until it does: a new leader does not know.
	promoteEvery = time.Second
)

// clustered reports whether this node talks to others.
func (n *Node) clustered() bool { return n.port != nil }

// origin decides what a fresh directory becomes: the first node of a ledger, or one that joins. It returns when that is certain, and has set
// the cluster id.
func (n *Node) origin(ctx context.Context) error {
	p := n.c.Peer
	switch {
	case p == nil || len(p.Members) == 0 && len(p.Join) == 0:
		return n.dir.takeSecret(n.c.SecretFile, true)
	case len(p.Members) > 0 && p.Members[0] == p.Advertise:
		fresh, err := n.allFresh(ctx)
		if err != nil {
			return err
		}
		if fresh {
			n.c.Logger.Info("founding a cluster", "members", p.Members)
			return n.dir.takeSecret(n.c.SecretFile, true)
		}
		n.c.Logger.Warn("this directory is new and the cluster exists: asking to join it", "members", p.Members)
	}
	n.joining.Store(true)
	if err := n.dir.takeSecret(n.c.SecretFile, false); err != nil {
		return err
	}
	id, err := n.askCluster(ctx)
	n.dir.ClusterID = id
	return err
}

// contacts are the addresses that a joining node asks.
func (n *Node) contacts() []string {
	p := n.c.Peer
	all := slices.Concat(p.Members, p.Join)
	return slices.DeleteFunc(all, func(a string) bool { return a == p.Advertise })
}

// ask has a node at an address answer, whoever it is.
func (n *Node) ask(ctx context.Context, address string) (peerapi.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	cc, err := n.port.Dial(lineage.ID{}, address)
	if err != nil {
		return peerapi.Status{}, err
	}
	defer cc.Close()
	return peerapi.NewClient(cc, address).Status(ctx)
}

// waiting says from time to time what a start waits for.
type waiting struct {
	n    *Node
	last time.Time
	text string
}

func (w *waiting) say(msg string, args ...any) {
	text := msg + fmt.Sprint(args...)
	if now := time.Now(); now.Sub(w.last) >= sayEvery || text != w.text && now.Sub(w.last) >= time.Second {
		w.last, w.text = now, text
		w.n.c.Logger.Info(msg, args...)
	}
}

// allFresh waits until every other founding member has answered. It reports false as soon as one of them belongs to a cluster.
func (n *Node) allFresh(ctx context.Context) (bool, error) {
	w := waiting{n: n}
	for {
		var missing []string
		for _, address := range n.contacts() {
			st, err := n.ask(ctx, address)
			switch {
			case err != nil:
				missing = append(missing, fmt.Sprintf("%s (%v)", address, err))
			case st.ClusterID != lineage.ID{}:
				return false, nil
			}
		}
		if len(missing) == 0 {
			return true, nil
		}
		w.say("waiting for all founding members to answer before the cluster is founded", "missing", strings.Join(missing, "; "))
		if err := pause(ctx, askEvery); err != nil {
			return false, fmt.Errorf("found a cluster: waiting for %s: %w", strings.Join(missing, "; "), err)
		}
	}
}

// askCluster waits until a contact names the cluster that it belongs to.
func (n *Node) askCluster(ctx context.Context) (lineage.ID, error) {
	w := waiting{n: n}
	for {
		var answers []string
		for _, address := range n.contacts() {
			st, err := n.ask(ctx, address)
			switch {
			case err != nil:
				answers = append(answers, fmt.Sprintf("%s (%v)", address, err))
			case st.ClusterID == lineage.ID{}:
				answers = append(answers, address+" (belongs to no cluster yet)")
			default:
				return st.ClusterID, nil
			}
		}
		w.say("waiting for a member of the cluster to answer", "asked", strings.Join(answers, "; "))
		if err := pause(ctx, askEvery); err != nil {
			return lineage.ID{}, fmt.Errorf("join a cluster: asked %s: %w", strings.Join(answers, "; "), err)
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// self returns this node's entry in the membership, nil if there is none.
func (n *Node) self() *consensus.Server {
	servers, _ := n.raft().Servers()
	for i := range servers {
		if servers[i].ID == n.dir.NodeID.String() {
			return &servers[i]
		}
	}
	return nil
}

// awaitAdmission asks to be added to the cluster and returns when this node is a member. A refusal ends it.
func (n *Node) awaitAdmission(ctx context.Context) error {
	w := waiting{n: n}
	for n.self() == nil {
		err := n.askToJoin(ctx, !n.c.Peer.NonVoter)
		if errors.Is(err, peerapi.ErrRefused) {
			return fmt.Errorf("the cluster does not admit this node: %w", err)
		}
		if err != nil {
			w.say("waiting to be admitted to the cluster", "err", err)
		}
		if err := pause(ctx, askEvery); err != nil {
			return fmt.Errorf("waiting to be admitted to the cluster: %w", err)
		}
	}
	n.c.Logger.Info("this node is a member of the cluster", "cluster", n.dir.ClusterID, "voter", n.self().Voter)
	return nil
}

// askToJoin asks the leader, or whoever answers, to add this node. nil means that it was heard.
func (n *Node) askToJoin(ctx context.Context, voter bool) error {
	addresses := n.contacts()
	if servers, _ := n.raft().Servers(); len(servers) > 0 {
		leader := n.raft().Leader()
		for _, s := range servers {
			if s.ID != n.dir.NodeID.String() {
				addresses = append(addresses, s.Address)
			}
			if s.ID == leader {
				addresses = append([]string{s.Address}, addresses...)
			}
		}
	}
	req := peerapi.JoinRequest{NodeID: n.dir.NodeID, Address: n.c.Peer.Advertise, Voter: voter}
	var errs []error
	asked := map[string]bool{}
	for i := 0; i < len(addresses); i++ {
		address := addresses[i]
		if asked[address] {
			continue
		}
		asked[address] = true
		reply, err := n.askOne(ctx, address, req)
		switch {
		case err == nil && reply.Admitted:
			return nil
		case errors.Is(err, peerapi.ErrRefused):
			return err
		case err != nil:
			errs = append(errs, fmt.Errorf("%s: %w", address, err))
		case reply.Leader != "":
			addresses = append(addresses, reply.Leader)
		}
	}
	return errors.Join(append(errs, errors.New("no leader has answered yet"))...)
}

func (n *Node) askOne(ctx context.Context, address string, req peerapi.JoinRequest) (peerapi.JoinReply, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	cc, err := n.port.Dial(lineage.ID{}, address)
	if err != nil {
		return peerapi.JoinReply{}, err
	}
	defer cc.Close()
	return peerapi.NewClient(cc, address).Join(ctx, req)
}

// insist asks the leader, until it is so, to have this node in the membership as it is meant to be: under the address that it advertises,
// and with a vote if wish says so. Only a node that has just joined wishes for one: who was demoted by an operator stays so.
func (n *Node) insist(ctx context.Context, wish bool) {
	for {
		s := n.self()
		if s == nil || s.Address == n.c.Peer.Advertise && (s.Voter || !wish) {
			return
		}
		if err := n.askToJoin(ctx, wish); err != nil {
			n.c.Logger.Debug("asking for a change of the membership", "err", err)
		}
		if pause(ctx, promoteEvery) != nil {
			return
		}
	}
}

// noticeRemoval finds out whether this node was removed while nobody told it: the entry that removes a node is the one that it often misses. A node
// that hears of no leader for a while asks the others to have it in the membership, which changes nothing for a member, and is refused for
// good when it was removed.
func (n *Node) noticeRemoval(ctx context.Context) {
	heard := time.Now()
	for pause(ctx, removalEvery) == nil {
		c := n.raft()
		switch {
		case c.Leader() != "":
			heard = time.Now()
			if n.removed.Swap(nil) != nil {
				n.c.Logger.Info("this node is a member of the cluster again")
			}
			continue
		case time.Since(heard) < removalAfter || n.self() == nil && n.removed.Load() != nil:
			continue
		}
		if err := n.askToJoin(ctx, false); errors.Is(err, peerapi.ErrRefused) && n.removed.Swap(&err) == nil {
			n.c.Logger.Error("this node was removed from the cluster: it serves what it has and hears of nothing new; stop it", "err", err)
		}
	}
}
