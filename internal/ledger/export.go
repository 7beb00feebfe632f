package ledger

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/merkle"
)

const exportVersion = 1

// MaxExportLogs bounds the logs of an export, so that a length that somebody made up allocates nothing large. A node is to carry 10^5 logs;
// their heads and registry entries are about 35 MB.
const MaxExportLogs = 1 << 17

// Export is the state of all logs at one applied position: what a replica that is to be there has to have. Everything in it but position,
// configuration and digest follows from entries and is compared with them on installation; the digest is for peers to confirm.
type Export struct {
	ClusterID lineage.ID
	Position
	Digest         merkle.Hash // chain digest over all decisions up to Index
	Bindings       uint64      // version of the access bindings
	CommandVersion uint8       // in use
	Local          string      // principal of callers as long as there is no access control
	Logs           []LogState  // by number
}

// LogState is a log and its head.
type LogState struct {
	Log
	Head
}

// ErrExport marks an export that cannot be decoded, or not be installed here: it is of another cluster, older than what is here, or says
// what its own entries do not say.
var ErrExport = errors.New("export refused")

// Encode returns the encoding of e: about 350 bytes a log.
func (e *Export) Encode() []byte {
	b := append(make([]byte, 0, 256+len(e.Configuration)+400*len(e.Logs)), exportVersion)
	b = append(b, e.ClusterID[:]...)
	b = binary.BigEndian.AppendUint64(b, e.Index)
	b = binary.BigEndian.AppendUint64(b, e.Term)
	b = binary.BigEndian.AppendUint64(b, e.ConfigurationIndex)
	b = binary.BigEndian.AppendUint32(b, uint32(len(e.Configuration)))
	b = append(b, e.Configuration...)
	b = append(b, e.Digest[:]...)
	b = binary.BigEndian.AppendUint64(b, e.Bindings)
	b = append(b, e.CommandVersion)
	b = appendText8(b, e.Local)
	b = binary.BigEndian.AppendUint32(b, uint32(len(e.Logs)))
	for i := range e.Logs {
		b = e.Logs[i].Log.append(b)
		b = e.Logs[i].Head.append(b)
	}
	return seal(b)
}

// ParseExport decodes an export. Errors wrap ErrExport.
func ParseExport(b []byte) (*Export, error) {
	c, err := unseal("export", b)
	if err != nil {
		return nil, fmt.Errorf("%w: the checksum is wrong", ErrExport)
	}
	if v := c.u8(); v != exportVersion {
		return nil, fmt.Errorf("%w: version %d, this program knows %d; upgrade it", ErrExport, v, exportVersion)
	}
	e := &Export{ClusterID: c.id(), Position: Position{Index: c.u64(), Term: c.u64(), ConfigurationIndex: c.u64()}}
	e.Configuration = append([]byte(nil), c.bytes32()...)
	e.Digest, e.Bindings, e.CommandVersion, e.Local = c.hash(), c.u64(), c.u8(), c.text8()
	n := c.u32()
	if n > MaxExportLogs {
		return nil, fmt.Errorf("%w: %d logs", ErrExport, n)
	}
	for i := uint32(0); i < n && !c.bad; i++ {
		s := LogState{c.log(), c.head()}
		if i > 0 && e.Logs[i-1].Number >= s.Number {
			return nil, fmt.Errorf("%w: log %d after log %d", ErrExport, s.Number, e.Logs[i-1].Number)
		}
		e.Logs = append(e.Logs, s)
	}
	if !c.done() {
		return nil, fmt.Errorf("%w: cut short or followed by other bytes", ErrExport)
	}
	return e, nil
}

// log returns the state of a log.
func (e *Export) log(n uint32) (LogState, bool) {
	i, ok := slices.BinarySearchFunc(e.Logs, n, func(s LogState, n uint32) int { return int(int64(s.Number) - int64(n)) })
	if !ok {
		return LogState{}, false
	}
	return e.Logs[i], true
}

// Export returns the state of all logs as of the newest applied position, read at one instant. The error wraps ErrNotFound when nothing
// has been applied yet, ErrQuarantined when this node's state is not to be relied upon.
func (l *Ledger) Export() (e *Export, err error) {
	if err := l.Quarantined(); err != nil {
		return nil, err
	}
	snapshot := l.db.NewSnapshot()
	defer func() { err = errors.Join(err, snapshot.Close()) }()
	e, err = exportOf(snapshot)
	return e, l.found(err)
}

