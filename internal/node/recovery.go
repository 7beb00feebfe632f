package node

import (
	"context"
	"fmt"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/recovery"
)

// recoveryVersion is the first version of commands that can record a recovery.
const recoveryVersion = 2

// recordRecovery enters into the system log what a recovery or a restore left word of in the directory. The node is alone then, and leads. If it dies before
// the word is removed, the entry is made once more: twice is better than not at all.
func (n *Node) recordRecovery(ctx context.Context) error {
	record, text, err := recovery.Pending(n.c.FS, n.dir.path)
	if err != nil || record == nil {
		return err
	}
	if _, index := n.raft().Servers(); index < record.Index {
		n.c.Logger.Warn("a recovery was prepared and not carried out; what it left is removed", "file", n.dir.join(recovery.PendingFile))
		return recovery.Done(n.c.FS, n.dir.path)
	}
	for n.Ledger().CommandVersion() < recoveryVersion && n.c.MaxCommand >= recoveryVersion {
		if err := n.Sequencer().RaiseVersion(ctx); err != nil { // nobody else has to know it
			return fmt.Errorf("raise the version of commands: %w", err)
		}
	}
	if err := n.Sequencer().RecordControl(ctx, lineage.ControlRecovery, n.Ledger().LocalPrincipal(), lineage.AuthnLedger, text); err != nil {
		return err
	}
	n.c.Logger.Warn("this ledger was recovered; the system log has a record of it", "cause", record.Cause, "reason", record.Reason, "lost", len(record.Lost))
	return recovery.Done(n.c.FS, n.dir.path)
}
