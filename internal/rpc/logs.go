package rpc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/sequencer"
	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

// CreateLog implements the method of the service. There is no id under which it could be sent again and again, so whether the log was there
// before is looked at first: one that is there after an attempt of unknown outcome, and was not before, is what the caller asked for.
func (s *Service) CreateLog(ctx context.Context, r *ledgerv1.CreateLogRequest) (*ledgerv1.CreateLogResponse, error) {
	existed, err := s.exists(ctx, r.GetName())
	if err != nil {
		return nil, err
	}
	resp, unsure, err := lead(ctx, s, leading[*ledgerv1.CreateLogResponse]{
		again: !existed,
		local: func(ctx context.Context) (*ledgerv1.CreateLogResponse, error) {
			return here(ctx, s, r, (*Backend).createLog)
		},
		remote: there[ledgerv1.CreateLogResponse](ledgerv1.LedgerService_CreateLog_FullMethodName, r),
	})
	if unsure && !existed && status.Code(statusOf(err)) == codes.AlreadyExists {
		found, e := s.GetLog(ctx, &ledgerv1.GetLogRequest{Name: r.GetName(), Consistency: &ledgerv1.ReadConsistency{Linearizable: true}})
		if e != nil {
			return nil, fmt.Errorf("%w: %s", sequencer.ErrUnknown, textOf(e))
		}
		if found, e = decoded(found); e != nil {
			return nil, fmt.Errorf("%w: %w", sequencer.ErrUnknown, e)
		}
		resp, err = &ledgerv1.CreateLogResponse{Log: found.GetLog()}, nil
	}
	if err == nil {
		s.learn(ctx, r.GetName())
	}
	return resp, err
}

// exists reports whether there is a log of that name. A node that cannot tell says that there is: then nothing is concluded from finding it
// later.
func (s *Service) exists(ctx context.Context, name string) (bool, error) {
	if s.o.Router == nil || forwarded(ctx) {
		return true, nil
	}
	b, ctx, release, err := s.held.acquire(ctx, callUnary)
	if err != nil {
		return true, nil
	}
	defer release()
	if err := s.fence(ctx); err != nil {
		return true, err
	}
	_, err = b.Ledger.LogByName(name)
	return !errors.Is(err, ledger.ErrNotFound), nil
}

// learnTimeout is how long a node that passed CreateLog on waits until it knows the log itself: the caller's next call comes here too.
const learnTimeout = time.Second

func (s *Service) learn(ctx context.Context, name string) {
	b, ctx, release, err := s.held.acquire(ctx, callUnary)
	if err != nil {
		return
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, learnTimeout)
	defer cancel()
	ctx, cancelOurs := ours(ctx)
	defer cancelOurs()
	_ = b.waitSize(ctx, name, 1) // the log is there either way
}

func (b *Backend) createLog(ctx context.Context, who caller, r *ledgerv1.CreateLogRequest) (*ledgerv1.CreateLogResponse, error) {
	g, err := b.Appender.CreateLog(ctx, r.GetName(), who.principal, who.authn)
	if err != nil {
		return nil, err
	}
	m, err := b.logMessage(g)
	if err != nil {
		return nil, err
	}
	return &ledgerv1.CreateLogResponse{Log: m}, nil
}

func (b *Backend) getLog(_ context.Context, r *ledgerv1.GetLogRequest) (*ledgerv1.GetLogResponse, error) {
	g, err := b.Ledger.LogByName(r.GetName())
	if err != nil {
		return nil, err
	}
	m, err := b.logMessage(g)
	if err != nil {
		return nil, err
	}
	return &ledgerv1.GetLogResponse{Log: m}, nil
}

func (b *Backend) listLogs(_ context.Context, r *ledgerv1.ListLogsRequest) (*ledgerv1.ListLogsResponse, error) {
	size, err := pageSize(r.GetPageSize())
	if err != nil {
		return nil, err
	}
	_, system, err := b.tree(ledger.SystemName)
	if err != nil {
		return nil, err
	}
	logs := b.Ledger.Logs()
	at := position{kind: pageLogs, size: uint64(len(logs))}
	if err := at.resume(r.GetPageToken(), at.size); err != nil {
		return nil, err
	}
	resp := &ledgerv1.ListLogsResponse{TreeSize: system.Head().Size}
	for _, g := range logs {
		if uint64(g.Number) < at.next {
			continue
		}
		if len(resp.Logs) == size {
			at.next = uint64(g.Number)
			resp.NextPageToken = at.token()
			break
		}
		m, err := b.logMessage(g)
		if err != nil {
			return nil, err
		}
		resp.Logs = append(resp.Logs, m)
	}
	return resp, nil
}

func (b *Backend) logMessage(g ledger.Log) (*ledgerv1.Log, error) {
	t, err := b.Ledger.Tree(g.Number)
	if err != nil {
		return nil, err
	}
	return &ledgerv1.Log{
		Name: g.Name, Number: g.Number, Origin: g.Origin, Kind: ledgerv1.LogKind(g.Kind), Vkey: g.VKey, TreeSize: t.Head().Size,
	}, nil
}
