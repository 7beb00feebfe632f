package peer

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/devca"
	"github.com/provledger/provledger/internal/tlsfile"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what should happen at once.
const patience = 10 * time.Second

var cluster = lineage.NewID()

// authority is one for all tests: it has no state.
var authority = sync.OnceValue(func() *devca.CA {
	ca, err := devca.New("peer test", time.Hour)
	if err != nil {
		panic(err)
	}
	return ca
})

// logged is a logger's output.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *logged) wait(t *testing.T, want string) {
	t.Helper()
	for end := time.Now().Add(patience); !strings.Contains(l.String(), want); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the log never said %q:\n%s", want, l)
		}
	}
}

// node is a port with what is needed to look at it.
type node struct {
	*Port
	log      *logged
	registry *prometheus.Registry
	dir      string // of the certificate files

	mu    sync.Mutex
	hello Hello
}

func (n *node) self() Hello {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.hello
}

func (n *node) is(h func(*Hello)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	h(&n.hello)
}

// raftAddress is what others dial this node's raft at.
func (n *node) raftAddress() raft.ServerAddress {
	return raft.ServerAddress(n.self().NodeID.String() + "@" + n.self().Address)
}

// setup changes what newNode makes: the request for the certificate, its authority, the options, the hello.
type setup struct {
	ca      *devca.CA
	request devca.Request
	options Options
	hello   Hello
}

func newNode(t testing.TB, change func(*setup)) *node {
	t.Helper()
	n := &node{log: &logged{}, registry: prometheus.NewRegistry(), dir: t.TempDir()}
	s := &setup{
		ca:      authority(),
		request: devca.Request{Hosts: []string{"127.0.0.1"}, Validity: time.Hour, Server: true, Client: true},
		hello:   Hello{ClusterID: cluster, NodeID: lineage.NewID(), BootID: lineage.NewID(), Configuration: 7, APIAddress: "127.0.0.1:7600"},
	}
	s.options = Options{Self: n.self, Logger: slog.New(slog.NewTextHandler(n.log, &slog.HandlerOptions{Level: slog.LevelDebug})), Registry: n.registry}
	if change != nil {
		change(s)
	}
	writeFiles(t, n.dir, s.ca, s.request)
	files, err := openFiles(n.dir)
	if err != nil {
		t.Fatal(err)
	}
	s.options.TLS = files
	n.hello = s.hello
	n.Port, err = Listen("127.0.0.1:0", s.options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	if n.self().Address == "" {
		n.is(func(h *Hello) { h.Address = n.Addr().String() })
	}
	return n
}

// writeFiles puts a new certificate where openFiles reads one. The cluster's authority is always the common one.
func writeFiles(t testing.TB, dir string, ca *devca.CA, r devca.Request) {
	t.Helper()
	cert, key, err := ca.Issue(r)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"cert.pem": cert, "key.pem": key, "ca.pem": authority().PEM()} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func openFiles(dir string) (*tlsfile.Files, error) {
	return tlsfile.Open(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "ca.pem"), nil)
}

// refusedFor is the value of the counter of refusals.
func (n *node) refusedFor(t testing.TB, reason string) float64 {
	t.Helper()
	return n.metric(t, "provledger_peer_refused_total", reason)
}

func (n *node) metric(t testing.TB, name, label string) float64 {
	t.Helper()
	families, err := n.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			if len(m.GetLabel()) == 1 && m.GetLabel()[0].GetValue() == label {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	t.Fatalf("no metric %s of %q", name, label)
	return 0
}

// transport is raft's own transport over a port, which answers AppendEntries by raising its term by one.
func (n *node) transport(t testing.TB) *raft.NetworkTransport {
	t.Helper()
	s := n.Raft()
	tr := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: s, MaxPool: 3, MaxRPCsInFlight: 1, Timeout: patience, Logger: hclog.NewNullLogger(),
	})
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case rpc := <-tr.Consumer():
				rpc.Respond(&raft.AppendEntriesResponse{Term: rpc.Command.(*raft.AppendEntriesRequest).Term + 1, Success: true}, nil)
			case <-stop:
				return
			}
		}
	}()
	t.Cleanup(func() {
		_ = tr.Close()
		close(stop)
		<-stopped
	})
	return tr
}

func echo(from *raft.NetworkTransport, to *node) error {
	var answer raft.AppendEntriesResponse
	err := from.AppendEntries("", to.raftAddress(), &raft.AppendEntriesRequest{
		Term: 41, RPCHeader: raft.RPCHeader{Addr: []byte("x")}, Entries: []*raft.Log{{Index: 1, Data: bytes.Repeat([]byte{7}, 100_000)}},
	}, &answer)
	if err == nil && (!answer.Success || answer.Term != 42) {
		err = errors.New("another answer than was sent")
	}
	return err
}

