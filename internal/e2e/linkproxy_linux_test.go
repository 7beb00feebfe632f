package e2e

import (
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// rule is what happens to the bytes that flow from one node to another, whoever of them dialled.
type rule struct {
	cut     bool          // bytes stay where they are until the rule goes, as in a TCP stream whose packets are lost
	refuse  bool          // new connections are reset
	delay   time.Duration // of every chunk
	rate    int           // bytes a second; 0: as fast as it goes
	corrupt float64       // probability that a chunk has one byte changed
}

// links stands between the nodes: each advertises the address of a proxy, and each directed link has a rule of its own.
//
// A node advertises one address to all, so what dials in could be anybody. The kernel is asked whose socket the far end is: all is on
// one machine, and the processes are ours. That gives every pair its own link without root, namespaces or a packet filter. What a
// user-space proxy cannot do is lose packets: the kernel at either end goes on acknowledging. TestNamespaces has that.
type links struct {
	t    testing.TB
	seed uint64

	mu      sync.Mutex
	rules   map[[2]int]rule // from, to
	changed chan struct{}   // closed at every change of rules
	pids    map[int]int     // process id to node
	pairs   map[*proxied]struct{}
	closed  bool
}

// proxied is one connection through a proxy.
type proxied struct {
	from, to int // who dialled whom
	near     net.Conn
	far      net.Conn
}

func (p *proxied) close() { p.near.Close(); p.far.Close() }

func newLinks(t testing.TB, seed uint64) *links {
	l := &links{t: t, seed: seed, rules: map[[2]int]rule{}, changed: make(chan struct{}), pids: map[int]int{}, pairs: map[*proxied]struct{}{}}
	t.Cleanup(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.closed = true
		close(l.changed)
		for p := range l.pairs {
			p.close()
		}
	})
	return l
}

// process says which process a node is.
func (l *links) process(pid, node int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pids[pid] = node
}

// set changes the rule of a directed link.
func (l *links) set(from, to int, r rule) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.rules[[2]int{from, to}] = r
	close(l.changed)
	l.changed = make(chan struct{})
}

// both changes the rules between two nodes in both directions.
func (l *links) both(a, b int, r rule) {
	l.set(a, b, r)
	l.set(b, a, r)
}

// heal takes all rules away.
func (l *links) heal() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	clear(l.rules)
	close(l.changed)
	l.changed = make(chan struct{})
}

// reset breaks all connections between two nodes with an RST.
func (l *links) reset(a, b int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for p := range l.pairs {
		if p.from == a && p.to == b || p.from == b && p.to == a {
			for _, c := range []net.Conn{p.near, p.far} {
				_ = c.(*net.TCPConn).SetLinger(0) // closed already is as good
			}
			p.close()
		}
	}
}

func (l *links) rule(from, to int) (r rule, changed <-chan struct{}, closed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rules[[2]int{from, to}], l.changed, l.closed
}

// front opens the proxy in front of a node's peer port and returns its address, which the node advertises.
func (l *links) front(node int, target string) string {
	l.t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go l.serve(c, node, target)
		}
	}()
	return listener.Addr().String()
}

func (l *links) serve(near net.Conn, to int, target string) {
	defer near.Close()
	from := l.owner(near)
	if r, _, _ := l.rule(from, to); r.refuse {
		_ = near.(*net.TCPConn).SetLinger(0)
		return
	}
	far, err := net.DialTimeout("tcp", target, time.Second)
	if err != nil {
		_ = near.(*net.TCPConn).SetLinger(0) // nobody listens: say so as the kernel would
		return
	}
	p := &proxied{from, to, near, far}
	defer p.close()
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return
	}
	l.pairs[p] = struct{}{}
	l.mu.Unlock()
	var wg sync.WaitGroup
	wg.Go(func() { l.pump(near, far, from, to) })
	wg.Go(func() { l.pump(far, near, to, from) })
	wg.Wait()
	l.mu.Lock()
	delete(l.pairs, p)
	l.mu.Unlock()
}

// pump carries bytes of one direction as its rule says.
func (l *links) pump(src, dst net.Conn, from, to int) {
	defer src.Close()
	defer dst.Close()
	r := rand.New(rand.NewPCG(l.seed, uint64(from)<<32|uint64(to)))
	b := make([]byte, 32<<10)
	for {
		n, err := src.Read(b)
		if n > 0 {
			now, ok := l.pass(from, to)
			if !ok {
				return
			}
			if now.corrupt > 0 && r.Float64() < now.corrupt {
				b[r.IntN(n)] ^= byte(1 + r.IntN(255))
			}
			wait := now.delay
			if now.rate > 0 {
				wait += time.Duration(n) * time.Second / time.Duration(now.rate)
			}
			time.Sleep(wait)
			if _, err := dst.Write(b[:n]); err != nil {
				return
			}
		}
		if err != nil {
			// A cut link carries no FIN either.
			l.pass(from, to)
			return
		}
	}
}

// pass waits while the link is cut and returns its rule; false when the test is over.
func (l *links) pass(from, to int) (rule, bool) {
	for {
		r, changed, closed := l.rule(from, to)
		if closed || !r.cut {
			return r, !closed
		}
		<-changed
	}
}

