package lineage

import (
	"encoding/binary"
	"fmt"
)

// The few CBOR major types (RFC 8949 3.1) that leaves and bodies use, in the core deterministic encoding (4.2.1). Hand-written because
// composing a leaf stands on the path of every event (15 times cheaper than a general encoder); the tests hold it to fxamacker/cbor.
const (
	cborUint  = 0 << 5
	cborBytes = 2 << 5
	cborText  = 3 << 5
	cborArray = 4 << 5
	cborMap   = 5 << 5
	cborNull  = 0xf6
)

// maxHead is the longest head of an item: a type byte and a 64-bit number.
const maxHead = 9

func appendHead(b []byte, major byte, n uint64) []byte {
	switch {
	case n < 24:
		return append(b, major|byte(n))
	case n < 1<<8:
		return append(b, major|24, byte(n))
	case n < 1<<16:
		return binary.BigEndian.AppendUint16(append(b, major|25), uint16(n))
	case n < 1<<32:
		return binary.BigEndian.AppendUint32(append(b, major|26), uint32(n))
	}
	return binary.BigEndian.AppendUint64(append(b, major|27), n)
}

// appendPair appends a map pair of a key below 24 and an unsigned integer.
func appendPair(b []byte, key byte, v uint64) []byte { return appendHead(append(b, key), cborUint, v) }

func appendBytes[T string | []byte](b []byte, s T) []byte {
	return append(appendHead(b, cborBytes, uint64(len(s))), s...)
}

func appendText(b []byte, s string) []byte {
	return append(appendHead(b, cborText, uint64(len(s))), s...)
}

func appendDigest(b []byte, d Digest) []byte {
	b = appendHead(b, cborArray, 2)
	b = appendHead(b, cborUint, uint64(d.Algorithm))
	return appendBytes(b, d.Value)
}

// reader decodes with a sticky error: after the first failure every call returns zero values. It bounds what it allocates by the input.
type reader struct {
	b   []byte
	err error

	// all, if set, is a copy of the whole input that b is the rest of: texts and digests are then cut out of it, which is one allocation
	// for a leaf instead of one each.
	all string
}

// string returns p, which was just taken.
func (r *reader) string(p []byte) string {
	if r.all == "" {
		return string(p)
	}
	end := len(r.all) - len(r.b)
	return r.all[end-len(p) : end]
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format, args...)
	}
}

func (r *reader) take(n uint64) []byte {
	if r.err == nil && n > uint64(len(r.b)) {
		r.fail("cut short: %d bytes wanted, %d left", n, len(r.b))
	}
	if r.err != nil {
		return nil
	}
	p := r.b[:n]
	r.b = r.b[n:]
	return p
}

func (r *reader) head(major byte) uint64 {
	p := r.take(1)
	if p == nil {
		return 0
	}
	if p[0]&0xe0 != major {
		r.fail("major type %d where %d was expected", p[0]>>5, major>>5)
		return 0
	}
	switch low := p[0] & 0x1f; {
	case low < 24:
		return uint64(low)
	case low <= 27:
		var n uint64
		for _, c := range r.take(1 << (low - 24)) {
			n = n<<8 | uint64(c)
		}
		return n
	}
	r.fail("indefinite or reserved length")
	return 0
}

func (r *reader) uint() uint64 { return r.head(cborUint) }

func (r *reader) uint8() uint8 {
	n := r.uint()
	if n > 255 {
		r.fail("%d exceeds one byte", n)
	}
	return uint8(n)
}

func (r *reader) time() int64 {
	n := r.uint()
	if n > uint64(MaxTime) {
		r.fail("time %d is after the year 9999", n)
	}
	return int64(n)
}

func (r *reader) bytes(most int) []byte {
	n := r.head(cborBytes)
	if r.err == nil && n > uint64(most) {
		r.fail("byte string of %d bytes exceeds %d", n, most)
	}
	return r.take(n)
}

func (r *reader) text(most int) string {
	n := r.head(cborText)
	if r.err == nil && n > uint64(most) {
		r.fail("text of %d bytes exceeds %d", n, most)
	}
	s := r.string(r.take(n))
	if reason := badText(s); reason != "" {
		r.fail("text %s", reason)
	}
	return s
}

// count reads an array or map head of at most most elements. An element takes at least a byte, so the input bounds the allocation.
func (r *reader) count(major byte, most int) int {
	n := r.head(major)
	if r.err == nil && (n > uint64(most) || n > uint64(len(r.b))) {
		r.fail("%d elements exceed %d or the input", n, most)
	}
	if r.err != nil {
		return 0
	}
	return int(n)
}

// null consumes a null and reports whether there was one.
func (r *reader) null() bool {
	if r.err == nil && len(r.b) > 0 && r.b[0] == cborNull {
		r.b = r.b[1:]
		return true
	}
	return false
}

func (r *reader) id() (id ID) {
	p := r.bytes(len(id))
	if r.err == nil && len(p) != len(id) {
		r.fail("id of %d bytes", len(p))
	}
	copy(id[:], p)
	return id
}

func (r *reader) hash() (h Hash) {
	p := r.bytes(len(h))
	if r.err == nil && len(p) != len(h) {
		r.fail("hash of %d bytes", len(p))
	}
	copy(h[:], p)
	return h
}

func (r *reader) digest() Digest {
	if n := r.count(cborArray, 2); r.err == nil && n != 2 {
		r.fail("digest of %d elements", n)
	}
	return Digest{Algorithm(r.uint8()), r.string(r.bytes(64))}
}

func (r *reader) control() *Control {
	c := &Control{}
	for n := r.count(cborMap, 14); n > 0 && r.err == nil; n-- {
		switch key := r.uint(); key {
		case 1:
			c.Origin = r.text(MaxPrincipal)
		case 2:
			c.LogKind = LogKind(r.uint8())
		case 3:
			c.ClusterID = r.id()
		case 4:
			c.HashAlgorithm = Algorithm(r.uint8())
		case 5:
			c.CreatedAt = r.time()
		case 6:
			c.VKey = r.text(MaxNameBytes)
		case 7:
			c.SchemaID = r.text(MaxNameBytes)
		case 8:
			c.SchemaDigest = r.digest()
		case 9:
			c.IndexFunction = r.uint()
		case 10:
			r.count(cborArray, 4)
			c.Predecessor = &Predecessor{r.text(MaxPrincipal), r.uint(), r.hash(), r.text(MaxNameBytes)}
		case 11:
			n := r.uint()
			if n > 1<<32-1 {
				r.fail("log number %d exceeds 32 bits", n)
			}
			c.LogNumber = uint32(n)
		case 12:
			c.LogName = r.text(MaxNameBytes)
		case 13:
			c.Principal = r.text(MaxPrincipal)
		case 14:
			c.Owner = r.text(MaxPrincipal)
		default:
			r.fail("unknown control field %d", key)
		}
	}
	return c
}
