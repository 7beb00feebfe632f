package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/provledger/provledger/client/lineage"
)

// conn is a connection whose other end is known.
type conn struct {
	*tls.Conn
	raw    *stranger
	lane   Lane
	remote Remote

	mu     sync.Mutex
	closed bool
	after  []func() // what Close still has to do
}

// Read reads what the peer sent. An end without TLS's goodbye is an end: both protocols frame their messages themselves.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = io.EOF
	}
	return n, err
}

// Close closes without TLS's goodbye, which would wait up to five seconds for a peer that does not read.
func (c *conn) Close() error {
	c.mu.Lock()
	after := c.after
	c.closed, c.after = true, nil
	c.mu.Unlock()
	for _, f := range after {
		f()
	}
	return c.raw.Close()
}

// onClose makes Close call f, unless it was called already.
func (c *conn) onClose(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.after = append(c.after, f)
	return true
}

// listener is where a lane's connections come out, a net.Listener.
type listener struct {
	lane Lane
	addr net.Addr
	new  chan *conn // unbuffered: what nobody accepts is closed at its deadline
	done chan struct{}
	once sync.Once
}

func newListener(lane Lane, addr net.Addr) *listener {
	return &listener{lane: lane, addr: addr, new: make(chan *conn), done: make(chan struct{})}
}

// Accept returns connections that are through with TLS, hello and admission.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.new:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close ends Accept. The port stays open, and so do connections that were accepted.
func (l *listener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *listener) Addr() net.Addr { return l.addr }

func (l *listener) open() bool {
	select {
	case <-l.done:
		return false
	default:
		return true
	}
}

func (l *listener) deliver(ctx context.Context, c *conn) error {
	select {
	case l.new <- c:
		return nil
	case <-l.done:
		return fmt.Errorf("this node stopped taking %s connections", l.lane)
	case <-ctx.Done():
		return fmt.Errorf("nothing took the %s connection in time", l.lane)
	}
}

// API is the listener for the node-to-node gRPC server. Closing it leaves the port and the connections open; a later call supersedes an
// earlier one, whose Accept ends.
func (p *Port) API() net.Listener {
	l := newListener(LaneAPI, p.advertised())
	p.setLane(l)
	return l
}

// Raft is the raft.StreamLayer for one raft instance. Closing it leaves the port open and closes the instance's connections, accepted and
// dialled, because raft's transport forgets them; a later call supersedes an earlier one, whose Accept ends.
//
// The address for Dial is "NODE-ID@HOST:PORT": the far side must say that it is NODE-ID, and its certificate must be good
// for HOST.
func (p *Port) Raft() raft.StreamLayer {
	s := &stream{listener: newListener(LaneRaft, p.advertised()), port: p, conns: map[*conn]struct{}{}}
	p.setLane(s.listener)
	return s
}

// advertised is the address under which others find this node; raft takes the listener's for its own.
func (p *Port) advertised() net.Addr {
	self := p.o.Self()
	if self.Address == "" {
		return p.Addr()
	}
	cert := p.o.TLS.Certificate().Leaf
	if err := errors.Join(CheckName(cert, self.Address), CheckNode(cert, self.NodeID)); err != nil {
		p.misnamed.Do(func() {
			p.log.Error("this node's certificate will be refused by its peers", "address", self.Address, "error", err)
		})
	}
	return advertised(self.Address)
}

// advertised is an address as it was configured, not resolved.
type advertised string

func (advertised) Network() string  { return "tcp" }
func (a advertised) String() string { return string(a) }

// stream is raft's lane together with what came and went over it.
type stream struct {
	*listener
	port *Port

	mu     sync.Mutex
	closed bool
	conns  map[*conn]struct{}
}

func (s *stream) Accept() (net.Conn, error) {
	nc, err := s.listener.Accept()
	if err != nil {
		return nil, err
	}
	c := nc.(*conn)
	if !s.keep(c) {
		_ = c.Close()
		return nil, net.ErrClosed
	}
	return c, nil
}

// Dial implements raft.StreamLayer. The timeout is for everything up to the hellos; zero leaves the port's own.
func (s *stream) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	id, hostPort, ok := strings.Cut(string(address), "@")
	if !ok {
		return nil, fmt.Errorf("raft address %q is not NODE-ID@HOST:PORT", address)
	}
	want, err := lineage.ParseID(id)
	if err != nil {
		return nil, fmt.Errorf("raft address %q: %w", address, err)
	}
	ctx := s.port.ctx
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	c, err := s.port.dial(ctx, LaneRaft, want, hostPort)
	if err != nil {
		return nil, err
	}
	if !s.keep(c) {
		_ = c.Close()
		return nil, net.ErrClosed
	}
	return c, nil
}

// keep notes a connection until it is closed.
func (s *stream) keep(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	if !c.onClose(func() {
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	}) {
		return false
	}
	s.conns[c] = struct{}{}
	return true
}

// Close implements net.Listener.
func (s *stream) Close() error {
	_ = s.listener.Close()
	s.mu.Lock()
	s.closed = true
	var open []*conn
	for c := range s.conns {
		open = append(open, c)
	}
	s.mu.Unlock()
	for _, c := range open {
		_ = c.Close()
	}
	return nil
}
