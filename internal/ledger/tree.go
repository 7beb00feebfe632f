package ledger

import (
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/merkle"
)

// Tree is a log's tree at one size: immutable, for any number of readers. It is the merkle.TileReader from which proofs are made: full
// tiles come from the store, the partial right edge from memory.
type Tree struct {
	l    *Ledger
	log  uint32
	head Head
	view merkle.View
}

// Head returns size, root and recording time.
func (t *Tree) Head() Head { return t.head }

// Log returns the number of the log.
func (t *Tree) Log() uint32 { return t.log }

// Edge returns an edge that may grow on its own: the proposer's speculative one.
func (t *Tree) Edge() *merkle.Edge { return t.view.Edge() }

// ReadTile implements merkle.TileReader.
func (t *Tree) ReadTile(id merkle.TileID, width int) ([]merkle.Hash, error) {
	if p, ok := t.view.PartialTile(id); ok {
		if width > len(p) {
			return nil, fmt.Errorf("tile %d at level %d has %d of %d hashes at size %d", id.Index, id.Level, len(p), width, t.head.Size)
		}
		return p, nil
	}
	if full := t.head.Size >> (merkle.TileHeight * (uint(id.Level) + 1)); id.Index >= full {
		return nil, fmt.Errorf("tile %d at level %d of a tree of size %d: %w", id.Index, id.Level, t.head.Size, ErrNotFound)
	}
	tile, err := t.l.fullTile(t.log, id)
	return tile, t.l.found(err)
}

// RootAt returns the root of the tree at an earlier size.
func (t *Tree) RootAt(size uint64) (merkle.Hash, error) {
	if size > t.head.Size {
		return merkle.Hash{}, fmt.Errorf("size %d is beyond the tree of %d: %w", size, t.head.Size, ErrNotFound)
	}
	if size == t.head.Size {
		return t.head.Root, nil
	}
	return merkle.RootAt(size, t)
}

// fullTile reads a stored tile.
func (l *Ledger) fullTile(log uint32, id merkle.TileID) ([]merkle.Hash, error) {
	v, closer, err := l.db.Get(appendTileKey(make([]byte, 0, 16), log, id))
	if err != nil {
		if isNotFound(err) {
			return nil, fmt.Errorf("%w: tile %d at level %d of log %d is missing", ErrCorrupt, id.Index, id.Level, log)
		}
		return nil, storeErr(err)
	}
	if len(v) != merkle.TileWidth*merkle.HashSize {
		return nil, errors.Join(fmt.Errorf("%w: tile %d at level %d of log %d has %d bytes", ErrCorrupt, id.Index, id.Level, log, len(v)), closer.Close())
	}
	hashes := make([]merkle.Hash, merkle.TileWidth)
	for i := range hashes {
		hashes[i] = merkle.Hash(v[i*merkle.HashSize:])
	}
	return hashes, closer.Close()
}

// Tree returns the published tree of a log. The first use of a log since the start rebuilds its right edge, from at most 255 entries
// and 255 tiles a level, and compares the root with the recorded head: if they differ, the error wraps ErrCorrupt and the node is
// quarantined.
func (l *Ledger) Tree(log uint32) (*Tree, error) {
	l.mu.RLock()
	t, quarantine := l.trees[log], l.quarantine
	_, known := l.registry[log]
	l.mu.RUnlock()
	switch {
	case quarantine != nil:
		return nil, quarantine
	case t != nil:
		return t, nil
	case !known:
		return nil, fmt.Errorf("log number %d: %w", log, ErrNotFound)
	}
	t, err := l.loadTree(log)
	return t, l.found(err)
}

// loadTree publishes the stored tree of a log. Nobody waits for its reads: Apply loads a tree before it extends it, so whoever finds
// one published in the meantime has one that is not older. Only an installation moves heads of trees that are not loaded; what was read
// beside one is read again.
func (l *Ledger) loadTree(log uint32) (*Tree, error) {
	for {
		l.mu.RLock()
		installs := l.installs
		l.mu.RUnlock()
		edge, head, err := l.restore(log)
		t, done := l.publish(log, installs, edge, head, err)
		if done {
			return t, err
		}
	}
}

func (l *Ledger) publish(log uint32, installs uint64, edge *merkle.Edge, head Head, err error) (t *Tree, done bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if installs != l.installs {
		return nil, false
	}
	if err != nil {
		return nil, true
	}
	if t := l.trees[log]; t != nil {
		return t, true
	}
	t = &Tree{l: l, log: log, head: head, view: edge.View()}
	l.edges[log], l.trees[log] = edge, t
	return t, true
}

// restore rebuilds the right edge of a log from what is stored.
func (l *Ledger) restore(log uint32) (*merkle.Edge, Head, error) {
	l.mu.RLock()
	kind := l.registry[log].Kind
	l.mu.RUnlock()
	head, err := headIn(l.db, log)
	if err != nil {
		return nil, Head{}, err
	}
	edge, err := l.edgeAt(kind, log, head.Size)
	if err != nil {
		return nil, Head{}, err
	}
	if root := edge.Root(); root != head.Root {
		return nil, Head{}, fmt.Errorf("%w: log %d at size %d: recorded root %s, stored entries and tiles give %s", ErrCorrupt, log, head.Size, head.Root, root)
	}
	return edge, head, nil
}

// headIn reads the head of a log; one that has no entry yet has none stored.
func headIn(r pebble.Reader, log uint32) (Head, error) {
	v, ok, err := get(r, logKey(tagHead, log))
	if err != nil || !ok {
		return emptyHead(), err
	}
	return parseHead(v)
}

// edgeAt rebuilds the right edge of a log at a size up to which entries are stored, published or not.
func (l *Ledger) edgeAt(kind lineage.LogKind, log uint32, size uint64) (*merkle.Edge, error) {
	return merkle.RestoreEdge(size,
		func(first, n uint64) ([]merkle.Hash, error) {
			hashes := make([]merkle.Hash, 0, n)
			err := l.storedAs(kind, log, first, first+n, false, func(e *Entry) error {
				hashes = append(hashes, merkle.LeafHash(e.Leaf))
				return nil
			})
			return hashes, err
		},
		func(id merkle.TileID) ([]merkle.Hash, error) { return l.fullTile(log, id) })
}

func isNotFound(err error) bool { return errors.Is(err, pebble.ErrNotFound) }

// storeErr classifies an error of the store.
func storeErr(err error) error {
	if pebble.IsCorruptionError(err) {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return fmt.Errorf("state store: %w", err)
}
