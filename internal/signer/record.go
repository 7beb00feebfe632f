package signer

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/provledger/provledger/internal/merkle"
)

// record is the file of one origin: two slots, 4 KiB apart so that one torn page cannot take both, each with generation u64, size u64,
// root, and a CRC32C that also covers the origin. The higher valid generation wins; writing goes to the other slot.
type record struct {
	f          vfs.File
	origin     string
	generation uint64
}

const (
	slotBytes    = 8 + 8 + merkle.HashSize + 4
	slotDistance = 4096
	recordBytes  = 2 * slotDistance
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// openRecord opens or creates the record of an origin. A file with no valid slot is an error: what was signed is not known.
func openRecord(fs vfs.FS, dir, origin string) (*record, signed, error) {
	name := fs.PathJoin(dir, RecordName(origin))
	r := &record{origin: origin}
	if _, err := fs.Stat(name); errors.Is(err, os.ErrNotExist) {
		return r, signed{}, r.create(fs, dir, name)
	} else if err != nil { // it may be there, and must not be replaced by an empty one
		return nil, signed{}, fmt.Errorf("signer record of %s: %w", origin, err)
	}
	f, err := fs.OpenReadWrite(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, signed{}, fmt.Errorf("signer record of %s: %w", origin, err)
	}
	r.f = f
	b := make([]byte, recordBytes)
	if _, err := f.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, signed{}, errors.Join(fmt.Errorf("signer record of %s: %w", origin, err), f.Close())
	}
	last, found := r.newest(b)
	if !found {
		return nil, signed{}, errors.Join(fmt.Errorf("signer record of %s in %s is damaged: what was signed is not known; restore it from a copy of this directory or start a new origin", origin, name), f.Close())
	}
	return r, last, nil
}

// newest returns the valid slot of the higher generation.
func (r *record) newest(b []byte) (last signed, found bool) {
	for slot := range 2 {
		if generation, s, ok := r.decode(b[slot*slotDistance:]); ok && (!found || generation > r.generation) {
			r.generation, last, found = generation, s, true
		}
	}
	return last, found
}

// RecordName is the name of the file with the record of an origin.
func RecordName(origin string) string {
	sum := sha256.Sum256([]byte(origin))
	return hex.EncodeToString(sum[:16])
}

// ErrRecord means that a record of what was signed is damaged.
var ErrRecord = errors.New("the signer's record is damaged")

// ReadRecord returns the largest size that was signed for an origin, with its root, as the record in a directory of records says: at most
// 100 ms of signing behind what was signed before an unclean stop. ok is false if nothing is recorded. It changes nothing. The error wraps
// ErrRecord when the record is damaged.
func ReadRecord(fs vfs.FS, dir, origin string) (size uint64, root merkle.Hash, ok bool, err error) {
	name := fs.PathJoin(dir, RecordName(origin))
	f, err := fs.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return 0, root, false, nil
	}
	if err != nil {
		return 0, root, false, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, recordBytes+1))
	if err != nil {
		return 0, root, false, fmt.Errorf("%s: %w", name, err)
	}
	r := &record{origin: origin}
	if len(b) < slotDistance+slotBytes {
		return 0, root, false, fmt.Errorf("%w: %s has %d bytes", ErrRecord, name, len(b))
	}
	last, found := r.newest(b)
	if !found {
		return 0, root, false, fmt.Errorf("%w: no slot of %s, of %s, is valid", ErrRecord, name, origin)
	}
	return last.size, last.root, true, nil
}

// create makes a whole file under another name first, so that a crash leaves either no record or a valid one.
func (r *record) create(fs vfs.FS, dir, name string) error {
	temporary := name + ".new"
	f, err := fs.Create(temporary, vfs.WriteCategoryUnspecified)
	if err != nil {
		return fmt.Errorf("signer record of %s: %w", r.origin, err)
	}
	b := make([]byte, recordBytes)
	r.encode(b[:0], 0, signed{})
	copy(b[slotDistance:], b[:slotBytes])
	if _, err = f.Write(b); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = fs.Rename(temporary, name)
	}
	if err == nil {
		err = syncDir(fs, dir)
	}
	if err == nil {
		r.f, err = fs.OpenReadWrite(name, vfs.WriteCategoryUnspecified)
	}
	if err != nil {
		return fmt.Errorf("signer record of %s: %w", r.origin, err)
	}
	return nil
}

func syncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (r *record) encode(b []byte, generation uint64, s signed) []byte {
	b = binary.BigEndian.AppendUint64(b, generation)
	b = binary.BigEndian.AppendUint64(b, s.size)
	b = append(b, s.root[:]...)
	return binary.BigEndian.AppendUint32(b, r.checksum(b))
}

func (r *record) checksum(b []byte) uint32 {
	return crc32.Update(crc32.Checksum([]byte(r.origin), castagnoli), castagnoli, b)
}

func (r *record) decode(b []byte) (generation uint64, s signed, ok bool) {
	const n = slotBytes - 4
	if len(b) < slotBytes || r.checksum(b[:n]) != binary.BigEndian.Uint32(b[n:]) {
		return 0, signed{}, false
	}
	copy(s.root[:], b[16:])
	s.size = binary.BigEndian.Uint64(b[8:])
	return binary.BigEndian.Uint64(b), s, true
}

// write makes s durable in the slot that does not hold the newest record.
func (r *record) write(s signed) error {
	b := r.encode(make([]byte, 0, slotBytes), r.generation+1, s)
	if _, err := r.f.WriteAt(b, int64((r.generation+1)%2)*slotDistance); err != nil {
		return fmt.Errorf("signer record of %s: %w", r.origin, err)
	}
	if err := r.f.Sync(); err != nil {
		return fmt.Errorf("signer record of %s: %w", r.origin, err)
	}
	r.generation++
	return nil
}

func (r *record) close() error { return r.f.Close() }
