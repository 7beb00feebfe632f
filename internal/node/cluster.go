package node

import (
	"context"
	"errors"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/cluster"
	"github.com/provledger/provledger/internal/consensus"
	"github.com/provledger/provledger/internal/peer"
	"github.com/provledger/provledger/internal/peerapi"
	"github.com/provledger/provledger/internal/rpc"
	nodev1 "github.com/provledger/provledger/proto/ledgernode/v1"
)

// openControl makes what changes and shows the membership. It works from the moment that this node is a member.
func (n *Node) openControl() {
	n.control = cluster.New(cluster.Options{
		ClusterID: n.dir.ClusterID, NodeID: n.ID(), Address: n.address(), Raft: membership{n}, Peers: asker{n}, Recorder: recorder{n},
		History: heldHistory{cluster.LedgerHistory{Ledger: n.Ledger}, n}, Self: backend{n}.Status, Now: n.c.Now, Logger: n.c.Logger,
	})
}

// membership is raft as the controller sees it: whichever instance is running.
type membership struct{ n *Node }

func (m membership) IsLeader() bool                        { return m.n.raft().IsLeader() }
func (m membership) Term() uint64                          { return m.n.raft().Term() }
func (m membership) Leader() string                        { return m.n.raft().Leader() }
func (m membership) Servers() ([]consensus.Server, uint64) { return m.n.raft().Servers() }

func (m membership) AddVoter(ctx context.Context, id, address string, prev uint64) error {
	return m.n.raft().AddVoter(ctx, id, address, prev)
}

func (m membership) AddNonvoter(ctx context.Context, id, address string, prev uint64) error {
	return m.n.raft().AddNonvoter(ctx, id, address, prev)
}

func (m membership) Demote(ctx context.Context, id string, prev uint64) error {
	return m.n.raft().Demote(ctx, id, prev)
}

func (m membership) Remove(ctx context.Context, id string, prev uint64) error {
	return m.n.raft().Remove(ctx, id, prev)
}

func (m membership) Transfer(ctx context.Context, id string) error {
	return m.n.raft().Transfer(ctx, id)
}

// heldHistory is that of the ledger, which is held while it is read: a repair closes it.
type heldHistory struct {
	cluster.LedgerHistory
	n *Node
}

// Records implements cluster.History.
func (h heldHistory) Records(fn func(cluster.Record) bool) error {
	_, release, err := backend{h.n}.Ledger()
	if err != nil {
		return err
	}
	defer release()
	return h.LedgerHistory.Records(fn)
}

// asker asks other nodes for their status.
type asker struct{ n *Node }

// Status implements cluster.Peers.
func (a asker) Status(ctx context.Context, id, address string) (peerapi.Status, error) {
	if !a.n.clustered() {
		return peerapi.Status{}, errors.New("this node has no peer-address, so it talks to no other")
	}
	if id == "" {
		return a.n.ask(ctx, address)
	}
	cc, err := a.n.peers.connAt(id, address)
	if err != nil {
		return peerapi.Status{}, err
	}
	st, err := peerapi.NewClient(cc, id).Status(ctx)
	if err == nil {
		a.n.hints.set(id, st.APIAddress)
	}
	return st, err
}

// recorder writes control entries, through whichever sequencer is there.
type recorder struct{ n *Node }

// RecordControl implements cluster.Recorder.
func (r recorder) RecordControl(ctx context.Context, kind lineage.ControlKind, principal string, authn lineage.Authn, document []byte) error {
	return r.n.Sequencer().RecordControl(ctx, kind, principal, authn, document)
}

// RaiseVersion implements cluster.Recorder.
func (r recorder) RaiseVersion(ctx context.Context) error { return r.n.Sequencer().RaiseVersion(ctx) }

// peerServer returns the gRPC server of the peer port: what nodes ask of each other, and the ledger's own services for calls that are passed on.
func (n *Node) peerServer(creds grpc.ServerOption) *grpc.Server {
	options := []grpc.ServerOption{
		creds,
		grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			if err := n.mayPassOn(ctx, info.FullMethod); err != nil {
				return nil, err
			}
			return next(ctx, req)
		}),
		grpc.ChainStreamInterceptor(func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			if err := n.mayPassOn(ss.Context(), info.FullMethod); err != nil {
				return err
			}
			return next(srv, ss)
		}),
	}
	s := grpc.NewServer(slices.Concat(options, rpc.ServerOptions(n.c.Logger, n.rpcMetrics), n.c.Telemetry.ServerOptions(), peerapi.ServerOptions())...)
	peerapi.Register(s, backend{n})
	n.service.Register(s)
	return s
}

// mayPassOn admits calls of the ledger's services from members only: whoever has a certificate may ask to join, and peerapi sees to that.
func (n *Node) mayPassOn(ctx context.Context, method string) error {
	if strings.HasPrefix(method, "/"+nodev1.NodeService_ServiceDesc.ServiceName+"/") {
		return nil
	}
	if r, ok := peer.From(ctx); ok && (backend{n}).Member(r) {
		return nil
	}
	return status.Error(codes.PermissionDenied, "only members of the cluster pass calls on; clients use the API port")
}

// controls is the controller as rpc sees it: asked only when the service serves, and then it is there.
type controls struct{ n *Node }

func (c controls) Overview(ctx context.Context) cluster.Overview { return c.n.control.Overview(ctx) }

func (c controls) Add(ctx context.Context, address string, voter bool) (cluster.Member, error) {
	return c.n.control.Add(ctx, address, voter)
}

func (c controls) Promote(ctx context.Context, id string) error {
	return c.n.control.Promote(ctx, id)
}

func (c controls) Demote(ctx context.Context, id string, force bool) error {
	return c.n.control.Demote(ctx, id, force)
}

func (c controls) Remove(ctx context.Context, id string, force bool) error {
	return c.n.control.Remove(ctx, id, force)
}

func (c controls) Transfer(ctx context.Context, id string) error {
	return c.n.control.Transfer(ctx, id)
}

func (c controls) Replace(ctx context.Context, id, address string, force bool, progress func(string)) error {
	return c.n.control.Replace(ctx, id, address, force, progress)
}
