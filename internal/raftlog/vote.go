package raftlog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Keys that raft keeps in its stable store.
const (
	keyCurrentTerm  = "CurrentTerm"
	keyLastVoteTerm = "LastVoteTerm"
	keyLastVoteCand = "LastVoteCand"
)

const (
	voteName      = "vote"
	voteHeaderLen = 40
	flagHasTerm   = 1
	flagHasVote   = 2

	// maxCandidateBytes is far above any raft address (255 bytes in practice) and keeps the record within its slot.
	maxCandidateBytes = 2048
)

var voteMagic = [8]byte{'P', 'L', 'R', 'A', 'F', 'T', 'V', 'T'}

// errNotFound has the text that hashicorp/raft compares with to recognise a missing key.
var errNotFound = errors.New("not found")

// voteRecord is the content of both slots of the vote file.
type voteRecord struct {
	generation uint64 // one up for each change
	hasTerm    bool
	term       uint64
	hasVote    bool
	voteTerm   uint64
	candidate  []byte
}

func (v *voteRecord) appendTo(b []byte) []byte {
	start := len(b)
	var flags uint32
	if v.hasTerm {
		flags |= flagHasTerm
	}
	if v.hasVote {
		flags |= flagHasVote
	}
	b = append(b, voteMagic[:]...)
	b = binary.BigEndian.AppendUint64(b, v.generation)
	b = binary.BigEndian.AppendUint32(b, flags)
	b = binary.BigEndian.AppendUint32(b, uint32(len(v.candidate)))
	b = binary.BigEndian.AppendUint64(b, v.term)
	b = binary.BigEndian.AppendUint64(b, v.voteTerm)
	b = append(b, v.candidate...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

func decodeVote(b []byte) (voteRecord, bool) {
	var v voteRecord
	if len(b) < voteHeaderLen+4 || [8]byte(b) != voteMagic {
		return v, false
	}
	n := binary.BigEndian.Uint32(b[20:])
	if n > maxCandidateBytes || len(b) < voteHeaderLen+int(n)+4 {
		return v, false
	}
	end := voteHeaderLen + int(n)
	if crc32.Checksum(b[:end], castagnoli) != binary.BigEndian.Uint32(b[end:]) {
		return v, false
	}
	v.generation = binary.BigEndian.Uint64(b[8:])
	flags := binary.BigEndian.Uint32(b[16:])
	v.hasTerm, v.hasVote = flags&flagHasTerm != 0, flags&flagHasVote != 0
	v.term = binary.BigEndian.Uint64(b[24:])
	v.voteTerm = binary.BigEndian.Uint64(b[32:])
	v.candidate = slices.Clone(b[voteHeaderLen:end])
	return v, v.generation > 0 && flags <= flagHasTerm|flagHasVote &&
		(v.hasTerm || v.term == 0) && (v.hasVote || v.voteTerm == 0 && n == 0)
}

// vote is the state of the vote file.
type vote struct {
	mu     sync.Mutex
	file   vfs.File
	record voteRecord

	// staged is a LastVoteTerm that waits for its LastVoteCand. raft writes the two one after the other and sends the
	// vote after both (hashicorp/raft issue 661: a crash between the two would pair the new term with the old
	// candidate, and grant that candidate without looking at its log).
	staged    uint64
	hasStaged bool
}

// open reads both slots, takes the valid one of higher generation and repairs it into both.
func (v *vote) open(fs vfs.FS, path string) (err error) {
	if v.file, err = fs.OpenReadWrite(path, vfs.WriteCategoryUnspecified); err != nil {
		return err
	}
	var slots [2]voteRecord
	for i := range slots {
		b, err := readSlot(v.file, i)
		if err != nil {
			return err
		}
		if r, ok := decodeVote(b); ok {
			slots[i] = r
		}
	}
	v.record = slots[0]
	if slots[1].generation > slots[0].generation {
		v.record = slots[1]
	}
	if v.record.generation == 0 {
		return fmt.Errorf("%w: neither slot of the term and vote is valid", ErrCorrupt)
	}
	return nil
}

// repair makes both slots hold the record, durably, before it is answered from. It writes even what reads back right: a
// process killed between write and fsync leaves a slot that is in the page cache and not on the disk. Slot 1 alone is
// enough when both are equal, for it was only begun when slot 0 was durable.
func (v *vote) repair() error {
	b := v.record.appendTo(nil)
	slot0, err := readSlot(v.file, 0)
	if err != nil {
		return err
	}
	slot1, err := readSlot(v.file, 1)
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(slot0, b) || !bytes.HasPrefix(slot1, b) {
		if err := writeSlot(v.file, 0, b); err != nil {
			return err
		}
	}
	return writeSlot(v.file, 1, b)
}

// write makes r durable in slot 0, then in slot 1.
func (s *Store) writeVote(r voteRecord) error {
	r.generation = s.vote.record.generation + 1
	b := r.appendTo(nil)
	for slot := range 2 {
		if err := writeSlot(s.vote.file, slot, b); err != nil {
			return s.fail(fmt.Errorf("write term and vote, slot %d: %w", slot, err))
		}
	}
	s.vote.record = r
	return nil
}

// SetUint64 implements raft.StableStore for "CurrentTerm", which is durable on return and never goes down, and
// "LastVoteTerm", which is held back until Set("LastVoteCand").
func (s *Store) SetUint64(key []byte, val uint64) error {
	s.vote.mu.Lock()
	defer s.vote.mu.Unlock()
	if err := s.usable(); err != nil {
		return err
	}
	r := s.vote.record
	switch string(key) {
	case keyCurrentTerm:
		if r.hasTerm && val == r.term {
			return nil
		}
		if val < r.term {
			return fmt.Errorf("raftlog: term %d after term %d", val, r.term)
		}
		r.hasTerm, r.term = true, val
		return s.writeVote(r)
	case keyLastVoteTerm:
		if r.hasVote && val < r.voteTerm {
			return fmt.Errorf("raftlog: vote in term %d after a vote in term %d", val, r.voteTerm)
		}
		s.vote.staged, s.vote.hasStaged = val, true
		return nil
	}
	return fmt.Errorf("raftlog: stable store has no number %q", key)
}

// Set implements raft.StableStore for "LastVoteCand" (at most 2048 bytes): the vote, with the term set before, is
// durable on return. A second vote for another candidate in one term is refused.
func (s *Store) Set(key, val []byte) error {
	s.vote.mu.Lock()
	defer s.vote.mu.Unlock()
	if err := s.usable(); err != nil {
		return err
	}
	if string(key) != keyLastVoteCand {
		return fmt.Errorf("raftlog: stable store has no bytes %q", key)
	}
	if len(val) > maxCandidateBytes {
		return fmt.Errorf("raftlog: candidate of %d bytes, at most %d", len(val), maxCandidateBytes)
	}
	if !s.vote.hasStaged {
		return fmt.Errorf("raftlog: %s without a %s before it", keyLastVoteCand, keyLastVoteTerm)
	}
	r := s.vote.record
	if r.hasVote && r.voteTerm == s.vote.staged && string(r.candidate) != string(val) {
		return fmt.Errorf("raftlog: second vote in term %d", r.voteTerm)
	}
	r.hasVote, r.voteTerm, r.candidate = true, s.vote.staged, slices.Clone(val)
	s.vote.hasStaged = false
	return s.writeVote(r)
}

// GetUint64 implements raft.StableStore. A key that was never set, or is not known, gives the error "not found".
func (s *Store) GetUint64(key []byte) (uint64, error) {
	s.vote.mu.Lock()
	defer s.vote.mu.Unlock()
	if err := s.usable(); err != nil {
		return 0, err
	}
	switch r := &s.vote.record; {
	case string(key) == keyCurrentTerm && r.hasTerm:
		return r.term, nil
	case string(key) == keyLastVoteTerm && r.hasVote:
		return r.voteTerm, nil
	}
	return 0, errNotFound
}

// Get implements raft.StableStore. A key that was never set, or is not known, gives the error "not found".
func (s *Store) Get(key []byte) ([]byte, error) {
	s.vote.mu.Lock()
	defer s.vote.mu.Unlock()
	if err := s.usable(); err != nil {
		return nil, err
	}
	if r := &s.vote.record; string(key) == keyLastVoteCand && r.hasVote {
		return slices.Clone(r.candidate), nil
	}
	return nil, errNotFound
}
