package main

import (
	"fmt"
	"strconv"
	"time"

	"github.com/provledger/provledger/client"
)

// shownOffset is the clock offset below which nothing is shown: what a round trip cannot tell.
const shownOffset = 10 * time.Millisecond

type clusterView struct {
	ClusterID          string       `json:"clusterId"`
	AnsweredBy         string       `json:"answeredBy"`
	Leader             string       `json:"leader,omitempty"`
	Term               uint64       `json:"term"`
	ConfigurationIndex uint64       `json:"configurationIndex"`
	CommandVersion     uint32       `json:"commandVersion"`
	Voters             int          `json:"voters"`
	VotersReachable    int          `json:"votersReachable"`
	Members            []memberView `json:"members"`
	Warnings           []string     `json:"warnings"`
}

type memberView struct {
	NodeID             string   `json:"nodeId"`
	Address            string   `json:"address"`
	APIAddress         string   `json:"apiAddress,omitempty"`
	Voter              bool     `json:"voter"`
	BecomesVoter       bool     `json:"becomesVoter,omitempty"`
	Leader             bool     `json:"leader"`
	Reachable          bool     `json:"reachable"`
	Error              string   `json:"error,omitempty"`
	State              string   `json:"state,omitempty"`
	NotReady           string   `json:"notReady,omitempty"`
	Quarantine         string   `json:"quarantine,omitempty"`
	Term               uint64   `json:"term,omitempty"`
	Applied            uint64   `json:"appliedIndex,omitempty"`
	Durable            uint64   `json:"durableIndex,omitempty"`
	FirstLog           uint64   `json:"firstLogIndex,omitempty"`
	LastLog            uint64   `json:"lastLogIndex,omitempty"`
	Lag                uint64   `json:"lag"`
	ConfigurationIndex uint64   `json:"configurationIndex,omitempty"`
	MinCommand         uint32   `json:"minCommandVersion,omitempty"`
	MaxCommand         uint32   `json:"maxCommandVersion,omitempty"`
	Version            string   `json:"version,omitempty"`
	ClockOffsetMS      float64  `json:"clockOffsetMs,omitempty"`
	MissingKeys        []string `json:"missingKeys,omitempty"`
	MissingKeyCount    uint32   `json:"missingKeyCount,omitempty"`
	FreeBytes          uint64   `json:"freeBytes,omitempty"`
	CertificateExpires string   `json:"certificateExpires,omitempty"`
}

func viewMember(m *client.Member) memberView {
	v := memberView{
		NodeID: m.ID, Address: m.Address, APIAddress: m.APIAddress, Voter: m.Voter, BecomesVoter: m.BecomesVoter, Leader: m.Leader,
		Reachable: m.Reachable, Error: m.Error, State: m.State, NotReady: m.NotReady, Quarantine: m.Quarantine, Term: m.Term, Applied: m.Applied,
		Durable: m.Durable, FirstLog: m.FirstLog, LastLog: m.LastLog, Lag: m.Lag, ConfigurationIndex: m.Configuration, MinCommand: m.MinCommand,
		MaxCommand: m.MaxCommand, Version: m.Version, ClockOffsetMS: float64(m.ClockOffset.Microseconds()) / 1e3, MissingKeys: m.MissingKeys,
		MissingKeyCount: m.MissingKeyCount, FreeBytes: m.FreeBytes,
	}
	if !m.CertificateExpires.IsZero() {
		v.CertificateExpires = m.CertificateExpires.Format(time.RFC3339)
	}
	return v
}

// role and state are a member's in one or two words.
func role(m *client.Member) string {
	switch {
	case m.Leader:
		return "leader"
	case m.Voter:
		return "voter"
	case m.BecomesVoter:
		return "becomes voter"
	}
	return "non-voter"
}

func state(m *client.Member) string {
	if !m.Reachable {
		return "no answer"
	}
	return m.State
}

// shortIDs is the number of digits that tell the members apart, 8 at least: what the other verbs take for a NODE.
func shortIDs(members []client.Member) int {
	for n := 8; ; n++ {
		seen := map[string]bool{}
		for _, m := range members {
			seen[m.ID[:min(n, len(m.ID))]] = true
		}
		if len(seen) == len(members) || n >= 36 {
			return n
		}
	}
}

func (a *app) printCluster(x *client.Cluster) error {
	v := clusterView{
		ClusterID: x.ID, AnsweredBy: x.AnsweredBy, Leader: x.Leader, Term: x.Term, ConfigurationIndex: x.Configuration, CommandVersion: x.CommandVersion,
		Members: []memberView{}, Warnings: orEmpty(x.Warnings),
	}
	digits := shortIDs(x.Members)
	short := func(id string) string { return plain(id[:min(digits, len(id))]) }
	rows := [][]string{{"NODE", "ROLE", "STATE", "LAG", "PEER ADDRESS", "API ADDRESS", "VERSION", "CLOCK"}}
	for i := range x.Members {
		m := &x.Members[i]
		v.Members = append(v.Members, viewMember(m))
		if m.Voter {
			v.Voters++
			if m.Reachable {
				v.VotersReachable++
			}
		}
		lag, clock := strconv.FormatUint(m.Lag, 10), "-"
		if !m.Reachable {
			lag = "?"
		}
		if d := m.ClockOffset; d.Abs() >= shownOffset {
			clock = fmt.Sprintf("%+.2fs", d.Seconds())
		}
		rows = append(rows, []string{short(m.ID), role(m), plain(state(m)), lag, orDash(m.Address), orDash(m.APIAddress), orDash(m.Version), clock})
	}
	if a.json() {
		return a.printJSON(v)
	}
	leader := "none"
	if x.Leader != "" {
		leader = short(x.Leader)
	}
	_, err := fmt.Fprintf(a.stdout, "cluster %s, term %d, leader %s, %d of %d voters answer (asked %s)\n\n",
		plain(x.ID), x.Term, leader, v.VotersReachable, v.Voters, short(x.AnsweredBy))
	if err != nil {
		return err
	}
	if err := table(a.stdout, rows); err != nil {
		return err
	}
	if len(x.Warnings) > 0 {
		fmt.Fprintln(a.stdout, "\nWARNINGS")
	}
	for _, w := range x.Warnings {
		if _, err := fmt.Fprintf(a.stdout, "  %s\n", plain(w)); err != nil {
			return err
		}
	}
	return nil
}

// orDash is text from a ledger, or a dash for none.
func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return plain(s)
}
