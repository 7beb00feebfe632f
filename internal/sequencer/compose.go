package sequencer

import (
	"errors"
	"fmt"
	"slices"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/merkle"
)

// What builder.add says of a request that it did not take, beside errors for the caller.
var (
	// errHold: it repeats an event that is in flight, and is looked at again when that has landed.
	errHold = errors.New("a duplicate is in flight")
	// errFull: it does not fit any more. Never said by an empty command.
	errFull = errors.New("the command is full")
	// errGone: its caller has left.
	errGone = errors.New("the caller has left")
)

// commandOverhead is more than all of a command but its entries: a header and 256 section heads of less than 100 bytes.
const commandOverhead = 32 << 10

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
	return b.size >= flushBytes || b.entries >= ledger.MaxCommandEntries || len(b.sections) >= ledger.MaxSections
}

// close releases what the look-ups of the command held.
func (b *builder) close() {
	for _, x := range b.sections {
		if err := x.lookup.close(); err != nil {
			b.s.o.Logger.Error("close the look-up of event ids", "err", err)
		}
	}
}

// spec returns the speculative state of a log, from applied state if there is none.
func (s *Sequencer) spec(log uint32) (*spec, error) {
	if x := s.specs.get(log); x != nil {
		return x, nil
	}
	g, err := s.o.Ledger.LogByNumber(log)
	if err != nil {
		return nil, err
	}
	// Nobody could check what is appended without the log's key.
	if vkey, err := s.vkey(g.Origin); err != nil {
		return nil, err
	} else if vkey != g.VKey {
		return nil, fmt.Errorf("%w: %w: log %q has %s, this node's secret gives %s", ErrNotApplied, ErrKey, g.Name, g.VKey, vkey)
	}
	t, err := s.o.Ledger.Tree(log)
	if err != nil {
		return nil, err
	}
	ids, err := s.o.Ledger.EventIDs(log)
	if err != nil {
		return nil, err
	}
	d, err := loadDedup(ids, s.remember, s.specs.toLoad())
	if err = errors.Join(err, ids.Close()); err != nil {
		return nil, err
	}
	x := &spec{log: g, edge: t.Edge(), head: t.Head(), dedup: d}
	s.specs.put(x)
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
	x := &sectionBuilder{spec: sp, before: sp.head, recordedAt: b.s.recordingTime(sp.head)}
	x.lookup = lookup{d: sp.dedup, l: b.s.o.Ledger, log: log}
	b.sections = append(b.sections, x)
	return x, nil
}

// add puts a request into the command, whole or not at all. When every event of it is recorded already it is answered at once. Its
// errors are those above, or are for the caller.
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
	if fresh == 0 {
		t, err := b.s.o.Ledger.Tree(p.Log)
		if err != nil {
			return err
		}
		b.s.m.Duplicates.Add(uint64(len(p.Events)))
		b.s.answer(p, reply{result: &Result{recorded, t}})
		return nil
	}
	entries, size := x.compose(p, recorded, fresh)
	if b.size+size > ledger.MaxCommandBytes-commandOverhead {
		if b.entries > 0 {
			return errFull
		}
		return fmt.Errorf("%w: %w", ledger.ErrInvalid, &lineage.FieldError{Path: "events", Reason: fmt.Sprintf(
			"take %d bytes as recorded, at most %d fit one request; send them in several", size, ledger.MaxCommandBytes-commandOverhead)})
	}
	if !p.state.CompareAndSwap(stateQueued, stateTaken) {
		return errGone
	}
	x.entries = slices.Grow(x.entries, len(entries))
	for i, j := 0, 0; i < len(recorded); i++ {
		if !recorded[i].Duplicate {
			recorded[i].Index = x.spec.head.Size
			x.push(entries[j], recorded[i].LeafHash)
			j++
		}
	}
	b.size += size
	b.entries += fresh
	b.parts = append(b.parts, part{p, recorded})
	return nil
}

// compose makes the entries of the events of p that are not recorded yet, fills in what is known of them, and returns their size in a
// command. Nothing else is changed.
func (x *sectionBuilder) compose(p *pending, recorded []Recorded, fresh int) (entries []ledger.CommandEntry, size int) {
	entries = make([]ledger.CommandEntry, 0, fresh)
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
		recorded[i] = Recorded{Leaf: leaf, LeafHash: merkle.LeafHash(leaf), Body: d.Body}
		entries = append(entries, e)
		size += e.Size()
	}
	return entries, size
}

// recordingTime is the time of what is appended to a log at head: it never goes back, and is one that a leaf can carry, whatever the
// clock says.
func (s *Sequencer) recordingTime(head ledger.Head) int64 {
	return min(max(s.o.Now(), head.RecordedAt, 1), lineage.MaxTime)
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
			if len(p.Events) > 1 {
				err = fmt.Errorf("events[%d]: %w", i, err)
			}
			return 0, err
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
	check := func() error { return lineage.CheckErased(e, old.Leaf, c.HashName) }
	if !old.Erased {
		keys := make([]lineage.Key, len(old.Body))
		for i := range old.Body {
			keys[i] = old.Body[i].Key
		}
		check = func() error { return lineage.CheckRecorded(e, old.Leaf, keys, c.HashName) }
	}
	if err := check(); err != nil {
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

// command encodes what was composed and closes the sections. specs are the logs that it touches.
func (b *builder) command() (command []byte, specs []*spec) {
	c := b.s.newCommand()
	for _, x := range b.sections {
		if len(x.entries) == 0 {
			continue
		}
		x.spec.head.Root, x.spec.head.RecordedAt = x.spec.edge.Root(), x.recordedAt
		c.Sections = append(c.Sections, ledger.Section{Log: x.spec.log.Number, Before: x.before, After: x.spec.head, Entries: x.entries})
		x.spec.dedup.trim(b.s.applied(x.spec.log.Number))
		specs = append(specs, x.spec)
	}
	return ledger.AppendCommand(make([]byte, 0, b.size+256*len(c.Sections)+128), &c), specs
}

// applied returns the size of a log that the store has.
func (s *Sequencer) applied(log uint32) uint64 {
	t, err := s.o.Ledger.Tree(log)
	if err != nil {
		return 0
	}
	return t.Head().Size
}
