package backup

import (
	"fmt"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/ledger"
)

const (
	// sectionEntries and sectionBytes bound a command, far below what a ledger takes.
	sectionEntries = 1024
	sectionBytes   = 1 << 20
	// applyBytes bounds what is applied at once, in one batch of the state store.
	applyBytes = 4 << 20
)

// builder makes a state store by the one way there is: commands, each with size and root before and after, which the ledger computes again.
type builder struct {
	l     *ledger.Ledger
	index uint64
	heads map[uint32]*frontier // of the logs, what waits included

	waiting []ledger.LogEntry
	bytes   int
}

func newBuilder(l *ledger.Ledger) *builder {
	return &builder{l: l, heads: map[uint32]*frontier{}}
}

func (b *builder) enter(configuration bool, data []byte) {
	b.index++
	b.waiting = append(b.waiting, ledger.LogEntry{Index: b.index, Term: restoreTerm, Configuration: configuration, Data: data})
	b.bytes += len(data)
}

// membership begins the history.
func (b *builder) membership(configuration []byte) error {
	b.enter(true, configuration)
	return b.apply()
}

// apply applies what waits. Every command must be accepted: it was composed on what is there.
func (b *builder) apply() error {
	if len(b.waiting) == 0 {
		return nil
	}
	for i, result := range b.l.Apply(b.waiting) {
		switch x := result.(type) {
		case *ledger.Outcome:
			if x.Decision != ledger.Accepted {
				return fmt.Errorf("command %d was %s", b.waiting[i].Index, x.Decision)
			}
		case error:
			return x
		}
	}
	b.waiting, b.bytes = b.waiting[:0], 0
	return nil
}

// command composes a command from sections that were begun with section.
func (b *builder) command(sections ...ledger.Section) error {
	c := ledger.Command{Version: b.l.CommandVersion(), ClusterID: b.l.ClusterID(), Sections: sections}
	b.enter(false, ledger.AppendCommand(nil, &c))
	if b.bytes < applyBytes {
		return nil
	}
	return b.apply()
}

// section composes the entries that are next in a log. All have one recording time.
func (b *builder) section(log uint32, recordedAt int64, entries []ledger.CommandEntry) ledger.Section {
	f := b.heads[log]
	if f == nil {
		f = &frontier{}
		b.heads[log] = f
	}
	s := ledger.Section{Log: log, Before: ledger.Head{Size: f.size, Root: f.root()}, Entries: entries}
	for i := range entries {
		f.append(entries[i].Leaf)
	}
	s.After = ledger.Head{Size: f.size, Root: f.root(), RecordedAt: recordedAt}
	return s
}

// append applies entries of a backup as the next ones of a log: those with one recording time in one command, as far as they fit.
func (b *builder) append(log uint32, entries []entry) error {
	for len(entries) > 0 {
		if log == systemNumber && raises(&entries[0]) {
			if err := b.raise(&entries[0]); err != nil {
				return err
			}
			entries = entries[1:]
			continue
		}
		var list []ledger.CommandEntry
		size, first := 0, entries[0].leaf.RecordedAt
		for n := 0; n < len(entries) && n < sectionEntries && size < sectionBytes && entries[n].leaf.RecordedAt == first; n++ {
			if log == systemNumber && raises(&entries[n]) {
				break
			}
			e, err := commandEntry(log, &entries[n])
			if err != nil {
				return err
			}
			list = append(list, e)
			size += e.Size()
		}
		if err := b.command(b.section(log, first, list)); err != nil {
			return err
		}
		entries = entries[len(list):]
	}
	return nil
}

// raises reports whether an entry of the system log raises the version of commands by one.
func raises(e *entry) bool {
	return e.leaf.Kind == lineage.KindControl && lineage.ControlKind(e.leaf.Action) == lineage.ControlVersion
}

// raise applies such an entry, which is alone in a command of the version that it begins: what comes before and after is by other rules.
func (b *builder) raise(e *entry) error {
	x, err := commandEntry(systemNumber, e)
	if err == nil {
		err = b.apply()
	}
	if err != nil {
		return err
	}
	c := ledger.Command{
		Version: b.l.CommandVersion() + 1, ClusterID: b.l.ClusterID(),
		Sections: []ledger.Section{b.section(systemNumber, e.leaf.RecordedAt, []ledger.CommandEntry{x})},
	}
	b.enter(false, ledger.AppendCommand(nil, &c))
	return b.apply()
}

// commandEntry makes an entry what it was when it was proposed. Apply is to act on the control entries of the system log; those of others only
// repeat what it says, or are of a system log that is history.
func commandEntry(log uint32, e *entry) (ledger.CommandEntry, error) {
	if e.body.erased {
		return ledger.CommandEntry{}, fmt.Errorf("entry %d: its body was erased; this program cannot restore that", e.index)
	}
	return ledger.CommandEntry{
		EventID: e.leaf.EventID, Principal: e.leaf.Principal, Authn: e.leaf.Authn,
		Control: log == systemNumber && e.leaf.Kind == lineage.KindControl, Leaf: e.raw, Body: e.body.bytes,
	}, nil
}
