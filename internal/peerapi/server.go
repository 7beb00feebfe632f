package peerapi

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/peer"
	nodev1 "github.com/provledger/provledger/proto/ledgernode/v1"
)

// Option of a server.
type Option func(*server)

// WithBandwidth bounds what exports and chunk streams send, together, to so many bytes a second. 0 does not bound it.
func WithBandwidth(bytesPerSecond int64) Option {
	return func(s *server) { s.throttle = newThrottle(bytesPerSecond, time.Now) }
}

// server answers for a backend.
type server struct {
	nodev1.UnimplementedNodeServiceServer
	b        Backend
	turns    chan struct{} // a token for each stream that is being served
	throttle *throttle
	// maxCallBytes and maxCallTime, but in tests.
	callBytes int
	callTime  time.Duration
}

// Register serves a backend's node service. The server's connections must have come through a [peer.Port], and its options must include
// [ServerOptions].
func Register(s grpc.ServiceRegistrar, b Backend, options ...Option) {
	nodev1.RegisterNodeServiceServer(s, newServer(b, options...))
}

func newServer(b Backend, options ...Option) *server {
	s := &server{b: b, turns: make(chan struct{}, maxStreams), callBytes: maxCallBytes, callTime: maxCallTime}
	for _, o := range options {
		o(s)
	}
	return s
}

// remote says who calls.
func remote(ctx context.Context) (peer.Remote, error) {
	r, ok := peer.From(ctx)
	if !ok {
		return r, status.Error(codes.Unauthenticated, "the call did not come through a peer port")
	}
	return r, nil
}

// member lets members through.
func (s *server) member(ctx context.Context) error {
	r, err := remote(ctx)
	if err != nil {
		return err
	}
	if !s.b.Member(r) {
		return toStatus(fmt.Errorf("%w: node %s at %s", ErrNotMember, r.NodeID, r.Address))
	}
	return nil
}

func (s *server) Status(ctx context.Context, _ *nodev1.StatusRequest) (*nodev1.StatusResponse, error) {
	if _, err := remote(ctx); err != nil {
		return nil, err
	}
	return statusMessage(s.b.Status(ctx)), nil
}

func (s *server) Term(ctx context.Context, _ *nodev1.TermRequest) (*nodev1.TermResponse, error) {
	if err := s.member(ctx); err != nil {
		return nil, err
	}
	return &nodev1.TermResponse{Term: s.b.Term()}, nil
}

func (s *server) ReadIndex(ctx context.Context, _ *nodev1.ReadIndexRequest) (*nodev1.ReadIndexResponse, error) {
	if err := s.member(ctx); err != nil {
		return nil, err
	}
	index, err := s.b.ReadIndex(ctx)
	if err != nil {
		return nil, toStatus(err)
	}
	return &nodev1.ReadIndexResponse{Index: index}, nil
}

func (s *server) Join(ctx context.Context, q *nodev1.JoinRequest) (*nodev1.JoinResponse, error) {
	r, err := remote(ctx)
	if err != nil {
		return nil, err
	}
	id, ok := idOf(q.GetNodeId())
	if !ok || id == (lineage.ID{}) {
		return nil, toStatus(fmt.Errorf("%w: node_id needs 16 bytes that are not zero", ledger.ErrInvalid))
	}
	reply, err := s.b.Join(ctx, r, JoinRequest{NodeID: id, Address: q.GetAddress(), Voter: q.GetVoter()})
	if err != nil {
		return nil, toStatus(err)
	}
	return &nodev1.JoinResponse{ClusterId: idBytes(reply.ClusterID), Leader: reply.Leader, Admitted: reply.Admitted}, nil
}

func (s *server) Decision(ctx context.Context, q *nodev1.DecisionRequest) (*nodev1.DecisionResponse, error) {
	if err := s.member(ctx); err != nil {
		return nil, err
	}
	l, release, err := s.b.Ledger()
	if err != nil {
		return nil, toStatus(err)
	}
	defer release()
	digest, ok := l.DecisionAt(q.GetIndex())
	if !ok {
		return &nodev1.DecisionResponse{}, nil
	}
	return &nodev1.DecisionResponse{Digest: digest[:], Known: true}, nil
}

