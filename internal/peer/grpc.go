package peer

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	grpcpeer "google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/provledger/provledger/client/lineage"
)

// reconnect is how soon gRPC tries again: a node that restarts is back within a second, and gRPC's own ladder goes up to two minutes.
var reconnect = grpc.ConnectParams{
	Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
	MinConnectTimeout: HandshakeTimeout,
}

// Dial returns a gRPC client connection to the API lane of a peer. want is zero if any node of the cluster at that address will do. Nothing
// is connected before the first call. The caller closes it. The error of a unary call that failed because the peer refused the connection
// wraps a *[RefusedError].
func (p *Port) Dial(want lineage.ID, address string, options ...grpc.DialOption) (*grpc.ClientConn, error) {
	var refused atomic.Pointer[RefusedError] // by the last attempt to connect; gRPC passes on the text only
	return grpc.NewClient("passthrough:///"+address, append([]grpc.DialOption{
		grpc.WithTransportCredentials(transport{}),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			c, err := p.dial(ctx, LaneAPI, want, address)
			why, _ := errors.AsType[*RefusedError](err)
			refused.Store(why)
			if err != nil {
				return nil, err // not c: a nil *conn is a net.Conn that is not nil
			}
			return c, nil
		}),
		grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, o ...grpc.CallOption) error {
			err := invoke(ctx, method, req, reply, cc, o...)
			if why := refused.Load(); why != nil && status.Code(err) == codes.Unavailable {
				return &unconnected{err, why}
			}
			return err
		}),
		grpc.WithConnectParams(reconnect),
		grpc.WithNoProxy(),
	}, options...)...)
}

// unconnected is gRPC's error of a call for which there was no connection, with the reason.
type unconnected struct {
	error
	why *RefusedError
}

func (e *unconnected) Unwrap() []error { return []error{e.error, e.why} }

// GRPCStatus is what gRPC looks for first; it would put what Error returns into the text of a status that it finds by unwrapping.
func (e *unconnected) GRPCStatus() *status.Status { return status.Convert(e.error) }

// ServerCredentials are for the gRPC server on API: its connections bring who they are with them.
func ServerCredentials() credentials.TransportCredentials { return transport{} }

// From is who called, in a handler of a server with ServerCredentials.
func From(ctx context.Context) (Remote, bool) {
	p, ok := grpcpeer.FromContext(ctx)
	if !ok {
		return Remote{}, false
	}
	info, ok := p.AuthInfo.(authInfo)
	return info.remote, ok
}

// authInfo takes a Remote through gRPC.
type authInfo struct {
	credentials.CommonAuthInfo
	remote Remote
}

// AuthType implements credentials.AuthInfo.
func (authInfo) AuthType() string { return "provledger-peer" }

// transport is gRPC's view of connections on which all handshakes are done.
type transport struct{}

func (transport) done(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, ok := raw.(*conn)
	if !ok {
		return nil, nil, errors.New("a connection that did not come through the peer port")
	}
	return c, authInfo{credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, c.remote}, nil
}

func (t transport) ClientHandshake(_ context.Context, _ string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return t.done(raw)
}

func (t transport) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return t.done(raw)
}

func (transport) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

func (t transport) Clone() credentials.TransportCredentials { return t }

func (transport) OverrideServerName(string) error { return nil }
