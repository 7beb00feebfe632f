package telemetry

import (
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/provledger/provledger/internal/disk"
	"github.com/provledger/provledger/internal/sequencer"
)

// prefix begins the name of every metric of ours.
const prefix = "provledger_"

// Snapshot is what a node says of itself at one scrape. Counters count since the process started; their zero value is a true zero, and so
// is that of a part that this node does not have (no peer port, no repair).
type Snapshot struct {
	State       string // as peerapi.Status has it: "serving", "catching up", "repairing", "quarantined", "joining", "starting"
	Ready       bool   // it accepts appends, itself or through the leader
	Quarantined bool
	Quarantines uint64 // times that damage was found
	Version     string // of the program

	Applied, Durable uint64 // raft indexes; Durable is 0 when it cannot be told
	Logs             uint64
	FreeBytes        uint64
	CommandVersion   uint8  // in use
	SpansLost        uint64 // Telemetry.Dropped

	Raft      Raft
	RaftLog   RaftLog
	Store     disk.Stats // the state store
	Sequencer Sequencer
	Signer    Signer
	CatchUp   CatchUp
	Fence     Fence
	Clock     Clock

	// Certificates are the ends of validity of what this node shows to others, by use ("api", "peer").
	Certificates map[string]time.Time
}

// Raft is this node's part in the cluster.
type Raft struct {
	Leader, LeaderKnown        bool
	Term, Committed            uint64
	FirstIndex, LastIndex      uint64
	Voters, NonVoters          int
	InFlight                   int
	LeaderContact              time.Duration // since this node last heard of the leader; 0 on the leader, negative: never
	Followers                  []Follower    // on a leader
	Snapshots, SnapshotsFailed uint64        // rounds of flush and compaction of the log
}

// Follower is another member as the leader sees it.
type Follower struct {
	Node    string
	Behind  uint64        // entries of the raft log that it is not known to hold
	Contact time.Duration // since it last answered; negative: not in this term
}

// RaftLog is the raft log on disk.
type RaftLog struct {
	Bytes    int64
	Segments int
}

// Sequencer is the way of an append on this node.
type Sequencer struct {
	QueuedBytes int64
	Counters    *sequencer.Metrics // nil: all zero
}

// decisions that refuse a command: the words behind ledger.RefusedBefore (2) and so on.
var decisions = [...]string{2: "before", 3: "after", 4: "time", 5: "bindings", 6: "malformed", 7: "version"}

// Signer is what checkpoints are signed with.
type Signer struct {
	Signed, Refused uint64 // Refused: would have contradicted what was signed, or was not committed
	MissingKeys     int    // logs whose key this node lacks
}

// CatchUp is how this node fetches from peers what the raft log no longer has, or what its own store lost.
type CatchUp struct {
	Running                      bool
	Runs, Failed, Bytes, Entries uint64
	MissingEntries               uint64 // of the run that goes on
}

// Fence are the rounds of questions behind linearizable reads, asked by a leader.
type Fence struct {
	Rounds, Reads, Failed uint64
}

// Clock is this node's clock against those of others, as a leader sees it.
type Clock struct {
	Ahead   time.Duration // of the voter that is closest; negative: behind it; 0 on followers
	Refuses bool          // appends are refused because of it
}

// desc is one metric without labels.
type desc struct {
	name, help string
	kind       prometheus.ValueType
	value      func(*Snapshot) float64
}

