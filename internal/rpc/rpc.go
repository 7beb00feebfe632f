// Package rpc serves the ledger's gRPC API. It is the only place where the domain meets protobuf and status codes: it checks and limits
// requests before anything is queued, turns results into messages and errors into statuses. A receipt leaves only when the signer has
// signed the root that it leads to.
//
// Any node takes any call. What changes something goes to the leader, over the connection between nodes, again and again within the
// caller's deadline until it has an answer or its outcome is known; what reads is answered here, as fresh as the request asks.
package rpc

import (
	"context"
	"log/slog"

	"google.golang.org/grpc"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/merkle"
	"github.com/provledger/provledger/internal/sequencer"
	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

// Appender records events: the sequencer.
type Appender interface {
	Append(ctx context.Context, r sequencer.Request) (*sequencer.Result, error)
	CreateLog(ctx context.Context, name, principal string, authn lineage.Authn) (ledger.Log, error)
}

// Checkpointer signs: the signer.
type Checkpointer interface {
	Checkpoint(origin string, size uint64, root merkle.Hash) ([]byte, error)
}

// Finder looks entries up by what they touch. The ledger does it by reading every leaf; a derived index gives the same answer.
type Finder interface {
	Find(ctx context.Context, log uint32, q ledger.Query, first, end uint64, fn func(*ledger.Entry) error) error
	ByLeafHash(ctx context.Context, log uint32, h merkle.Hash) (uint64, error)
}

// Identity says who is calling.
type Identity func(ctx context.Context) (principal string, authn lineage.Authn, err error)

// Router says where a call goes.
type Router interface {
	// Leader waits until a leader is known or ctx ends. local says that it is this node, else cc leads there. hint is the address at which
	// clients reach it, empty if not known.
	Leader(ctx context.Context) (local bool, cc grpc.ClientConnInterface, hint string, err error)
	// ReadIndex returns a raft index that is at or above everything that was acknowledged, by whichever node, before the call.
	ReadIndex(ctx context.Context) (uint64, error)
	// WaitApplied returns when this node has applied everything up to a raft index.
	WaitApplied(ctx context.Context, index uint64) error
}

// Options of a service.
type Options struct {
	// Backend may be nil: then the node is joining, until [Service.Swap].
	Backend  *Backend
	Identify Identity
	Logger   *slog.Logger
	// Router may be nil: a cluster of one that stays so. Then this node leads, and what it has applied is everything.
	Router Router
	// Cluster may be nil: then there is no ClusterService.
	Cluster Cluster
	// Metrics may be nil.
	Metrics *Metrics
}

// Service implements ledger.v1.LedgerService, and ClusterService by a type of its own.
type Service struct {
	ledgerv1.UnimplementedLedgerServiceServer

	o    Options
	held holder

	// One slot a read in progress.
	reads, scans chan struct{}
}

// New returns a service.
func New(o Options) *Service {
	return &Service{
		o: o, held: holder{backend: o.Backend, calls: make(map[*holding]struct{})},
		reads: make(chan struct{}, maxReads), scans: make(chan struct{}, maxScans),
	}
}

// Register adds the services to a server: to that for clients and to that for other nodes, which pass calls on. Both need
// [ServerOptions], whose interceptors turn errors into statuses.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	ledgerv1.RegisterLedgerServiceServer(r, s)
	if s.o.Cluster != nil {
		ledgerv1.RegisterClusterServiceServer(r, &clusterService{s: s})
	}
}

// checkpointOf returns the signed note over a tree.
func (b *Backend) checkpointOf(t *ledger.Tree) ([]byte, error) {
	g, err := b.Ledger.LogByNumber(t.Log())
	if err != nil {
		return nil, err
	}
	h := t.Head()
	return b.Checkpoints.Checkpoint(g.Origin, h.Size, h.Root)
}

// tree returns the published tree of a log by name.
func (b *Backend) tree(name string) (ledger.Log, *ledger.Tree, error) {
	g, err := b.Ledger.LogByName(name)
	if err != nil {
		return g, nil, err
	}
	t, err := b.Ledger.Tree(g.Number)
	return g, t, err
}
