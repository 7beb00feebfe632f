package lineage

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
)

// PartKind says what a part of a body holds.
type PartKind uint8

// Parts of a body, in the order in which they stand.
const (
	// PartIdentifiers holds the full names and URIs of job, target and references, composed by the ledger in reference order.
	PartIdentifiers PartKind = 1
	// PartDocuments holds the producer's documents.
	PartDocuments PartKind = 2
	// PartReferenceKey holds the 32-byte key of the log's name hashes: genesis entries only.
	PartReferenceKey PartKind = 3
)

const maxParts = 3

var partNames = names{"", "identifiers", "documents", "reference-key"}

func (p PartKind) String() string { return partNames.text(uint8(p)) }

// Key is a random 32-byte key: it opens one commitment, or, as reference key, computes a log's name hashes.
type Key = [32]byte

// BodyPart is one part of a body with the key that opens its commitment.
type BodyPart struct {
	Kind    PartKind
	Key     Key
	Content []byte
}

// ErrCommitment means that a body is not the one that the leaf commits to.
var ErrCommitment = errors.New("body does not match the leaf's commitment")

const (
	bodyTag = "provledger/body/v1\x00"
	nameTag = "provledger/ref/v1\x00"
)

// Commit returns HMAC-SHA-256(key, "provledger/body/v1" NUL || u16 part kind || content).
func Commit(kind PartKind, key *Key, content []byte) Hash {
	var head [len(bodyTag) + 2]byte
	copy(head[:], bodyTag)
	binary.BigEndian.PutUint16(head[len(bodyTag):], uint16(kind))
	return mac(key, head[:], content)
}

// HashName returns the identity of a thing known by name: HMAC-SHA-256(reference key, "provledger/ref/v1" NUL || namespace || name ||
// version), each string behind its length as u32 big endian.
func HashName(key *Key, n Name) Hash {
	b := make([]byte, 0, 256)
	for _, s := range [...]string{n.Namespace, n.Name, n.Version} {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
	}
	return mac(key, []byte(nameTag), b)
}

// mac is HMAC-SHA-256 (RFC 2104) for 32-byte keys. Spelled out because crypto/hmac allocates four objects a call, half of the cost of
// a small body; the tests hold it to crypto/hmac.
func mac(key *Key, head, content []byte) Hash {
	const stack = 1024
	var buf [stack]byte
	b := buf[:64]
	for i := range b {
		b[i] = 0x36
	}
	subtle.XORBytes(b, b[:32], key[:])
	var inner Hash
	if 64+len(head)+len(content) <= stack {
		inner = sha256.Sum256(append(append(b, head...), content...))
	} else {
		h := sha256.New()
		h.Write(b)
		h.Write(head)
		h.Write(content)
		h.Sum(inner[:0])
	}
	var outer [64 + 32]byte
	for i := range outer[:64] {
		outer[i] = 0x5c
	}
	subtle.XORBytes(outer[:], outer[:32], key[:])
	copy(outer[64:], inner[:])
	return sha256.Sum256(outer[:])
}

// OpenBody checks that parts are exactly what the leaf commits to, in the leaf's order. Errors wrap ErrCommitment.
func OpenBody(l *Leaf, parts []BodyPart) error {
	if len(parts) != len(l.Bodies) {
		return fmt.Errorf("%w: %d parts, the leaf has %d", ErrCommitment, len(parts), len(l.Bodies))
	}
	for i := range parts {
		c := &l.Bodies[i]
		if parts[i].Kind != c.Part {
			return fmt.Errorf("%w: part %d is %s, the leaf has %s", ErrCommitment, i, parts[i].Kind, c.Part)
		}
		if Commit(c.Part, &parts[i].Key, parts[i].Content) != c.MAC {
			return fmt.Errorf("%w: %s", ErrCommitment, c.Part)
		}
	}
	return nil
}

// Identifiers are the full names behind a leaf, as the identifiers part of the body has them.
type Identifiers struct {
	Job, Target Name
	References  []ReferenceIdentifiers // in reference order; may be shorter than the references: the rest have none
}

