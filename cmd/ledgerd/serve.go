package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/httpapi"
	"github.com/provledger/provledger/internal/node"
)

// closeTimeout is how long flushing the stores may take at the end. What is not flushed is replayed at the next start.
const closeTimeout = 10 * time.Second

// gcPercent lets the heap grow to five times what is live between collections. What is live is small and garbage is a request's worth of
// messages, so the default of 100 collects many times a second: a fifth of the CPU of an event in the end-to-end benchmark
// (GOGC=100 against 400, alternating). An operator's GOGC wins, and GOMEMLIMIT bounds both.
const gcPercent = 400

func newLogger(c *Config, w io.Writer) *slog.Logger {
	level, err := parseLevel(c.LogLevel)
	if err != nil {
		panic("ledgerd: log level was validated: " + err.Error())
	}
	o := &slog.HandlerOptions{Level: level, ReplaceAttr: plainErrors}
	if c.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}

// plainErrors logs what an error says. Left alone, slog prints with %+v, which from errors of the store is pages of stack trace.
func plainErrors(_ []string, a slog.Attr) slog.Attr {
	if err, ok := a.Value.Any().(error); ok {
		a.Value = slog.StringValue(err.Error())
	}
	return a
}

// serve runs a node until ctx ends or the process gets SIGTERM or SIGINT, and returns the exit code.
func serve(ctx context.Context, c *Config, log *slog.Logger, exit func(int)) int {
	ctx, release := signal.NotifyContext(ctx, syscall.SIGTERM, os.Interrupt)
	defer release()
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	nc := node.Config{
		Dir: c.Data, OriginHost: c.OriginHost, LockTimeout: c.LockTimeout, Authn: lineage.AuthnNone, Logger: log, Registry: registry,
		SecretFile: c.SecretFile, KeyDir: c.KeyDir, HeartbeatTimeout: c.HeartbeatTimeout, Version: version(),
		Die: func(string, error) { exit(exitDied) }, // the node has logged why
	}
	certs, err := openCertificates(c, log)
	if err != nil {
		log.Error("cannot serve", "err", err)
		return exitFailed
	}
	certs.watch(ctx, log)
	nc.Peer, nc.Certificates = certs.peer(c), certs.ends
	t, stop, err := startTelemetry(ctx, c, log)
	if err != nil {
		log.Error("cannot serve", "err", err)
		return exitFailed
	}
	defer stop()
	nc.Telemetry = t
	n, err := node.Open(ctx, nc)
	switch {
	case errors.Is(err, node.ErrBusy):
		log.Error("cannot open the ledger", "data", c.Data, "err", err)
		return exitBusy
	case err != nil && ctx.Err() != nil:
		log.Info("stopped before the ledger was open", "err", err)
		return exitOK
	case err != nil:
		log.Error("cannot open the ledger", "data", c.Data, "err", err)
		return exitFailed
	}
	err = serveNode(ctx, release, c, certs, n, log)
	if err != nil {
		log.Error("cannot serve", "err", err)
	}
	closing, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	if cerr := n.Close(closing); cerr != nil {
		log.Error("the ledger was not closed cleanly; the next start replays", "err", cerr)
		return exitFailed
	}
	if err != nil {
		return exitFailed
	}
	log.Info("stopped")
	return exitOK
}

// serveNode serves n on the configured ports until ctx ends, then drains them.
func serveNode(ctx context.Context, release func(), c *Config, certs *certificates, n *node.Node, log *slog.Logger) error {
	secure := certs.server()
	grpcPort, err := listen(c.GRPCAddress, secure)
	if err != nil {
		return fmt.Errorf("grpc-address: %w", err)
	}
	defer grpcPort.Close() // twice is harmless; a server that came up has closed it
	addresses := map[string]string{"grpc": grpcPort.Addr().String()}
	n.Announce(c.advertisedGRPC(addresses["grpc"]))
	failed := make(chan error, 2)
	web := httpapi.Server(n.Handler())
	web.ErrorLog = slog.NewLogLogger(log.Handler(), slog.LevelWarn)
	defer web.Close()
	if c.HTTPAddress != off {
		port, err := listen(c.HTTPAddress, secure)
		if err != nil {
			return fmt.Errorf("http-address: %w", err)
		}
		addresses["http"] = port.Addr().String()
		go func() { failed <- web.Serve(port) }()
	}
	if address := n.PeerAddress(); address != "" {
		addresses["peer"] = address
	}
	server := n.NewServer()
	defer server.Stop()
	go func() { failed <- server.Serve(grpcPort) }()
	if c.AddressFile != "" {
		if err := writeAddresses(c.AddressFile, addresses); err != nil {
			return fmt.Errorf("address-file: %w", err)
		}
		defer os.Remove(c.AddressFile)
	}
	log.Info("serving", "data", c.Data, "grpc", addresses["grpc"], "http", addresses["http"], "peer", addresses["peer"], "tls", secure != nil,
		"node", n.ID(), "created", n.Created(), "version", version())
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	// From here on a second signal has its usual effect: the end.
	release()
	log.Info("draining", "at_most", c.ShutdownTimeout)
	n.Drain()
	drained := make(chan struct{})
	go func() {
		server.GracefulStop()
		close(drained)
	}()
	select {
	case <-drained:
	case <-time.After(c.ShutdownTimeout):
		log.Warn("calls are still running; cutting them off")
		server.Stop()
		<-drained
	}
	return nil
}

// writeAddresses makes the file appear whole, so that whoever waits for it never reads half of it.
func writeAddresses(path string, addresses map[string]string) error {
	b, err := json.Marshal(addresses)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".addresses-*")
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
