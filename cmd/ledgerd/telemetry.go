package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/provledger/provledger/internal/telemetry"
)

// telemetryTimeout is how long the last spans may take to reach the collector at the end.
const telemetryTimeout = 3 * time.Second

// startTelemetry sends traces if there is somebody to send them to. stop delivers what waits.
func startTelemetry(ctx context.Context, c *Config, log *slog.Logger) (t *telemetry.Telemetry, stop func(), err error) {
	instance := c.GRPCAddress
	if c.PeerAddress != off {
		instance = c.advertisedPeer()
	}
	t, err = telemetry.Start(ctx, telemetry.Options{Endpoint: c.OTLPEndpoint, Service: "ledgerd", Instance: instance, Version: version(), Logger: log})
	return t, func() {
		ctx, cancel := context.WithTimeout(context.Background(), telemetryTimeout)
		defer cancel()
		if err := t.Shutdown(ctx); err != nil {
			log.Warn("the last traces may be lost", "err", err)
		}
	}, err
}

// ends are the ends of validity of the certificate for clients, for metrics; the peer port has a metric of its own.
func (c *certificates) ends() map[string]time.Time {
	if c.api == nil || c.api.Certificate() == nil || c.api.Certificate().Leaf == nil {
		return nil
	}
	return map[string]time.Time{"api": c.api.Certificate().Leaf.NotAfter}
}
