package node

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/provledger/provledger/internal/consensus"
	"github.com/provledger/provledger/internal/sequencer"
	"github.com/provledger/provledger/internal/telemetry"
)

// counted is what nobody else counts, and what was counted by parts that a catch-up or a repair has replaced: a counter counts since the
// process started.
type counted struct {
	quarantines, catchUps, catchUpsFailed atomic.Uint64 // repairs are catch-ups too
	durations                             *telemetry.Durations
	appends                               sequencer.Metrics // of all sequencers

	mu   sync.Mutex
	raft consensus.Stats // sums of instances that are closed; its counters only
}

// registerMetrics exposes what the node is doing. Nothing here decides anything: without it the node behaves the same.
func (n *Node) registerMetrics() {
	var mu sync.Mutex
	var last telemetry.Snapshot
	closed := false
	n.c.Registry.MustRegister(telemetry.NewCollector(func() telemetry.Snapshot {
		mu.Lock()
		defer mu.Unlock()
		if !closed { // a closed store must not be asked, and a scrape may be under way when the node stops
			last = n.snapshot()
		}
		return last
	}))
	n.opened(func(context.Context) error {
		mu.Lock()
		defer mu.Unlock()
		closed = true
		return nil
	})
}

// replaceRaft puts a raft instance in the place of one that is closed.
func (n *Node) replaceRaft(c *consensus.Consensus) {
	n.counted.mu.Lock()
	defer n.counted.mu.Unlock()
	if old := n.consensus.Swap(c); old != nil {
		n.counted.raft = add(old.Stats(), &n.counted.raft)
	}
}

// raftStats returns the raft instance that runs, and its figures with all that was counted before it.
func (n *Node) raftStats() (*consensus.Consensus, consensus.Stats) {
	n.counted.mu.Lock()
	defer n.counted.mu.Unlock()
	c := n.raft()
	return c, add(c.Stats(), &n.counted.raft)
}

// add returns s with the counters of before added.
func add(s consensus.Stats, before *consensus.Stats) consensus.Stats {
	s.Snapshots += before.Snapshots
	s.SnapshotFailures += before.SnapshotFailures
	s.FenceReads += before.FenceReads
	s.FenceRounds += before.FenceRounds
	s.FencesFailed += before.FencesFailed
	return s
}

// snapshot is what a scrape sees.
func (n *Node) snapshot() telemetry.Snapshot {
	st := backend{n}.Status(context.Background())
	c := n.core.Load()
	r, stats := n.raftStats()
	s := telemetry.Snapshot{
		State: st.State, Ready: st.NotReady == "", Quarantined: st.Quarantine != "", Version: n.c.Version,
		Applied: st.Applied, Durable: st.Durable, FreeBytes: st.FreeBytes, SpansLost: n.c.Telemetry.Dropped(),
		Logs: uint64(len(c.ledger.Logs())), CommandVersion: c.ledger.CommandVersion(),
		Quarantines: n.counted.quarantines.Load(),
		Raft: telemetry.Raft{
			Leader: stats.Leader, LeaderKnown: st.Leader != "", Term: stats.Term, Committed: stats.Committed, FirstIndex: stats.First, LastIndex: stats.Last,
			InFlight: stats.InFlight, LeaderContact: stats.LeaderContact, Snapshots: stats.Snapshots, SnapshotsFailed: stats.SnapshotFailures,
		},
		RaftLog:   telemetry.RaftLog{Bytes: n.log.Bytes(), Segments: n.log.Segments()},
		Sequencer: telemetry.Sequencer{QueuedBytes: c.sequencer.QueuedBytes(), Counters: c.sequencer.Metrics()},
		Signer:    telemetry.Signer{MissingKeys: st.MissingKeyCount},
		CatchUp:   telemetry.CatchUp{Running: n.catchingUp.Load(), Runs: n.counted.catchUps.Load(), Failed: n.counted.catchUpsFailed.Load()},
		Fence:     telemetry.Fence{Rounds: stats.FenceRounds, Reads: stats.FenceReads, Failed: stats.FencesFailed},
	}
	if n.c.Certificates != nil {
		s.Certificates = n.c.Certificates()
	}
	s.Signer.Signed, s.Signer.Refused = n.signer.Counts()
	servers, _ := r.Servers()
	for _, x := range servers {
		if x.Voter {
			s.Raft.Voters++
		} else {
			s.Raft.NonVoters++
		}
	}
	for _, f := range r.Followers() {
		y := telemetry.Follower{Node: f.ID, Behind: stats.Last - min(f.Match, stats.Last), Contact: -1}
		if !f.Contact.IsZero() {
			y.Contact = time.Since(f.Contact)
		}
		s.Raft.Followers = append(s.Raft.Followers, y)
	}
	var missing uint64
	if s.CatchUp.Entries, s.CatchUp.Bytes, missing = n.progress.figures(); s.CatchUp.Running {
		s.CatchUp.MissingEntries = missing
	}
	if n.control != nil && stats.Leader {
		s.Clock.Ahead, s.Clock.Refuses = n.control.ClockAhead(), n.control.AppendAllowed() != nil
	}
	// Held, so that a repair does not close the store meanwhile. One that is quarantined is not looked at.
	if l, release, err := (backend{n}).Ledger(); err == nil {
		s.Store = l.StoreStats()
		release()
	}
	return s
}
