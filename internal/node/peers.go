package node

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/consensus"
	"github.com/provledger/provledger/internal/peer"
	"github.com/provledger/provledger/internal/peerapi"
)

// peers keeps one gRPC connection to each other member, dialled at the address that the membership has for it.
type peers struct {
	port    *peer.Port
	self    string
	members func() []consensus.Server
	dial    []grpc.DialOption

	mu    sync.Mutex
	conns map[string]*peerConn // by node id, or @address
}

type peerConn struct {
	address string
	cc      *grpc.ClientConn
}

// redial is how soon a peer that was away is tried again: it is back within seconds, and is asked several times a second.
var redial = grpc.ConnectParams{
	Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 500 * time.Millisecond},
	MinConnectTimeout: 3 * time.Second, // as long as the peer port gives a handshake
}

func newPeers(port *peer.Port, self string, members func() []consensus.Server, dial []grpc.DialOption) *peers {
	dial = append([]grpc.DialOption{grpc.WithConnectParams(redial)}, dial...)
	return &peers{port: port, self: self, members: members, dial: dial, conns: map[string]*peerConn{}}
}

// conn returns the connection to a member. It is not closed by the caller, and is closed when the member's address changes.
func (p *peers) conn(id string) (*grpc.ClientConn, error) {
	members := p.members()
	i := slices.IndexFunc(members, func(s consensus.Server) bool { return s.ID == id })
	if i < 0 {
		return nil, fmt.Errorf("node %s is not a member", id)
	}
	return p.connAt(id, members[i].Address)
}

// connAt returns the connection to a node at an address. Without an id it is to whoever is there.
func (p *peers) connAt(id, address string) (*grpc.ClientConn, error) {
	if p.port == nil {
		return nil, fmt.Errorf("node %s: this node has no peer port", id)
	}
	var want lineage.ID
	key := "@" + address
	if id != "" {
		var err error
		if want, err = lineage.ParseID(id); err != nil {
			return nil, fmt.Errorf("node %q: %w", id, err)
		}
		key = id
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	old := p.conns[key]
	if old != nil && old.address == address {
		return old.cc, nil
	}
	cc, err := p.port.Dial(want, address, p.dial...)
	if err != nil {
		return nil, err
	}
	if old != nil {
		old.cc.Close()
	}
	p.conns[key] = &peerConn{address, cc}
	return cc, nil
}

// others returns a client for every other member, in an order of no meaning; those at addresses if this node knows of no member.
func (p *peers) others(addresses []string) []*peerapi.Client {
	var out []*peerapi.Client
	for _, s := range p.members() {
		if s.ID == p.self {
			continue
		}
		if cc, err := p.connAt(s.ID, s.Address); err == nil {
			out = append(out, peerapi.NewClient(cc, s.ID))
		}
	}
	if len(out) > 0 {
		return out
	}
	for _, a := range addresses {
		if cc, err := p.connAt("", a); err == nil {
			out = append(out, peerapi.NewClient(cc, a))
		}
	}
	return out
}

// client returns a client for one member.
func (p *peers) client(id string) (*peerapi.Client, error) {
	cc, err := p.conn(id)
	if err != nil {
		return nil, err
	}
	return peerapi.NewClient(cc, id), nil
}

func (p *peers) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, c := range p.conns {
		c.cc.Close()
		delete(p.conns, key)
	}
}
