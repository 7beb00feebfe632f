package backup

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"path/filepath"
	"slices"
	"time"

	"github.com/provledger/provledger/client"
	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/client/receipt"
	"github.com/provledger/provledger/internal/checkpoint"
)

// saveEvery bounds the work that an interrupted run repeats. The manifest names every file, so it is not rewritten for each of them.
const saveEvery = 10 * time.Second

// systemLog is the number and name of the log that registers the others.
const (
	systemNumber = 0
	systemName   = "system"
)

// Source is the ledger that is backed up: *client.Client, which verifies what it yields.
type Source interface {
	Logs(ctx context.Context) iter.Seq2[*client.Log, error]
	Checkpoint(ctx context.Context, log string) (client.Checkpoint, error)
	Entries(ctx context.Context, log string, first, end uint64, body bool) iter.Seq2[*client.Entry, error]
}

// RunOptions say what to back up where.
type RunOptions struct {
	Source Source
	// Dir is made if it does not exist. One that holds anything but a backup is refused.
	Dir string
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Progress is told of each log as it is copied: entries that the backup has, and will have.
	Progress func(log string, have, want uint64)
}

// Summary is what a run did.
type Summary struct {
	Run     uint64
	Entries uint64 // new ones
	Bytes   int64  // of new files
	Logs    []LogSummary
}

// LogSummary is a log after a run. Before is the number of entries that the backup had.
type LogSummary struct {
	Name         string
	Before, Size uint64
	Root         string
}

// run is one backup run.
type run struct {
	o       RunOptions
	m       *Manifest
	saved   time.Time
	summary Summary
}

