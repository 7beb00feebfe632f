// Package peer is the one port over which nodes talk to each other: raft and node-to-node gRPC, under mutual TLS, each side knowing who the
// other is before a byte of either protocol is read.
//
// A connection is TLS 1.3; its lane is chosen by ALPN. Then each side sends one hello (hello.go has the format), the caller first, and the
// called side's says whether it refuses and why. Until that is done a connection is a stranger's: it lives in a goroutine of its own for
// three seconds at most and costs its socket and what crypto/tls needs; only so many are there at a time, and one that has not said a word
// makes room for the next. The API behind a lane (raft allocates 256 KiB a connection and sets no deadline) never sees a stranger.
package peer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/tlsfile"
)

// Limits of the port.
const (
	// HandshakeTimeout bounds TLS and hellos together, on both sides. It is a few round trips around the world, and the longest that a
	// stranger keeps a socket.
	HandshakeTimeout = 3 * time.Second
	// MaxHandshakes is how many connections may be on their way in at a time. A cluster that starts has a handful a peer.
	MaxHandshakes = 64
	// MaxHandshakesPerSource keeps one address from taking all of them. Loopback is exempt: a cluster on one machine has one address.
	MaxHandshakesPerSource = 8
	// MaxRaftConnections a node: raft pools three and may dial as many beside them for heartbeats, entries and votes.
	MaxRaftConnections = 8
	// MaxAPIConnections a node: one is usual, a second overlaps while an address changes.
	MaxAPIConnections = 4

	// raftSilence ends a raft connection whose other side does not acknowledge what was sent; it is raft's own timeout of a call.
	raftSilence = 2 * time.Second
	// apiSilence is longer: nobody elects on this lane, and a catch-up should survive a short break.
	apiSilence = 5 * time.Second
	// bootTimeout bounds the question which process answers at a node's registered address. It leaves most of raft's dial timeout.
	bootTimeout = time.Second
	// acceptPause is how long to leave a listener alone that fails, mostly for want of file descriptors.
	acceptPause = 100 * time.Millisecond
)

// Lane is what a connection is for.
type Lane uint8

// The lanes. The third is internal: a hello and nothing else.
const (
	LaneRaft Lane = iota // ALPN provledger-raft/1: the protocol of hashicorp/raft's NetworkTransport
	LaneAPI              // ALPN h2: gRPC between nodes
	laneAsk              // ALPN provledger-hello/1: closed after the hellos
)

var protocols = [...]string{LaneRaft: "provledger-raft/1", LaneAPI: "h2", laneAsk: "provledger-hello/1"}

// String is the lane's name in logs and metrics.
func (l Lane) String() string {
	switch l {
	case LaneRaft:
		return "raft"
	case LaneAPI:
		return "api"
	}
	return "hello"
}

// Options are what a port needs of the node that has it.
type Options struct {
	TLS *tlsfile.Files // with the cluster's authorities
	// Self is what this node says of itself. It is asked at every connection and must be quick.
	Self func() Hello
	// AddressOf is the peer address that the membership has for a node, if it has one. An inbound peer's certificate must be valid for
	// its host; without an address (without this function, or where a node that never had one is known by its id) it must be valid for the
	// one that the peer says it has. It must be quick.
	AddressOf func(node lineage.ID) (address string, ok bool)
	// Admit decides about an inbound peer whose certificate, cluster and address are in order: nil, or why not, which the peer is told
	// and the log says. It must be quick. nil admits all.
	Admit  func(lane Lane, h Hello, cert *x509.Certificate) error
	Logger *slog.Logger
	// Registry gets the metrics of the port; nil: nobody does.
	Registry prometheus.Registerer
	// DialContext is for tests and proxies; nil is a net.Dialer.
	DialContext func(ctx context.Context, network, address string) (net.Conn, error)
}

// Remote is who is at the other end.
type Remote struct {
	Hello
	Certificate *x509.Certificate
}

// Port is a node's peer port: what it listens on, and what it dials others with. Its methods may be called from several goroutines.
type Port struct {
	o        Options
	log      *slog.Logger
	tls      *tls.Config // of the called side; it asks the files at every handshake
	listener net.Listener
	slots    slots
	boots    boots
	refused  refusals
	metrics  *metrics
	misnamed sync.Once // said that the own certificate is for other names

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // the accepting goroutine and all handshakes

	mu      sync.Mutex
	closed  bool
	lanes   [2]*listener           // where connections of a lane go; nil: nowhere yet
	inbound map[inboundKey][]*conn // open, oldest first
}

type inboundKey struct {
	lane Lane
	node lineage.ID
}

