// Package eventpb converts between the protobuf messages of the API and the vocabulary of client/lineage.
//
// It translates and does not judge: what a message can say and a [lineage.Event] cannot (malformed ids and digests, enum numbers that do
// not fit, fields of a newer API) is refused here with a [lineage.FieldError]; whether the event makes sense is
// [lineage.Event.Validate]'s to say. Paths in errors are in the spelling of the .proto files: references[2].digest.
//
// Event JSON is protobuf JSON (https://protobuf.dev/programming-guides/json/) of the message ledger.v1.Event; unknown fields are refused.
package eventpb

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/provledger/provledger/client/lineage"
	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

// ToEvent converts an event. Strings, document contents and the list of entries are shared with the message, which must not be changed
// afterwards. Errors are *lineage.FieldError.
func ToEvent(m *ledgerv1.Event) (*lineage.Event, error) {
	e := &lineage.Event{
		OccurredAt: m.GetOccurredAtUs(), Initiator: m.GetInitiator(), Entries: m.GetEntries(), ExpiresAt: m.GetExpiresAtUs(),
	}
	var c converter
	c.known(m, "event")
	c.action(e, m)
	e.Source = enum[lineage.Source](&c, "source", m.GetSource())
	e.ID = c.id("event_id", m.GetEventId())
	e.RunID = c.id("run_id", m.GetRunId())
	e.ParentRunID = c.id("parent_run_id", m.GetParentRunId())
	e.Job = c.name("job", m.GetJob())
	e.Target = c.name("target", m.GetTarget())
	e.Policy = c.digest("policy", m.GetPolicy())
	if n := len(m.GetReferences()); n > 0 && c.err == nil {
		e.References = make([]lineage.Reference, n)
		for i, r := range m.References {
			if c.reference(&e.References[i], r); c.err != nil {
				return nil, c.within("references", i)
			}
		}
	}
	if n := len(m.GetDocuments()); n > 0 && c.err == nil {
		e.Documents = make([]lineage.Document, n)
		for i, d := range m.Documents {
			if c.known(d, ""); c.err != nil {
				return nil, c.within("documents", i)
			}
			e.Documents[i] = lineage.Document{MediaType: d.GetMediaType(), Name: d.GetName(), Content: d.GetContent()}
		}
	}
	if c.err != nil {
		return nil, c.err
	}
	return e, nil
}

// converter collects the first error of a conversion, so that the hot path reads as one list of fields.
type converter struct{ err *lineage.FieldError }

func (c *converter) fail(path, format string, args ...any) {
	if c.err == nil {
		c.err = &lineage.FieldError{Path: path, Reason: fmt.Sprintf(format, args...)}
	}
}

// within puts the error's path under element i of a list.
func (c *converter) within(list string, i int) error {
	path := fmt.Sprintf("%s[%d]", list, i)
	if c.err.Path != "" {
		path += "." + c.err.Path
	}
	c.err.Path = path
	return c.err
}

// known refuses a message with fields that this version cannot record: to drop them silently would record less than was said.
func (c *converter) known(m proto.Message, path string) {
	if len(m.ProtoReflect().GetUnknown()) > 0 {
		c.fail(path, "has fields that this version does not know")
	}
}

func (c *converter) action(e *lineage.Event, m *ledgerv1.Event) {
	switch a := m.GetAction().(type) {
	case *ledgerv1.Event_Run:
		e.Kind, e.Action = lineage.KindRun, enum[uint8](c, "run", a.Run)
	case *ledgerv1.Event_Attestation:
		e.Kind, e.PredicateType = lineage.KindAttestation, a.Attestation
	case *ledgerv1.Event_Lifecycle:
		e.Kind, e.Action = lineage.KindLifecycle, enum[uint8](c, "lifecycle", a.Lifecycle)
	case *ledgerv1.Event_Access:
		e.Kind, e.Action = lineage.KindAccess, enum[uint8](c, "access", a.Access)
	}
}

// enum narrows an enum: the numbers of the API are those of the leaf, and those above a byte are nobody's.
func enum[T ~uint8, E ~int32](c *converter, path string, v E) T {
	if v < 0 || v > 255 {
		c.fail(path, "unknown value %d", int32(v))
	}
	return T(v)
}

func (c *converter) id(path, s string) lineage.ID {
	if s == "" || c.err != nil {
		return lineage.ID{}
	}
	id, err := lineage.ParseID(s)
	if err != nil {
		c.fail(path, "%v", err)
	}
	return id
}

func (c *converter) digest(path, s string) lineage.Digest {
	if s == "" || c.err != nil {
		return lineage.Digest{}
	}
	d, err := lineage.ParseDigest(s)
	if err != nil {
		c.fail(path, "%v", err)
	}
	return d
}

func (c *converter) name(path string, m *ledgerv1.Name) lineage.Name {
	if m == nil {
		return lineage.Name{}
	}
	c.known(m, path)
	return lineage.Name{Namespace: m.Namespace, Name: m.Name, Version: m.Version}
}

