package ledger

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/merkle"
)

// Check proves everything anew from the stored bytes: leaves are hashed, tiles, roots and heads recomputed, bodies opened with the
// leaves' commitments, names hashed with the logs' reference keys, event ids looked up, and the registry derived from the system log. It
// believes nothing that is in memory. The error names the first fault of each log and wraps ErrCorrupt if the store is at fault; ctx's
// error ends it early. Entries that are appended meanwhile are not looked at. It reads every byte once, and an event id per entry.
func (l *Ledger) Check(ctx context.Context) error {
	heads, err := l.storedHeads()
	if err != nil {
		return err
	}
	derived := registryCheck{logs: map[uint32]Log{}}
	var faults []error
	for _, n := range slices.Sorted(maps.Keys(heads)) {
		c := logCheck{l: l, log: n, head: heads[n], derived: &derived}
		if err := c.run(ctx); err != nil {
			faults = append(faults, fmt.Errorf("log %d: %w", n, err))
		}
		if ctx.Err() != nil {
			return errors.Join(faults...)
		}
	}
	if faults == nil { // else the registry is of little interest
		faults = append(faults, l.checkRegistry(&derived, heads))
	}
	return errors.Join(append(faults, l.checkPrefixes(heads))...)
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrCorrupt}, args...)...)
}

// storedHeads reads the heads of all logs at one instant, since a check may run beside appends.
func (l *Ledger) storedHeads() (map[uint32]Head, error) {
	heads := map[uint32]Head{}
	err := l.scanPrefix([]byte{tagHead}, func(k, v []byte) error {
		if len(k) != 5 {
			return corrupt("head key of %d bytes", len(k))
		}
		h, err := parseHead(v)
		heads[binary.BigEndian.Uint32(k[1:])] = h
		return err
	})
	return heads, err
}

// registryCheck is what the entries of the system log say of the logs and of the local principal.
type registryCheck struct {
	logs  map[uint32]Log
	local string
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
	default:
		return corrupt("a control entry of kind %s has no place here", kind)
	}
	return nil
}

// checkRegistry compares the registry, as stored, with what its entries say.
func (l *Ledger) checkRegistry(derived *registryCheck, heads map[uint32]Head) error {
	stored := map[uint32]Log{}
	err := l.scanPrefix(registryPrefix, func(k, v []byte) error {
		g, err := parseLog(v)
		if err == nil && !bytes.Equal(k, logKey(tagRegistry, g.Number)) {
			err = corrupt("log %d is registered under key %x", g.Number, k)
		}
		stored[g.Number] = g
		return err
	})
	if err != nil {
		return err
	}
	for n, g := range stored {
		// An appended log may be younger than the heads that were read.
		if _, checked := heads[n]; checked && derived.logs[n] != g {
			return corrupt("log %d is registered as %+v, the system log says %+v", n, g, derived.logs[n])
		}
	}
	for n := range derived.logs {
		if _, ok := stored[n]; !ok {
			return corrupt("the system log has a log %d that is not registered", n)
		}
	}
	local := ""
	if v, ok, err := l.get(localKey); err != nil {
		return err
	} else if ok {
		if local, err = parseLocal(v); err != nil {
			return err
		}
	}
	if local != derived.local {
		return corrupt("the local principal is %q, the system log says %q", local, derived.local)
	}
	return nil
}

// checkPrefixes looks for keys that belong to nothing: it steps from one pair of tag and log to the next.
func (l *Ledger) checkPrefixes(heads map[uint32]Head) (err error) {
	it, err := l.db.NewIter(nil)
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
		if len(k) < 5 || k[0] != tagRegistry && k[0] != tagHead && (k[0] < tagLeaves || k[0] > tagEventID) {
			return corrupt("key %x is of no known kind", k)
		}
		log := binary.BigEndian.Uint32(k[1:])
		if _, known := heads[log]; !known { // unless it was created meanwhile
			if _, registered, err := l.get(logKey(tagRegistry, log)); err != nil {
				return err
			} else if !registered {
				return corrupt("key %x belongs to a log that does not exist", k)
			}
		}
		ok = it.SeekGE(after(k[:5]))
	}
	return it.Error()
}

// logCheck checks one log up to a size.
type logCheck struct {
	l       *Ledger
	log     uint32
	head    Head
	derived *registryCheck

	edge       *merkle.Edge
	recordedAt int64
	refKey     *lineage.Key
	tileErr    error
	eventKey   []byte
}

func (c *logCheck) run(ctx context.Context) error {
	c.edge = merkle.NewEdge()
	if c.head.Size == 0 {
		return corrupt("it has no genesis entry")
	}
	err := c.l.stored(c.log, 0, c.head.Size, true, func(e *Entry) error {
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
	return c.countEventIDs()
}

func (c *logCheck) entry(e *Entry) error {
	c.edge.Append(merkle.LeafHash(e.Leaf), c.tile)
	if c.tileErr != nil {
		return c.tileErr
	}
	leaf, err := lineage.ParseLeaf(e.Leaf)
	if err != nil {
		return corrupt("%w", err)
	}
	switch {
	case leaf.Principal != e.Principal || leaf.Authn != e.Authn || leaf.RecordedAt != e.RecordedAt:
		return corrupt("stored as of %q, %s, at %d; the leaf says %q, %s, at %d", e.Principal, e.Authn, e.RecordedAt, leaf.Principal, leaf.Authn, leaf.RecordedAt)
	case e.RecordedAt < c.recordedAt:
		return corrupt("recorded at %d, its predecessor at %d", e.RecordedAt, c.recordedAt)
	case (e.Index == 0) != (leaf.Kind == lineage.KindControl && lineage.ControlKind(leaf.Action) == lineage.ControlGenesis):
		return corrupt("a log begins with its genesis entry and has one")
	}
	c.recordedAt = e.RecordedAt
	if leaf.Kind == lineage.KindControl {
		if id := leaf.Control.ClusterID; e.Index == 0 && id != c.l.o.ClusterID {
			return corrupt("it is of cluster %s", id)
		}
		if err := c.derived.read(c.log, leaf); err != nil {
			return err
		}
	}
	if err := c.eventID(leaf, e); err != nil {
		return err
	}
	if e.Erased {
		return nil
	}
	if err := lineage.OpenBody(leaf, e.Body); err != nil {
		return corrupt("%w", err)
	}
	return c.names(leaf, e)
}

func (c *logCheck) eventID(leaf *lineage.Leaf, e *Entry) error {
	c.eventKey = appendEventKey(c.eventKey[:0], c.log, leaf.EventID, e.Principal)
	v, ok, err := c.l.get(c.eventKey)
	switch {
	case err != nil:
		return err
	case !ok || len(v) != 8:
		return corrupt("event id %s leads nowhere", leaf.EventID)
	case binary.BigEndian.Uint64(v) != e.Index:
		return corrupt("event id %s leads to index %d", leaf.EventID, binary.BigEndian.Uint64(v))
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

// countEventIDs makes sure that there is no event id that the walk did not look up. Those beyond the size are of entries to come.
func (c *logCheck) countEventIDs() error {
	var n uint64
	err := c.l.scanPrefix(logKey(tagEventID, c.log), func(k, v []byte) error {
		if len(v) != 8 {
			return corrupt("event id record of %d bytes", len(v))
		}
		if binary.BigEndian.Uint64(v) < c.head.Size {
			n++
		}
		return nil
	})
	if err == nil && n != c.head.Size {
		err = corrupt("%d event ids for %d entries", n, c.head.Size)
	}
	return err
}
