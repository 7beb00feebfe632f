package rpc

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/sequencer"
	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

// ServerOptions returns the limits that every server of this API runs under, and the interceptors that turn errors into statuses, keep
// reads and writes out of each other's way and measure.
func ServerOptions(l *slog.Logger, m *Metrics) []grpc.ServerOption {
	c := &calls{
		log: l, metrics: m, writes: make(chan struct{}, maxWrites), streams: make(chan struct{}, maxOpenStreams),
	}
	return []grpc.ServerOption{
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxRecvMsgSize(MaxRequestBytes),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.ConnectionTimeout(connectionTimeout),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveMin, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time: keepaliveTime, Timeout: keepaliveTimeout, MaxConnectionIdle: maxConnectionIdle,
			MaxConnectionAge: maxConnectionAge, MaxConnectionAgeGrace: connectionGrace,
		}),
		grpc.ReadBufferSize(bufferBytes),
		grpc.WriteBufferSize(bufferBytes),
		grpc.InitialWindowSize(streamWindow),
		grpc.InitialConnWindowSize(connectionWindow),
		grpc.ChainUnaryInterceptor(c.unary),
		grpc.ChainStreamInterceptor(c.stream),
	}
}

// calls is what happens around every call.
type calls struct {
	log     *slog.Logger
	metrics *Metrics

	// One slot a call in progress.
	writes, streams chan struct{}
}

// shortName is the last part of a full method name.
func shortName(method string) string { return method[strings.LastIndexByte(method, '/')+1:] }

func (c *calls) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
	start := time.Now()
	defer func() { err = c.ended(info.FullMethod, start, recover(), err) }()
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, callTimeout)
		defer cancel()
	}
	release, err := c.admit(ctx, info.FullMethod)
	if err != nil {
		return nil, err
	}
	defer release()
	return next(ctx, req)
}

func (c *calls) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	start := time.Now()
	defer func() { err = c.ended(info.FullMethod, start, recover(), err) }()
	select {
	case c.streams <- struct{}{}:
		defer func() { <-c.streams }()
	default:
		// A stream may stay for hours, so waiting for one to end is no use.
		return fmt.Errorf("%w: %d streams are open; retry later or on another node", ledger.ErrOverloaded, maxOpenStreams)
	}
	return next(srv, ss)
}

func (c *calls) admit(ctx context.Context, method string) (release func(), err error) {
	switch method {
	case ledgerv1.LedgerService_Append_FullMethodName, ledgerv1.LedgerService_BatchAppend_FullMethodName, ledgerv1.LedgerService_CreateLog_FullMethodName:
		return take(ctx, c.writes)
	}
	return func() {}, nil
}

// take waits for a slot.
func take(ctx context.Context, slots chan struct{}) (release func(), err error) {
	select {
	case slots <- struct{}{}:
		return func() { <-slots }, nil
	case <-ctx.Done():
		// Nothing was queued, whatever the method.
		return nil, fmt.Errorf("%w: %w", sequencer.ErrNotApplied, ctx.Err())
	}
}

// ended turns the error of a call into its status, counts it, and keeps a panic in one call from ending all others: nothing that a call
// does can leave shared state half changed, for only the sequencer's goroutine changes any.
func (c *calls) ended(method string, start time.Time, panicked any, err error) error {
	if panicked != nil {
		c.log.Error("panic in a call", "method", method, "panic", fmt.Sprint(panicked), "stack", string(debug.Stack()))
		err = status.Error(codes.Internal, "internal error; the server's log has it")
	}
	code := codes.OK
	if err != nil {
		st, internal := toStatus(err)
		if internal {
			c.log.Error("call failed", "method", method, "err", err)
		}
		code, err = st.Code(), st.Err()
	}
	c.metrics.observe(method, code, time.Since(start))
	return err
}
