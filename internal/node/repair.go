package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/provledger/provledger/internal/catchup"
	"github.com/provledger/provledger/internal/consensus"
	"github.com/provledger/provledger/internal/ledger"
)

// onQuarantine is called once, when this node finds its state damaged: from any goroutine, so it only says so.
func (n *Node) onQuarantine(err error) {
	n.counted.quarantines.Add(1)
	select {
	case n.damaged <- err:
	default:
	}
}

// resumeQuarantine takes a node out of service that was when it stopped: damage of its memory, or what the peers have against it, does not show in a store
// that is opened.
func (n *Node) resumeQuarantine() error {
	why, err := n.dir.readFile(quarantineFile)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		n.c.Logger.Warn("this node was quarantined when it stopped, and is until it has a new state store; if all nodes are, none can be repaired: examine one with "+
			"ledgerd fsck, and if that finds it whole remove this file and start it", "file", n.dir.join(quarantineFile))
		n.Ledger().Quarantine(fmt.Errorf("as before the last stop: %s", strings.TrimSpace(string(why))))
	}
	return err
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

// mend does what is to be done when this node was quarantined: it gives leadership away and repairs, as often as it takes. Without peers nobody can
// be asked, so a cluster of one stays as it is.
func (n *Node) mend(ctx context.Context) {
	if n.Ledger().Quarantined() == nil {
		return // word of a store that was replaced
	}
	if n.clustered() { // first: the next start may not see the damage
		if err := n.dir.write(quarantineFile, []byte(n.Ledger().Quarantined().Error()+"\n"), false); err != nil {
			n.c.Logger.Error("could not note that this node is quarantined; a restart forgets it", "err", err)
		}
	}
	n.evidence()
	if !n.clustered() {
		n.c.Logger.Error("there is no peer to repair this node from: restore a backup, or start anew under a new origin (docs/operations.md)")
		return
	}
	if err := n.yield(); err != nil {
		n.c.Logger.Warn("could not hand leadership over; it is tried again", "err", err)
	}
	for {
		err := n.counting(func() error { return n.repair(ctx) })
		if err == nil || ctx.Err() != nil {
			return
		}
		n.c.Logger.Error("repair failed; it is tried again", "err", err)
		if pause(ctx, catchUpRetry) != nil {
			return
		}
	}
}

// yield gives leadership away if this node is quarantined: nobody can append as long as it leads. It may be elected at any time until it is repaired,
// for its log is as good as those of others.
func (n *Node) yield() error {
	r := n.raft()
	if !n.clustered() || n.Ledger().Quarantined() == nil || !r.IsLeader() {
		return nil
	}
	err := r.StepDown()
	if errors.Is(err, consensus.ErrSoleVoter) {
		return nil
	}
	return err
}

// repair builds a new state store from the peers' and puts it in the place of the damaged one. raft runs on meanwhile: its log is sound, and
// so is this node's identity.
func (n *Node) repair(ctx context.Context) error {
	if len(n.sources()) == 0 {
		return errors.New("there is no peer to fetch the state from: restore a backup, or start anew under a new origin (docs/operations.md)")
	}
	n.c.Logger.Warn("repairing: the state store is fetched anew from the peers")
	n.catchingUp.Store(true)
	defer n.catchingUp.Store(false)
	export, err := n.buildState(ctx, n.sources())
	if err != nil {
		return err
	}
	old := n.core.Load()
	if err := n.vacate(ctx, old, vacateTimeout); err != nil {
		return err
	}
	err = n.restartRaft(ctx, func(ctx context.Context) error {
		if err := n.replaceState(old); err != nil {
			n.die("the repaired state store cannot be used", err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	n.service.Swap(n.serving())
	n.c.Logger.Info("repaired", "applied", export.Index)
	return nil
}

// vacate returns when no call uses a core any more. A client that reads a stream and stops taking it holds its call, and nobody can end that; but two
// stores must not be open in one place. So after a while the process ends, and its next start puts the new store in.
func (n *Node) vacate(ctx context.Context, old *core, patience time.Duration) error {
	waiting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	paused := make(chan struct{})
	go func() {
		n.service.Pause()
		close(paused)
	}()
	var err error
	select {
	case <-paused:
		err = old.waitUnused(waiting)
	case <-waiting.Done():
		err = errors.New("a client has not taken what it asked for")
	}
	if err != nil && ctx.Err() == nil {
		n.die("the damaged state store is still read from; the next start puts the new one in its place", errors.Join(err, n.mark(install{Swap: true})))
	}
	return err
}

// replaceState puts the new state store in the place of one that nobody uses. raft is stopped.
func (n *Node) replaceState(old *core) error {
	old.sequencer.Close()
	if err := old.ledger.Abandon(); err != nil {
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
}

// buildState fetches the whole state into a new store beside the old one, up to where this node's raft log continues it or beyond.
func (n *Node) buildState(ctx context.Context, sources []catchup.Source) (*ledger.Export, error) {
	floor, err := n.floor()
	if err != nil {
		return nil, err
	}
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
		Ledger: l, Sources: sources, MinIndex: floor, Verify: n.verifyCheckpoint, Logger: n.c.Logger, Progress: n.progress.set,
		MovedIndex: func() uint64 { // the log may just be being cut
			moved, err := n.floor()
			if err != nil {
				return floor // whoever uses the log next finds out
			}
			return moved
		},
	})
	if err == nil {
		err = stage.Install(ctx)
	}
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), restartTimeout)
	defer cancel()
	useless := l.Quarantined() != nil || errors.Is(err, ledger.ErrDiverged)
	err = errors.Join(err, l.Close(closing))
	if useless { // going on from it would fail again and again
		err = errors.Join(err, n.c.FS.RemoveAll(n.dir.join(stateNew)))
	}
	return export, err
}

// swapState puts the new state store in the place of the old one, with which its quarantine ends. The marker says that it is whole; each step may
// have been done before a crash.
func (n *Node) swapState() error {
	if err := n.swapDirectories(); err != nil {
		return err
	}
	return n.dir.remove(quarantineFile)
}

func (n *Node) swapDirectories() error {
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
		if err := syncDir(fs, d.path); err != nil { // POSIX promises no order of the two renames
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
	// Of a replacement that is done already, and must not be done again with a store that is not whole yet.
	if err := n.dir.remove(installFile); err != nil {
		return err
	}
	n.counted.quarantines.Add(1) // nobody else counts it: there is no ledger yet that could quarantine itself
	n.c.Logger.Error("the state store cannot be opened; it is fetched anew from the peers", "err", why, "peers", addresses)
	for {
		err = n.counting(func() error {
			_, err := n.buildState(ctx, n.sources(addresses...))
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
	if err := n.swapState(); err != nil {
		return err
	}
	n.c.Logger.Info("repaired")
	return nil
}
