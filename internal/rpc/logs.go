package rpc

import (
	"context"

	"github.com/provledger/provledger/internal/ledger"
	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

// CreateLog implements the method of the service.
func (s *Service) CreateLog(ctx context.Context, r *ledgerv1.CreateLogRequest) (*ledgerv1.CreateLogResponse, error) {
	principal, authn, err := s.o.Identify(ctx)
	if err != nil {
		return nil, err
	}
	g, err := s.o.Appender.CreateLog(ctx, r.GetName(), principal, authn)
	if err != nil {
		return nil, err
	}
	m, err := s.logMessage(g)
	if err != nil {
		return nil, err
	}
	return &ledgerv1.CreateLogResponse{Log: m}, nil
}

// GetLog implements the method of the service.
func (s *Service) GetLog(_ context.Context, r *ledgerv1.GetLogRequest) (*ledgerv1.GetLogResponse, error) {
	g, err := s.o.Ledger.LogByName(r.GetName())
	if err != nil {
		return nil, err
	}
	m, err := s.logMessage(g)
	if err != nil {
		return nil, err
	}
	return &ledgerv1.GetLogResponse{Log: m}, nil
}

// ListLogs implements the method of the service.
func (s *Service) ListLogs(_ context.Context, r *ledgerv1.ListLogsRequest) (*ledgerv1.ListLogsResponse, error) {
	size, err := pageSize(r.GetPageSize())
	if err != nil {
		return nil, err
	}
	logs := s.o.Ledger.Logs()
	at := position{kind: pageLogs, size: uint64(len(logs))}
	if err := at.resume(r.GetPageToken(), at.size); err != nil {
		return nil, err
	}
	resp := &ledgerv1.ListLogsResponse{}
	for _, g := range logs {
		if uint64(g.Number) < at.next {
			continue
		}
		if len(resp.Logs) == size {
			at.next = uint64(g.Number)
			resp.NextPageToken = at.token()
			break
		}
		m, err := s.logMessage(g)
		if err != nil {
			return nil, err
		}
		resp.Logs = append(resp.Logs, m)
	}
	return resp, nil
}

func (s *Service) logMessage(g ledger.Log) (*ledgerv1.Log, error) {
	t, err := s.o.Ledger.Tree(g.Number)
	if err != nil {
		return nil, err
	}
	return &ledgerv1.Log{
		Name: g.Name, Number: g.Number, Origin: g.Origin, Kind: ledgerv1.LogKind(g.Kind), Vkey: g.VKey, TreeSize: t.Head().Size,
	}, nil
}
