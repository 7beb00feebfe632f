package lineage

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strings"
	"unicode/utf8"
)

// Stamp is what the ledger itself says of an event.
type Stamp struct {
	RecordedAt int64 // microseconds since the Unix epoch
	Principal  string
	Authn      Authn
}

// FieldError says which field of an event is wrong, and why. Path is in the spelling of the API: references[2].digest.
type FieldError struct{ Path, Reason string }

func (e *FieldError) Error() string { return e.Path + ": " + e.Reason }

func fieldErr(path, format string, args ...any) error {
	return &FieldError{path, fmt.Sprintf(format, args...)}
}

// Composer turns events into entries.
type Composer struct {
	// HashName returns the log's hash of a name; see [HashName].
	HashName func(Name) Hash
	// NewKey returns 32 fresh random bytes.
	NewKey func() Key
}

// Compose appends the leaf of e to dst and returns it with the body. Errors are *FieldError: an event that is invalid, or that is too
// large (ErrTooLarge is then in the chain). Nothing of e is kept but document contents, which the body copies.
func (c Composer) Compose(dst []byte, e *Event, s Stamp) (leaf []byte, body []BodyPart, err error) {
	d, err := c.Prepare(e)
	if err != nil {
		return nil, nil, err
	}
	return d.AppendLeaf(dst, s), d.Body, nil
}

// Draft is an event with everything composed but what the ledger says of it at the moment of recording. Preparing is the larger part
// of the work and needs no order between events, so it runs on the caller's goroutine.
type Draft struct {
	Body []BodyPart
	leaf *Leaf
}

// Prepare validates e and composes its body and name hashes. Errors are as for Compose.
func (c Composer) Prepare(e *Event) (*Draft, error) {
	if err := e.Validate(); err != nil {
		return nil, err
	}
	l := e.skeleton(Stamp{})
	c.names(l, e)
	body, err := e.parts()
	if err != nil {
		return nil, err
	}
	l.Bodies = make([]Commitment, len(body))
	for i := range body {
		body[i].Key = c.NewKey()
		l.Bodies[i] = Commitment{body[i].Kind, Commit(body[i].Kind, &body[i].Key, body[i].Content)}
	}
	if len(l.References) > smallReferences {
		// The only way past the limit is a long list of references, so small events skip the measuring.
		worst := *l
		worst.RecordedAt, worst.Principal = MaxTime, strings.Repeat("p", MaxPrincipal)
		if n := len(AppendLeaf(nil, &worst)); n > MaxLeafBytes {
			return nil, &tooLargeError{FieldError{"references", fmt.Sprintf("the leaf would have %d bytes, at most %d fit; put long reference lists into a manifest artifact", n, MaxLeafBytes)}}
		}
	}
	return &Draft{body, l}, nil
}

// smallReferences is a number of references that always fits: each takes at most 7 + 66 + (MaxAliases+1) * 69 bytes, all other fields
// together less than 4 KiB.
const smallReferences = 80

// AppendLeaf appends the leaf of the event as recorded with s. It may be called again with another stamp.
func (d *Draft) AppendLeaf(dst []byte, s Stamp) []byte {
	d.leaf.RecordedAt, d.leaf.Principal, d.leaf.Authn = s.RecordedAt, s.Principal, s.Authn
	return AppendLeaf(dst, d.leaf)
}

// ErrTooLarge marks events that exceed a size limit rather than being malformed.
var ErrTooLarge = errors.New("event too large")

type tooLargeError struct{ FieldError }

func (e *tooLargeError) Unwrap() []error { return []error{&e.FieldError, ErrTooLarge} }

// skeleton fills a leaf with everything of e but name hashes and commitments.
func (e *Event) skeleton(s Stamp) *Leaf {
	l := &Leaf{
		EventID: e.ID, Kind: e.Kind, Action: e.Action, PredicateType: e.PredicateType, Source: e.source(),
		RecordedAt: s.RecordedAt, OccurredAt: e.OccurredAt, Principal: s.Principal, Authn: s.Authn, Initiator: e.Initiator,
		RunID: e.RunID, ParentRunID: e.ParentRunID, Entries: e.Entries, Policy: e.Policy, ExpiresAt: e.ExpiresAt, Control: e.Control,
	}
	if len(e.References) > 0 {
		l.References = make([]LeafReference, len(e.References))
		for i := range e.References {
			f := &e.References[i]
			l.References[i] = LeafReference{Role: f.Role, Kind: f.Kind, Purpose: f.Purpose, Known: f.Known, Identity: f.Digest, Aliases: f.Aliases}
		}
	}
	return l
}

