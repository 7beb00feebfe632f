package ledger

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/merkle"
)

// Check proves everything anew from the stored bytes: leaves are hashed, tiles, roots and heads recomputed, bodies opened with the
// leaves' commitments, names hashed with the logs' reference keys, event ids looked up, and the registry derived from the system log. It
// believes nothing that is in memory. The error names the first fault of each log and wraps ErrCorrupt if the store is at fault; ctx's
// error ends it early. Everything is as of one instant: entries that are appended meanwhile are not looked at. It reads every byte once, and
// an event id per entry. What a catch-up has staged beyond the heads is no fault, as long as its record speaks of it.
func (l *Ledger) Check(ctx context.Context) (err error) {
	snapshot := l.db.NewSnapshot()
	defer func() { err = errors.Join(err, snapshot.Close()) }()
	e, err := exportOf(snapshot)
	if errors.Is(err, ErrNotFound) {
		e, err = &Export{CommandVersion: firstCommandVersion}, nil
	}
	if err != nil {
		return err
	}
	staged, err := stagedIn(snapshot)
	if err != nil {
		return err
	}
	derived := registryCheck{logs: map[uint32]Log{}}
	var faults []error
	for i := range e.Logs {
		g := &e.Logs[i]
		c := logCheck{l: l, store: snapshot, log: g.Number, kind: g.Kind, cluster: g.cluster(l.o.ClusterID), head: g.Head, end: max(g.Size, staged[g.Number]), derived: &derived}
		if err := c.run(ctx); err != nil {
			faults = append(faults, fmt.Errorf("log %d: %w", g.Number, err))
		}
		if ctx.Err() != nil {
			return errors.Join(faults...)
		}
	}
	if faults == nil { // else the registry is of little interest
		faults = append(faults, checkRegistry(snapshot, &derived, e))
	}
	return errors.Join(append(faults, checkPrefixes(snapshot, e, staged))...)
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrCorrupt}, args...)...)
}

// registryCheck is what the entries of the system log say of the logs, of the local principal, and of how often the command version was
// raised.
type registryCheck struct {
	logs   map[uint32]Log
	local  string
	raises int
}

func (r *registryCheck) clone() *registryCheck {
	return &registryCheck{maps.Clone(r.logs), r.local, r.raises}
}

func (r *registryCheck) read(log uint32, leaf *lineage.Leaf) error {
	c := leaf.Control
	g := Log{c.LogNumber, c.LogName, c.Origin, c.LogKind, c.VKey, c.CreatedAt}
	switch kind := lineage.ControlKind(leaf.Action); {
	case kind == lineage.ControlGenesis && log == SystemLog:
		g.Number = SystemLog
		r.logs[SystemLog] = g
	case kind == lineage.ControlGenesis:
		g.Number = log
		if r.logs[log] != g {
			return corrupt("its genesis entry says %+v, the system log says %+v", g, r.logs[log])
		}
	case kind == lineage.ControlLog && log == SystemLog:
		if _, twice := r.logs[g.Number]; twice {
			return corrupt("log number %d is given twice", g.Number)
		}
		r.logs[g.Number] = g
	case kind == lineage.ControlPrincipal && log == SystemLog && r.local == "":
		r.local = c.Principal
	case kind == lineage.ControlPrincipal && log == SystemLog:
	case kind == lineage.ControlVersion && log == SystemLog:
		r.raises++
	case (kind == lineage.ControlMember || kind == lineage.ControlRecovery) && log == SystemLog:
	default:
		return corrupt("a control entry of kind %s has no place here", kind)
	}
	return nil
}

// checkRegistry compares the registry, as stored, with what its entries say.
func checkRegistry(store pebble.Reader, derived *registryCheck, e *Export) error {
	err := scanPrefix(store, registryPrefix, func(k, v []byte) error {
		g, err := parseLog(v)
		if err == nil && !bytes.Equal(k, logKey(tagRegistry, g.Number)) {
			err = corrupt("log %d is registered under key %x", g.Number, k)
		}
		return err
	})
	if err != nil {
		return err
	}
	for i := range e.Logs {
		if g := e.Logs[i].Log; derived.logs[g.Number] != g {
			return corrupt("log %d is registered as %+v, the system log says %+v", g.Number, g, derived.logs[g.Number])
		}
	}
	switch {
	case len(derived.logs) != len(e.Logs):
		return corrupt("the system log has %d logs, the registry %d", len(derived.logs), len(e.Logs))
	case e.Local != derived.local:
		return corrupt("the local principal is %q, the system log says %q", e.Local, derived.local)
	case int(e.CommandVersion) != firstCommandVersion+derived.raises:
		return corrupt("commands of version %d are in use, the system log says %d", e.CommandVersion, firstCommandVersion+derived.raises)
	}
	return nil
}

