package ledger

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/cockroachdb/pebble/v2"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/merkle"
)

// LogEntry is a committed raft entry: a command, or raft's encoding of a membership.
type LogEntry struct {
	Index, Term   uint64
	Configuration bool
	Data          []byte
}

// Decision is what Apply did with a command. It is part of the chain digest.
type Decision uint8

// Decisions. A refused command changes nothing but the applied record; the proposer recomposes it from applied state.
const (
	Accepted         Decision = 1
	RefusedBefore    Decision = 2 // composed on another state: stale after a change of leader
	RefusedAfter     Decision = 3 // its root is not the root of its entries
	RefusedTime      Decision = 4 // recorded_at would go back
	RefusedBindings  Decision = 5 // authorised against older access bindings
	RefusedMalformed Decision = 6 // a control entry that makes no sense
	RefusedVersion   Decision = 7 // of a version above the one in use, and no raise to it
)

func (d Decision) String() string {
	switch d {
	case Accepted:
		return "accepted"
	case RefusedBefore:
		return "refused: composed on another state"
	case RefusedAfter:
		return "refused: wrong root"
	case RefusedTime:
		return "refused: recording time goes back"
	case RefusedBindings:
		return "refused: older access bindings"
	case RefusedMalformed:
		return "refused: malformed control entry"
	case RefusedVersion:
		return "refused: command version not in use"
	}
	return fmt.Sprintf("decision %d", uint8(d))
}

// Outcome is the result of one command.
type Outcome struct {
	Decision Decision
	trees    []*Tree
}

// Tree returns the tree of a log that the command touched, as it was right after the command; nil if it did not.
func (o *Outcome) Tree(log uint32) *Tree {
	for _, t := range o.trees {
		if t.log == log {
			return t
		}
	}
	return nil
}

// recentDigests remembers the newest decisions, so that a proposer's claim about one of them can be compared. 4,096 commands are
// several seconds at any rate; a proposer is never further behind than what is in flight.
//
// Peers ask for them too, so it has a lock of its own.
type recentDigests struct {
	mu   sync.Mutex
	ring [4096]Applied
}

func (r *recentDigests) add(index uint64, digest merkle.Hash) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ring[index%uint64(len(r.ring))] = Applied{Index: index, Digest: digest}
}

func (r *recentDigests) get(index uint64) (merkle.Hash, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.ring[index%uint64(len(r.ring))]
	return a.Digest, a.Index == index && a.Digest != merkle.Hash{}
}

// reset forgets everything but one decision.
func (r *recentDigests) reset(index uint64, digest merkle.Hash) {
	r.mu.Lock()
	r.ring = [4096]Applied{}
	r.mu.Unlock()
	r.add(index, digest)
}

// all returns what is remembered, by index.
func (r *recentDigests) all() (all []Applied) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range r.ring {
		if a.Digest != (merkle.Hash{}) {
			all = append(all, a)
		}
	}
	slices.SortFunc(all, func(a, b Applied) int { return cmp.Compare(a.Index, b.Index) })
	return all
}

// applyScratch is memory that Apply uses again.
type applyScratch struct{ key []byte }

// Apply applies committed entries in order and returns one result each: *Outcome for a command, nil for a membership or for an entry
// that was applied before, an error that wraps ErrQuarantined once this node is found damaged. Everything is in one Pebble batch
// together with the applied record, and is published only after the store has it.
func (l *Ledger) Apply(entries []LogEntry) []any {
	results := make([]any, len(entries))
	bytes := 0
	for i := range entries {
		bytes += len(entries[i].Data)
	}
	w := l.newWriter(bytes)
	for i := range entries {
		e := &entries[i]
		if w.stopped != nil {
			results[i] = w.stopped
			continue
		}
		if e.Index <= w.applied.index {
			continue
		}
		if e.Configuration {
			w.applied.configIndex, w.applied.config = e.Index, append([]byte(nil), e.Data...)
			w.applied.index, w.applied.term = e.Index, e.Term
			l.recent.add(e.Index, w.applied.digest)
			w.dirty = true
			continue
		}
		o, err := w.command(e)
		if err != nil {
			// What came before is as good as it was when it was decided; from here on nothing is.
			w.commit()
			l.enterQuarantine(err)
			w.stopped = l.Quarantined()
			results[i] = w.stopped
			continue
		}
		results[i] = o
	}
	w.commit()
	if w.lost {
		for i := range results {
			if results[i] != nil {
				results[i] = w.stopped
			}
		}
	}
	return results
}

