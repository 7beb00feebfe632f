package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

const (
	// leaderHeader is the response header, and leaderKey the metadata key of an error, with the leader's address.
	leaderHeader = "provledger-leader"
	leaderKey    = "leader"

	// maxNodes bounds what is learned of a cluster's members: the largest sensible one has seven voters and some mirrors.
	maxNodes = 32

	// A lost connection is tried again after firstReconnect, then ever later up to maxReconnect: a node restarts in a second or two.
	firstReconnect = 100 * time.Millisecond
	maxReconnect   = 2 * time.Second
	connectTimeout = 5 * time.Second
	// discoverTimeout bounds asking for the members, which nobody waits for.
	discoverTimeout = 5 * time.Second
)

// pool is the nodes of one ledger as one connection. Calls go to one node as long as it answers, then to the next. What changes something goes
// to the leader once it is known and connected: through any other node it would take one more hop.
type pool struct {
	tls      *tls.Config
	options  []grpc.DialOption
	discover bool

	mu     sync.Mutex
	nodes  []*endpoint // as given, then as learned
	at     int         // the one that reads go to
	leader *endpoint   // nil: not known
	asked  bool        // for the members
	closed bool
	asking sync.WaitGroup
	stop   context.CancelFunc
}

// endpoint is one node.
type endpoint struct {
	address string
	conn    *grpc.ClientConn
	tls     *watchedTLS // nil without
}

// addresses splits a target. The order is that of the caller, so that one node can be preferred.
func addresses(target string) []string {
	var list []string
	for a := range strings.SplitSeq(target, ",") {
		if a = strings.TrimSpace(a); a != "" && !slices.Contains(list, a) {
			list = append(list, a)
		}
	}
	return list
}

// canonical is the one name of a ledger that a list of addresses leads to, whatever their order.
func canonical(list []string) string {
	list = slices.Clone(list)
	slices.Sort(list)
	return strings.Join(list, ",")
}

func newPool(target string, o Options, options []grpc.DialOption) (*pool, error) {
	list := addresses(target)
	if len(list) == 0 {
		return nil, fmt.Errorf("ledger address %q: no address", target)
	}
	p := &pool{tls: o.TLS, options: options, discover: o.Discover}
	for _, a := range list {
		e, err := p.dial(a)
		if err != nil {
			return nil, errors.Join(err, p.Close())
		}
		p.nodes = append(p.nodes, e)
	}
	return p, nil
}

func (p *pool) dial(address string) (*endpoint, error) {
	e := &endpoint{address: address}
	transport := insecure.NewCredentials()
	if p.tls != nil {
		e.tls = &watchedTLS{credentials.NewTLS(p.tls), new(atomic.Bool)}
		transport = e.tls
	}
	reconnect := backoff.DefaultConfig
	reconnect.BaseDelay, reconnect.MaxDelay = firstReconnect, maxReconnect
	var err error
	e.conn, err = grpc.NewClient(address, append([]grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnect, MinConnectTimeout: connectTimeout}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.WithReadBufferSize(bufferBytes), grpc.WithWriteBufferSize(bufferBytes),
		grpc.WithInitialWindowSize(streamWindow), grpc.WithInitialConnWindowSize(connectionWindow),
	}, p.options...)...)
	if err != nil {
		return nil, fmt.Errorf("ledger address %q: %w", address, err)
	}
	return e, nil
}

// Close closes all connections.
func (p *pool) Close() error {
	p.mu.Lock()
	p.closed = true
	if p.stop != nil {
		p.stop()
	}
	p.mu.Unlock()
	p.asking.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for _, e := range p.nodes {
		errs = append(errs, e.conn.Close())
	}
	return errors.Join(errs...)
}

// size returns the number of nodes; 0 for a connection that the caller made.
func (p *pool) size() int {
	if p == nil {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.nodes)
}

