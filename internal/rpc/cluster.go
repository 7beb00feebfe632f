package rpc

import (
	"context"

	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

// Cluster shows and changes the membership: the cluster's controller. Changes are asked of the leader only.
type Cluster interface {
	Promote(ctx context.Context, id string) error
	Demote(ctx context.Context, id string) error
	Remove(ctx context.Context, id string) error
	Transfer(ctx context.Context, id string) error
	Replace(ctx context.Context, id, address string, progress func(string)) error
}

// clusterService implements ledger.v1.ClusterService.
type clusterService struct {
	ledgerv1.UnimplementedClusterServiceServer
	s *Service
}
