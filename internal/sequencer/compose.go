package sequencer

import (
	"errors"
	"fmt"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/merkle"
)

// errHold means that a request repeats an event that is in flight: it is looked at again when that has landed.
var errHold = errors.New("a duplicate is in flight")

// builder composes one command.
type builder struct {
	s        *Sequencer
	parts    []part
	sections []*sectionBuilder
	entries  int
	size     int
}

type sectionBuilder struct {
	spec       *spec
	before     ledger.Head
	recordedAt int64
	entries    []ledger.CommandEntry
	lookup     lookup
}

func (s *Sequencer) newBuilder() *builder { return &builder{s: s} }

func (b *builder) full() bool {
	return b.size >= flushBytes || b.entries >= ledger.MaxCommandEntries
}

// spec returns the speculative state of a log, from applied state if there is none.
func (s *Sequencer) spec(log uint32) (*spec, error) {
	if x := s.specs[log]; x != nil {
		return x, nil
	}
	g, err := s.o.Ledger.LogByNumber(log)
	if err != nil {
		return nil, err
	}
	t, err := s.o.Ledger.Tree(log)
	if err != nil {
		return nil, err
	}
	ids, err := s.o.Ledger.EventIDs(log)
	if err != nil {
		return nil, err
	}
	d, err := loadDedup(ids)
	if err = errors.Join(err, ids.Close()); err != nil {
		return nil, err
	}
	x := &spec{log: g, edge: t.Edge(), head: t.Head(), dedup: d}
	s.specs[log] = x
	return x, nil
}

func (b *builder) section(log uint32) (*sectionBuilder, error) {
	for _, x := range b.sections {
		if x.spec.log.Number == log {
			return x, nil
		}
	}
	sp, err := b.s.spec(log)
	if err != nil {
		return nil, err
	}
	x := &sectionBuilder{spec: sp, before: sp.head, recordedAt: max(b.s.o.Now(), sp.head.RecordedAt)}
	x.lookup = lookup{d: sp.dedup, l: b.s.o.Ledger, log: log}
	b.sections = append(b.sections, x)
	return x, nil
}

// add puts a request into the command, whole or not at all. When every event of it is recorded already it is answered at once.
func (b *builder) add(p *pending) error {
	x, err := b.section(p.Log)
	if err != nil {
		return err
	}
	recorded := make([]Recorded, len(p.Events))
	fresh, err := x.duplicates(p, recorded, b.s)
	if err != nil {
		return err
	}
	b.s.m.Duplicates.Add(uint64(len(p.Events) - fresh))
	if fresh == 0 {
		t, err := b.s.o.Ledger.Tree(p.Log)
		p.answer(reply{result: &Result{recorded, t}, err: err})
		return nil
	}
	stamp := lineage.Stamp{RecordedAt: x.recordedAt, Principal: p.Principal, Authn: p.Authn}
	arena := make([]byte, 0, fresh*512+p.Size)
	for i, d := range p.drafts {
		if recorded[i].Duplicate {
			continue
		}
		at := len(arena)
		arena = d.AppendLeaf(arena, stamp)
		leaf := arena[at:len(arena):len(arena)]
		at = len(arena)
		arena = lineage.AppendBody(arena, d.Body)
		e := ledger.CommandEntry{EventID: p.Events[i].ID, Principal: p.Principal, Authn: p.Authn, Leaf: leaf, Body: arena[at:len(arena):len(arena)]}
		recorded[i] = Recorded{Index: x.spec.head.Size, Leaf: leaf, LeafHash: merkle.LeafHash(leaf), Body: d.Body}
		x.push(e, recorded[i].LeafHash)
		b.size += e.Size()
	}
	b.entries += fresh
	b.parts = append(b.parts, part{p, recorded})
	return nil
}

// push extends the speculative state by one entry.
func (x *sectionBuilder) push(e ledger.CommandEntry, leafHash merkle.Hash) {
	x.spec.dedup.add(e.EventID, e.Principal, x.spec.head.Size)
	x.spec.edge.Append(leafHash, nil)
	x.spec.head.Size++
	x.entries = append(x.entries, e)
}

// duplicates fills in the events of p that are recorded already and returns how many are not. Nothing is changed.
func (x *sectionBuilder) duplicates(p *pending, recorded []Recorded, s *Sequencer) (fresh int, err error) {
	defer func() {
		err = x.lookup.close(err)
		x.lookup.store = nil
	}()
	for i, e := range p.Events {
		index, found, err := x.lookup.find(e.ID, p.Principal)
		if err != nil {
			return 0, err
		}
		if !found {
			fresh++
			continue
		}
		old, err := s.o.Ledger.Entry(p.Log, index, true)
		if errors.Is(err, ledger.ErrNotFound) {
			return 0, errHold
		}
		if err != nil {
			return 0, err
		}
		if recorded[i], err = s.same(p, e, old); err != nil {
			return 0, eventError(i, len(p.Events), err)
		}
	}
	return fresh, nil
}

// same returns the entry that e repeats, or an error that wraps ledger.ErrConflict when it says something else.
func (s *Sequencer) same(p *pending, e *lineage.Event, old ledger.Entry) (Recorded, error) {
	c, err := s.composer(p.Log)
	if err != nil {
		return Recorded{}, err
	}
	keys := make([]lineage.Key, len(old.Body))
	for i := range old.Body {
		keys[i] = old.Body[i].Key
	}
	if err := lineage.CheckRecorded(e, old.Leaf, keys, c.HashName); err != nil {
		return Recorded{}, &conflictError{e.ID, old.Index, err}
	}
	return Recorded{Index: old.Index, Leaf: old.Leaf, LeafHash: merkle.LeafHash(old.Leaf), Body: old.Body, Duplicate: true}, nil
}

// conflictError says that an event id stands for something else already.
type conflictError struct {
	id    lineage.ID
	index uint64
	diff  error
}

func (e *conflictError) Error() string {
	return fmt.Sprintf("event id %s is taken: it was recorded at index %d with other content (%v); a new event needs a new id", e.id, e.index, e.diff)
}

func (e *conflictError) Unwrap() error { return ledger.ErrConflict }

// command encodes what was composed and closes the sections.
func (b *builder) command() []byte {
	c := ledger.Command{ClusterID: b.s.o.Ledger.ClusterID(), Base: b.s.o.Ledger.Applied()}
	for _, x := range b.sections {
		if len(x.entries) == 0 {
			continue
		}
		x.spec.head.Root, x.spec.head.RecordedAt = x.spec.edge.Root(), x.recordedAt
		c.Sections = append(c.Sections, ledger.Section{Log: x.spec.log.Number, Before: x.before, After: x.spec.head, Entries: x.entries})
		x.spec.dedup.trim(b.s.applied(x.spec.log.Number))
	}
	return ledger.AppendCommand(make([]byte, 0, b.size+256*len(c.Sections)+128), &c)
}

// applied returns the size of a log that the store has.
func (s *Sequencer) applied(log uint32) uint64 {
	t, err := s.o.Ledger.Tree(log)
	if err != nil {
		return 0
	}
	return t.Head().Size
}
