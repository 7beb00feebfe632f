package telemetry

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/provledger/provledger/internal/disk"
	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/sequencer"
)

func full() Snapshot {
	counters := new(sequencer.Metrics)
	counters.RefusedBy[ledger.RefusedBefore].Add(2)
	counters.RefusedBy[ledger.RefusedVersion].Add(3)
	counters.Rejected[sequencer.ReasonKey].Add(4)
	counters.Entries.Add(5)
	return Snapshot{
		State: "catching up", Ready: true, Version: "v1", Applied: 12, FreeBytes: 1 << 30,
		Raft: Raft{
			Leader: true, Term: 3, Voters: 3,
			Followers: []Follower{{Node: "a", Behind: 7, Contact: 250 * time.Millisecond}, {Node: "b", Contact: -time.Hour}},
		},
		Store:        disk.Stats{WriteStalled: 1500 * time.Millisecond},
		Sequencer:    Sequencer{QueuedBytes: 9, Counters: counters},
		Certificates: map[string]time.Time{"api": time.Unix(1800000000, 0)},
	}
}

// lines gathers what a registry exports, one line a series, those of the Go runtime not being ours.
func lines(t *testing.T, r *prometheus.Registry) []string {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range families {
		for _, m := range f.Metric {
			line := strings.ToLower(f.GetType().String()) + " " + f.GetName()
			for _, l := range m.Label {
				line += fmt.Sprintf("{%s=%q}", l.GetName(), l.GetValue())
			}
			out = append(out, fmt.Sprintf("%s %v", line, m.GetGauge().GetValue()+m.GetCounter().GetValue()))
		}
	}
	return out
}

func TestCollect(t *testing.T) {
	r := prometheus.NewRegistry()
	r.MustRegister(NewCollector(full))
	got := lines(t, r)
	for _, want := range []string{
		`gauge provledger_applied_index 12`,
		`gauge provledger_certificate_expiry_timestamp_seconds{use="api"} 1.8e+09`,
		`counter provledger_commands_refused_total{decision="after"} 0`,
		`counter provledger_commands_refused_total{decision="before"} 2`,
		`counter provledger_commands_refused_total{decision="version"} 3`,
		`counter provledger_appends_rejected_total{reason="key"} 4`,
		`counter provledger_entries_total 5`,
		`gauge provledger_queue_bytes 9`,
		`gauge provledger_follower_contact_seconds{node="a"} 0.25`,
		`gauge provledger_follower_contact_seconds{node="b"} -1`,
		`gauge provledger_follower_lag_entries{node="a"} 7`,
		`gauge provledger_state{state="catching up"} 1`,
		`gauge provledger_state{state="serving"} 0`,
		`counter provledger_store_write_stall_seconds_total 1.5`,
		`gauge provledger_raft_leader 1`,
		`gauge provledger_quarantined 0`,
	} {
		if !slices.Contains(got, want) {
			t.Errorf("%s is not in\n%s", want, strings.Join(got, "\n"))
		}
	}
}

func TestEveryNameOnce(t *testing.T) {
	var names []string
	for _, d := range plain {
		names = append(names, d.name)
		if (d.kind == counter) != strings.HasSuffix(d.name, "_total") {
			t.Errorf("%s: counters end in _total, and nothing else does", d.name)
		}
	}
	for _, d := range labelleds {
		names = append(names, d.name)
	}
	slices.Sort(names)
	if len(slices.Compact(slices.Clone(names))) != len(names) {
		t.Errorf("a name stands twice in %q", names)
	}
}

// The manual explains each metric of this package, once, in a table row that begins with its name.
func TestManualExplainsAll(t *testing.T) {
	b, err := os.ReadFile("../../docs/operations/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]int{}
	for _, m := range regexp.MustCompile("`(provledger_[a-z0-9_]+)`").FindAllStringSubmatch(string(b), -1) {
		rows[m[1]]++
	}
	r := prometheus.NewRegistry()
	NewDurations(r)
	r.MustRegister(NewCollector(full))
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	if len(families) < len(plain)+len(labelleds) {
		t.Fatalf("gathered %d metrics of %d: the test's snapshot leaves some out", len(families), len(plain)+len(labelleds))
	}
	for _, f := range families {
		if n := rows[f.GetName()]; n != 1 {
			t.Errorf("docs/operations/metrics.md has %d rows for %s, want 1", n, f.GetName())
		}
	}
}
