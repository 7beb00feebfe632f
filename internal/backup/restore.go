package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/client/receipt"
	"github.com/provledger/provledger/internal/checkpoint"
	"github.com/provledger/provledger/internal/consensus"
	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/raftlog"
	"github.com/provledger/provledger/internal/recovery"
	"github.com/provledger/provledger/internal/signer"
)

// Names within a ledger directory (docs/format-state.md).
const (
	formatFile  = "FORMAT"
	secretFile  = "secret"
	stateDir    = "state"
	raftDir     = "raft"
	ledgerForm  = 1
	restoreTerm = 1 // of everything that a restore applies; the membership that begins the raft log has the next one

	restoreMemTableBytes = 64 << 20
	restoreCacheBytes    = 32 << 20
)

// Errors of Restore by class.
var (
	// ErrShorter means that somebody has seen more of a log than the backup holds, or another history: its origin must not be continued.
	ErrShorter = errors.New("the backup must not continue this history")
	// ErrNoWitness means that nobody has said what was released after the backup was made.
	ErrNoWitness = errors.New("nobody has said what was released after the backup was made")
	// ErrKey means that a secret is not that of the ledger.
	ErrKey = errors.New("the secret is not that of this ledger")
)

// RestoreOptions say what to restore where, and on whose word.
type RestoreOptions struct {
	From string // the backup
	Dir  string // the new ledger directory; must not exist, or be empty
	// Secret is the node secret that log keys are derived from. Nil restores without: keys come from files (key-dir), or nothing is signed.
	Secret *[signer.SecretBytes]byte
	// Trust pins keys; nil believes those in the backup.
	Trust *receipt.Policy
	// Witnesses say what was seen of the logs. NoWitness takes the place of those that are missing.
	Witnesses []Witness
	NoWitness bool
	// NewOrigin begins a new ledger whose logs name those of the backup as predecessors. OriginHost is the first part of their origins;
	// "" takes that of the old ones.
	NewOrigin  bool
	OriginHost string

	// Reason and By are recorded in the system log when the ledger is next opened.
	Reason, By string

	// SegmentBytes is the size of the segments of the raft log; 0 as raftlog has it.
	SegmentBytes int64
	Logger       *slog.Logger
	// Progress is told of entries as they are applied.
	Progress func(log string, have, want uint64)
	// Die ends the process: called when the disk fails in the middle of a write.
	Die func(reason string, err error)
}

// Restored is what a restore made.
type Restored struct {
	ClusterID, NodeID lineage.ID
	Logs              []RestoredLog
	// NewSecret says that a secret was made, of which there is no copy yet.
	NewSecret bool
	// LeftOut are logs of an interrupted run that the system log does not register yet.
	LeftOut []string
}

// RestoredLog is a log of a restored ledger.
type RestoredLog struct {
	Name, Origin string
	Size         uint64
	Root         string
	Witnesses    []string // whose word was taken for it
	Predecessor  string   // origin of the log that it continues, of a new origin
	Frozen       bool     // it can be read and proven, not appended to
}

// restore is one run of Restore.
type restore struct {
	o       RestoreOptions
	m       *Manifest
	dir     string // where it is built
	cluster lineage.ID
	node    lineage.ID
	b       *builder
	result  *Restored
}

// Restore builds a new ledger directory from a backup, a cluster of one under a new node id, and moves it into place when everything in it has been
// proven. Errors wrap ErrDamaged, ErrShorter, ErrNoWitness or ErrKey; then there is no new directory.
func Restore(ctx context.Context, o RestoreOptions) (_ *Restored, err error) {
	if o.Progress == nil {
		o.Progress = func(string, uint64, uint64) {}
	}
	m, err := load(o.From)
	if err != nil {
		return nil, err
	}
	if g := m.log(systemNumber); g == nil || g.Checkpoint == "" {
		return nil, fmt.Errorf("no run of the backup in %s was ever completed: there is nothing to restore", o.From)
	}
	r := &restore{o: o, m: m, cluster: m.ClusterID, node: randomID(), result: &Restored{}}
	if o.NewOrigin {
		r.cluster = randomID()
	} else if err := r.mayContinue(); err != nil {
		return nil, err
	}
	if err := r.trusted(); err != nil {
		return nil, err
	}
	if err := absent(o.Dir); err != nil {
		return nil, err
	}
	r.dir = filepath.Clean(o.Dir) + newSuffix
	if err := os.RemoveAll(r.dir); err != nil { // of a restore that failed
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(r.dir))
		}
	}()
	if err := makeDir(r.dir); err != nil {
		return nil, err
	}
	p, err := r.build(ctx)
	if err != nil {
		return nil, err
	}
	if err := r.files(p); err != nil {
		return nil, err
	}
	r.result.ClusterID, r.result.NodeID = r.cluster, r.node
	return r.result, r.place()
}