func TestRaftLane(t *testing.T) {
	a, b := newNode(t, nil), newNode(t, nil)
	at, bt := a.transport(t), b.transport(t)
	for range 20 {
		if err := errors.Join(echo(at, b), echo(bt, a)); err != nil {
			t.Fatal(err)
		}
	}
	if got := b.metric(t, "provledger_peer_connections", "raft"); got != 1 {
		t.Errorf("%v raft connections to one node, want the pooled one", got)
	}
	if got, want := string(at.LocalAddr()), a.self().Address; got != want {
		t.Errorf("raft's own address is %q, want the advertised %q", got, want)
	}
	if b.refusedFor(t, reasonLane) != 0 || strings.Contains(b.log.String(), "refused") {
		t.Errorf("a good peer was refused:\n%s", b.log)
	}
}

// serve runs a gRPC server on a node's API lane. What the health service is asked comes with who asked.
func (n *node) serve(t testing.TB) <-chan Remote {
	t.Helper()
	callers := make(chan Remote, 100)
	s := grpc.NewServer(grpc.Creds(ServerCredentials()), grpc.UnaryInterceptor(
		func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
			r, ok := From(ctx)
			if !ok {
				return nil, errors.New("nobody called")
			}
			callers <- r
			return h(ctx, req)
		}))
	healthpb.RegisterHealthServer(s, health.NewServer())
	l := n.API()
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
	return callers
}

// call asks the health service of a node.
func (n *node) call(t testing.TB, want lineage.ID, address string) error {
	t.Helper()
	cc, err := n.Dial(want, address)
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, err = healthpb.NewHealthClient(cc).Check(ctx, &healthpb.HealthCheckRequest{})
	return err
}

func TestAPILane(t *testing.T) {
	a, b := newNode(t, nil), newNode(t, nil)
	callers := b.serve(t)
	for _, want := range []lineage.ID{b.self().NodeID, {}} {
		if err := a.call(t, want, b.self().Address); err != nil {
			t.Fatal(err)
		}
		r := <-callers
		if r.Hello != a.self() || !r.Certificate.Equal(a.o.TLS.Certificate().Leaf) {
			t.Errorf("the caller is %+v with certificate %v, want %+v", r.Hello, r.Certificate.Subject, a.self())
		}
	}
	if _, ok := From(context.Background()); ok {
		t.Error("somebody called in a context without a call")
	}
}

// A server with the port's credentials behind any other listener serves nobody.
func TestCredentialsNeedThePort(t *testing.T) {
	one, other := net.Pipe()
	defer one.Close()
	defer other.Close()
	if _, _, err := ServerCredentials().ServerHandshake(one); err == nil {
		t.Error("a bare connection was taken for a peer's")
	}
}

func TestDialToAnotherNode(t *testing.T) {
	a, b, c := newNode(t, nil), newNode(t, nil), newNode(t, nil)
	at := a.transport(t)
	b.transport(t)
	b.serve(t)
	var answer raft.AppendEntriesResponse
	target := raft.ServerAddress(c.self().NodeID.String() + "@" + b.self().Address)
	want := "the node there is " + b.self().NodeID.String()
	if err := at.AppendEntries("", target, &raft.AppendEntriesRequest{}, &answer); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("raft to another node: %v, want %q", err, want)
	}
	if err := a.call(t, c.self().NodeID, b.self().Address); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("a call to another node: %v, want %q", err, want)
	}
	for _, bad := range []string{b.self().Address, "x@" + b.self().Address, b.self().NodeID.String() + "@nohost"} {
		if err := at.AppendEntries("", raft.ServerAddress(bad), &raft.AppendEntriesRequest{}, &answer); err == nil {
			t.Errorf("raft address %q was dialled", bad)
		}
	}
}

