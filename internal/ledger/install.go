package ledger

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/merkle"
)

// Sync makes what was kept durable, so that Install, for which raft is stopped, has little to write.
func (s *Stage) Sync(ctx context.Context) error { return s.l.disk.Flush(ctx) }

// Reset gives up what is staged of a log beyond its head, because its root turned out to be wrong.
func (s *Stage) Reset(log uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.logs[log]
	if g == nil {
		return nil
	}
	g.drop()
	if err := s.l.Quarantined(); err != nil {
		return err
	}
	s.l.storing.Lock()
	defer s.l.storing.Unlock()
	head, err := headIn(s.l.db, log)
	if err == nil {
		err = s.l.unstage(g, head.Size)
	}
	if err != nil {
		return s.l.found(err)
	}
	g.at, g.edge = head, nil
	if log == SystemLog {
		ours, _, err := s.l.asExport()
		if err != nil {
			return s.l.found(err)
		}
		if s.derived, err = s.admit(ours); err != nil {
			return err
		}
	}
	return nil
}

// unstage deletes what is stored of a log beyond its head. The storing lock is held.
func (l *Ledger) unstage(g *stagedLog, head uint64) (err error) {
	n, size := g.Number, l.staged[g.Number]
	if size <= head {
		return nil
	}
	b := l.db.NewBatch()
	defer func() { err = errors.Join(err, b.Close()) }()
	err = l.storedAs(g.Kind, n, head, size, false, func(e *Entry) error {
		id := e.EventID
		if g.Kind != lineage.OpaqueLog {
			leaf, err := lineage.ParseLeaf(e.Leaf)
			if err != nil {
				return corrupt("%w", err)
			}
			id = leaf.EventID
		}
		key := appendEventKey(nil, n, id, e.Principal)
		if v, ok, err := l.get(key); err != nil || !ok || len(v) != 8 || binary.BigEndian.Uint64(v) != e.Index {
			return err
		}
		return b.Delete(key, nil)
	})
	if err != nil {
		return err
	}
	for _, tag := range []byte{tagLeaves, tagBodies} {
		err = errors.Join(err, b.DeleteRange(appendChunkKey(nil, tag, n, head), after(logKey(tag, n)), nil))
	}
	for level := range uint8(merkle.TileLevels) {
		first := merkle.TileID{Level: level, Index: head >> (merkle.TileHeight * (uint(level) + 1))}
		err = errors.Join(err, b.DeleteRange(appendTileKey(nil, n, first), after(append(logKey(tagTile, n), level)), nil))
	}
	if err = errors.Join(err, b.Delete(logKey(tagStaged, n), nil)); err == nil {
		err = b.Commit(pebble.NoSync)
	}
	if err != nil {
		l.o.Die("the state store refuses a write", err)
		return err
	}
	l.mu.Lock()
	delete(l.staged, n)
	l.mu.Unlock()
	return nil
}

// Staged returns what is stored beyond the heads of logs, by log number: what a catch-up that did not end has left. It is no damage; the
// next one goes on from it.
func (l *Ledger) Staged() (staged []Range, err error) {
	snapshot := l.db.NewSnapshot()
	defer func() { err = errors.Join(err, snapshot.Close()) }()
	heads, err := headsIn(snapshot)
	if err != nil {
		return nil, err
	}
	sizes, err := stagedIn(snapshot)
	for _, n := range slices.Sorted(maps.Keys(sizes)) {
		staged = append(staged, Range{n, heads[n].Size, sizes[n]})
	}
	return staged, err
}

// Verify compares what was fetched with the export: every size, root and time, and, as soon as the system log is complete, the registry
// with its entries. It is what Install does before it changes anything. Errors wrap ErrDiverged if a root is another one, ErrExport if the
// export says what its entries do not say.
func (s *Stage) Verify() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.verify()
}

func (s *Stage) verify() error {
	for _, n := range slices.Sorted(maps.Keys(s.logs)) {
		switch g := s.logs[n]; {
		case g.at.Size != g.Size || len(g.unkept) > 0:
			return fmt.Errorf("log %d: %d of %d entries are there", n, g.at.Size, g.Size)
		case g.at.Root != g.Root:
			return fmt.Errorf("%w: log %d at size %d: its entries give root %s, the export says %s", ErrDiverged, n, g.Size, g.at.Root, g.Root)
		case g.at.RecordedAt != g.RecordedAt:
			return fmt.Errorf("%w: log %d: its newest entry is of %d, the export says %d", ErrExport, n, g.at.RecordedAt, g.RecordedAt)
		}
	}
	return s.verifyRegistry()
}