// Listen opens the port.
func Listen(address string, o Options) (*Port, error) {
	switch {
	case o.TLS == nil || o.TLS.Roots() == nil:
		return nil, errors.New("peer port: a certificate and the cluster's authorities are needed")
	case o.Self == nil:
		return nil, errors.New("peer port: Options.Self is not set")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.DialContext == nil {
		o.DialContext = new(net.Dialer).DialContext
	}
	l, err := net.Listen("tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("peer port: %s is taken by another process, perhaps a ledgerd that still runs; stop it or set another peer-address: %w", address, err)
	} else if err != nil {
		return nil, fmt.Errorf("peer port: %w", err)
	}
	p := &Port{o: o, log: o.Logger, tls: o.TLS.ServerConfig(protocols[:]...), listener: l, inbound: map[inboundKey][]*conn{}}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	if p.metrics, err = p.newMetrics(); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	for _, fault := range tlsfile.PeerFaults(o.TLS.Certificate().Leaf, time.Now()) {
		p.log.Error("this node's certificate will be refused by its peers", "fault", fault)
	}
	p.wg.Go(p.accept)
	return p, nil
}

// Addr is the address that the port listens on.
func (p *Port) Addr() net.Addr { return p.listener.Addr() }

// Close closes the port and every inbound connection, and returns when no goroutine of it is left. Connections that were dialled are their
// owners': of Dial's caller, and of the stream layer that raft closes.
func (p *Port) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	lanes := p.lanes
	var open []*conn
	for _, list := range p.inbound {
		open = append(open, list...)
	}
	p.mu.Unlock()
	p.cancel()
	err := p.listener.Close()
	for _, l := range lanes {
		if l != nil {
			_ = l.Close()
		}
	}
	for _, c := range open {
		_ = c.Close()
	}
	p.wg.Wait()
	return err
}

// accept never waits for a peer: every connection goes on in a goroutine of its own.
func (p *Port) accept() {
	for {
		raw, err := p.listener.Accept()
		if p.ctx.Err() != nil {
			if err == nil {
				_ = raw.Close()
			}
			return
		}
		if err != nil {
			p.log.Error("the peer port cannot accept connections", "error", err)
			select {
			case <-time.After(acceptPause):
			case <-p.ctx.Done():
			}
			continue
		}
		s := newStranger(raw)
		victim, ok := p.slots.enter(s)
		if !ok {
			abort(raw)
			p.refuse(s, &refusal{reasonBusy, errors.New("too many connections are on their way in")})
			continue
		}
		if victim != nil {
			victim.giveWay()
		}
		p.wg.Go(func() {
			defer p.slots.leave(s)
			if err := p.welcome(s); err != nil {
				_ = s.Close()
				p.refuse(s, err)
			}
		})
	}
}

// setLane makes l the one that gets a lane's connections. The one before gets none from now on.
func (p *Port) setLane(l *listener) {
	p.mu.Lock()
	old := p.lanes[l.lane]
	p.lanes[l.lane] = l
	closed := p.closed
	p.mu.Unlock()
	if old != nil {
		_ = old.Close()
	}
	if closed {
		_ = l.Close()
	}
}

func (p *Port) lane(lane Lane) *listener {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l := p.lanes[lane]; l != nil && l.open() {
		return l
	}
	return nil
}

// register counts an inbound connection. A node that has too many loses its oldest: a peer whose machine vanished must get in again
// before its dead connections are noticed.
func (p *Port) register(c *conn) bool {
	key := inboundKey{c.lane, c.remote.NodeID}
	most := MaxRaftConnections
	if c.lane == LaneAPI {
		most = MaxAPIConnections
	}
	p.mu.Lock()
	if p.closed || !c.onClose(func() { p.unregister(c) }) {
		p.mu.Unlock()
		return false
	}
	list := append(p.inbound[key], c)
	var oldest *conn
	if len(list) > most {
		oldest = list[0] // before Delete, which moves the others up
		list = slices.Delete(list, 0, 1)
	}
	p.inbound[key] = list
	p.mu.Unlock()
	if oldest != nil {
		p.refuse(oldest.raw, &refusal{reasonTooMany, fmt.Errorf("node %s has more than %d %s connections; its oldest is closed", c.remote.NodeID, most, c.lane)})
		_ = oldest.Close()
	}
	return true
}

func (p *Port) unregister(c *conn) {
	key := inboundKey{c.lane, c.remote.NodeID}
	p.mu.Lock()
	defer p.mu.Unlock()
	list := slices.DeleteFunc(p.inbound[key], func(x *conn) bool { return x == c })
	if len(list) == 0 {
		delete(p.inbound, key)
	} else {
		p.inbound[key] = list
	}
}

// closeOthers closes the inbound connections of a node that are not of this boot.
func (p *Port) closeOthers(node, boot lineage.ID) {
	p.mu.Lock()
	var others []*conn
	for _, lane := range []Lane{LaneRaft, LaneAPI} {
		for _, c := range p.inbound[inboundKey{lane, node}] {
			if c.remote.BootID != boot {
				others = append(others, c)
			}
		}
	}
	p.mu.Unlock()
	for _, c := range others {
		_ = c.Close()
	}
}

func (p *Port) open(lane Lane) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, list := range p.inbound {
		if key.lane == lane {
			n += len(list)
		}
	}
	return n
}

// CheckName reports why a certificate is not good for the host of an address, HOST:PORT.
func CheckName(cert *x509.Certificate, address string) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("peer address %q is not HOST:PORT", address)
	}
	return cert.VerifyHostname(host)
}

// urnUUID begins the URI subject alternative name that binds a certificate to a node (RFC 9562 section 4).
const urnUUID = "urn:uuid:"

// CheckNode reports why a certificate is not good for a node: it is bound to others, by subject alternative names urn:uuid:NODE-ID.
// Without any it is good for every node.
func CheckNode(cert *x509.Certificate, node lineage.ID) error {
	var bound []string
	for _, u := range cert.URIs {
		text := strings.ToLower(u.String())
		id, ok := strings.CutPrefix(text, urnUUID)
		if !ok {
			continue
		}
		if id == node.String() {
			return nil
		}
		bound = append(bound, text)
	}
	if len(bound) > 0 {
		return fmt.Errorf("the certificate is for %s, not for node %s", strings.Join(bound, ", "), node)
	}
	return nil
}
