package ledger

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/merkle"
)

// Records are short, fixed layouts that end in a CRC32C over what precedes: Pebble checks its blocks, this catches a value that was
// wrong before it was stored.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func seal(b []byte) []byte { return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli)) }

func unseal(what string, b []byte) (*cursor, error) {
	n := len(b) - 4
	if n < 0 || crc32.Checksum(b[:n], castagnoli) != binary.BigEndian.Uint32(b[n:]) {
		return nil, fmt.Errorf("%w: the checksum of the %s record is wrong", ErrCorrupt, what)
	}
	return &cursor{b: b[:n]}, nil
}

// cursor reads fixed layouts with a sticky failure.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) take(n int) []byte {
	if n < 0 || n > len(c.b) {
		c.bad = true
	}
	if c.bad {
		return nil
	}
	p := c.b[:n:n]
	c.b = c.b[n:]
	return p
}

func (c *cursor) u8() uint8 {
	if p := c.take(1); p != nil {
		return p[0]
	}
	return 0
}

func (c *cursor) u16() uint16 {
	if p := c.take(2); p != nil {
		return binary.BigEndian.Uint16(p)
	}
	return 0
}

func (c *cursor) u32() uint32 {
	if p := c.take(4); p != nil {
		return binary.BigEndian.Uint32(p)
	}
	return 0
}

func (c *cursor) u64() uint64 {
	if p := c.take(8); p != nil {
		return binary.BigEndian.Uint64(p)
	}
	return 0
}

func (c *cursor) hash() (h merkle.Hash) { copy(h[:], c.take(len(h))); return h }
func (c *cursor) id() (id lineage.ID)   { copy(id[:], c.take(len(id))); return id }
func (c *cursor) text8() string         { return string(c.take(int(c.u8()))) }
func (c *cursor) bytes32() []byte       { return c.take(int(c.u32())) }
func (c *cursor) done() bool            { return !c.bad && len(c.b) == 0 }

func appendText8(b []byte, s string) []byte { return append(append(b, byte(len(s))), s...) }

const recordVersion = 1

// versionedApplied is the version of an applied record that says which command version is in use. While that is the first one the record is
// written without it, so that a program from before can still take the directory over again.
const versionedApplied = 2

// appliedRecord is written in the same batch as the data that it speaks of. Size and root of each log are in its head record.
type appliedRecord struct {
	index, term uint64
	digest      merkle.Hash
	cluster     lineage.ID
	bindings    uint64 // version of the access bindings
	configIndex uint64
	config      []byte // raft's encoding of the membership (H3)
	version     uint8  // of commands, in use; 0 stands for the first one
}

func (a *appliedRecord) commandVersion() uint8 { return max(a.version, firstCommandVersion) }

func (a *appliedRecord) public() Applied { return Applied{a.index, a.term, a.digest} }

func (a *appliedRecord) encode() []byte {
	b := make([]byte, 0, 128+len(a.config))
	if a.commandVersion() == firstCommandVersion {
		b = append(b, recordVersion)
	} else {
		b = append(b, versionedApplied, a.version)
	}
	b = binary.BigEndian.AppendUint64(b, a.index)
	b = binary.BigEndian.AppendUint64(b, a.term)
	b = append(b, a.digest[:]...)
	b = append(b, a.cluster[:]...)
	b = binary.BigEndian.AppendUint64(b, a.bindings)
	b = binary.BigEndian.AppendUint64(b, a.configIndex)
	b = binary.BigEndian.AppendUint32(b, uint32(len(a.config)))
	return seal(append(b, a.config...))
}

func parseApplied(b []byte) (a appliedRecord, err error) {
	c, err := unseal("applied", b)
	if err != nil {
		return a, err
	}
	version, inUse := c.u8(), uint8(firstCommandVersion)
	known := version == recordVersion
	if version == versionedApplied {
		inUse = c.u8()
		known = inUse > firstCommandVersion && inUse <= MaxCommandVersion
	}
	a = appliedRecord{index: c.u64(), term: c.u64(), digest: c.hash(), cluster: c.id(), bindings: c.u64(), configIndex: c.u64(), version: inUse}
	a.config = append([]byte(nil), c.bytes32()...)
	if version == versionedApplied && inUse > MaxCommandVersion {
		return a, fmt.Errorf("commands of version %d are in use, this program knows %d; upgrade it", inUse, MaxCommandVersion)
	}
	if !known || !c.done() {
		return a, fmt.Errorf("%w: applied record of version %d, %d bytes", ErrCorrupt, version, len(b))
	}
	return a, nil
}

func (h *Head) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, h.Size)
	b = append(b, h.Root[:]...)
	return binary.BigEndian.AppendUint64(b, uint64(h.RecordedAt))
}

