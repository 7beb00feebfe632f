package consensus

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// wire is a raft.StreamLayer over TCP that checks the address to dial as a peer port does.
type wire struct {
	net.Listener
	node   string
	mu     *sync.Mutex
	dialed map[string]bool
}

func (w *wire) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	id, host, ok := strings.Cut(string(address), "@")
	if !ok || id == w.node {
		return nil, fmt.Errorf("%s dials %q", w.node, address)
	}
	w.mu.Lock()
	w.dialed[id] = true
	w.mu.Unlock()
	return net.DialTimeout("tcp", host, timeout)
}

// Three nodes over TCP: they elect, replicate, survive the end of their leader, and take it back at its old address while
// connections of its former life are still around. Goroutines that are left would fail TestMain.
func TestThreeNodesOverTCP(t *testing.T) {
	var mu sync.Mutex
	dialed := map[string]bool{}
	addresses := map[string]string{}
	var servers []Server
	nodes := map[string]*node{}
	ids := []string{"n1", "n2", "n3"}
	listeners := map[string]net.Listener{}
	for _, id := range ids {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		listeners[id], addresses[id] = l, l.Addr().String()
		servers = append(servers, Server{ID: id, Address: addresses[id], Voter: true})
	}
	open := func(id string) {
		l := listeners[id]
		if l == nil {
			var err error
			if l, err = net.Listen("tcp", addresses[id]); err != nil {
				t.Fatal(err)
			}
		}
		listeners[id] = nil
		n := nodes[id]
		conf := testConfig(t, n.store, n.toy)
		conf.NodeID, conf.Address = id, addresses[id]
		conf.Stream = &wire{Listener: l, node: id, mu: &mu, dialed: dialed}
		conf.Term = func(_ context.Context, to string) (uint64, error) { return nodes[to].Term(), nil }
		c, err := Open(conf)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close(context.Background()) })
		n.Consensus = c
	}
	for _, id := range ids {
		y := &toy{}
		nodes[id] = &node{toy: y, store: newMemStore(y)}
		if err := bootstrap(nodes[id].store, id, servers...); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range ids {
		open(id)
	}
	leader := func(ids ...string) string {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			for _, id := range ids {
				if nodes[id].IsLeader() && nodes[id].Barrier(t.Context()) == nil {
					return id
				}
			}
		}
		t.Fatal("no leader within 20 s")
		return ""
	}
	expect := func(commands ...string) {
		t.Helper()
		for _, id := range ids {
			for end := time.Now().Add(20 * time.Second); !slices.Equal(nodes[id].toy.commands(), commands); time.Sleep(5 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("%s holds %q after 20 s, want %q", id, nodes[id].toy.commands(), commands)
				}
			}
		}
	}
	first := leader(ids...)
	_, index := nodes[first].propose(t, "a")
	expect("a")
	if got, err := nodes[first].ReadIndex(t.Context()); err != nil || got < index {
		t.Errorf("ReadIndex: %d, %v; want %d at least", got, err, index)
	}
	if got, _ := nodes[first].Servers(); !slices.Equal(got, servers) {
		t.Errorf("servers %v, want %v", got, servers)
	}
	if err := nodes[first].Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	rest := slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return id == first })
	second := leader(rest...)
	nodes[second].propose(t, "b")
	open(first)
	expect("a", "b")
	// All the same with a raft instance that is made anew in the same process, as after a catch-up.
	if err := nodes[second].Transfer(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	leader(ids...)
	if err := nodes[second].Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	open(second)
	nodes[leader(ids...)].propose(t, "c")
	expect("a", "b", "c")
	mu.Lock()
	defer mu.Unlock()
	if len(dialed) < 2 {
		t.Errorf("dialled %v", dialed)
	}
}

// A stream that was given to Open is closed whatever comes of it.
func TestOpenClosesStream(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"bad config": func(c *Config) { c.HeartbeatTimeout = 1 },
		"not member": func(c *Config) { c.NodeID = "somebody else" },
		"bad log":    func(c *Config) { c.Machine = &toy{durable: toyState{at: Position{Index: 99, Term: 1}}} },
		"good":       func(*Config) {},
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		y := &toy{}
		s := newMemStore(y)
		if err := Bootstrap(s, testNode, l.Addr().String()); err != nil {
			t.Fatal(err)
		}
		conf := testConfig(t, s, y)
		conf.Stream = &wire{Listener: l, mu: new(sync.Mutex), dialed: map[string]bool{}}
		change(&conf)
		c, err := Open(conf)
		if (err == nil) != (name == "good") {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			if err := c.Close(t.Context()); err != nil {
				t.Error(err)
			}
		}
		_ = l.(*net.TCPListener).SetDeadline(time.Now().Add(time.Second)) // fails if it is closed, as it should be
		if c, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: the listener is open: %v, %v", name, c, err)
		}
	}
}
