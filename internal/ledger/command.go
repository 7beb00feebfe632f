package ledger

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/merkle"
)

// MaxCommandVersion is the newest version of commands that this program applies; it applies all before it too. A node that meets a newer
// one halts: skipping what it does not know would make it differ from its peers (H15). Version 2 adds control entries of the kinds member,
// recovery and version to what the system log accepts; the bytes are those of version 1.
const MaxCommandVersion = 2

// firstCommandVersion is the one in use until a version entry raises it.
const firstCommandVersion = 1

const (
	// MaxCommandBytes is the hard limit of a command: raft holds a handful of them in memory at every hop.
	MaxCommandBytes = 8 << 20
	// MaxCommandEntries bounds the events of a command, and of one request, which is never split.
	MaxCommandEntries = 4_096
	// MaxSections bounds the logs that one command touches.
	MaxSections = 256
)

// Command is one raft command: entries for one or more logs, with what the proposer computed for each. Every replica recomputes it.
type Command struct {
	// Version says by which rules the command is to be applied, 1 to MaxCommandVersion: the proposer's Ledger.CommandVersion. 0 is written
	// as 1.
	Version   uint8
	ClusterID lineage.ID
	// Bindings is the version of the access bindings that the proposer authorised against.
	Bindings uint64
	// Base is the newest decision that the proposer had applied: replicas that remember that index compare the digest.
	Base     Applied
	Sections []Section

	// CRC is the checksum of the encoded command, set by ParseCommand.
	CRC uint32
}

// Section is the part of a command for one log.
type Section struct {
	Log           uint32
	Before, After Head // Before.RecordedAt is not carried: it is the log's own
	Entries       []CommandEntry
}

// CommandEntry is one entry of a command.
type CommandEntry struct {
	EventID   lineage.ID
	Principal string
	Authn     lineage.Authn
	Control   bool // Apply reads the leaf's control payload
	Leaf      []byte
	Body      []byte // lineage.AppendBody
}

// ErrCommand marks a command that cannot be decoded. On a replica that is damage or a version from the future, never a reason to skip.
var ErrCommand = errors.New("undecodable command")

const commandHead = 1 + 4 // version, CRC

// appendHeader starts a command; sections follow, and the checksum last.
func (c *Command) appendHeader(b []byte) []byte {
	b = append(b, max(c.Version, firstCommandVersion), 0, 0, 0, 0)
	b = append(b, c.ClusterID[:]...)
	b = binary.BigEndian.AppendUint64(b, c.Bindings)
	b = binary.BigEndian.AppendUint64(b, c.Base.Index)
	b = binary.BigEndian.AppendUint64(b, c.Base.Term)
	b = append(b, c.Base.Digest[:]...)
	return binary.BigEndian.AppendUint16(b, uint16(len(c.Sections)))
}

// AppendCommand appends the encoding of c.
func AppendCommand(b []byte, c *Command) []byte {
	start := len(b)
	b = c.appendHeader(b)
	for i := range c.Sections {
		b = c.Sections[i].append(b)
	}
	binary.BigEndian.PutUint32(b[start+1:], crc32.Checksum(b[start+commandHead:], castagnoli))
	return b
}

func (s *Section) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, s.Log)
	b = binary.BigEndian.AppendUint64(b, s.Before.Size)
	b = append(b, s.Before.Root[:]...)
	b = append(b, s.After.Root[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(s.After.RecordedAt))
	b = binary.BigEndian.AppendUint32(b, uint32(len(s.Entries)))
	for i := range s.Entries {
		e := &s.Entries[i]
		b = append(b, e.EventID[:]...)
		flags := byte(e.Authn) << 1
		if e.Control {
			flags |= 1
		}
		b = append(b, flags)
		b = appendText8(b, e.Principal)
		b = binary.BigEndian.AppendUint32(b, uint32(len(e.Leaf)))
		b = binary.BigEndian.AppendUint32(b, uint32(len(e.Body)))
		b = append(b, e.Leaf...)
		b = append(b, e.Body...)
	}
	return b
}

// Size returns the encoded size of an entry, for the proposer's accounting.
func (e *CommandEntry) Size() int {
	return 16 + 1 + 1 + len(e.Principal) + 8 + len(e.Leaf) + len(e.Body)
}

// ParseCommand decodes a command. Leaves and bodies alias b.
func ParseCommand(b []byte) (*Command, error) {
	if len(b) < commandHead {
		return nil, fmt.Errorf("%w: %d bytes", ErrCommand, len(b))
	}
	if b[0] < firstCommandVersion || b[0] > MaxCommandVersion {
		return nil, fmt.Errorf("%w: version %d, this program knows %d to %d; upgrade it", ErrCommand, b[0], firstCommandVersion, MaxCommandVersion)
	}
	c := &Command{Version: b[0], CRC: binary.BigEndian.Uint32(b[1:])}
	if got := crc32.Checksum(b[commandHead:], castagnoli); got != c.CRC {
		return nil, fmt.Errorf("%w: checksum %08x, recorded %08x", ErrCommand, got, c.CRC)
	}
	r := &cursor{b: b[commandHead:]}
	c.ClusterID, c.Bindings = r.id(), r.u64()
	c.Base = Applied{r.u64(), r.u64(), r.hash()}
	n := int(r.u16())
	if n > MaxSections {
		return nil, fmt.Errorf("%w: %d sections", ErrCommand, n)
	}
	for i := 0; i < n && !r.bad; i++ {
		s := Section{Log: r.u32()}
		s.Before.Size = r.u64()
		s.Before.Root = r.hash()
		s.After.Root = r.hash()
		s.After.RecordedAt = int64(r.u64())
		count := r.u32()
		if count == 0 || count > MaxCommandEntries || int(count) > len(r.b) {
			return nil, fmt.Errorf("%w: section of %d entries", ErrCommand, count)
		}
		s.After.Size = s.Before.Size + uint64(count)
		s.Entries = make([]CommandEntry, count)
		for j := range s.Entries {
			s.Entries[j].read(r)
		}
		c.Sections = append(c.Sections, s)
	}
	if !r.done() {
		return nil, fmt.Errorf("%w: cut short or followed by other bytes", ErrCommand)
	}
	return c, nil
}

func (e *CommandEntry) read(r *cursor) {
	e.EventID = r.id()
	flags := r.u8()
	e.Control, e.Authn = flags&1 != 0, lineage.Authn(flags>>1)
	e.Principal = r.text8()
	leaf, body := r.u32(), r.u32()
	e.Leaf = r.take(int(leaf))
	e.Body = r.take(int(body))
}

// emptyHead is the head of a log before its first entry.
func emptyHead() Head { return Head{Root: merkle.EmptyRoot()} }
