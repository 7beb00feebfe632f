package catchup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/provledger/provledger/internal/ledger"
)

// run brings a stage to its export. One goroutine checks and keeps windows in order; others fetch the next few.
type run struct {
	o     *Options
	p     *peers
	stage *ledger.Stage
	from  Source // of the export
	logs  map[uint32]ledger.LogState
	done  Progress

	plan  []ledger.Range // not yet begun
	every uint64         // entries of the next windows, by the size of the last ones
	ahead []*window      // being fetched, in order
}

// window is a piece of a log that is fetched at once.
type window struct {
	ledger.Range
	fetched chan fetched // one
}

// fetched is what came.
type fetched struct {
	chunks []ledger.Chunk
	bytes  int
	from   Source
	// note is a checkpoint at the end of the last chunk, nil if signer had none.
	note   []byte
	signer Source
	err    error
}

func newRun(o *Options, p *peers, stage *ledger.Stage, from Source) *run {
	r := &run{o: o, p: p, stage: stage, from: from, logs: map[uint32]ledger.LogState{}, plan: stage.Missing(), every: uint64(o.Window)/1024 + 1}
	for _, g := range stage.Export().Logs {
		r.logs[g.Number] = g
	}
	for _, m := range r.plan {
		r.done.Total += m.End - m.First
	}
	return r
}

func (r *run) all(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		cancel()
		for _, w := range r.ahead {
			<-w.fetched
		}
	}()
	// The keys of new logs are those of the export, so the system log comes first, and then the registry is compared with it.
	checked := false
	for r.begin(ctx); len(r.ahead) > 0; r.begin(ctx) {
		w := r.ahead[0]
		if w.Log != ledger.SystemLog && !checked {
			if err := r.registry(); err != nil {
				return err
			}
			checked = true
		}
		got := <-w.fetched
		r.ahead = r.ahead[1:]
		if err := r.take(ctx, w.Range, got); err != nil {
			return err
		}
	}
	if checked {
		return nil
	}
	return r.registry()
}

func (r *run) registry() error {
	err := r.stage.VerifyRegistry()
	if err != nil {
		r.p.drop(r.from, err)
		return fmt.Errorf("%w: %w", errAgain, err)
	}
	return nil
}

// begin starts fetching until enough windows are under way.
func (r *run) begin(ctx context.Context) {
	for len(r.ahead) < r.o.Parallel && len(r.plan) > 0 {
		m := &r.plan[0]
		w := &window{ledger.Range{Log: m.Log, First: m.First, End: min(m.End, m.First+r.every)}, make(chan fetched, 1)}
		if m.First = w.End; m.First == m.End {
			r.plan = r.plan[1:]
		}
		r.ahead = append(r.ahead, w)
		go func() { w.fetched <- r.fetch(ctx, w.Range) }()
	}
}

// take checks and keeps a window, and fetches what it turns out to lack: after a source ended early, or was found out.
func (r *run) take(ctx context.Context, w ledger.Range, got fetched) error {
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if got.err != nil {
			return got.err
		}
		before, _ := r.stage.Head(w.Log)
		if before.Size >= w.End {
			return nil
		}
		err := r.keep(ctx, w.Log, before, got)
		switch {
		case errors.Is(err, errNothing):
			r.p.failed(got.from, err)
		case errors.Is(err, ledger.ErrChunk):
			r.stage.Drop(w.Log)
			if err := r.base(ctx, w.Log, before); err != nil {
				return err
			}
			r.p.drop(got.from, err)
		case err != nil:
			return err
		default:
			r.p.worked(got.from)
		}
		after, _ := r.stage.Head(w.Log)
		if after.Size >= w.End {
			return nil
		}
		got = r.fetch(ctx, ledger.Range{Log: w.Log, First: after.Size, End: w.End})
	}
}

// keep puts chunks, holds the root that they lead to to a signature, and keeps them. The error wraps ledger.ErrChunk if the source of the
// chunks is to blame.
func (r *run) keep(ctx context.Context, log uint32, before ledger.Head, got fetched) error {
	var count, size uint64
	for _, c := range got.chunks {
		if c.First+uint64(c.Count) <= before.Size && count == 0 {
			continue // the last one of the window before
		}
		if err := r.stage.Put(log, c); err != nil {
			return err
		}
		count, size = count+uint64(c.Count), size+uint64(c.Bytes())
	}
	if count == 0 {
		return fmt.Errorf("log %d: %w beyond entry %d", log, errNothing, before.Size)
	}
	head, _ := r.stage.Head(log)
	g := r.logs[log]
	if err := r.signed(ctx, g.Log, head, got.signer, got.note); errors.Is(err, errUnsigned) || ctx.Err() != nil {
		return err
	} else if err != nil {
		return fmt.Errorf("%w: %w", ledger.ErrChunk, err)
	}
	if head.Size == g.Size && head.Root != g.Root {
		// The log's key has signed what came, so it is the export that is wrong.
		err := fmt.Errorf("%w: log %d at size %d: root %s is signed, the export has %s", ledger.ErrExport, log, g.Size, head.Root, g.Root)
		r.p.drop(r.from, err)
		return fmt.Errorf("%w: %w", errAgain, err)
	}
	if err := r.stage.Keep(log); err != nil {
		return err
	}
	r.done.Entries, r.done.Bytes = r.done.Entries+count, r.done.Bytes+size
	r.every = min(max(uint64(r.o.Window)/max(size/count, 1), 16), maxWindowEntries)
	if r.o.Progress != nil {
		r.o.Progress(r.done)
	}
	return nil
}

