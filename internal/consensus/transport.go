package consensus

import (
	"bytes"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// rpcTimeout bounds one message to a peer, dialling included. A peer behind a black hole holds its replication for so
	// long after the network has healed.
	rpcTimeout = 2 * time.Second
	// maxPool is the connections that are kept a peer: heartbeats, entries, votes.
	maxPool = 3
	// maxRPCsInFlight turns raft's pipeline off: it can lock up for good after one rejected message (hashicorp/raft issue
	// 612).
	maxRPCsInFlight = 1
	// retryMin and retryMax are the pauses between attempts to reach a peer that does not answer. raft would let them grow
	// to ten seconds, so that a node that was down for a few seconds gets nothing for a few more after its return.
	retryMin = 10 * time.Millisecond
	retryMax = 250 * time.Millisecond
	// installPoll is how often a follower beyond the log is asked whether it has caught up.
	installPoll = 250 * time.Millisecond
)

// transport stands between raft and the transport that carries its messages. It does what the library does not, on both
// sides of a connection:
//
//   - A follower beyond the leader's log: raft's snapshot message is answered here, and never reaches raft. Its handler
//     would occupy raft's main goroutine, which votes, and go on with an instance whose idea of the log is stale
//     (hashicorp/raft issue 697). See install.
//   - A follower whose log was emptied after it caught up: see rebase.
//   - A heartbeat never touches raft's state on another goroutine than raft's: see SetHeartbeatHandler.
//   - A leader that cannot reach a follower tries again at a steady pace, see AppendEntries.
//   - What is known of the progress of followers is written down, see Consensus.Followers.
type transport struct {
	raft.Transport
	self raft.ServerAddress
	// name makes the address to dial out of a server's id and address.
	name func(raft.ServerID, raft.ServerAddress) raft.ServerAddress

	// node is what owns this transport. Set once, before ready is closed.
	node  *Consensus
	ready chan struct{}

	consumer   chan raft.RPC
	stop, done chan struct{}
	closeOnce  sync.Once

	beat    chan raft.RPC // a heartbeat that was answered, see heartbeat
	relayed chan struct{} // closed when relay has ended
	now     func() standing

	mu        sync.Mutex
	term      uint64 // of what followers holds
	followers map[raft.ServerID]progress
}

// progress of a follower, in one term of this node as leader.
type progress struct {
	match     uint64 // last index that it is known to hold
	contact   time.Time
	installed uint64 // index of the last snapshot message that it said yes to
}

var (
	_ raft.Transport   = (*transport)(nil)
	_ raft.WithPreVote = (*transport)(nil)
	_ raft.WithClose   = (*transport)(nil)
)

// errInterrupted: a message was not sent because this node leads no more, or no longer that follower.
var errInterrupted = errors.New("consensus: not sent any more")

// newTransport wraps inner, which raft must be able to hold a pre-vote over.
func newTransport(inner raft.Transport, self raft.ServerAddress, name func(raft.ServerID, raft.ServerAddress) raft.ServerAddress) *transport {
	t := &transport{
		Transport: inner, self: self, name: name, ready: make(chan struct{}), consumer: make(chan raft.RPC),
		stop: make(chan struct{}), done: make(chan struct{}), followers: map[raft.ServerID]progress{},
		beat: make(chan raft.RPC, 1), relayed: make(chan struct{}),
	}
	t.now = t.standing
	return t
}

// start lets messages through to raft, which n owns.
func (t *transport) start(n *Consensus) {
	t.node = n
	close(t.ready)
	go t.receive()
	go t.relay()
}

// Close implements raft.WithClose. raft calls it when none of its goroutines is left.
func (t *transport) Close() (err error) {
	t.closeOnce.Do(func() {
		close(t.stop)
		select {
		case <-t.ready:
			<-t.done
			<-t.relayed
		default: // never started
		}
		if n, ok := t.Transport.(*raft.NetworkTransport); ok {
			n.CloseStreams() // Close leaves idle connections open
		}
		if c, ok := t.Transport.(raft.WithClose); ok {
			err = c.Close()
		}
	})
	return err
}

// Consumer implements raft.Transport.
func (t *transport) Consumer() <-chan raft.RPC { return t.consumer }

// LocalAddr implements raft.Transport: what the node advertises, not what it is bound to.
func (t *transport) LocalAddr() raft.ServerAddress { return t.self }

// AppendEntriesPipeline implements raft.Transport: there is none, see maxRPCsInFlight.
func (t *transport) AppendEntriesPipeline(raft.ServerID, raft.ServerAddress) (raft.AppendPipeline, error) {
	return nil, raft.ErrPipelineReplicationNotSupported
}

