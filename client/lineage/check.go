package lineage

import (
	"errors"
	"fmt"
)

// check holds a decoded leaf to the rules that the encoding does not express. Artifact kind, purpose and authentication are open sets: a
// value that this version does not know is shown as unknown, not refused.
func (l *Leaf) check() error {
	switch {
	case l.EventID == (ID{}):
		return errors.New("no event id")
	case !kindNames.has(uint8(l.Kind)):
		return fmt.Errorf("unknown kind %d", l.Kind)
	case l.Kind == KindAttestation && l.PredicateType == "":
		return errors.New("attestation without predicate type")
	case l.Kind != KindAttestation && !actionNames(l.Kind).has(l.Action):
		return fmt.Errorf("unknown action %d of a %s", l.Action, l.Kind)
	case !sourceNames.has(uint8(l.Source)):
		return fmt.Errorf("unknown source %d", l.Source)
	case l.Principal == "":
		return errors.New("no principal")
	case l.RecordedAt == 0:
		return errors.New("no recording time")
	case l.Kind == KindRun && l.RunID == (ID{}):
		return errors.New("run event without run id")
	case (l.Control != nil) != (l.Kind == KindControl):
		return errors.New("control payload and kind do not match")
	}
	for i := range l.References {
		if err := l.References[i].check(); err != nil {
			return fmt.Errorf("references[%d]: %w", i, err)
		}
	}
	if !l.Policy.IsZero() {
		if err := l.Policy.check(); err != nil {
			return fmt.Errorf("policy: %w", err)
		}
	}
	for i, c := range l.Bodies {
		if !partNames.has(uint8(c.Part)) {
			return fmt.Errorf("unknown body part %d", c.Part)
		}
		if i > 0 && l.Bodies[i-1].Part >= c.Part {
			return errors.New("body parts are not in ascending order")
		}
	}
	if l.Control != nil {
		return l.Control.check(ControlKind(l.Action))
	}
	return nil
}

func (f *LeafReference) check() error {
	if !roleNames.has(uint8(f.Role)) || !knownNames.has(uint8(f.Known)) {
		return fmt.Errorf("unknown role %d or known %d", f.Role, f.Known)
	}
	if err := f.Identity.check(); err != nil {
		return err
	}
	if info, _ := f.Identity.Algorithm.info(); !info.primary {
		return fmt.Errorf("%s is no primary identity", f.Identity.Algorithm)
	}
	nameOnly := f.Identity.Algorithm == NameHMAC
	if !f.Known.fits(nameOnly) {
		return fmt.Errorf("identity by %s cannot be %s", f.Identity.Algorithm, f.Known)
	}
	for i, a := range f.Aliases {
		if err := a.check(); err != nil {
			return fmt.Errorf("aliases[%d]: %w", i, err)
		}
		// The ledger appends the hash of a name to the aliases that the producer gave.
		if a.Algorithm == NameHMAC && (nameOnly || i != len(f.Aliases)-1) {
			return fmt.Errorf("aliases[%d]: misplaced hash of a name", i)
		}
	}
	return nil
}

func (c *Control) check(kind ControlKind) error {
	if !logKindNames.has(uint8(c.LogKind)) && c.LogKind != 0 {
		return fmt.Errorf("control: unknown log kind %d", c.LogKind)
	}
	if _, ok := c.HashAlgorithm.info(); !ok && c.HashAlgorithm != 0 {
		return fmt.Errorf("control: unknown hash algorithm %d", c.HashAlgorithm)
	}
	if !c.SchemaDigest.IsZero() {
		if err := c.SchemaDigest.check(); err != nil {
			return fmt.Errorf("control: schema digest: %w", err)
		}
	}
	if kind == ControlGenesis && (c.Origin == "" || c.LogKind == 0 || c.ClusterID == (ID{}) || c.HashAlgorithm == 0 || c.CreatedAt == 0 ||
		c.VKey == "" || c.SchemaID == "" || c.SchemaDigest.IsZero()) {
		return errors.New("control: incomplete genesis")
	}
	return nil
}