// base returns nil if a signature confirms what there was of a log before something that does not go with it came: then that is to blame.
func (r *run) base(ctx context.Context, log uint32, before ledger.Head) error {
	if before.Size == 0 {
		return nil
	}
	g := r.logs[log]
	why := r.signed(ctx, g.Log, before, nil, nil)
	if why == nil || ctx.Err() != nil || errors.Is(why, errUnsigned) {
		return why
	}
	if t, err := r.o.Ledger.Tree(log); err == nil && t.Head().Size >= before.Size {
		return fmt.Errorf("%w: log %d at size %d has root %s here: %w", ledger.ErrDiverged, log, before.Size, before.Root, why)
	}
	r.o.Logger.Warn("what was fetched of a log earlier is given up", "log", log, "size", before.Size, "err", why)
	if err := r.stage.Reset(log); err != nil {
		return err
	}
	return fmt.Errorf("%w: log %d at size %d: %w", errAgain, log, before.Size, why)
}

// errUnsigned: no source can sign for a log, and Verify does not do without.
var errUnsigned = errors.New("no peer can sign a checkpoint of the log")

// signed returns nil if a source has a checkpoint over a head, of which one may be there already. Whoever gave one that does not verify
// while another one does is left out.
func (r *run) signed(ctx context.Context, g ledger.Log, head ledger.Head, signer Source, note []byte) error {
	var bad []Source
	var wrong, failed error
	try := func(s Source, note []byte) bool {
		err := r.o.Verify(g, note, head.Size, head.Root)
		if err != nil {
			bad, wrong = append(bad, s), errors.Join(wrong, fmt.Errorf("peer %s: %w", s.ID(), err))
			return false
		}
		for _, s := range bad {
			r.p.drop(s, fmt.Errorf("its checkpoint of log %d at size %d does not verify: %w", g.Number, head.Size, wrong))
		}
		return true
	}
	if note != nil && try(signer, note) {
		return nil
	}
	for _, s := range r.p.live() {
		if note != nil && s == signer {
			continue
		}
		note, err := r.p.checkpoint(ctx, s, g.Number, head.Size)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("peer %s: %w", s.ID(), err))
			continue
		}
		if try(s, note) {
			return nil
		}
	}
	if wrong != nil {
		return wrong
	}
	if err := r.o.Verify(g, nil, head.Size, head.Root); err != nil {
		return fmt.Errorf("%w %s (number %d): %w", errUnsigned, g.Name, g.Number, errors.Join(failed, err))
	}
	return nil
}

// fetch gets a window, or the first part of it, from a source that has it.
func (r *run) fetch(ctx context.Context, w ledger.Range) fetched {
	var last error
	for _, s := range r.p.live() {
		got := r.fetchFrom(ctx, s, w)
		if ctx.Err() != nil {
			return fetched{err: context.Cause(ctx)}
		}
		if got.err == nil {
			r.addNote(ctx, w.Log, &got)
			return got
		}
		last = errors.Join(last, fmt.Errorf("peer %s: %w", s.ID(), got.err))
		if !errors.Is(got.err, ledger.ErrNotFound) { // it has not come that far
			r.p.failed(s, got.err)
		}
	}
	return fetched{err: r.p.none(fmt.Sprintf("entries [%d, %d) of log %d", w.First, w.End, w.Log), last)}
}

var (
	errEnough  = errors.New("enough for one window")
	errNothing = errors.New("nothing came")
)

// fetchFrom gets a window from one source. What came before it failed is good.
func (r *run) fetchFrom(ctx context.Context, s Source, w ledger.Range) (got fetched) {
	ctx, alive, stop := r.p.watch(ctx)
	defer stop()
	got.from = s
	err := s.Chunks(ctx, w.Log, w.First, w.End, func(c ledger.Chunk) error {
		if got.bytes >= r.o.Window {
			return errEnough
		}
		if err := context.Cause(ctx); err != nil {
			return err
		}
		alive()
		c.Leaves, c.Bodies = bytes.Clone(c.Leaves), bytes.Clone(c.Bodies)
		got.chunks, got.bytes = append(got.chunks, c), got.bytes+c.Bytes()
		return nil
	})
	if len(got.chunks) > 0 {
		return got
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if err == nil {
		err = errNothing
	}
	got.err = err
	return got
}

// addNote asks for the checkpoint that the window will be held to: another source first, so that who lies about entries has to find a
// second one.
func (r *run) addNote(ctx context.Context, log uint32, got *fetched) {
	c := &got.chunks[len(got.chunks)-1]
	live := r.p.live()
	slices.SortStableFunc(live, func(a, b Source) int {
		if a == got.from && b != got.from {
			return 1
		}
		if b == got.from && a != got.from {
			return -1
		}
		return 0
	})
	for _, s := range live {
		if note, err := r.p.checkpoint(ctx, s, log, c.First+uint64(c.Count)); err == nil {
			got.note, got.signer = note, s
			return
		}
	}
}
