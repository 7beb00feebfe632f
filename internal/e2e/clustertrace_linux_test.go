package e2e

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/provledger/provledger/client/eventpb"
	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

// collector is an OpenTelemetry collector that keeps what it is sent.
type collector struct {
	collectorpb.UnimplementedTraceServiceServer
	mu    sync.Mutex
	spans map[string]traced // by id
}

// traced is a span, and which node sent it.
type traced struct {
	*tracepb.Span
	node string
}

func (c *collector) Export(_ context.Context, r *collectorpb.ExportTraceServiceRequest) (*collectorpb.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, rs := range r.ResourceSpans {
		node := ""
		for _, a := range rs.Resource.Attributes {
			if a.Key == "service.instance.id" {
				node = a.Value.GetStringValue()
			}
		}
		for _, ss := range rs.ScopeSpans {
			for _, s := range ss.Spans {
				c.spans[hex.EncodeToString(s.SpanId)] = traced{s, node}
			}
		}
	}
	return &collectorpb.ExportTraceServiceResponse{}, nil
}

// ways lists each span of a trace as the names from the root to it, sorted.
func (c *collector) ways(id trace.TraceID) (list []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.spans {
		if hex.EncodeToString(s.TraceId) != id.String() {
			continue
		}
		way := []string{s.node + " " + s.Name}
		for s, ok := c.spans[hex.EncodeToString(s.ParentSpanId)]; ok; s, ok = c.spans[hex.EncodeToString(s.ParentSpanId)] {
			way = append(way, s.node+" "+s.Name)
		}
		slices.Reverse(way)
		list = append(list, strings.Join(way, " > "))
	}
	slices.Sort(list)
	return list
}

// TestClusterTrace sends an append to a follower and wants one trace of it: client, follower, its call to the leader, leader, and there queue,
// raft and reply.
func TestClusterTrace(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	got := &collector{spans: map[string]traced{}}
	server := grpc.NewServer()
	collectorpb.RegisterTraceServiceServer(server, got)
	go server.Serve(l)
	t.Cleanup(server.Stop)

	r := dice(t)
	c := newCluster(t, r, clusterOptions{nodes: 3, args: []string{"--otlp-endpoint", "http://" + l.Addr().String()}})
	leader := c.leader()
	follower := c.others(leader)[0]

	// The client is traced by otelgrpc, as docs/operations/monitoring.md tells users; its spans stay here.
	provider := sdktrace.NewTracerProvider()
	cc, err := grpc.NewClient(c.members[follower].grpc, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithStatsHandler(otelgrpc.NewClientHandler(otelgrpc.WithTracerProvider(provider), otelgrpc.WithPropagators(propagation.TraceContext{}))))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	ctx, span := provider.Tracer("e2e").Start(ctx, "test")
	if _, err := ledgerv1.NewLedgerServiceClient(cc).Append(ctx, &ledgerv1.AppendRequest{Log: "main", Event: eventpb.FromEvent(newEvent(r))}); err != nil {
		t.Fatal(err)
	}
	span.End()

	const method = "ledger.v1.LedgerService/Append"
	f, d := c.members[follower].advertised+" ", c.members[leader].advertised+" "
	steps := []string{f + method, f + method, d + method, d + "append"}
	var want []string
	for i := range steps {
		want = append(want, strings.Join(steps[:i+1], " > "))
	}
	for _, last := range []string{"queue", "raft", "reply"} {
		want = append(want, strings.Join(append(steps[:len(steps):len(steps)], d+last), " > "))
	}
	slices.Sort(want)
	id := span.SpanContext().TraceID()
	c.lookFor("the trace of an append", func() (bool, string) {
		ways := got.ways(id)
		return slices.Equal(ways, want), fmt.Sprintf("got\n%s\nwant\n%s", strings.Join(ways, "\n"), strings.Join(want, "\n"))
	})
	got.mu.Lock()
	defer got.mu.Unlock()
	for _, s := range got.spans {
		if s.Name == "raft" && hex.EncodeToString(s.TraceId) == id.String() && time.Duration(s.EndTimeUnixNano-s.StartTimeUnixNano) <= 0 {
			t.Error("raft took no time")
		}
	}
}
