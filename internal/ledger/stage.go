package ledger

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/cockroachdb/pebble/v2"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/merkle"
)

// ErrChunk marks a chunk that cannot be what a replica has stored: whoever sent it is damaged or lies. This node is as it was.
var ErrChunk = errors.New("chunk refused")

// ErrDiverged marks two histories of one log: this node or the one that it was to copy is damaged. This node is as it was.
var ErrDiverged = errors.New("this node and the export have different histories")

// MaxUnkept bounds the bytes that a log may have been Put and not Kept: they are in memory.
const MaxUnkept = 64 << 20

// Range is entries First to End - 1 of a log.
type Range struct {
	Log        uint32
	First, End uint64
}

// Stage collects what this replica lacks of an export, beside Apply, which goes on meanwhile. Chunks lie under their final keys beyond the
// heads, where nobody reads, with a record a log of how far they go; both are written in one batch, so a crash leaves a prefix, and the
// next Stage goes on from it. Nothing is visible until Install.
//
// A log is filled in order: Put some chunks, compare Head with a signed checkpoint, then Keep or Drop them. What is kept is believed until
// Install compares roots; Reset gives it up. Methods may be called from any goroutine.
type Stage struct {
	l       *Ledger
	e       *Export
	derived *registryCheck // registry, principal and command version by the entries of the system log

	mu   sync.Mutex
	logs map[uint32]*stagedLog // those that have to grow
}

// stagedLog is how far one log is. The edge is there only between its first and its last chunk: ten thousand logs may have to grow.
type stagedLog struct {
	LogState              // where it has to get
	at       Head         // as of what is kept
	edge     *merkle.Edge // as of what is kept; nil: to be read from the store

	// What was put and is not kept.
	unkept  []Chunk
	bytes   int
	now     Head
	nowEdge *merkle.Edge
	tiles   []merkle.Tile
	ids     []stagedID
	control []*lineage.Leaf // of the system log
}

type stagedID struct {
	key   string
	index uint64
}

// Stage begins, or goes on with, bringing this replica to an export. The error wraps ErrExport when the export cannot be installed here,
// ErrDiverged when it contradicts what is here, ErrQuarantined when this node is damaged: then it takes a new store. There must be one
// Stage at a time.
func (l *Ledger) Stage(e *Export) (*Stage, error) {
	if err := l.Quarantined(); err != nil {
		return nil, err
	}
	s := &Stage{l: l, e: e, logs: map[uint32]*stagedLog{}}
	ours, heads, err := l.asExport()
	if err != nil {
		return nil, l.found(err)
	}
	if s.derived, err = s.admit(ours); err != nil {
		return nil, err
	}
	for i := range e.Logs {
		g := e.Logs[i]
		h, ok := heads[g.Number]
		if !ok {
			h = emptyHead()
		}
		switch {
		case h == g.Head:
		case h.Size > g.Size:
			return nil, fmt.Errorf("%w: log %d has %d entries here, %d there", ErrDiverged, g.Number, h.Size, g.Size)
		case h.Size == g.Size:
			return nil, fmt.Errorf("%w: log %d at size %d has root %s here, %s there", ErrDiverged, g.Number, h.Size, h.Root, g.Root)
		default:
			s.logs[g.Number] = &stagedLog{LogState: g, at: h}
		}
	}
	if err := s.resume(); err != nil {
		return nil, l.found(err)
	}
	return s, nil
}

// asExport reads the state of this replica, be it empty, and its heads.
func (l *Ledger) asExport() (*Export, map[uint32]Head, error) {
	snapshot := l.db.NewSnapshot()
	e, err := exportOf(snapshot)
	if err := errors.Join(err, snapshot.Close()); errors.Is(err, ErrNotFound) {
		return &Export{ClusterID: l.o.ClusterID, CommandVersion: firstCommandVersion}, nil, nil
	} else if err != nil {
		return nil, nil, err
	}
	heads := make(map[uint32]Head, len(e.Logs))
	for i := range e.Logs {
		heads[e.Logs[i].Number] = e.Logs[i].Head
	}
	return e, heads, nil
}