// RequestVote implements raft.Transport.
func (t *transport) RequestVote(id raft.ServerID, target raft.ServerAddress, q *raft.RequestVoteRequest, a *raft.RequestVoteResponse) error {
	return t.Transport.RequestVote(id, t.name(id, target), q, a)
}

// RequestPreVote implements raft.WithPreVote.
func (t *transport) RequestPreVote(id raft.ServerID, target raft.ServerAddress, q *raft.RequestPreVoteRequest, a *raft.RequestPreVoteResponse) error {
	return t.Transport.(raft.WithPreVote).RequestPreVote(id, t.name(id, target), q, a)
}

// TimeoutNow implements raft.Transport.
func (t *transport) TimeoutNow(id raft.ServerID, target raft.ServerAddress, q *raft.TimeoutNowRequest, a *raft.TimeoutNowResponse) error {
	return t.Transport.TimeoutNow(id, t.name(id, target), q, a)
}

// AppendEntries implements raft.Transport. A message with entries is sent until it is answered, as long as it makes sense:
// sending it twice is harmless, and raft's own pauses grow too long, see retryMax. Heartbeats are raft's business; it caps
// the pauses between those.
func (t *transport) AppendEntries(id raft.ServerID, target raft.ServerAddress, q *raft.AppendEntriesRequest, a *raft.AppendEntriesResponse) error {
	heartbeat := q.PrevLogEntry == 0 && len(q.Entries) == 0 && q.LeaderCommitIndex == 0
	for wait := retryMin; ; wait = min(2*wait, retryMax) {
		*a = raft.AppendEntriesResponse{}
		err := t.Transport.AppendEntries(id, t.name(id, target), q, a)
		if err == nil {
			var match uint64
			if match = q.PrevLogEntry; len(q.Entries) > 0 {
				match = q.Entries[len(q.Entries)-1].Index
			}
			if !a.Success {
				match = 0
			}
			t.heard(id, q.Term, func(p *progress) { p.match = max(p.match, match) })
			return nil
		}
		if heartbeat || !t.pause(id, q.Term, wait) {
			return err
		}
	}
}

// InstallSnapshot implements raft.Transport. The message says: my log begins after your end. It is repeated until the
// follower answers that it has caught up, by its own means: raft would let its pauses grow so long that a follower which
// has just caught up is beyond the log again before it gets a first entry.
func (t *transport) InstallSnapshot(id raft.ServerID, target raft.ServerAddress, q *raft.InstallSnapshotRequest, a *raft.InstallSnapshotResponse, r io.Reader) error {
	if t.progress(id, q.Term).installed == q.LastLogIndex && !t.pause(id, q.Term, installPoll) {
		// It holds that much, and yet raft found no way on from there. Not in a hot loop.
		return errInterrupted
	}
	for {
		*a = raft.InstallSnapshotResponse{}
		err := t.Transport.InstallSnapshot(id, t.name(id, target), q, a, bytes.NewReader(nil))
		if err == nil {
			t.heard(id, q.Term, func(p *progress) {
				if a.Success {
					p.match, p.installed = max(p.match, q.LastLogIndex), q.LastLogIndex
				}
			})
			if a.Success || a.Term > q.Term {
				return nil
			}
		}
		if !t.pause(id, q.Term, installPoll) {
			return err
		}
	}
}

// pause waits and says whether it still makes sense to send something to id as leader of term.
func (t *transport) pause(id raft.ServerID, term uint64, wait time.Duration) bool {
	<-t.ready
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.node.closing:
		return false
	}
	return t.node.raft.State() == raft.Leader && t.node.raft.CurrentTerm() == term && t.node.log.members.has(id)
}

// heard notes an answer of follower id to a leader of term.
func (t *transport) heard(id raft.ServerID, term uint64, change func(*progress)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if term < t.term {
		return
	}
	if term > t.term {
		t.term = term
		clear(t.followers)
	}
	p := t.followers[id]
	p.contact = time.Now()
	change(&p)
	t.followers[id] = p
}

// progress of follower id as this node, leading in term, knows it.
func (t *transport) progress(id raft.ServerID, term uint64) progress {
	t.mu.Lock()
	defer t.mu.Unlock()
	if term != t.term {
		return progress{}
	}
	return t.followers[id]
}

// receive hands messages to raft until Close.
func (t *transport) receive() {
	defer close(t.done)
	for {
		var rpc raft.RPC
		select {
		case rpc = <-t.Transport.Consumer():
		case <-t.stop:
			return
		}
		switch q := rpc.Command.(type) {
		case *raft.InstallSnapshotRequest:
			t.install(rpc, q)
			continue
		case *raft.AppendEntriesRequest:
			rpc.Command = t.rebase(q)
		}
		select {
		case t.consumer <- rpc:
		case <-t.stop:
			return
		}
	}
}
