package ledger

import "github.com/provledger/provledger/internal/disk"

// StoreStats returns figures of the state store, which must be open.
func (l *Ledger) StoreStats() disk.Stats { return l.disk.Stats() }
