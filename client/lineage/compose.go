package lineage

import (
	"errors"
	"fmt"
	"strings"
)

// Stamp is what the ledger itself says of an event.
type Stamp struct {
	RecordedAt int64 // microseconds since the Unix epoch
	Principal  string
	Authn      Authn
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
// of the work and needs no order between events, so it runs on the caller's goroutine. A draft is not safe for concurrent use.
type Draft struct {
	Body []BodyPart

	leaf Leaf

	// Room for a usual event, so that a draft is one object and its body's content a second, where there would be ten.
	parts       [2]BodyPart
	commitments [2]Commitment
	references  [4]LeafReference
	job, target Hash
}

// Prepare validates e and composes its body and name hashes. Errors are as for Compose.
func (c Composer) Prepare(e *Event) (*Draft, error) {
	if err := e.Validate(); err != nil {
		return nil, err
	}
	d := newDraft(e)
	c.names(d, e)
	if err := d.compose(e); err != nil {
		return nil, err
	}
	for i := range d.Body {
		d.Body[i].Key = c.NewKey()
	}
	d.commit()
	if len(d.leaf.References) > smallReferences {
		// The only way past the limit is a long list of references, so small events skip the measuring.
		worst := d.leaf
		worst.RecordedAt, worst.Principal = MaxTime, strings.Repeat("p", MaxPrincipal)
		if n := len(AppendLeaf(nil, &worst)); n > MaxLeafBytes {
			return nil, &tooLargeError{FieldError{"references", fmt.Sprintf("the leaf would have %d bytes, at most %d fit; put long reference lists into a manifest artifact", n, MaxLeafBytes)}}
		}
	}
	return d, nil
}

// smallReferences is a number of references that always fits: each takes at most 7 + 66 + (MaxAliases+1) * 69 bytes, all other fields
// together less than 4 KiB.
const smallReferences = 80

// AppendLeaf appends the leaf of the event as recorded with s. It may be called again with another stamp.
func (d *Draft) AppendLeaf(dst []byte, s Stamp) []byte {
	d.leaf.RecordedAt, d.leaf.Principal, d.leaf.Authn = s.RecordedAt, s.Principal, s.Authn
	return AppendLeaf(dst, &d.leaf)
}

// ErrTooLarge marks events that exceed a size limit rather than being malformed.
var ErrTooLarge = errors.New("event too large")

type tooLargeError struct{ FieldError }

func (e *tooLargeError) Unwrap() []error { return []error{&e.FieldError, ErrTooLarge} }

// newDraft fills a leaf with everything of e but name hashes and commitments.
func newDraft(e *Event) *Draft {
	d := &Draft{}
	l := &d.leaf
	l.EventID, l.Kind, l.Action, l.PredicateType, l.Source = e.ID, e.Kind, e.Action, e.PredicateType, e.source()
	l.OccurredAt, l.Initiator, l.RunID, l.ParentRunID = e.OccurredAt, e.Initiator, e.RunID, e.ParentRunID
	l.Entries, l.Policy, l.ExpiresAt = e.Entries, e.Policy, e.ExpiresAt
	l.References = d.references[:0]
	if n := len(e.References); n > len(d.references) {
		l.References = make([]LeafReference, 0, n)
	}
	for i := range e.References {
		f := &e.References[i]
		l.References = append(l.References, LeafReference{
			Role: f.Role, Kind: f.Kind, Purpose: f.Purpose, Known: f.Known, Identity: f.Digest, Aliases: f.Aliases,
		})
	}
	return d
}

func (e *Event) source() Source {
	if e.Source == 0 {
		return Native
	}
	return e.Source
}

// names puts name hashes where e has names.
func (c Composer) names(d *Draft, e *Event) {
	if !e.Job.IsZero() {
		d.job = c.HashName(e.Job)
		d.leaf.Job = &d.job
	}
	if !e.Target.IsZero() {
		d.target = c.HashName(e.Target)
		d.leaf.Target = &d.target
	}
	for i := range e.References {
		if n := e.References[i].Name; !n.IsZero() {
			h := c.HashName(n)
			d.leaf.References[i].addName(Digest{NameHMAC, string(h[:])})
		}
	}
}

// addName makes the hash of a name the identity, if there is no digest, or else the last alias.
func (f *LeafReference) addName(d Digest) {
	if f.Identity.IsZero() {
		f.Identity = d
		return
	}
	f.Aliases = append(f.Aliases[:len(f.Aliases):len(f.Aliases)], d)
}

// compose composes the body without keys. All parts lie in one buffer.
func (d *Draft) compose(e *Event) error {
	identifiers, most := e.identifiers()
	for i := range e.Documents {
		most += 3*maxHead + len(e.Documents[i].MediaType) + len(e.Documents[i].Name) + len(e.Documents[i].Content)
	}
	if len(e.Documents) > 0 {
		most += maxHead
	}
	if most > 2*MaxBodyBytes { // before a buffer of any size is made for it
		return bodyTooLarge(most)
	}
	b := make([]byte, 0, most)
	d.Body = d.parts[:0]
	if identifiers >= 0 {
		b = e.appendIdentifiers(b, identifiers)
		d.Body = append(d.Body, BodyPart{Kind: PartIdentifiers, Content: b[:len(b):len(b)]})
	}
	if len(e.Documents) > 0 {
		start := len(b)
		b = AppendDocuments(b, e.Documents)
		d.Body = append(d.Body, BodyPart{Kind: PartDocuments, Content: b[start:]})
	}
	if len(b) > MaxBodyBytes {
		return bodyTooLarge(len(b))
	}
	return nil
}

// commit computes the commitments from the body and its keys.
func (d *Draft) commit() {
	d.leaf.Bodies = d.commitments[:0]
	for i := range d.Body {
		p := &d.Body[i]
		d.leaf.Bodies = append(d.leaf.Bodies, Commitment{p.Kind, Commit(p.Kind, &p.Key, p.Content)})
	}
}

func bodyTooLarge(n int) error {
	return &tooLargeError{FieldError{"documents", fmt.Sprintf("the body has about %d bytes, at most %d fit; record large documents as artifacts by digest", n, MaxBodyBytes)}}
}
