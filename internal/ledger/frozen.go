package ledger

import "github.com/provledger/provledger/client/lineage"

// Frozen reports whether a log can be read and proven but not appended to, because it belongs to the past of this ledger: its origin names another
// cluster. A ledger that was restored under a new origin keeps the logs of its predecessor so (docs/backup.md). Nobody composes commands for
// them; Apply has no rule of its own, since it is by commands that they are restored.
func (l *Ledger) Frozen(g Log) bool { return g.cluster(l.o.ClusterID) != l.o.ClusterID }

// cluster returns the id of the cluster that a log is of, which its origin and its genesis entry name; that of this ledger if the origin is not one
// that a ledger makes.
func (g *Log) cluster(own lineage.ID) lineage.ID {
	o, err := lineage.ParseOrigin(g.Origin)
	if err != nil {
		return own
	}
	return o.Cluster
}
