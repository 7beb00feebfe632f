package catchup

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/provledger/provledger/internal/ledger"
)

// maxFailures in a row, and a source is left out: one may be a hiccup.
const maxFailures = 3

// peers are the sources with what is known of them.
type peers struct {
	o *Options

	mu       sync.Mutex
	out      map[Source]error // left out, and why
	failures map[Source]int   // in a row
	next     int              // round robin
}

func newPeers(o *Options) *peers {
	return &peers{o: o, out: map[Source]error{}, failures: map[Source]int{}}
}

// drop leaves a source out from now on.
func (p *peers) drop(s Source, why error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.out[s] == nil {
		p.out[s] = why
		p.o.Logger.Warn("catch-up goes on without this peer", "peer", s.ID(), "err", why)
	}
}

// failed counts a failure.
func (p *peers) failed(s Source, err error) {
	p.mu.Lock()
	p.failures[s]++
	n := p.failures[s]
	p.mu.Unlock()
	p.o.Logger.Info("a peer failed; another one is asked", "peer", s.ID(), "in_a_row", n, "err", err)
	if n >= maxFailures {
		p.drop(s, err)
	}
}

func (p *peers) worked(s Source) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failures[s] = 0
}

// live returns the sources that are not left out, the one whose turn it is first.
func (p *peers) live() []Source {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.next++
	var live []Source
	for i := range p.o.Sources {
		if s := p.o.Sources[(i+p.next)%len(p.o.Sources)]; p.out[s] == nil {
			live = append(live, s)
		}
	}
	return live
}

// none says why there is no source left.
func (p *peers) none(what string, last error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	err := last
	for s, why := range p.out {
		err = errors.Join(err, fmt.Errorf("peer %s: %w", s.ID(), why))
	}
	if err == nil {
		err = errors.New("there is none")
	}
	return fmt.Errorf("%w (%s): %w", ErrNoSource, what, err)
}

// export returns an export at or beyond an index that the other sources do not contradict.
func (p *peers) export(ctx context.Context, min uint64) (*ledger.Export, Source, error) {
	var last error
	disagree := false
	for _, s := range p.live() {
		e, err := p.exportOf(ctx, s)
		if ctx.Err() != nil {
			return nil, nil, context.Cause(ctx)
		}
		if err == nil && e.Index < min {
			err = fmt.Errorf("it has applied up to raft index %d, %d is needed", e.Index, min)
		}
		if err != nil {
			last = fmt.Errorf("peer %s: %w", s.ID(), err)
			p.o.Logger.Info("no export from this peer", "peer", s.ID(), "err", err)
			continue
		}
		if confirmed, denied := p.ask(ctx, s, e); denied > confirmed {
			disagree = true
			last = fmt.Errorf("peer %s: %d peers know another history up to raft index %d, %d the same", s.ID(), denied, e.Index, confirmed)
			p.o.Logger.Error("this peer's export is contradicted by others", "peer", s.ID(), "index", e.Index, "confirmed", confirmed, "denied", denied)
			continue
		}
		return e, s, nil
	}
	if disagree {
		return nil, nil, fmt.Errorf("%w: %w", ErrDisagree, last)
	}
	return nil, nil, p.none("export", last)
}

func (p *peers) exportOf(ctx context.Context, s Source) (*ledger.Export, error) {
	ctx, alive, stop := p.watch(ctx)
	defer stop()
	defer alive()
	return s.Export(ctx)
}

// ask counts which of the other sources remember the decision that the export ends with as it says, and which otherwise.
func (p *peers) ask(ctx context.Context, from Source, e *ledger.Export) (confirmed, denied int) {
	for _, s := range p.live() {
		if s == from {
			continue
		}
		c, cancel := context.WithTimeout(ctx, p.o.Stall)
		digest, known, err := s.DecisionAt(c, e.Index)
		cancel()
		switch {
		case err != nil || !known:
		case digest == e.Digest:
			confirmed++
		default:
			denied++
		}
	}
	return confirmed, denied
}

// checkpoint asks a source for a signed checkpoint.
func (p *peers) checkpoint(ctx context.Context, s Source, log uint32, size uint64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, p.o.Stall)
	defer cancel()
	return s.Checkpoint(ctx, log, size)
}

var errStalled = errors.New("it gives nothing any more")

// watch returns a context that ends when alive has not been called for as long as a source may stall.
func (p *peers) watch(ctx context.Context) (_ context.Context, alive func(), stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	t := time.AfterFunc(p.o.Stall, func() { cancel(fmt.Errorf("%w: %v", errStalled, p.o.Stall)) })
	return ctx, func() { t.Reset(p.o.Stall) }, func() { t.Stop(); cancel(nil) }
}