// Run brings a backup up to date: it copies what the ledger has and the backup does not, log by log, each up to a signed checkpoint. A run
// that was interrupted is continued. Errors wrap ErrBusy when another run is at work, ErrDiverged when the ledger is not the one that was
// backed up or was turned back, ErrDamaged when the backup cannot be continued.
func Run(ctx context.Context, o RunOptions) (_ *Summary, err error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Progress == nil {
		o.Progress = func(string, uint64, uint64) {}
	}
	if err := mayHold(o.Dir); err != nil {
		return nil, err
	}
	if err := makeDir(o.Dir); err != nil {
		return nil, err
	}
	lock, err := lockDir(o.Dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	r := &run{o: o, saved: o.Now()}
	logs, err := r.list(ctx)
	if err != nil {
		return nil, err
	}
	if err := r.begin(logs); err != nil {
		return nil, err
	}
	for _, l := range logs {
		if l.Number == systemNumber {
			continue // last, so that it registers every log that was copied
		}
		if err := r.copy(ctx, l, nil); err != nil {
			return nil, errors.Join(err, r.m.save(o.Dir))
		}
	}
	if err := r.system(ctx, logs[0]); err != nil {
		return nil, errors.Join(err, r.m.save(o.Dir))
	}
	r.m.Run.FinishedAt = timeText(o.Now())
	slices.SortFunc(r.summary.Logs, func(a, b LogSummary) int { return int(r.number(a.Name)) - int(r.number(b.Name)) })
	return &r.summary, r.m.save(o.Dir)
}

func (r *run) number(name string) uint32 {
	for i := range r.m.Logs {
		if r.m.Logs[i].Name == name {
			return r.m.Logs[i].Number
		}
	}
	return 0
}

// list returns the ledger's logs by number; the first is system.
func (r *run) list(ctx context.Context) ([]*client.Log, error) {
	var logs []*client.Log
	for l, err := range r.o.Source.Logs(ctx) {
		if err != nil {
			return nil, err
		}
		if l.Kind != lineage.LineageLog {
			return nil, fmt.Errorf("log %s holds no lineage; this program cannot back it up", l.Name)
		}
		logs = append(logs, l)
	}
	slices.SortFunc(logs, func(a, b *client.Log) int { return int(a.Number) - int(b.Number) })
	if len(logs) == 0 || logs[0].Number != systemNumber || logs[0].Name != systemName {
		return nil, errors.New("the ledger shows no system log; it cannot be backed up")
	}
	return logs, nil
}

// begin reads the manifest, or starts one, and opens a run in it.
func (r *run) begin(logs []*client.Log) error {
	origin, err := lineage.ParseOrigin(logs[0].Origin)
	if err != nil {
		return err
	}
	m, err := load(r.o.Dir)
	switch {
	case errors.Is(err, ErrNoBackup):
		m = &Manifest{Format: formatVersion, ClusterID: origin.Cluster}
	case err != nil:
		return err
	case m.ClusterID != origin.Cluster:
		return fmt.Errorf("%w: %s is of cluster %s, the ledger is cluster %s; name another directory", ErrDiverged, r.o.Dir, m.ClusterID, origin.Cluster)
	}
	previous := m.Run.Previous
	if m.Run.FinishedAt != "" {
		previous = m.SHA256
	}
	m.Run = RunInfo{Number: m.Run.Number + 1, StartedAt: timeText(r.o.Now()), Previous: previous}
	r.m, r.summary.Run = m, m.Run.Number
	return nil
}

// system copies the system log, and every log that was registered while the others were copied, before its checkpoint counts.
func (r *run) system(ctx context.Context, l *client.Log) error {
	return r.copy(ctx, l, func() error {
		logs, err := r.list(ctx)
		if err != nil {
			return err
		}
		for _, l := range logs {
			if g := r.m.log(l.Number); g != nil && g.Checkpoint != "" || l.Number == systemNumber {
				continue
			}
			if err := r.copy(ctx, l, nil); err != nil {
				return err
			}
		}
		return nil
	})
}

// copy brings one log up to its present checkpoint. before is called when its entries are there and the checkpoint is not yet recorded.
func (r *run) copy(ctx context.Context, l *client.Log, before func() error) error {
	cp, err := r.o.Source.Checkpoint(ctx, l.Name)
	if err != nil {
		return fmt.Errorf("log %s: %w", l.Name, err)
	}
	g, err := r.info(l)
	if err != nil {
		return err
	}
	if err := signedBy(l, cp.Note); err != nil {
		return err
	}
	had := g.Size
	if cp.Size < had {
		return fmt.Errorf("%w: log %s has %d entries there, %d in the backup; that node is behind, and another one or a later try will do, or the ledger was turned back", ErrDiverged, l.Name, cp.Size, had)
	}
	kept := *g // as it was, if what comes does not belong to it
	kept.Ranges = slices.Clone(g.Ranges)
	w := &rangeWriter{r: r, log: l.Number, frontier: frontier{g.Size, g.hashes()}}
	if err := w.fill(ctx, l.Name, cp.Size); err != nil {
		return fmt.Errorf("log %s: %w", l.Name, err)
	}
	if root := w.frontier.root(); root != cp.Root {
		*r.m.log(l.Number) = kept
		return fmt.Errorf("%w: log %s: what was backed up before and the entries since have root %s at size %d, the ledger signed %s: it was forked, or replaced by another history", ErrDiverged, l.Name, root, cp.Size, cp.Root)
	}
	if before != nil {
		if err := before(); err != nil {
			return err
		}
	}
	r.m.log(l.Number).Checkpoint = string(cp.Note)
	r.summary.Entries += cp.Size - had
	r.summary.Logs = append(r.summary.Logs, LogSummary{l.Name, had, cp.Size, cp.Root.String()})
	return nil
}

// signedBy checks that a checkpoint verifies under the key that the backup will name.
func signedBy(l *client.Log, note []byte) error {
	v, err := checkpoint.NewVerifier(l.VKey)
	if err == nil {
		_, err = checkpoint.Open(note, v)
	}
	if err != nil {
		return fmt.Errorf("log %s: the ledger shows the key %s, its checkpoint says otherwise: %w", l.Name, l.VKey, err)
	}
	return nil
}

// info returns the manifest's record of a log, making it at the first meeting.
func (r *run) info(l *client.Log) (*LogInfo, error) {
	g := r.m.log(l.Number)
	if g == nil {
		i, _ := slices.BinarySearchFunc(r.m.Logs, l.Number, func(g LogInfo, n uint32) int { return int(g.Number) - int(n) })
		r.m.Logs = slices.Insert(r.m.Logs, i, LogInfo{Number: l.Number, Name: l.Name, Origin: l.Origin, VKey: l.VKey, Frontier: []hexHash{}, Ranges: []Range{}})
		g = &r.m.Logs[i]
	}
	if g.Name != l.Name || g.Origin != l.Origin || g.VKey != l.VKey {
		return nil, fmt.Errorf("%w: log %d is %s with key %s there, %s with key %s in the backup; name another directory", ErrDiverged, l.Number, l.Origin, l.VKey, g.Origin, g.VKey)
	}
	return g, nil
}

// rangeWriter gathers entries of one log and writes them as ranges.
type rangeWriter struct {
	r        *run
	log      uint32
	frontier frontier

	first          uint64 // of the range at hand
	count          uint64
	leaves, bodies []byte
	scratch        []byte
}

// fill copies the entries up to end.
func (w *rangeWriter) fill(ctx context.Context, name string, end uint64) error {
	w.first = w.frontier.size
	if w.first == end {
		return nil
	}
	w.r.o.Progress(name, w.first, end)
	for e, err := range w.r.o.Source.Entries(ctx, name, w.first, end, true) {
		if err != nil {
			return err
		}
		w.add(e)
		if w.count < rangeEntries && len(w.leaves)+len(w.bodies) < rangeBytes {
			continue
		}
		if err := w.flush(); err != nil {
			return err
		}
		w.r.o.Progress(name, w.frontier.size, end)
	}
	if err := w.flush(); err != nil {
		return err
	}
	if w.frontier.size != end {
		return fmt.Errorf("got the entries up to %d of %d", w.frontier.size, end)
	}
	w.r.o.Progress(name, end, end)
	return nil
}

func (w *rangeWriter) add(e *client.Entry) {
	if w.count == 0 {
		space := make([]byte, headerBytes)
		w.leaves, w.bodies = append(w.leaves[:0], space...), append(w.bodies[:0], space...)
	}
	w.leaves = appendLeaf(w.leaves, e.LeafBytes)
	w.scratch = lineage.AppendBody(w.scratch[:0], e.Body)
	w.bodies = appendBody(w.bodies, e.BodyState == receipt.Erased, w.scratch)
	w.frontier.append(e.LeafBytes)
	w.count++
}

// flush writes the range at hand and enters it into the manifest.
func (w *rangeWriter) flush() error {
	if w.count == 0 {
		return nil
	}
	h := header{magicLeaves, w.r.m.ClusterID, w.log, w.first, w.count}
	copy(w.leaves, h.append(nil))
	h.magic = magicBodies
	copy(w.bodies, h.append(nil))
	r := Range{
		First: w.first, Count: w.count, LeavesBytes: int64(len(w.leaves)), LeavesSHA256: hexSum(w.leaves),
		BodiesBytes: int64(len(w.bodies)), BodiesSHA256: hexSum(w.bodies),
	}
	leaves, bodies := r.paths(w.log)
	if err := makeDir(filepath.Join(w.r.o.Dir, filepath.Dir(leaves))); err != nil {
		return err
	}
	if err := writeFile(filepath.Join(w.r.o.Dir, leaves), w.leaves); err != nil {
		return err
	}
	if err := writeFile(filepath.Join(w.r.o.Dir, bodies), w.bodies); err != nil {
		return err
	}
	g := w.r.m.log(w.log)
	g.Ranges = append(g.Ranges, r)
	g.setFrontier(&w.frontier)
	w.r.summary.Bytes += r.LeavesBytes + r.BodiesBytes
	w.first, w.count = w.frontier.size, 0
	if now := w.r.o.Now(); now.Sub(w.r.saved) >= saveEvery {
		w.r.saved = now
		return w.r.m.save(w.r.o.Dir)
	}
	return nil
}