// writer is the work of one Apply call. Its maps shadow the published state until commit.
type writer struct {
	l        *Ledger
	batch    *pebble.Batch // nil until something is written
	bytes    int           // expected size of the batch
	applied  appliedRecord
	edges    map[uint32]*merkle.Edge
	trees    map[uint32]*Tree
	registry map[uint32]Log
	local    string
	dirty    bool
	// What the control entries of the command at hand would change, kept apart until it is accepted: commit may run in between (reload).
	newLogs    []Log
	newLocal   string
	newVersion uint8
	// stopped is why nothing more is applied; lost says that something of this call was decided and not written.
	stopped error
	lost    bool
}

// newWriter returns the writer of an Apply call for commands of so many bytes: the batch that it makes is about as large.
func (l *Ledger) newWriter(bytes int) *writer {
	return &writer{
		l: l, bytes: bytes, applied: l.applied, local: l.local, stopped: l.Quarantined(),
		edges: map[uint32]*merkle.Edge{}, trees: map[uint32]*Tree{}, registry: map[uint32]Log{},
	}
}

// maxBatchKept is the size up to which a batch's memory is used again: a few commands of 1 MiB that were applied together.
const maxBatchKept = 4 << 20

// open returns the batch, beginning one if there is none.
func (w *writer) open() *pebble.Batch {
	if w.batch == nil {
		w.batch = w.l.db.NewBatchWithSize(w.bytes+4096, pebble.WithMaxRetainedSizeBytes(maxBatchKept))
	}
	return w.batch
}

// section is a section of a command that has been recomputed and found right.
type section struct {
	*Section
	kind  lineage.LogKind // of the log
	edge  *merkle.Edge
	head  Head
	tiles []merkle.Tile
}

// command decides on one command and puts it into the batch. An error means that this node must be quarantined.
func (w *writer) command(e *LogEntry) (*Outcome, error) {
	c, err := ParseCommand(e.Data)
	if err == nil && c.ClusterID != w.l.o.ClusterID {
		err = fmt.Errorf("%w: it is of cluster %s", ErrCommand, c.ClusterID)
	}
	if err != nil {
		// Skipping would make this replica differ from its peers without anybody noticing.
		w.l.o.Die(fmt.Sprintf("cannot apply raft entry %d", e.Index), err)
		return nil, err
	}
	if digest, ok := w.l.recent.get(c.Base.Index); ok && digest != c.Base.Digest {
		return nil, fmt.Errorf("the decisions up to raft index %d differ: here %s, at the proposer %s", c.Base.Index, digest, c.Base.Digest)
	}
	sections, decision, err := w.recompute(c)
	if err != nil {
		return nil, err
	}
	o := &Outcome{Decision: decision}
	if decision == Accepted {
		for i := range sections {
			if err := w.put(&sections[i]); err != nil {
				w.l.o.Die("the state store refuses a write", err)
				return nil, err
			}
			o.trees = append(o.trees, w.trees[sections[i].Log])
		}
	}
	w.applied.index, w.applied.term = e.Index, e.Term
	w.applied.digest = chainDigest(w.applied.digest, e, c, decision)
	w.l.recent.add(e.Index, w.applied.digest)
	w.dirty = true
	return o, nil
}

// chainDigest binds every decision to all decisions before it, so that divergence cannot pass for staleness.
func chainDigest(previous merkle.Hash, e *LogEntry, c *Command, d Decision) merkle.Hash {
	b := make([]byte, 0, 32+8+8+4+1+len(c.Sections)*(4+8+32))
	b = append(b, previous[:]...)
	b = binary.BigEndian.AppendUint64(b, e.Index)
	b = binary.BigEndian.AppendUint64(b, e.Term)
	b = binary.BigEndian.AppendUint32(b, c.CRC)
	b = append(b, byte(d))
	for i := range c.Sections {
		s := &c.Sections[i]
		b = binary.BigEndian.AppendUint32(b, s.Log)
		b = binary.BigEndian.AppendUint64(b, s.After.Size)
		b = append(b, s.After.Root[:]...)
	}
	return sha256.Sum256(b)
}

