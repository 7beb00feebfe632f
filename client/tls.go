package client

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync/atomic"

	"google.golang.org/grpc/credentials"
)

// watchedTLS tells a server that is not the right one, or speaks no TLS, from one that is away for a moment: gRPC reports both as
// unavailable, and only the second is worth another attempt.
type watchedTLS struct {
	credentials.TransportCredentials
	refused *atomic.Bool
}

func (w *watchedTLS) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := w.TransportCredentials.ClientHandshake(ctx, authority, raw)
	_, wrong := errors.AsType[*tls.CertificateVerificationError](err)
	_, none := errors.AsType[tls.RecordHeaderError](err)
	w.refused.Store(wrong || none)
	return conn, info, err
}

func (w *watchedTLS) Clone() credentials.TransportCredentials {
	return &watchedTLS{w.TransportCredentials.Clone(), w.refused}
}

// wrongServer reports that the last handshake showed one that no further attempt changes. Nothing was sent to it.
func (w *watchedTLS) wrongServer() bool { return w != nil && w.refused.Load() }
