package lineage

import (
	"bytes"
	"crypto/sha256"
	_ "embed" // leaf.cddl
	"errors"
	"fmt"
	"math/bits"
	"slices"
)

// LeafTag opens every lineage leaf, so that no other record can be read as one (the RFC 6962 prefix separates leaf from node only).
const LeafTag = "pvleaf\x00"

// Schema is the leaf schema that this package writes.
const Schema = 1

// SchemaID names the schema in genesis entries.
const SchemaID = "provledger/leaf/1"

// schemaCDDL is a copy of docs/leaf.cddl, which a test holds to it: embedding cannot reach out of the package.
//
//go:embed leaf.cddl
var schemaCDDL string

// SchemaCDDL returns the CDDL (RFC 8610) of the leaf.
func SchemaCDDL() string { return schemaCDDL }

// SchemaDigest returns the SHA-256 of SchemaCDDL, as genesis entries carry it.
func SchemaDigest() Digest {
	h := sha256.Sum256([]byte(schemaCDDL))
	return Digest{SHA256, string(h[:])}
}

// Errors of ParseLeaf.
var (
	// ErrUnknownSchema means that the leaf is of a schema that this version cannot read: neither verified nor refuted.
	ErrUnknownSchema = errors.New("unknown leaf schema")
	// ErrLeaf means that the bytes are no leaf of schema 1.
	ErrLeaf = errors.New("malformed leaf")
)

// Leaf is the decoded public skeleton of an entry. docs/format.md has its CDDL; the numbers are the map keys.
type Leaf struct {
	EventID       ID              // 2
	Kind          Kind            // 3
	Action        uint8           // 4, all kinds but attestation
	PredicateType string          // 4, attestation
	Source        Source          // 5
	RecordedAt    int64           // 6, set by the leader, microseconds, never decreases within a log
	OccurredAt    int64           // 7, claim
	Principal     string          // 8
	Authn         Authn           // 9
	Initiator     string          // 10, claim
	RunID         ID              // 11
	ParentRunID   ID              // 12
	Job           *Hash           // 13, name hash
	References    []LeafReference // 14
	Target        *Hash           // 15, name hash
	Entries       []uint64        // 16
	Policy        Digest          // 17
	ExpiresAt     int64           // 18
	Bodies        []Commitment    // 19
	Control       *Control        // 20
}

// Hash is a 32-byte hash or HMAC.
type Hash = [32]byte

// LeafReference is a reference as the leaf has it.
type LeafReference struct {
	Role     Role
	Kind     ArtifactKind
	Purpose  Purpose
	Known    Known
	Identity Digest // NameHMAC if known by name only
	Aliases  []Digest
}

// hasName reports whether a name hash is the identity or, the last, among the aliases.
func (f *LeafReference) hasName() bool {
	n := len(f.Aliases)
	return f.Identity.Algorithm == NameHMAC || n > 0 && f.Aliases[n-1].Algorithm == NameHMAC
}

// IsGenesis reports whether the leaf is the genesis of a log.
func (l *Leaf) IsGenesis() bool {
	return l.Kind == KindControl && ControlKind(l.Action) == ControlGenesis
}

// HasNames reports whether the leaf has any name hash: of job, target or a reference.
func (l *Leaf) HasNames() bool {
	return l.Job != nil || l.Target != nil || slices.ContainsFunc(l.References, func(f LeafReference) bool { return f.hasName() })
}

// Commitment binds one part of the body.
type Commitment struct {
	Part PartKind
	MAC  Hash
}

