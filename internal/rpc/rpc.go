// Package rpc serves the ledger's gRPC API. It is the only place where the domain meets protobuf and status codes: it checks and limits
// requests before anything is queued, turns results into messages and errors into statuses. A receipt leaves only when the signer has
// signed the root that it leads to.
package rpc

import (
	"context"
	"log/slog"
	"sync"

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

// Options of a service. All are required.
type Options struct {
	Ledger      *ledger.Ledger
	Appender    Appender
	Checkpoints Checkpointer
	Finder      Finder
	Identify    Identity
	Logger      *slog.Logger
}

// Service implements ledger.v1.LedgerService.
type Service struct {
	ledgerv1.UnimplementedLedgerServiceServer

	o        Options
	draining chan struct{} // closed by Drain
	drain    sync.Once
}

// New returns a service.
func New(o Options) *Service { return &Service{o: o, draining: make(chan struct{})} }

// Drain ends the watches, which would otherwise last as long as their clients like. Everything else goes on.
func (s *Service) Drain() { s.drain.Do(func() { close(s.draining) }) }

// Register adds the service to a server.
func (s *Service) Register(r grpc.ServiceRegistrar) { ledgerv1.RegisterLedgerServiceServer(r, s) }

// checkpointOf returns the signed note over a tree.
func (s *Service) checkpointOf(t *ledger.Tree) ([]byte, error) {
	g, err := s.o.Ledger.LogByNumber(t.Log())
	if err != nil {
		return nil, err
	}
	h := t.Head()
	return s.o.Checkpoints.Checkpoint(g.Origin, h.Size, h.Root)
}

// tree returns the published tree of a log by name.
func (s *Service) tree(name string) (ledger.Log, *ledger.Tree, error) {
	g, err := s.o.Ledger.LogByName(name)
	if err != nil {
		return g, nil, err
	}
	t, err := s.o.Ledger.Tree(g.Number)
	return g, t, err
}
