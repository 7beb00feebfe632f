package ledger

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/provledger/provledger/client/lineage"
)

// Entry is a stored entry.
type Entry struct {
	Index      uint64
	RecordedAt int64 // microseconds since the Unix epoch
	Principal  string
	Authn      lineage.Authn
	EventID    lineage.ID // in opaque logs; other leaves carry their own
	Leaf       []byte
	Body       []lineage.BodyPart // only if asked for
	Erased     bool
}

// Entry returns one entry. The error wraps ErrNotFound beyond the published tree.
func (l *Ledger) Entry(log uint32, index uint64, body bool) (Entry, error) {
	t, err := l.Tree(log)
	if err != nil {
		return Entry{}, err
	}
	if index >= t.head.Size {
		return Entry{}, fmt.Errorf("entry %d, the log has %d: %w", index, t.head.Size, ErrNotFound)
	}
	var found Entry
	err = l.stored(log, index, index+1, body, func(e *Entry) error {
		found = e.clone()
		return nil
	})
	return found, l.found(err)
}

func (e *Entry) clone() Entry {
	c := *e
	c.Leaf = append([]byte(nil), e.Leaf...)
	c.Body = make([]lineage.BodyPart, len(e.Body))
	for i, p := range e.Body {
		c.Body[i] = p
		c.Body[i].Content = append([]byte(nil), p.Content...)
	}
	return c
}

// Entries calls fn for the entries [first, end) in index order. What fn is given is valid until it returns. An error of fn ends the
// walk and is returned. The range must lie within the published tree.
func (l *Ledger) Entries(log uint32, first, end uint64, body bool, fn func(*Entry) error) error {
	t, err := l.Tree(log)
	if err != nil {
		return err
	}
	if first > end || end > t.head.Size {
		return fmt.Errorf("entries [%d, %d), the log has %d: %w", first, end, t.head.Size, ErrNotFound)
	}
	return l.found(l.stored(log, first, end, body, fn))
}

// chunks walks the chunks of one tag and checks that they follow each other without a gap.
type chunks struct {
	it    *pebble.Iterator
	log   uint32
	tag   byte
	next  uint64 // index that the next chunk must start at; set by seek
	chunk cursor
	index uint64 // of the next entry in chunk
}

func (l *Ledger) chunks(tag byte, log uint32) (*chunks, error) {
	prefix := logKey(tag, log)
	it, err := l.db.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: after(prefix)})
	if err != nil {
		return nil, storeErr(err)
	}
	return &chunks{it: it, log: log, tag: tag}, nil
}

// seek positions at the chunk that holds index.
func (c *chunks) seek(index uint64) error {
	c.next = index
	c.it.SeekLT(appendChunkKey(nil, c.tag, c.log, index+1))
	return c.load(true)
}

func (c *chunks) load(seeking bool) error {
	if !c.it.Valid() {
		if err := iteratorErr(c.it); err != nil {
			return err
		}
		return fmt.Errorf("%w: the chunk of entry %d of log %d is missing", ErrCorrupt, c.next, c.log)
	}
	first, err := chunkFirst(c.it.Key())
	if err != nil {
		return err
	}
	if !seeking && first != c.next {
		return fmt.Errorf("%w: log %d has a chunk at %d where %d was expected", ErrCorrupt, c.log, first, c.next)
	}
	v, err := c.it.ValueAndErr()
	if err != nil {
		return storeErr(err)
	}
	c.chunk, c.index = cursor{b: v}, first
	return nil
}

// more makes sure that the chunk holds the entry at c.index.
func (c *chunks) more() error {
	if len(c.chunk.b) > 0 {
		return nil
	}
	return c.follow(c.index)
}

// follow goes on to the next chunk, which has to begin at index.
func (c *chunks) follow(index uint64) error {
	c.next = index
	c.it.Next()
	return c.load(false)
}

// stored walks stored entries, whether or not they are published.
func (l *Ledger) stored(log uint32, first, end uint64, body bool, fn func(*Entry) error) error {
	l.mu.RLock()
	kind := l.registry[log].Kind
	l.mu.RUnlock()
	return l.storedAs(kind, log, first, end, body, fn)
}

// storedAs is stored for a log that is not registered yet.
func (l *Ledger) storedAs(kind lineage.LogKind, log uint32, first, end uint64, body bool, fn func(*Entry) error) (err error) {
	if first >= end {
		return nil
	}
	leaves, err := l.chunks(tagLeaves, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, leaves.it.Close()) }()
	var bodies *chunks
	if body {
		if bodies, err = l.chunks(tagBodies, log); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, bodies.it.Close()) }()
		if err := bodies.seek(first); err != nil {
			return err
		}
	}
	if err := leaves.seek(first); err != nil {
		return err
	}
	for leaves.index < end {
		if err := leaves.more(); err != nil {
			return err
		}
		e := leaves.chunk.storedLeaf(kind)
		e.Index = leaves.index
		leaves.index++
		if leaves.chunk.bad {
			return fmt.Errorf("%w: the chunk of entry %d of log %d is cut short", ErrCorrupt, e.Index, log)
		}
		if body {
			if err := bodies.readBody(&e); err != nil {
				return err
			}
		}
		if e.Index < first {
			continue
		}
		if err := fn(&e); err != nil {
			return err
		}
	}
	return nil
}

func (c *chunks) readBody(e *Entry) error {
	if err := c.more(); err != nil {
		return err
	}
	at := c.index
	c.index++
	if at != e.Index {
		return fmt.Errorf("%w: the body of entry %d of log %d is not where it belongs", ErrCorrupt, e.Index, c.log)
	}
	if err := c.chunk.entryBody(e); err != nil {
		return fmt.Errorf("%w: the body of entry %d of log %d: %w", ErrCorrupt, e.Index, c.log, err)
	}
	return nil
}