// recompute checks every section of a command against the state and extends the trees on the side. Nothing is kept unless all agree.
func (w *writer) recompute(c *Command) ([]section, Decision, error) {
	w.newLogs, w.newLocal, w.newVersion = w.newLogs[:0], "", 0
	refuse := func(d Decision) ([]section, Decision, error) { return nil, d, nil }
	if c.Version > w.applied.commandVersion() && !c.raises(w.applied.commandVersion()) {
		return refuse(RefusedVersion)
	}
	if c.Bindings < w.applied.bindings {
		return refuse(RefusedBindings)
	}
	sections := make([]section, 0, len(c.Sections))
	for i := range c.Sections {
		s := section{Section: &c.Sections[i]}
		for _, done := range sections {
			if done.Log == s.Log {
				return refuse(RefusedMalformed)
			}
		}
		if !w.control(c.Version, s.Section) {
			return refuse(RefusedMalformed)
		}
		if _, ok := w.log(s.Log); !ok {
			return refuse(RefusedBefore)
		}
		decision, err := w.extend(&s)
		if err != nil {
			return nil, 0, err
		}
		if decision != Accepted {
			return refuse(decision)
		}
		sections = append(sections, s)
	}
	for _, g := range w.newLogs {
		w.registry[g.Number] = g
	}
	if w.local == "" {
		w.local = w.newLocal
	}
	w.applied.version = max(w.applied.version, w.newVersion)
	return sections, Accepted, nil
}

// raises reports whether a command is the raise of the version in use to the next one: a version entry in a command of that version, and
// nothing else. What the new version allows thus comes strictly after it.
func (c *Command) raises(inUse uint8) bool {
	if c.Version != inUse+1 || len(c.Sections) != 1 || c.Sections[0].Log != SystemLog || len(c.Sections[0].Entries) != 1 || !c.Sections[0].Entries[0].Control {
		return false
	}
	leaf, err := lineage.ParseLeaf(c.Sections[0].Entries[0].Leaf)
	return err == nil && leaf.Kind == lineage.KindControl && lineage.ControlKind(leaf.Action) == lineage.ControlVersion
}

// extend recomputes one section. On any mismatch - before, after or in time - edge and head are first read again from what is stored:
// if they contradict each other, this node is damaged; else only the second comparison counts.
func (w *writer) extend(s *section) (Decision, error) {
	for attempt := 0; ; attempt++ {
		edge, head, err := w.state(s.Log)
		if err != nil {
			return 0, err
		}
		decision := s.try(edge, head)
		if decision == Accepted || attempt > 0 {
			return decision, nil
		}
		if err := w.reload(s.Log); err != nil {
			return 0, err
		}
	}
}

func (s *section) try(edge *merkle.Edge, head Head) Decision {
	if s.Before.Size != head.Size || s.Before.Root != head.Root || edge.Size() != head.Size || edge.Root() != head.Root {
		return RefusedBefore
	}
	if s.After.RecordedAt < head.RecordedAt {
		return RefusedTime
	}
	s.edge, s.tiles = edge.Clone(), s.tiles[:0]
	for i := range s.Entries {
		s.edge.Append(merkle.LeafHash(s.Entries[i].Leaf), func(t merkle.Tile) { s.tiles = append(s.tiles, t) })
	}
	s.head = Head{s.edge.Size(), s.edge.Root(), s.After.RecordedAt}
	if s.head.Root != s.After.Root {
		return RefusedAfter
	}
	return Accepted
}

// log returns a log as of this writer, the command at hand included.
func (w *writer) log(n uint32) (Log, bool) {
	for _, g := range w.newLogs {
		if g.Number == n {
			return g, true
		}
	}
	if g, ok := w.registry[n]; ok {
		return g, true
	}
	g, ok := w.l.registry[n]
	return g, ok
}