// mayContinue refuses to keep the origins before anything is built, where the manifest alone shows it.
func (r *restore) mayContinue() error {
	var faults []error
	for i := range r.m.Logs {
		g := &r.m.Logs[i]
		if g.Checkpoint == "" {
			continue
		}
		cp, err := g.checkpoint()
		if err != nil {
			return damaged("log %s: %w", g.Name, err)
		}
		seen := false
		for _, w := range r.o.Witnesses {
			if w.Origin != g.Origin {
				continue
			}
			seen = seen || w.Counts
			if w.Size > cp.Size {
				faults = append(faults, fmt.Errorf("%w: log %s: %s saw %d entries, the backup has %d", ErrShorter, g.Name, w.From, w.Size, cp.Size))
			}
		}
		if !seen && !r.o.NoWitness {
			faults = append(faults, fmt.Errorf("%w: log %s", ErrNoWitness, g.Name))
		}
		if r.o.Secret != nil && g.Number == systemNumber {
			key, err := signer.DeriveKey(r.o.Secret, g.Origin)
			if err != nil {
				return err
			}
			if key.VKey() != g.VKey {
				faults = append(faults, fmt.Errorf("%w: it gives %s, the log has %s", ErrKey, key.VKey(), g.VKey))
			}
		}
	}
	return errors.Join(faults...)
}

// trusted checks the checkpoints of the logs that the policy names.
func (r *restore) trusted() error {
	if r.o.Trust == nil {
		return nil
	}
	found := false
	for _, l := range r.o.Trust.Logs() {
		for i := range r.m.Logs {
			if g := &r.m.Logs[i]; g.Origin == l.Origin && g.Checkpoint != "" {
				found = true
				if _, _, err := r.o.Trust.VerifyCheckpoint([]byte(g.Checkpoint)); err != nil {
					return fmt.Errorf("log %s: its checkpoint is not one that the policy trusts: %w", g.Name, err)
				}
			}
		}
	}
	if !found {
		return errors.New("the policy names no log of this backup")
	}
	return nil
}

// absent refuses a directory with anything in it.
func absent(dir string) error {
	names, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case len(names) > 0:
		return fmt.Errorf("%s is not empty; a ledger is restored into a new directory", dir)
	}
	return nil
}

// build makes the state store and proves it. It returns what is durable in it.
func (r *restore) build(ctx context.Context) (_ consensus.Position, err error) {
	l, err := ledger.Open(ledger.Options{
		FS: vfs.Default, Dir: filepath.Join(r.dir, stateDir), ClusterID: r.cluster, Logger: r.o.Logger, Die: r.o.Die,
		MemTableBytes: restoreMemTableBytes, BlockCacheBytes: restoreCacheBytes,
	})
	if err != nil {
		return consensus.Position{}, err
	}
	defer func() { err = errors.Join(err, l.Close(context.WithoutCancel(ctx))) }()
	r.b = newBuilder(l)
	node := r.node.String()
	if err := r.b.membership(consensus.SoleVoter(node, node)); err != nil {
		return consensus.Position{}, err
	}
	if r.o.NewOrigin {
		err = r.succeed(ctx)
	} else {
		err = r.same(ctx)
	}
	if err == nil {
		err = l.Flush(ctx, r.b.index)
	}
	if err == nil {
		err = l.Check(ctx)
	}
	if err != nil {
		return consensus.Position{}, err
	}
	p, err := l.Durable()
	return consensus.Position(p), err
}

// same brings back every log as it was.
func (r *restore) same(ctx context.Context) error {
	for i := range r.m.Logs { // system is the first, and registers the others
		g := &r.m.Logs[i]
		if g.Checkpoint == "" {
			r.result.LeftOut = append(r.result.LeftOut, g.Name)
			continue
		}
		if _, err := r.b.l.LogByNumber(g.Number); g.Number != systemNumber && err != nil {
			r.result.LeftOut = append(r.result.LeftOut, g.Name)
			continue
		}
		cp, err := r.copy(ctx, g, g.Number)
		if err != nil {
			return err
		}
		restored := RestoredLog{Name: g.Name, Origin: g.Origin, Size: cp.Size, Root: cp.Root.String()}
		restored.Frozen = r.b.l.Frozen(ledger.Log{Origin: g.Origin})
		if restored.Witnesses, err = r.agree(g); err != nil {
			return err
		}
		r.result.Logs = append(r.result.Logs, restored)
	}
	return nil
}

