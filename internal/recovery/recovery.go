// Package recovery makes a stopped survivor the only voter of a cluster that has lost its majority for good.
//
// Nothing that the survivor has is given up: its raft log stays as it is, its newest entries included, although nobody can say any more whether
// they were committed; a membership of one is appended, and at its next start the node commits the rest itself. What it has never received is lost,
// and whether that was acknowledged to somebody only a witness can tell: a checkpoint that covers more than the survivor's history forbids
// the recovery, whatever else is said.
//
// A recovery is no secret: a [Record] lies in the directory until the node has entered it into the system log. docs/backup.md argues why this is
// safe, and when it is not.
package recovery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/checkpoint"
	"github.com/provledger/provledger/internal/consensus"
	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/merkle"
	"github.com/provledger/provledger/internal/raftlog"
	"github.com/provledger/provledger/internal/signer"
)

const (
	// scratchDir is where the state is looked at as it will be. Its name marks it as not whole, should a crash leave it behind.
	scratchDir = "recover.new"

	memTableBytes = 16 << 20
	cacheBytes    = 32 << 20
)

// Errors by class.
var (
	// ErrShorter means that somebody has seen more of a log than this node holds, or another history.
	ErrShorter = errors.New("this node must not continue the history")
	// ErrNoWitness means that nothing says what was released.
	ErrNoWitness = errors.New("nothing says what was acknowledged by the nodes that are lost")
	// ErrAlone means that there is nothing to recover from.
	ErrAlone = errors.New("this node is the only member already")
)

// Options of [Run]. The caller holds the lock of the directory.
type Options struct {
	Dir               string
	ClusterID, NodeID lineage.ID
	// StateDir, RaftDir and SignerDir are the names of the stores in Dir.
	StateDir, RaftDir, SignerDir string
	// Checkpoints are signed notes by the name under which the record is to name them. NoWitness does without.
	Checkpoints map[string][]byte
	NoWitness   bool
	Reason, By  string
	// DryRun finds out everything and changes nothing.
	DryRun bool
	Now    func() time.Time
	Logger *slog.Logger
	Die    func(reason string, err error)
}

// Outcome is what a recovery did, or would do.
type Outcome struct {
	Record Record
	// Replayed is how many entries of the raft log lie beyond the state store: perhaps committed, and kept.
	Replayed uint64
	Logs     []LogOutcome
}

// LogOutcome is a log as it will be.
type LogOutcome struct {
	Name    string
	Size    uint64
	Root    merkle.Hash
	Witness string // the largest one that was compared; "" means none
}

// Run recovers. An error wraps ErrShorter, ErrNoWitness, ErrAlone, ledger.ErrCorrupt, raftlog.ErrCorrupt or consensus.ErrLogMismatch, and then
// nothing is changed.
func Run(ctx context.Context, o Options) (_ *Outcome, err error) {
	if len(o.Checkpoints) == 0 && !o.NoWitness {
		return nil, ErrNoWitness
	}
	if _, err := os.Stat(filepath.Join(o.Dir, o.RaftDir)); err != nil {
		return nil, fmt.Errorf("the raft log: %w", err) // opening would make a new one
	}
	log, err := raftlog.Open(raftlog.Options{Dir: filepath.Join(o.Dir, o.RaftDir), Logger: o.Logger, Die: o.Die})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	out := &Outcome{}
	d, err := o.future(ctx, log, out)
	if err != nil {
		return nil, err
	}
	members, _, err := consensus.LastMembership(log, d)
	if err != nil {
		return nil, err
	}
	self := o.NodeID.String()
	address := self
	for _, m := range members {
		if m.ID == self {
			address = m.Address
			continue
		}
		out.Record.Lost = append(out.Record.Lost, Member(m))
	}
	if len(out.Record.Lost) == 0 {
		return nil, ErrAlone
	}
	stop := errors.New("dry run")
	_, err = consensus.TakeOver(log, d, self, address, func(t consensus.Takeover) error {
		r := &out.Record
		r.Cause, r.At, r.By, r.Reason = MajorityLost, o.Now().UTC().Format(time.RFC3339), o.By, o.Reason
		r.Node, r.Kept, r.Index, r.Term = self, t.Kept, t.Index, t.Term
		if o.DryRun {
			return stop
		}
		return r.Save(vfs.Default, o.Dir)
	})
	if err != nil && !errors.Is(err, stop) {
		return nil, err
	}
	return out, nil
}

