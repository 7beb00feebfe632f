package node

import (
	"context"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
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
	o := rpc.Options{Identify: n.identify, Logger: n.c.Logger, Cluster: controls{n}}
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
	s := grpc.NewServer(append(rpc.ServerOptions(n.c.Logger, n.rpcMetrics), extra...)...)
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

// registerMetrics exposes the node's counters. Nothing here decides anything: without this function the node behaves the same.
func (n *Node) registerMetrics() {
	r := n.c.Registry
	gauge := func(name, help string, value func() float64) {
		r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "provledger_" + name, Help: help}, value))
	}
	counter := func(name, help string, value func() float64) {
		r.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "provledger_" + name, Help: help}, value))
	}
	counter("commands_total", "Raft commands proposed.", func() float64 { return float64(n.Sequencer().Metrics().Commands.Load()) })
	counter("entries_total", "Entries recorded by this node as leader.", func() float64 { return float64(n.Sequencer().Metrics().Entries.Load()) })
	counter("duplicates_total", "Events that were recorded before.", func() float64 { return float64(n.Sequencer().Metrics().Duplicates.Load()) })
	counter("recomposed_total", "Requests composed again after a refusal.", func() float64 { return float64(n.Sequencer().Metrics().Recomposed.Load()) })
	counter("commands_refused_total", "Commands that the state machine refused.", func() float64 { return float64(n.Sequencer().Metrics().Refused.Load()) })
	gauge("ready", "1 if the node accepts appends.", func() float64 {
		if n.Ready() != nil {
			return 0
		}
		return 1
	})
	gauge("quarantined", "1 if the node's state contradicts itself or its peers.", func() float64 {
		if n.Ledger().Quarantined() != nil {
			return 1
		}
		return 0
	})
	gauge("applied_index", "Raft index up to which the state is applied.", func() float64 { return float64(n.Ledger().Applied().Index) })
	gauge("durable_index", "Raft index up to which the state survives a power cut without replay.", func() float64 {
		p, err := n.Ledger().Durable()
		if err != nil {
			return -1
		}
		return float64(p.Index)
	})
	gauge("raft_log_bytes", "Bytes of live raft log segments.", func() float64 { return float64(n.log.Bytes()) })
	gauge("raft_term", "Current raft term.", func() float64 { return float64(n.raft().Term()) })
	gauge("free_bytes", "Free bytes on the ledger's file system.", func() float64 { return float64(n.free.Load()) })
}