// nobody is who dials without being a node: the test.
const nobody = -1

// owner returns the node whose process has the other end of a connection to a proxy.
func (l *links) owner(c net.Conn) int {
	inode, err := socketInode(c.RemoteAddr().(*net.TCPAddr), c.LocalAddr().(*net.TCPAddr))
	if err != nil {
		return nobody // it is gone already
	}
	l.mu.Lock()
	pids := make(map[int]int, len(l.pids))
	for pid, node := range l.pids {
		pids[pid] = node
	}
	l.mu.Unlock()
	for pid, node := range pids {
		dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue // it has ended
		}
		for _, e := range entries {
			if to, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && to == "socket:["+inode+"]" {
				return node
			}
		}
	}
	return nobody
}

// socketInode asks the kernel for the one socket with these ends (sock_diag(7)). /proc/net/tcp would not do: it is no snapshot, and while many
// sockets come and go leaves out some that were there all the time.
func socketInode(local, remote *net.TCPAddr) (string, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_INET_DIAG)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	const header, request, answer = 16, 56, 72
	b := make([]byte, header+request)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], 20) // SOCK_DIAG_BY_FAMILY
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST)
	q := b[header:] // struct inet_diag_req_v2
	q[0], q[1] = unix.AF_INET, unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(q[4:], ^uint32(0)) // any state
	binary.BigEndian.PutUint16(q[8:], uint16(local.Port))
	binary.BigEndian.PutUint16(q[10:], uint16(remote.Port))
	copy(q[12:], local.IP.To4())
	copy(q[28:], remote.IP.To4())
	binary.NativeEndian.PutUint64(q[48:], ^uint64(0)) // no cookie
	if err := unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return "", err
	}
	r := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, r, 0)
	if err != nil {
		return "", err
	}
	if n < header+answer || binary.NativeEndian.Uint16(r[4:]) != 20 {
		return "", errors.New("no such socket")
	}
	return strconv.FormatUint(uint64(binary.NativeEndian.Uint32(r[header+68:])), 10), nil
}

// TestLinks holds the proxy to its rules: faults that do not happen would make every test behind it worthless.
func TestLinks(t *testing.T) {
	l := newLinks(t, 1)
	l.process(os.Getpid(), 0)
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	go func() {
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); _, _ = io.Copy(c, c) }()
		}
	}()
	address := l.front(1, echo.Addr().String())
	dial := func() net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	const word = "0123456789abcdef"
	// ask sends a word and returns what comes back within the time.
	ask := func(c net.Conn, within time.Duration) string {
		t.Helper()
		if _, err := c.Write([]byte(word)); err != nil {
			return err.Error()
		}
		if err := c.SetReadDeadline(time.Now().Add(within)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, len(word))
		if _, err := io.ReadFull(c, b); err != nil {
			return err.Error()
		}
		return string(b)
	}
	c := dial()
	if got := ask(c, time.Second); got != word {
		t.Fatalf("without rules: %q", got)
	}
	for _, way := range [][2]int{{0, 1}, {1, 0}} { // either direction alone stalls the echo, and healing brings what was sent
		l.set(way[0], way[1], rule{cut: true})
		if got := ask(c, 100*time.Millisecond); !strings.Contains(got, "timeout") {
			t.Errorf("cut %v: %q", way, got)
		}
		l.heal()
		if err := c.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, len(word))
		if _, err := io.ReadFull(c, b); err != nil || string(b) != word {
			t.Errorf("after the cut %v: %q, %v", way, b, err)
		}
	}
	l.both(0, 2, rule{cut: true})
	if got := ask(c, time.Second); got != word {
		t.Errorf("a rule of another link: %q", got)
	}
	l.set(0, 1, rule{delay: 120 * time.Millisecond})
	began := time.Now()
	if got := ask(c, time.Second); got != word || time.Since(began) < 100*time.Millisecond {
		t.Errorf("delay: %q after %v", got, time.Since(began))
	}
	l.set(0, 1, rule{rate: 100})
	began = time.Now()
	if got := ask(c, time.Second); got != word || time.Since(began) < 100*time.Millisecond {
		t.Errorf("rate: %q after %v", got, time.Since(began))
	}
	l.set(0, 1, rule{corrupt: 1})
	if got := ask(c, time.Second); got == word || len(got) != len(word) {
		t.Errorf("corrupt: %q", got)
	}
	l.heal()
	l.reset(1, 0)
	if got := ask(c, time.Second); got == word || strings.Contains(got, "timeout") {
		t.Errorf("reset: %q", got)
	}
	l.set(0, 1, rule{refuse: true})
	if c, err := net.Dial("tcp", address); err == nil { // or it is reset before the caller knows that it was through
		defer c.Close()
		if got := ask(c, time.Second); got == word || strings.Contains(got, "timeout") {
			t.Errorf("refuse: %q", got)
		}
	} else if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("refuse: %v", err)
	}
	l.heal()
	if got := ask(dial(), time.Second); got != word {
		t.Errorf("at the end: %q", got)
	}
}
