package peer

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/provledger/provledger/client/lineage"
)

// book is a membership: where nodes are.
type book struct {
	mu sync.Mutex
	at map[lineage.ID]string
}

func (b *book) address(id lineage.ID) (string, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	a, ok := b.at[id]
	return a, ok
}

func (b *book) set(id lineage.ID, address string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.at == nil {
		b.at = map[lineage.ID]string{}
	}
	b.at[id] = address
}

func (b *book) member(t *testing.T, change func(*setup)) *node {
	return newNode(t, func(s *setup) {
		s.options.AddressOf = b.address
		if change != nil {
			change(s)
		}
	})
}

// Two processes on copies of one directory: the one at the registered address is the node, whoever came first.
func TestTwoProcessesOfOneNode(t *testing.T) {
	var members book
	b := members.member(t, nil)
	b.transport(t)
	real := members.member(t, nil)
	twin := members.member(t, func(s *setup) { s.hello.NodeID = real.self().NodeID })
	rt, tt := real.transport(t), twin.transport(t)

	// While the membership has the address of the real one, the twin is refused, again and again and without asking each time.
	members.set(real.self().NodeID, real.self().Address)
	for range 3 {
		err := echo(tt, b)
		if err == nil || !strings.Contains(err.Error(), "two processes run as node "+real.self().NodeID.String()) {
			t.Fatalf("the twin was told %v", err)
		}
	}
	b.log.wait(t, "level=ERROR")
	b.log.wait(t, "reason="+reasonTwice)
	for end := time.Now().Add(patience); b.refusedFor(t, reasonTwice) != 3; time.Sleep(time.Millisecond) { // counted after it was told
		if time.Now().After(end) {
			t.Fatalf("%v refusals, want 3", b.refusedFor(t, reasonTwice))
		}
	}
	if err := echo(rt, b); err != nil {
		t.Errorf("the real one: %v", err)
	}
	if err := echo(tt, b); err == nil {
		t.Error("the twin got in after the real one")
	}
	if err := echo(rt, b); err != nil {
		t.Errorf("the real one, after the twin: %v", err)
	}
}

// A node whose registered address does not answer is let in, said once; when somebody answers there who is another, it loses its place.
func TestNobodyAtTheRegisteredAddress(t *testing.T) {
	var members book
	b := members.member(t, nil)
	b.transport(t)
	dead := newNode(t, nil)
	nobody := dead.Addr().String()
	if err := dead.Close(); err != nil {
		t.Fatal(err)
	}
	twin := members.member(t, nil)
	members.set(twin.self().NodeID, nobody)
	tt := twin.transport(t)
	for range 3 {
		if err := echo(tt, b); err != nil {
			t.Fatalf("a node that cannot be called back: %v", err)
		}
		tt.CloseStreams() // so that each time is a new connection
	}
	if n := strings.Count(b.log.String(), "let in unchecked"); n != 1 {
		t.Errorf("said %d times:\n%s", n, b.log)
	}
	if err := echo(tt, b); err != nil {
		t.Fatal(err)
	}
	real := members.member(t, func(s *setup) { s.hello.NodeID = twin.self().NodeID })
	members.set(real.self().NodeID, real.self().Address)
	if err := echo(real.transport(t), b); err != nil {
		t.Fatalf("the real one: %v", err)
	}
	if err := echo(tt, b); err == nil { // over the connection that it had
		t.Error("the twin's connection stayed open")
	}
}

// Both sides ask back at the same time, at the first connection of a cluster that starts, and neither waits for the other.
func TestBothAskBack(t *testing.T) {
	var members book
	var all []*node
	for range 3 {
		n := members.member(t, nil)
		members.set(n.self().NodeID, n.self().Address)
		all = append(all, n)
	}
	var wg sync.WaitGroup
	for _, from := range all {
		tr := from.transport(t)
		for _, to := range all {
			if from != to {
				for range 3 {
					wg.Go(func() {
						if err := echo(tr, to); err != nil && !strings.Contains(err.Error(), "does not take raft connections") {
							t.Error(err)
						}
					})
				}
			}
		}
	}
	wg.Wait()
	for _, n := range all {
		n.boots.mu.Lock()
		if len(n.boots.checks) != 0 {
			t.Errorf("%d questions are left over", len(n.boots.checks))
		}
		n.boots.mu.Unlock()
		if strings.Contains(n.log.String(), "unchecked") {
			t.Errorf("a question was not answered:\n%s", n.log)
		}
	}
}

// A node that restarts has a new boot id and is itself.
func TestRestart(t *testing.T) {
	var members book
	b := members.member(t, nil)
	b.transport(t)
	a := members.member(t, nil)
	members.set(a.self().NodeID, a.self().Address)
	at := a.transport(t)
	if err := echo(at, b); err != nil {
		t.Fatal(err)
	}
	a.is(func(h *Hello) { h.BootID = lineage.NewID() })
	at.CloseStreams()
	if err := echo(at, b); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	if got := b.metric(t, "provledger_peer_connections", "raft"); got != 1 {
		t.Errorf("%v connections, want that of the new process", got)
	}
}
