package node

import (
	"context"
	"errors"
	"maps"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/provledger/provledger/client/eventpb"
	"github.com/provledger/provledger/internal/catchup"
	"github.com/provledger/provledger/internal/consensus"
	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

// steadyHeartbeat is for a test that asks who did what: leadership stays where it is on a machine under load.
const steadyHeartbeat = 2 * time.Second

// scrape is what a node exports at the moment: a value for each series, named as in the text format. A histogram has its count.
func scrape(t *testing.T, n *Node) map[string]float64 {
	t.Helper()
	families, err := n.c.Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			var labels []string
			for _, l := range m.Label {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			name := strings.TrimPrefix(f.GetName(), "provledger_")
			if len(labels) > 0 {
				name += "{" + strings.Join(labels, ",") + "}"
			}
			out[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return out
}

// families are the names in a scrape without their labels.
func families(series map[string]float64) []string {
	var names []string
	for name := range series {
		name, _, _ = strings.Cut(name, "{")
		names = append(names, name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// manual returns the metrics that docs/operations/metrics.md explains: the first cells of its tables.
func manual(t *testing.T) []string {
	t.Helper()
	b, err := os.ReadFile("../../docs/operations/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(string(b)) {
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		cell, _, _ := strings.Cut(line[2:], "|")
		for _, m := range regexp.MustCompile("`provledger_([a-z0-9_]+)`").FindAllStringSubmatch(cell, -1) {
			names = append(names, m[1])
		}
	}
	slices.Sort(names)
	return names
}

// apiOf serves the API of a node and returns a client.
func apiOf(t *testing.T, n *Node) ledgerv1.LedgerServiceClient {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := n.NewServer()
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	cc, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cc.Close()
		s.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return ledgerv1.NewLedgerServiceClient(cc)
}

func appendBy(t *testing.T, c ledgerv1.LedgerServiceClient, count int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for i := range count {
		if _, err := c.Append(ctx, &ledgerv1.AppendRequest{Log: "main", Event: eventpb.FromEvent(testEvent(i))}); err != nil {
			t.Fatal(err)
		}
	}
}

// A node that leads a cluster exports what the manual explains, each row of it and nothing else; one that is alone the same but for what
// the manual says it has not.
func TestManualAndMetricsAgree(t *testing.T) {
	c := newTrio(t, 3)
	c.edit = func(_ int, conf *Config) {
		conf.Certificates = func() map[string]time.Time { return map[string]time.Time{"api": time.Now()} }
	}
	c.start(0, 1, 2)
	eventually(t, "three voters", func() bool { return voters(c.nodes[0]) == 3 })
	eventually(t, "each metric of the manual on the leader", func() bool {
		leader := c.leader() // which may move while the nodes come up
		api := apiOf(t, leader)
		appendBy(t, api, 1)
		got := families(scrape(t, leader))
		if want := manual(t); !slices.Equal(got, want) {
			t.Logf("leader exports %q, the manual explains %q", got, want)
			return false
		}
		return true
	})

	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	alone, err := Open(ctx, testConfig(t, nil, t.TempDir()+"/ledger"))
	if err != nil {
		t.Fatal(err)
	}
	defer alone.Close(context.WithoutCancel(ctx))
	want := slices.DeleteFunc(manual(t), func(name string) bool {
		return strings.HasPrefix(name, "peer_") || strings.HasPrefix(name, "follower_") || strings.HasPrefix(name, "rpc_") || strings.HasPrefix(name, "certificate_")
	})
	if got := families(scrape(t, alone)); !slices.Equal(got, want) {
		t.Errorf("a node that is alone exports\n%q, want\n%q", got, want)
	}
}

// What the metrics say is what happened: appends through a follower, reads behind a fence, and who is whose follower.
func TestMetricsMove(t *testing.T) {
	c := newTrio(t, 3)
	c.edit = func(_ int, conf *Config) { conf.HeartbeatTimeout = steadyHeartbeat }
	c.start(0, 1, 2)
	eventually(t, "three voters", func() bool { return voters(c.nodes[0]) == 3 })
	leader := c.leader()
	c.settled()
	var follower *Node
	for _, n := range c.nodes {
		if n != leader {
			follower = n
		}
	}
	api := apiOf(t, follower)
	appendBy(t, api, 1) // the connection is there
	atLeader, atFollower := scrape(t, leader), scrape(t, follower)
	term := atLeader["raft_term"]

	const count = 25
	appendBy(t, api, count)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, err := api.GetLog(ctx, &ledgerv1.GetLogRequest{
		Name: "main", Consistency: &ledgerv1.ReadConsistency{Linearizable: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	// A read that this node cannot answer, as while it is repaired.
	follower.service.Pause()
	_, err = api.GetLog(ctx, &ledgerv1.GetLogRequest{Name: "main"})
	follower.service.Swap(follower.serving())
	if err != nil {
		t.Fatal(err)
	}
	c.settled()
	leaderNow, followerNow := scrape(t, leader), scrape(t, follower)
	if leaderNow["raft_term"] != term {
		t.Skip("leadership moved, so who did what is not known") // a machine under load
	}
	grown := func(now, before map[string]float64, name string, min, max float64) {
		t.Helper()
		if by := now[name] - before[name]; by < min || by > max {
			t.Errorf("%s rose by %v from %v, want %v to %v", name, by, before[name], min, max)
		}
	}
	const many = 1e6
	grown(leaderNow, atLeader, "entries_total", count, count)
	grown(leaderNow, atLeader, "commands_total", 1, count)
	grown(leaderNow, atLeader, "commit_seconds", 1, count)
	grown(leaderNow, atLeader, "raft_log_sync_seconds", 1, many)
	grown(leaderNow, atLeader, "checkpoints_signed_total", 1, count)
	grown(leaderNow, atLeader, "fence_reads_total", 1, many)
	grown(leaderNow, atLeader, "fence_rounds_total", 1, many)
	grown(leaderNow, atLeader, "applied_index", 1, many)
	grown(leaderNow, atLeader, "rpc_calls_total{code=OK,method=Append}", count, count)
	grown(leaderNow, atLeader, "forwarded_calls_total", 0, 0)
	grown(followerNow, atFollower, "forwarded_calls_total", count+1, count+1)
	grown(followerNow, atFollower, "rpc_calls_total{code=OK,method=Append}", count, count)
	grown(followerNow, atFollower, "entries_total", 0, 0)
	grown(followerNow, atFollower, "raft_log_sync_seconds", 1, many)
	grown(followerNow, atFollower, "calls_unknown_total", 0, 0)

	for name, want := range map[string]float64{
		"ready": 1, "raft_leader": 1, "raft_leader_known": 1, "raft_voters": 3, "raft_nonvoters": 0, "raft_leader_contact_seconds": 0, "quarantined": 0,
		"state{state=serving}": 1, "state{state=repairing}": 0, "missing_keys": 0, "logs": 2, "catchup_running": 0, "raft_log_segments": 1,
		"follower_lag_entries{node=" + follower.ID() + "}": 0, "queue_bytes": 0, "commands_in_flight": 0,
	} {
		if got, ok := leaderNow[name]; !ok || got != want {
			t.Errorf("%s is %v (%v) on the leader, want %v", name, got, ok, want)
		}
	}
	for _, name := range []string{"free_bytes", "store_memtable_bytes", "raft_log_bytes", "raft_commit_index", "raft_last_index", "command_version"} {
		if leaderNow[name] <= 0 {
			t.Errorf("%s is %v on the leader", name, leaderNow[name])
		}
	}
	if ahead := leaderNow["clock_ahead_seconds"]; ahead < -1 || ahead > 1 {
		t.Errorf("the leader's clock is %v s ahead of those on the same machine", ahead)
	}
	for name, low := range map[string]float64{"raft_leader": 0, "raft_leader_known": 1, "ready": 1, "store_memtable_bytes": 1} {
		if got := followerNow[name]; got < low || low == 0 && got != 0 {
			t.Errorf("%s is %v on a follower", name, got)
		}
	}
	if contact := followerNow["raft_leader_contact_seconds"]; contact <= 0 || contact > 5 {
		t.Errorf("a follower heard of the leader %v s ago", contact)
	}
	if slices.ContainsFunc(slices.Collect(maps.Keys(followerNow)), func(name string) bool { return strings.HasPrefix(name, "follower_") }) {
		t.Error("a follower has followers")
	}
}

// A catch-up or a repair replaces raft and the sequencer, and what they had counted stays; a node that is closed is asked nothing any more.
func TestCountersOutliveTheirParts(t *testing.T) {
	c := newTrio(t, 3)
	c.start(0, 1, 2)
	eventually(t, "three voters", func() bool { return voters(c.nodes[0]) == 3 })
	leader := c.leader()
	n := c.nodes[0]
	if n == leader {
		n = c.nodes[1]
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for range 3 {
		if _, err := n.raft().ReadIndex(ctx); !errors.Is(err, consensus.ErrNotLeader) {
			t.Fatalf("a follower fences a read: %v", err)
		}
	}
	n.Sequencer().Metrics().Duplicates.Add(7) // as if it had led
	check := func(when string) {
		t.Helper()
		m := scrape(t, n)
		for name, want := range map[string]float64{"fence_reads_total": 3, "fence_rounds_total": 3, "fence_failed_total": 3, "duplicates_total": 7} {
			if m[name] != want {
				t.Errorf("%s is %v %s, want %v", name, m[name], when, want)
			}
		}
	}
	check("at first")
	for range 2 {
		err := n.restartRaft(ctx, func(context.Context) error {
			n.service.Pause()
			if err := n.closeCore(); err != nil {
				return err
			}
			return n.openCore()
		})
		if err != nil {
			t.Fatal(err)
		}
		n.service.Swap(n.serving())
		check("after a restart of raft")
	}
	c.settled()
	for i := range c.nodes {
		if c.nodes[i] == n {
			c.stop(i)
		}
	}
	check("when closed")
}

// What a catch-up tells of its progress adds up over exports and attempts.
func TestProgress(t *testing.T) {
	var p progress
	for _, x := range []struct {
		begin                            bool
		now                              catchup.Progress
		wantEntries, wantBytes, wantLeft uint64
	}{
		{true, catchup.Progress{}, 0, 0, 0},
		{false, catchup.Progress{Entries: 10, Total: 100, Bytes: 1000}, 10, 1000, 90},
		{false, catchup.Progress{Entries: 30, Total: 100, Bytes: 3000}, 30, 3000, 70},
		{false, catchup.Progress{Entries: 40, Total: 75, Bytes: 4000}, 70, 7000, 35}, // another export: 70 of the first one and 5 more
		{true, catchup.Progress{Entries: 20, Total: 75, Bytes: 100}, 90, 7100, 55},
		{true, catchup.Progress{Entries: 75, Total: 75, Bytes: 900}, 165, 8000, 0},
	} {
		if x.begin {
			p.begin()
		}
		p.set(x.now)
		if entries, bytes, left := p.figures(); entries != x.wantEntries || bytes != x.wantBytes || left != x.wantLeft {
			t.Errorf("after %+v: %d entries, %d bytes, %d left; want %d, %d, %d", x.now, entries, bytes, left, x.wantEntries, x.wantBytes, x.wantLeft)
		}
	}
}
