package consensus

import (
	"errors"
	"net"
	"sync"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// newStreamTransport is raft's transport over s. Addresses that s dials are "NODE-ID@ADDRESS", so that it can check who
// answers.
func newStreamTransport(s raft.StreamLayer, self raft.ServerAddress, logger hclog.Logger) *transport {
	n := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Logger: logger, Stream: &stream{StreamLayer: s, open: map[net.Conn]struct{}{}},
		MaxPool: maxPool, MaxRPCsInFlight: maxRPCsInFlight, Timeout: rpcTimeout,
	})
	return newTransport(n, self, func(id raft.ServerID, a raft.ServerAddress) raft.ServerAddress {
		return raft.ServerAddress(id) + "@" + a
	})
}

// stream closes what it accepted when it is closed. raft's transport leaves such connections open until the far side
// closes them, and would let the first messages to the raft instance after this one run into the void.
type stream struct {
	raft.StreamLayer
	mu     sync.Mutex
	closed bool
	open   map[net.Conn]struct{}
}

// Accept implements net.Listener.
func (s *stream) Accept() (net.Conn, error) {
	c, err := s.StreamLayer.Accept()
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errors.Join(net.ErrClosed, c.Close())
	}
	s.open[c] = struct{}{}
	return &accepted{Conn: c, from: s}, nil
}

// Close implements net.Listener.
func (s *stream) Close() error {
	err := s.StreamLayer.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for c := range s.open {
		_ = c.Close() // its handler closes it again
	}
	clear(s.open)
	return err
}

// accepted is a connection that a stream has accepted.
type accepted struct {
	net.Conn
	from *stream
}

// Close implements net.Conn.
func (a *accepted) Close() error {
	a.from.mu.Lock()
	delete(a.from.open, a.Conn)
	a.from.mu.Unlock()
	return a.Conn.Close()
}
