package disk

import (
	"sync/atomic"
	"time"
)

// Stats are figures of a store, for metrics. Counters count since it was opened.
type Stats struct {
	Bytes, MemTableBytes, CompactionDebtBytes uint64 // on disk; in memory and not flushed; to be rewritten, estimated
	Tables, ReadAmplification                 int    // tables; runs of them that a read may look into
	Flushes, Compactions                      uint64
	WriteStalls                               uint64        // times that writes waited for flushes or compactions
	WriteStalled                              time.Duration // for so long in all
	CacheBytes, CacheHits, CacheMisses        uint64
	BackgroundErrors, SlowOperations, Damaged uint64 // SlowOperations took longer than Options.SlowWarn
}

// counts is what Pebble tells and does not keep.
type counts struct {
	slow, damaged, errors, stalls atomic.Uint64
	stalledFor                    atomic.Int64 // nanoseconds
	since                         atomic.Int64 // Unix nanoseconds; 0: not stalled
}

func (c *counts) stall() {
	c.stalls.Add(1)
	c.since.Store(time.Now().UnixNano())
}

func (c *counts) unstall() {
	if since := c.since.Swap(0); since != 0 {
		c.stalledFor.Add(time.Now().UnixNano() - since)
	}
}

// Stats returns current figures. The store must be open.
func (s *Store) Stats() Stats {
	m := s.DB.Metrics()
	total := m.Total()
	return Stats{
		Bytes: m.DiskSpaceUsage(), MemTableBytes: m.MemTable.Size, CompactionDebtBytes: m.Compact.EstimatedDebt,
		Tables: int(total.TablesCount), ReadAmplification: m.ReadAmp(),
		Flushes: uint64(m.Flush.Count), Compactions: uint64(m.Compact.Count),
		WriteStalls: s.counts.stalls.Load(), WriteStalled: time.Duration(s.counts.stalledFor.Load()),
		CacheBytes: uint64(m.BlockCache.Size), CacheHits: uint64(m.BlockCache.Hits), CacheMisses: uint64(m.BlockCache.Misses),
		BackgroundErrors: s.counts.errors.Load(), SlowOperations: s.counts.slow.Load(), Damaged: s.counts.damaged.Load(),
	}
}
