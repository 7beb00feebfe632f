package clustertest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	mrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/devca"
	"github.com/provledger/provledger/internal/localcluster"
	"github.com/provledger/provledger/internal/node"
	"github.com/provledger/provledger/internal/tlsfile"
)

const (
	// patience bounds everything that a script waits for.
	patience = 30 * time.Second
	// impatience is how long something that must not happen is given to happen.
	impatience = 2 * time.Second
	// heartbeat is that of a daemon, with some room for two cores that many scripts share.
	heartbeat = 300 * time.Millisecond
	// dataDir is where each node has its ledger, on a file system of its own.
	dataDir = "node/ledger"
)

// world is one script's machines, and the network between them.
type world struct {
	dir string // for what has to be real files
	ca  *devca.CA
	// machines grows in the script's goroutine, which reads it without the lock.
	machines []*machine

	mu    sync.Mutex
	cut   map[[2]string]bool // unordered pair of names, both ways
	conns map[*link]struct{}
	acked []acked
}

// acked is an event that somebody was told is recorded.
type acked struct {
	id    lineage.ID
	index uint64
	leaf  []byte
}

// link is a connection from one machine to another.
type link struct {
	net.Conn
	w        *world
	from, to string
}

func (l *link) Close() error {
	l.w.mu.Lock()
	delete(l.w.conns, l)
	l.w.mu.Unlock()
	return l.Conn.Close()
}

// machine is a computer: it keeps its name, address, disk and clock while nodes on it come and go.
type machine struct {
	w    *world
	name string
	peer string // HOST:PORT
	disk *vfs.MemFS
	skew atomic.Int64 // microseconds that its clock is ahead
	log  journal
	died atomic.Pointer[string]

	// How a node is started here.
	members, join []string // names
	nonVoter      bool
	noPeer        bool
	secret        string // path of the secret file, "" none
	ca            *devca.CA
	maxCommand    uint8
	trailing      uint64

	squatter net.Listener // somebody else at its port

	node   *node.Node // nil: off
	server *grpc.Server
	conn   *grpc.ClientConn
	opened chan opened // of a start that is under way; all else here belongs to the script's goroutine
	stop   context.CancelFunc
}

// opened is how a start ended.
type opened struct {
	node *node.Node
	err  error
}

// journal is what a machine's nodes logged.
type journal struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.String()
}

func (j *journal) has(pattern *regexp.Regexp) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return pattern.Match(j.b.Bytes())
}