// wrongServer reports that no node is one that another attempt could succeed with. Nothing was sent.
func (p *pool) wrongServer() bool {
	if p == nil {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return !slices.ContainsFunc(p.nodes, func(e *endpoint) bool { return !e.tls.wrongServer() })
}

// changes are the methods that the leader carries out.
var changes = map[string]bool{
	ledgerv1.LedgerService_Append_FullMethodName:              true,
	ledgerv1.LedgerService_BatchAppend_FullMethodName:         true,
	ledgerv1.LedgerService_CreateLog_FullMethodName:           true,
	ledgerv1.ClusterService_AddMember_FullMethodName:          true,
	ledgerv1.ClusterService_PromoteMember_FullMethodName:      true,
	ledgerv1.ClusterService_DemoteMember_FullMethodName:       true,
	ledgerv1.ClusterService_RemoveMember_FullMethodName:       true,
	ledgerv1.ClusterService_ReplaceMember_FullMethodName:      true,
	ledgerv1.ClusterService_TransferLeadership_FullMethodName: true,
}

func (p *pool) choose(method string) *endpoint {
	p.mu.Lock()
	defer p.mu.Unlock()
	// The leader only if it can be reached: that its address is known does not say that there is a way from here.
	if changes[method] && p.leader != nil && p.leader.conn.GetState() == connectivity.Ready {
		return p.leader
	}
	return p.nodes[p.at%len(p.nodes)]
}

// Invoke implements grpc.ClientConnInterface.
func (p *pool) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	e := p.choose(method)
	var header metadata.MD
	err := e.conn.Invoke(ctx, method, args, reply, append(opts, grpc.Header(&header))...)
	p.heard(e, header, err)
	return err
}

// NewStream implements grpc.ClientConnInterface.
func (p *pool) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	e := p.choose(method)
	s, err := e.conn.NewStream(ctx, desc, method, opts...)
	if err != nil {
		p.heard(e, nil, err)
		return nil, err
	}
	return &heardStream{s, p, e}, nil
}

// heardStream lets the pool know when a stream breaks.
type heardStream struct {
	grpc.ClientStream
	p *pool
	e *endpoint
}

func (s *heardStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if err != nil {
		s.p.heard(s.e, nil, err)
	}
	return err
}

// heard learns from an answer who leads and whether to go on with another node.
func (p *pool) heard(e *endpoint, header metadata.MD, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if moves(err) {
		if p.leader == e {
			p.leader = nil
		}
		if p.nodes[p.at%len(p.nodes)] == e {
			p.at++
		}
	}
	hint := ""
	if h := header.Get(leaderHeader); len(h) > 0 {
		hint = h[0]
	}
	if err != nil {
		if _, md := reasonOf(err); md[leaderKey] != "" {
			hint = md[leaderKey]
		}
	} else if p.discover && !p.asked && !p.closed {
		p.asked = true
		p.ask()
	}
	if hint != "" {
		p.follow(hint)
	}
}

// moves reports whether another node may have a better answer.
func moves(err error) bool {
	if err == nil {
		return false
	}
	switch s, _ := status.FromError(err); s.Code() {
	case codes.Unavailable, codes.DeadlineExceeded:
		return true
	}
	return elsewhere(err)
}

// elsewhere reports whether it is only this node that could not answer.
func elsewhere(err error) bool {
	reason, _ := reasonOf(err)
	return reason == reasonBehind || reason == reasonQuarantined
}

// reasonOf returns the reason in one of the ledger's statuses.
func reasonOf(err error) (reason string, md map[string]string) {
	s, ok := status.FromError(err)
	if !ok {
		return "", nil
	}
	for _, d := range s.Details() {
		if i, ok := d.(*errdetails.ErrorInfo); ok && i.Domain == errorDomain {
			return i.Reason, i.Metadata
		}
	}
	return "", nil
}

// follow takes a node for the leader. The caller holds mu.
func (p *pool) follow(address string) {
	if e := p.add(address); e != nil {
		p.leader = e
		e.conn.Connect()
	}
}

// add returns the node at an address; nil if it is not one of ours and none may be learned. The caller holds mu.
func (p *pool) add(address string) *endpoint {
	if i := slices.IndexFunc(p.nodes, func(e *endpoint) bool { return e.address == address }); i >= 0 {
		return p.nodes[i]
	}
	if !p.discover || p.closed || len(p.nodes) >= maxNodes {
		return nil
	}
	e, err := p.dial(address)
	if err != nil {
		return nil // not an address; the other nodes are there
	}
	p.nodes = append(p.nodes, e)
	return e
}

// ask learns the addresses of the members, in the background: a client that was given one address then survives the loss of that node. The
// caller holds mu.
func (p *pool) ask() {
	ctx, cancel := context.WithTimeout(context.Background(), discoverTimeout)
	p.stop = cancel
	e := p.nodes[p.at%len(p.nodes)]
	p.asking.Go(func() {
		defer cancel()
		resp, err := ledgerv1.NewClusterServiceClient(e.conn).GetCluster(ctx, &ledgerv1.GetClusterRequest{})
		if err != nil {
			return // a server without cluster, or one that is busy: nothing is lost
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, m := range resp.GetCluster().GetMembers() {
			if m.GetApiAddress() == "" {
				continue
			}
			if e := p.add(m.GetApiAddress()); e != nil && m.GetLeader() {
				p.leader = e
				e.conn.Connect()
			}
		}
	})
}
