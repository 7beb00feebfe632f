package node

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/provledger/provledger/internal/telemetry"
)

// counted is what nobody else counts.
type counted struct {
	quarantines, catchUps, catchUpsFailed atomic.Uint64 // repairs are catch-ups too
	durations                             *telemetry.Durations
}

// registerMetrics exposes what the node is doing. Nothing here decides anything: without it the node behaves the same.
func (n *Node) registerMetrics() { n.c.Registry.MustRegister(telemetry.NewCollector(n.snapshot)) }

// snapshot is what a scrape sees.
func (n *Node) snapshot() telemetry.Snapshot {
	st := backend{n}.Status(context.Background())
	c, r := n.core.Load(), n.raft()
	stats := r.Stats()
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
	if p := n.progress.p.Load(); p != nil {
		s.CatchUp.Bytes, s.CatchUp.Entries = p.Bytes, p.Entries
		if s.CatchUp.Running {
			s.CatchUp.MissingEntries = p.Total - min(p.Entries, p.Total)
		}
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
