package node

import (
	"errors"
	"fmt"
	"os"

	"github.com/provledger/provledger/internal/disk"
	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/raftlog"
)

// openBytes is what opening a ledger may write beside one segment of the raft log: the store's own books, and what is replayed and
// flushed again.
const openBytes = 16 << 20

// ErrNoLedger means a directory without a ledger, where Config.Existing asks for one.
var ErrNoLedger = errors.New("there is no ledger")

// ErrNoSpace means a disk that is too full.
var ErrNoSpace = errors.New("too little free space")

// Probe tells what Open would meet, and changes nothing: fresh says that there is no ledger yet. Errors are those that Open would return for
// the same reason; that another process has the directory is none of them.
func Probe(c Config) (fresh bool, err error) {
	c = c.withDefaults()
	d := &directory{fs: c.FS, path: c.Dir}
	switch fresh, err = d.look(); {
	case err != nil:
		return fresh, fmt.Errorf("ledger directory %s: %w", c.Dir, err)
	case fresh && c.Existing:
		return fresh, fmt.Errorf("%w in %s", ErrNoLedger, c.Dir)
	}
	return fresh, c.roomToOpen(fresh)
}

// appendBytes is the free space below which appends are refused: what is accepted can still be flushed.
func (c *Config) appendBytes() uint64 { return c.MinFreeBytes + 4*c.MemTableBytes }

// roomToOpen refuses what would fail half-way: opening writes even if it is only to read, and a new ledger that can record nothing is of no use.
func (c *Config) roomToOpen(fresh bool) error {
	least, what := uint64(openBytes), "opening a ledger, if only to read it, needs"
	if segment := c.SegmentBytes; segment > 0 {
		least += uint64(segment)
	} else {
		least += raftlog.DefaultSegmentBytes
	}
	if fresh {
		least, what = c.appendBytes(), "a new ledger needs"
	}
	dir := c.Dir
	for { // the file system of a directory to be made is that of the one above
		if _, err := c.FS.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			break
		}
		parent := c.FS.PathDir(dir)
		if parent == dir {
			break
		}
		dir = parent
	}
	free, err := disk.FreeBytes(c.FS, dir)
	if err != nil {
		c.Logger.Warn("cannot tell the free space", "err", err)
		return nil
	}
	if free < least {
		return fmt.Errorf("%w: %d MiB are free in %s, %s %d MiB", ErrNoSpace, free>>20, dir, what, least>>20)
	}
	return nil
}

// lookAtSpace refuses appends while the disk is nearly full, and logs when that begins and ends.
func (n *Node) lookAtSpace() {
	least := n.c.appendBytes()
	free, err := disk.FreeBytes(n.c.FS, n.c.Dir)
	n.free.Store(free)
	switch {
	case err != nil:
		n.c.Logger.Warn("cannot tell the free space", "err", err)
	case free < least:
		err := fmt.Errorf("%w: %w: %d MiB are free in %s, appends need %d MiB; free some space, it goes on by itself",
			ledger.ErrOverloaded, ErrNoSpace, free>>20, n.c.Dir, least>>20)
		if n.overloaded.Swap(&err) == nil {
			n.c.Logger.Warn("appends are refused: the disk is nearly full", "dir", n.c.Dir, "free_mib", free>>20, "needed_mib", least>>20)
		}
	case n.overloaded.Swap(nil) != nil:
		n.c.Logger.Info("appends are accepted again", "dir", n.c.Dir, "free_mib", free>>20)
	}
}