// Control is the payload of a control event. The numbers are the map keys. A field belongs to the control kinds that stand beside it; all
// other kinds have none.
type Control struct {
	Origin        string       // 1 genesis, log
	LogKind       LogKind      // 2 genesis, log
	ClusterID     ID           // 3 genesis
	HashAlgorithm Algorithm    // 4 genesis
	CreatedAt     int64        // 5 genesis, log
	VKey          string       // 6 genesis, log
	SchemaID      string       // 7 genesis
	SchemaDigest  Digest       // 8 genesis
	IndexFunction uint64       // 9 genesis: version of the index function
	Predecessor   *Predecessor // 10 genesis
	LogNumber     uint32       // 11 log
	LogName       string       // 12 genesis, log
	Principal     string       // 13 principal
	Owner         string       // 14 principal: another principal id
}

// Predecessor names the log that a new origin continues.
type Predecessor struct {
	Origin string
	Size   uint64
	Root   Hash
	VKey   string
}

// LogKind says what the leaves of a log are.
type LogKind uint8

// Kinds of logs.
const (
	LineageLog LogKind = 1 // leaves of this package
	OpaqueLog  LogKind = 2 // any bytes
)

var logKindNames = names{"", "lineage", "opaque"}

func (k LogKind) String() string { return logKindNames.text(uint8(k)) }

// AppendLeaf appends the leaf bytes of l: LeafTag and a CBOR map in the core deterministic encoding of RFC 8949 4.2.1.
func AppendLeaf(b []byte, l *Leaf) []byte {
	b = append(b, LeafTag...)
	b = appendHead(b, cborMap, uint64(l.pairs()))
	b = appendPair(b, 1, Schema)
	b = appendBytes(append(b, 2), l.EventID[:])
	b = appendPair(b, 3, uint64(l.Kind))
	if l.Kind == KindAttestation {
		b = appendText(append(b, 4), l.PredicateType)
	} else {
		b = appendPair(b, 4, uint64(l.Action))
	}
	b = appendPair(b, 5, uint64(l.Source))
	b = appendPair(b, 6, uint64(l.RecordedAt))
	if l.OccurredAt != 0 {
		b = appendPair(b, 7, uint64(l.OccurredAt))
	}
	b = appendText(append(b, 8), l.Principal)
	b = appendPair(b, 9, uint64(l.Authn))
	if l.Initiator != "" {
		b = appendText(append(b, 10), l.Initiator)
	}
	if l.RunID != (ID{}) {
		b = appendBytes(append(b, 11), l.RunID[:])
	}
	if l.ParentRunID != (ID{}) {
		b = appendBytes(append(b, 12), l.ParentRunID[:])
	}
	if l.Job != nil {
		b = appendBytes(append(b, 13), l.Job[:])
	}
	if len(l.References) > 0 {
		b = appendHead(append(b, 14), cborArray, uint64(len(l.References)))
		for i := range l.References {
			b = l.References[i].append(b)
		}
	}
	if l.Target != nil {
		b = appendBytes(append(b, 15), l.Target[:])
	}
	if len(l.Entries) > 0 {
		b = appendHead(append(b, 16), cborArray, uint64(len(l.Entries)))
		for _, n := range l.Entries {
			b = appendHead(b, cborUint, n)
		}
	}
	if !l.Policy.IsZero() {
		b = appendDigest(append(b, 17), l.Policy)
	}
	if l.ExpiresAt != 0 {
		b = appendPair(b, 18, uint64(l.ExpiresAt))
	}
	if len(l.Bodies) > 0 {
		b = appendHead(append(b, 19), cborArray, uint64(len(l.Bodies)))
		for i := range l.Bodies {
			b = appendHead(b, cborArray, 2)
			b = appendHead(b, cborUint, uint64(l.Bodies[i].Part))
			b = appendBytes(b, l.Bodies[i].MAC[:])
		}
	}
	if l.Control != nil {
		b = l.Control.append(append(b, 20))
	}
	return b
}

func (l *Leaf) pairs() int {
	n := 8 // schema, event id, kind, action, source, recorded_at, principal, authn
	for _, set := range [...]bool{
		l.OccurredAt != 0, l.Initiator != "", l.RunID != (ID{}), l.ParentRunID != (ID{}), l.Job != nil,
		len(l.References) > 0, l.Target != nil, len(l.Entries) > 0, !l.Policy.IsZero(), l.ExpiresAt != 0, len(l.Bodies) > 0, l.Control != nil,
	} {
		if set {
			n++
		}
	}
	return n
}

