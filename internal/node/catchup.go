package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/provledger/provledger/internal/catchup"
	"github.com/provledger/provledger/internal/checkpoint"
	"github.com/provledger/provledger/internal/consensus"
	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/merkle"
)

const (
	// installFile marks a catch-up between its installation and the repair of the raft log. While it is there, a start finishes that.
	installFile = "install"
	// quarantineFile says that the state store is not to be relied upon, and why, until another one is in its place.
	quarantineFile = "quarantined"
	// stateNew is the state store that a repair builds, stateOld the damaged one that it replaces. The damaged one is kept, the newest one only:
	// whoever wants to know what happened looks into it.
	stateNew = "state.new"
	stateOld = "state.damaged"
	// catchUpRetry is the pause after a catch-up that failed.
	catchUpRetry = 2 * time.Second
	// vacateTimeout is how long a damaged store may go on being read from: calls of peers last 20 seconds at most, and streams of clients end when
	// they are told to, but for those that wait for the client. raft runs meanwhile.
	vacateTimeout = 40 * time.Second
	// restartTimeout bounds each step of a switch: raft's end, which waits for an Apply on a store that a catch-up has just filled, and the flush
	// of what was installed. A disk that hangs is noticed sooner.
	restartTimeout = time.Minute
)

// install is the content of installFile.
type install struct {
	// Swap says that the new state store replaces the old one; else the live one was brought forward.
	Swap bool `json:"swap"`
}

// verifyCheckpoint holds what a peer claims of a log to a signature by the log's key. Where no peer has the key, there is none: then the
// majority of the peers is believed, whose chain digests were compared.
func (n *Node) verifyCheckpoint(g ledger.Log, note []byte, size uint64, root merkle.Hash) error {
	if note == nil {
		n.c.Logger.Warn("no peer can sign for a log; its root is believed because the peers agree", "log", g.Name, "size", size)
		return nil
	}
	v, err := checkpoint.NewVerifier(g.VKey)
	if err != nil {
		return err
	}
	c, err := checkpoint.Open(note, v)
	if err != nil {
		return err
	}
	if c.Origin != g.Origin || c.Size != size || c.Root != root {
		return fmt.Errorf("the checkpoint is of %s at size %d with root %s, not of %s at size %d with root %s", c.Origin, c.Size, c.Root, g.Origin, size, root)
	}
	return nil
}

// sources are the peers that a catch-up fetches from: the members, or, as long as this node knows of none, whoever is at addresses and where it
// was told to look for members.
func (n *Node) sources(addresses ...string) []catchup.Source {
	var out []catchup.Source
	for _, c := range n.peers.others(append(n.contacts(), addresses...)) {
		out = append(out, c)
	}
	return out
}

