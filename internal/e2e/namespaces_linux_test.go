package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// namespaces is a network of the kernel's own for a few nodes: each in a namespace, all connected to a router in another one, which can
// lose the packets of any directed link. Nothing acknowledges what is lost, so connections hang and time out as between machines. The
// network of the machine is not touched.
type namespaces struct {
	t      testing.TB
	router string
	nodes  []string // names of namespaces
	cuts   map[[2]int]bool
}

// newNamespaces makes the network, or skips the test where that is not possible: it needs root, iproute2 and a kernel that lets us.
func newNamespaces(t testing.TB, n int) *namespaces {
	t.Helper()
	if _, err := exec.LookPath("ip"); err != nil || os.Geteuid() != 0 {
		t.Skip("network namespaces need root and iproute2")
	}
	s := &namespaces{t: t, router: fmt.Sprintf("pl%d-r", os.Getpid()), cuts: map[[2]int]bool{}}
	must := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Skipf("cannot make a network here: ip %s: %v %s", strings.Join(args, " "), err, out)
		}
	}
	add := func(name string) {
		t.Helper()
		must("netns", "add", name)
		t.Cleanup(func() {
			if out, err := exec.Command("ip", "netns", "del", name).CombinedOutput(); err != nil {
				t.Errorf("ip netns del %s: %v %s", name, err, out)
			}
		})
		must("-n", name, "link", "set", "lo", "up")
	}
	add(s.router)
	for i := range n {
		name, port := fmt.Sprintf("pl%d-%d", os.Getpid(), i), fmt.Sprintf("port%d", i)
		s.nodes = append(s.nodes, name)
		add(name)
		must("-n", s.router, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
		must("-n", s.router, "addr", "add", gateway(i)+"/24", "dev", port)
		must("-n", s.router, "link", "set", port, "up")
		must("-n", name, "addr", "add", s.host(i)+"/24", "dev", "eth0")
		must("-n", name, "link", "set", "eth0", "up")
		must("-n", name, "route", "add", "default", "via", gateway(i))
	}
	must("netns", "exec", s.router, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
	return s
}

func gateway(i int) string { return fmt.Sprintf("10.213.%d.1", i) }

// host is a node's address.
func (s *namespaces) host(i int) string { return fmt.Sprintf("10.213.%d.2", i) }

// wrap is the command line that runs a program where a node is; it becomes the program, so signals reach that.
func (s *namespaces) wrap(i int) []string { return []string{"ip", "netns", "exec", s.nodes[i]} }

// priority of a rule that loses a link's packets, before the main table (32766), and its own for each link.
func priority(from, to int) string { return fmt.Sprint(100 + 10*from + to) }

// cut loses all packets from one node to another, on their way through the router, so that the sender learns nothing.
func (s *namespaces) cut(from, to int) {
	s.t.Helper()
	if s.cuts[[2]int{from, to}] {
		return
	}
	s.cuts[[2]int{from, to}] = true
	s.ip("-n", s.router, "rule", "add", "from", s.host(from), "to", s.host(to), "priority", priority(from, to), "type", "blackhole")
}

// mend lets the packets through again.
func (s *namespaces) mend(from, to int) {
	s.t.Helper()
	delete(s.cuts, [2]int{from, to})
	s.ip("-n", s.router, "rule", "del", "priority", priority(from, to))
}

func (s *namespaces) mendAll() {
	s.t.Helper()
	for way := range s.cuts {
		s.mend(way[0], way[1])
	}
}

func (s *namespaces) ip(args ...string) {
	s.t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		s.t.Fatalf("ip %s: %v %s", strings.Join(args, " "), err, out)
	}
}

// within runs f on a thread that is in a node's namespace. A socket belongs to the namespace of the thread that made it, also when the
// thread has left (setns(2)), so what f opened can be used anywhere.
func (s *namespaces) within(i int, f func() error) error {
	there, err := os.Open("/var/run/netns/" + s.nodes[i])
	if err != nil {
		return err
	}
	defer there.Close()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine, so none with a strange network is used again
		if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// dial connects to a node from its own namespace: clients are not what is partitioned here.
func (s *namespaces) dial(ctx context.Context, address string) (conn net.Conn, err error) {
	for i := range s.nodes {
		if strings.HasPrefix(address, s.host(i)+":") {
			err = s.within(i, func() (err error) {
				conn, err = new(net.Dialer).DialContext(ctx, "tcp", address)
				return err
			})
			return conn, err
		}
	}
	return nil, fmt.Errorf("%s is no address of a node", address)
}

// TestNamespaces holds the network to what it promises: packets are lost in silence, in one direction, until the link is mended.
func TestNamespaces(t *testing.T) {
	s := newNamespaces(t, 2)
	address := net.JoinHostPort(s.host(1), "7")
	var listener net.Listener
	err := s.within(1, func() (err error) {
		listener, err = net.Listen("tcp", address)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	reach := func() error {
		return s.within(0, func() error {
			c, err := net.DialTimeout("tcp", address, 300*time.Millisecond)
			if err == nil {
				c.Close()
			}
			return err
		})
	}
	if err := reach(); err != nil {
		t.Fatalf("without cuts: %v", err)
	}
	for _, way := range [][2]int{{0, 1}, {1, 0}} { // either direction alone keeps a handshake from completing
		s.cut(way[0], way[1])
		var ne net.Error
		if err := reach(); !errors.As(err, &ne) || !ne.Timeout() {
			t.Errorf("cut %v: %v, want a timeout", way, err)
		}
		s.mend(way[0], way[1])
		if err := reach(); err != nil {
			t.Errorf("mended %v: %v", way, err)
		}
	}
	if c, err := s.dial(t.Context(), address); err != nil {
		t.Errorf("a client: %v", err)
	} else {
		c.Close()
	}
}
