package node

import (
	"context"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"

	"github.com/provledger/provledger/internal/telemetry"
)

// collector is the other end of OTLP.
type collector struct {
	collectorpb.UnimplementedTraceServiceServer
	mu    sync.Mutex
	spans map[string]span // by id
}

type span struct {
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
				c.spans[string(s.SpanId)] = span{s, node}
			}
		}
	}
	return &collectorpb.ExportTraceServiceResponse{}, nil
}

// way names a span and its parents, the root first.
func (c *collector) way(s span) string {
	names := []string{s.node + ":" + s.Name}
	for {
		parent, ok := c.spans[string(s.ParentSpanId)]
		if !ok {
			break
		}
		s = parent
		names = append(names, s.node+":"+s.Name)
	}
	slices.Reverse(names)
	return strings.Join(names, " > ")
}

// An append that a follower takes is one trace over both nodes, down to the leader's raft command.
func TestTraceOverNodes(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	sink := &collector{spans: map[string]span{}}
	server := grpc.NewServer()
	collectorpb.RegisterTraceServiceServer(server, sink)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})

	c := newTrio(t, 3)
	traces := make([]*telemetry.Telemetry, 3)
	for i := range traces {
		traces[i], err = telemetry.Start(t.Context(), telemetry.Options{
			Endpoint: "http://" + l.Addr().String(), Service: "ledgerd", Instance: c.address[i], Version: "test", Logger: slog.Default(),
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	c.edit = func(i int, conf *Config) {
		conf.Telemetry, conf.HeartbeatTimeout = traces[i], steadyHeartbeat
	}
	c.start(0, 1, 2)
	eventually(t, "three voters", func() bool { return voters(c.nodes[0]) == 3 })
	leader := c.leader()
	follower := c.nodes[0]
	if follower == leader {
		follower = c.nodes[1]
	}
	appendBy(t, apiOf(t, follower), 1)
	for _, x := range traces {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		if err := x.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		cancel()
	}

	sink.mu.Lock()
	defer sink.mu.Unlock()
	var got []string
	ids := map[string]bool{}
	for _, s := range sink.spans {
		if way := sink.way(s); strings.Contains(way, "Append") {
			got = append(got, way)
			ids[string(s.TraceId)] = true
		}
	}
	const method = ":ledger.v1.LedgerService/Append"
	taken := follower.address() + method
	passed := taken + " > " + taken + " > " + leader.address() + method
	want := []string{taken, taken + " > " + taken, passed, passed + " > " + leader.address() + ":append"}
	for _, station := range []string{"queue", "raft", "reply"} {
		want = append(want, passed+" > "+leader.address()+":append > "+leader.address()+":"+station)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) || len(ids) != 1 {
		t.Errorf("%d traces:\n%s\nwant one:\n%s", len(ids), strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
