package peer

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/devca"
)

// Whoever should not get in does not, is told why as far as TLS lets it be, is logged and counted, and leaves healthy peers alone.
func TestRefusals(t *testing.T) {
	foreign, err := devca.New("another cluster", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	const moved = "10.9.8.7:7601" // where the membership has a node
	var inMembership lineage.ID
	gone := lineage.NewID()
	healthy := newNode(t, nil)
	b := newNode(t, func(s *setup) {
		s.options.AddressOf = func(id lineage.ID) (string, bool) {
			return moved, id == inMembership && id != lineage.ID{}
		}
		s.options.Admit = func(_ Lane, h Hello, _ *x509.Certificate) error {
			if h.NodeID == gone {
				return errors.New("it was removed at index 12")
			}
			return nil
		}
	})
	b.transport(t)
	ht := healthy.transport(t)
	for _, tc := range []struct {
		name   string
		change func(*setup)
		reason string
		logged string
		told   string
	}{
		{"wrong cluster", func(s *setup) { s.hello.ClusterID = lineage.NewID() }, reasonCluster, "belongs to cluster", "refuses this node"},
		{"no cluster", func(s *setup) { s.hello.ClusterID = lineage.ID{} }, reasonCluster, "belongs to no cluster yet", "raft is for members"},
		{"foreign authority", func(s *setup) { s.ca = foreign }, reasonCertificate, "unknown authority", "does not accept this node's certificate"},
		{"expired", func(s *setup) { s.request.Validity = -time.Minute }, reasonCertificate, "expired", "does not accept this node's certificate"},
		{"server only", func(s *setup) { s.request.Client = false }, reasonCertificate, "incompatible key usage", "does not accept this node's certificate"},
		{"other host", func(s *setup) { s.request.Hosts = []string{"other.example"} }, reasonName, "the address that it says it has", "refuses this node"},
		{"not the host of the membership", func(s *setup) { inMembership = s.hello.NodeID }, reasonName, "10.9.8.7", "the address that the membership has"},
		{"certificate of another node", func(s *setup) { s.request.NodeID = lineage.NewID() }, reasonName, "the certificate is for urn:uuid:", "refuses this node"},
		{"not a member", func(s *setup) { s.hello.NodeID = gone }, reasonAdmit, "removed at index 12", "removed at index 12"},
		{"the node itself", func(s *setup) { s.hello.NodeID = b.self().NodeID }, reasonTwice, "two processes run as node " + b.self().NodeID.String(), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := b.refusedFor(t, tc.reason)
			bad := newNode(t, tc.change)
			err := echo(bad.transport(t), b)
			if err == nil || !strings.Contains(err.Error(), tc.told) {
				t.Errorf("it was told %v, want %q", err, tc.told)
			}
			b.log.wait(t, "reason="+tc.reason)
			b.log.wait(t, tc.logged)
			if got := b.refusedFor(t, tc.reason); got != before+1 {
				t.Errorf("%v refusals for %s, want %v", got, tc.reason, before+1)
			}
			if err := echo(ht, b); err != nil {
				t.Errorf("a healthy peer: %v", err)
			}
			b.refused.mu.Lock()
			b.refused.said = nil // as if the next case came from another source
			b.refused.mu.Unlock()
		})
	}
	if got := b.metric(t, "provledger_peer_connections", "raft"); got != 1 {
		t.Errorf("%v connections are open, want that of the healthy peer", got)
	}
}

// A ledger that never had an address is known by its node id; what it says of itself counts then.
func TestMemberWithoutAddress(t *testing.T) {
	a := newNode(t, nil)
	b := newNode(t, func(s *setup) { s.options.AddressOf = func(id lineage.ID) (string, bool) { return id.String(), true } })
	b.transport(t)
	if err := echo(a.transport(t), b); err != nil {
		t.Error(err)
	}
}