// ReferenceIdentifiers are what the body says of one reference.
type ReferenceIdentifiers struct {
	Name      Name
	URI       string
	MediaType string
	Size      int64
}

func (x ReferenceIdentifiers) isZero() bool { return x == ReferenceIdentifiers{} }

// identifiers returns how many references, from the first, the identifiers part of e has to list, and an upper bound of its bytes. The
// count is -1 if e has no names at all, and then no such part.
func (e *Event) identifiers() (count, most int) {
	count = -1
	if !e.Job.IsZero() || !e.Target.IsZero() {
		count = 0
	}
	for i := range e.References {
		if !e.References[i].identifiers().isZero() {
			count = i + 1
		}
	}
	if count < 0 {
		return count, 0
	}
	most = 2*maxHead + e.Job.most() + e.Target.most()
	for i := range count {
		f := &e.References[i]
		most += 4*maxHead + f.Name.most() + len(f.URI) + len(f.MediaType)
	}
	return count, most
}

func (n Name) most() int { return 4*maxHead + len(n.Namespace) + len(n.Name) + len(n.Version) }

func (f *Reference) identifiers() ReferenceIdentifiers {
	return ReferenceIdentifiers{f.Name, f.URI, f.MediaType, f.Size}
}

// appendIdentifiers appends the identifiers part of e with its first n references.
func (e *Event) appendIdentifiers(b []byte, n int) []byte {
	b = appendJobTarget(b, e.Job, e.Target, n)
	for i := range n {
		b = e.References[i].identifiers().append(b)
	}
	return b
}

// AppendIdentifiers appends the identifiers part: CBOR [job, target, [reference...]], a name as [namespace, name, version] or null, a
// reference as [name, uri, media type, size] or null. The last reference must say something.
func AppendIdentifiers(b []byte, x Identifiers) []byte {
	b = appendJobTarget(b, x.Job, x.Target, len(x.References))
	for i := range x.References {
		b = x.References[i].append(b)
	}
	return b
}

func appendJobTarget(b []byte, job, target Name, references int) []byte {
	b = appendHead(b, cborArray, 3)
	b = appendName(b, job)
	b = appendName(b, target)
	return appendHead(b, cborArray, uint64(references))
}

func (x ReferenceIdentifiers) append(b []byte) []byte {
	if x.isZero() {
		return append(b, cborNull)
	}
	b = appendHead(b, cborArray, 4)
	b = appendName(b, x.Name)
	b = appendText(b, x.URI)
	b = appendText(b, x.MediaType)
	return appendHead(b, cborUint, uint64(x.Size))
}

func appendName(b []byte, n Name) []byte {
	if n.IsZero() {
		return append(b, cborNull)
	}
	b = appendHead(b, cborArray, 3)
	b = appendText(b, n.Namespace)
	b = appendText(b, n.Name)
	return appendText(b, n.Version)
}

// ParseIdentifiers decodes an identifiers part that says something; only what AppendIdentifiers writes is accepted.
func ParseIdentifiers(content []byte) (x Identifiers, err error) {
	r := reader{b: content}
	if n := r.count(cborArray, 3); r.err == nil && n != 3 {
		r.fail("%d elements, not 3", n)
	}
	x.Job = r.name()
	x.Target = r.name()
	n := r.count(cborArray, MaxReferences)
	for i := 0; i < n && r.err == nil; i++ {
		var f ReferenceIdentifiers
		if !r.null() {
			r.count(cborArray, 4)
			f.Name = r.name()
			f.URI = r.text(MaxURIBytes)
			f.MediaType = r.text(MaxNameBytes)
			size := r.uint()
			if size > 1<<63-1 {
				r.fail("size exceeds 63 bits")
			}
			f.Size = int64(size)
		}
		x.References = append(x.References, f)
	}
	if n := len(x.References); r.err == nil && n > 0 && x.References[n-1].isZero() {
		r.fail("ends in a reference that says nothing")
	}
	if r.err == nil && x.Job.IsZero() && x.Target.IsZero() && len(x.References) == 0 {
		r.fail("says nothing")
	}
	if r.err == nil && !bytes.Equal(AppendIdentifiers(nil, x), content) {
		r.fail("not in the deterministic encoding")
	}
	if r.err != nil {
		return Identifiers{}, fmt.Errorf("malformed identifiers part: %w", r.err)
	}
	return x, nil
}

