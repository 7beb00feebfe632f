package lineage

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"
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
	for i := range l.Entries {
		if i > 0 && l.Entries[i-1] >= l.Entries[i] {
			return errors.New("entries are not in ascending order")
		}
	}
	if !l.Policy.IsZero() {
		if err := l.Policy.checkIdentity(); err != nil {
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
	// The reference key is the last part there can be.
	n := len(l.Bodies)
	if hasKey := n > 0 && l.Bodies[n-1].Part == PartReferenceKey; hasKey != l.IsGenesis() {
		return errors.New("the reference key is a part of the genesis, and of nothing else")
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
	nameOnly, check := f.Identity.Algorithm == NameHMAC, f.Identity.checkIdentity
	if nameOnly {
		check = f.Identity.check
	}
	if err := check(); err != nil {
		return err
	}
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
	if i := repeated(f.Identity, f.Aliases); i >= 0 {
		return fmt.Errorf("aliases[%d]: %s stands before it already", i, f.Aliases[i].Algorithm)
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
	has, may := c.fields(), controlFields(kind)
	switch {
	case has&^may != 0:
		return fmt.Errorf("control: field %d does not belong to %s", bits.TrailingZeros32(has&^may), kind)
	case has == 0 && may != 0:
		return fmt.Errorf("control: %s without a field", kind)
	case kind == ControlGenesis && genesisFields&^has != 0:
		return errors.New("control: incomplete genesis")
	}
	return nil
}

// Sets of control fields: bit n stands for map key n.
const (
	genesisFields    uint32 = 0x1fe | 1<<12 // 1 to 8 and 12: a genesis has all of them
	genesisMayFields        = genesisFields | 1<<9 | 1<<10
	logFields        uint32 = 1<<1 | 1<<2 | 1<<5 | 1<<6 | 1<<11 | 1<<12
	principalFields  uint32 = 1<<13 | 1<<14
)

// controlFields returns the fields that a control event of a kind may have.
func controlFields(k ControlKind) uint32 {
	switch k {
	case ControlGenesis:
		return genesisMayFields
	case ControlLog:
		return logFields
	case ControlPrincipal:
		return principalFields
	}
	return 0
}

// repeated returns the first alias that is equal to the identity or to an alias before it, or -1.
func repeated(identity Digest, aliases []Digest) int {
	for i, a := range aliases {
		if a == identity || slices.Contains(aliases[:i], a) {
			return i
		}
	}
	return -1
}