func (r *LeafReference) append(b []byte) []byte {
	n := uint64(6)
	if len(r.Aliases) > 0 {
		n = 7
	}
	b = appendHead(b, cborArray, n)
	b = appendHead(b, cborUint, uint64(r.Role))
	b = appendHead(b, cborUint, uint64(r.Kind))
	b = appendHead(b, cborUint, uint64(r.Purpose))
	b = appendHead(b, cborUint, uint64(r.Known))
	b = appendHead(b, cborUint, uint64(r.Identity.Algorithm))
	b = appendBytes(b, r.Identity.Value)
	if len(r.Aliases) > 0 {
		b = appendHead(b, cborArray, uint64(len(r.Aliases)))
		for _, a := range r.Aliases {
			b = appendDigest(b, a)
		}
	}
	return b
}

// fields returns which fields are set: bit n stands for map key n.
func (c *Control) fields() (set uint32) {
	for i, is := range [...]bool{
		c.Origin != "", c.LogKind != 0, c.ClusterID != (ID{}), c.HashAlgorithm != 0, c.CreatedAt != 0, c.VKey != "", c.SchemaID != "",
		!c.SchemaDigest.IsZero(), c.IndexFunction != 0, c.Predecessor != nil, c.LogNumber != 0, c.LogName != "", c.Principal != "", c.Owner != "",
	} {
		if is {
			set |= 1 << (i + 1)
		}
	}
	return set
}

func (c *Control) append(b []byte) []byte {
	b = appendHead(b, cborMap, uint64(bits.OnesCount32(c.fields())))
	text := func(key byte, s string) {
		if s != "" {
			b = appendText(append(b, key), s)
		}
	}
	num := func(key byte, v uint64) {
		if v != 0 {
			b = appendPair(b, key, v)
		}
	}
	text(1, c.Origin)
	num(2, uint64(c.LogKind))
	if c.ClusterID != (ID{}) {
		b = appendBytes(append(b, 3), c.ClusterID[:])
	}
	num(4, uint64(c.HashAlgorithm))
	num(5, uint64(c.CreatedAt))
	text(6, c.VKey)
	text(7, c.SchemaID)
	if !c.SchemaDigest.IsZero() {
		b = appendDigest(append(b, 8), c.SchemaDigest)
	}
	num(9, c.IndexFunction)
	if p := c.Predecessor; p != nil {
		b = appendHead(append(b, 10), cborArray, 4)
		b = appendText(b, p.Origin)
		b = appendHead(b, cborUint, p.Size)
		b = appendBytes(b, p.Root[:])
		b = appendText(b, p.VKey)
	}
	num(11, uint64(c.LogNumber))
	text(12, c.LogName)
	text(13, c.Principal)
	text(14, c.Owner)
	return b
}

// ParseLeaf decodes leaf bytes. It accepts exactly what AppendLeaf writes: the result is encoded again and compared, so each event has
// one leaf. Errors wrap ErrUnknownSchema or ErrLeaf.
func ParseLeaf(leaf []byte) (*Leaf, error) {
	l, err := decodeLeaf(leaf)
	if err != nil {
		return nil, err
	}
	// One comparison enforces shortest integers, key order, no duplicates and no empty optional field.
	if !l.encodesTo(leaf) {
		return nil, fmt.Errorf("%w: not in the deterministic encoding", ErrLeaf)
	}
	return l, nil
}

// encodesTo reports whether leaf is what AppendLeaf makes of l.
func (l *Leaf) encodesTo(leaf []byte) bool {
	var usual [512]byte // a leaf of a few references: no allocation
	return bytes.Equal(AppendLeaf(usual[:0], l), leaf)
}

