package peerapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"

	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/merkle"
	nodev1 "github.com/provledger/provledger/proto/ledgernode/v1"
)

// Client asks one node. Its errors are *[RemoteError], and wrap the class of the server's error.
type Client struct {
	id string
	c  nodev1.NodeServiceClient
	// streamTimeout, but in tests.
	streamTimeout time.Duration
}

// NewClient returns a client over a connection. id says in errors who is asked.
func NewClient(cc grpc.ClientConnInterface, id string) *Client {
	return &Client{id, nodev1.NewNodeServiceClient(cc), streamTimeout}
}

// ID returns who is asked.
func (c *Client) ID() string { return c.id }

// Status returns who answers and how it is.
func (c *Client) Status(ctx context.Context) (Status, error) {
	m, err := c.c.Status(ctx, &nodev1.StatusRequest{})
	if err != nil {
		return Status{}, fromStatus(c.id, err)
	}
	s, err := statusOf(m)
	if err != nil {
		return Status{}, c.malformed(err)
	}
	return s, nil
}

// Term returns the node's raft term.
func (c *Client) Term(ctx context.Context) (uint64, error) {
	m, err := c.c.Term(ctx, &nodev1.TermRequest{})
	return m.GetTerm(), fromStatus(c.id, err)
}

// ReadIndex returns a raft index such that whoever has applied it sees every write acknowledged before the call.
func (c *Client) ReadIndex(ctx context.Context) (uint64, error) {
	m, err := c.c.ReadIndex(ctx, &nodev1.ReadIndexRequest{})
	return m.GetIndex(), fromStatus(c.id, err)
}

// Join asks to become a member. An error that wraps [ErrRefused] is final.
func (c *Client) Join(ctx context.Context, q JoinRequest) (JoinReply, error) {
	m, err := c.c.Join(ctx, &nodev1.JoinRequest{NodeId: idBytes(q.NodeID), Address: q.Address, Voter: q.Voter})
	if err != nil {
		return JoinReply{}, fromStatus(c.id, err)
	}
	id, ok := idOf(m.GetClusterId())
	if !ok {
		return JoinReply{}, c.malformed(fmt.Errorf("%w: a cluster id needs 16 bytes", ErrMalformed))
	}
	return JoinReply{ClusterID: id, Leader: m.GetLeader(), Admitted: m.GetAdmitted()}, nil
}

// DecisionAt returns the node's chain digest after the decision at a raft index, and whether it still knows it.
func (c *Client) DecisionAt(ctx context.Context, index uint64) (merkle.Hash, bool, error) {
	m, err := c.c.Decision(ctx, &nodev1.DecisionRequest{Index: index})
	if err != nil || !m.GetKnown() {
		return merkle.Hash{}, false, fromStatus(c.id, err)
	}
	var h merkle.Hash
	if len(m.GetDigest()) != len(h) {
		return h, false, c.malformed(fmt.Errorf("%w: a digest of %d bytes", ErrMalformed, len(m.GetDigest())))
	}
	copy(h[:], m.GetDigest())
	return h, true, nil
}

// Checkpoint returns a signed checkpoint of a log at a size.
func (c *Client) Checkpoint(ctx context.Context, log uint32, size uint64) ([]byte, error) {
	m, err := c.c.Checkpoint(ctx, &nodev1.CheckpointRequest{Log: log, Size: size})
	return m.GetNote(), fromStatus(c.id, err)
}

// Export returns the heads of all logs at one applied position. Beyond its own checksum nothing of it is verified yet.
func (c *Client) Export(ctx context.Context) (*ledger.Export, error) {
	ctx, cancel := context.WithTimeout(ctx, c.streamTimeout)
	defer cancel()
	stream, err := c.c.Export(ctx, &nodev1.ExportRequest{}, grpc.MaxCallRecvMsgSize(maxMessageBytes))
	if err != nil {
		return nil, fromStatus(c.id, err)
	}
	var b []byte
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fromStatus(c.id, err)
		}
		if len(b)+len(m.GetPiece()) > maxExportBytes {
			return nil, c.malformed(fmt.Errorf("%w: an export of more than %d bytes", ErrMalformed, maxExportBytes))
		}
		b = append(b, m.GetPiece()...)
	}
	e, err := ledger.ParseExport(b)
	if err != nil {
		return nil, c.malformed(fmt.Errorf("%w: %w", ErrMalformed, err))
	}
	return e, nil
}

// Chunks calls fn with the stored chunks of entries first to end - 1 of a log, in order and without gaps; the first may begin before, the last
// reach beyond. When the server ends a call early it asks for the rest. After an error, what fn got is good, and a later call may go on
// behind it. An error of fn is returned as it is.
func (c *Client) Chunks(ctx context.Context, log uint32, first, end uint64, fn func(ledger.Chunk) error) error {
	for next := first; next < end; {
		after, err := c.someChunks(ctx, log, next, end, fn)
		if err != nil {
			return err
		}
		if after == next {
			return c.malformed(fmt.Errorf("%w: no chunk of log %d at entry %d, %d were asked for", ErrMalformed, log, next, end-first))
		}
		next = after
	}
	return nil
}

// someChunks is one call. It returns the entry behind the last chunk.
func (c *Client) someChunks(ctx context.Context, log uint32, first, end uint64, fn func(ledger.Chunk) error) (next uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.streamTimeout)
	defer cancel()
	stream, err := c.c.Chunks(ctx, &nodev1.ChunksRequest{Log: log, First: first, End: end}, grpc.MaxCallRecvMsgSize(maxMessageBytes))
	if err != nil {
		return first, fromStatus(c.id, err)
	}
	next = first
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return next, nil
		}
		if err != nil {
			return next, fromStatus(c.id, err)
		}
		for _, x := range m.GetChunks() {
			// The ledger's own check is of the bytes; this is of the order.
			from, count := x.GetFirst(), uint64(x.GetCount())
			if count == 0 || from > next || from+count <= next || from != next && next != first || next >= end {
				return next, c.malformed(fmt.Errorf("%w: a chunk of entries %d to %d, entry %d was next of %d to %d", ErrMalformed, from, from+count, next, first, end))
			}
			if err := fn(ledger.Chunk{First: from, Count: int(count), Leaves: x.GetLeaves(), Bodies: x.GetBodies()}); err != nil {
				return next, err
			}
			next = from + count
		}
	}
}

// malformed says whose answer it was.
func (c *Client) malformed(err error) error { return fmt.Errorf("node %s: %w", c.id, err) }
