package client

import (
	"context"

	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

// Consistency says how fresh answers must be. Without, a node answers from what it has; but never from less than this client has seen: the
// trees that one client is shown only grow, whichever node answers.
type Consistency struct {
	// MinSize is the least size that the log must have in the answer. It is of the log that is read.
	MinSize uint64
	// Linearizable answers have every append that anybody was told of before the call. They need a majority of the cluster.
	Linearizable bool
}

type consistencyKey struct{}

// WithConsistency returns a context under which reads are as fresh as asked.
func WithConsistency(ctx context.Context, k Consistency) context.Context {
	return context.WithValue(ctx, consistencyKey{}, k)
}

// freshness is what to ask of the server: what the caller wants, and at least the sizes, of which 0 says nothing.
func freshness(ctx context.Context, sizes ...uint64) *ledgerv1.ReadConsistency {
	k, _ := ctx.Value(consistencyKey{}).(Consistency)
	for _, size := range sizes {
		k.MinSize = max(k.MinSize, size)
	}
	if k == (Consistency{}) {
		return nil
	}
	return &ledgerv1.ReadConsistency{MinSize: k.MinSize, Linearizable: k.Linearizable}
}

// linearizableOnly is freshness for what is not about one log.
func linearizableOnly(ctx context.Context) *ledgerv1.ReadConsistency {
	k, _ := ctx.Value(consistencyKey{}).(Consistency)
	if !k.Linearizable {
		return nil
	}
	return &ledgerv1.ReadConsistency{Linearizable: true}
}

// largest returns the largest tree that the log has signed for this process, whether it is connected with the others yet or not.
func (st *logState) largest() point {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.newest
}

// readLog is read for what must not be older than what this process has seen of a log. If it cannot be as new, that is either a node that
// is behind or a log that lost entries.
func readLog[Q, R any](ctx context.Context, c *Client, st *logState, what string, m method[Q, R], req *Q) (*R, error) {
	resp, err := read(ctx, c, what, m, req)
	if reason, _ := reasonOf(err); reason == reasonBehind {
		err = c.shorter(ctx, st, st.largest(), err)
	}
	return resp, err
}
