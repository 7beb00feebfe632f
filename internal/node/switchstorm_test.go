package node

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// cutter is a disk in memory that is copied as a power cut would leave it, at the file operations that move a node's state: from the writing of the
// mark of an installation on.
type cutter struct {
	mem *vfs.MemFS

	mu    sync.Mutex
	seed  uint64
	left  int // operations to copy at
	ops   int
	found []cut
}

// cut is what a power cut left.
type cut struct {
	disk  *vfs.MemFS
	where string
}

// windowOps is how many operations from the mark on are looked at: the switch, and the first entries of the log after it.
const windowOps = 48

func (c *cutter) disk() vfs.FS {
	return errorfs.Wrap(c.mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind.ReadOrWrite() != errorfs.OpIsWrite {
			return nil
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if strings.HasPrefix(path.Base(op.Path), installFile) && c.left == 0 && op.Kind == errorfs.OpCreate {
			c.left, c.ops = windowOps, 0
		}
		if c.left == 0 {
			return nil
		}
		c.left--
		c.ops++
		c.seed++
		percent := []int{0, 100, 50}[c.ops%3]
		c.found = append(c.found, cut{
			c.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rand.New(rand.NewPCG(c.seed, 1))}),
			fmt.Sprintf("%d operations after the mark (%v of %s), keeping %d %%", c.ops, op.Kind, path.Base(op.Path), percent),
		})
		return nil
	}))
}

// take returns what was found so far, and forgets it.
func (c *cutter) take() []cut {
	c.mu.Lock()
	defer c.mu.Unlock()
	found := c.found
	c.found, c.left = nil, 0
	return found
}

// enough reports whether all of the operations after a mark were looked at.
func (c *cutter) enough() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.found) >= windowOps
}

// TestSwitchStorm cuts the power of a node at the file operations of an installation after a catch-up, of a first one, and of a swap of state stores.
// Whatever is left starts, follows, and is whole.
func TestSwitchStorm(t *testing.T) {
	every := 4
	if testing.Short() {
		every = 12
	}
	if fullStorm {
		every = 1
	}
	const victim = 2
	c := newTrio(t, 3)
	d := &cutter{mem: vfs.NewCrashableMem(), seed: 11}
	disk := d.disk()
	c.edit = func(i int, conf *Config) {
		conf.TrailingLogs, conf.SnapshotBytes, conf.SnapshotEvery = 4, 1, time.Second
		conf.Peer.Members = c.address[:2]
		if i == victim {
			conf.Peer.Members, conf.Peer.Join = nil, c.address[:2]
			conf.FS, conf.SlowWarn, conf.SlowKill = disk, -1, time.Hour
		}
	}
	cutLog := func() {
		last := c.leader().raft().Stats().Last
		eventually(t, "a log that was cut", func() bool {
			c.append(c.leader(), 5)
			return c.leader().raft().Stats().First > last+1
		})
	}
	lead := func() {
		if n := c.leader(); n == c.nodes[victim] {
			if err := n.raft().StepDown(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "another leader", func() bool { return c.leader() != n })
		}
	}
	check := func(what string) {
		t.Helper()
		eventually(t, "enough power cuts", func() bool {
			c.append(c.leader(), 1)
			return d.enough()
		})
		c.settled()
		found := d.take()
		mine := disk
		c.stop(victim)
		for i := len(what) % every; i < len(found); i += every {
			disk = found[i].disk
			c.start(victim)
			c.append(c.leader(), 1)
			c.settled()
			if err := c.nodes[victim].Ledger().Check(t.Context()); err != nil {
				t.Errorf("%s, %s: %v", what, found[i].where, err)
			}
			eventually(t, "end of the mark", func() bool { p, err := c.nodes[victim].pendingInstall(); return p == nil && err == nil })
			lead()
			c.stop(victim)
			if t.Failed() {
				t.Fatalf("%s, %s", what, found[i].where)
			}
		}
		disk = mine
		c.start(victim)
		c.settled()
		lead()
		d.take()
	}
	c.start(0, 1)
	eventually(t, "two voters", func() bool { return voters(c.nodes[0]) == 2 })
	c.append(c.leader(), 100)
	cutLog()
	c.start(victim)
	eventually(t, "three voters", func() bool { return voters(c.nodes[0]) == 3 })
	c.settled()
	lead()
	check("first installation")

	c.stop(victim)
	c.append(c.leader(), 100)
	cutLog()
	d.take()
	c.start(victim)
	c.append(c.leader(), 20)
	c.settled()
	lead()
	check("catch-up")

	d.take()
	c.nodes[victim].Ledger().Quarantine(errors.New("for a test"))
	eventually(t, "repair", func() bool { return c.nodes[victim].Ledger().Quarantined() == nil })
	c.append(c.leader(), 20)
	c.settled()
	lead()
	check("repair")
}