func (s *server) Checkpoint(ctx context.Context, q *nodev1.CheckpointRequest) (*nodev1.CheckpointResponse, error) {
	if err := s.member(ctx); err != nil {
		return nil, err
	}
	note, err := s.b.Checkpoint(ctx, q.GetLog(), q.GetSize())
	if err != nil {
		return nil, toStatus(err)
	}
	return &nodev1.CheckpointResponse{Note: note}, nil
}

// turn waits until one more stream may be served. Turns come in the order of asking.
func (s *server) turn(ctx context.Context) (done func(), err error) {
	select {
	case s.turns <- struct{}{}:
		return func() { <-s.turns }, nil
	case <-ctx.Done():
		return nil, toStatus(fmt.Errorf("%w: %d are served: %w", ErrBusy, maxStreams, context.Cause(ctx)))
	}
}

func (s *server) Export(_ *nodev1.ExportRequest, stream grpc.ServerStreamingServer[nodev1.ExportResponse]) error {
	ctx := stream.Context()
	if err := s.member(ctx); err != nil {
		return err
	}
	done, err := s.turn(ctx)
	if err != nil {
		return err
	}
	defer done()
	b, err := s.export()
	if err != nil {
		return toStatus(err)
	}
	for len(b) > 0 {
		piece := b[:min(len(b), pieceBytes)]
		b = b[len(piece):]
		if err := s.throttle.wait(ctx, len(piece)); err != nil {
			return toStatus(err)
		}
		if err := stream.Send(&nodev1.ExportResponse{Piece: piece}); err != nil {
			return err
		}
	}
	return nil
}

// export gives the ledger back before anything is sent.
func (s *server) export() ([]byte, error) {
	l, release, err := s.b.Ledger()
	if err != nil {
		return nil, err
	}
	defer release()
	// What is damaged here is not passed on: the receiver would find out, but only after it has fetched it.
	if err := l.Quarantined(); err != nil {
		return nil, err
	}
	e, err := l.Export()
	if err != nil {
		return nil, err
	}
	return e.Encode(), nil
}

// errEnough ends a chunk stream at one of the bounds of a call.
var errEnough = errors.New("enough for one call")

func (s *server) Chunks(q *nodev1.ChunksRequest, stream grpc.ServerStreamingServer[nodev1.ChunksResponse]) error {
	ctx := stream.Context()
	if err := s.member(ctx); err != nil {
		return err
	}
	if q.GetFirst() >= q.GetEnd() {
		return toStatus(fmt.Errorf("%w: entries %d to %d are an empty range", ledger.ErrInvalid, q.GetFirst(), q.GetEnd()))
	}
	done, err := s.turn(ctx)
	if err != nil {
		return err
	}
	defer done()
	l, release, err := s.b.Ledger()
	if err != nil {
		return toStatus(err)
	}
	defer release()
	if err := l.Quarantined(); err != nil {
		return toStatus(err)
	}
	out := chunkSender{s: s, stream: stream, ctx: ctx, until: time.Now().Add(s.callTime)}
	err = l.Chunks(q.GetLog(), q.GetFirst(), q.GetEnd(), out.add)
	if err == nil || errors.Is(err, errEnough) {
		err = out.flush()
	}
	return toStatus(err)
}

// chunkSender gathers chunks into messages.
type chunkSender struct {
	s      *server
	stream grpc.ServerStreamingServer[nodev1.ChunksResponse]
	ctx    context.Context
	until  time.Time

	message    nodev1.ChunksResponse
	size, sent int
}

