package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/provledger/provledger/client/lineage"
)

// RefusedError is the answer of a peer that does not want this node.
type RefusedError struct {
	Reason string // in its words
	By     Hello  // who it says it is
}

func (e *RefusedError) Error() string { return "it refuses this node: " + e.Reason }

// welcome takes an inbound connection through TLS and hellos and hands it to its lane. On an error the caller closes it.
func (p *Port) welcome(s *stranger) error {
	ctx, cancel := context.WithTimeout(p.ctx, HandshakeTimeout)
	defer cancel()
	// One mechanism for stalls and for Close: whatever read or write is under way fails at once.
	stop := context.AfterFunc(ctx, func() { _ = s.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	t := tls.Server(s, p.tls)
	if err := t.Handshake(); err != nil {
		return p.tlsRefusal(s, err)
	}
	lane := Lane(slices.Index(protocols[:], t.ConnectionState().NegotiatedProtocol))
	if int(lane) >= len(protocols) {
		return &refusal{reasonProtocol, errors.New("it asks for no protocol that is spoken here (ALPN)")}
	}
	h, _, err := readHello(t)
	if err != nil {
		return p.stalled(s, reasonHello, err)
	}
	c := &conn{Conn: t, raw: s, lane: lane, remote: Remote{h, t.ConnectionState().PeerCertificates[0]}}
	self := p.o.Self()
	to, why := p.judge(ctx, c, self)
	var said string
	if why != nil {
		said = why.err.Error()
	}
	answer, err := appendHello(nil, self, said)
	if err != nil {
		return &refusal{reasonHello, err}
	}
	if why == nil && to != nil {
		if !p.register(c) {
			return net.ErrClosed
		}
	}
	_, err = t.Write(answer)
	switch {
	case why != nil:
		return why
	case err != nil:
		_ = c.Close()
		return p.stalled(s, reasonHello, err)
	case to == nil: // it only asked
		return c.Close()
	case !stop():
		_ = c.Close()
		return &refusal{reasonStalled, ctx.Err()}
	}
	setSilence(s.Conn, lane)
	if err := to.deliver(ctx, c); err != nil {
		_ = c.Close()
		return &refusal{reasonLane, err}
	}
	p.metrics.accepted.WithLabelValues(lane.String()).Inc()
	return nil
}

// judge decides about a peer whose certificate chains to the cluster's authorities. It returns where the connection goes, nil if nowhere
// because all that was wanted is the hello.
func (p *Port) judge(ctx context.Context, c *conn, self Hello) (*listener, *refusal) {
	h, cert := c.remote.Hello, c.remote.Certificate
	if err := checkCluster(c.lane, self, h); err != nil {
		return nil, &refusal{reasonCluster, err}
	}
	if h.NodeID == self.NodeID && h.BootID != self.BootID {
		return nil, &refusal{reasonTwice, twoProcesses(h.NodeID, "this one", c.RemoteAddr().String())}
	}
	if err := CheckNode(cert, h.NodeID); err != nil {
		return nil, &refusal{reasonName, err}
	}
	address, known := p.addressOf(h.NodeID)
	whose := "the address that the membership has for node " + h.NodeID.String()
	if !known {
		address, whose = h.Address, "the address that it says it has"
	}
	if err := CheckName(cert, address); err != nil {
		return nil, &refusal{reasonName, fmt.Errorf("its certificate is not good for %s, %s: %w", address, whose, err)}
	}
	if c.lane == laneAsk {
		return nil, nil
	}
	to := p.lane(c.lane)
	if to == nil {
		return nil, &refusal{reasonLane, fmt.Errorf("this node does not take %s connections at the moment", c.lane)}
	}
	if p.o.Admit != nil {
		if err := p.o.Admit(c.lane, h, cert); err != nil {
			return nil, &refusal{reasonAdmit, err}
		}
	}
	if known && h.NodeID != self.NodeID {
		if err := p.checkBoot(ctx, h, address); err != nil {
			return nil, &refusal{reasonTwice, err}
		}
	}
	return to, nil
}

func (p *Port) addressOf(node lineage.ID) (string, bool) {
	if p.o.AddressOf == nil {
		return "", false
	}
	address, known := p.o.AddressOf(node)
	if _, _, err := net.SplitHostPort(address); err != nil {
		return "", false
	}
	return address, known
}

// checkCluster lets a node without a cluster call and be called, on the lane where it can ask to join; raft is for members.
func checkCluster(lane Lane, self, other Hello) error {
	none := lineage.ID{}
	switch {
	case self.ClusterID == other.ClusterID && (lane != LaneRaft || self.ClusterID != none):
		return nil
	case lane != LaneRaft && (self.ClusterID == none || other.ClusterID == none):
		return nil
	case self.ClusterID == none:
		return fmt.Errorf("node %s belongs to no cluster yet", self.NodeID)
	case other.ClusterID == none:
		return fmt.Errorf("node %s belongs to no cluster yet, and raft is for members", other.NodeID)
	}
	return fmt.Errorf("node %s belongs to cluster %s, and node %s to cluster %s", other.NodeID, other.ClusterID, self.NodeID, self.ClusterID)
}

func twoProcesses(node lineage.ID, one, other string) error {
	return fmt.Errorf("two processes run as node %s: %s and the one that connects from %s; stop the one whose data directory is a copy", node, one, other)
}

// tlsRefusal says of a failed handshake what an operator can act on.
func (p *Port) tlsRefusal(s *stranger, err error) *refusal {
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return &refusal{reasonNotTLS, errors.New("it speaks no TLS")}
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return &refusal{reasonCertificate, err}
	}
	if !s.heard.Load() {
		return p.stalled(s, reasonSilent, err)
	}
	return p.stalled(s, reasonTLS, err)
}

// stalled gives an error its reason: nothing came in time, it had to make room, or else.
func (p *Port) stalled(s *stranger, reason string, err error) *refusal {
	switch {
	case s.evicted.Load():
		return &refusal{reasonBusy, errors.New("it said nothing and made room for another connection")}
	case p.ctx.Err() != nil:
		return &refusal{reasonClosed, net.ErrClosed}
	case isTimeout(err):
		return &refusal{reasonStalled, fmt.Errorf("TLS and hello were not done after %v", HandshakeTimeout)}
	}
	return &refusal{reason, err}
}

func isTimeout(err error) bool {
	n, ok := errors.AsType[net.Error](err)
	return ok && n.Timeout()
}

// dial opens a connection and takes it through TLS and hellos. want is zero if any node of the cluster will do.
func (p *Port) dial(ctx context.Context, lane Lane, want lineage.ID, address string) (*conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("peer address %q is not HOST:PORT", address)
	}
	c, err := p.dialHost(ctx, lane, want, address, host)
	if err != nil {
		who := "peer"
		if want != (lineage.ID{}) {
			who = "peer " + want.String()
		}
		p.metrics.failed.WithLabelValues(lane.String()).Inc()
		return nil, fmt.Errorf("%s at %s: %w", who, address, err)
	}
	return c, nil
}

