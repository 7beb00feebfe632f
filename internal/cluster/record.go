package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/sequencer"
)

// What a record is about.
const (
	actionAdded    = "added"    // became a non-voter
	actionPromoted = "promoted" // became a voter
	actionDemoted  = "demoted"  // became a non-voter
	actionRemoved  = "removed"  // is no member any more
	actionMoved    = "moved"    // has another address
	actionObserved = "observed" // the membership is what Members says; who changed it was not recorded
)

// Record is the document of a `member` entry: one change of the membership.
type Record struct {
	Action  string `json:"action"`
	NodeID  string `json:"nodeId,omitempty"`
	Address string `json:"address,omitempty"`
	// Voter says whether the node votes, or is to vote once it has caught up; of a removed node, whether it did.
	Voter bool `json:"voter"`
	// Replaces is the member whose place the node takes.
	Replaces string `json:"replaces,omitempty"`
	// By is the principal who asked for it; empty for an observation.
	By string `json:"by,omitempty"`
	// ConfigurationIndex is the raft index of the membership that came of it, and Members what it then was.
	ConfigurationIndex uint64           `json:"configurationIndex"`
	Members            []RecordedMember `json:"members"`
}

// RecordedMember is a member in a record.
type RecordedMember struct {
	NodeID  string `json:"nodeId"`
	Address string `json:"address"`
	Voter   bool   `json:"voter"`
}

// record writes down a change that was made. If that fails, Run records the membership as observed.
func (c *Controller) record(ctx context.Context, r Record) {
	if err := c.write(ctx, r); err != nil {
		c.o.Logger.Warn("a change of the membership is not recorded yet", "action", r.Action, "node", r.NodeID, "err", err)
	}
}

func (c *Controller) write(ctx context.Context, r Record) error {
	m := c.membership()
	r.ConfigurationIndex = m.index
	for _, s := range m.servers {
		r.Members = append(r.Members, RecordedMember{s.ID, s.Address, s.Voter})
	}
	by := c.caller(ctx)
	if r.Action != actionObserved {
		r.By = by.Principal
	}
	document, err := json.Marshal(r)
	if err != nil {
		return err
	}
	// The change is made, so its record does not depend on the patience of whoever asked for it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), changeTimeout)
	defer cancel()
	return c.o.Recorder.RecordControl(ctx, lineage.ControlMember, by.Principal, by.Authn, document)
}

// prepare comes before every change. The version in use must have member entries: a ledger that was begun by an older program has to be raised
// first. And the membership as it is must be recorded, so that who is removed by the change is known to have been a member.
func (c *Controller) prepare(ctx context.Context) error {
	if err := c.prepareVersion(ctx); err != nil {
		return err
	}
	_, err := c.observe(ctx)
	return err
}

// observe records the membership if no record speaks of it, and returns the index of the newest that is recorded then. The token of a change is
// held, so that none is between its making and its record.
func (c *Controller) observe(ctx context.Context) (index uint64, err error) {
	m := c.membership()
	err = c.o.History.Records(func(r Record) bool { index = r.ConfigurationIndex; return false })
	if err != nil || index >= m.index {
		return index, err
	}
	return m.index, c.write(ctx, Record{Action: actionObserved})
}

func (c *Controller) prepareVersion(ctx context.Context) error {
	if c.o.History.CommandVersion() >= memberVersion {
		return nil
	}
	if err := c.raise(ctx, c.look(ctx, c.membership())); err != nil {
		return fmt.Errorf("the ledger's version has to be raised to %d before the cluster can change: %w", memberVersion, err)
	}
	if v := c.o.History.CommandVersion(); v < memberVersion {
		return fmt.Errorf("%w: the ledger's version is still %d; changes of the cluster need %d", sequencer.ErrNotApplied, v, memberVersion)
	}
	return nil
}

// was returns what a node that is no member was when it was one, as far as the records say: the memberships in them, because the record of the
// removal itself may be missing.
func (c *Controller) was(id string) (member RecordedMember, ok bool, err error) {
	err = c.o.History.Records(func(r Record) bool {
		if i := slices.IndexFunc(r.Members, func(m RecordedMember) bool { return m.NodeID == id }); i >= 0 {
			member, ok = r.Members[i], true
		}
		return !ok
	})
	return member, ok, err
}

// scanEntries is how many entries are read at a time, going backwards.
const scanEntries = 256

// LedgerHistory is the history in a ledger's system log.
type LedgerHistory struct {
	// Ledger returns the current ledger: a repair puts another one in its place.
	Ledger func() *ledger.Ledger
}

// Principal implements History.
func (h LedgerHistory) Principal() string { return h.Ledger().LocalPrincipal() }

// CommandVersion implements History.
func (h LedgerHistory) CommandVersion() uint8 { return h.Ledger().CommandVersion() }

// Records implements History. The system log grows with logs, principals and members, so reading all of it is a matter of milliseconds.
func (h LedgerHistory) Records(fn func(Record) bool) error {
	l := h.Ledger()
	t, err := l.Tree(ledger.SystemLog)
	if errors.Is(err, ledger.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	for end := t.Head().Size; end > 0; {
		first := end - min(end, scanEntries)
		var block []Record
		err := l.Entries(ledger.SystemLog, first, end, true, func(e *ledger.Entry) error {
			r, ok, err := parseRecord(e)
			if ok {
				block = append(block, r)
			}
			return err
		})
		if err != nil {
			return err
		}
		for i := len(block) - 1; i >= 0; i-- {
			if !fn(block[i]) {
				return nil
			}
		}
		end = first
	}
	return nil
}

// parseRecord returns the record of an entry, false if it is none. A member entry that this program cannot read is passed over: it is of a
// later one, and the rules that read records allow for some being absent.
func parseRecord(e *ledger.Entry) (r Record, ok bool, err error) {
	leaf, err := lineage.ParseLeaf(e.Leaf)
	if err != nil {
		return r, false, err
	}
	if leaf.Kind != lineage.KindControl || lineage.ControlKind(leaf.Action) != lineage.ControlMember {
		return r, false, nil
	}
	for _, part := range e.Body {
		if part.Kind != lineage.PartDocuments {
			continue
		}
		docs, err := lineage.ParseDocuments(part.Content)
		if err != nil {
			return r, false, err
		}
		if len(docs) > 0 && json.Unmarshal(docs[0].Content, &r) == nil {
			return r, r.Action != "", nil
		}
	}
	return r, false, nil
}