func (e *Event) source() Source {
	if e.Source == 0 {
		return Native
	}
	return e.Source
}

func (c Composer) names(l *Leaf, e *Event) {
	hash := func(n Name) *Hash {
		if n.IsZero() {
			return nil
		}
		h := c.HashName(n)
		return &h
	}
	l.Job, l.Target = hash(e.Job), hash(e.Target)
	for i := range e.References {
		h := hash(e.References[i].Name)
		if h == nil {
			continue
		}
		d := Digest{NameHMAC, string(h[:])}
		if f := &l.References[i]; f.Identity.IsZero() {
			f.Identity = d
		} else {
			f.Aliases = append(f.Aliases[:len(f.Aliases):len(f.Aliases)], d)
		}
	}
}

// parts composes the body without keys.
func (e *Event) parts() ([]BodyPart, error) {
	var parts []BodyPart
	size := 0
	if x, ok := e.identifiers(); ok {
		parts = append(parts, BodyPart{Kind: PartIdentifiers, Content: AppendIdentifiers(make([]byte, 0, 128), x)})
		size += len(parts[0].Content)
	}
	if len(e.Documents) > 0 {
		n := 8
		for i := range e.Documents {
			n += 32 + len(e.Documents[i].MediaType) + len(e.Documents[i].Name) + len(e.Documents[i].Content)
		}
		if n > 2*MaxBodyBytes {
			return nil, bodyTooLarge(n)
		}
		parts = append(parts, BodyPart{Kind: PartDocuments, Content: AppendDocuments(make([]byte, 0, n), e.Documents)})
		size += len(parts[len(parts)-1].Content)
	}
	if size > MaxBodyBytes {
		return nil, bodyTooLarge(size)
	}
	return parts, nil
}

func bodyTooLarge(n int) error {
	return &tooLargeError{FieldError{"documents", fmt.Sprintf("the body has about %d bytes, at most %d fit; record large documents as artifacts by digest", n, MaxBodyBytes)}}
}

// CheckRecorded reports whether a leaf, with the keys of its body parts in the leaf's order, says exactly what e says: the client's
// check of what came back, and the ledger's check that a resent event is the same. What the ledger adds (time, principal,
// authentication, keys) is taken from the leaf. hashName may be nil: name hashes are then taken from the leaf, for only holders of
// the reference key can check them. The error names the first field that differs.
func CheckRecorded(e *Event, leaf []byte, keys []Key, hashName func(Name) Hash) error {
	l, err := ParseLeaf(leaf)
	if err != nil {
		return err
	}
	want := e.skeleton(Stamp{l.RecordedAt, l.Principal, l.Authn})
	if hashName != nil {
		Composer{HashName: hashName}.names(want, e)
	} else {
		want.adoptNames(e, l)
	}
	parts, err := e.parts()
	if err != nil {
		return err
	}
	if len(parts) != len(keys) {
		return fmt.Errorf("%d body parts recorded, %d sent", len(keys), len(parts))
	}
	for i := range parts {
		want.Bodies = append(want.Bodies, Commitment{parts[i].Kind, Commit(parts[i].Kind, &keys[i], parts[i].Content)})
	}
	if again := AppendLeaf(make([]byte, 0, len(leaf)), want); !bytes.Equal(again, leaf) {
		return fmt.Errorf("recorded %s differs from what was sent", want.firstDifference(l))
	}
	return nil
}

// adoptNames takes the name hashes of got where e has a name, so that only their presence and place are compared.
func (l *Leaf) adoptNames(e *Event, got *Leaf) {
	if !e.Job.IsZero() {
		l.Job = got.Job
	}
	if !e.Target.IsZero() {
		l.Target = got.Target
	}
	for i := range e.References {
		if e.References[i].Name.IsZero() || i >= len(got.References) {
			continue
		}
		f, g := &l.References[i], &got.References[i]
		if f.Identity.IsZero() {
			if g.Identity.Algorithm == NameHMAC {
				f.Identity = g.Identity
			}
		} else if n := len(g.Aliases); n > 0 && g.Aliases[n-1].Algorithm == NameHMAC {
			f.Aliases = append(f.Aliases[:len(f.Aliases):len(f.Aliases)], g.Aliases[n-1])
		}
	}
}

