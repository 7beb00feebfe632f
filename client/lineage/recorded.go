package lineage

import (
	"bytes"
	"fmt"
)

// CheckErased is CheckRecorded for an entry whose body is erased: the leaf alone has to agree, and has to have had the same parts.
func CheckErased(e *Event, leaf []byte, hashName func(Name) Hash) error {
	return checkRecorded(e, leaf, hashName, func(d *Draft, l *Leaf) error {
		if err := d.compose(e); err != nil {
			return err
		}
		d.leaf.Bodies = d.commitments[:0]
		for i := range d.Body {
			c := Commitment{Part: d.Body[i].Kind}
			if i < len(l.Bodies) {
				c.MAC = l.Bodies[i].MAC // nobody can open it any more
			}
			d.leaf.Bodies = append(d.leaf.Bodies, c)
		}
		return nil
	})
}

// CheckRecorded reports whether a leaf, with the keys of its body parts in the leaf's order, says exactly what e says: the client's
// check of what came back, and the ledger's check that a resent event is the same. What the ledger adds (time, principal,
// authentication, keys) is taken from the leaf. hashName may be nil: name hashes are then taken from the leaf, for only holders of
// the reference key can check them. The error names the first field that differs. For an entry without its body see [CheckErased].
func CheckRecorded(e *Event, leaf []byte, keys []Key, hashName func(Name) Hash) error {
	return checkRecorded(e, leaf, hashName, func(d *Draft, _ *Leaf) error {
		if err := d.open(e, keys); err != nil {
			return err
		}
		d.commit()
		return nil
	})
}

// checkRecorded compares a leaf with the one that e gives; bodies fills in the commitments.
func checkRecorded(e *Event, leaf []byte, hashName func(Name) Hash, bodies func(d *Draft, l *Leaf) error) error {
	l, err := decodeLeaf(leaf) // the comparison at the end is with the one encoding
	if err != nil {
		return err
	}
	d := newDraft(e)
	want := &d.leaf
	want.RecordedAt, want.Principal, want.Authn = l.RecordedAt, l.Principal, l.Authn
	if hashName != nil {
		Composer{HashName: hashName}.names(d, e)
	} else {
		want.adoptNames(e, l)
	}
	if err := bodies(d, l); err != nil {
		return err
	}
	if !want.encodesTo(leaf) {
		return fmt.Errorf("recorded %s differs from what was sent", want.firstDifference(l))
	}
	return nil
}

// adoptNames takes the name hashes of got where e has a name, so that only their presence and place are compared.
func (l *Leaf) adoptNames(e *Event, got *Leaf) {
	// Where a hash should be and is not, the zero hash stands in: a name that was left out must differ too.
	adopt := func(n Name, got *Hash) *Hash {
		if n.IsZero() {
			return nil
		}
		if got == nil {
			return &Hash{}
		}
		return got
	}
	l.Job, l.Target = adopt(e.Job, got.Job), adopt(e.Target, got.Target)
	for i := range e.References {
		if e.References[i].Name.IsZero() || i >= len(got.References) {
			continue
		}
		f, g := &l.References[i], &got.References[i]
		var d Digest
		if f.Identity.IsZero() {
			d = g.Identity
		} else if n := len(g.Aliases); n > 0 {
			d = g.Aliases[n-1]
		}
		if d.Algorithm != NameHMAC {
			d = Digest{Algorithm: NameHMAC}
		}
		f.addName(d)
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

// BodyParts composes the body of an event under the keys that its recording drew, one for each part in the order of the leaf's
// commitments. Whoever holds the event and the keys has the body without being sent it.
func (e *Event) BodyParts(keys []Key) ([]BodyPart, error) {
	var d Draft
	if err := d.open(e, keys); err != nil {
		return nil, err
	}
	return d.Body, nil
}

func (d *Draft) open(e *Event, keys []Key) error {
	if err := d.compose(e); err != nil {
		return err
	}
	if len(d.Body) != len(keys) {
		return fmt.Errorf("%w: %d keys, the event has %d parts", ErrCommitment, len(keys), len(d.Body))
	}
	for i := range keys {
		d.Body[i].Key = keys[i]
	}
	return nil
}
