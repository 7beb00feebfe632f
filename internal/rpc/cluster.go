package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/cluster"
	"github.com/provledger/provledger/internal/sequencer"
	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

// Cluster shows and changes the membership: the cluster's controller. Changes are asked of the leader's only.
type Cluster interface {
	Overview(ctx context.Context) cluster.Overview
	Add(ctx context.Context, address string, voter bool) (cluster.Member, error)
	Promote(ctx context.Context, id string) error
	Demote(ctx context.Context, id string, force bool) error
	Remove(ctx context.Context, id string, force bool) error
	Transfer(ctx context.Context, id string) error
	Replace(ctx context.Context, id, address string, force bool, progress func(string)) error
}

// maxAddressBytes is a host name of 253 bytes with its port.
const maxAddressBytes = 260

// replacePatience is how long a replacement that is interrupted by an election waits to go on.
const replacePatience = 30 * time.Second

// clusterService implements ledger.v1.ClusterService.
type clusterService struct {
	ledgerv1.UnimplementedClusterServiceServer
	s *Service
}

// GetCluster implements the method of the service. Every node has an answer, with or without a leader.
func (c *clusterService) GetCluster(ctx context.Context, _ *ledgerv1.GetClusterRequest) (*ledgerv1.GetClusterResponse, error) {
	if err := c.s.present(); err != nil {
		return nil, err
	}
	ctx, cancel := ours(ctx)
	defer cancel()
	return &ledgerv1.GetClusterResponse{Cluster: clusterMessage(c.s.o.Cluster.Overview(ctx))}, nil
}

// present returns nil, or why this node knows of no cluster: it has never been part of one.
func (s *Service) present() error {
	s.held.mu.Lock()
	defer s.held.mu.Unlock()
	if s.held.backend == nil {
		return errPaused
	}
	return nil
}

// AddMember implements the method of the service.
func (c *clusterService) AddMember(ctx context.Context, r *ledgerv1.AddMemberRequest) (*ledgerv1.AddMemberResponse, error) {
	if err := checkAddress(r.GetAddress()); err != nil {
		return nil, err
	}
	return change(ctx, c.s, ledgerv1.ClusterService_AddMember_FullMethodName, r, func(ctx context.Context, k Cluster) (*ledgerv1.AddMemberResponse, error) {
		m, err := k.Add(ctx, r.GetAddress(), !r.GetNonVoter())
		if err != nil {
			return nil, err
		}
		return &ledgerv1.AddMemberResponse{Member: memberMessage(&m)}, nil
	})
}

// PromoteMember implements the method of the service.
func (c *clusterService) PromoteMember(ctx context.Context, r *ledgerv1.PromoteMemberRequest) (*ledgerv1.PromoteMemberResponse, error) {
	if err := checkID(r.GetNodeId()); err != nil {
		return nil, err
	}
	return change(ctx, c.s, ledgerv1.ClusterService_PromoteMember_FullMethodName, r, func(ctx context.Context, k Cluster) (*ledgerv1.PromoteMemberResponse, error) {
		return &ledgerv1.PromoteMemberResponse{}, k.Promote(ctx, r.GetNodeId())
	})
}

// DemoteMember implements the method of the service.
func (c *clusterService) DemoteMember(ctx context.Context, r *ledgerv1.DemoteMemberRequest) (*ledgerv1.DemoteMemberResponse, error) {
	if err := checkID(r.GetNodeId()); err != nil {
		return nil, err
	}
	return change(ctx, c.s, ledgerv1.ClusterService_DemoteMember_FullMethodName, r, func(ctx context.Context, k Cluster) (*ledgerv1.DemoteMemberResponse, error) {
		return &ledgerv1.DemoteMemberResponse{}, k.Demote(ctx, r.GetNodeId(), r.GetForce())
	})
}

// RemoveMember implements the method of the service.
func (c *clusterService) RemoveMember(ctx context.Context, r *ledgerv1.RemoveMemberRequest) (*ledgerv1.RemoveMemberResponse, error) {
	if err := checkID(r.GetNodeId()); err != nil {
		return nil, err
	}
	return change(ctx, c.s, ledgerv1.ClusterService_RemoveMember_FullMethodName, r, func(ctx context.Context, k Cluster) (*ledgerv1.RemoveMemberResponse, error) {
		return &ledgerv1.RemoveMemberResponse{}, k.Remove(ctx, r.GetNodeId(), r.GetForce())
	})
}

// TransferLeadership implements the method of the service.
func (c *clusterService) TransferLeadership(ctx context.Context, r *ledgerv1.TransferLeadershipRequest) (*ledgerv1.TransferLeadershipResponse, error) {
	if r.GetNodeId() != "" {
		if err := checkID(r.GetNodeId()); err != nil {
			return nil, err
		}
	}
	return change(ctx, c.s, ledgerv1.ClusterService_TransferLeadership_FullMethodName, r, func(ctx context.Context, k Cluster) (*ledgerv1.TransferLeadershipResponse, error) {
		return &ledgerv1.TransferLeadershipResponse{}, k.Transfer(ctx, r.GetNodeId())
	})
}

// change makes a change of the cluster on the leader. After an attempt of unknown outcome the caller is told so: `cluster status` shows
// what became of it, and another attempt could meet a cluster that is not the one that the operator looked at.
func change[R any, P interface {
	*R
	proto.Message
}](ctx context.Context, s *Service, method string, r proto.Message, f func(context.Context, Cluster) (P, error)) (P, error) {
	resp, _, err := lead(ctx, s, leading[P]{
		patient: true,
		local: func(ctx context.Context) (P, error) {
			ctx, err := s.controlling(ctx)
			if err != nil {
				return nil, err
			}
			resp, err := f(ctx, s.o.Cluster)
			if err != nil {
				return nil, err
			}
			return resp, nil
		},
		remote: there[R, P](method, r),
	})
	return resp, err
}

