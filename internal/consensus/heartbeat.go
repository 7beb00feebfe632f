package consensus

import "github.com/hashicorp/raft"

// SetHeartbeatHandler implements raft.Transport, and never calls the handler.
//
// raft would handle heartbeats on the goroutine of the connection, so that they pass while its main goroutine waits for the disk. But that
// handler is AppendEntries, which reads the term and sets it: one heartbeat of the old leader between the two steps of the main goroutine's
// own candidacy puts the term back, on disk and in memory, below a term that this node has voted in. The raft log refuses that and ends the
// process (S12), which is right, and the end of a healthy node. So nothing but the main goroutine changes raft's state here: a
// heartbeat that changes nothing is answered at once and handed on when the main goroutine has time, any other one waits for it.
func (t *transport) SetHeartbeatHandler(func(raft.RPC)) { t.Transport.SetHeartbeatHandler(t.heartbeat) }

// standing is what decides whether a heartbeat is news. It is read without stopping raft, so it may be old by the time it is used: then the
// leader learns of the change by the next message.
type standing struct {
	follower bool
	term     uint64
	leader   raft.ServerID
	last     uint64 // index of the last log entry
}

// standing asks raft.
func (t *transport) standing() standing {
	r := t.node.raft
	_, leader := r.LeaderWithID()
	return standing{r.State() == raft.Follower, r.CurrentTerm(), leader, r.LastIndex()}
}

// heartbeat takes a heartbeat from a connection's goroutine.
func (t *transport) heartbeat(rpc raft.RPC) {
	select {
	case <-t.ready:
	case <-t.stop:
		rpc.Respond(nil, raft.ErrTransportShutdown)
		return
	}
	q, ok := rpc.Command.(*raft.AppendEntriesRequest)
	if s := t.now(); ok && s.follower && q.Term == s.term && raft.ServerID(q.ID) == s.leader {
		rpc.Respond(&raft.AppendEntriesResponse{RPCHeader: raft.RPCHeader{ProtocolVersion: q.ProtocolVersion}, Term: s.term, LastLog: s.last, Success: true}, nil)
		rpc.RespChan = make(chan raft.RPCResponse, 1) // nobody reads the second answer
		select {
		case t.beat <- rpc:
		default: // one that waits says the same
		}
		return
	}
	select {
	case t.consumer <- rpc:
	case <-t.stop:
		rpc.Respond(nil, raft.ErrTransportShutdown)
	}
}

// relay hands answered heartbeats to raft, whose main goroutine notes that it has heard of its leader, until Close.
func (t *transport) relay() {
	defer close(t.relayed)
	for {
		select {
		case rpc := <-t.beat:
			select {
			case t.consumer <- rpc:
			case <-t.stop:
				return
			}
		case <-t.stop:
			return
		}
	}
}
