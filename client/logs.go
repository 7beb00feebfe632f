package client

import (
	"context"
	"errors"
	"iter"

	"google.golang.org/grpc/codes"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/checkpoint"
	"github.com/provledger/provledger/internal/merkle"
	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

// Checkpoint is a verified signed checkpoint.
type Checkpoint struct {
	Origin string
	Size   uint64
	Root   merkle.Hash
	Note   []byte // signed note
}

func toCheckpoint(st *logState, p point) Checkpoint {
	return Checkpoint{Origin: st.origin, Size: p.size, Root: p.root, Note: p.note}
}

// Checkpoint returns the log's present checkpoint, proven to extend everything that was verified and remembered, and remembers it.
func (c *Client) Checkpoint(ctx context.Context, log string) (Checkpoint, error) {
	st, err := c.log(ctx, log)
	if err != nil {
		return Checkpoint{}, err
	}
	before := st.seen()
	p, err := c.latest(ctx, st)
	if err != nil {
		return Checkpoint{}, err
	}
	if err := c.settle(ctx, st, before, p, prefix{0, merkle.EmptyRoot()}); err != nil {
		return Checkpoint{}, err
	}
	select {
	case st.turn <- struct{}{}:
		defer func() { <-st.turn }()
	case <-ctx.Done():
		return Checkpoint{}, ctx.Err()
	}
	if err := c.check(ctx, st); err != nil {
		return Checkpoint{}, err
	}
	return toCheckpoint(st, p), nil
}

// Remembered returns the checkpoint that is remembered of a log at [Options.Target], without asking the ledger; ok is false if none is.
func (c *Client) Remembered(log string) (cp Checkpoint, ok bool, err error) {
	if log == "" {
		log = DefaultLog
	}
	if on, err := c.memory.on(); !on || err != nil {
		return Checkpoint{}, false, err
	}
	places, err := c.memory.pin(c.o.Target)
	if err != nil || places.Logs[log] == "" {
		return Checkpoint{}, false, err
	}
	r, err := c.memory.record(places.Logs[log])
	if err != nil || r == nil {
		return Checkpoint{}, false, err
	}
	cp, err = c.memory.checkpoint(r)
	return cp, err == nil, err
}

// Extended returns the checkpoint that was remembered of a log when this client first contacted it, under whatever name the ledger went
// then; ok is false if none was. What the log shows since is proven to extend it.
func (c *Client) Extended(ctx context.Context, log string) (cp Checkpoint, ok bool, err error) {
	st, err := c.log(ctx, log)
	if err != nil || st.met == nil {
		return Checkpoint{}, false, err
	}
	cp, err = c.memory.checkpoint(st.met)
	return cp, err == nil, err
}

// checkpoint opens what a record remembers.
func (m *memory) checkpoint(r *record) (Checkpoint, error) {
	v, err := checkpoint.NewVerifier(r.VKey)
	if err != nil {
		return Checkpoint{}, damaged(m.recordPath(r.Origin), err)
	}
	p, err := checkpoint.Open([]byte(r.Checkpoint), v)
	if err != nil {
		return Checkpoint{}, damaged(m.recordPath(r.Origin), err)
	}
	return Checkpoint{Origin: p.Origin, Size: p.Size, Root: p.Root, Note: []byte(r.Checkpoint)}, nil
}

// Log is a log as the server describes it. Nothing of it is verified: the operations on a log verify what they rest on.
type Log struct {
	Name     string
	Number   uint32
	Origin   string
	Kind     lineage.LogKind
	VKey     string
	TreeSize uint64
}

func toLog(m *ledgerv1.Log) *Log {
	return &Log{
		Name: m.GetName(), Number: m.GetNumber(), Origin: m.GetOrigin(), Kind: lineage.LogKind(m.GetKind()), VKey: m.GetVkey(), TreeSize: m.GetTreeSize(),
	}
}

// Log describes one log.
func (c *Client) Log(ctx context.Context, name string) (*Log, error) {
	resp, err := read(ctx, c, "get log", c.rpc.GetLog, &ledgerv1.GetLogRequest{Name: name, Consistency: freshness(ctx)})
	if err != nil {
		return nil, notFound(err)
	}
	return toLog(resp.GetLog()), nil
}

// Logs yields the logs of the ledger. The iteration ends after an error.
func (c *Client) Logs(ctx context.Context) iter.Seq2[*Log, error] {
	return func(yield func(*Log, error) bool) {
		for token := ""; ; {
			resp, err := read(ctx, c, "list logs", c.rpc.ListLogs, &ledgerv1.ListLogsRequest{PageToken: token, Consistency: linearizableOnly(ctx)})
			if err != nil {
				yield(nil, err)
				return
			}
			for _, m := range resp.GetLogs() {
				if !yield(toLog(m), nil) {
					return
				}
			}
			if token = resp.GetNextPageToken(); token == "" {
				return
			}
		}
	}
}

// CreateLog creates a lineage log. A log of that name that exists is an error with the gRPC code AlreadyExists, unless it came into being
// during the call, after an attempt whose answer was lost.
func (c *Client) CreateLog(ctx context.Context, name string) (*Log, error) {
	_, err := c.Log(ctx, name)
	absent := errors.Is(err, ErrNotFound)
	resp, err := write(ctx, c, "create log", c.rpc.CreateLog, &ledgerv1.CreateLogRequest{Name: name})
	if absent && isCode(err, codes.AlreadyExists) && errors.Is(err, ErrUnknown) {
		return c.Log(WithConsistency(ctx, Consistency{Linearizable: true}), name)
	}
	if err != nil {
		return nil, err
	}
	return toLog(resp.GetLog()), nil
}
