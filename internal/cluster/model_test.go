package cluster

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/consensus"
	"github.com/provledger/provledger/internal/peer"
	"github.com/provledger/provledger/internal/peerapi"
	"github.com/provledger/provledger/internal/sequencer"
)

// model is a cluster in memory with the rules of raft's membership: one leader, one change at a time, each committed by a majority of the
// configuration that it makes. It runs in synctest's time.
type model struct {
	t *testing.T

	mu        sync.Mutex
	id        lineage.ID
	nodes     map[string]*modelNode // by address; all that run or could
	servers   []consensus.Server
	index     uint64
	leader    string
	term      uint64
	applied   uint64
	version   uint8
	records   []Record
	transfers int
	calls     int            // changes, records and transfers that were asked for
	fail      func(call int) // called with mu held, before each
	failed    error          // what the call that fail was called for ends with, if not nil
	force     bool           // the majority rule is not checked
}

// modelNode is a node of the model with a controller of its own.
type modelNode struct {
	m *model
	*Controller
	status  peerapi.Status // what does not change by itself
	down    bool
	hangs   bool          // takes connections and says nothing
	skew    time.Duration // of its clock
	caught  time.Time     // when it has caught up
	address string
	stop    context.CancelFunc
}

func (n *modelNode) id() string { return n.status.NodeID.String() }

// inModel runs a test on a founded cluster of so many voters.
func inModel(t *testing.T, voters int, f func(t *testing.T, m *model)) {
	synctest.Test(t, func(t *testing.T) {
		m := &model{t: t, id: lineage.NewID(), nodes: map[string]*modelNode{}, index: 1, term: 1, version: 2, applied: 1000}
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { // a thousand commands a second
			for tick := time.NewTicker(10 * time.Millisecond); ctx.Err() == nil; <-tick.C {
				m.mu.Lock()
				m.applied += 10
				m.mu.Unlock()
			}
		})
		for i := range voters {
			n := m.start(fmt.Sprintf("n%d:1", i+1))
			m.set(func() {
				m.servers = append(m.servers, consensus.Server{ID: n.id(), Address: n.address, Voter: true})
				m.leader = m.servers[0].ID
			})
		}
		defer func() {
			for _, n := range m.nodes {
				n.stop()
			}
			cancel()
			wg.Wait()
		}()
		f(t, m)
	})
}

// start runs a node with an empty directory at an address, in the place of what was there.
func (m *model) start(address string) *modelNode {
	m.mu.Lock()
	defer m.mu.Unlock()
	if old := m.nodes[address]; old != nil {
		old.stop()
	}
	n := &modelNode{m: m, address: address, status: peerapi.Status{
		ClusterID: m.id, NodeID: lineage.NewID(), BootID: lineage.NewID(), Address: address, State: peerapi.StateServing, MinCommand: 1, MaxCommand: 2,
		Version: "v1", FreeBytes: 1 << 40,
	}}
	m.nodes[address] = n
	n.Controller = New(Options{
		ClusterID: m.id, NodeID: n.id(), Address: address, Raft: raftOf{n}, Peers: n, Recorder: n, History: n, Self: n.self,
		Now: n.now, Logger: slog.New(slog.DiscardHandler), CheckName: n.checkName,
	})
	var ctx context.Context
	ctx, n.stop = context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); n.Run(ctx) }()
	cancel := n.stop
	n.stop = func() { cancel(); <-done }
	return n
}

func (m *model) node(id string) *modelNode {
	for _, n := range m.nodes {
		if n.id() == id {
			return n
		}
	}
	return nil
}

func (m *model) lead() *modelNode {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.node(m.leader)
}

// set changes something of the model.
func (m *model) set(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}

// configuration is what it is now.
func (m *model) configuration() membership {
	m.mu.Lock()
	defer m.mu.Unlock()
	return membership{slices.Clone(m.servers), m.index}
}

// handovers is how often leadership was to be transferred.
func (m *model) handovers() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.transfers
}

func (m *model) member(n *modelNode) *consensus.Server {
	return m.configuration().find(n.id())
}

func (n *modelNode) now() int64 { return time.Now().Add(n.skew).UnixMicro() }

func (n *modelNode) checkName(_ *x509.Certificate, address string) error {
	if address == "wrong:1" {
		return errors.New("the certificate is for other names")
	}
	return nil
}