// firstDifference names the first field in which two leaves differ, for the error message.
func (l *Leaf) firstDifference(g *Leaf) string {
	type field struct {
		name string
		put  func(*Leaf) Leaf
	}
	for _, f := range []field{
		{"event id", func(l *Leaf) Leaf { return Leaf{EventID: l.EventID} }},
		{"kind or action", func(l *Leaf) Leaf { return Leaf{Kind: l.Kind, Action: l.Action, PredicateType: l.PredicateType} }},
		{"source", func(l *Leaf) Leaf { return Leaf{Source: l.Source} }},
		{"occurrence time", func(l *Leaf) Leaf { return Leaf{OccurredAt: l.OccurredAt} }},
		{"initiator", func(l *Leaf) Leaf { return Leaf{Initiator: l.Initiator} }},
		{"run", func(l *Leaf) Leaf { return Leaf{RunID: l.RunID, ParentRunID: l.ParentRunID} }},
		{"job", func(l *Leaf) Leaf { return Leaf{Job: l.Job} }},
		{"references", func(l *Leaf) Leaf { return Leaf{References: l.References} }},
		{"target", func(l *Leaf) Leaf { return Leaf{Target: l.Target} }},
		{"entries", func(l *Leaf) Leaf { return Leaf{Entries: l.Entries} }},
		{"policy", func(l *Leaf) Leaf { return Leaf{Policy: l.Policy} }},
		{"expiry", func(l *Leaf) Leaf { return Leaf{ExpiresAt: l.ExpiresAt} }},
		{"body", func(l *Leaf) Leaf { return Leaf{Bodies: l.Bodies} }},
	} {
		a, b := f.put(l), f.put(g)
		if !bytes.Equal(AppendLeaf(nil, &a), AppendLeaf(nil, &b)) {
			return f.name
		}
	}
	return "leaf"
}

// Validate reports the first fault of an event as a *FieldError.
func (e *Event) Validate() error {
	switch {
	case e.ID == (ID{}):
		return fieldErr("event_id", "is required: a UUID, UUIDv7 by preference")
	case !kindNames.has(uint8(e.Kind)):
		return fieldErr("action", "one of run, attestation, lifecycle, access is required")
	case e.Kind == KindAttestation:
		if err := checkText("attestation", e.PredicateType, MaxPredicateType); err != nil {
			return err
		}
		if e.PredicateType == "" {
			return fieldErr("attestation", "the predicate type is required")
		}
	case !actionNames(e.Kind).has(e.Action):
		return fieldErr(e.Kind.String(), "unknown action %d", e.Action)
	}
	if !sourceNames.has(uint8(e.source())) {
		return fieldErr("source", "unknown source %d", e.Source)
	}
	if (e.Control != nil) != (e.Kind == KindControl) {
		return fieldErr("action", "control events are made by the ledger itself")
	}
	if e.Kind == KindRun && e.RunID == (ID{}) {
		return fieldErr("run_id", "is required for a run event")
	}
	for _, t := range [...]struct {
		path string
		v    int64
	}{{"occurred_at_us", e.OccurredAt}, {"expires_at_us", e.ExpiresAt}} {
		if t.v < 0 || t.v > MaxTime {
			return fieldErr(t.path, "%d is not between 1970 and the year 9999", t.v)
		}
	}
	if err := checkText("initiator", e.Initiator, MaxPrincipal); err != nil {
		return err
	}
	if err := checkName("job", e.Job); err != nil {
		return err
	}
	if err := checkName("target", e.Target); err != nil {
		return err
	}
	if n := len(e.References); n > MaxReferences {
		return &tooLargeError{FieldError{"references", fmt.Sprintf("%d exceed %d; make a manifest artifact and reference that", n, MaxReferences)}}
	}
	for i := range e.References {
		if err := e.References[i].validate(); err != nil {
			return within(fmt.Sprintf("references[%d].", i), err)
		}
	}
	if n := len(e.Entries); n > MaxEntryLinks {
		return fieldErr("entries", "%d exceed %d", n, MaxEntryLinks)
	}
	if !e.Policy.IsZero() {
		if err := e.Policy.check(); err != nil {
			return fieldErr("policy", "%v", err)
		}
	}
	return checkDocuments(e.Documents)
}