// tend brings this node forward whenever the leader says that it is behind the leader's log, and repairs it whenever it is quarantined, until
// ctx ends. One goroutine does both: a repair closes the store that a catch-up writes to.
func (n *Node) tend(ctx context.Context) {
	for {
		select {
		case b := <-n.behind:
			n.follow(ctx, b)
		case <-n.damaged:
			n.mend(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// follow does one catch-up.
func (n *Node) follow(ctx context.Context, b consensus.Behind) {
	if n.Ledger().Quarantined() != nil {
		return // a repair does it
	}
	n.catchingUp.Store(true)
	err := n.counting(func() error { return n.catchUp(ctx, b) })
	n.catchingUp.Store(false)
	select { // what was asked for meanwhile has been done, or is asked for again
	case <-n.behind:
	default:
	}
	switch {
	case err == nil || ctx.Err() != nil:
	case errors.Is(err, ledger.ErrDiverged):
		// What is here cannot be continued, however often that is tried.
		n.Ledger().Quarantine(err)
	default:
		n.c.Logger.Error("catch-up failed; it is tried again", "err", err)
		_ = pause(ctx, catchUpRetry) // or until ctx ends, which ends tend
	}
}

// onBehind is called on raft's goroutine.
func (n *Node) onBehind(b consensus.Behind) {
	n.behindIndex.Store(b.Index)
	select {
	case n.behind <- b:
	default:
	}
}

// catchUp fetches what this node lacks while raft goes on voting, then stops raft for the moment that it takes to move the heads.
func (n *Node) catchUp(ctx context.Context, b consensus.Behind) error {
	start := time.Now()
	l := n.Ledger()
	n.c.Logger.Info("this node is behind the leader's log and fetches what it lacks", "applied", l.Applied().Index, "leader_at", b.Index)
	stage, export, err := catchup.Fetch(ctx, catchup.Options{
		Ledger: l, Sources: n.sources(), MinIndex: b.Index, MovedIndex: n.behindIndex.Load, Verify: n.verifyCheckpoint, Logger: n.c.Logger, Progress: n.progress.set,
	})
	if err != nil {
		return err
	}
	err = n.restartRaft(ctx, func(ctx context.Context) error {
		if l.Applied().Index >= export.Index {
			return nil // a leader with a longer log was quicker
		}
		if err := n.mark(install{}); err != nil {
			return err
		}
		if err := stage.Install(ctx); err != nil {
			if l.Applied().Index < export.Index { // nothing has changed: the log that there is still fits
				return errors.Join(err, n.dir.remove(installFile))
			}
			n.die("the state was moved forward, and is not known to be durable", err)
		}
		if err := n.finishInstall(); err != nil {
			n.die("the raft log cannot be made to fit the state", err)
		}
		return nil
	})
	if err == nil {
		n.c.Logger.Info("caught up", "applied", l.Applied().Index, "took", time.Since(start).Round(time.Millisecond))
	}
	return err
}

// mark writes the install marker.
func (n *Node) mark(i install) error {
	b, err := json.Marshal(i)
	if err != nil {
		return err
	}
	return n.dir.write(installFile, b, false)
}

// finishInstall makes the raft log fit the durable state and removes the marker. Done twice it changes nothing. A state that holds nothing yet is
// that of a new node which was stopped before its first installation, and needs no log.
func (n *Node) finishInstall() error {
	p, err := n.Ledger().Durable()
	if err != nil {
		return err
	}
	if p.Index > 0 {
		if err := consensus.ResetLog(n.log, consensus.Position(p)); err != nil {
			return err
		}
	}
	return n.dir.remove(installFile)
}

// pendingInstall reads the marker of an installation that a crash cut short, nil if there is none.
func (n *Node) pendingInstall() (*install, error) {
	b, err := n.dir.readFile(installFile)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var i install
	if err := json.Unmarshal(b, &i); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrFormat, n.dir.join(installFile), err)
	}
	return &i, nil
}

// floor is the raft index that a state store must have come to for this node's raft log to continue it.
func (n *Node) floor() (uint64, error) {
	first, err := n.log.FirstIndex()
	if first == 0 { // empty, and says what comes next
		first = n.log.NextIndex()
	}
	return first - 1, err
}

// errClosing: the node closes, and nothing was begun.
var errClosing = errors.New("the node is closing")

// restartRaft stops raft, has something done to log and state that raft may not see, and starts it anew. Once begun it goes through to the end:
// Close waits for it. If it fails half-way the process ends: a node without raft is of no use, and the next start finds either state whole. An error
// of between leaves log and state as they were.
func (n *Node) restartRaft(ctx context.Context, between func(context.Context) error) error {
	n.restart.Lock()
	defer n.restart.Unlock()
	if n.closing || ctx.Err() != nil {
		return errClosing
	}
	ctx = context.WithoutCancel(ctx)
	n.restarting.Store(true)
	defer n.restarting.Store(false)
	stopping, cancel := context.WithTimeout(ctx, restartTimeout)
	defer cancel()
	if err := n.raft().Close(stopping); err != nil {
		n.die("raft does not stop for a catch-up", err)
	}
	ctx, cancel = context.WithTimeout(ctx, restartTimeout)
	defer cancel()
	failed := between(ctx)
	if err := n.startRaft(); err != nil {
		n.die("raft does not start after a catch-up", errors.Join(failed, err))
	}
	return failed
}

// progress is how far a catch-up is, and what all of them have fetched.
type progress struct {
	mu             sync.Mutex
	now            catchup.Progress
	entries, bytes uint64
}

// counting counts a catch-up, of whichever kind.
func (n *Node) counting(run func() error) error {
	n.counted.catchUps.Add(1)
	n.progress.begin()
	err := run()
	if err != nil {
		n.counted.catchUpsFailed.Add(1)
	}
	return err
}

// begin says that what is told next is of another catch-up.
func (p *progress) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now = catchup.Progress{}
}

func (p *progress) set(now catchup.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	last := p.now
	if now.Entries < last.Entries || now.Total != last.Total { // another export was taken; what was fetched for the one before is kept
		last = catchup.Progress{}
	}
	p.entries, p.bytes = p.entries+now.Entries-last.Entries, p.bytes+now.Bytes-last.Bytes
	p.now = now
}

// figures returns what was fetched since the start, and how many entries the catch-up still lacks.
func (p *progress) figures() (entries, bytes, missing uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.entries, p.bytes, p.now.Total - min(p.now.Entries, p.now.Total)
}
