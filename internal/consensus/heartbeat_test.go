package consensus

import (
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// connection is a transport that remembers what would be called with heartbeats.
type connection struct {
	raft.Transport
	messages  chan raft.RPC
	heartbeat func(raft.RPC)
}

func (w *connection) Consumer() <-chan raft.RPC                 { return w.messages }
func (w *connection) SetHeartbeatHandler(handle func(raft.RPC)) { w.heartbeat = handle }

// raft's handler for heartbeats changes the term on the goroutine of a connection, in the middle of what the main goroutine does: a node
// that has just voted for itself in term 7 would be put back to term 6. So it is never called: what changes nothing is answered without raft,
// and everything else waits for the main goroutine.
func TestHeartbeatsLeaveRaftAlone(t *testing.T) {
	w := &connection{messages: make(chan raft.RPC)}
	tr := newTransport(w, "here", plainAddress)
	tr.SetHeartbeatHandler(func(raft.RPC) { t.Error("raft's handler ran outside of raft's main goroutine") })
	now := standing{follower: true, term: 6, leader: "a", last: 41}
	tr.now = func() standing { return now }
	tr.start(nil)
	defer func() {
		close(tr.stop)
		<-tr.done
		<-tr.relayed
	}()
	send := func(term uint64, from string) chan raft.RPCResponse {
		answer := make(chan raft.RPCResponse, 1)
		go w.heartbeat(raft.RPC{RespChan: answer, Command: &raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{ID: []byte(from)}, Term: term}})
		return answer
	}
	const moment = 50 * time.Millisecond
	// The main goroutine is busy: it reads nothing. All heartbeats of the leader that is followed are answered,
	for range 20 {
		select {
		case a := <-send(6, "a"):
			if r, ok := a.Response.(*raft.AppendEntriesResponse); a.Error != nil || !ok || !r.Success || r.Term != 6 || r.LastLog != 41 {
				t.Fatalf("answer %+v, %v", a.Response, a.Error)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("a heartbeat waits for the main goroutine")
		}
	}
	// and it hears of them when it has time: of two at most, one that was on its way and the newest.
	heard := 0
	for over := false; !over; {
		select {
		case rpc := <-tr.Consumer():
			heard++
			rpc.Respond(nil, nil) // must not block: nobody waits for it
		case <-time.After(moment):
			over = true
		}
	}
	if heard < 1 || heard > 2 {
		t.Errorf("the main goroutine heard of %d heartbeats", heard)
	}
	for _, tc := range []struct {
		name string
		now  standing
		term uint64
		from string
	}{
		{"of a newer term", standing{follower: true, term: 6, leader: "a"}, 7, "b"},
		{"of an older term", standing{follower: true, term: 7, leader: "b"}, 6, "a"},
		{"to a candidate", standing{term: 6}, 6, "a"},
		{"of a leader that is not known yet", standing{follower: true, term: 6}, 6, "a"},
		{"of another than the leader", standing{follower: true, term: 6, leader: "b"}, 6, "a"},
	} {
		now = tc.now
		answer := send(tc.term, tc.from)
		select {
		case a := <-answer:
			t.Errorf("a heartbeat %s was answered without raft: %+v", tc.name, a)
			continue
		case <-time.After(moment):
		}
		select {
		case rpc := <-tr.Consumer():
			rpc.Respond(&raft.AppendEntriesResponse{}, nil)
		case <-time.After(10 * time.Second):
			t.Fatalf("a heartbeat %s does not reach raft", tc.name)
		}
		if a := <-answer; a.Error != nil || a.Response == nil {
			t.Errorf("a heartbeat %s: %+v", tc.name, a)
		}
	}
}