// The calling side looks as hard as the called one.
func TestDialerRefuses(t *testing.T) {
	foreign, err := devca.New("another cluster", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	a := newNode(t, nil)
	at := a.transport(t)
	for _, tc := range []struct {
		name   string
		change func(*setup)
		want   string
	}{
		{"foreign authority", func(s *setup) { s.ca = foreign }, "unknown authority"},
		{"expired", func(s *setup) { s.request.Validity = -time.Minute }, "expired"},
		{"other host", func(s *setup) { s.request.Hosts = []string{"other.example"} }, "127.0.0.1"},
		{"certificate of another node", func(s *setup) { s.request.NodeID = lineage.NewID() }, "the certificate is for urn:uuid:"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bad := newNode(t, tc.change)
			bad.transport(t)
			if err := echo(at, bad); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
}

// Strangers are given up with a reason, those who stall at the deadline.
func TestStrangers(t *testing.T) {
	good := newNode(t, nil)
	withCert := func(t *testing.T, b *node, protocols ...string) *tls.Conn {
		t.Helper()
		c, err := tls.Dial("tcp", b.Addr().String(), good.o.TLS.ClientConfig("127.0.0.1", protocols...))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	plain := func(t *testing.T, b *node, send string) net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", b.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, send); err != nil {
			t.Fatal(err)
		}
		return c
	}
	after := func(what string) func(*testing.T, *node) net.Conn {
		return func(t *testing.T, b *node) net.Conn {
			c := withCert(t, b, protocols[LaneRaft])
			if _, err := io.WriteString(c, what); err != nil {
				t.Fatal(err)
			}
			return c
		}
	}
	for _, tc := range []struct {
		name   string
		do     func(*testing.T, *node) net.Conn
		reason string
	}{
		{"garbage", func(t *testing.T, b *node) net.Conn {
			return plain(t, b, "\x00\x01\x02 no TLS at all, but long enough")
		}, reasonNotTLS},
		{"HTTP", func(t *testing.T, b *node) net.Conn { return plain(t, b, "GET / HTTP/1.1\r\nHost: x\r\n\r\n") }, reasonNotTLS},
		{"raft without TLS", func(t *testing.T, b *node) net.Conn { return plain(t, b, "\x00\x89\xafRPCHeader") }, reasonNotTLS},
		{"connects and leaves", func(t *testing.T, b *node) net.Conn {
			c := plain(t, b, "")
			_ = c.Close()
			return c
		}, reasonSilent},
		{"stalls at once", func(t *testing.T, b *node) net.Conn { return plain(t, b, "") }, reasonStalled},
		{"stalls in TLS", func(t *testing.T, b *node) net.Conn {
			return plain(t, b, "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
		}, reasonStalled},
		{"stalls after TLS", after(""), reasonStalled},
		{"stalls within the hello", after("plhello\x01\x00\x50abc"), reasonStalled},
		{"no ALPN", func(t *testing.T, b *node) net.Conn { return withCert(t, b) }, reasonProtocol},
		{"other ALPN", func(t *testing.T, b *node) net.Conn {
			c := plain(t, b, "")
			if err := tls.Client(c, good.o.TLS.ClientConfig("127.0.0.1", "provledger-raft/9")).Handshake(); err == nil {
				t.Error("a protocol was agreed on")
			}
			return c
		}, reasonTLS},
		// crypto/tls lets HTTP/1.1 pass where HTTP/2 is spoken, without a protocol.
		{"a browser", func(t *testing.T, b *node) net.Conn { return withCert(t, b, "http/1.1") }, reasonProtocol},
		{"TLS 1.2", func(t *testing.T, b *node) net.Conn {
			c := plain(t, b, "")
			config := good.o.TLS.ClientConfig("127.0.0.1", "h2")
			config.MinVersion, config.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
			if err := tls.Client(c, config).Handshake(); err == nil {
				t.Error("TLS 1.2 was agreed on")
			}
			return c
		}, reasonTLS},
		{"no certificate", func(t *testing.T, b *node) net.Conn {
			c, err := tls.Dial("tcp", b.Addr().String(), &tls.Config{RootCAs: good.o.TLS.Roots(), ServerName: "127.0.0.1", NextProtos: []string{"h2"}})
			if err != nil {
				t.Fatal(err)
			}
			return c
		}, reasonTLS},
		{"HTTP/2 instead of the hello", after("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), reasonHello},
		{"later version", after("plhello\x02\x00\x50"), reasonHello},
		{"huge hello", after("plhello\x01\xff\xff"), reasonHello},
		{"hello without ids", after("plhello\x01\x00\x3e" + strings.Repeat("\x00", 62)), reasonHello},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := newNode(t, nil)
			b.transport(t)
			began := time.Now()
			c := tc.do(t, b)
			defer c.Close()
			b.log.wait(t, "reason="+tc.reason)
			if d := time.Since(began); tc.reason == reasonStalled && (d < HandshakeTimeout/2 || d > HandshakeTimeout+2*time.Second) {
				t.Errorf("given up after %v, want %v", d, HandshakeTimeout)
			}
			if got := b.refusedFor(t, tc.reason); got != 1 {
				t.Errorf("%v refusals for %s", got, tc.reason)
			}
			_ = c.SetReadDeadline(time.Now().Add(patience))
			if _, err := io.Copy(io.Discard, c); isTimeout(err) {
				t.Error("the connection is still open")
			}
			if err := echo(newNode(t, nil).transport(t), b); err != nil {
				t.Errorf("a healthy peer: %v", err)
			}
		})
	}
}

// Thousands who connect and say nothing cost a few sockets, and a peer gets in between. Raft's own transport would have allocated
// 256 KiB for each of them.
func TestIdleStrangersCostNothing(t *testing.T) {
	const strangers = 2000
	b := newNode(t, nil)
	b.transport(t)
	a := newNode(t, nil)
	at := a.transport(t)
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	before, goroutines := heap(), runtime.NumGoroutine()
	var idle []net.Conn
	defer func() {
		for _, c := range idle {
			_ = c.Close()
		}
	}()
	for i := range strangers {
		c, err := net.Dial("tcp", b.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		idle = append(idle, c)
		if i%500 == 499 {
			if err := echo(at, b); err != nil {
				t.Fatalf("after %d strangers: %v", i+1, err)
			}
			if _, err := a.Ask(t.Context(), b.self().NodeID, b.self().Address); err != nil { // a new connection, not the pooled one
				t.Fatalf("after %d strangers: %v", i+1, err)
			}
		}
	}
	during := heap()
	if n := runtime.NumGoroutine() - goroutines; n > MaxHandshakes+20 {
		t.Errorf("%d goroutines for %d strangers", n, strangers)
	}
	// The test's own ends of the connections are in it, about 1 KiB each.
	if grown := int64(during) - int64(before); grown > 8<<20 {
		t.Errorf("%d strangers cost %d bytes", strangers, grown)
	} else {
		t.Logf("%d strangers cost %d bytes", strangers, grown)
	}
	if n := strings.Count(b.log.String(), "reason="+reasonBusy); n == 0 || n > 2 {
		t.Errorf("%d lines in the log about one source, want one each ten seconds", n)
	}
	if got := b.refusedFor(t, reasonBusy); got < strangers-MaxHandshakes-10 {
		t.Errorf("%v of %d strangers made room", got, strangers)
	}
}

func TestSlots(t *testing.T) {
	var l slots
	from := func(source string, heard bool) *stranger {
		s := &stranger{source: netip.MustParseAddr(source)}
		s.heard.Store(heard)
		return s
	}
	var talkers []*stranger
	for range MaxHandshakesPerSource {
		s := from("192.0.2.1", true)
		talkers = append(talkers, s)
		if v, ok := l.enter(s); v != nil || !ok {
			t.Fatal("no room for a source's few")
		}
	}
	if _, ok := l.enter(from("192.0.2.1", true)); ok {
		t.Error("one source has more than its share")
	}
	l.leave(talkers[0])
	silent := from("192.0.2.1", false)
	if v, ok := l.enter(silent); v != nil || !ok {
		t.Error("the place of one that left is not free")
	}
	if v, ok := l.enter(from("192.0.2.1", false)); v != silent || !ok {
		t.Error("the silent one of a source does not make room for the next")
	}
	for i := len(l.all); i < MaxHandshakes; i++ {
		if v, ok := l.enter(from(fmt.Sprintf("192.0.2.%d", 10+i), true)); v != nil || !ok {
			t.Fatal("no room for other sources")
		}
	}
	if v, ok := l.enter(from("192.0.2.200", true)); !ok || v == nil || v.heard.Load() {
		t.Error("the last silent one does not make room")
	}
	if _, ok := l.enter(from("192.0.2.201", true)); ok || len(l.all) != MaxHandshakes {
		t.Errorf("%d handshakes, %d are the most", len(l.all), MaxHandshakes)
	}
	l = slots{}
	for range MaxHandshakes {
		if v, ok := l.enter(from("127.0.0.1", true)); v != nil || !ok {
			t.Fatal("a cluster on one machine is limited as one source")
		}
	}
}

func TestComplaintsAreThin(t *testing.T) {
	var r refusals
	now := time.Unix(1e9, 0)
	one := complaint{netip.MustParseAddr("192.0.2.1"), reasonNotTLS}
	if n, due := r.say(one, now); n != 0 || !due {
		t.Error("the first is not said")
	}
	for range 5 {
		if _, due := r.say(one, now); due {
			t.Error("said again")
		}
	}
	if _, due := r.say(complaint{one.source, reasonTLS}, now); !due {
		t.Error("another reason is not said")
	}
	if n, due := r.say(one, now.Add(quietFor)); n != 5 || !due {
		t.Errorf("after a while: %v, %d left out", due, n)
	}
	lines := 0
	for i := range 20 * maxComplaints {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		if _, due := r.say(complaint{a, reasonNotTLS}, now.Add(quietFor)); due {
			lines++
		}
	}
	if len(r.said) > maxComplaints+2 || lines > maxComplaints+2 {
		t.Errorf("a scan from everywhere: %d remembered, %d lines", len(r.said), lines)
	}
}