func (p *Port) dialHost(ctx context.Context, lane Lane, want lineage.ID, address, host string) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, HandshakeTimeout)
	defer cancel()
	raw, err := p.o.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	t := tls.Client(raw, p.o.TLS.ClientConfig(host, protocols[lane]))
	c := &conn{Conn: t, raw: &stranger{Conn: raw}, lane: lane}
	if err := p.introduce(c, want); err != nil {
		_ = raw.Close()
		if ctx.Err() != nil && isTimeout(err) {
			err = fmt.Errorf("TLS and hello were not done in time: %w", ctx.Err())
		}
		return nil, err
	}
	if !stop() {
		_ = raw.Close()
		return nil, ctx.Err()
	}
	setSilence(raw, lane)
	return c, nil
}

// introduce is the calling side of TLS and hellos.
func (p *Port) introduce(c *conn, want lineage.ID) error {
	if err := c.Conn.Handshake(); err != nil {
		if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
			return errors.New("what answers there speaks no TLS; is it the peer port?")
		}
		return err
	}
	if c.Conn.ConnectionState().NegotiatedProtocol != protocols[c.lane] {
		return errors.New("what answers there is no peer port (ALPN)")
	}
	self := p.o.Self()
	b, err := appendHello(nil, self, "")
	if err != nil {
		return err
	}
	if _, err := c.Conn.Write(b); err != nil {
		return err
	}
	h, refused, err := readHello(c.Conn)
	switch {
	case err != nil:
		// In TLS 1.3 the called side judges our certificate after our handshake is done: its verdict comes where its hello should.
		if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" {
			return fmt.Errorf("it does not accept this node's certificate (its log says why): %w", err)
		}
		return fmt.Errorf("no hello came: %w", noEOF(err))
	case want != (lineage.ID{}) && h.NodeID != want:
		return fmt.Errorf("the node there is %s", h.NodeID)
	case refused != "":
		return &RefusedError{refused, h}
	case h.NodeID == self.NodeID && h.BootID != self.BootID:
		return twoProcesses(h.NodeID, "the one at "+c.RemoteAddr().String(), c.LocalAddr().String())
	}
	c.remote = Remote{h, c.ConnectionState().PeerCertificates[0]}
	if err := checkCluster(c.lane, self, h); err != nil {
		return err
	}
	return CheckNode(c.remote.Certificate, h.NodeID)
}

// Ask returns the hello of the node that answers at an address, which must be want unless that is zero. It is not asked to admit anybody:
// whoever has a certificate of the cluster's authorities may know who a node is.
func (p *Port) Ask(ctx context.Context, want lineage.ID, address string) (Hello, error) {
	c, err := p.dial(ctx, laneAsk, want, address)
	if err != nil {
		return Hello{}, err
	}
	return c.remote.Hello, c.Close()
}