// agree compares what witnesses saw of a log with the restored tree.
func (r *restore) agree(g *LogInfo) (names []string, err error) {
	t, err := r.b.l.Tree(g.Number)
	if err != nil {
		return nil, err
	}
	for _, w := range r.o.Witnesses {
		if w.Origin != g.Origin {
			continue
		}
		root, err := t.RootAt(w.Size)
		if err != nil {
			return nil, err
		}
		if root != w.Root {
			return nil, fmt.Errorf("%w: log %s: %s saw root %s at size %d, the backup has %s: one of them is of another history", ErrShorter, g.Name, w.From, w.Root, w.Size, root)
		}
		if w.Counts {
			names = append(names, fmt.Sprintf("%s (%d)", w.From, w.Size))
		}
	}
	return names, nil
}

// copy applies the entries that the checkpoint of a log covers as those of a log of the new ledger.
func (r *restore) copy(ctx context.Context, g *LogInfo, to uint32) (checkpoint.Checkpoint, error) {
	cp, err := g.checkpoint()
	if err != nil {
		return cp, damaged("log %s: %w", g.Name, err)
	}
	for _, part := range g.Ranges {
		if part.First >= cp.Size {
			break
		}
		if ctx.Err() != nil {
			return cp, ctx.Err()
		}
		r.o.Progress(g.Name, part.First, cp.Size)
		entries, faults, err := readRange(r.o.From, r.m.ClusterID, g.Number, part)
		if err != nil {
			return cp, err
		}
		if len(faults) > 0 {
			return cp, damaged("%s; `ledgerctl backup verify` names everything that is", faults[0])
		}
		entries = entries[:min(uint64(len(entries)), cp.Size-part.First)]
		if err := r.b.append(to, entries); err != nil {
			return cp, fmt.Errorf("log %s: %w", g.Name, err)
		}
	}
	if err := r.b.apply(); err != nil {
		return cp, fmt.Errorf("log %s: %w", g.Name, err)
	}
	t, err := r.b.l.Tree(to)
	if err != nil {
		return cp, err
	}
	if h := t.Head(); h.Size != cp.Size || h.Root != cp.Root {
		return cp, damaged("log %s: its leaves have root %s at size %d, the checkpoint says %s at %d", g.Name, h.Root, h.Size, cp.Root, cp.Size)
	}
	r.o.Progress(g.Name, cp.Size, cp.Size)
	return cp, nil
}

// files makes what a ledger directory has beside the state store, FORMAT last.
func (r *restore) files(p consensus.Position) (err error) {
	s, err := raftlog.Open(raftlog.Options{Dir: filepath.Join(r.dir, raftDir), SegmentBytes: r.o.SegmentBytes, Logger: r.o.Logger, Die: r.o.Die})
	if err != nil {
		return err
	}
	if err = consensus.ResetLog(s, p); err == nil {
		_, err = consensus.TakeOver(s, p, r.node.String(), r.node.String(), r.note)
	}
	if err = errors.Join(err, s.Close()); err != nil {
		return err
	}
	if r.o.Secret != nil {
		if err := writeFile(filepath.Join(r.dir, secretFile), r.o.Secret[:]); err != nil {
			return err
		}
	}
	b, err := json.Marshal(struct {
		Version   int        `json:"version"`
		ClusterID lineage.ID `json:"clusterId"`
		NodeID    lineage.ID `json:"nodeId"`
	}{ledgerForm, r.cluster, r.node})
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(r.dir, formatFile), append(b, '\n'))
}

// note leaves word of the restore for the system log.
func (r *restore) note(t consensus.Takeover) error {
	m := r.m
	record := recovery.Record{
		Cause: recovery.Restored, At: timeText(time.Now()), By: r.o.By, Reason: r.o.Reason, Node: r.node.String(), Kept: t.Kept, Index: t.Index, Term: t.Term,
		Backup: &recovery.Backup{Run: m.Run.Number, FinishedAt: m.Run.FinishedAt, SHA256: m.SHA256},
	}
	if r.o.NewOrigin {
		record.Cause = recovery.NewOrigin
	}
	for _, w := range r.o.Witnesses {
		if w.Counts && w.Size > 0 {
			record.Witnesses = append(record.Witnesses, fmt.Sprintf("%s: %s at %d", w.From, w.Origin, w.Size))
		}
	}
	if len(record.Witnesses) > maxRecordedWitnesses {
		record.Witnesses = append(record.Witnesses[:maxRecordedWitnesses], fmt.Sprintf("and %d more", len(record.Witnesses)-maxRecordedWitnesses))
	}
	return record.Save(vfs.Default, r.dir)
}

// maxRecordedWitnesses keeps the record of a ledger with many logs within what a control entry may hold.
const maxRecordedWitnesses = 100

// place moves the finished directory to its name.
func (r *restore) place() error {
	if err := os.Remove(r.o.Dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err // it was empty a moment ago
	}
	if err := os.Rename(r.dir, r.o.Dir); err != nil {
		return err
	}
	return syncDir(filepath.Dir(filepath.Clean(r.o.Dir)))
}

func randomID() lineage.ID { return lineage.ID(random(16)) }