// checkPrefixes looks for keys that belong to nothing: it steps from one pair of tag and log to the next.
func checkPrefixes(store pebble.Reader, e *Export, staged map[uint32]uint64) (err error) {
	it, err := store.NewIter(nil)
	if err != nil {
		return storeErr(err)
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for ok := it.First(); ok; {
		k := it.Key()
		if bytes.Equal(k, appliedKey) || bytes.Equal(k, localKey) {
			ok = it.Next()
			continue
		}
		if len(k) < 5 || k[0] != tagRegistry && k[0] != tagHead && k[0] != tagStaged && (k[0] < tagLeaves || k[0] > tagEventID) {
			return corrupt("key %x is of no known kind", k)
		}
		log := binary.BigEndian.Uint32(k[1:])
		_, registered := e.log(log)
		// A log that was created beyond what is here has nothing but what was staged.
		if _, ahead := staged[log]; !registered && (!ahead || k[0] == tagHead) {
			return corrupt("key %x belongs to a log that does not exist", k)
		}
		ok = it.SeekGE(after(k[:5]))
	}
	return iteratorErr(it)
}

// logCheck checks one log up to a size, and that there is nothing beyond what is staged.
type logCheck struct {
	l       *Ledger
	store   pebble.Reader // as of which
	log     uint32
	kind    lineage.LogKind
	cluster lineage.ID // another one than the ledger's for a frozen log
	head    Head
	end     uint64 // of what is staged, or of what is there
	derived *registryCheck

	edge       *merkle.Edge
	recordedAt int64
	refKey     *lineage.Key
	tileErr    error
	eventKey   []byte
}

func (c *logCheck) run(ctx context.Context) error {
	c.edge = merkle.NewEdge()
	if c.head.Size == 0 && c.kind != lineage.OpaqueLog {
		return corrupt("it has no genesis entry")
	}
	err := c.l.storedAs(c.kind, c.log, 0, c.head.Size, true, func(e *Entry) error {
		if e.Index%scanStride == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		if err := c.entry(e); err != nil {
			return fmt.Errorf("entry %d: %w", e.Index, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if root := c.edge.Root(); root != c.head.Root {
		return corrupt("its root at size %d is recorded as %s, its entries give %s", c.head.Size, c.head.Root, root)
	}
	if c.recordedAt != c.head.RecordedAt {
		return corrupt("its newest entry is of %d, its head says %d", c.recordedAt, c.head.RecordedAt)
	}
	if err := c.countEventIDs(); err != nil {
		return err
	}
	return c.tails()
}

func (c *logCheck) entry(e *Entry) error {
	c.edge.Append(merkle.LeafHash(e.Leaf), c.tile)
	if c.tileErr != nil {
		return c.tileErr
	}
	if e.RecordedAt < c.recordedAt {
		return corrupt("recorded at %d, its predecessor at %d", e.RecordedAt, c.recordedAt)
	}
	c.recordedAt = e.RecordedAt
	if c.kind == lineage.OpaqueLog {
		return c.eventID(e)
	}
	leaf, err := entryLeaf(c.cluster, e)
	if err != nil {
		return corrupt("%w", err)
	}
	if leaf.Kind == lineage.KindControl && c.cluster == c.l.o.ClusterID { // those of a predecessor say nothing of this ledger
		if err := c.derived.read(c.log, leaf); err != nil {
			return err
		}
	}
	e.EventID = leaf.EventID
	if err := c.eventID(e); err != nil || e.Erased {
		return err
	}
	return c.names(leaf, e)
}

// entryLeaf reads the leaf of an entry of a lineage log and holds it to what is stored beside it, to its place, and to its body.
func entryLeaf(cluster lineage.ID, e *Entry) (*lineage.Leaf, error) {
	leaf, err := lineage.ParseLeaf(e.Leaf)
	if err != nil {
		return nil, err
	}
	genesis := leaf.Kind == lineage.KindControl && lineage.ControlKind(leaf.Action) == lineage.ControlGenesis
	switch {
	case leaf.Principal != e.Principal || leaf.Authn != e.Authn || leaf.RecordedAt != e.RecordedAt:
		return nil, fmt.Errorf("stored as of %q, %s, at %d; the leaf says %q, %s, at %d", e.Principal, e.Authn, e.RecordedAt, leaf.Principal, leaf.Authn, leaf.RecordedAt)
	case genesis != (e.Index == 0):
		return nil, errors.New("a log begins with its genesis entry and has one")
	case genesis && leaf.Control.ClusterID != cluster:
		return nil, fmt.Errorf("it is of cluster %s", leaf.Control.ClusterID)
	}
	if e.Erased {
		return leaf, nil
	}
	return leaf, lineage.OpenBody(leaf, e.Body)
}

func (c *logCheck) eventID(e *Entry) error {
	c.eventKey = appendEventKey(c.eventKey[:0], c.log, e.EventID, e.Principal)
	v, ok, err := c.l.get(c.eventKey)
	switch {
	case err != nil:
		return err
	case !ok || len(v) != 8:
		return corrupt("event id %s leads nowhere", e.EventID)
	case binary.BigEndian.Uint64(v) != e.Index:
		return corrupt("event id %s leads to index %d", e.EventID, binary.BigEndian.Uint64(v))
	}
	return nil
}

// names checks that the hashes in the leaf are those of the names in the body: only holders of the reference key can.
func (c *logCheck) names(leaf *lineage.Leaf, e *Entry) error {
	named := false
	for _, p := range e.Body {
		switch p.Kind {
		case lineage.PartReferenceKey:
			if len(p.Content) != len(lineage.Key{}) || e.Index != 0 {
				return corrupt("a reference key of %d bytes at index %d", len(p.Content), e.Index)
			}
			key := lineage.Key(p.Content)
			c.refKey = &key
		case lineage.PartIdentifiers:
			named = true
			x, err := lineage.ParseIdentifiers(p.Content)
			if err == nil {
				err = x.Fits(leaf)
			}
			if err != nil {
				return corrupt("%w", err)
			}
			if c.refKey == nil {
				return corrupt("names, and no reference key to hash them with")
			}
			if err := c.hashes(leaf, &x); err != nil {
				return err
			}
		case lineage.PartDocuments:
			if _, err := lineage.ParseDocuments(p.Content); err != nil {
				return corrupt("%w", err)
			}
		}
	}
	if leaf.HasNames() && !named {
		return corrupt("the leaf has name hashes, the body has no names")
	}
	return nil
}

func (c *logCheck) hashes(leaf *lineage.Leaf, x *lineage.Identifiers) error {
	if leaf.Job != nil && *leaf.Job != lineage.HashName(c.refKey, x.Job) {
		return corrupt("the hash of the job's name is wrong")
	}
	if leaf.Target != nil && *leaf.Target != lineage.HashName(c.refKey, x.Target) {
		return corrupt("the hash of the target's name is wrong")
	}
	for i := range x.References {
		if x.References[i].Name.IsZero() {
			continue
		}
		f := &leaf.References[i]
		got := f.Identity
		if got.Algorithm != lineage.NameHMAC {
			got = f.Aliases[len(f.Aliases)-1] // Fits has seen to it that it is there
		}
		if want := lineage.HashName(c.refKey, x.References[i].Name); got.Value != string(want[:]) {
			return corrupt("the hash of the name of references[%d] is wrong", i)
		}
	}
	return nil
}

// tile compares a tile that the walk has completed with the stored one.
func (c *logCheck) tile(t merkle.Tile) {
	stored, err := c.l.fullTile(c.log, t.ID)
	if err == nil && !slices.Equal(stored, t.Hashes[:]) {
		err = corrupt("%s is not what its entries give", merkle.TilePath(t.ID, merkle.TileWidth))
	}
	c.tileErr = errors.Join(c.tileErr, err)
}

// countEventIDs makes sure that there is no event id that the walk did not look up, but for what is staged.
func (c *logCheck) countEventIDs() error {
	var here, ahead uint64
	err := scanPrefix(c.store, logKey(tagEventID, c.log), func(k, v []byte) error {
		if len(v) != 8 {
			return corrupt("event id record of %d bytes", len(v))
		}
		if binary.BigEndian.Uint64(v) < c.head.Size {
			here++
		} else {
			ahead++
		}
		return nil
	})
	if err == nil && (here != c.head.Size || ahead != c.end-c.head.Size) {
		err = corrupt("%d event ids for %d entries, %d for %d that are staged", here, c.head.Size, ahead, c.end-c.head.Size)
	}
	return err
}

// tails looks at where leaves, bodies and tiles end.
func (c *logCheck) tails() error {
	for _, tag := range []byte{tagLeaves, tagBodies} {
		if err := c.nothingFrom(appendChunkKey(nil, tag, c.log, c.end), after(logKey(tag, c.log))); err != nil {
			return err
		}
	}
	for level := range uint8(merkle.TileLevels) {
		first := merkle.TileID{Level: level, Index: c.end >> (merkle.TileHeight * (uint(level) + 1))}
		if err := c.nothingFrom(appendTileKey(nil, c.log, first), after(append(logKey(tagTile, c.log), level))); err != nil {
			return err
		}
	}
	return nil
}

func (c *logCheck) nothingFrom(lower, upper []byte) (err error) {
	it, err := c.store.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return storeErr(err)
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	if it.First() {
		return corrupt("key %x is beyond entry %d", it.Key(), c.end)
	}
	return iteratorErr(it)
}
