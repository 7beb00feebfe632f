package cluster

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/provledger/provledger/internal/peerapi"
)

const (
	// certificateWarning is how long before its certificate expires a node is warned about.
	certificateWarning = 14 * 24 * time.Hour
	// clockWarning is the offset at which a clock is warned about: well below what costs leadership.
	clockWarning = time.Second
	// spaceWarning is the free space below which a node is warned about: it refuses appends at half of that.
	spaceWarning = 1 << 30
	// lagWarning is the lag in raft entries at which a member is warned about.
	lagWarning = 1000
)

// Overview is the cluster as one node sees it.
type Overview struct {
	ClusterID      string
	AnsweredBy     string // node id
	Leader         string // node id, "" unknown
	Term           uint64
	Configuration  uint64 // raft index of the membership
	CommandVersion uint8
	Members        []Member
	Warnings       []string // one sentence each; none: all is well
}

// Member is a member with its live status. Status is zero unless Reachable.
type Member struct {
	ID, Address string
	Voter       bool
	Leader      bool
	Reachable   bool
	Error       string // why it is not reachable
	Status      peerapi.Status
	// Lag is how many raft entries that somebody has applied it has not.
	Lag uint64
	// ClockOffset is its clock minus that of the node that answers, as exactly as the round trip allows.
	ClockOffset time.Duration
	// Wish says that a non-voter becomes a voter once it has caught up. Known to the leader only.
	Wish bool
}

// memberOf turns a sight into what is shown.
func (c *Controller) memberOf(s sight) Member {
	m := Member{
		ID: s.Server.ID, Address: s.Server.Address, Voter: s.Server.Voter, Leader: s.Server.ID == c.o.Raft.Leader(),
		Reachable: s.reachable(), Wish: !s.Server.Voter && c.wished(s.Server.ID),
	}
	if s.err != nil {
		m.Error = s.err.Error()
		return m
	}
	m.Status = s.Status
	if s.asked != 0 && s.Server.ID != c.o.NodeID {
		m.ClockOffset = s.offset()
	}
	return m
}

// Overview shows the membership that this node knows, asks every member how it is, and says what needs an operator's attention. It takes
// a second at most.
func (c *Controller) Overview(ctx context.Context) Overview {
	m := c.membership()
	o := Overview{
		ClusterID: c.o.ClusterID.String(), AnsweredBy: c.o.NodeID, Leader: c.o.Raft.Leader(), Term: c.o.Raft.Term(), Configuration: m.index,
		CommandVersion: c.o.History.CommandVersion(),
	}
	most := uint64(0)
	for _, s := range c.look(ctx, m) {
		o.Members = append(o.Members, c.memberOf(s))
		most = max(most, s.Applied)
	}
	for i := range o.Members {
		if x := &o.Members[i]; x.Reachable {
			x.Lag = most - x.Status.Applied
		}
	}
	o.Warnings = append(o.clusterWarnings(), o.memberWarnings(time.UnixMicro(c.o.Now()))...)
	if err := c.AppendAllowed(); err != nil {
		o.Warnings = append(o.Warnings, "The leader refuses appends: "+err.Error()+".")
	}
	return o
}

