package consensus

import (
	"fmt"

	"github.com/hashicorp/raft"
)

// checkLog compares the log with the machine's durable position d before raft trusts either (H9 i, H10).
func checkLog(s Store, d Position) error {
	first, err := s.FirstIndex()
	if err != nil {
		return fmt.Errorf("consensus: first index of the log: %w", err)
	}
	last, err := s.LastIndex()
	if err != nil {
		return fmt.Errorf("consensus: last index of the log: %w", err)
	}
	if e, ok := s.(interface{ NextIndex() uint64 }); ok && last == 0 && d.Index > 0 {
		// ResetLog leaves an empty log with a record of what comes next. One without entries for any other reason has lost them.
		if next := e.NextIndex(); next != d.Index+1 {
			return fmt.Errorf("%w: the log is empty and continues at index %d, the machine ends at %d", ErrLogMismatch, next, d.Index)
		}
		return nil
	}
	switch {
	case d.ConfigurationIndex > d.Index:
		return fmt.Errorf("%w: the machine is at index %d with the configuration of %d", ErrLogMismatch, d.Index, d.ConfigurationIndex)
	case last < d.Index:
		// Compaction always leaves the newest entries, so this log has lost some, and with them perhaps others that were
		// acknowledged.
		return fmt.Errorf("%w: the log ends at index %d, the machine holds %d", ErrLogMismatch, last, d.Index)
	case last > 0 && first > d.Index+1:
		return fmt.Errorf("%w: the log begins at index %d, the machine ends at %d", ErrLogMismatch, first, d.Index)
	case d.Index == 0 || d.Index < first:
		return nil
	}
	var l raft.Log
	if err := s.GetLog(d.Index, &l); err != nil {
		return fmt.Errorf("consensus: log entry %d: %w", d.Index, err)
	}
	if l.Term != d.Term {
		return fmt.Errorf("%w: index %d is of term %d in the log, of term %d in the machine", ErrLogMismatch, d.Index, l.Term, d.Term)
	}
	return nil
}
