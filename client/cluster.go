package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

// ErrChangeUnknown says that a change of the cluster may or may not have been made: [Client.Cluster] shows it.
var ErrChangeUnknown = errors.New("it is not known whether the change was made; look at the cluster before you try again")

// Cluster is the cluster that keeps a ledger, as the node that answered sees it. It is that node's word.
type Cluster struct {
	ID             string
	AnsweredBy     string // node id
	Leader         string // node id; "" while there is none
	Term           uint64
	Configuration  uint64 // raft index of the membership
	CommandVersion uint32
	Members        []Member
	Warnings       []string // what an operator should look at; none: all is well
}

// Member is a node of a cluster. What follows Error is known only if Reachable.
type Member struct {
	ID           string
	Address      string // of the peer port
	APIAddress   string // for clients, as advertised; "" if not known
	Voter        bool
	BecomesVoter bool // once it has caught up; known to the leader only
	Leader       bool
	Reachable    bool
	Error        string // why it is not reachable

	State              string
	NotReady           string // why it takes no calls; "" if it does
	Quarantine         string // how its state contradicts itself or its peers; "" if not
	Term               uint64
	Applied, Durable   uint64 // raft indexes
	FirstLog, LastLog  uint64
	Lag                uint64 // raft entries that another member has applied and this one has not
	Configuration      uint64
	MinCommand         uint32
	MaxCommand         uint32
	Version            string
	ClockOffset        time.Duration // its clock minus that of the node that answered
	MissingKeys        []string      // origins, some of MissingKeyCount
	MissingKeyCount    uint32
	FreeBytes          uint64
	CertificateExpires time.Time // zero if not known
}

func toMember(m *ledgerv1.Member) Member {
	x := Member{
		ID: m.GetNodeId(), Address: m.GetAddress(), APIAddress: m.GetApiAddress(), Voter: m.GetVoter(), BecomesVoter: m.GetBecomesVoter(),
		Leader: m.GetLeader(), Reachable: m.GetReachable(), Error: m.GetError(), State: m.GetState(), NotReady: m.GetNotReady(),
		Quarantine: m.GetQuarantine(), Term: m.GetTerm(), Applied: m.GetAppliedIndex(), Durable: m.GetDurableIndex(), FirstLog: m.GetFirstLogIndex(),
		LastLog: m.GetLastLogIndex(), Lag: m.GetLagEntries(), Configuration: m.GetConfigurationIndex(), MinCommand: m.GetMinCommandVersion(),
		MaxCommand: m.GetMaxCommandVersion(), Version: m.GetVersion(), ClockOffset: time.Duration(m.GetClockOffsetUs()) * time.Microsecond,
		MissingKeys: m.GetMissingKeys(), MissingKeyCount: m.GetMissingKeyCount(), FreeBytes: m.GetFreeBytes(),
	}
	if us := m.GetCertificateExpiresUs(); us != 0 {
		x.CertificateExpires = time.UnixMicro(us).UTC()
	}
	return x
}

// Cluster describes the cluster.
func (c *Client) Cluster(ctx context.Context) (*Cluster, error) {
	resp, err := read(ctx, c, "get cluster", c.cluster.GetCluster, &ledgerv1.GetClusterRequest{})
	if err != nil {
		return nil, err
	}
	m := resp.GetCluster()
	x := &Cluster{
		ID: m.GetClusterId(), AnsweredBy: m.GetAnsweredBy(), Leader: m.GetLeaderId(), Term: m.GetTerm(), Configuration: m.GetConfigurationIndex(),
		CommandVersion: m.GetCommandVersion(), Warnings: m.GetWarnings(),
	}
	for _, member := range m.GetMembers() {
		x.Members = append(x.Members, toMember(member))
	}
	return x, nil
}