func (n *modelNode) self(context.Context) peerapi.Status {
	n.m.mu.Lock()
	defer n.m.mu.Unlock()
	return n.answer()
}

func (n *modelNode) answer() peerapi.Status {
	s := n.status
	s.Now, s.Applied, s.Configuration, s.Term, s.Leader = n.now(), n.m.applied, max(n.m.index, s.Configuration), n.m.term, n.m.leader
	if time.Now().Before(n.caught) {
		s.Applied /= 2
	} else if n.id() != n.m.leader {
		s.Applied -= 5
	}
	return s
}

// Status implements Peers.
func (n *modelNode) Status(ctx context.Context, id, address string) (peerapi.Status, error) {
	time.Sleep(time.Millisecond)
	n.m.mu.Lock()
	to := n.m.nodes[address]
	if to != nil && to.hangs {
		n.m.mu.Unlock()
		<-ctx.Done()
		return peerapi.Status{}, ctx.Err()
	}
	defer n.m.mu.Unlock()
	switch {
	case to == nil || to.down:
		return peerapi.Status{}, errors.New("connection refused")
	case id != "" && to.id() != id:
		return peerapi.Status{}, fmt.Errorf("node %s answers there", to.id())
	}
	return to.answer(), nil
}

// call is the beginning of everything that goes through the leader. mu is held.
func (n *modelNode) call() error {
	n.m.calls++
	n.m.failed = nil
	if n.m.fail != nil {
		n.m.fail(n.m.calls)
	}
	if n.m.failed != nil {
		return n.m.failed
	}
	if n.down || n.m.leader != n.id() {
		return fmt.Errorf("%w: not the leader", consensus.ErrNotApplied)
	}
	return nil
}

// majority reports whether a configuration can commit.
func (m *model) majority(servers []consensus.Server) bool {
	voters, up := 0, 0
	for _, s := range servers {
		if s.Voter {
			voters++
			if n := m.node(s.ID); n != nil && !n.down && !n.hangs {
				up++
			}
		}
	}
	return up >= voters/2+1
}

// elect has a voter lead that is there.
func (m *model) elect() {
	m.leader = ""
	for _, s := range m.servers {
		if n := m.node(s.ID); s.Voter && n != nil && !n.down && !n.hangs && m.majority(m.servers) {
			m.leader = s.ID
			m.term++
			return
		}
	}
}

func (n *modelNode) change(prevIndex uint64, f func(servers []consensus.Server) []consensus.Server) error {
	m := n.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := n.call(); err != nil {
		return err
	}
	if prevIndex != m.index {
		return fmt.Errorf("%w: configuration changed since %d", consensus.ErrNotApplied, prevIndex)
	}
	next := f(slices.Clone(m.servers))
	if !m.majority(next) {
		if !m.force {
			m.t.Errorf("the configuration %v has no majority that answers", next)
		}
		return fmt.Errorf("%w: no majority", consensus.ErrUnknown)
	}
	m.servers = next
	m.index += 7
	if s := (membership{next, m.index}).find(m.leader); s == nil || !s.Voter {
		m.elect()
	}
	return nil
}

// The following implement Raft.

func (n *modelNode) IsLeader() bool {
	n.m.mu.Lock()
	defer n.m.mu.Unlock()
	return n.m.leader == n.id()
}
func (n *modelNode) Term() uint64   { n.m.mu.Lock(); defer n.m.mu.Unlock(); return n.m.term }
func (n *modelNode) Leader() string { n.m.mu.Lock(); defer n.m.mu.Unlock(); return n.m.leader }

func (n *modelNode) Servers() ([]consensus.Server, uint64) {
	n.m.mu.Lock()
	defer n.m.mu.Unlock()
	return slices.Clone(n.m.servers), n.m.index
}

func put(servers []consensus.Server, s consensus.Server) []consensus.Server {
	if old := (membership{servers: servers}).find(s.ID); old != nil {
		old.Address, old.Voter = s.Address, s.Voter || old.Voter
		return servers
	}
	return append(servers, s)
}

func (n *modelNode) AddVoter(_ context.Context, id, address string, prevIndex uint64) error {
	return n.change(prevIndex, func(s []consensus.Server) []consensus.Server {
		return put(s, consensus.Server{ID: id, Address: address, Voter: true})
	})
}

