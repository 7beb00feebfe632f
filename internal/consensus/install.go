package consensus

import (
	"errors"
	"fmt"

	"github.com/hashicorp/raft"
)

// Behind says that the log of the leader begins after the end of this node.
type Behind struct {
	// Leader is the node id of the leader.
	Leader string
	// Index and Term are the leader's durable position: what to catch up to at least.
	Index, Term uint64
}

// install answers a leader that has no log entries for this node any more and sends raft's snapshot message instead. The
// message has no content; what it says is a position (index, term) that the leader has applied.
//
// If this node holds that position, the answer is yes, and the leader goes on with the entries after it. That is so after
// the node caught up outside raft: raft has no other way to make a leader go forward. A yes is true whoever leads in
// whichever term: what it claims to hold is at or below what the leader itself has committed, so it cannot make it commit
// anything.
//
// If not, the answer is no, and Config.Behind is told. raft hears of neither.
func (t *transport) install(rpc raft.RPC, q *raft.InstallSnapshotRequest) {
	a := &raft.InstallSnapshotResponse{
		RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax}, Term: t.node.raft.CurrentTerm(),
	}
	if q.Size != 0 { // ours never have content; nobody reads this one, and the connection ends with the error
		rpc.Respond(a, ErrInstall)
		return
	}
	if q.Term < a.Term {
		rpc.Respond(a, nil)
		return
	}
	var err error
	a.Success, err = t.holds(q.LastLogIndex, q.LastLogTerm)
	rpc.Respond(a, err)
	if err == nil && !a.Success {
		t.node.conf.Behind(Behind{Leader: string(q.ID), Index: q.LastLogIndex, Term: q.LastLogTerm})
	}
}

// holds says that the applied history up to (index, term) is in the machine or in the log, durably.
func (t *transport) holds(index, term uint64) (bool, error) {
	d, err := t.node.conf.Machine.Durable()
	if err != nil {
		return false, fmt.Errorf("consensus: read the durable position: %w", err)
	}
	if index <= d.Index {
		return true, nil // both are positions of the one committed history
	}
	var l raft.Log
	switch err := t.node.log.GetLog(index, &l); {
	case errors.Is(err, raft.ErrLogNotFound):
		return false, nil
	case err != nil:
		return false, err
	}
	return l.Term == term, nil
}

// rebase makes a message of entries one that raft can answer although the log of this node does not reach back to where
// the message begins: it was emptied after the node had caught up, or compacted. raft rejects such a message, the leader
// then goes back further and arrives at the snapshot message again, without end. Instead the part at or below the durable
// position d is taken for received, as it is in the paper (figure 13), which needs one of these to be sound:
//
//   - The message touches d and has d's term there. By log matching all before it is equal.
//   - All of the message lies below d and below the leader's commit index: committed on both sides, hence equal.
//
// What remains begins right behind d and needs no check of a previous entry. The commit index that goes with it must not
// exceed what was checked; raft would take it for everything in the log.
func (t *transport) rebase(q *raft.AppendEntriesRequest) *raft.AppendEntriesRequest {
	if q.PrevLogEntry == 0 && len(q.Entries) == 0 {
		return q // a heartbeat
	}
	first, err := t.node.log.FirstIndex()
	if err != nil || first == 1 || first > 1 && q.PrevLogEntry >= first {
		return q
	}
	d, err := t.node.conf.Machine.Durable()
	if err != nil || d.Index == 0 || q.PrevLogEntry > d.Index {
		return q
	}
	n := d.Index - q.PrevLogEntry // entries of the message up to d
	last := q.PrevLogEntry + uint64(len(q.Entries))
	r := *q // the sender may be in this process and send it again
	switch {
	case n == 0 && q.PrevLogTerm == d.Term:
	case n > 0 && last >= d.Index && q.Entries[n-1].Index == d.Index && q.Entries[n-1].Term == d.Term:
	case last < d.Index && last <= q.LeaderCommitIndex:
		n = uint64(len(q.Entries))
	default:
		if q.PrevLogEntry == 0 {
			// raft would not reject the beginning of the log, and store it in a log that is to continue at d. Make it.
			r.PrevLogEntry, r.PrevLogTerm = d.Index, d.Term+1
		}
		return &r
	}
	r.PrevLogEntry, r.PrevLogTerm = 0, 0
	r.Entries = q.Entries[n:]
	r.LeaderCommitIndex = min(q.LeaderCommitIndex, max(last, d.Index))
	return &r
}
