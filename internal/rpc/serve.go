package rpc

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/sequencer"
	"github.com/provledger/provledger/internal/signer"
	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

const (
	// lagPatience is how long a node waits for entries that a caller has seen elsewhere before it bothers the leader: followers are some
	// milliseconds behind.
	lagPatience = 100 * time.Millisecond
	// maxSizeWait bounds the wait for such entries. A node that is further behind is catching up, and another one answers sooner.
	maxSizeWait = 3 * time.Second
	// insteadTimeout bounds the wait for a leader that answers for a node that cannot.
	insteadTimeout = 2 * time.Second
)

// errBehind says that this node has a smaller tree than the caller.
var errBehind = errors.New("this node is behind")

// readRequest is a request to read a log.
type readRequest interface {
	proto.Message
	GetConsistency() *ledgerv1.ReadConsistency
}

// logOf returns the name of the log whose size a request is about.
func logOf(r readRequest) string {
	switch r := r.(type) {
	case interface{ GetLog() string }:
		return r.GetLog()
	case *ledgerv1.GetLogRequest:
		return r.GetName()
	}
	return ledger.SystemName
}

// answer serves a unary read from this node, as fresh as the request asks. If this node cannot answer, the leader does.
func answer[Q readRequest, R any, P interface {
	*R
	proto.Message
}](ctx context.Context, s *Service, method string, r Q, local func(*Backend, context.Context, Q) (P, error)) (P, error) {
	resp, err := localAnswer(ctx, s, r, local)
	if err == nil || !incapable(err) || s.o.Router == nil || forwarded(ctx) {
		return resp, err
	}
	short, cancel := ours(ctx)
	defer cancel()
	short, cancelShort := context.WithTimeout(short, insteadTimeout)
	isLocal, cc, hint, e := s.o.Router.Leader(short)
	cancelShort()
	if e != nil || isLocal {
		return nil, annotate(err, "leader", hint)
	}
	_ = grpc.SetHeader(ctx, metadata.Pairs(leaderHeader, hint))
	s.o.Metrics.attempted(0, false)
	return attempt(ctx, s, cc, there[R, P](method, r))
}

// incapable reports whether it is this node that cannot answer: another one can.
func incapable(err error) bool {
	return errors.Is(err, errPaused) || errors.Is(err, ledger.ErrQuarantined) || errors.Is(err, ledger.ErrCorrupt) ||
		errors.Is(err, signer.ErrNoKey) || errors.Is(err, signer.ErrBehind)
}

func localAnswer[Q readRequest, P proto.Message](ctx context.Context, s *Service, r Q, local func(*Backend, context.Context, Q) (P, error)) (none P, err error) {
	b, ctx, release, err := s.held.acquire(ctx, callUnary)
	if err != nil {
		return none, err
	}
	defer release()
	size, err := s.ready(ctx, b, r)
	if err != nil {
		return none, ended(ctx, err)
	}
	slots := s.reads
	if _, scan := any(r).(*ledgerv1.FindEntriesRequest); scan {
		slots = s.scans
	}
	system := b.sizeOf(ledger.SystemName) // before looking
	done, err := take(ctx, slots)
	if err != nil {
		return none, ended(ctx, err)
	}
	defer done()
	resp, err := local(b, ctx, r)
	if errors.Is(err, ledger.ErrNotFound) {
		text := "at tree size %d"
		if size == 0 { // there is no such log; every log is an entry of this one
			text, size = "at size %d of the log "+ledger.SystemName, system
		}
		err = annotate(fmt.Errorf("%w ("+text+")", err, size), "tree_size", strconv.FormatUint(size, 10))
	}
	return resp, ended(ctx, err)
}

// streamed serves a stream from this node.
func streamed[Q readRequest, M any](s *Service, k kind, r Q, stream grpc.ServerStreamingServer[M], local func(*Backend, context.Context, Q, grpc.ServerStreamingServer[M]) error) error {
	b, ctx, release, err := s.held.acquire(stream.Context(), k)
	if err != nil {
		return err
	}
	defer release()
	if _, err = s.ready(ctx, b, r); err == nil {
		err = local(b, ctx, r, stream)
	}
	return ended(ctx, err)
}

// ready waits until this node may answer a request: no older than the caller permits. size is what it has then, at least.
func (s *Service) ready(ctx context.Context, b *Backend, r readRequest) (size uint64, err error) {
	if err := b.Ledger.Quarantined(); err != nil {
		return 0, err
	}
	want := r.GetConsistency().GetMinSize()
	if p, ok := r.(interface{ GetPageToken() string }); ok {
		want = max(want, tokenSize(p.GetPageToken())) // the page before was of that tree, on whichever node
	}
	if r.GetConsistency().GetLinearizable() {
		if err := s.fence(ctx); err != nil {
			return 0, err
		}
	}
	log := logOf(r)
	if size = b.sizeOf(log); size >= want {
		return size, nil
	}
	return s.catchUp(ctx, b, log, want)
}

// sizeOf returns the size of a log, 0 if there is none of that name.
func (b *Backend) sizeOf(log string) uint64 {
	_, t, err := b.tree(log)
	if err != nil {
		return 0
	}
	return t.Head().Size
}