const (
	counter = prometheus.CounterValue
	gauge   = prometheus.GaugeValue
)

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// plain are the metrics without labels. Each is exported by every node, so that a rule about one can rely on it.
var plain = []desc{
	{"ready", "1 if the node accepts appends, itself or through the leader.", gauge, func(s *Snapshot) float64 { return truth(s.Ready) }},
	{"quarantined", "1 if the node's state contradicts itself or its peers.", gauge, func(s *Snapshot) float64 { return truth(s.Quarantined) }},
	{"quarantines_total", "Times that the node found its state damaged.", counter, func(s *Snapshot) float64 { return float64(s.Quarantines) }},
	{"applied_index", "Raft index up to which the state is applied.", gauge, func(s *Snapshot) float64 { return float64(s.Applied) }},
	{"durable_index", "Raft index up to which the state survives a power cut without replay.", gauge, func(s *Snapshot) float64 { return float64(s.Durable) }},
	{"logs", "Logs in the registry.", gauge, func(s *Snapshot) float64 { return float64(s.Logs) }},
	{"free_bytes", "Free bytes on the ledger's file system.", gauge, func(s *Snapshot) float64 { return float64(s.FreeBytes) }},
	{"command_version", "Version of raft commands in use.", gauge, func(s *Snapshot) float64 { return float64(s.CommandVersion) }},
	{"trace_spans_lost_total", "Spans that could not be delivered to the collector.", counter, func(s *Snapshot) float64 { return float64(s.SpansLost) }},

	{"raft_leader", "1 if this node leads, as far as it knows.", gauge, func(s *Snapshot) float64 { return truth(s.Raft.Leader) }},
	{"raft_leader_known", "1 if this node knows a leader.", gauge, func(s *Snapshot) float64 { return truth(s.Raft.LeaderKnown) }},
	{"raft_term", "Current raft term.", gauge, func(s *Snapshot) float64 { return float64(s.Raft.Term) }},
	{"raft_commit_index", "Raft index that is committed, as this node knows it.", gauge, func(s *Snapshot) float64 { return float64(s.Raft.Committed) }},
	{"raft_first_index", "First raft index that the log still holds.", gauge, func(s *Snapshot) float64 { return float64(s.Raft.FirstIndex) }},
	{"raft_last_index", "Last raft index in the log.", gauge, func(s *Snapshot) float64 { return float64(s.Raft.LastIndex) }},
	{"raft_voters", "Voting members.", gauge, func(s *Snapshot) float64 { return float64(s.Raft.Voters) }},
	{"raft_nonvoters", "Members without a vote.", gauge, func(s *Snapshot) float64 { return float64(s.Raft.NonVoters) }},
	{"raft_in_flight", "Proposals and barriers without an answer.", gauge, func(s *Snapshot) float64 { return float64(s.Raft.InFlight) }},
	{"raft_leader_contact_seconds", "Time since this node heard of the leader; 0 on the leader, -1 if it never did.", gauge, func(s *Snapshot) float64 { return max(s.Raft.LeaderContact.Seconds(), -1) }},
	{"raft_snapshots_total", "Rounds of flush and compaction of the raft log.", counter, func(s *Snapshot) float64 { return float64(s.Raft.Snapshots) }},
	{"raft_snapshots_failed_total", "Rounds that failed.", counter, func(s *Snapshot) float64 { return float64(s.Raft.SnapshotsFailed) }},

	{"raft_log_bytes", "Bytes of live raft log segments.", gauge, func(s *Snapshot) float64 { return float64(s.RaftLog.Bytes) }},
	{"raft_log_segments", "Live raft log segments.", gauge, func(s *Snapshot) float64 { return float64(s.RaftLog.Segments) }},

	{"store_bytes", "Bytes of the state store on disk.", gauge, func(s *Snapshot) float64 { return float64(s.Store.Bytes) }},
	{"store_tables", "Tables of the state store.", gauge, func(s *Snapshot) float64 { return float64(s.Store.Tables) }},
	{"store_memtable_bytes", "Bytes in memory that are not flushed.", gauge, func(s *Snapshot) float64 { return float64(s.Store.MemTableBytes) }},
	{"store_compaction_debt_bytes", "Bytes that compactions have yet to rewrite, estimated.", gauge, func(s *Snapshot) float64 { return float64(s.Store.CompactionDebtBytes) }},
	{"store_read_amplification", "Runs of tables that a read may have to look into.", gauge, func(s *Snapshot) float64 { return float64(s.Store.ReadAmplification) }},
	{"store_flushes_total", "Flushes.", counter, func(s *Snapshot) float64 { return float64(s.Store.Flushes) }},
	{"store_compactions_total", "Compactions.", counter, func(s *Snapshot) float64 { return float64(s.Store.Compactions) }},
	{"store_write_stalls_total", "Times that writes waited for flushes or compactions.", counter, func(s *Snapshot) float64 { return float64(s.Store.WriteStalls) }},
	{"store_write_stall_seconds_total", "Time that writes waited for flushes or compactions.", counter, func(s *Snapshot) float64 { return s.Store.WriteStalled.Seconds() }},
	{"store_cache_bytes", "Bytes in the block cache.", gauge, func(s *Snapshot) float64 { return float64(s.Store.CacheBytes) }},
	{"store_cache_hits_total", "Blocks found in the cache.", counter, func(s *Snapshot) float64 { return float64(s.Store.CacheHits) }},
	{"store_cache_misses_total", "Blocks read from the disk.", counter, func(s *Snapshot) float64 { return float64(s.Store.CacheMisses) }},
	{"store_background_errors_total", "Flushes and compactions that failed.", counter, func(s *Snapshot) float64 { return float64(s.Store.BackgroundErrors) }},
	{"store_slow_operations_total", "Disk operations slower than the watch allows (1 s).", counter, func(s *Snapshot) float64 { return float64(s.Store.SlowOperations) }},

	{"queue_bytes", "Bytes of requests that wait to be composed or are in flight.", gauge, func(s *Snapshot) float64 { return float64(s.Sequencer.QueuedBytes) }},
	{"commands_in_flight", "Raft commands without a decision.", gauge, func(s *Snapshot) float64 { return float64(s.Sequencer.counters().InFlight.Load()) }},
	{"commands_total", "Raft commands proposed.", counter, func(s *Snapshot) float64 { return float64(s.Sequencer.counters().Commands.Load()) }},
	{"entries_total", "Entries recorded by this node as leader.", counter, func(s *Snapshot) float64 { return float64(s.Sequencer.counters().Entries.Load()) }},
	{"duplicates_total", "Events that were recorded before.", counter, func(s *Snapshot) float64 { return float64(s.Sequencer.counters().Duplicates.Load()) }},
	{"recomposed_total", "Requests composed again after a refusal.", counter, func(s *Snapshot) float64 { return float64(s.Sequencer.counters().Recomposed.Load()) }},

	{"checkpoints_signed_total", "Checkpoints signed.", counter, func(s *Snapshot) float64 { return float64(s.Signer.Signed) }},
	{"checkpoints_refused_total", "Checkpoints that the signer refused.", counter, func(s *Snapshot) float64 { return float64(s.Signer.Refused) }},
	{"missing_keys", "Logs whose key this node lacks.", gauge, func(s *Snapshot) float64 { return float64(s.Signer.MissingKeys) }},

	{"catchup_running", "1 while the node fetches state from its peers.", gauge, func(s *Snapshot) float64 { return truth(s.CatchUp.Running) }},
	{"catchup_runs_total", "Times that the node began to fetch.", counter, func(s *Snapshot) float64 { return float64(s.CatchUp.Runs) }},
	{"catchup_failed_total", "Times that fetching failed, and is tried again.", counter, func(s *Snapshot) float64 { return float64(s.CatchUp.Failed) }},
	{"catchup_bytes_total", "Bytes fetched.", counter, func(s *Snapshot) float64 { return float64(s.CatchUp.Bytes) }},
	{"catchup_entries_total", "Entries fetched.", counter, func(s *Snapshot) float64 { return float64(s.CatchUp.Entries) }},
	{"catchup_missing_entries", "Entries that are still to be fetched.", gauge, func(s *Snapshot) float64 { return float64(s.CatchUp.MissingEntries) }},

	{"fence_rounds_total", "Rounds of questions behind linearizable reads.", counter, func(s *Snapshot) float64 { return float64(s.Fence.Rounds) }},
	{"fence_reads_total", "Linearizable reads that were fenced.", counter, func(s *Snapshot) float64 { return float64(s.Fence.Reads) }},
	{"fence_failed_total", "Rounds without a majority.", counter, func(s *Snapshot) float64 { return float64(s.Fence.Failed) }},

	{"clock_ahead_seconds", "How far this leader's clock is ahead of the closest other voter's; 0 on followers.", gauge, func(s *Snapshot) float64 { return s.Clock.Ahead.Seconds() }},
	{"clock_refuses", "1 while appends are refused because of the clock.", gauge, func(s *Snapshot) float64 { return truth(s.Clock.Refuses) }},
}

