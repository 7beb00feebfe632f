package lineage

import (
	"errors"
	"fmt"
	"unicode/utf8"
)

// FieldError says which field of an event is wrong, and why. Path is in the spelling of the API: references[2].digest.
type FieldError struct{ Path, Reason string }

func (e *FieldError) Error() string { return e.Path + ": " + e.Reason }

func fieldErr(path, format string, args ...any) error {
	return &FieldError{path, fmt.Sprintf(format, args...)}
}

// Validate reports the first fault of an event as a *FieldError.
func (e *Event) Validate() error {
	switch {
	case e.ID == (ID{}):
		return fieldErr("event_id", "is required: a UUID, UUIDv7 by preference")
	case e.Kind == KindControl:
		return fieldErr("action", "control events are made by the ledger itself")
	case !kindNames.has(uint8(e.Kind)):
		return fieldErr("action", "one of run, attestation, lifecycle, access is required")
	case e.Kind == KindAttestation:
		if err := checkText("attestation", e.PredicateType, MaxPredicateType); err != nil {
			return err
		}
		if e.PredicateType == "" {
			return fieldErr("attestation", "the predicate type is required")
		}
		if e.Action != 0 {
			return fieldErr("attestation", "has a predicate type and no action")
		}
	case e.PredicateType != "":
		return fieldErr("attestation", "a predicate type belongs to an attestation, not to a %s event", e.Kind)
	case e.Action == 0:
		return fieldErr(e.Kind.String(), "is required")
	case !actionNames(e.Kind).has(e.Action):
		return fieldErr(e.Kind.String(), "unknown value %d", e.Action)
	}
	if !sourceNames.has(uint8(e.source())) {
		return fieldErr("source", "unknown source %d", e.Source)
	}
	if e.Kind == KindRun && e.RunID == (ID{}) {
		return fieldErr("run_id", "is required for a run event")
	}
	if (e.Kind == KindLifecycle || e.Kind == KindAccess) && len(e.References) == 0 {
		return fieldErr("references", "a subject is required for a %s event: it is said of an artifact", e.Kind)
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
	for i := range e.Entries {
		if i > 0 && e.Entries[i-1] >= e.Entries[i] {
			return fieldErr(fmt.Sprintf("entries[%d]", i), "%d is not greater than the one before it: each is said once, in ascending order", e.Entries[i])
		}
	}
	if !e.Policy.IsZero() {
		if err := e.Policy.checkIdentity(); err != nil {
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
	case !f.Known.fits(f.Digest.IsZero()):
		return fieldErr("known", "%s does not fit: computed, claimed and changed are said of a digest, name-only of a reference without one", f.Known)
	case f.Known == StoreVersion && f.Digest.IsZero() && f.Name.Version == "":
		return fieldErr("name.version", "is required: it is the identity of a store-version without a digest")
	case f.Size < 0:
		return fieldErr("size", "%d is negative", f.Size)
	case len(f.Aliases) > MaxAliases:
		return fieldErr("aliases", "%d exceed %d", len(f.Aliases), MaxAliases)
	}
	if !f.Digest.IsZero() {
		if err := f.Digest.checkIdentity(); err != nil {
			return fieldErr("digest", "%v", err)
		}
	}
	for i, a := range f.Aliases {
		if err := a.check(); err != nil {
			return fieldErr(fmt.Sprintf("aliases[%d]", i), "%v", err)
		}
		if a.Algorithm == NameHMAC {
			return fieldErr(fmt.Sprintf("aliases[%d]", i), "give the name instead of its hash")
		}
	}
	if i := repeated(f.Digest, f.Aliases); i >= 0 {
		return fieldErr(fmt.Sprintf("aliases[%d]", i), "repeats the digest or another alias")
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
	if n.IsZero() {
		return nil
	}
	if n.Name == "" {
		return fieldErr(path+".name", "is required beside a namespace or version")
	}
	err := checkText("namespace", n.Namespace, MaxNameBytes)
	if err == nil {
		err = checkText("name", n.Name, MaxNameBytes)
	}
	if err == nil {
		err = checkText("version", n.Version, MaxNameBytes)
	}
	if err != nil {
		return within(path+".", err)
	}
	return nil
}

// fits reports whether an identity by name alone, or by digest, can be known in the way k.
func (k Known) fits(nameOnly bool) bool {
	return k == StoreVersion || nameOnly == (k == NameOnly)
}

// checkText refuses what terminals, JSON readers and CBOR readers would see differently.
func checkText(path, s string, most int) error {
	if len(s) > most {
		return fieldErr(path, "%d bytes exceed %d", len(s), most)
	}
	if reason := badText(s); reason != "" {
		return fieldErr(path, "%s", reason)
	}
	return nil
}

// badText says why s may stand nowhere in an event, or "". Control characters (C0, DEL and C1) are refused, not escaped later: a leaf is
// printed on terminals by programs that nobody here wrote.
func badText(s string) string {
	for i := 0; i < len(s); {
		if c := s[i]; c < utf8.RuneSelf {
			if c < 0x20 || c == 0x7f {
				return fmt.Sprintf("has a control character at byte %d", i)
			}
			i++
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n == 1 {
			return fmt.Sprintf("is not valid UTF-8 at byte %d", i)
		}
		if r < 0xa0 {
			return fmt.Sprintf("has a control character at byte %d", i)
		}
		i += n
	}
	return ""
}