// catchUp waits until a log has a size that the caller has seen. Whatever was acknowledged is below the fence; so a log that is smaller
// there as well lost entries, or never had them, and waiting longer is no use.
func (s *Service) catchUp(ctx context.Context, b *Backend, log string, want uint64) (uint64, error) {
	ctx, cancel := ours(ctx)
	defer cancel()
	if s.o.Router != nil {
		ctx, cancel := context.WithTimeout(ctx, maxSizeWait)
		defer cancel()
		patience, cancelPatience := context.WithTimeout(ctx, lagPatience)
		err := b.waitSize(patience, log, want)
		cancelPatience()
		if err != nil && s.fence(ctx) != nil {
			err = b.waitSize(ctx, log, want) // without a leader it may still be on its way
		}
		if errors.Is(err, ledger.ErrQuarantined) {
			return 0, err
		}
	}
	size := b.sizeOf(log)
	if size >= want {
		return size, nil
	}
	if err := ctx.Err(); errors.Is(err, context.Canceled) {
		return 0, err
	}
	err := fmt.Errorf("%w: log %q has %d entries here, the caller has seen %d; ask another node, or later", errBehind, log, size, want)
	return 0, annotate(annotate(err, "tree_size", strconv.FormatUint(size, 10)), "min_size", strconv.FormatUint(want, 10))
}

// waitSize returns when a log, which may still have to be created, has a size.
func (b *Backend) waitSize(ctx context.Context, log string, size uint64) error {
	for {
		system := b.sizeOf(ledger.SystemName) // before looking: a new log is an entry there
		g, err := b.Ledger.LogByName(log)
		if err == nil {
			return b.Ledger.WaitSize(ctx, g.Number, size)
		}
		if !errors.Is(err, ledger.ErrNotFound) {
			return err
		}
		if err := b.Ledger.WaitSize(ctx, ledger.SystemLog, system+1); err != nil {
			return err
		}
	}
}

// fence returns when this node has applied everything that was acknowledged before the call. It never relies on a clock or a lease.
func (s *Service) fence(ctx context.Context) error {
	if s.o.Router == nil {
		return nil
	}
	ctx, cancel := ours(ctx)
	defer cancel()
	index, err := s.o.Router.ReadIndex(ctx)
	if err == nil {
		err = s.o.Router.WaitApplied(ctx, index)
	}
	if err != nil {
		return fmt.Errorf("%w: no linearizable read: %s", sequencer.ErrNotApplied, textOf(err))
	}
	return nil
}

// GetEntry implements the method of the service.
func (s *Service) GetEntry(ctx context.Context, r *ledgerv1.GetEntryRequest) (*ledgerv1.GetEntryResponse, error) {
	return answer(ctx, s, ledgerv1.LedgerService_GetEntry_FullMethodName, r, (*Backend).getEntry)
}

// ListEntries implements the method of the service.
func (s *Service) ListEntries(ctx context.Context, r *ledgerv1.ListEntriesRequest) (*ledgerv1.ListEntriesResponse, error) {
	return answer(ctx, s, ledgerv1.LedgerService_ListEntries_FullMethodName, r, (*Backend).listEntries)
}

// FindEntries implements the method of the service.
func (s *Service) FindEntries(ctx context.Context, r *ledgerv1.FindEntriesRequest) (*ledgerv1.FindEntriesResponse, error) {
	return answer(ctx, s, ledgerv1.LedgerService_FindEntries_FullMethodName, r, (*Backend).findEntries)
}

// GetReceipt implements the method of the service.
func (s *Service) GetReceipt(ctx context.Context, r *ledgerv1.GetReceiptRequest) (*ledgerv1.GetReceiptResponse, error) {
	return answer(ctx, s, ledgerv1.LedgerService_GetReceipt_FullMethodName, r, (*Backend).getReceipt)
}

// GetInclusionProof implements the method of the service.
func (s *Service) GetInclusionProof(ctx context.Context, r *ledgerv1.GetInclusionProofRequest) (*ledgerv1.GetInclusionProofResponse, error) {
	return answer(ctx, s, ledgerv1.LedgerService_GetInclusionProof_FullMethodName, r, (*Backend).getInclusionProof)
}

// GetConsistencyProof implements the method of the service.
func (s *Service) GetConsistencyProof(ctx context.Context, r *ledgerv1.GetConsistencyProofRequest) (*ledgerv1.GetConsistencyProofResponse, error) {
	return answer(ctx, s, ledgerv1.LedgerService_GetConsistencyProof_FullMethodName, r, (*Backend).getConsistencyProof)
}

// GetCheckpoint implements the method of the service.
func (s *Service) GetCheckpoint(ctx context.Context, r *ledgerv1.GetCheckpointRequest) (*ledgerv1.GetCheckpointResponse, error) {
	return answer(ctx, s, ledgerv1.LedgerService_GetCheckpoint_FullMethodName, r, (*Backend).getCheckpoint)
}

// GetLog implements the method of the service.
func (s *Service) GetLog(ctx context.Context, r *ledgerv1.GetLogRequest) (*ledgerv1.GetLogResponse, error) {
	return answer(ctx, s, ledgerv1.LedgerService_GetLog_FullMethodName, r, (*Backend).getLog)
}

// ListLogs implements the method of the service.
func (s *Service) ListLogs(ctx context.Context, r *ledgerv1.ListLogsRequest) (*ledgerv1.ListLogsResponse, error) {
	return answer(ctx, s, ledgerv1.LedgerService_ListLogs_FullMethodName, r, (*Backend).listLogs)
}

// StreamEntries implements the method of the service.
func (s *Service) StreamEntries(r *ledgerv1.StreamEntriesRequest, stream grpc.ServerStreamingServer[ledgerv1.StreamEntriesResponse]) error {
	return streamed(s, callStream, r, stream, (*Backend).streamEntries)
}

// Watch implements the method of the service.
func (s *Service) Watch(r *ledgerv1.WatchRequest, stream grpc.ServerStreamingServer[ledgerv1.WatchResponse]) error {
	return streamed(s, callWatch, r, stream, (*Backend).watch)
}
