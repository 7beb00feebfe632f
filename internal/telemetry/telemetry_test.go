package telemetry

import (
	"context"
	"encoding/hex"
	"errors"
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
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/provledger/provledger/internal/sequencer"
	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

// collector is the other end of OTLP: it keeps what it is sent.
type collector struct {
	collectorpb.UnimplementedTraceServiceServer
	mu    sync.Mutex
	spans []received
}

// received is a span with the instance that sent it.
type received struct {
	*tracepb.Span
	instance string
}

func (c *collector) Export(_ context.Context, r *collectorpb.ExportTraceServiceRequest) (*collectorpb.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, rs := range r.ResourceSpans {
		instance := ""
		for _, a := range rs.Resource.Attributes {
			if a.Key == "service.instance.id" {
				instance = a.Value.GetStringValue()
			}
		}
		for _, ss := range rs.ScopeSpans {
			for _, s := range ss.Spans {
				c.spans = append(c.spans, received{s, instance})
			}
		}
	}
	return &collectorpb.ExportTraceServiceResponse{}, nil
}

// serve runs a gRPC server until the test ends and returns its address.
func serve(t *testing.T, register func(*grpc.Server), o ...grpc.ServerOption) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(o...)
	register(s)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

func dial(t *testing.T, address string, o ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	cc, err := grpc.NewClient(address, append(o, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	return cc
}

func begin(t *testing.T, endpoint, instance string) *Telemetry {
	t.Helper()
	x, err := Start(t.Context(), Options{Endpoint: endpoint, Service: "ledgerd", Instance: instance, Version: "test", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func finish(t *testing.T, x *Telemetry) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := x.Shutdown(ctx); err != nil {
		t.Error(err)
	}
}

// appender answers Append as a node does, as far as traces go.
type appender struct {
	ledgerv1.UnimplementedLedgerServiceServer
	append func(ctx context.Context) error
}

func (a appender) Append(ctx context.Context, _ *ledgerv1.AppendRequest) (*ledgerv1.AppendResponse, error) {
	return &ledgerv1.AppendResponse{}, a.append(ctx)
}

// One call leaves one trace: client, follower, the follower's call to the leader, leader, append with queue, raft and reply.
func TestOneTraceFromClientToRaft(t *testing.T) {
	c := &collector{}
	endpoint := "http://" + serve(t, func(s *grpc.Server) { collectorpb.RegisterTraceServiceServer(s, c) })
	client, follower, leader := begin(t, endpoint, "client"), begin(t, endpoint, "follower"), begin(t, endpoint, "leader")

	start := time.Now()
	leads := serve(t, func(s *grpc.Server) {
		ledgerv1.RegisterLedgerServiceServer(s, appender{append: func(ctx context.Context) error {
			leader.Append()(ctx, sequencer.Passage{
				Log: 1, Events: 3, Queued: start, Done: start.Add(4 * time.Millisecond),
				Stations: sequencer.Stations{Attempts: 1, Composed: start.Add(time.Millisecond), Decided: start.Add(3 * time.Millisecond)},
			})
			return nil
		}})
		healthpb.RegisterHealthServer(s, health.NewServer())
	}, leader.ServerOptions()...)
	onward := ledgerv1.NewLedgerServiceClient(dial(t, leads, follower.DialOptions()...))
	follows := serve(t, func(s *grpc.Server) {
		ledgerv1.RegisterLedgerServiceServer(s, appender{append: func(ctx context.Context) error {
			_, err := onward.Append(ctx, &ledgerv1.AppendRequest{})
			return err
		}})
	}, follower.ServerOptions()...)

	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := ledgerv1.NewLedgerServiceClient(dial(t, follows, client.DialOptions()...)).Append(ctx, &ledgerv1.AppendRequest{}); err != nil {
		t.Fatal(err)
	}
	// What nobody wants to see a thousand times a day.
	if _, err := healthpb.NewHealthClient(dial(t, leads, client.DialOptions()...)).Check(ctx, &healthpb.HealthCheckRequest{}); err != nil {
		t.Fatal(err)
	}
	for _, x := range []*Telemetry{client, follower, leader} {
		finish(t, x)
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	byID := map[string]received{}
	for _, s := range c.spans {
		byID[hex.EncodeToString(s.SpanId)] = s
	}
	// way lists a span and its parents, the root first.
	way := func(s received) string {
		var names []string
		for {
			names = append(names, s.instance+":"+s.Name)
			parent, ok := byID[hex.EncodeToString(s.ParentSpanId)]
			if !ok {
				break
			}
			s = parent
		}
		slices.Reverse(names)
		return strings.Join(names, " > ")
	}
	var got []string
	for _, s := range c.spans {
		if !slices.Equal(s.TraceId, c.spans[0].TraceId) {
			t.Errorf("%s is of another trace", way(s))
		}
		got = append(got, way(s))
	}
	slices.Sort(got)
	const method = "ledger.v1.LedgerService/Append"
	steps := []string{"client:" + method, "follower:" + method, "follower:" + method, "leader:" + method, "leader:append"}
	var want []string
	for i := range steps {
		want = append(want, strings.Join(steps[:i+1], " > "))
	}
	for _, last := range []string{"leader:queue", "leader:raft", "leader:reply"} {
		want = append(want, strings.Join(append(steps[:len(steps):len(steps)], last), " > "))
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for _, s := range c.spans {
		if d := time.Duration(s.EndTimeUnixNano - s.StartTimeUnixNano); s.Name == "raft" && d != 2*time.Millisecond {
			t.Errorf("the span raft lasts %v, want the 2ms between composed and decided", d)
		}
	}
}

// An append that failed says so, and has no span for what it did not reach.
func TestFailedAppend(t *testing.T) {
	c := &collector{}
	endpoint := "http://" + serve(t, func(s *grpc.Server) { collectorpb.RegisterTraceServiceServer(s, c) })
	x := begin(t, endpoint, "n")
	ctx, span := x.tracer.Start(t.Context(), "call")
	now := time.Now()
	x.Append()(ctx, sequencer.Passage{Queued: now, Done: now.Add(time.Second), Err: errors.New("no leader")})
	span.End()
	finish(t, x)
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.spans) != 2 {
		t.Fatalf("got %d spans, want call and append", len(c.spans))
	}
	for _, s := range c.spans {
		if s.Name == "append" && (s.Status.GetCode() != tracepb.Status_STATUS_CODE_ERROR || s.Status.GetMessage() != "no leader") {
			t.Errorf("append has the status %v", s.Status)
		}
	}
}

// Without a collector nothing is installed; with one, what is not sampled is not worth an allocation.
func TestOffCostsNothing(t *testing.T) {
	off, err := Start(t.Context(), Options{})
	if off != nil || err != nil {
		t.Fatalf("no endpoint: %v, %v", off, err)
	}
	if off.Append() != nil || off.ServerOptions() != nil || off.DialOptions() != nil || off.Dropped() != 0 || off.Shutdown(t.Context()) != nil {
		t.Error("telemetry that is off installs something")
	}
	x := begin(t, "http://127.0.0.1:1", "n")
	defer finish(t, x)
	hook, ctx, now := x.Append(), t.Context(), time.Now()
	if n := testing.AllocsPerRun(100, func() { hook(ctx, sequencer.Passage{Queued: now, Done: now}) }); n != 0 {
		t.Errorf("a passage without a sampled trace allocates %v times", n)
	}
}

// A collector that is away costs spans and one line, and no call.
func TestCollectorIsAway(t *testing.T) {
	var log strings.Builder
	x, err := Start(t.Context(), Options{Endpoint: "http://127.0.0.1:1", Service: "ledgerd", Instance: "n", Logger: slog.New(slog.NewTextHandler(&log, nil)), timeout: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		_, span := x.tracer.Start(t.Context(), "call")
		span.End()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if err := x.provider.ForceFlush(ctx); err != nil {
			t.Error(err)
		}
		cancel()
	}
	finish(t, x)
	if x.Dropped() != 3 || strings.Count(log.String(), "traces do not reach the collector") != 1 {
		t.Errorf("lost %d spans, want 3; want one line:\n%s", x.Dropped(), log.String())
	}
}

func TestEndpoints(t *testing.T) {
	for endpoint, want := range map[string]string{
		"otel.example:4317":          "otel.example:4317 tls",
		"https://otel.example:4317":  "otel.example:4317 tls",
		"https://otel.example:4317/": "otel.example:4317 tls",
		"http://127.0.0.1:4317":      "127.0.0.1:4317 plain",
		"http://[::1]:4317":          "[::1]:4317 plain",
		"otel.example":               "",
		":4317":                      "",
		"otel.example:":              "",
		"grpc://otel.example:4317":   "",
		"http://otel.example":        "",
		"http://a:b@otel.example:1":  "",
		"http://otel.example:1/v1":   "",
		"http://otel.example:1?a=b":  "",
		"http://%zz:1":               "",
	} {
		address, plain, err := parseEndpoint(endpoint)
		got := ""
		switch {
		case err == nil && plain:
			got = address + " plain"
		case err == nil:
			got = address + " tls"
		}
		if got != want || (CheckEndpoint(endpoint) == nil) != (want != "") {
			t.Errorf("%s: got %q (%v), want %q", endpoint, got, err, want)
		}
	}
}