// admit says whether the export may follow what is here, and returns what is registered here.
func (s *Stage) admit(ours *Export) (*registryCheck, error) {
	e := s.e
	switch {
	case e.ClusterID != s.l.o.ClusterID:
		return nil, fmt.Errorf("%w: it is of cluster %s, this node of %s", ErrExport, e.ClusterID, s.l.o.ClusterID)
	case e.CommandVersion < firstCommandVersion || e.CommandVersion > MaxCommandVersion:
		return nil, fmt.Errorf("%w: commands of version %d are in use, this program knows %d; upgrade it", ErrExport, e.CommandVersion, MaxCommandVersion)
	case e.Index < ours.Index || e.Term < ours.Term || e.ConfigurationIndex < ours.ConfigurationIndex || e.ConfigurationIndex > e.Index:
		return nil, fmt.Errorf("%w: it is as of raft index %d (term %d, configuration %d), this node at %d (%d, %d)", ErrExport,
			e.Index, e.Term, e.ConfigurationIndex, ours.Index, ours.Term, ours.ConfigurationIndex)
	case e.Index == ours.Index && e.Digest != ours.Digest:
		return nil, fmt.Errorf("%w: decisions up to raft index %d: here %s, there %s", ErrDiverged, e.Index, ours.Digest, e.Digest)
	case e.Bindings != ours.Bindings: // no entry changes them yet
		return nil, fmt.Errorf("%w: access bindings of version %d, the entries give %d", ErrExport, e.Bindings, ours.Bindings)
	case ours.Local != "" && e.Local != ours.Local:
		return nil, fmt.Errorf("%w: local principal %q, here %q", ErrDiverged, e.Local, ours.Local)
	}
	here := &registryCheck{logs: map[uint32]Log{}, local: ours.Local, raises: int(ours.CommandVersion - firstCommandVersion)}
	for i := range ours.Logs {
		g := ours.Logs[i].Log
		if theirs, ok := e.log(g.Number); !ok || theirs.Log != g {
			return nil, fmt.Errorf("%w: log %d is %+v here, %+v there", ErrDiverged, g.Number, g, theirs.Log)
		}
		here.logs[g.Number] = g
	}
	return here, nil
}

// resume takes over what an earlier stage has left.
func (s *Stage) resume() error {
	s.l.storing.Lock()
	defer s.l.storing.Unlock()
	for n, size := range s.l.staged {
		g := s.logs[n]
		if g == nil || size <= g.at.Size {
			continue // of another export, or overtaken
		}
		head := g.at.Size
		size = min(size, g.Size)
		last, err := s.walk(g, head, size)
		if err != nil {
			return err
		}
		if g.edge, err = s.l.edgeAt(g.Kind, n, size); err != nil {
			return err
		}
		g.at = Head{size, g.edge.Root(), last}
		s.finished(g)
	}
	return nil
}

// walk reads staged entries again: for the time of the last one, and in the system log for what its control entries say.
func (s *Stage) walk(g *stagedLog, first, end uint64) (recordedAt int64, err error) {
	if g.Number != SystemLog {
		first = end - 1
	}
	err = s.l.storedAs(g.Kind, g.Number, first, end, false, func(e *Entry) error {
		recordedAt = e.RecordedAt
		if g.Number != SystemLog {
			return nil
		}
		leaf, err := lineage.ParseLeaf(e.Leaf)
		if err != nil {
			return corrupt("%w", err)
		}
		if leaf.Kind != lineage.KindControl {
			return nil
		}
		return s.derived.read(SystemLog, leaf)
	})
	return recordedAt, err
}

// Export returns what the stage leads to.
func (s *Stage) Export() *Export { return s.e }

// Missing returns what has still to be fetched, by log number.
func (s *Stage) Missing() []Range {
	s.mu.Lock()
	defer s.mu.Unlock()
	var missing []Range
	for n, g := range s.logs {
		if at := s.reached(g); at.Size < g.Size {
			missing = append(missing, Range{n, at.Size, g.Size})
		}
	}
	slices.SortFunc(missing, func(a, b Range) int { return int(int64(a.Log) - int64(b.Log)) })
	return missing
}

// Head returns how far a log is, what was put and not kept included. The second result is false for a log that does not change.
func (s *Stage) Head(log uint32) (Head, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.logs[log]
	if g == nil {
		return Head{}, false
	}
	return s.reached(g), true
}

// reached returns how far a log is.
func (s *Stage) reached(g *stagedLog) Head {
	if len(g.unkept) > 0 {
		return g.now
	}
	return g.at
}