func TestAsk(t *testing.T) {
	member, fresh := newNode(t, nil), newNode(t, func(s *setup) { s.hello.ClusterID = lineage.ID{} })
	for _, pair := range [][2]*node{{member, fresh}, {fresh, member}} {
		got, err := pair[0].Ask(t.Context(), pair[1].self().NodeID, pair[1].self().Address)
		if err != nil || got != pair[1].self() {
			t.Errorf("asked who it is: %+v, %v; want %+v", got, err, pair[1].self())
		}
	}
	if _, err := member.Ask(t.Context(), member.self().NodeID, fresh.self().Address); err == nil {
		t.Error("another node answered")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := member.Ask(ctx, lineage.ID{}, fresh.self().Address); !errors.Is(err, context.Canceled) {
		t.Errorf("a question nobody waits for: %v", err)
	}
}

func TestPortTaken(t *testing.T) {
	n := newNode(t, nil)
	_, err := Listen(n.Addr().String(), Options{TLS: n.o.TLS, Self: n.self})
	if err == nil || !strings.Contains(err.Error(), "peer-address") || !strings.Contains(err.Error(), n.Addr().String()) {
		t.Errorf("the port is taken: %v", err)
	}
	if _, err := Listen("127.0.0.1:0", Options{Self: n.self}); err == nil {
		t.Error("a port without certificate")
	}
}

// One raft instance after the other uses the port; what the first had is closed with it.
func TestRaftAgain(t *testing.T) {
	a, b := newNode(t, nil), newNode(t, nil)
	at := a.transport(t)
	first := b.Raft()
	c, err := a.Raft().Dial(b.raftAddress(), patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	accepted, err := first.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	_ = accepted.SetReadDeadline(time.Now().Add(patience))
	if _, err := accepted.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Error("a connection outlived the raft instance that accepted it")
	}
	_ = c.SetReadDeadline(time.Now().Add(patience))
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF && !errors.Is(err, os.ErrClosed) && !strings.Contains(err.Error(), "reset") {
		t.Errorf("the other end of a closed connection reads %d, %v", n, err)
	}
	if err := echo(at, b); err == nil || !strings.Contains(err.Error(), "does not take raft connections") {
		t.Errorf("without a raft instance: %v", err)
	}
	second := b.Raft()
	b.transport(t)
	if _, err := second.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a superseded raft instance accepts: %v", err)
	}
	if err := second.Close(); err != nil { // and closing it late does not disturb its successor
		t.Fatal(err)
	}
	if err := echo(at, b); err != nil {
		t.Error(err)
	}
}

func TestNodeCaps(t *testing.T) {
	a, b := newNode(t, nil), newNode(t, nil)
	s := b.Raft()
	defer s.Close()
	dialer := a.Raft()
	defer dialer.Close()
	var there []net.Conn
	for range MaxRaftConnections + 1 {
		if _, err := dialer.Dial(b.raftAddress(), patience); err != nil {
			t.Fatal(err)
		}
		c, err := s.Accept()
		if err != nil {
			t.Fatal(err)
		}
		there = append(there, c)
	}
	b.log.wait(t, "more than 8 raft connections")
	if got := b.metric(t, "provledger_peer_connections", "raft"); got != MaxRaftConnections {
		t.Errorf("%v raft connections of one node are open", got)
	}
	_ = there[0].SetReadDeadline(time.Now().Add(patience))
	if _, err := there[0].Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the oldest connection is not closed: %v", err)
	}
	// Another node is not affected.
	c := newNode(t, nil)
	other := c.Raft()
	defer other.Close()
	if _, err := other.Dial(b.raftAddress(), patience); err != nil {
		t.Error(err)
	}
}

func TestReload(t *testing.T) {
	a, b := newNode(t, nil), newNode(t, nil)
	callers := b.serve(t)
	old := a.o.TLS.Certificate().Leaf
	from := func() *x509.Certificate {
		t.Helper()
		if err := a.call(t, b.self().NodeID, b.self().Address); err != nil {
			t.Fatal(err)
		}
		return (<-callers).Certificate
	}
	if !from().Equal(old) {
		t.Fatal("another certificate was shown")
	}
	if err := os.WriteFile(filepath.Join(a.dir, "cert.pem"), []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := a.o.TLS.Reload(); err == nil {
		t.Error("a bad certificate was taken")
	}
	if !from().Equal(old) {
		t.Error("the good certificate is gone")
	}
	writeFiles(t, a.dir, authority(), devca.Request{Hosts: []string{"127.0.0.1"}, Validity: time.Hour, Server: true, Client: true})
	if err := a.o.TLS.Reload(); err != nil {
		t.Fatal(err)
	}
	if got := from(); got.Equal(old) || !got.Equal(a.o.TLS.Certificate().Leaf) {
		t.Error("the new certificate is not used by the calling side")
	}
	// And by the called side: b's view of a's port.
	a.serve(t)
	c, err := b.dial(t.Context(), LaneAPI, a.self().NodeID, a.self().Address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if !c.remote.Certificate.Equal(a.o.TLS.Certificate().Leaf) {
		t.Error("the new certificate is not used by the called side")
	}
}

func TestClose(t *testing.T) {
	a, b := newNode(t, nil), newNode(t, nil)
	b.serve(t)
	s := b.Raft()
	dialer := a.Raft()
	defer dialer.Close()
	c, err := dialer.Dial(b.raftAddress(), patience)
	if err != nil {
		t.Fatal(err)
	}
	idle, err := net.Dial("tcp", b.Addr().String()) // in the handshake
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	began := time.Now()
	if err := errors.Join(b.Close(), b.Close()); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(began); d > HandshakeTimeout/2 {
		t.Errorf("closing took %v: it waited for strangers", d)
	}
	if _, err := s.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a closed port accepts: %v", err)
	}
	_ = c.SetReadDeadline(time.Now().Add(patience))
	if _, err := c.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("a connection outlived its port: %v", err)
	}
	if _, err := b.API().Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a lane of a closed port: %v", err)
	}
}