func newWorld(dir string) (*world, error) {
	w := &world{dir: dir, cut: map[[2]string]bool{}, conns: map[*link]struct{}{}}
	var err error
	if w.ca, err = devca.New("provledger clustertest", time.Hour); err != nil {
		return nil, err
	}
	for _, name := range []string{"secret", "other-secret"} {
		b := make([]byte, 32)
		if _, err := rand.Read(b); err != nil {
			return nil, err
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// machine returns the machine of that name, which is made when it is first spoken of.
func (w *world) machine(name string) *machine {
	if i := slices.IndexFunc(w.machines, func(m *machine) bool { return m.name == name }); i >= 0 {
		return w.machines[i]
	}
	ports, err := localcluster.FreePorts(1)
	if err != nil {
		panic(err)
	}
	m := &machine{
		w: w, name: name, peer: fmt.Sprintf("127.0.0.1:%d", ports[0]), disk: vfs.NewCrashableMem(), secret: filepath.Join(w.dir, "secret"), ca: w.ca,
	}
	w.mu.Lock()
	w.machines = append(w.machines, m)
	w.mu.Unlock()
	return m
}

func (w *world) running() (list []*machine) {
	for _, m := range w.machines {
		if m.node != nil && m.died.Load() == nil {
			list = append(list, m)
		}
	}
	return list
}

func pairOf(a, b string) [2]string {
	if a > b {
		a, b = b, a
	}
	return [2]string{a, b}
}

// disconnect cuts the links between two machines: connections break, and new ones are not made.
func (w *world) disconnect(a, b string) {
	w.mu.Lock()
	w.cut[pairOf(a, b)] = true
	var broken []*link
	for l := range w.conns {
		if pairOf(l.from, l.to) == pairOf(a, b) {
			broken = append(broken, l)
		}
	}
	w.mu.Unlock()
	for _, l := range broken {
		l.Close()
	}
}

func (w *world) isolate(name string) {
	for _, m := range w.machines {
		if m.name != name {
			w.disconnect(name, m.name)
		}
	}
}

func (w *world) reconnect(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for p := range w.cut {
		if name == "" || p[0] == name || p[1] == name {
			delete(w.cut, p)
		}
	}
}

// dial is how the nodes of a machine reach others.
func (m *machine) dial(ctx context.Context, network, address string) (net.Conn, error) {
	to := ""
	m.w.mu.Lock()
	for _, other := range m.w.machines {
		if other.peer == address {
			to = other.name
		}
	}
	m.w.mu.Unlock()
	isCut := func() bool {
		m.w.mu.Lock()
		defer m.w.mu.Unlock()
		return m.w.cut[pairOf(m.name, to)]
	}
	if isCut() {
		return nil, fmt.Errorf("dial %s: %s and %s are disconnected", address, m.name, to)
	}
	c, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	l := &link{c, m.w, m.name, to}
	m.w.mu.Lock()
	m.w.conns[l] = struct{}{}
	m.w.mu.Unlock()
	if isCut() {
		l.Close()
		return nil, fmt.Errorf("dial %s: %s and %s are disconnected", address, m.name, to)
	}
	return l, nil
}

// config is how a node is opened on this machine as it is set up now.
func (m *machine) config() (node.Config, error) {
	c := node.Config{
		Dir: dataDir, FS: m.disk, Logger: slog.New(slog.NewTextHandler(&m.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		SecretFile: m.secret, HeartbeatTimeout: heartbeat, MaxCommand: m.maxCommand, Version: "clustertest",
		SegmentBytes: 256 << 10, MemTableBytes: 1 << 20, BlockCacheBytes: 64 << 10, SlowWarn: -1, TrailingLogs: m.trailing,
		Now: func() int64 { return time.Now().UnixMicro() + m.skew.Load() },
		Die: func(reason string, err error) {
			text := fmt.Sprintf("%s: %v", reason, err)
			m.died.Store(&text)
		},
	}
	if m.trailing > 0 { // the log is cut often, and to little
		c.SnapshotBytes, c.SnapshotEvery = 4<<10, 100*time.Millisecond
	}
	if m.noPeer {
		return c, nil
	}
	cert, key := filepath.Join(m.w.dir, m.name+".pem"), filepath.Join(m.w.dir, m.name+"-key.pem")
	certPEM, keyPEM, err := m.ca.Issue(devca.Request{Hosts: []string{"127.0.0.1"}, Validity: time.Hour, Server: true, Client: true})
	if err != nil {
		return c, err
	}
	roots := filepath.Join(m.w.dir, m.name+"-ca.pem")
	if err := errors.Join(os.WriteFile(cert, certPEM, 0o644), os.WriteFile(key, keyPEM, 0o600), os.WriteFile(roots, m.ca.PEM(), 0o644)); err != nil {
		return c, err
	}
	files, err := tlsfile.Open(cert, key, roots, c.Logger)
	if err != nil {
		return c, err
	}
	addresses := func(names []string) (list []string) {
		for _, n := range names {
			list = append(list, m.w.machine(n).peer)
		}
		return list
	}
	c.Peer = &node.Peer{
		Listen: m.peer, Advertise: m.peer, TLS: files, Members: addresses(m.members), Join: addresses(m.join), NonVoter: m.nonVoter, DialContext: m.dial,
	}
	return c, nil
}

// start opens a node, which may wait for others: the result arrives in m.opened.
func (m *machine) start() error {
	if m.node != nil || m.opened != nil {
		return fmt.Errorf("%s runs already", m.name)
	}
	c, err := m.config()
	if err != nil {
		return err
	}
	m.died.Store(nil)
	var ctx context.Context
	ctx, m.stop = context.WithCancel(context.Background())
	result := make(chan opened, 1)
	m.opened = result
	go func() {
		n, err := node.Open(ctx, c)
		result <- opened{n, err}
	}()
	return nil
}

func (m *machine) serve(n *node.Node) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	n.Announce(l.Addr().String())
	conn, err := grpc.NewClient("passthrough:///"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second, Backoff: backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.5, MaxDelay: 200 * time.Millisecond}}))
	if err != nil {
		return err
	}
	m.node, m.server, m.conn = n, n.NewServer(), conn
	go func() { _ = m.server.Serve(l) }() // ends with Stop
	return nil
}

// await waits for a start. It is given until the deadline of ctx, and ends with it.
func (m *machine) await(ctx context.Context) error {
	if m.opened == nil {
		return fmt.Errorf("%s was not started", m.name)
	}
	select {
	case o := <-m.opened:
		m.opened = nil
		if o.err != nil {
			return o.err
		}
		return m.serve(o.node)
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("%s did not open in time", m.name), m.giveUp(ctx))
	}
}

// giveUp ends a start that is under way and returns why it had not succeeded. A node that had just opened is closed.
func (m *machine) giveUp(ctx context.Context) error {
	m.stop()
	o := <-m.opened
	m.opened = nil
	if o.err != nil {
		return o.err
	}
	return o.node.Close(context.WithoutCancel(ctx))
}

// off ends the node in good order.
func (m *machine) off() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if m.opened != nil {
		_ = m.giveUp(ctx) // it was on its way; that it did not arrive is no fault
	}
	if m.node == nil {
		return nil
	}
	n := m.node
	n.Drain()
	m.server.Stop()
	m.conn.Close()
	m.node = nil
	return n.Close(ctx)
}

// kill ends the node as SIGKILL does (percent 100), or a power cut (0), which takes what was not synced: the disk is as it is at this
// moment, the network is gone, and what the node still does reaches nobody.
func (m *machine) kill(percent int) error {
	m.w.isolate(m.name)
	disk := m.disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: mrand.New(mrand.NewPCG(1, 1))})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if m.opened != nil {
		_ = m.giveUp(ctx) // it was on its way; that it did not arrive is no fault
	}
	if m.node != nil {
		m.server.Stop()
		m.conn.Close()
		if err := m.node.Close(ctx); err != nil && m.died.Load() == nil {
			return fmt.Errorf("%s: the killed node does not let go of its port: %w", m.name, err)
		}
	}
	m.node, m.disk = nil, disk
	m.w.reconnect(m.name)
	return nil
}

// close audits, ends everything, and shows what the nodes said last if the script failed.
func (w *world) close(t testing.TB) {
	if !t.Failed() {
		if err := w.audit(); err != nil {
			t.Errorf("audit: %v", err)
		}
	}
	for _, m := range w.machines {
		if m.died.Load() != nil {
			continue // its goroutines stand still for ever, and would be waited for
		}
		if err := m.off(); err != nil {
			t.Errorf("%s: close: %v", m.name, err)
		}
	}
	if !t.Failed() {
		return
	}
	for _, m := range w.machines {
		const most = 12 << 10
		s := m.log.String()
		t.Logf("---- %s (%s) said:\n%s", m.name, m.peer, strings.TrimSpace(s[max(0, len(s)-most):]))
	}
}