func (c *converter) reference(f *lineage.Reference, m *ledgerv1.Reference) {
	c.known(m, "")
	*f = lineage.Reference{
		Role:      enum[lineage.Role](c, "role", m.GetRole()),
		Kind:      enum[lineage.ArtifactKind](c, "kind", m.GetKind()),
		Purpose:   enum[lineage.Purpose](c, "purpose", m.GetPurpose()),
		Known:     enum[lineage.Known](c, "known", m.GetKnown()),
		Digest:    c.digest("digest", m.GetDigest()),
		Name:      c.name("name", m.GetName()),
		URI:       m.GetUri(),
		MediaType: m.GetMediaType(),
		Size:      m.GetSize(),
	}
	if n := len(m.GetAliases()); n > 0 && c.err == nil {
		f.Aliases = make([]lineage.Digest, n)
		for i, a := range m.Aliases {
			d, err := lineage.ParseDigest(a)
			if err != nil {
				c.fail(fmt.Sprintf("aliases[%d]", i), "%v", err)
				return
			}
			f.Aliases[i] = d
		}
	}
}

// FromEvent converts back; the result shares memory with e. The action of a control event, which the API cannot express, is left out.
func FromEvent(e *lineage.Event) *ledgerv1.Event {
	m := &ledgerv1.Event{
		EventId: idText(e.ID), Source: ledgerv1.Source(e.Source), OccurredAtUs: e.OccurredAt, Initiator: e.Initiator,
		RunId: idText(e.RunID), ParentRunId: idText(e.ParentRunID), Job: fromName(e.Job), Target: fromName(e.Target),
		Entries: e.Entries, Policy: e.Policy.String(), ExpiresAtUs: e.ExpiresAt,
	}
	switch e.Kind {
	case lineage.KindRun:
		m.Action = &ledgerv1.Event_Run{Run: ledgerv1.RunState(e.Action)}
	case lineage.KindAttestation:
		m.Action = &ledgerv1.Event_Attestation{Attestation: e.PredicateType}
	case lineage.KindLifecycle:
		m.Action = &ledgerv1.Event_Lifecycle{Lifecycle: ledgerv1.LifecycleVerb(e.Action)}
	case lineage.KindAccess:
		m.Action = &ledgerv1.Event_Access{Access: ledgerv1.AccessVerb(e.Action)}
	}
	for i := range e.References {
		f := &e.References[i]
		r := &ledgerv1.Reference{
			Role: ledgerv1.Role(f.Role), Kind: ledgerv1.ArtifactKind(f.Kind), Purpose: ledgerv1.Purpose(f.Purpose), Known: ledgerv1.Known(f.Known),
			Digest: f.Digest.String(), Name: fromName(f.Name), Uri: f.URI, MediaType: f.MediaType, Size: f.Size,
		}
		for _, a := range f.Aliases {
			r.Aliases = append(r.Aliases, a.String())
		}
		m.References = append(m.References, r)
	}
	for i := range e.Documents {
		d := &e.Documents[i]
		m.Documents = append(m.Documents, &ledgerv1.Document{MediaType: d.MediaType, Name: d.Name, Content: d.Content})
	}
	return m
}

func idText(id lineage.ID) string {
	if id == (lineage.ID{}) {
		return ""
	}
	return id.String()
}

func fromName(n lineage.Name) *ledgerv1.Name {
	if n.IsZero() {
		return nil
	}
	return &ledgerv1.Name{Namespace: n.Namespace, Name: n.Name, Version: n.Version}
}

// ToParts converts the parts of a body; the contents are shared. Errors are *lineage.FieldError.
func ToParts(p []*ledgerv1.BodyPart) ([]lineage.BodyPart, error) {
	if len(p) == 0 {
		return nil, nil
	}
	var c converter
	parts := make([]lineage.BodyPart, len(p))
	for i, m := range p {
		c.known(m, "")
		if m.GetPart() > 255 {
			c.fail("part", "unknown value %d", m.GetPart())
		}
		if n := len(m.GetKey()); n != len(lineage.Key{}) {
			c.fail("key", "has %d bytes, not %d", n, len(lineage.Key{}))
		}
		if c.err != nil {
			return nil, c.within("body", i)
		}
		parts[i] = lineage.BodyPart{Kind: lineage.PartKind(m.GetPart()), Key: lineage.Key(m.GetKey()), Content: m.GetContent()}
	}
	return parts, nil
}

// FromParts converts the parts of a body; keys and contents are shared with parts.
func FromParts(parts []lineage.BodyPart) []*ledgerv1.BodyPart {
	if len(parts) == 0 {
		return nil
	}
	p := make([]*ledgerv1.BodyPart, len(parts))
	for i := range parts {
		p[i] = &ledgerv1.BodyPart{Part: uint32(parts[i].Kind), Key: parts[i].Key[:], Content: parts[i].Content}
	}
	return p
}