// Put takes the next chunk of a log, checks all of it that can be checked without its neighbours - that it is whole, follows what is there,
// and that its leaves and the bodies that they commit to fit each other - and adds its leaves to the tree. The stage keeps what c refers
// to until Keep or Drop. Errors wrap ErrChunk if the chunk is to blame; the log is then as it was.
func (s *Stage) Put(log uint32, c Chunk) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.logs[log]
	if g == nil {
		return fmt.Errorf("%w: log %d does not change", ErrChunk, log)
	}
	at := s.reached(g)
	end := c.First + uint64(c.Count)
	switch {
	case c.First != at.Size || c.Count < 1 || c.Count > chunkEntries || end > g.Size:
		return fmt.Errorf("%w: log %d: entries [%d, %d), expected some from %d to %d", ErrChunk, log, c.First, end, at.Size, g.Size)
	case g.bytes+c.Bytes() > MaxUnkept:
		return fmt.Errorf("log %d: more than %d bytes were put and not kept", log, MaxUnkept)
	}
	entries, control, err := s.check(g, &c, at.RecordedAt)
	if err != nil {
		return fmt.Errorf("%w: log %d: %w", ErrChunk, log, err)
	}
	if g.nowEdge == nil {
		if g.edge == nil {
			if g.edge, err = s.l.edgeAt(g.Kind, log, g.at.Size); err != nil {
				return s.l.found(err)
			}
			if root := g.edge.Root(); root != g.at.Root {
				return s.l.found(corrupt("log %d at size %d: recorded root %s, stored entries and tiles give %s", log, g.at.Size, g.at.Root, root))
			}
		}
		g.nowEdge = g.edge.Clone()
	}
	for i := range entries {
		g.nowEdge.Append(merkle.LeafHash(entries[i].Leaf), func(t merkle.Tile) { g.tiles = append(g.tiles, t) })
		g.ids = append(g.ids, stagedID{string(appendEventKey(nil, log, entries[i].EventID, entries[i].Principal)), entries[i].Index})
	}
	g.unkept, g.bytes, g.control = append(g.unkept, c), g.bytes+c.Bytes(), append(g.control, control...)
	g.now = Head{end, g.nowEdge.Root(), entries[0].RecordedAt}
	return nil
}

// check reads the entries of a chunk; each has its event id, whatever the kind of the log. In the system log it returns the leaves of control
// entries too.
func (s *Stage) check(g *stagedLog, c *Chunk, recordedAt int64) (entries []Entry, control []*lineage.Leaf, err error) {
	entries = make([]Entry, c.Count)
	leaves, bodies := cursor{b: c.Leaves}, cursor{b: c.Bodies}
	for i := range entries {
		e := &entries[i]
		*e = leaves.storedLeaf(g.Kind)
		e.Index = c.First + uint64(i)
		if leaves.bad {
			return nil, nil, fmt.Errorf("the leaf of entry %d is cut short", e.Index)
		}
		if err := bodies.entryBody(e); err != nil {
			return nil, nil, fmt.Errorf("the body of entry %d: %w", e.Index, err)
		}
		if e.RecordedAt < recordedAt || i > 0 && e.RecordedAt != recordedAt {
			return nil, nil, fmt.Errorf("entry %d is of %d, what is before it of %d", e.Index, e.RecordedAt, recordedAt)
		}
		recordedAt = e.RecordedAt
		if g.Kind == lineage.OpaqueLog {
			continue
		}
		leaf, err := entryLeaf(g.cluster(s.l.o.ClusterID), e)
		if err != nil {
			return nil, nil, fmt.Errorf("entry %d: %w", e.Index, err)
		}
		e.EventID = leaf.EventID
		if g.Number == SystemLog && leaf.Kind == lineage.KindControl {
			control = append(control, leaf)
		}
	}
	if !leaves.done() || !bodies.done() {
		return nil, nil, fmt.Errorf("the chunk at %d has more than its %d entries", c.First, c.Count)
	}
	return entries, control, nil
}

// Drop forgets what was put and not kept.
func (s *Stage) Drop(log uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g := s.logs[log]; g != nil {
		g.drop()
	}
}

func (g *stagedLog) drop() {
	g.unkept, g.bytes, g.now, g.nowEdge, g.tiles, g.ids, g.control = nil, 0, Head{}, nil, nil, nil, nil
}