// labelled is one metric with one label. It has a series for each of what emit is called with.
type labelled struct {
	name, help, label string
	kind              prometheus.ValueType
	emit              func(s *Snapshot, series func(label string, value float64))
}

var labelleds = []labelled{
	{"state", "1 for the state that the node is in.", "state", gauge, func(s *Snapshot, series func(string, float64)) {
		for _, name := range States {
			series(name, truth(name == s.State))
		}
	}},
	{"build_info", "1; the label is the version of the program.", "version", gauge, func(s *Snapshot, series func(string, float64)) {
		series(s.Version, 1)
	}},
	{"commands_refused_total", "Commands that the state machine refused, by decision.", "decision", counter, func(s *Snapshot, series func(string, float64)) {
		for d, name := range decisions {
			if name != "" {
				series(name, float64(s.Sequencer.counters().RefusedBy[d].Load()))
			}
		}
	}},
	{"appends_rejected_total", "Requests to append that were turned away, by reason.", "reason", counter, func(s *Snapshot, series func(string, float64)) {
		for i := range s.Sequencer.counters().Rejected {
			series(sequencer.Reason(i).String(), float64(s.Sequencer.counters().Rejected[i].Load()))
		}
	}},
	{"certificate_expiry_timestamp_seconds", "End of a certificate's validity, seconds since the Unix epoch.", "use", gauge, func(s *Snapshot, series func(string, float64)) {
		for use, end := range s.Certificates {
			series(use, float64(end.Unix()))
		}
	}},
	{"follower_lag_entries", "Entries of the raft log that a member is not known to hold; on the leader.", "node", gauge, func(s *Snapshot, series func(string, float64)) {
		for _, f := range s.Raft.Followers {
			series(f.Node, float64(f.Behind))
		}
	}},
	{"follower_contact_seconds", "Time since a member last answered, -1: not in this term; on the leader.", "node", gauge, func(s *Snapshot, series func(string, float64)) {
		for _, f := range s.Raft.Followers {
			series(f.Node, max(f.Contact.Seconds(), -1))
		}
	}},
}