// clusterWarnings are about all members together.
func (o *Overview) clusterWarnings() (w []string) {
	warn := func(format string, args ...any) { w = append(w, fmt.Sprintf(format, args...)) }
	if o.Leader == "" {
		warn("There is no leader: nothing is recorded until one is elected.")
	}
	voters, up := 0, 0
	var down []string
	addresses, versions, ahead := map[string][]string{}, map[string]bool{}, true
	for i := range o.Members {
		m := &o.Members[i]
		addresses[m.Address] = append(addresses[m.Address], m.ID)
		if m.Reachable {
			versions[m.Status.Version] = true
			ahead = ahead && m.Status.MaxCommand > o.CommandVersion
		}
		if !m.Voter {
			continue
		}
		if voters++; m.Reachable {
			up++
		} else {
			down = append(down, m.ID)
		}
	}
	need := voters/2 + 1
	switch {
	case up < need:
		warn("Only %d of %d voters answer (not: %s), and %d are needed: nothing can be recorded.", up, voters, strings.Join(down, ", "), need)
	case len(down) > 0 && up == need:
		warn("%s: no further voter may be lost. Bring it back, or replace it: ledgerctl cluster replace NODE-ID ADDRESS.", notAnswering(down))
	case len(down) > 0:
		warn("%s: %d more may be lost.", notAnswering(down), up-need)
	}
	if voters%2 == 0 && voters > 0 {
		warn("There are %d voters, which tolerate the loss of %d as %d would: add a voter, or demote one.", voters, (voters-1)/2, voters-1)
	}
	for _, m := range o.Members {
		if ids := addresses[m.Address]; len(ids) > 1 && ids[0] == m.ID {
			warn("Members %s have the same address, %s.", strings.Join(ids, ", "), m.Address)
		}
	}
	if len(versions) > 1 {
		warn("Nodes run %d versions of the program: finish the upgrade.", len(versions))
	}
	return w
}

func notAnswering(down []string) string {
	if len(down) == 1 {
		return "Voter " + down[0] + " does not answer"
	}
	return "Voters " + strings.Join(down, ", ") + " do not answer"
}

// memberWarnings are about members one by one.
func (o *Overview) memberWarnings(now time.Time) (w []string) {
	for i := range o.Members {
		m := &o.Members[i]
		warn := func(format string, args ...any) { w = append(w, "Node "+m.ID+" "+fmt.Sprintf(format, args...)+".") }
		if !m.Reachable {
			if !m.Voter {
				warn("(non-voter) does not answer")
			}
			continue
		}
		s := &m.Status
		switch {
		case s.Quarantine != "":
			warn("is quarantined and repairs itself from its peers: %s", s.Quarantine)
		case s.State != peerapi.StateServing:
			warn("is %s", s.State)
		case s.NotReady != "" && s.NotReady != "there is no leader":
			warn("takes no calls: %s", s.NotReady)
		}
		if s.MissingKeyCount > 0 {
			warn("lacks the keys of %d logs (%s): put the secret or the key files there", s.MissingKeyCount, strings.Join(s.MissingKeys, ", "))
		}
		if m.Lag >= lagWarning {
			warn("is %d raft entries behind", m.Lag)
		}
		if !m.Voter && m.Wish {
			warn("is to vote and has not caught up yet")
		}
		if d := m.ClockOffset; d.Abs() >= clockWarning {
			warn("has a clock that differs by %s from that of the node that answered", d.Round(time.Millisecond))
		}
		switch {
		case s.Full:
			warn("has %d MiB of free space, too little to take appends when it leads: make room there", s.FreeBytes>>20)
		case s.FreeBytes > 0 && s.FreeBytes < spaceWarning:
			warn("has %d MiB of free space", s.FreeBytes>>20)
		}
		if s.CertificateExpires != 0 {
			if left := time.UnixMicro(s.CertificateExpires).Sub(now); left <= 0 {
				warn("has a certificate that expired on %s", time.UnixMicro(s.CertificateExpires).UTC().Format(time.RFC3339))
			} else if left < certificateWarning {
				warn("has a certificate that expires on %s", time.UnixMicro(s.CertificateExpires).UTC().Format(time.RFC3339))
			}
		}
		if s.Configuration != 0 && s.Configuration < o.Configuration && m.Lag < lagWarning {
			warn("has an older membership (raft index %d, not %d)", s.Configuration, o.Configuration)
		}
		if s.Configuration > o.Configuration && s.State == peerapi.StateServing {
			warn("has a newer membership (raft index %d) than the node that answered (%d): ask that one too; after a recovery there, this one is left behind",
				s.Configuration, o.Configuration)
		}
		if s.MaxCommand != 0 && s.MaxCommand < o.CommandVersion {
			warn("runs %s, which cannot apply commands of version %d: upgrade it", s.Version, o.CommandVersion)
		}
	}
	return w
}
