package rpc

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
)

// Metrics counts calls.
type Metrics struct {
	calls   *prometheus.CounterVec
	seconds *prometheus.HistogramVec

	forwarded, retried, notApplied, unknown prometheus.Counter
}

// NewMetrics registers the metrics of the API.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "provledger_rpc_calls_total", Help: "Finished gRPC calls by method and status code.",
		}, []string{"method", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "provledger_rpc_seconds", Help: "Duration of gRPC calls by method.", Buckets: prometheus.ExponentialBuckets(0.0001, 2.5, 14),
		}, []string{"method"}),
	}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "provledger_" + name, Help: help})
		r.MustRegister(c)
		return c
	}
	m.forwarded = counter("forwarded_calls_total", "Attempts at another node that leads.")
	m.retried = counter("forward_retries_total", "Attempts beyond a call's first, here or at another node.")
	m.notApplied = counter("calls_not_applied_total", "Calls that ended without a leader in time, certainly without effect.")
	m.unknown = counter("calls_unknown_total", "Calls that ended without a leader in time, and may have had an effect.")
	r.MustRegister(m.calls, m.seconds)
	return m
}

func (m *Metrics) observe(method string, code codes.Code, d time.Duration) {
	name := shortName(method)
	m.calls.WithLabelValues(name, code.String()).Inc()
	m.seconds.WithLabelValues(name).Observe(d.Seconds())
}

// attempted counts the n-th attempt at a change, from 0.
func (m *Metrics) attempted(n int, local bool) {
	if m == nil {
		return
	}
	if !local {
		m.forwarded.Inc()
	}
	if n > 0 {
		m.retried.Inc()
	}
}

// ended counts a change that was not made in time.
func (m *Metrics) ended(unknown bool) {
	switch {
	case m == nil:
	case unknown:
		m.unknown.Inc()
	default:
		m.notApplied.Inc()
	}
}