// States of a node, as peerapi names them.
var States = []string{"serving", "catching up", "repairing", "quarantined", "joining", "starting"}

// none stands for a sequencer that there is not.
var none sequencer.Metrics

func (s *Sequencer) counters() *sequencer.Metrics {
	if s.Counters == nil {
		return &none
	}
	return s.Counters
}

// Collector exports a [Snapshot] a scrape.
type Collector struct {
	snapshot func() Snapshot
	plain    []*prometheus.Desc
	labelled []*prometheus.Desc
}

// NewCollector returns a collector to register. snapshot is called once a scrape, by any goroutine, and must be quick.
func NewCollector(snapshot func() Snapshot) *Collector {
	c := &Collector{snapshot: snapshot}
	for _, d := range plain {
		c.plain = append(c.plain, prometheus.NewDesc(prefix+d.name, d.help, nil, nil))
	}
	for _, d := range labelleds {
		c.labelled = append(c.labelled, prometheus.NewDesc(prefix+d.name, d.help, []string{d.label}, nil))
	}
	return c
}

// Describe implements prometheus.Collector.
func (c *Collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range slices.Concat(c.plain, c.labelled) {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c *Collector) Collect(out chan<- prometheus.Metric) {
	s := c.snapshot()
	for i, d := range plain {
		out <- prometheus.MustNewConstMetric(c.plain[i], d.kind, d.value(&s))
	}
	for i, d := range labelleds {
		d.emit(&s, func(label string, value float64) {
			out <- prometheus.MustNewConstMetric(c.labelled[i], d.kind, value, label)
		})
	}
}

// Durations are the histograms that parts of a node feed as they go.
type Durations struct {
	// LogSync is one write and fsync of the raft log. It is on the way of every append.
	LogSync prometheus.Histogram
	// Commit is one command from its proposal to its decision.
	Commit prometheus.Histogram
}

// NewDurations registers the histograms. Their lowest buckets are a fast disk's, their highest the ten seconds after which a node
// ends itself because its disk hangs.
func NewDurations(r prometheus.Registerer) *Durations {
	histogram := func(name, help string) prometheus.Histogram {
		h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: prefix + name, Help: help, Buckets: prometheus.ExponentialBuckets(0.0001, 2, 17)})
		r.MustRegister(h)
		return h
	}
	return &Durations{
		LogSync: histogram("raft_log_sync_seconds", "Duration of one durable write to the raft log."),
		Commit:  histogram("commit_seconds", "Time of a raft command from proposal to decision."),
	}
}
