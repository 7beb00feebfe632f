package ledger

import "github.com/provledger/provledger/client/lineage"

// Frozen reports whether a log can be read and proven but not appended to, because it belongs to the past of this ledger: its origin names another
// cluster. A ledger that was restored under a new origin keeps the logs of its predecessor so (docs/backup.md). Nobody composes commands for
// them; Apply has no rule of its own, since it is by commands that they are restored.
func (l *Ledger) Frozen(g Log) bool {
	o, err := lineage.ParseOrigin(g.Origin)
	return err == nil && o.Cluster != l.o.ClusterID
}
