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
	r.MustRegister(m.calls, m.seconds)
	return m
}

func (m *Metrics) observe(method string, code codes.Code, d time.Duration) {
	name := shortName(method)
	m.calls.WithLabelValues(name, code.String()).Inc()
	m.seconds.WithLabelValues(name).Observe(d.Seconds())
}
