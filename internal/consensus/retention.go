package consensus

// minTrailingLogs is the least that compaction leaves in place for followers, whatever the entries' size: more than can be
// under way to one.
const minTrailingLogs = 64

// retain sets how many entries the next compaction leaves in place. raft counts entries, an operator counts bytes: the
// log's own average tells one from the other. It is called before each snapshot.
func (c *Consensus) retain() error {
	if c.conf.TrailingLogs > 0 {
		return nil
	}
	want := uint64(DefaultTrailingLogs)
	if len(c.log.members.latest().servers) > 1 {
		first, err := c.log.FirstIndex()
		if err != nil {
			return err
		}
		var entries uint64
		if first > 0 {
			entries = c.raft.LastIndex() + 1 - first
		}
		want = trailingLogs(c.conf.TrailingBytes, c.conf.LogBytes(), entries)
	}
	c.tuning.Lock()
	defer c.tuning.Unlock()
	rc := c.raft.ReloadableConfig()
	if rc.TrailingLogs == want {
		return nil
	}
	rc.TrailingLogs = want
	return c.raft.ReloadConfig(rc)
}

// trailingLogs is how many entries take keep bytes when entries take size bytes. Segments that are only partly in use make
// the average too high in a short log; it keeps fewer than it should then, and is right when it has grown.
func trailingLogs(keep, size int64, entries uint64) uint64 {
	if size <= 0 || entries == 0 {
		return minTrailingLogs
	}
	return max(minTrailingLogs, uint64(float64(keep)*float64(entries)/float64(size)))
}