// future works out, on a copy, what the state will be when the whole raft log is applied, proves it, and compares it with what was seen. It
// returns what is durable in the store itself, which is not touched: if the recovery is refused, these entries are still not committed.
func (o *Options) future(ctx context.Context, log *raftlog.Store, out *Outcome) (d consensus.Position, err error) {
	scratch := filepath.Join(o.Dir, scratchDir)
	if err := os.RemoveAll(scratch); err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	if err := linkStore(filepath.Join(o.Dir, o.StateDir), scratch); err != nil {
		return d, fmt.Errorf("copy the state store to look at it: %w", err)
	}
	l, err := ledger.Open(ledger.Options{
		FS: vfs.Default, Dir: scratch, ClusterID: o.ClusterID, Logger: o.Logger, Die: o.Die, MemTableBytes: memTableBytes, BlockCacheBytes: cacheBytes,
	})
	if err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, l.Abandon()) }()
	p, err := l.Durable()
	if err != nil {
		return d, err
	}
	if out.Replayed, err = replay(ctx, l, log, p.Index); err != nil {
		return d, err
	}
	if err := l.Check(ctx); err != nil {
		return d, err
	}
	return consensus.Position(p), o.compare(l, out)
}

// linkStore makes a second store of the tables of a first one. Tables never change, so a link will do; the few other files are copied.
func linkStore(from, to string) error {
	names, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	for _, n := range names {
		a, b := filepath.Join(from, n.Name()), filepath.Join(to, n.Name())
		if n.IsDir() || n.Name() == "LOCK" {
			continue
		}
		if strings.HasSuffix(n.Name(), ".sst") && os.Link(a, b) == nil {
			continue
		}
		content, err := os.ReadFile(a)
		if err == nil {
			err = os.WriteFile(b, content, 0o600)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// replay applies what the log has beyond index, as the next start will. It returns how many entries that are.
func replay(ctx context.Context, l *ledger.Ledger, log *raftlog.Store, index uint64) (uint64, error) {
	last, err := consensus.Tail(log, index, func(e consensus.Entry) error {
		for _, result := range l.Apply([]ledger.LogEntry{ledger.LogEntry(e)}) {
			if err, failed := result.(error); failed {
				return err
			}
		}
		return ctx.Err()
	})
	return max(last, index) - index, err
}

// compare holds the logs against what was seen of them: the checkpoints, and what this node itself has signed.
func (o *Options) compare(l *ledger.Ledger, out *Outcome) error {
	best := map[uint32]uint64{}
	witness := map[uint32]string{}
	check := func(g ledger.Log, from string, size uint64, root merkle.Hash) error {
		t, err := l.Tree(g.Number)
		if err != nil {
			return err
		}
		if have := t.Head().Size; size > have {
			return fmt.Errorf("%w: log %s: %s covers %d entries, this node has %d; another survivor may have more, else restore under a new origin", ErrShorter, g.Name, from, size, have)
		}
		got, err := t.RootAt(size)
		if err != nil {
			return err
		}
		if got != root {
			return fmt.Errorf("%w: log %s at size %d: %s has root %s, this node %s: they are of two histories", ErrShorter, g.Name, size, from, root, got)
		}
		if size >= best[g.Number] {
			best[g.Number], witness[g.Number] = size, from
		}
		return nil
	}
	var faults []error
	for name, note := range o.Checkpoints {
		cp, g, err := open(l, note)
		if err != nil {
			faults = append(faults, fmt.Errorf("checkpoint %s: %w", name, err))
			continue
		}
		out.Record.Witnesses = append(out.Record.Witnesses, fmt.Sprintf("%s: %s at %d", name, cp.Origin, cp.Size))
		faults = append(faults, check(g, name, cp.Size, cp.Root))
	}
	for _, g := range l.Logs() {
		size, root, ok, err := signer.ReadRecord(vfs.Default, filepath.Join(o.Dir, o.SignerDir), g.Origin)
		if err != nil {
			faults = append(faults, err)
		} else if ok && size > 0 {
			faults = append(faults, check(g, "what this node signed itself", size, root))
		}
		t, err := l.Tree(g.Number)
		if err != nil {
			return err
		}
		out.Logs = append(out.Logs, LogOutcome{Name: g.Name, Size: t.Head().Size, Root: t.Head().Root, Witness: witness[g.Number]})
	}
	return errors.Join(faults...)
}

// open verifies a checkpoint by the key of the log that it is of.
func open(l *ledger.Ledger, note []byte) (checkpoint.Checkpoint, ledger.Log, error) {
	origin, _, _ := strings.Cut(string(note), "\n")
	g, err := l.LogByOrigin(origin)
	if err != nil {
		return checkpoint.Checkpoint{}, g, err
	}
	v, err := checkpoint.NewVerifier(g.VKey)
	if err != nil {
		return checkpoint.Checkpoint{}, g, err
	}
	cp, err := checkpoint.Open(note, v)
	return cp, g, err
}
