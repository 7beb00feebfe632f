package peer

import (
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
)

// stranger is an inbound connection before it is known who it is, and the transport of it afterwards.
type stranger struct {
	net.Conn
	source  netip.Addr  // without port: what is limited is machines
	heard   atomic.Bool // it has sent something
	evicted atomic.Bool // it was closed to make room
}

func newStranger(raw net.Conn) *stranger {
	s := &stranger{Conn: raw}
	if a, err := netip.ParseAddrPort(raw.RemoteAddr().String()); err == nil {
		s.source = a.Addr().Unmap()
	}
	return s
}

func (s *stranger) Read(b []byte) (int, error) {
	n, err := s.Conn.Read(b)
	if n > 0 && !s.heard.Load() {
		s.heard.Store(true)
	}
	return n, err
}

// giveWay closes a connection that has not said a word. Nothing is owed to it.
func (s *stranger) giveWay() {
	s.evicted.Store(true)
	abort(s.Conn)
}

// abort closes a connection and forgets it: no state of it stays in the kernel, as would after a polite end.
func abort(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = c.Close()
}

// slots bounds the strangers. A connection that has said nothing gives way to a newer one, the oldest first: thousands that connect and
// wait displace each other, and a peer, which speaks at once, gets in between. Those that have spoken are not displaced; they have their
// three seconds, and a newcomer is turned away.
type slots struct {
	mu  sync.Mutex
	all []*stranger // oldest first; so few that walking them is nothing
}

// enter finds room for s, unless !ok. The caller closes the victim.
func (l *slots) enter(s *stranger) (victim *stranger, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	same := func(x *stranger) bool { return x.source == s.source }
	if !s.source.IsLoopback() && count(l.all, same) >= MaxHandshakesPerSource {
		if victim = l.evict(same); victim == nil {
			return nil, false
		}
	}
	if len(l.all) >= MaxHandshakes {
		if victim = l.evict(func(*stranger) bool { return true }); victim == nil {
			return nil, false
		}
	}
	l.all = append(l.all, s)
	return victim, true
}

func (l *slots) evict(which func(*stranger) bool) *stranger {
	i := slices.IndexFunc(l.all, func(x *stranger) bool { return which(x) && !x.heard.Load() })
	if i < 0 {
		return nil
	}
	victim := l.all[i]
	l.all = slices.Delete(l.all, i, i+1)
	return victim
}

func (l *slots) leave(s *stranger) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.Index(l.all, s); i >= 0 {
		l.all = slices.Delete(l.all, i, i+1)
	}
}

func count(all []*stranger, which func(*stranger) bool) (n int) {
	for _, s := range all {
		if which(s) {
			n++
		}
	}
	return n
}