func (r *reader) name() Name {
	if r.null() {
		return Name{}
	}
	r.count(cborArray, 3)
	return Name{r.text(MaxNameBytes), r.text(MaxNameBytes), r.text(MaxNameBytes)}
}

// Fits reports what identifiers say that their leaf has no place for, or the other way round.
func (x *Identifiers) Fits(l *Leaf) error {
	switch {
	case x.Job.IsZero() != (l.Job == nil):
		return errors.New("identifiers and leaf disagree on whether there is a job")
	case x.Target.IsZero() != (l.Target == nil):
		return errors.New("identifiers and leaf disagree on whether there is a target")
	case len(x.References) > len(l.References):
		return fmt.Errorf("identifiers name %d references, the leaf has %d", len(x.References), len(l.References))
	}
	for i := range l.References {
		named := i < len(x.References) && !x.References[i].Name.IsZero()
		if named != l.References[i].hasName() {
			return fmt.Errorf("identifiers and leaf disagree on whether references[%d] has a name", i)
		}
	}
	return nil
}

// AppendDocuments appends the documents part: CBOR [[media type, name, content]...].
func AppendDocuments(b []byte, docs []Document) []byte {
	b = appendHead(b, cborArray, uint64(len(docs)))
	for i := range docs {
		b = appendHead(b, cborArray, 3)
		b = appendText(b, docs[i].MediaType)
		b = appendText(b, docs[i].Name)
		b = appendBytes(b, docs[i].Content)
	}
	return b
}

// ParseDocuments decodes a documents part of at least one document; only what AppendDocuments writes is accepted. The contents alias the input.
func ParseDocuments(content []byte) ([]Document, error) {
	r := reader{b: content}
	n := r.count(cborArray, MaxDocuments)
	docs := make([]Document, 0, n)
	for i := 0; i < n && r.err == nil; i++ {
		r.count(cborArray, 3)
		docs = append(docs, Document{r.text(MaxNameBytes), r.text(MaxNameBytes), r.bytes(MaxBodyBytes)})
	}
	if r.err == nil && n == 0 {
		r.fail("has no documents")
	}
	if r.err == nil && !bytes.Equal(AppendDocuments(nil, docs), content) {
		r.fail("not in the deterministic encoding")
	}
	if r.err != nil {
		return nil, fmt.Errorf("malformed documents part: %w", r.err)
	}
	return docs, nil
}

// AppendBody appends the stored form of a body: u8 count, then for each part u8 kind, 32-byte key, u32 length, content.
func AppendBody(b []byte, parts []BodyPart) []byte {
	b = append(b, byte(len(parts)))
	for i := range parts {
		b = append(append(b, byte(parts[i].Kind)), parts[i].Key[:]...)
		b = binary.BigEndian.AppendUint32(b, uint32(len(parts[i].Content)))
		b = append(b, parts[i].Content...)
	}
	return b
}

// ParseBody reads the stored form of a body from the front of b and returns the rest. The contents alias b.
func ParseBody(b []byte) (parts []BodyPart, rest []byte, err error) {
	r := reader{b: b}
	n := r.take(1)
	for i := 0; r.err == nil && i < int(n[0]); i++ {
		head := r.take(1 + 32 + 4)
		if head == nil {
			break
		}
		p := BodyPart{Kind: PartKind(head[0]), Key: Key(head[1:33])}
		p.Content = r.take(uint64(binary.BigEndian.Uint32(head[33:])))
		parts = append(parts, p)
	}
	if r.err != nil {
		return nil, nil, fmt.Errorf("malformed stored body: %w", r.err)
	}
	return parts, r.b, nil
}
