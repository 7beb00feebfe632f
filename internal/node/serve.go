package node

import (
	"context"
	"net/http"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/httpapi"
	"github.com/provledger/provledger/internal/rpc"
	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

// newService makes the service that all servers of this node share. It has no ledger to answer from until it is given one.
func (n *Node) newService() {
	n.rpcMetrics, n.health = rpc.NewMetrics(n.c.Registry), newHealth()
	o := rpc.Options{Identify: n.identify, Logger: n.c.Logger, Cluster: controls{n}, Metrics: n.rpcMetrics}
	if n.c.Peer != nil {
		o.Router = router{n}
	}
	n.service = rpc.New(o)
}

// serving is what the service answers from.
func (n *Node) serving() *rpc.Backend {
	c := n.core.Load()
	return &rpc.Backend{Ledger: c.ledger, Appender: c.sequencer, Checkpoints: n.signer, Finder: c.ledger}
}

// NewServer returns a gRPC server with the ledger services, health and reflection. The caller serves and stops it, before Close.
func (n *Node) NewServer(extra ...grpc.ServerOption) *grpc.Server {
	s := grpc.NewServer(slices.Concat(rpc.ServerOptions(n.c.Logger, n.rpcMetrics), n.c.Telemetry.ServerOptions(), extra)...)
	n.service.Register(s)
	healthpb.RegisterHealthServer(s, n.health)
	reflection.Register(s)
	return s
}

// Drain prepares for a stop: a leader hands over, so that nobody waits for an election, and what a graceful stop of a server would wait for
// without end is ended: watches.
func (n *Node) Drain() {
	if n.clustered() && n.raft().IsLeader() && !n.alone() {
		ctx, cancel := context.WithTimeout(context.Background(), handOverTimeout)
		if err := n.control.Transfer(ctx, ""); err != nil {
			n.c.Logger.Warn("leadership could not be handed over; the others elect", "err", err)
		}
		cancel()
	}
	n.service.Drain()
}

// identify is who everybody is until there is access control: the one local principal of this ledger.
func (n *Node) identify(context.Context) (string, lineage.Authn, error) {
	return n.Ledger().LocalPrincipal(), n.c.Authn, nil
}

// Handler returns what the HTTP port serves.
func (n *Node) Handler() http.Handler { return httpapi.Handler(n.c.Registry, n.Ready) }

// newHealth returns the gRPC health service; watchReady keeps it true.
func newHealth() *health.Server {
	h := health.NewServer()
	h.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
	return h
}

// setHealth makes the health service say what Ready says.
func (n *Node) setHealth() {
	status := healthpb.HealthCheckResponse_SERVING
	if n.Ready() != nil {
		status = healthpb.HealthCheckResponse_NOT_SERVING
	}
	n.health.SetServingStatus("", status)
	n.health.SetServingStatus(ledgerv1.LedgerService_ServiceDesc.ServiceName, status)
}
