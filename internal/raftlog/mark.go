package raftlog

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

const (
	markName    = "mark"
	markLen     = 36        // meaningful bytes of a slot
	slotOffset1 = blockSize // slots lie a block apart: damage to one block leaves one slot
)

var markMagic = [8]byte{'P', 'L', 'R', 'A', 'F', 'T', 'M', 'K'}

// position names the last acknowledged batch: its number and the sequence of its segment. 0 is the batch before the
// first, in segment 1.
type position struct {
	sequence uint64
	batch    uint64
}

// markRecord is the content of a slot of the mark file. Generation g lies in slot g mod 2.
type markRecord struct {
	generation uint64
	position
}

func (m *markRecord) appendTo(b []byte) []byte {
	start := len(b)
	b = append(b, markMagic[:]...)
	b = binary.BigEndian.AppendUint64(b, m.generation)
	b = binary.BigEndian.AppendUint64(b, m.sequence)
	b = binary.BigEndian.AppendUint64(b, m.batch)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

func decodeMark(b []byte) (markRecord, bool) {
	var m markRecord
	if len(b) < markLen || [8]byte(b) != markMagic || crc32.Checksum(b[:32], castagnoli) != binary.BigEndian.Uint32(b[32:]) {
		return m, false
	}
	m.generation = binary.BigEndian.Uint64(b[8:])
	m.sequence = binary.BigEndian.Uint64(b[16:])
	m.batch = binary.BigEndian.Uint64(b[24:])
	return m, m.generation > 0 && m.sequence > 0
}

// mark is the state of the mark file.
type mark struct {
	file  vfs.File
	dirty chan struct{} // capacity 1

	mu    sync.Mutex
	acked position // never moves down

	// Owned by the goroutine of runMark while it runs, by Open before and by Close after.
	generation uint64
	written    [2]markRecord // what each slot holds, as far as known; zero when damaged
}

func (m *mark) wake() {
	select {
	case m.dirty <- struct{}{}:
	default:
	}
}

// advance notes that everything up to p is acknowledged.
func (m *mark) advance(p position) {
	m.mu.Lock()
	m.acked = p
	m.mu.Unlock()
	m.wake()
}

func (m *mark) current() position {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.acked
}

// runMark keeps the mark at most markInterval behind: it wakes half an interval after an acknowledgement, so that the
// write itself has the other half. A mark that stands still is written into the second slot too.
func (s *Store) runMark() {
	err := s.keepMark()
	if err != nil {
		err = s.fail(fmt.Errorf("write mark: %w", err))
	}
	s.bg.Done() // before Die, which may not return
	if err != nil {
		s.die("write mark", err)
	}
}

func (s *Store) keepMark() error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-s.quit:
			return nil
		case <-s.mark.dirty:
		}
		timer.Reset(s.markInterval / 2)
		select {
		case <-s.quit:
			return nil
		case <-timer.C:
		}
		p := s.mark.current()
		if s.mark.bothHold(p) {
			continue
		}
		hang := time.AfterFunc(markHang, func() {
			err := s.fail(fmt.Errorf("mark write hangs for %v", markHang))
			s.die("write mark", err)
		})
		err := s.mark.write(p)
		hang.Stop()
		if err != nil {
			return err
		}
		if !s.mark.bothHold(p) {
			s.mark.wake()
		}
	}
}

func (m *mark) bothHold(p position) bool {
	return m.written[0].position == p && m.written[1].position == p
}

// write puts p into the slot that does not hold the latest mark, and syncs it.
func (m *mark) write(p position) error {
	r := markRecord{generation: m.generation + 1, position: p}
	slot := r.generation % 2
	m.written[slot] = markRecord{}
	if err := writeSlot(m.file, int(slot), r.appendTo(nil)); err != nil {
		return err
	}
	m.generation, m.written[slot] = r.generation, r
	return nil
}

// writeFinal leaves both slots at the last acknowledged batch.
func (m *mark) writeFinal() error {
	for p := m.current(); !m.bothHold(p); {
		if err := m.write(p); err != nil {
			return err
		}
	}
	return nil
}

// openMark reads both slots; latest is the higher valid one.
func (m *mark) open(fs vfs.FS, path string) (latest markRecord, err error) {
	if m.file, err = fs.OpenReadWrite(path, vfs.WriteCategoryUnspecified); err != nil {
		return latest, err
	}
	for slot := range 2 {
		b, err := readSlot(m.file, slot)
		if err != nil {
			return latest, err
		}
		r, ok := decodeMark(b)
		if !ok || r.generation%2 != uint64(slot) {
			continue
		}
		m.written[slot] = r
		if r.generation > latest.generation {
			latest = r
		}
	}
	if latest.generation == 0 {
		return latest, fmt.Errorf("%w: neither slot of the mark is valid", ErrCorrupt)
	}
	m.generation = latest.generation
	return latest, nil
}

// writeSlot writes one of the two slots of a mark or vote file and makes it durable.
func writeSlot(f vfs.File, slot int, b []byte) error {
	block := make([]byte, blockSize)
	copy(block, b)
	if _, err := f.WriteAt(block, int64(slot)*slotOffset1); err != nil {
		return err
	}
	return f.SyncData()
}

// readSlot returns as much of a slot as there is.
func readSlot(f vfs.File, slot int) ([]byte, error) {
	return readUpTo(f, make([]byte, blockSize), int64(slot)*slotOffset1)
}

// readUpTo fills b from offset off and returns what there was before the end of the file.
func readUpTo(f vfs.File, b []byte, off int64) ([]byte, error) {
	n, err := f.ReadAt(b, off)
	if err != nil && err != io.EOF {
		return nil, err
	}
	return b[:n], nil
}