// state returns the edge and head of a log as of this writer.
func (w *writer) state(log uint32) (*merkle.Edge, Head, error) {
	if e, ok := w.edges[log]; ok {
		return e, w.trees[log].head, nil
	}
	if _, ok := w.l.registry[log]; !ok {
		return merkle.NewEdge(), emptyHead(), nil
	}
	t, err := w.l.Tree(log)
	if err != nil {
		return nil, Head{}, err
	}
	w.l.mu.RLock()
	defer w.l.mu.RUnlock()
	return w.l.edges[log], t.head, nil
}

// reload reads the edge of a log again from the store, and fails when that is not what the recorded head says.
func (w *writer) reload(log uint32) error {
	if _, ok := w.l.registry[log]; !ok && w.edges[log] == nil {
		return nil // nothing is stored yet
	}
	w.commit() // so that the store has everything that the head speaks of
	edge, head, err := w.l.restore(log)
	if err != nil {
		return err
	}
	w.edges[log] = edge
	w.trees[log] = &Tree{l: w.l, log: log, head: head, view: edge.View()}
	w.l.o.Logger.Warn("a command did not match; the edge was read again from the store and agrees with the recorded head", "log", log, "size", head.Size)
	return nil
}

// put writes a section into the batch, grouped by key range, because Pebble inserts ascending keys fastest.
func (w *writer) put(s *section) error {
	first := s.Before.Size
	g, _ := w.log(s.Log)
	s.kind = g.Kind
	for i := 0; i < len(s.Entries); i += chunkEntries {
		if err := w.putChunk(tagLeaves, s, i); err != nil {
			return err
		}
	}
	for i := 0; i < len(s.Entries); i += chunkEntries {
		if err := w.putChunk(tagBodies, s, i); err != nil {
			return err
		}
	}
	key := w.l.scratch.key
	for i := range s.tiles {
		key = appendTileKey(key[:0], s.Log, s.tiles[i].ID)
		op := w.open().SetDeferred(len(key), merkle.TileWidth*merkle.HashSize)
		copy(op.Key, key)
		for j := range s.tiles[i].Hashes {
			copy(op.Value[j*merkle.HashSize:], s.tiles[i].Hashes[j][:])
		}
		if err := op.Finish(); err != nil {
			return err
		}
	}
	for i := range s.Entries {
		e := &s.Entries[i]
		key = appendEventKey(key[:0], s.Log, e.EventID, e.Principal)
		op := w.open().SetDeferred(len(key), 8)
		copy(op.Key, key)
		binary.BigEndian.PutUint64(op.Value, first+uint64(i))
		if err := op.Finish(); err != nil {
			return err
		}
	}
	w.l.scratch.key = key
	w.edges[s.Log] = s.edge
	w.trees[s.Log] = &Tree{l: w.l, log: s.Log, head: s.head, view: s.edge.View()}
	return w.open().Set(logKey(tagHead, s.Log), s.head.encode(), nil)
}

func (w *writer) putChunk(tag byte, s *section, i int) error {
	entries := s.Entries[i:min(i+chunkEntries, len(s.Entries))]
	size := 0
	for j := range entries {
		if tag == tagLeaves {
			size += storedLeafBytes(s.kind, &entries[j])
		} else {
			size += storedBodyBytes(&entries[j])
		}
	}
	key := appendChunkKey(w.l.scratch.key[:0], tag, s.Log, s.Before.Size+uint64(i))
	w.l.scratch.key = key
	op := w.open().SetDeferred(len(key), size)
	copy(op.Key, key)
	v := op.Value[:0]
	for j := range entries {
		if tag == tagLeaves {
			v = appendStoredLeaf(v, s.kind, s.head.RecordedAt, &entries[j])
		} else {
			v = appendStoredBody(v, entries[j].Body)
		}
	}
	if len(v) != size {
		panic("ledger: bad arithmetic in putChunk")
	}
	return op.Finish()
}

