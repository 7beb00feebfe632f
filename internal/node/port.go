package node

import (
	"context"
	"crypto/x509"
	"fmt"
	"sync"

	"google.golang.org/grpc"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/consensus"
	"github.com/provledger/provledger/internal/peer"
)

// openPort opens the peer port, if there is to be one. It answers at once, long before there is a ledger to speak of: founding members ask each
// other whether they are new.
func (n *Node) openPort() (err error) {
	p := n.c.Peer
	if p == nil {
		return nil
	}
	n.port, err = peer.Listen(p.Listen, peer.Options{
		TLS: p.TLS, Self: n.hello, Admit: n.admitPeer, AddressOf: func(id lineage.ID) (string, bool) { return n.addressOf(id.String()) },
		Logger: n.c.Logger, Registry: n.c.Registry, DialContext: p.DialContext,
	})
	if err != nil {
		return err
	}
	n.peers = newPeers(n.port, n.dir.NodeID.String(), n.members, n.c.Telemetry.DialOptions())
	server := n.peerServer(grpc.Creds(peer.ServerCredentials()))
	served := make(chan struct{})
	go func() {
		defer close(served)
		if err := server.Serve(n.port.API()); err != nil {
			n.c.Logger.Debug("peer api", "err", err)
		}
	}()
	n.opened(func(context.Context) error {
		n.peers.close()
		server.Stop()
		err := n.port.Close()
		<-served
		return err
	})
	return nil
}

// members is the newest membership that this node holds.
func (n *Node) members() []consensus.Server {
	c := n.consensus.Load()
	if c == nil {
		return nil
	}
	servers, _ := c.Servers()
	return servers
}

// hello is what this node says of itself on every connection to a peer.
func (n *Node) hello() peer.Hello {
	h := peer.Hello{NodeID: n.dir.NodeID, BootID: n.boot, Address: n.address(), APIAddress: n.apiAddress()}
	if n.established.Load() {
		h.ClusterID = n.dir.ClusterID
	}
	if c := n.consensus.Load(); c != nil {
		_, h.Configuration = c.Servers()
	}
	return h
}

// admitPeer decides by the membership about an inbound connection whose certificate, cluster id and address the port has checked already: see
// docs/cluster.md, "Peer port".
func (n *Node) admitPeer(lane peer.Lane, h peer.Hello, _ *x509.Certificate) error {
	self := n.hello()
	for _, s := range n.members() {
		if s.ID != h.NodeID.String() {
			continue
		}
		if h.ClusterID == (lineage.ID{}) {
			return fmt.Errorf("node %s is a member, and this process says that its directory is new: a node that lost its directory comes back as another node (ledgerctl cluster replace)", h.NodeID)
		}
		n.hints.set(s.ID, h.APIAddress)
		return nil
	}
	if lane == peer.LaneAPI {
		return nil // a stranger with a certificate of the cluster may ask who this is, and to join; peerapi allows no more
	}
	if self.ClusterID != (lineage.ID{}) && h.ClusterID == self.ClusterID && h.Configuration > self.Configuration {
		return nil // it knows a newer membership, which this node has yet to hear of
	}
	return fmt.Errorf("node %s is not a member (membership of raft index %d); a new node joins first, one that was removed stays away", h.NodeID, self.Configuration)
}

// hints are the addresses at which clients reach other nodes, as those say themselves.
type hints struct {
	mu sync.Mutex
	m  map[string]string
}

func (h *hints) set(id, address string) {
	if address == "" {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.m == nil {
		h.m = map[string]string{}
	}
	h.m[id] = address
}

func (h *hints) get(id string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.m[id]
}

// Announce tells the other nodes, from now on, where clients reach this one, HOST:PORT.
func (n *Node) Announce(address string) { n.api.Store(&address) }

// apiAddress is where clients reach this node, as far as that was announced.
func (n *Node) apiAddress() string {
	if a := n.api.Load(); a != nil {
		return *a
	}
	return ""
}

// PeerAddress is where the peer port listens, empty when there is none.
func (n *Node) PeerAddress() string {
	if n.port == nil {
		return ""
	}
	return n.port.Addr().String()
}

// ID is the id of this node.
func (n *Node) ID() string { return n.dir.NodeID.String() }