// AddMember adds the running node at a peer address, which belongs to no cluster yet. It becomes a voter, if it is to be one, by itself
// once it has caught up. Errors of this and the other changes: the gRPC status of a refusal, whose text says what to do;
// [ErrNotApplied]; [ErrChangeUnknown].
func (c *Client) AddMember(ctx context.Context, address string, voter bool) (*Member, error) {
	resp, err := change(ctx, c, "add member", c.cluster.AddMember, &ledgerv1.AddMemberRequest{Address: address, NonVoter: !voter})
	if err != nil {
		return nil, err
	}
	m := toMember(resp.GetMember())
	return &m, nil
}

// PromoteMember makes a non-voter a voter, when it has caught up.
func (c *Client) PromoteMember(ctx context.Context, id string) error {
	_, err := change(ctx, c, "promote member", c.cluster.PromoteMember, &ledgerv1.PromoteMemberRequest{NodeId: id})
	return err
}

// DemoteMember makes a voter a non-voter. force does it though too few of the other voters answer.
func (c *Client) DemoteMember(ctx context.Context, id string, force bool) error {
	_, err := change(ctx, c, "demote member", c.cluster.DemoteMember, &ledgerv1.DemoteMemberRequest{NodeId: id, Force: force})
	return err
}

// RemoveMember removes a member for good. force does it though too few of the other voters answer.
func (c *Client) RemoveMember(ctx context.Context, id string, force bool) error {
	_, err := change(ctx, c, "remove member", c.cluster.RemoveMember, &ledgerv1.RemoveMemberRequest{NodeId: id, Force: force})
	return err
}

// TransferLeadership hands leadership to a voter; an empty id lets the leader choose.
func (c *Client) TransferLeadership(ctx context.Context, id string) error {
	_, err := change(ctx, c, "transfer leadership", c.cluster.TransferLeadership, &ledgerv1.TransferLeadershipRequest{NodeId: id})
	return err
}

// maxStalls bounds how often in a row a replacement is taken up again without anything going on.
const maxStalls = 5

// ReplaceMember puts the running node at an address in the place of a dead member and tells progress of each step. It takes as long as the
// new node needs to catch up: [Options.Timeout] does not count, the context's deadline does. What was done stays when it is broken off, and
// doing it again goes on: that is what happens when a connection is lost.
func (c *Client) ReplaceMember(ctx context.Context, id, address string, force bool, progress func(string)) error {
	req := &ledgerv1.ReplaceMemberRequest{NodeId: id, Address: address, Force: force}
	for stalls := 0; ; stalls++ {
		went, err := c.replace(ctx, req, progress)
		if err == nil {
			return nil
		}
		if went {
			stalls = 0
		}
		v := judge(err)
		if !v.retry || ctx.Err() != nil || stalls >= maxStalls || c.pool.wrongServer() {
			return fmt.Errorf("replace member: %w", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(max(v.pause, firstPause<<stalls)):
		}
	}
}

// replace runs one stream; went says that there was progress.
func (c *Client) replace(ctx context.Context, req *ledgerv1.ReplaceMemberRequest, progress func(string)) (went bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.cluster.ReplaceMember(ctx, req)
	if err != nil {
		return false, err
	}
	for {
		m, err := stream.Recv()
		if err == io.EOF {
			return went, fmt.Errorf("the server stopped in the middle: %w", ErrChangeUnknown)
		}
		if err != nil {
			return went, err
		}
		went = true
		if progress != nil {
			progress(m.GetProgress())
		}
		if m.GetDone() {
			return true, nil
		}
	}
}

// change makes a change of the cluster. It is not sent again when it may have been made: the cluster would not be the one that the
// operator looked at.
func change[Q, R any](ctx context.Context, c *Client, what string, m method[Q, R], req *Q) (*R, error) {
	resp, outcome, err := attempts(ctx, c, what, m, req, manner{whole: true, once: true})
	switch outcome {
	case ErrUnknown:
		err = &outcomeError{ErrChangeUnknown, err}
	case ErrNotApplied:
		err = &outcomeError{ErrNotApplied, err}
	}
	return resp, err
}
