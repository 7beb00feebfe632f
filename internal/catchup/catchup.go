// Package catchup brings a lagging replica forward, verified.
//
// It takes an export - the heads of all logs at one applied position - from one peer, asks the others whether they know the same history,
// and fetches what this replica lacks, as stored, from all of them at once. Peers are trusted to be there, not to be right: every chunk is
// checked against its own leaves, every window of chunks against a checkpoint signed by the log's key before it is kept, every root against
// the export's at the end. A peer that fails or lies is left out and the others take over. What was kept survives a crash, and the next
// attempt goes on from it, so the cost is what is missing.
//
// Whoever calls it owns the ledger, and installs the result at a moment when raft is stopped. No network is known here: peers come as
// [Source].
package catchup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/merkle"
)

// Source is a peer to fetch from. Its methods are called from several goroutines.
type Source interface {
	// ID names the peer in messages.
	ID() string
	// Export returns the state of all logs at one applied position.
	Export(ctx context.Context) (*ledger.Export, error)
	// Chunks calls fn for the chunks that hold the entries [first, end) of a log, in order. It may end early. Errors of fn are returned.
	Chunks(ctx context.Context, log uint32, first, end uint64, fn func(ledger.Chunk) error) error
	// Checkpoint returns a signed checkpoint of a log at a size.
	Checkpoint(ctx context.Context, log uint32, size uint64) ([]byte, error)
	// DecisionAt returns the chain digest after the decision at a raft index, if the peer remembers it.
	DecisionAt(ctx context.Context, index uint64) (digest merkle.Hash, known bool, err error)
}

// Options of a catch-up.
type Options struct {
	Ledger  *ledger.Ledger
	Sources []Source
	// MinIndex is the raft index that the result has to reach; an older one would still lie before the leader's log.
	MinIndex uint64
	// MovedIndex is asked when everything is there, since the leader's log may have been cut meanwhile: if it is beyond what was fetched,
	// the rest is fetched too. Nil: MinIndex stays.
	MovedIndex func() uint64
	// Verify says whether note, signed by the key of a log, covers size and root. note is nil if no source can sign for the log: whoever
	// accepts that relies on the sources alone.
	Verify func(log ledger.Log, note []byte, size uint64, root merkle.Hash) error
	// Parallel is the number of windows that are fetched at once, 0 for DefaultParallel, and Window their size in bytes, 0 for DefaultWindow.
	// Their product, and one large chunk each, is what a catch-up takes of memory.
	Parallel, Window int
	// Stall is how long a source may give nothing before it is left out, 0 for DefaultStall.
	Stall time.Duration
	// Progress is told from time to time how far it is. Nil: nobody.
	Progress func(Progress)
	Logger   *slog.Logger
}

// Progress is how far a catch-up is.
type Progress struct {
	Entries, Total uint64 // kept, of those that were missing
	Bytes          uint64 // of leaves and bodies kept
}

const (
	// DefaultParallel windows keep three peers and a 10 Gbit/s network busy, in 32 MiB of memory at usual sizes.
	DefaultParallel = 8
	// DefaultStall is above any pause of a healthy peer, a garbage collection or a disk flush, and below the patience of operators.
	DefaultStall = 10 * time.Second
	// DefaultWindow is how much is fetched, verified and kept at a time. A signature and a call for each are nothing beside it.
	DefaultWindow = 4 << 20
	// maxWindowEntries bounds a window of small entries.
	maxWindowEntries = 16 << 10
	// maxExports bounds the exports that are tried: each but the last one was wrong, or is older than the leader's log by now.
	maxExports = 8
)

// Errors by class.
var (
	// ErrNoSource: no source is left that could give what is needed. Trying again later is of use; what was fetched is kept.
	ErrNoSource = errors.New("no peer could give what is missing")
	// ErrDisagree: the peers know different histories, none of which a majority confirms. One of them is damaged.
	ErrDisagree = errors.New("the peers disagree")

	// errAgain: another export is needed.
	errAgain = errors.New("export given up")
)

// Fetch stages what the ledger lacks of an export at or beyond MinIndex, and returns both. Everything is there, verified and durable:
// Stage.Install is all that is left to do. If this replica's own history is not that of its signatures the error wraps ledger.ErrDiverged:
// it needs a new store. What was fetched before an error is kept for the next call.
func Fetch(ctx context.Context, o Options) (*ledger.Stage, *ledger.Export, error) {
	if o.Parallel <= 0 {
		o.Parallel = DefaultParallel
	}
	if o.Window <= 0 {
		o.Window = DefaultWindow
	}
	if o.Stall <= 0 {
		o.Stall = DefaultStall
	}
	p := newPeers(&o)
	min := o.MinIndex
	var last error
	for range maxExports {
		e, from, err := p.export(ctx, min)
		if err != nil {
			return nil, nil, errors.Join(err, last)
		}
		stage, err := o.Ledger.Stage(e)
		if err != nil {
			if !errors.Is(err, ledger.ErrExport) && !errors.Is(err, ledger.ErrDiverged) {
				return nil, nil, err
			}
			// Whether it or this replica is wrong shows when another one is tried.
			p.drop(from, err)
			last = err
			continue
		}
		r := newRun(&o, p, stage, from)
		if err := r.all(ctx); err != nil {
			if !errors.Is(err, errAgain) {
				return nil, nil, err
			}
			last = err
			continue
		}
		if err := stage.Verify(); err != nil {
			p.drop(from, err)
			last = err
			continue
		}
		if err := stage.Sync(ctx); err != nil {
			return nil, nil, err
		}
		if o.MovedIndex != nil {
			min = max(min, o.MovedIndex())
		}
		if min <= e.Index {
			return stage, e, nil
		}
		o.Logger.Info("the leader's log has moved on; fetching the rest", "fetched", e.Index, "needed", min)
		last = fmt.Errorf("fetched up to %d, needed %d", e.Index, min)
	}
	return nil, nil, fmt.Errorf("%w after %d exports: %w", ErrNoSource, maxExports, last)
}
