package peer

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Reasons of refusals, the label of their counter.
const (
	reasonBusy        = "busy"        // too many strangers
	reasonCertificate = "certificate" // foreign, expired, or not for a client
	reasonTLS         = "tls"         // anything else that TLS did not like
	reasonNotTLS      = "not_tls"     // garbage
	reasonSilent      = "silent"      // connected and went: a port scanner, a TCP probe
	reasonStalled     = "stalled"     // too slow
	reasonProtocol    = "protocol"    // no ALPN of ours
	reasonHello       = "hello"       // TLS is fine, what follows is not
	reasonCluster     = "cluster"     // of another cluster
	reasonName        = "name"        // the certificate is not for that host or node
	reasonAdmit       = "membership"  // Options.Admit said no
	reasonTwice       = "two_processes"
	reasonLane        = "lane"     // nothing here takes such connections
	reasonTooMany     = "too_many" // connections of one node
	reasonClosed      = "closed"   // this port closes
)

var reasons = []string{reasonBusy, reasonCertificate, reasonTLS, reasonNotTLS, reasonSilent, reasonStalled, reasonProtocol, reasonHello,
	reasonCluster, reasonName, reasonAdmit, reasonTwice, reasonLane, reasonTooMany}

// refusal is why a connection is not wanted.
type refusal struct {
	reason string
	err    error
}

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

const (
	// quietFor is how long a source is not complained of again for the same reason.
	quietFor = 10 * time.Second
	// maxComplaints bounds what is remembered for that; a scan from more sources is summed up.
	maxComplaints = 1024
	// sweepEvery keeps a scan from making each refusal walk what is remembered.
	sweepEvery = time.Second
)

// refusals thins out what is logged about connections that are not wanted: a line a source and reason each ten seconds.
type refusals struct {
	mu    sync.Mutex
	said  map[complaint]*silence
	swept time.Time
}

type complaint struct {
	source netip.Addr
	reason string
}

type silence struct {
	until      time.Time
	suppressed int
}

// say reports whether a line is due, and how many were left out since the last.
func (r *refusals) say(c complaint, now time.Time) (suppressed int, due bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.said[c]; s != nil {
		if now.Before(s.until) {
			s.suppressed++
			return 0, false
		}
		suppressed = s.suppressed
	}
	if r.said == nil {
		r.said = map[complaint]*silence{}
	}
	if len(r.said) >= maxComplaints {
		if now.Sub(r.swept) >= sweepEvery {
			r.swept = now
			for k, s := range r.said {
				if now.After(s.until) {
					delete(r.said, k)
				}
			}
		}
		if _, there := r.said[c]; !there && len(r.said) >= maxComplaints {
			c.source = netip.Addr{} // all others are one source
			if s := r.said[c]; s != nil && now.Before(s.until) {
				s.suppressed++
				return 0, false
			}
		}
	}
	r.said[c] = &silence{until: now.Add(quietFor)}
	return suppressed, true
}

// refuse counts and logs a connection that was not wanted.
func (p *Port) refuse(s *stranger, err error) {
	reason := reasonClosed
	if r, ok := errors.AsType[*refusal](err); ok {
		reason = r.reason
	}
	if reason == reasonClosed {
		return
	}
	p.metrics.refused.WithLabelValues(reason).Inc()
	suppressed, due := p.refused.say(complaint{s.source, reason}, time.Now())
	if !due {
		return
	}
	level := slog.LevelWarn
	switch reason {
	case reasonSilent: // load balancers and probes do that all day
		level = slog.LevelDebug
	case reasonTwice:
		level = slog.LevelError
	}
	p.log.Log(p.ctx, level, "peer connection refused", "source", s.RemoteAddr().String(), "reason", reason, "error", err, "suppressed", suppressed)
}

// metrics of the port. They decide nothing.
type metrics struct {
	accepted, refused, failed *prometheus.CounterVec
}

func (p *Port) newMetrics() (*metrics, error) {
	counter := func(name, help, label string, values []string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "provledger_peer_" + name, Help: help}, []string{label})
		for _, x := range values {
			v.WithLabelValues(x) // so that a rule sees it from the start
		}
		return v
	}
	lanes := []string{LaneRaft.String(), LaneAPI.String()}
	m := &metrics{
		accepted: counter("accepted_total", "Inbound peer connections let in.", "lane", lanes),
		refused:  counter("refused_total", "Inbound connections to the peer port that were not wanted.", "reason", reasons),
		failed:   counter("dial_failures_total", "Connections to peers that could not be made.", "lane", append(lanes, laneAsk.String())),
	}
	if p.o.Registry == nil {
		return m, nil
	}
	all := []prometheus.Collector{m.accepted, m.refused, m.failed,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "provledger_peer_certificate_expiry_timestamp_seconds",
			Help: "When the certificate for peers ends, in seconds since the epoch."},
			func() float64 { return float64(p.o.TLS.Certificate().Leaf.NotAfter.Unix()) }),
	}
	for _, lane := range []Lane{LaneRaft, LaneAPI} {
		all = append(all, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "provledger_peer_connections", Help: "Inbound peer connections that are open.",
			ConstLabels: prometheus.Labels{"lane": lane.String()}}, func() float64 { return float64(p.open(lane)) }))
	}
	for _, c := range all {
		if err := p.o.Registry.Register(c); err != nil {
			return nil, fmt.Errorf("peer port: %w", err)
		}
	}
	return m, nil
}