// Keep writes what was put. It is durable after the next flush of the store, as everything is. Errors wrap ErrChunk if the chunks are to
// blame: an event id that was there already, or control entries that make no sense; they are then dropped.
func (s *Stage) Keep(log uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.logs[log]
	if g == nil || len(g.unkept) == 0 {
		return nil
	}
	defer g.drop()
	if err := s.l.Quarantined(); err != nil {
		return err
	}
	derived := s.derived
	if len(g.control) > 0 {
		derived = derived.clone()
	}
	for _, leaf := range g.control {
		if err := derived.read(SystemLog, leaf); err != nil {
			return fmt.Errorf("%w: %w", ErrChunk, err)
		}
	}
	s.l.storing.Lock()
	defer s.l.storing.Unlock()
	head, err := headIn(s.l.db, log)
	if err != nil {
		return s.l.found(err)
	}
	if head.Size < g.now.Size { // else Apply has written all of it meanwhile
		if err := s.write(g, head.Size); err != nil {
			return err
		}
	}
	g.at, g.edge, s.derived = g.now, g.nowEdge, derived
	s.finished(g)
	return nil
}

// write puts what was put into the store. The storing lock is held.
func (s *Stage) write(g *stagedLog, head uint64) (err error) {
	slices.SortFunc(g.ids, func(a, b stagedID) int {
		if a.key < b.key {
			return -1
		}
		if a.key > b.key {
			return 1
		}
		return 0
	})
	if err := s.newIDs(g, head); err != nil {
		return s.l.found(err)
	}
	b := s.l.db.NewBatchWithSize(g.bytes + g.bytes/8 + 4096)
	defer func() { err = errors.Join(err, b.Close()) }()
	var key []byte
	set := func(k, v []byte) {
		if err == nil {
			err = b.Set(k, v, nil)
		}
	}
	for i := range g.unkept {
		key = appendChunkKey(key[:0], tagLeaves, g.Number, g.unkept[i].First)
		set(key, g.unkept[i].Leaves)
	}
	for i := range g.unkept {
		key = appendChunkKey(key[:0], tagBodies, g.Number, g.unkept[i].First)
		set(key, g.unkept[i].Bodies)
	}
	value := make([]byte, 0, merkle.TileWidth*merkle.HashSize)
	for i := range g.tiles {
		value = value[:0]
		for j := range g.tiles[i].Hashes {
			value = append(value, g.tiles[i].Hashes[j][:]...)
		}
		key = appendTileKey(key[:0], g.Number, g.tiles[i].ID)
		set(key, value)
	}
	for i := range g.ids {
		set([]byte(g.ids[i].key), binary.BigEndian.AppendUint64(nil, g.ids[i].index))
	}
	size := max(g.now.Size, s.l.staged[g.Number])
	set(logKey(tagStaged, g.Number), encodeStaged(size))
	if err == nil {
		err = b.Commit(pebble.NoSync)
	}
	if err != nil {
		s.l.o.Die("the state store refuses a write", err)
		return err
	}
	s.l.mu.Lock()
	s.l.staged[g.Number] = size
	s.l.mu.Unlock()
	return nil
}

// newIDs makes sure that no event id that was put, they are sorted, is there already: it would lead to the new entry from then on. What
// Apply has written meanwhile is there under the same index.
func (s *Stage) newIDs(g *stagedLog, head uint64) (err error) {
	prefix := logKey(tagEventID, g.Number)
	it, err := s.l.db.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: after(prefix)})
	if err != nil {
		return storeErr(err)
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	x := EventIDs{it: it}
	for i := range g.ids {
		if i > 0 && g.ids[i].key == g.ids[i-1].key {
			return fmt.Errorf("%w: log %d: entries %d and %d have one event id", ErrChunk, g.Number, g.ids[i-1].index, g.ids[i].index)
		}
		if !it.SeekGE([]byte(g.ids[i].key)) {
			if err := iteratorErr(it); err != nil {
				return err
			}
			continue
		}
		if string(it.Key()) != g.ids[i].key {
			continue
		}
		index, err := x.index()
		if err != nil {
			return err
		}
		if index != g.ids[i].index || index >= head {
			return fmt.Errorf("%w: log %d: entry %d has the event id of entry %d", ErrChunk, g.Number, g.ids[i].index, index)
		}
	}
	return nil
}

// finished lets go of the edge of a log that is complete.
func (s *Stage) finished(g *stagedLog) {
	if g.at.Size == g.Size {
		g.edge = nil
	}
}