func checkDocuments(docs []Document) error {
	if n := len(docs); n > MaxDocuments {
		return fieldErr("documents", "%d exceed %d", n, MaxDocuments)
	}
	for i := range docs {
		err := checkText("media_type", docs[i].MediaType, MaxNameBytes)
		if err == nil {
			err = checkText("name", docs[i].Name, MaxNameBytes)
		}
		if err != nil {
			return within(fmt.Sprintf("documents[%d].", i), err)
		}
	}
	return nil
}

// within puts the path of the enclosing field before that of a FieldError.
func within(prefix string, err error) error {
	if f, ok := errors.AsType[*FieldError](err); ok {
		f.Path = prefix + f.Path
	}
	return err
}

func (f *Reference) validate() error {
	switch {
	case !roleNames.has(uint8(f.Role)):
		return fieldErr("role", "input, output or subject is required")
	case f.Kind != 0 && !artifactNames.has(uint8(f.Kind)):
		return fieldErr("kind", "unknown artifact kind %d", f.Kind)
	case f.Purpose != 0 && !purposeNames.has(uint8(f.Purpose)):
		return fieldErr("purpose", "unknown purpose %d", f.Purpose)
	case !knownNames.has(uint8(f.Known)):
		return fieldErr("known", "computed, claimed, store-version, name-only or changed is required")
	case f.Digest.IsZero() && f.Name.IsZero():
		return fieldErr("digest", "a digest or a name is required")
	case f.Digest.IsZero() != (f.Known == NameOnly):
		return fieldErr("known", "%s does not fit: name-only means that there is no digest", f.Known)
	case f.Size < 0:
		return fieldErr("size", "%d is negative", f.Size)
	case len(f.Aliases) > MaxAliases:
		return fieldErr("aliases", "%d exceed %d", len(f.Aliases), MaxAliases)
	}
	if !f.Digest.IsZero() {
		if err := f.Digest.check(); err != nil {
			return fieldErr("digest", "%v", err)
		}
		if info, _ := f.Digest.Algorithm.info(); !info.primary || f.Digest.Algorithm == NameHMAC {
			return fieldErr("digest", "%s may be an alias only", f.Digest.Algorithm)
		}
	}
	for _, a := range f.Aliases {
		if err := a.check(); err != nil {
			return fieldErr("aliases", "%v", err)
		}
		if a.Algorithm == NameHMAC {
			return fieldErr("aliases", "give the name instead of its hash")
		}
	}
	if err := checkName("name", f.Name); err != nil {
		return err
	}
	if err := checkText("uri", f.URI, MaxURIBytes); err != nil {
		return err
	}
	return checkText("media_type", f.MediaType, MaxNameBytes)
}

func checkName(path string, n Name) error {
	if !n.IsZero() && n.Name == "" {
		return fieldErr(path+".name", "is required beside a namespace or version")
	}
	for _, t := range [...]struct{ part, s string }{{"namespace", n.Namespace}, {"name", n.Name}, {"version", n.Version}} {
		if err := checkText(path+"."+t.part, t.s, MaxNameBytes); err != nil {
			return err
		}
	}
	return nil
}

// checkText refuses what terminals, JSON readers and CBOR readers would see differently.
func checkText(path, s string, most int) error {
	if len(s) > most {
		return fieldErr(path, "%d bytes exceed %d", len(s), most)
	}
	if !utf8.ValidString(s) {
		return fieldErr(path, "is not valid UTF-8")
	}
	if i := strings.IndexFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f }); i >= 0 {
		return fieldErr(path, "has a control character at byte %d", i)
	}
	return nil
}

// MaxEntryBytes bounds the stored size of an entry: leaf and body with their framing.
const MaxEntryBytes = MaxLeafBytes + MaxBodyBytes + maxParts*64 + math.MaxUint8
