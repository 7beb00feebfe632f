package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/provledger/provledger/internal/catchup"
	"github.com/provledger/provledger/internal/consensus"
	"github.com/provledger/provledger/internal/ledger"
)

// onQuarantine is called once, when this node finds its state damaged: from any goroutine, so it only starts what is to be done.
func (n *Node) onQuarantine(err error) {
	n.counted.quarantines.Add(1)
	go func() {
		n.evidence()
		if r := n.raft(); r != nil && r.IsLeader() {
			if err := r.StepDown(); err != nil && !errors.Is(err, consensus.ErrSoleVoter) {
				n.c.Logger.Warn("could not hand leadership over", "err", err)
			}
		}
	}()
	select {
	case n.damaged <- err:
	default:
	}
}

// evidence keeps what is known of a divergence in a file of its own, before a repair makes it disappear.
func (n *Node) evidence() {
	name := "evidence-" + time.Now().UTC().Format("20060102T150405Z") + ".json"
	if err := n.dir.write(name, n.Ledger().Evidence(), false); err != nil {
		n.c.Logger.Error("could not write the evidence of a divergence", "err", err)
		return
	}
	n.c.Logger.Error("evidence of the divergence is kept", "file", n.dir.join(name))
}

// mend repairs this node whenever it is quarantined, until ctx ends. Without peers nobody can be asked, so a cluster of one stays as it is.
func (n *Node) mend(ctx context.Context) {
	for {
		select {
		case <-n.damaged:
		case <-ctx.Done():
			return
		}
		for n.Ledger().Quarantined() != nil {
			if err := n.counting(func() error { return n.repair(ctx) }); err == nil {
				break
			} else if ctx.Err() == nil {
				n.c.Logger.Error("repair failed; it is tried again", "err", err)
			}
			if pause(ctx, catchUpRetry) != nil {
				return
			}
		}
	}
}

// repair builds a new state store from the peers' and puts it in the place of the damaged one. raft runs on meanwhile: its log is sound, and
// so is this node's identity.
func (n *Node) repair(ctx context.Context) error {
	if n.peers == nil || len(n.sources()) == 0 {
		return errors.New("there is no peer to fetch the state from: restore a backup, or start anew under a new origin (docs/operations.md)")
	}
	n.c.Logger.Warn("repairing: the state store is fetched anew from the peers")
	n.catchingUp.Store(true)
	defer n.catchingUp.Store(false)
	stats := n.raft().Stats()
	export, err := n.buildState(ctx, n.sources(), max(stats.First, 1)-1)
	if err != nil {
		return err
	}
	old := n.core.Load()
	err = n.restartRaft(ctx, func(ctx context.Context) error {
		n.service.Pause()
		old.sequencer.Close()
		if err := old.waitUnused(ctx); err != nil {
			n.c.Logger.Warn("the damaged state store stays open until the process ends", "err", err)
		} else if err := old.ledger.Abandon(); err != nil {
			n.c.Logger.Warn("closing the damaged state store", "err", err)
		}
		if err := n.mark(install{Swap: true}); err != nil {
			return err
		}
		if err := n.swapState(); err != nil {
			return err
		}
		if err := n.openCore(); err != nil {
			return err
		}
		return n.finishInstall()
	})
	if err != nil {
		n.die("the repaired state store cannot be used", err)
	}
	n.service.Swap(n.serving())
	n.c.Logger.Info("repaired", "applied", export.Index)
	return nil
}

// buildState fetches the whole state into a new store beside the old one.
func (n *Node) buildState(ctx context.Context, sources []catchup.Source, min uint64) (*ledger.Export, error) {
	l, err := ledger.Open(n.ledgerOptions(stateNew))
	if errors.Is(err, ledger.ErrCorrupt) { // an earlier attempt
		if err = n.c.FS.RemoveAll(n.dir.join(stateNew)); err == nil {
			l, err = ledger.Open(n.ledgerOptions(stateNew))
		}
	}
	if err != nil {
		return nil, err
	}
	stage, export, err := catchup.Fetch(ctx, catchup.Options{
		Ledger: l, Sources: sources, MinIndex: min, Verify: n.verifyCheckpoint, Logger: n.c.Logger, Progress: n.progress.set,
	})
	if err == nil {
		err = stage.Install(ctx)
	}
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), restartTimeout)
	defer cancel()
	return export, errors.Join(err, l.Close(closing))
}

// swapState puts the new state store in the place of the old one. The marker says that it is whole; each step may have been done before a
// crash.
func (n *Node) swapState() error {
	fs, d := n.c.FS, n.dir
	if _, err := fs.Stat(d.join(stateNew)); errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	if _, err := fs.Stat(d.join(stateDir)); err == nil {
		if err := fs.RemoveAll(d.join(stateOld)); err != nil {
			return err
		}
		if err := fs.Rename(d.join(stateDir), d.join(stateOld)); err != nil {
			return err
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := fs.Rename(d.join(stateNew), d.join(stateDir)); err != nil {
		return err
	}
	return syncDir(fs, d.path)
}

// rescue is the repair of a node whose state store cannot be opened. raft cannot run without it, so the node neither votes nor serves
// meanwhile. The members are those of the newest configuration in the raft log, and those that the operator named.
func (n *Node) rescue(ctx context.Context, why error) error {
	if !n.clustered() {
		return why
	}
	first, err := n.log.FirstIndex()
	if err != nil {
		return err
	}
	addresses := n.contacts()
	// Without a membership in the log the addresses that the operator named have to do.
	servers, _, err := consensus.LastMembership(n.log, consensus.Position{})
	if err != nil {
		n.c.Logger.Warn("the raft log does not tell who the members are", "err", err)
	}
	for _, s := range servers {
		if s.ID != n.ID() && !slices.Contains(addresses, s.Address) {
			addresses = append(addresses, s.Address)
		}
	}
	if len(addresses) == 0 {
		return why
	}
	n.c.Logger.Error("the state store cannot be opened; it is fetched anew from the peers", "err", why, "peers", addresses)
	for {
		err = n.counting(func() error {
			_, err := n.buildState(ctx, n.sources(addresses...), max(first, 1)-1)
			return err
		})
		if err == nil {
			break
		}
		n.c.Logger.Error("repair failed; it is tried again", "err", err)
		if perr := pause(ctx, catchUpRetry); perr != nil {
			return fmt.Errorf("%w; repairing it from the peers: %w", why, errors.Join(err, perr))
		}
	}
	if err := n.mark(install{Swap: true}); err != nil {
		return err
	}
	return n.swapState()
}