func exportOf(r pebble.Reader) (*Export, error) {
	v, ok, err := get(r, appliedKey)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, fmt.Errorf("applied record: %w", ErrNotFound)
	}
	a, err := parseApplied(v)
	if err != nil {
		return nil, err
	}
	e := &Export{
		ClusterID: a.cluster, Position: Position{a.index, a.term, a.configIndex, a.config},
		Digest: a.digest, Bindings: a.bindings, CommandVersion: a.commandVersion(),
	}
	if v, ok, err := get(r, localKey); err != nil {
		return nil, err
	} else if ok {
		if e.Local, err = parseLocal(v); err != nil {
			return nil, err
		}
	}
	heads, err := headsIn(r)
	if err != nil {
		return nil, err
	}
	err = scanPrefix(r, registryPrefix, func(k, v []byte) error {
		g, err := parseLog(v)
		h, ok := heads[g.Number]
		if !ok {
			h = emptyHead()
		}
		e.Logs = append(e.Logs, LogState{g, h})
		return err
	})
	return e, err
}

// headsIn reads the heads of all logs.
func headsIn(r pebble.Reader) (map[uint32]Head, error) {
	heads := map[uint32]Head{}
	err := scanPrefix(r, headPrefix, func(k, v []byte) error {
		if len(k) != 5 {
			return corrupt("head key of %d bytes", len(k))
		}
		h, err := parseHead(v)
		heads[binary.BigEndian.Uint32(k[1:])] = h
		return err
	})
	return heads, err
}

// stagedIn reads the staged records of all logs.
func stagedIn(r pebble.Reader) (map[uint32]uint64, error) {
	staged := map[uint32]uint64{}
	err := scanPrefix(r, stagedPrefix, func(k, v []byte) error {
		if len(k) != 5 {
			return corrupt("staged key of %d bytes", len(k))
		}
		size, err := parseStaged(v)
		staged[binary.BigEndian.Uint32(k[1:])] = size
		return err
	})
	return staged, err
}

// Chunk is entries of one log, First to First + Count - 1, as they are stored. All replicas have the same chunks, because a command is cut
// into chunks in one way; so chunks go from one to another verbatim.
type Chunk struct {
	First          uint64
	Count          int // 1 to 16
	Leaves, Bodies []byte
}

// Bytes returns the size of the chunk's contents.
func (c *Chunk) Bytes() int { return len(c.Leaves) + len(c.Bodies) }

// Chunks calls fn for the chunks that hold the entries [first, end) of a log, in order and without gaps: the first one may begin before
// first, the last one reach beyond end. What fn is given is valid until it returns; its error ends the walk and is returned. The range must
// lie within the published tree, else the error wraps ErrNotFound.
func (l *Ledger) Chunks(log uint32, first, end uint64, fn func(Chunk) error) error {
	t, err := l.Tree(log)
	if err != nil {
		return err
	}
	if first > end || end > t.head.Size {
		return fmt.Errorf("entries [%d, %d), the log has %d: %w", first, end, t.head.Size, ErrNotFound)
	}
	l.mu.RLock()
	kind := l.registry[log].Kind
	l.mu.RUnlock()
	return l.found(l.walkChunks(kind, log, first, end, fn))
}

func (l *Ledger) walkChunks(kind lineage.LogKind, log uint32, first, end uint64, fn func(Chunk) error) (err error) {
	if first >= end {
		return nil
	}
	leaves, err := l.chunks(tagLeaves, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, leaves.it.Close()) }()
	bodies, err := l.chunks(tagBodies, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bodies.it.Close()) }()
	if err := errors.Join(leaves.seek(first), bodies.seek(first)); err != nil {
		return err
	}
	for {
		c := Chunk{First: leaves.index, Leaves: leaves.chunk.b, Bodies: bodies.chunk.b}
		c.Count = countLeaves(kind, c.Leaves)
		switch {
		case bodies.index != c.First:
			return corrupt("log %d has leaves at %d and bodies at %d", log, c.First, bodies.index)
		case c.Count == 0:
			return corrupt("the chunk of entry %d of log %d is cut short", c.First, log)
		}
		next := c.First + uint64(c.Count)
		if next > first { // else the chunk of first is missing, which the next one shows
			if err := fn(c); err != nil {
				return err
			}
		}
		if next >= end {
			return nil
		}
		if err := errors.Join(leaves.follow(next), bodies.follow(next)); err != nil {
			return err
		}
	}
}

// countLeaves returns the number of leaves in a chunk, 0 if it is not whole leaves.
func countLeaves(kind lineage.LogKind, leaves []byte) (n int) {
	c := cursor{b: leaves}
	for ; len(c.b) > 0; n++ {
		if c.storedLeaf(kind); c.bad {
			return 0
		}
	}
	return n
}
