// Package telemetry lets operators see a node from outside: traces of calls, and metrics of every queue, fsync, lag and refusal.
//
// Traces go to an OpenTelemetry collector (OTLP over gRPC), if there is one: [Start]. A call keeps one trace from the client over the
// node that took it to the leader that it is passed on to (W3C trace context in gRPC metadata), and an append has spans for its
// queue, its raft command and its reply ([Telemetry.Append]). Without a collector there is no [Telemetry]: all methods of a nil one return
// nothing to install, so that the way of an append is what it was. Nothing global is set, and nothing here decides anything.
//
// Metrics are read by a [Collector] from one [Snapshot] a scrape; docs/operations/metrics.md explains each.
package telemetry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/stats"
)

const (
	// exportTimeout bounds one attempt to hand spans to the collector; the queue behind it is bounded, and spans that do not fit are dropped.
	exportTimeout = 5 * time.Second
	// complainEvery bounds how often a collector that does not answer is logged.
	complainEvery = time.Minute
	// scope names the origin of our spans.
	scope = "github.com/provledger/provledger"
)

// Options of [Start].
type Options struct {
	// Endpoint is the collector: HOST:PORT or https://HOST:PORT for TLS with the system's roots, http://HOST:PORT for plain text.
	Endpoint string
	// Insecure speaks plain text to HOST:PORT.
	Insecure bool
	// Service, Instance and Version stand in every span as service.name, service.instance.id and service.version (OpenTelemetry semantic
	// conventions, resource). OTEL_RESOURCE_ATTRIBUTES may add others.
	Service, Instance, Version string
	// Logger is told when spans cannot be delivered; nil means slog.Default().
	Logger *slog.Logger

	timeout time.Duration // exportTimeout but in tests
}

// Telemetry sends traces. A nil one is off.
type Telemetry struct {
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
	exporter *exporter
}

// CheckEndpoint returns nil, or why Start cannot use an endpoint.
func CheckEndpoint(endpoint string) error {
	_, _, err := parseEndpoint(endpoint)
	return err
}

// parseEndpoint splits an endpoint into HOST:PORT and whether it speaks plain text.
func parseEndpoint(endpoint string) (address string, plain bool, err error) {
	address = endpoint
	if strings.Contains(endpoint, "://") {
		u, err := url.Parse(endpoint)
		switch {
		case err != nil:
			return "", false, err
		case u.Scheme != "http" && u.Scheme != "https":
			return "", false, fmt.Errorf("%q has the scheme %q, want http or https", endpoint, u.Scheme)
		case u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Path != "" && u.Path != "/":
			return "", false, fmt.Errorf("%q has more than a scheme, a host and a port: OTLP over gRPC has no path", endpoint)
		}
		address, plain = u.Host, u.Scheme == "http"
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", false, fmt.Errorf("%q is not HOST:PORT: %w", endpoint, err)
	}
	if host == "" || port == "" {
		return "", false, fmt.Errorf("%q lacks a host or a port (OTLP over gRPC is usually on 4317)", endpoint)
	}
	return address, plain, nil
}

// Start returns a sender of traces, or nil without an endpoint. It does not wait for the collector: one that is away costs spans and a
// log line, never a call. What is sampled follows OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG, by default everything that the
// caller has not decided otherwise.
func Start(ctx context.Context, o Options) (*Telemetry, error) {
	if o.Endpoint == "" {
		return nil, nil
	}
	address, plain, err := parseEndpoint(o.Endpoint)
	if err != nil {
		return nil, fmt.Errorf("telemetry: %w", err)
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.timeout == 0 {
		o.timeout = exportTimeout
	}
	opts := []otlptracegrpc.Option{otlptracegrpc.WithEndpoint(address), otlptracegrpc.WithTimeout(o.timeout)}
	if plain || o.Insecure {
		opts = append(opts, otlptracegrpc.WithInsecure())
	} else {
		opts = append(opts, otlptracegrpc.WithTLSCredentials(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12})))
	}
	inner, err := otlptracegrpc.New(ctx, opts...)
	if err != nil {
		return nil, fmt.Errorf("telemetry: %w", err)
	}
	res, err := resource.New(ctx, resource.WithFromEnv(), resource.WithAttributes(
		attribute.String("service.name", o.Service), attribute.String("service.instance.id", o.Instance), attribute.String("service.version", o.Version)))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("telemetry: %w", err), inner.Shutdown(ctx))
	}
	e := &exporter{SpanExporter: inner, log: o.Logger, endpoint: o.Endpoint}
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(e), sdktrace.WithResource(res))
	return &Telemetry{provider: provider, tracer: provider.Tracer(scope, trace.WithInstrumentationVersion(o.Version)), exporter: e}, nil
}

// Shutdown delivers what waits and stops, or gives up when ctx ends.
func (t *Telemetry) Shutdown(ctx context.Context) error {
	if t == nil {
		return nil
	}
	if err := t.provider.Shutdown(ctx); err != nil {
		return fmt.Errorf("telemetry: %w", err)
	}
	return nil
}

// Dropped counts the spans that could not be delivered to the collector.
func (t *Telemetry) Dropped() uint64 {
	if t == nil {
		return 0
	}
	return t.exporter.dropped.Load()
}

// ServerOptions makes a gRPC server continue the traces of its callers.
func (t *Telemetry) ServerOptions() []grpc.ServerOption {
	if t == nil {
		return nil
	}
	return []grpc.ServerOption{grpc.StatsHandler(otelgrpc.NewServerHandler(t.handlerOptions()...))}
}

// DialOptions makes a gRPC client connection carry the trace of each call to the other side.
func (t *Telemetry) DialOptions() []grpc.DialOption {
	if t == nil {
		return nil
	}
	return []grpc.DialOption{grpc.WithStatsHandler(otelgrpc.NewClientHandler(t.handlerOptions()...))}
}

func (t *Telemetry) handlerOptions() []otelgrpc.Option {
	return []otelgrpc.Option{
		otelgrpc.WithTracerProvider(t.provider),
		otelgrpc.WithMeterProvider(noop.NewMeterProvider()), // metrics are Prometheus's
		otelgrpc.WithPropagators(propagation.TraceContext{}),
		otelgrpc.WithFilter(traced),
	}
}

// traced chooses the calls that are worth a span: those of users, wherever they run, and the fence of their reads. Health checks and the
// nodes' looks at each other would bury them.
func traced(i *stats.RPCTagInfo) bool {
	return strings.HasPrefix(i.FullMethodName, "/ledger.v1.") || i.FullMethodName == "/ledgernode.v1.NodeService/ReadIndex"
}

// exporter says when spans do not arrive, in our log and not through OpenTelemetry's global error handler.
type exporter struct {
	sdktrace.SpanExporter
	log      *slog.Logger
	endpoint string
	dropped  atomic.Uint64

	mu   sync.Mutex
	said time.Time
}

// ExportSpans implements sdktrace.SpanExporter. It returns nil: whoever called could only print the error.
func (e *exporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := e.SpanExporter.ExportSpans(ctx, spans)
	if err == nil {
		return nil
	}
	total := e.dropped.Add(uint64(len(spans)))
	e.mu.Lock()
	defer e.mu.Unlock()
	if time.Since(e.said) >= complainEvery {
		e.said = time.Now()
		e.log.Warn("traces do not reach the collector", "otlp_endpoint", e.endpoint, "spans_lost", total, "err", err)
	}
	return nil
}