// VerifyRegistry compares the registry, the local principal and the command version of the export with what the entries of the system log
// say, which has to be complete. A new log's key is believed only after this.
func (s *Stage) VerifyRegistry() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g := s.logs[SystemLog]; g != nil && g.at.Size != g.Size {
		return fmt.Errorf("log %d: %d of %d entries are there", SystemLog, g.at.Size, g.Size)
	}
	return s.verifyRegistry()
}

func (s *Stage) verifyRegistry() error {
	e := s.e
	if len(e.Logs) != len(s.derived.logs) {
		return fmt.Errorf("%w: it has %d logs, the system log %d", ErrExport, len(e.Logs), len(s.derived.logs))
	}
	for i := range e.Logs {
		if g := e.Logs[i].Log; s.derived.logs[g.Number] != g {
			return fmt.Errorf("%w: log %d is %+v, the system log says %+v", ErrExport, g.Number, g, s.derived.logs[g.Number])
		}
	}
	if e.Local != s.derived.local {
		return fmt.Errorf("%w: the local principal is %q, the system log says %q", ErrExport, e.Local, s.derived.local)
	}
	if int(e.CommandVersion) != firstCommandVersion+s.derived.raises {
		return fmt.Errorf("%w: command version %d, the system log says %d", ErrExport, e.CommandVersion, firstCommandVersion+s.derived.raises)
	}
	return nil
}

// Install makes the export the state of this replica, if Verify finds it so: heads, registry and applied record change in one batch, which
// is durable when Install returns nil. Nothing may be applied meanwhile: raft is stopped, and what it proposed is resolved. If ctx ends
// before the batch is durable the state is the new one all the same, and Flush waits for the rest.
func (s *Stage) Install(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.l
	if err := l.Quarantined(); err != nil {
		return err
	}
	if err := s.verify(); err != nil {
		return err
	}
	if err := s.install(); err != nil {
		return err
	}
	// As at a start, so that damage on the way is found before anything is served.
	for _, n := range []uint32{SystemLog, MainLog} {
		if _, ok := s.e.log(n); ok {
			if _, err := l.Tree(n); err != nil {
				return err
			}
		}
	}
	return l.Flush(ctx, s.e.Index)
}

func (s *Stage) install() (err error) {
	l, e := s.l, s.e
	l.storing.Lock()
	defer l.storing.Unlock()
	ours, heads, err := l.asExport()
	if err != nil {
		return l.found(err)
	}
	if _, err := s.admit(ours); err != nil { // it may have been overtaken
		return err
	}
	a := appliedRecord{
		index: e.Index, term: e.Term, digest: e.Digest, cluster: e.ClusterID, bindings: e.Bindings,
		configIndex: e.ConfigurationIndex, config: e.Configuration, version: e.CommandVersion,
	}
	b := l.db.NewBatch()
	defer func() { err = errors.Join(err, b.Close()) }()
	err = b.Set(appliedKey, a.encode(), nil)
	var changed, complete []uint32
	for i := range e.Logs {
		g := &e.Logs[i]
		if _, ok := heads[g.Number]; !ok {
			err = errors.Join(err, b.Set(logKey(tagRegistry, g.Number), g.Log.encode(), nil))
		}
		if h, ok := heads[g.Number]; h != g.Head && (ok || g.Size > 0) {
			if s.logs[g.Number] == nil {
				return fmt.Errorf("%w: log %d moved", ErrExport, g.Number)
			}
			changed = append(changed, g.Number)
			err = errors.Join(err, b.Set(logKey(tagHead, g.Number), g.Head.encode(), nil))
		}
		if size, ok := l.staged[g.Number]; ok && size <= g.Size {
			complete = append(complete, g.Number)
			err = errors.Join(err, b.Delete(logKey(tagStaged, g.Number), nil))
		}
	}
	if ours.Local != e.Local {
		err = errors.Join(err, b.Set(localKey, encodeLocal(e.Local), nil))
	}
	if err == nil {
		err = b.Commit(pebble.NoSync)
	}
	if err != nil {
		l.o.Die("the state store refuses a write", err)
		return err
	}
	l.recent.reset(a.index, a.digest)
	l.applied = a
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range e.Logs {
		l.register(e.Logs[i].Log)
	}
	for _, n := range changed { // they load again on first use, which compares what is stored with the head
		delete(l.trees, n)
		delete(l.edges, n)
	}
	for _, n := range complete {
		delete(l.staged, n)
	}
	l.local, l.published = e.Local, a
	l.installs++
	close(l.changed)
	l.changed = make(chan struct{})
	return nil
}