func (c *cursor) head() Head { return Head{Size: c.u64(), Root: c.hash(), RecordedAt: int64(c.u64())} }

func (h *Head) encode() []byte { return seal(h.append(append(make([]byte, 0, 64), recordVersion))) }

func parseHead(b []byte) (h Head, err error) {
	c, err := unseal("head", b)
	if err != nil {
		return h, err
	}
	version := c.u8()
	h = c.head()
	if version != recordVersion || !c.done() {
		return h, fmt.Errorf("%w: head record of version %d, %d bytes", ErrCorrupt, version, len(b))
	}
	return h, nil
}

func (g *Log) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, g.Number)
	b = appendText8(b, g.Name)
	b = appendText8(b, g.Origin)
	b = append(b, byte(g.Kind))
	b = binary.BigEndian.AppendUint16(b, uint16(len(g.VKey)))
	b = append(b, g.VKey...)
	return binary.BigEndian.AppendUint64(b, uint64(g.CreatedAt))
}

func (c *cursor) log() (g Log) {
	g = Log{Number: c.u32(), Name: c.text8(), Origin: c.text8(), Kind: lineage.LogKind(c.u8())}
	g.VKey = string(c.take(int(c.u16())))
	g.CreatedAt = int64(c.u64())
	return g
}

func (g *Log) encode() []byte { return seal(g.append(append(make([]byte, 0, 512), recordVersion))) }

func parseLog(b []byte) (g Log, err error) {
	c, err := unseal("log", b)
	if err != nil {
		return g, err
	}
	version := c.u8()
	g = c.log()
	if version != recordVersion || !c.done() {
		return g, fmt.Errorf("%w: log record of version %d, %d bytes", ErrCorrupt, version, len(b))
	}
	return g, nil
}

// encodeLocal is the record of the local principal.
func encodeLocal(principal string) []byte {
	return seal(appendText8([]byte{recordVersion}, principal))
}

func parseLocal(b []byte) (string, error) {
	c, err := unseal("local principal", b)
	if err != nil {
		return "", err
	}
	version := c.u8()
	principal := c.text8()
	if version != recordVersion || !c.done() {
		return "", fmt.Errorf("%w: local principal record of version %d, %d bytes", ErrCorrupt, version, len(b))
	}
	return principal, nil
}

// stagedRecord is how far data of a log were fetched ahead: it is written in the batch of the data that it speaks of.
func encodeStaged(size uint64) []byte {
	return seal(binary.BigEndian.AppendUint64([]byte{recordVersion}, size))
}

func parseStaged(b []byte) (size uint64, err error) {
	c, err := unseal("staged", b)
	if err != nil {
		return 0, err
	}
	version := c.u8()
	size = c.u64()
	if version != recordVersion || !c.done() {
		return 0, fmt.Errorf("%w: staged record of version %d, %d bytes", ErrCorrupt, version, len(b))
	}
	return size, nil
}

// Chunks. A leaf in a chunk stands behind recorded_at i64, authn u8, principal (u8 length), in an opaque log the event id, and u32 length:
// what an index needs of an entry whose leaf is opaque, so that everything can be derived from entries. A body stands behind state u8 and
// u32 length.

const (
	bodyKept   = 0
	bodyErased = 1
)

func appendStoredLeaf(b []byte, kind lineage.LogKind, recordedAt int64, e *CommandEntry) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(recordedAt))
	b = append(b, byte(e.Authn))
	b = appendText8(b, e.Principal)
	if kind == lineage.OpaqueLog {
		b = append(b, e.EventID[:]...)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(e.Leaf)))
	return append(b, e.Leaf...)
}

func storedLeafBytes(kind lineage.LogKind, e *CommandEntry) int {
	n := 8 + 1 + 1 + len(e.Principal) + 4 + len(e.Leaf)
	if kind == lineage.OpaqueLog {
		n += len(e.EventID)
	}
	return n
}

func appendStoredBody(b []byte, body []byte) []byte {
	b = binary.BigEndian.AppendUint32(append(b, bodyKept), uint32(len(body)))
	return append(b, body...)
}

func storedBodyBytes(e *CommandEntry) int { return 1 + 4 + len(e.Body) }

// storedLeaf reads the next leaf of a chunk; the leaf aliases the chunk.
func (c *cursor) storedLeaf(kind lineage.LogKind) (e Entry) {
	e.RecordedAt = int64(c.u64())
	e.Authn = lineage.Authn(c.u8())
	e.Principal = c.text8()
	if kind == lineage.OpaqueLog {
		e.EventID = c.id()
	}
	e.Leaf = c.bytes32()
	return e
}

func (c *cursor) storedBody() (state uint8, body []byte) {
	state = c.u8()
	return state, c.bytes32()
}