// add keeps its own copy: a chunk is the ledger's memory.
func (c *chunkSender) add(x ledger.Chunk) error {
	n := len(x.Leaves) + len(x.Bodies)
	if c.size > 0 && c.size+n > pieceBytes {
		if err := c.flush(); err != nil {
			return err
		}
		if c.sent >= c.s.callBytes || time.Now().After(c.until) {
			return errEnough // at least one message has gone out, so that every call gets further
		}
	}
	c.message.Chunks = append(c.message.Chunks, &nodev1.Chunk{
		First: x.First, Count: uint32(x.Count), Leaves: append([]byte(nil), x.Leaves...), Bodies: append([]byte(nil), x.Bodies...),
	})
	c.size += n
	return nil
}

func (c *chunkSender) flush() error {
	if len(c.message.Chunks) == 0 {
		return nil
	}
	if err := c.s.throttle.wait(c.ctx, c.size); err != nil {
		return err
	}
	if err := c.stream.Send(&nodev1.ChunksResponse{Chunks: c.message.Chunks}); err != nil {
		return err
	}
	c.sent += c.size
	c.message.Chunks, c.size = nil, 0
	return nil
}

// statusMessage, statusOf and the two below translate; nothing else does.
func statusMessage(s Status) *nodev1.StatusResponse {
	return &nodev1.StatusResponse{
		ClusterId: idBytes(s.ClusterID), NodeId: idBytes(s.NodeID), BootId: idBytes(s.BootID), Address: s.Address, ApiAddress: s.APIAddress,
		Fresh: s.Fresh, State: s.State, Term: s.Term, Leader: s.Leader, Applied: s.Applied, Durable: s.Durable, FirstLog: s.FirstLog,
		LastLog: s.LastLog, Configuration: s.Configuration, MinCommand: uint32(s.MinCommand), MaxCommand: uint32(s.MaxCommand), Version: s.Version,
		Now: s.Now, MissingKeys: s.MissingKeys[:min(len(s.MissingKeys), maxMissingKeys)],
		MissingKeyCount: uint64(max(s.MissingKeyCount, len(s.MissingKeys))), Quarantine: s.Quarantine, NotReady: s.NotReady,
		FreeBytes: s.FreeBytes, Full: s.Full, CertificateExpires: s.CertificateExpires,
	}
}

func statusOf(m *nodev1.StatusResponse) (Status, error) {
	s := Status{
		Address: m.GetAddress(), APIAddress: m.GetApiAddress(), Fresh: m.GetFresh(), State: m.GetState(), Term: m.GetTerm(), Leader: m.GetLeader(),
		Applied: m.GetApplied(), Durable: m.GetDurable(), FirstLog: m.GetFirstLog(), LastLog: m.GetLastLog(), Configuration: m.GetConfiguration(),
		MinCommand: uint8(min(m.GetMinCommand(), 255)), MaxCommand: uint8(min(m.GetMaxCommand(), 255)), Version: m.GetVersion(), Now: m.GetNow(),
		MissingKeys: m.GetMissingKeys(), MissingKeyCount: int(min(m.GetMissingKeyCount(), 1<<31-1)), Quarantine: m.GetQuarantine(),
		NotReady: m.GetNotReady(), FreeBytes: m.GetFreeBytes(), Full: m.GetFull(), CertificateExpires: m.GetCertificateExpires(),
	}
	var a, b, c bool
	s.ClusterID, a = idOf(m.GetClusterId())
	s.NodeID, b = idOf(m.GetNodeId())
	s.BootID, c = idOf(m.GetBootId())
	if !a || !b || !c {
		return s, fmt.Errorf("%w: ids of a status need 16 bytes", ErrMalformed)
	}
	return s, nil
}

// idBytes returns nothing for the zero id.
func idBytes(id lineage.ID) []byte {
	if id == (lineage.ID{}) {
		return nil
	}
	return id[:]
}

func idOf(b []byte) (id lineage.ID, ok bool) {
	if len(b) == 0 {
		return id, true
	}
	return id, copy(id[:], b) == len(id) && len(b) == len(id)
}
