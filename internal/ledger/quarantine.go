package ledger

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/provledger/provledger/internal/merkle"
)

// Quarantined returns nil, or why this node neither signs nor serves: an error that wraps ErrQuarantined.
func (l *Ledger) Quarantined() error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.quarantine
}

// OnQuarantine has fn called once, with the error of Quarantined, when this node is found damaged: at once if it has been already. fn is
// called by whoever finds the damage, in the middle of a read perhaps, so it must not block and must not call the ledger's store.
func (l *Ledger) OnQuarantine(fn func(error)) {
	l.mu.Lock()
	why := l.quarantine
	if why == nil {
		l.onDamage = fn
	}
	l.mu.Unlock()
	if why != nil {
		fn(why)
	}
}

// Quarantine takes this node out of service for something that was found outside, such as that its history is not that of its peers.
func (l *Ledger) Quarantine(why error) { l.enterQuarantine(why) }

// enterQuarantine stops this node from applying, signing and serving. The damage is in memory or in the store; the raft log is not
// touched, so the state can be rebuilt. It may be called from anywhere, the middle of a read included: nobody reads while holding mu.
func (l *Ledger) enterQuarantine(why error) {
	l.mu.Lock()
	if l.quarantine != nil { // the first finding is the one to look into
		l.mu.Unlock()
		return
	}
	l.quarantine = fmt.Errorf("%w: %w", ErrQuarantined, why)
	why, tell := l.quarantine, l.onDamage
	close(l.changed)
	l.changed = make(chan struct{})
	l.mu.Unlock()
	l.o.Logger.Error("quarantined: this node's state contradicts itself or its peers; it neither signs nor serves", "err", why)
	if tell != nil {
		tell(why)
	}
}

// found passes an error on. If it says that this node's state is damaged, the node is quarantined, whoever came across it.
func (l *Ledger) found(err error) error {
	if errors.Is(err, ErrCorrupt) {
		l.enterQuarantine(err)
	}
	return err
}

// evidence is what Evidence writes down. It is read by people, so hashes are hex.
type evidence struct {
	Reason  string             `json:"reason"`
	Cluster string             `json:"clusterId"`
	Applied evidenceDecision   `json:"applied"`
	Version uint8              `json:"commandVersion"`
	Logs    []evidenceLog      `json:"logs"`
	Recent  []evidenceDecision `json:"recentDecisions"`
}

type evidenceDecision struct {
	Index  uint64 `json:"index"`
	Term   uint64 `json:"term,omitempty"`
	Digest string `json:"digest"`
}

type evidenceLog struct {
	Number     uint32 `json:"number"`
	Name       string `json:"name"`
	Size       uint64 `json:"size"`
	Root       string `json:"root"`
	EdgeSize   uint64 `json:"edgeSize"`
	EdgeRoot   string `json:"edgeRoot"`
	RecordedAt int64  `json:"recordedAt"`
}

// Evidence describes what this node believes, as JSON, for whoever looks into a quarantine: the reason, how far it applied, head and right
// edge of every log that is in memory, and the newest decisions with their chain digests, to be compared with those of its peers. It reads
// nothing from the store.
func (l *Ledger) Evidence() []byte {
	l.mu.RLock()
	a := l.published
	e := evidence{
		Cluster: a.cluster.String(), Version: a.commandVersion(),
		Applied: evidenceDecision{a.index, a.term, a.digest.String()},
	}
	if l.quarantine != nil {
		e.Reason = l.quarantine.Error()
	}
	for _, n := range slices.Sorted(maps.Keys(l.trees)) {
		t := l.trees[n]
		e.Logs = append(e.Logs, evidenceLog{n, l.registry[n].Name, t.head.Size, t.head.Root.String(), l.edges[n].Size(), l.edges[n].Root().String(), t.head.RecordedAt})
	}
	l.mu.RUnlock()
	for _, d := range l.recent.all() {
		e.Recent = append(e.Recent, evidenceDecision{Index: d.Index, Digest: d.Digest.String()})
	}
	b, err := json.MarshalIndent(&e, "", "  ")
	if err != nil {
		panic("ledger: evidence cannot be encoded: " + err.Error()) // strings and numbers only
	}
	return append(b, '\n')
}

// DecisionAt returns the chain digest after the decision at a raft index, while this node remembers it and is not quarantined.
func (l *Ledger) DecisionAt(index uint64) (digest merkle.Hash, known bool) {
	if l.Quarantined() != nil {
		return merkle.Hash{}, false
	}
	return l.recent.get(index)
}
