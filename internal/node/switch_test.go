package node

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/consensus"
	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/raftlog"
)

// made makes a ledger of one node and returns its configuration.
func made(t *testing.T) Config {
	t.Helper()
	c := Config{
		Dir: t.TempDir(), MinFreeBytes: 1 << 20, MemTableBytes: 1 << 20, SegmentBytes: 1 << 20, Logger: slog.New(slog.DiscardHandler),
		Die: func(reason string, err error) { t.Errorf("died: %s: %v", reason, err) },
	}
	n, err := Open(t.Context(), c)
	if err == nil {
		err = n.Close(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func remove(t *testing.T, path ...string) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(path...)); err != nil {
		t.Fatal(err)
	}
}

// A raft directory that was emptied is as good as one that is gone: opening it would make a new one, and the node would vote again in terms in
// which it has voted (S12).
func TestEmptiedRaftDirectory(t *testing.T) {
	for _, also := range []string{"", stateDir} {
		c := made(t)
		remove(t, c.Dir, raftDir)
		if err := os.Mkdir(filepath.Join(c.Dir, raftDir), 0o700); err != nil {
			t.Fatal(err)
		}
		if also != "" {
			remove(t, c.Dir, also)
		}
		n, err := Open(t.Context(), c)
		if !errors.Is(err, ErrIdentity) {
			t.Errorf("opened: %v", err)
		}
		if err == nil {
			n.Close(t.Context())
		}
	}
}

// A new node may be stopped between the mark of its first installation and the installation.
func TestMarkOfNothing(t *testing.T) {
	c := made(t)
	remove(t, c.Dir, stateDir) // the log has all of it
	if err := os.WriteFile(filepath.Join(c.Dir, installFile), []byte(`{"swap":false}`), 0o600); err != nil {
		t.Fatal(err)
	}
	n, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close(t.Context())
	if _, err := os.Stat(filepath.Join(c.Dir, installFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the mark is there still: %v", err)
	}
}

// A log that was emptied to continue somewhere says so, and a state store that does not reach that is not enough (H10).
func TestEmptyLogWithoutState(t *testing.T) {
	c := made(t)
	log, err := raftlog.Open(raftlog.Options{Dir: filepath.Join(c.Dir, raftDir), SegmentBytes: c.SegmentBytes})
	if err == nil {
		err = errors.Join(consensus.ResetLog(log, consensus.Position{Index: 1000, Term: 7}), log.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	remove(t, c.Dir, stateDir)
	n, err := Open(t.Context(), c)
	if !errors.Is(err, ledger.ErrCorrupt) || !strings.Contains(err.Error(), "begins at 1001") {
		t.Errorf("opened: %v", err)
	}
	if err == nil {
		n.Close(t.Context())
	}
}

// A switch of raft instances is not begun by a node that closes, goes through once begun, and tells nobody a term meanwhile: the instance that has
// ended does not know what the next one has voted for.
func TestSwitchOfRaft(t *testing.T) {
	c := newTrio(t, 1)
	c.start(0)
	n := c.leader()
	ctx, cancel := context.WithCancel(t.Context())
	if (backend{n}).Term() == 0 {
		t.Error("no term before")
	}
	err := n.restartRaft(ctx, func(inner context.Context) error {
		cancel()
		if term := (backend{n}).Term(); term != 0 {
			t.Errorf("term %d is told while raft is stopped", term)
		}
		return inner.Err()
	})
	if err != nil {
		t.Error(err)
	}
	if err := n.restartRaft(ctx, func(context.Context) error { t.Error("begun"); return nil }); !errors.Is(err, errClosing) {
		t.Errorf("after the end of the context: %v", err)
	}
	c.append(c.leader(), 1)
	if (backend{n}).Term() == 0 {
		t.Error("no term after")
	}
}

// A node that is closed while it is repaired closes in good order, whatever the repair is at.
func TestCloseDuringRepair(t *testing.T) {
	c := newTrio(t, 3)
	c.start(0, 1, 2)
	eventually(t, "three voters", func() bool { return voters(c.nodes[0]) == 3 })
	c.append(c.leader(), 20)
	c.settled()
	for i := range 12 {
		at := i % 3
		c.nodes[at].Ledger().Quarantine(errors.New("for a test"))
		time.Sleep(time.Duration(i) * 15 * time.Millisecond)
		c.stop(at)
		c.start(at)
		c.append(c.leader(), 1)
		eventually(t, "repair", func() bool { return c.nodes[at].Ready() == nil }) // one at a time: they are each other's peers
	}
	c.settled()
}

// A quarantined node is one after a restart too, whatever its store looks like then (S13): until it has a new store.
func TestQuarantineOutlivesRestart(t *testing.T) {
	c := newTrio(t, 2)
	c.start(0, 1)
	eventually(t, "two voters", func() bool { return voters(c.nodes[0]) == 2 })
	c.append(c.leader(), 20)
	c.settled()
	at := 0
	for i, n := range c.nodes {
		if n != c.leader() {
			at = i
		}
	}
	c.stop(1 - at) // nobody to repair it from
	c.nodes[at].Ledger().Quarantine(errors.New("for a test"))
	eventually(t, "note", func() bool { _, err := c.nodes[at].dir.readFile(quarantineFile); return err == nil })
	c.stop(at)
	c.start(at)
	if err := c.nodes[at].Ledger().Quarantined(); err == nil || !strings.Contains(err.Error(), "for a test") {
		t.Errorf("quarantined: %v", err)
	}
	if _, err := (backend{c.nodes[at]}).Checkpoint(t.Context(), ledger.MainLog, 1); !errors.Is(err, ledger.ErrQuarantined) {
		t.Errorf("it signs: %v", err)
	}
	c.start(1 - at)
	eventually(t, "repair", func() bool { return c.nodes[at].Ready() == nil })
	if _, err := c.nodes[at].dir.readFile(quarantineFile); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the note is there still: %v", err)
	}
	c.append(c.leader(), 1)
	c.settled()
}

// A node that is elected while it is quarantined, which may take as long as all that it has to fetch, does not keep the cluster from appending.
func TestQuarantinedNodeDoesNotLead(t *testing.T) {
	c := newTrio(t, 3)
	c.start(0, 1, 2)
	eventually(t, "three voters", func() bool { return voters(c.nodes[0]) == 3 })
	c.append(c.leader(), 1)
	c.settled()
	leader := c.leader()
	var n *Node
	for _, x := range c.nodes {
		if x != leader {
			n = x
		}
	}
	n.Ledger().OnQuarantine(func(error) {}) // so that nothing repairs it
	n.Ledger().Quarantine(errors.New("for a test"))
	if err := leader.raft().Transfer(t.Context(), n.ID()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another leader", func() bool { return c.leader() != n })
	c.append(c.leader(), 1)
}

// A node is not ready before it has applied what was acknowledged before it started (H17): after a power cut its state may be much older.
func TestReadyAfterPowerCut(t *testing.T) {
	c := newTrio(t, 3)
	disks := []*vfs.MemFS{vfs.NewCrashableMem(), vfs.NewCrashableMem(), vfs.NewCrashableMem()}
	c.edit = func(i int, conf *Config) { conf.FS, conf.SlowWarn, conf.SlowKill = disks[i], -1, time.Hour }
	c.start(0, 1, 2)
	eventually(t, "three voters", func() bool { return voters(c.nodes[0]) == 3 })
	for range 4 {
		c.append(c.leader(), 20)
		c.settled()
		tree, err := c.leader().Ledger().Tree(ledger.MainLog)
		if err != nil {
			t.Fatal(err)
		}
		for i := range disks {
			disks[i] = disks[i].CrashClone(vfs.CrashCloneCfg{})
		}
		for i := range disks {
			c.stop(i)
		}
		c.start(0, 1, 2)
		for _, n := range c.nodes {
			for deadline := time.Now().Add(30 * time.Second); n.Ready() != nil; { // without a pause: it may be ready too early for a moment only
				if time.Now().After(deadline) {
					t.Fatalf("not ready: %v", n.Ready())
				}
			}
			if now, err := n.Ledger().Tree(ledger.MainLog); err != nil || now.Head().Size < tree.Head().Size {
				t.Errorf("a node is ready without the %d entries that there were: %v", tree.Head().Size, err)
			}
		}
	}
}

// Calls that do not end keep a damaged store open, and the new one must not be opened in its place.
func TestRepairWaitsForReaders(t *testing.T) {
	died := make(chan string, 1)
	c := newTrio(t, 1)
	c.edit = func(_ int, conf *Config) { conf.Die = func(reason string, _ error) { died <- reason } }
	c.start(0)
	n := c.leader()
	_, release, err := backend{n}.Ledger()
	if err != nil {
		t.Fatal(err)
	}
	old := n.core.Load()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := n.vacate(ctx, old, time.Minute); err == nil {
		t.Error("vacated while a peer reads")
	}
	go n.vacate(t.Context(), old, 50*time.Millisecond)
	select {
	case reason := <-died:
		t.Log(reason)
	case <-time.After(10 * time.Second):
		t.Error("a call that does not end stops the repair for ever")
	}
	if p, err := n.pendingInstall(); err != nil || p == nil || !p.Swap {
		t.Errorf("the next start would not put the new store in: %v, %v", p, err)
	}
	release()
	if err := n.vacate(t.Context(), old, time.Minute); err != nil {
		t.Error(err)
	}
	if err := n.dir.remove(installFile); err != nil {
		t.Error(err)
	}
}

// A node whose history is not that of its peers does not try to catch up for ever: it is quarantined, and gets a new state store.
func TestDivergedFollower(t *testing.T) {
	c := newTrio(t, 3)
	c.edit = func(_ int, conf *Config) {
		conf.TrailingLogs, conf.SnapshotBytes, conf.SnapshotEvery = 4, 1, time.Second
	}
	c.start(0, 1, 2)
	eventually(t, "three voters", func() bool { return voters(c.nodes[0]) == 3 })
	g, err := c.leader().Sequencer().CreateLog(t.Context(), "third", c.leader().Ledger().LocalPrincipal(), lineage.AuthnNone)
	if err != nil {
		t.Fatal(err)
	}
	c.append(c.leader(), 20)
	c.settled()
	away := 0
	for i, n := range c.nodes {
		if n != c.leader() {
			away = i
		}
	}
	last := c.nodes[away].raft().Stats().Last
	c.stop(away)
	// An empty log with the head of another one (docs/format-state.md): nobody looks at it before the log is used.
	state, err := pebble.Open(filepath.Join(c.dir, "n"+string(rune('0'+away)), stateDir), &pebble.Options{DisableWAL: true, FS: vfs.Default, Logger: quiet{}})
	if err != nil {
		t.Fatal(err)
	}
	key := binary.BigEndian.AppendUint32([]byte{0x03}, g.Number)
	main, closer, err := state.Get([]byte{0x03, 0, 0, 0, byte(ledger.MainLog)})
	if err != nil {
		t.Fatal(err)
	}
	forged := bytes.Clone(main)
	if err := errors.Join(closer.Close(), state.Set(key, forged, pebble.NoSync), state.Flush(), state.Close()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a log that was cut", func() bool {
		c.append(c.leader(), 5)
		return c.leader().raft().Stats().First > last+1
	})
	c.start(away)
	eventually(t, "repair", func() bool { return c.nodes[away].counted.quarantines.Load() > 0 && c.nodes[away].Ready() == nil })
	c.settled()
}

type quiet struct{}

func (quiet) Infof(string, ...any)      {}
func (quiet) Errorf(string, ...any)     {}
func (quiet) Fatalf(s string, _ ...any) { panic(s) }