// decodeLeaf decodes a leaf in any encoding. The caller has to hold the bytes to the one that AppendLeaf writes.
func decodeLeaf(leaf []byte) (*Leaf, error) {
	if len(leaf) > MaxLeafBytes {
		return nil, fmt.Errorf("%w: %d bytes exceed %d", ErrLeaf, len(leaf), MaxLeafBytes)
	}
	if !bytes.HasPrefix(leaf, []byte(LeafTag)) {
		return nil, fmt.Errorf("%w: does not start with the lineage leaf tag", ErrLeaf)
	}
	r := reader{b: leaf[len(LeafTag):], all: string(leaf)}
	pairs := r.head(cborMap)
	if key := r.take(1); pairs == 0 || key != nil && key[0] != 1 {
		r.fail("schema is not the first field")
	}
	// Head and number may have any length here: what another schema holds of encodings is not for this one to say.
	schema := r.uint()
	if r.err == nil && schema != Schema {
		return nil, fmt.Errorf("%w %d; this version reads %d", ErrUnknownSchema, schema, Schema)
	}
	l := &Leaf{}
	for i := uint64(1); i < pairs && r.err == nil; i++ {
		l.field(&r)
	}
	if r.err == nil && len(r.b) > 0 {
		r.fail("%d bytes after the map", len(r.b))
	}
	if r.err == nil {
		r.err = l.check()
	}
	if r.err != nil {
		return nil, fmt.Errorf("%w: %w", ErrLeaf, r.err)
	}
	return l, nil
}

func (l *Leaf) field(r *reader) {
	switch key := r.uint(); key {
	case 2:
		l.EventID = r.id()
	case 3:
		l.Kind = Kind(r.uint8())
	case 4:
		if l.Kind == KindAttestation {
			l.PredicateType = r.text(MaxPredicateType)
		} else {
			l.Action = r.uint8()
		}
	case 5:
		l.Source = Source(r.uint8())
	case 6:
		l.RecordedAt = r.time()
	case 7:
		l.OccurredAt = r.time()
	case 8:
		l.Principal = r.text(MaxPrincipal)
	case 9:
		l.Authn = Authn(r.uint8())
	case 10:
		l.Initiator = r.text(MaxPrincipal)
	case 11:
		l.RunID = r.id()
	case 12:
		l.ParentRunID = r.id()
	case 13:
		h := r.hash()
		l.Job = &h
	case 14:
		n := r.count(cborArray, MaxReferences)
		l.References = make([]LeafReference, n)
		for i := 0; i < n && r.err == nil; i++ {
			l.References[i].read(r)
		}
	case 15:
		h := r.hash()
		l.Target = &h
	case 16:
		n := r.count(cborArray, MaxEntryLinks)
		l.Entries = make([]uint64, n)
		for i := range l.Entries {
			l.Entries[i] = r.uint()
		}
	case 17:
		l.Policy = r.digest()
	case 18:
		l.ExpiresAt = r.time()
	case 19:
		n := r.count(cborArray, maxParts)
		l.Bodies = make([]Commitment, n)
		for i := range l.Bodies {
			r.count(cborArray, 2)
			l.Bodies[i] = Commitment{PartKind(r.uint8()), r.hash()}
		}
	case 20:
		l.Control = r.control()
	default:
		r.fail("unknown field %d", key)
	}
}

func (f *LeafReference) read(r *reader) {
	n := r.count(cborArray, 7)
	f.Role = Role(r.uint8())
	f.Kind = ArtifactKind(r.uint8())
	f.Purpose = Purpose(r.uint8())
	f.Known = Known(r.uint8())
	f.Identity = Digest{Algorithm(r.uint8()), r.string(r.bytes(64))}
	if n == 7 {
		m := r.count(cborArray, MaxAliases+1)
		f.Aliases = make([]Digest, m)
		for i := range f.Aliases {
			f.Aliases[i] = r.digest()
		}
	}
}
