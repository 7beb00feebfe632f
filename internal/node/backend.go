package node

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/peer"
	"github.com/provledger/provledger/internal/peerapi"
)

// namedKeys is how many logs without a key a node names in its status; it counts the rest.
const namedKeys = 10

// backend is this node as its peers see it.
type backend struct{ n *Node }

// Status implements peerapi.Backend.
func (b backend) Status(context.Context) peerapi.Status {
	n := b.n
	h := n.hello()
	st := peerapi.Status{
		ClusterID: h.ClusterID, NodeID: h.NodeID, BootID: h.BootID, Address: h.Address, APIAddress: h.APIAddress, Configuration: h.Configuration,
		Fresh: !n.established.Load(), State: peerapi.StateStarting, MinCommand: 1, MaxCommand: n.c.MaxCommand, Version: n.c.Version, Now: n.c.Now(),
		FreeBytes: n.free.Load(), Full: n.overloaded.Load() != nil,
	}
	if n.c.Peer != nil {
		if cert := n.c.Peer.TLS.Certificate(); cert != nil && cert.Leaf != nil {
			st.CertificateExpires = cert.Leaf.NotAfter.UnixMicro()
		}
	}
	c := n.core.Load()
	r := n.consensus.Load()
	if c == nil || r == nil {
		if n.joining.Load() {
			st.State = peerapi.StateJoining
		}
		return st
	}
	s := r.Stats()
	st.Term, st.Leader, st.FirstLog, st.LastLog = s.Term, r.Leader(), s.First, s.Last
	st.Applied = max(c.ledger.Applied().Index, s.Delivered)
	if l, release, err := b.Ledger(); err == nil { // held, because a repair closes the store of a quarantined one
		if p, err := l.Durable(); err == nil {
			st.Durable = p.Index
		}
		release()
	}
	if q := c.ledger.Quarantined(); q != nil {
		st.Quarantine, st.Applied = q.Error(), c.ledger.Applied().Index
	}
	if err := n.Ready(); err != nil {
		st.NotReady = err.Error()
	}
	st.MissingKeys, st.MissingKeyCount = n.keys.missing(n)
	switch {
	case n.joining.Load():
		st.State = peerapi.StateJoining
	case st.Quarantine != "" && n.catchingUp.Load():
		st.State = peerapi.StateRepairing
	case st.Quarantine != "":
		st.State = peerapi.StateQuarantined
	case n.catchingUp.Load():
		st.State = peerapi.StateCatchingUp
	default:
		st.State = peerapi.StateServing
	}
	return st
}

// Member implements peerapi.Backend.
func (b backend) Member(r peer.Remote) bool {
	if r.ClusterID != b.n.hello().ClusterID {
		return false
	}
	_, ok := b.n.addressOf(r.NodeID.String())
	return ok
}

// Term implements peerapi.Backend. An instance that has ended does not know what the next one has voted for; a term that is not known is 0, which
// confirms nothing to nobody.
func (b backend) Term() uint64 {
	c := b.n.consensus.Load()
	if c == nil {
		return 0
	}
	term := c.Term()
	if b.n.restarting.Load() || c != b.n.consensus.Load() {
		return 0
	}
	return term
}

// ReadIndex implements peerapi.Backend.
func (b backend) ReadIndex(ctx context.Context) (uint64, error) {
	c := b.n.consensus.Load()
	if c == nil || !c.IsLeader() {
		return 0, peerapi.ErrNotLeader
	}
	return c.ReadIndex(ctx)
}

// Join implements peerapi.Backend.
func (b backend) Join(ctx context.Context, r peer.Remote, q peerapi.JoinRequest) (peerapi.JoinReply, error) {
	if b.n.consensus.Load() == nil || b.n.joining.Load() {
		return peerapi.JoinReply{}, peerapi.ErrFresh
	}
	return b.n.control.Join(ctx, r, q)
}

// Ledger implements peerapi.Backend.
func (b backend) Ledger() (*ledger.Ledger, func(), error) {
	c := b.n.core.Load()
	if c == nil {
		return nil, nil, peerapi.ErrFresh
	}
	c.users.Add(1) // before looking: a repair that sees no user closes the store
	if err := c.ledger.Quarantined(); err != nil {
		c.users.Add(-1)
		return nil, nil, err
	}
	return c.ledger, func() { c.users.Add(-1) }, nil
}

// Checkpoint implements peerapi.Backend.
func (b backend) Checkpoint(ctx context.Context, log uint32, size uint64) ([]byte, error) {
	l, release, err := b.Ledger()
	if err != nil {
		return nil, err
	}
	defer release()
	g, err := l.LogByNumber(log)
	if err != nil {
		return nil, err
	}
	t, err := l.Tree(log)
	if err != nil {
		return nil, err
	}
	root, err := t.RootAt(size)
	if err != nil {
		return nil, err
	}
	return b.n.signer.Checkpoint(g.Origin, size, root)
}

// keyCheckEvery is how old the answer may be to the question which logs this node has no key for: deriving ten thousand keys takes a third of a
// second, and a key appears when an operator puts it there.
const keyCheckEvery = 10 * time.Second

// keyCheck remembers which logs this node cannot sign for.
type keyCheck struct {
	last atomic.Pointer[keyAnswer]
	busy atomic.Bool
}

type keyAnswer struct {
	at    time.Time
	logs  uint64 // size of the system log
	names []string
	count int
}

// missing names up to namedKeys logs without a key, and counts all. An answer that is too old is renewed in the background.
func (k *keyCheck) missing(n *Node) ([]string, int) {
	a := k.last.Load()
	var logs uint64 // the system log grows with every log
	if t, err := n.Ledger().Tree(ledger.SystemLog); err == nil {
		logs = t.Head().Size
	}
	if a == nil {
		a = k.look(n, logs)
	} else if (time.Since(a.at) > keyCheckEvery || a.logs != logs) && k.busy.CompareAndSwap(false, true) {
		go func() {
			defer k.busy.Store(false)
			k.look(n, logs)
		}()
	}
	return a.names, a.count
}

func (k *keyCheck) look(n *Node, logs uint64) *keyAnswer {
	a := &keyAnswer{at: time.Now(), logs: logs}
	for _, g := range n.Ledger().Logs() {
		if n.signer.Has(g.Origin, g.VKey) {
			continue
		}
		if a.count++; a.count <= namedKeys {
			a.names = append(a.names, g.Name)
		}
	}
	k.last.Store(a)
	return a
}

// waitUnused returns when no peer and no controller reads from the core any more, or an error after a while.
func (c *core) waitUnused(ctx context.Context) error {
	for c.users.Load() > 0 {
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return fmt.Errorf("%d calls of peers still read from it: %w", c.users.Load(), err)
		}
	}
	return nil
}