// commit writes the batch and publishes what it holds. The writer can go on afterwards with an empty batch.
func (w *writer) commit() {
	if !w.dirty {
		return
	}
	l := w.l
	l.storing.Lock()
	defer l.storing.Unlock()
	if err := l.Quarantined(); err != nil {
		// Somebody else found this node damaged meanwhile. Nothing of this batch has been seen by anybody.
		w.stopped, w.lost, w.dirty = err, true, false
		return
	}
	err := w.open().Set(appliedKey, w.applied.encode(), nil)
	for n, g := range w.registry {
		if err == nil {
			err = w.batch.Set(logKey(tagRegistry, n), g.encode(), nil)
		}
	}
	if err == nil && w.local != l.local {
		err = w.batch.Set(localKey, encodeLocal(w.local), nil)
	}
	overtaken := w.overtaken()
	for _, n := range overtaken {
		if err == nil {
			err = w.batch.Delete(logKey(tagStaged, n), nil)
		}
	}
	if err == nil {
		err = w.batch.Commit(pebble.NoSync)
	}
	if err == nil {
		err = w.batch.Close() // its memory is used again
	}
	if err != nil {
		// A local failure must not become a decision: the replicas would differ.
		l.o.Die("the state store refuses a write", err)
		return
	}
	l.applied = w.applied
	l.mu.Lock()
	for _, g := range w.registry {
		l.register(g)
	}
	maps.Copy(l.edges, w.edges)
	maps.Copy(l.trees, w.trees)
	l.local = w.local
	l.published = w.applied
	for _, n := range overtaken {
		delete(l.staged, n)
	}
	close(l.changed)
	l.changed = make(chan struct{})
	l.mu.Unlock()
	w.batch, w.dirty = nil, false
	clear(w.registry)
}

// overtaken returns the logs whose staged data are all applied now: the same keys were written with the same values. The storing lock is
// held.
func (w *writer) overtaken() (logs []uint32) {
	if len(w.l.staged) == 0 {
		return nil
	}
	for n, size := range w.l.staged {
		if t := w.trees[n]; t != nil && t.head.Size >= size {
			logs = append(logs, n)
		}
	}
	slices.Sort(logs)
	return logs
}

// control reads the control entries of a section of a command of some version: the registry and the principals of a ledger are entries of
// its system log. It reports whether they make sense.
func (w *writer) control(version uint8, s *Section) bool {
	for i := range s.Entries {
		if !s.Entries[i].Control {
			continue
		}
		leaf, err := lineage.ParseLeaf(s.Entries[i].Leaf)
		if err != nil || leaf.Kind != lineage.KindControl {
			return false
		}
		c := leaf.Control
		switch kind := lineage.ControlKind(leaf.Action); {
		case kind == lineage.ControlGenesis:
			// The genesis entry of the system log registers it; those of other logs repeat what their log entry said.
			if s.Before.Size != 0 || i != 0 {
				return false
			}
			if s.Log == SystemLog && !w.add(Log{SystemLog, c.LogName, c.Origin, c.LogKind, c.VKey, c.CreatedAt}) {
				return false
			}
		case s.Log != SystemLog:
			return false
		case kind == lineage.ControlLog:
			if c.LogNumber == SystemLog || !w.add(Log{c.LogNumber, c.LogName, c.Origin, c.LogKind, c.VKey, c.CreatedAt}) {
				return false
			}
		case kind == lineage.ControlPrincipal:
			w.newLocal = c.Principal
		case version < 2:
			return false
		case kind == lineage.ControlVersion:
			if version <= w.applied.commandVersion() { // it is no raise
				return false
			}
			w.newVersion = version
		case kind == lineage.ControlMember, kind == lineage.ControlRecovery:
			// What changed is in the body, for readers: the membership itself is raft's.
		default:
			return false
		}
	}
	return true
}

// add registers a log as of this writer, unless its number, name or origin is taken: two logs of one origin would be one key with two
// histories.
func (w *writer) add(g Log) bool {
	if _, taken := w.log(g.Number); taken || g.Name == "" || g.Origin == "" {
		return false
	}
	if _, taken := w.l.byName[g.Name]; taken {
		return false
	}
	if _, taken := w.l.byOrigin[g.Origin]; taken {
		return false
	}
	for _, other := range w.registry {
		if other.Name == g.Name || other.Origin == g.Origin {
			return false
		}
	}
	for _, other := range w.newLogs {
		if other.Name == g.Name || other.Origin == g.Origin {
			return false
		}
	}
	w.newLogs = append(w.newLogs, g)
	return true
}
