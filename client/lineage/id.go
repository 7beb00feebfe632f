package lineage

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"
)

// ID is a 16-byte event, run, cluster or node id in the layout of RFC 9562. The zero ID means "none". The type is our own, forty lines,
// because the usual library brings the network stack into the import list of offline verification.
type ID [16]byte

// String returns the 36-character text of RFC 9562 section 4, in lower case.
func (id ID) String() string {
	var b [36]byte
	at := 0
	for i, c := range id {
		switch i {
		case 4, 6, 8, 10:
			b[at] = '-'
			at++
		}
		hex.Encode(b[at:], []byte{c})
		at += 2
	}
	return string(b[:])
}

// ParseID reads the 36-character text form of a UUID in either case. Other spellings (braces, urn:, no hyphens) are refused, so that an
// id has one written form up to case; so is the nil UUID, which means "none" here.
func ParseID(s string) (ID, error) {
	var id ID
	var digits [32]byte
	n := 0
	for i := 0; len(s) == 36 && i < 36; i++ {
		switch i {
		case 8, 13, 18, 23:
			if s[i] == '-' {
				continue
			}
			n = 0 // cannot reach 32 any more
		}
		if n < len(digits) {
			digits[n] = s[i]
			n++
		}
	}
	if n != len(digits) {
		return ID{}, notUUID(s)
	}
	if _, err := hex.Decode(id[:], digits[:]); err != nil {
		return ID{}, notUUID(s)
	}
	if id == (ID{}) {
		return ID{}, errors.New("the nil UUID identifies nothing")
	}
	return id, nil
}

func notUUID(s string) error { return fmt.Errorf("%q is not a UUID in 8-4-4-4-12 form", clip(s)) }

// MarshalText implements encoding.TextMarshaler.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler. The receiver is unchanged on an error.
func (id *ID) UnmarshalText(b []byte) error {
	v, err := ParseID(string(b))
	if err == nil {
		*id = v
	}
	return err
}

// lastID keeps the ids of a process ascending: 48 bits of milliseconds and 12 bits of their fraction, as one number.
var lastID struct {
	sync.Mutex
	stamp uint64
}

// NewID returns a new UUIDv7 (RFC 9562 section 5.7, method 3: the 12 bits after the milliseconds are their fraction). Ids of one process
// ascend, also within a millisecond and when the clock steps back: ids that sort by time keep the duplicate index sequential, which
// costs a fifth of random ones.
func NewID() (id ID) {
	rand.Read(id[8:]) // never fails (crypto/rand)
	now := time.Now()
	stamp := uint64(now.UnixMilli())<<12 | uint64(now.Nanosecond()%1e6)<<12/1e6
	lastID.Lock()
	stamp = max(stamp, lastID.stamp+1)
	lastID.stamp = stamp
	lastID.Unlock()
	binary.BigEndian.PutUint64(id[:8], stamp>>12<<16|7<<12|stamp&0xfff)
	id[8] = id[8]&0x3f | 0x80
	return id
}