// controlling says for whom a change is made.
func (s *Service) controlling(ctx context.Context) (context.Context, error) {
	if err := s.present(); err != nil {
		return ctx, err
	}
	principal, authn, err := s.o.Identify(ctx)
	return cluster.WithCaller(ctx, cluster.Caller{Principal: principal, Authn: authn}), err
}

// ReplaceMember implements the method of the service. A replacement that an election interrupts goes on with the new leader: doing it again
// is how it goes on.
func (c *clusterService) ReplaceMember(r *ledgerv1.ReplaceMemberRequest, stream grpc.ServerStreamingServer[ledgerv1.ReplaceMemberResponse]) error {
	if err := errors.Join(checkID(r.GetNodeId()), checkAddress(r.GetAddress())); err != nil {
		return err
	}
	ctx, router := stream.Context(), c.s.o.Router
	if router == nil || forwarded(ctx) {
		return c.replaceHere(ctx, r, stream)
	}
	var since time.Time // nothing went on
	for n := 0; ; n++ {
		short, cancel := context.WithTimeout(ctx, replacePatience)
		local, cc, hint, err := router.Leader(short)
		cancel()
		if err != nil {
			return fmt.Errorf("%w: there is no leader", sequencer.ErrNotApplied)
		}
		progressed := false
		if local {
			err = c.replaceHere(ctx, r, counted{stream, &progressed})
		} else {
			err = replaceThere(ctx, cc, r, counted{stream, &progressed})
		}
		if err == nil || judge(err) != notApplied {
			return annotateLocal(err, hint)
		}
		if progressed || since.IsZero() {
			since = time.Now()
		}
		if time.Since(since) > replacePatience || !pause(ctx, n) {
			return annotateLocal(err, hint)
		}
	}
}

// annotateLocal adds the leader to an error of ours; a status of another node stays as it is.
func annotateLocal(err error, hint string) error {
	if err == nil || hasStatus(err) {
		return err
	}
	return annotate(err, "leader", hint)
}

// counted notes that something was sent.
type counted struct {
	grpc.ServerStreamingServer[ledgerv1.ReplaceMemberResponse]
	progressed *bool
}

func (c counted) Send(m *ledgerv1.ReplaceMemberResponse) error {
	*c.progressed = true
	return c.ServerStreamingServer.Send(m)
}

func (c *clusterService) replaceHere(ctx context.Context, r *ledgerv1.ReplaceMemberRequest, stream grpc.ServerStreamingServer[ledgerv1.ReplaceMemberResponse]) error {
	ctx, err := c.s.controlling(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	err = c.s.o.Cluster.Replace(ctx, r.GetNodeId(), r.GetAddress(), r.GetForce(), func(text string) {
		if stream.Send(&ledgerv1.ReplaceMemberResponse{Progress: text}) != nil {
			cancel() // nobody listens
		}
	})
	if err != nil {
		return err
	}
	return stream.Send(&ledgerv1.ReplaceMemberResponse{Progress: "The new member is in place.", Done: true})
}

func replaceThere(ctx context.Context, cc grpc.ClientConnInterface, r *ledgerv1.ReplaceMemberRequest, stream grpc.ServerStreamingServer[ledgerv1.ReplaceMemberResponse]) error {
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(ctx, forwardedKey, "1"))
	defer cancel()
	from, err := ledgerv1.NewClusterServiceClient(cc).ReplaceMember(ctx, r)
	if err != nil {
		return fmt.Errorf("%w: the leader cannot be reached: %s", sequencer.ErrNotApplied, textOf(err))
	}
	for {
		m, err := from.Recv()
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = stream.Send(m)
		}
		if err != nil {
			return err
		}
	}
}

func checkID(id string) error {
	if _, err := lineage.ParseID(id); err != nil {
		return invalid("node_id", err.Error())
	}
	return nil
}

func checkAddress(address string) error {
	if address == "" || len(address) > maxAddressBytes {
		return invalid("address", fmt.Sprintf("HOST:PORT of at most %d bytes is required", maxAddressBytes))
	}
	return nil
}

func clusterMessage(o cluster.Overview) *ledgerv1.Cluster {
	m := &ledgerv1.Cluster{
		ClusterId: o.ClusterID, AnsweredBy: o.AnsweredBy, LeaderId: o.Leader, Term: o.Term, ConfigurationIndex: o.Configuration,
		CommandVersion: uint32(o.CommandVersion), Warnings: o.Warnings,
	}
	for i := range o.Members {
		m.Members = append(m.Members, memberMessage(&o.Members[i]))
	}
	return m
}

func memberMessage(m *cluster.Member) *ledgerv1.Member {
	s := &m.Status
	return &ledgerv1.Member{
		NodeId: m.ID, Address: m.Address, ApiAddress: s.APIAddress, Voter: m.Voter, Leader: m.Leader, Reachable: m.Reachable, Error: m.Error,
		State: s.State, NotReady: s.NotReady, Quarantine: s.Quarantine, Term: s.Term, AppliedIndex: s.Applied, DurableIndex: s.Durable,
		FirstLogIndex: s.FirstLog, LastLogIndex: s.LastLog, LagEntries: m.Lag, ConfigurationIndex: s.Configuration,
		MinCommandVersion: uint32(s.MinCommand), MaxCommandVersion: uint32(s.MaxCommand), Version: s.Version,
		ClockOffsetUs: m.ClockOffset.Microseconds(), MissingKeys: s.MissingKeys, MissingKeyCount: uint32(s.MissingKeyCount), FreeBytes: s.FreeBytes,
		BecomesVoter: m.Wish, CertificateExpiresUs: s.CertificateExpires,
	}
}