func (n *modelNode) AddNonvoter(_ context.Context, id, address string, prevIndex uint64) error {
	return n.change(prevIndex, func(s []consensus.Server) []consensus.Server {
		return put(s, consensus.Server{ID: id, Address: address})
	})
}

// The controller has methods of these names, so raftOf has raft's.

type raftOf struct{ *modelNode }

func (n raftOf) Demote(_ context.Context, id string, prevIndex uint64) error {
	return n.change(prevIndex, func(s []consensus.Server) []consensus.Server {
		membership{servers: s}.find(id).Voter = false
		return s
	})
}

func (n raftOf) Remove(_ context.Context, id string, prevIndex uint64) error {
	return n.change(prevIndex, func(all []consensus.Server) []consensus.Server {
		return slices.DeleteFunc(all, func(s consensus.Server) bool { return s.ID == id })
	})
}

func (n raftOf) Transfer(_ context.Context, id string) error {
	n.m.mu.Lock()
	defer n.m.mu.Unlock()
	if err := n.call(); err != nil {
		return err
	}
	n.m.transfers++
	to := n.m.node(id)
	if to == nil || to.down || to.hangs {
		return errors.New("leadership transfer timeout")
	}
	n.m.leader = id
	n.m.term++
	return nil
}

// The following implement Recorder and History.

func (n *modelNode) RecordControl(_ context.Context, kind lineage.ControlKind, principal string, _ lineage.Authn, document []byte) error {
	n.m.mu.Lock()
	defer n.m.mu.Unlock()
	if err := n.call(); err != nil {
		return fmt.Errorf("%w: %w", sequencer.ErrNotApplied, err)
	}
	var r Record
	if err := json.Unmarshal(document, &r); err != nil || kind != lineage.ControlMember || n.m.version < memberVersion {
		n.m.t.Errorf("version %d: a record of kind %s: %s, %v", n.m.version, kind, document, err)
	}
	if r.ConfigurationIndex != n.m.index || len(r.Members) != len(n.m.servers) || principal == "" {
		n.m.t.Errorf("%s: recorded for %q, the configuration is %v at %d", document, principal, n.m.servers, n.m.index)
	}
	n.m.records = append(n.m.records, r)
	return nil
}

func (n *modelNode) RaiseVersion(context.Context) error {
	n.m.mu.Lock()
	defer n.m.mu.Unlock()
	if err := n.call(); err != nil {
		return fmt.Errorf("%w: %w", sequencer.ErrNotApplied, err)
	}
	n.m.version++
	for _, s := range n.m.servers {
		if x := n.m.node(s.ID); x != nil && x.status.MaxCommand < n.m.version {
			n.m.t.Errorf("version %d, and node %s knows %d", n.m.version, s.ID, x.status.MaxCommand)
		}
	}
	return nil
}

func (n *modelNode) Records(fn func(Record) bool) error {
	n.m.mu.Lock()
	records := slices.Clone(n.m.records)
	n.m.mu.Unlock()
	for _, r := range slices.Backward(records) {
		if !fn(r) {
			break
		}
	}
	return nil
}

func (n *modelNode) Principal() string { return "local:model" }

func (n *modelNode) CommandVersion() uint8 { n.m.mu.Lock(); defer n.m.mu.Unlock(); return n.m.version }

// ask is a join request of a node, to whom it is told to ask.
func (n *modelNode) ask(to *modelNode, voter bool) (peerapi.JoinReply, error) {
	q := peerapi.JoinRequest{NodeID: n.status.NodeID, Address: n.address, Voter: voter}
	return to.Join(n.m.t.Context(), peer.Remote{Hello: peer.Hello{ClusterID: n.m.id, NodeID: n.status.NodeID, BootID: n.status.BootID, Address: n.address}}, q)
}

// actions is what was recorded about nodes, in order.
func (m *model) actions() (out []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.records {
		if r.Action != actionObserved {
			out = append(out, r.Action)
		}
	}
	return out
}

// wait sleeps until something holds, a minute of the model's time at most.
func (m *model) wait(what string, f func() bool) {
	m.t.Helper()
	for range 600 {
		if f() {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	m.t.Fatalf("in a minute %s did not happen", what)
}