// entryBody reads the next body of a chunk into its entry; the contents alias the chunk.
func (c *cursor) entryBody(e *Entry) error {
	state, b := c.storedBody()
	switch {
	case c.bad:
		return errors.New("it is cut short")
	case state > bodyErased:
		return fmt.Errorf("its state is %d", state)
	case state == bodyErased && len(b) > 0:
		return fmt.Errorf("it was erased and has %d bytes", len(b))
	}
	if e.Erased = state == bodyErased; e.Erased {
		return nil
	}
	parts, rest, err := lineage.ParseBody(b)
	if err == nil && len(rest) > 0 {
		err = fmt.Errorf("%d bytes follow it", len(rest))
	}
	e.Body = parts
	return err
}

// ReferenceKey returns the key of a log's name hashes: a body part of its genesis entry.
func (l *Ledger) ReferenceKey(log uint32) (lineage.Key, error) {
	l.mu.RLock()
	key, ok := l.referenceOf[log]
	l.mu.RUnlock()
	if ok {
		return key, nil
	}
	e, err := l.Entry(log, 0, true)
	if err != nil {
		return lineage.Key{}, err
	}
	for _, p := range e.Body {
		if p.Kind == lineage.PartReferenceKey && len(p.Content) == len(key) {
			key = lineage.Key(p.Content)
			l.mu.Lock()
			l.referenceOf[log] = key
			l.mu.Unlock()
			return key, nil
		}
	}
	return lineage.Key{}, fmt.Errorf("log number %d has no reference key: %w", log, ErrNotFound)
}

// scanPrefix calls fn for every key with a prefix.
func (l *Ledger) scanPrefix(prefix []byte, fn func(k, v []byte) error) error {
	return scanPrefix(l.db, prefix, fn)
}

func scanPrefix(r pebble.Reader, prefix []byte, fn func(k, v []byte) error) (err error) {
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: after(prefix)})
	if err != nil {
		return storeErr(err)
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for it.First(); it.Valid(); it.Next() {
		v, err := it.ValueAndErr()
		if err != nil {
			return storeErr(err)
		}
		if err := fn(it.Key(), v); err != nil {
			return err
		}
	}
	return iteratorErr(it)
}

// iteratorErr returns what ended an iteration, if anything but its end did.
func iteratorErr(it *pebble.Iterator) error {
	if err := it.Error(); err != nil {
		return storeErr(err)
	}
	return nil
}

// EventIDs looks event ids up in one log through a single iterator, which costs a tenth of a Get each when ids come in order.
type EventIDs struct {
	it   *pebble.Iterator
	log  uint32
	size uint64
	key  []byte
}

// EventIDs opens the look-up of a log as of its published tree.
func (l *Ledger) EventIDs(log uint32) (*EventIDs, error) {
	t, err := l.Tree(log)
	if err != nil {
		return nil, err
	}
	prefix := logKey(tagEventID, log)
	it, err := l.db.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: after(prefix)})
	if err != nil {
		return nil, storeErr(err)
	}
	return &EventIDs{it: it, log: log, size: t.head.Size}, nil
}

// Lookup returns the index of the entry that principal recorded under id. An index at or beyond the tree is a miss: it belongs to data
// that were fetched ahead.
func (x *EventIDs) Lookup(id lineage.ID, principal string) (index uint64, ok bool, err error) {
	x.key = appendEventKey(x.key[:0], x.log, id, principal)
	if !x.it.SeekGE(x.key) || string(x.it.Key()) != string(x.key) {
		return 0, false, iteratorErr(x.it)
	}
	index, err = x.index()
	return index, err == nil && index < x.size, err
}

func (x *EventIDs) index() (uint64, error) {
	v, err := x.it.ValueAndErr()
	if err != nil {
		return 0, storeErr(err)
	}
	if len(v) != 8 {
		return 0, fmt.Errorf("%w: event id record of %d bytes", ErrCorrupt, len(v))
	}
	return binary.BigEndian.Uint64(v), nil
}

// Newest calls fn for the records with the largest ids, in descending order, at most most of them. It reports whether there are more.
func (x *EventIDs) Newest(most int, fn func(id lineage.ID, principal string, index uint64)) (more bool, err error) {
	n := 0
	for x.it.Last(); x.it.Valid(); x.it.Prev() {
		if n == most {
			return true, nil
		}
		k := x.it.Key()
		if len(k) < 1+4+16 {
			return false, fmt.Errorf("%w: event id key of %d bytes", ErrCorrupt, len(k))
		}
		index, err := x.index()
		if err != nil {
			return false, err
		}
		if index < x.size {
			fn(lineage.ID(k[5:21]), string(k[21:]), index)
			n++
		}
	}
	return false, iteratorErr(x.it)
}

// Close releases the iterator.
func (x *EventIDs) Close() error { return x.it.Close() }

// ByEventID returns the indexes of the entries with an event id, ascending: one for each principal that used it.
func (l *Ledger) ByEventID(log uint32, id lineage.ID) (indexes []uint64, err error) {
	x, err := l.EventIDs(log)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, x.Close()) }()
	prefix := appendEventKey(nil, log, id, "")
	for x.it.SeekGE(prefix); x.it.Valid() && len(x.it.Key()) >= len(prefix) && string(x.it.Key()[:len(prefix)]) == string(prefix); x.it.Next() {
		index, err := x.index()
		if err != nil {
			return nil, err
		}
		if index < x.size {
			i := len(indexes)
			for i > 0 && indexes[i-1] > index {
				i--
			}
			indexes = append(indexes[:i], append([]uint64{index}, indexes[i:]...)...)
		}
	}
	return indexes, iteratorErr(x.it)
}
