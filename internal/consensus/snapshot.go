package consensus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/raft"
)

// snapshotID names the one snapshot that there ever is.
const snapshotID = "durable"

// snapshots is a raft.SnapshotStore that stores nothing: its one snapshot is the machine's durable position at the time
// of the question. Metadata that was written down, or remembered from the start, could claim more than a machine holds
// that was restored or rolled back, and raft would skip the difference without a word (H2).
type snapshots struct{ machine StateMachine }

var (
	_ raft.SnapshotStore = snapshots{}
	_ raft.SnapshotSink  = (*sink)(nil)
)

// List implements raft.SnapshotStore.
func (s snapshots) List() ([]*raft.SnapshotMeta, error) {
	m, err := s.meta()
	if err != nil || m == nil {
		return nil, err
	}
	return []*raft.SnapshotMeta{m}, nil
}

// Open implements raft.SnapshotStore. The content is empty.
func (s snapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	if id != snapshotID {
		return nil, nil, fmt.Errorf("consensus: no snapshot %q", id)
	}
	m, err := s.meta()
	if err != nil {
		return nil, nil, err
	}
	if m == nil {
		return nil, nil, errors.New("consensus: no snapshot: nothing is durable yet")
	}
	return m, io.NopCloser(bytes.NewReader(nil)), nil
}

// Create implements raft.SnapshotStore. raft's index and configuration are not kept, those of the machine count.
func (s snapshots) Create(_ raft.SnapshotVersion, _, _ uint64, _ raft.Configuration, configurationIndex uint64,
	_ raft.Transport,
) (raft.SnapshotSink, error) {
	return &sink{configurationIndex: configurationIndex}, nil
}

// meta describes the durable position, or is nil when nothing is durable.
func (s snapshots) meta() (*raft.SnapshotMeta, error) {
	d, err := s.machine.Durable()
	if err != nil {
		return nil, fmt.Errorf("consensus: read the durable position: %w", err)
	}
	if d.Index == 0 {
		return nil, nil
	}
	conf, err := decodeConfiguration(d.Configuration)
	if err != nil {
		return nil, fmt.Errorf("%w: configuration of index %d: %w", ErrLogMismatch, d.ConfigurationIndex, err)
	}
	return &raft.SnapshotMeta{
		Version:            raft.SnapshotVersionMax,
		ID:                 snapshotID,
		Index:              d.Index,
		Term:               d.Term,
		Configuration:      conf,
		ConfigurationIndex: d.ConfigurationIndex,
	}, nil
}

// decodeConfiguration is raft.DecodeConfiguration with an error in place of a panic: the bytes come from a disk. The
// library's decoder believes lengths that it reads, and may count for seconds; the machine's checksums are what keeps
// damaged bytes from it.
func decodeConfiguration(b []byte) (c raft.Configuration, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("undecodable: %v", r)
		}
	}()
	if len(b) == 0 {
		return raft.Configuration{}, errors.New("empty")
	}
	c = raft.DecodeConfiguration(b)
	if len(c.Servers) == 0 {
		return raft.Configuration{}, errors.New("names no server")
	}
	return c, nil
}

// sink takes nothing. Only snapshot.Persist makes it closable: a sink that is filled any other way is the start of an
// installation.
type sink struct {
	configurationIndex uint64 // of the configuration that raft holds to be committed
	persisted          bool
}

func (k *sink) ID() string                { return snapshotID }
func (k *sink) Write([]byte) (int, error) { return 0, ErrInstall }
func (k *sink) Cancel() error             { return nil }

func (k *sink) Close() error {
	if !k.persisted {
		return ErrInstall
	}
	return nil
}

const (
	// snapshotPoll is how often the log's size is looked at. At 200 MiB/s the log outgrows its bound by 50 MiB meanwhile.
	snapshotPoll = 250 * time.Millisecond
	// snapshotRetry is the pause after a snapshot that failed.
	snapshotRetry = 5 * time.Second
)

// compact takes a snapshot - flush, then cut the log - whenever the log has grown by SnapshotBytes since the last one, or
// SnapshotEvery has passed and there is something new. Growth counts, not size: what remains after a compaction (trailing
// entries, a segment that is half in use) must not trigger the next one for ever. done is the machine's durable index at
// the start.
func (c *Consensus) compact(ctx context.Context, done uint64) {
	defer close(c.compactDone)
	t := time.NewTicker(snapshotPoll)
	defer t.Stop()
	var (
		floor     int64 // the log's bytes after the last snapshot; 0: everything in the log is new to us
		last      = time.Now()
		notBefore time.Time
	)
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		delivered, size, now := c.fsm.delivered.Load(), c.conf.LogBytes(), time.Now()
		floor = min(floor, size)
		due := size-floor >= c.conf.SnapshotBytes || now.Sub(last) >= c.conf.SnapshotEvery
		if delivered == done || !due || now.Before(notBefore) {
			continue
		}
		if err := c.retain(); err != nil {
			c.logger.Error("set how much of the log is kept", "error", err)
		}
		err := c.raft.Snapshot().Error() // raft logs a failure
		switch {
		case err == nil:
			c.snapshots.Add(1)
			done, last, floor = delivered, now, c.conf.LogBytes()
		case errors.Is(err, raft.ErrNothingNewToSnapshot):
			// raft's FSM goroutine counts from its own start (H16). Seen only before the first entry is through.
		case ctx.Err() != nil:
			return
		default:
			c.snapshotFailures.Add(1)
			notBefore = now.Add(snapshotRetry)
		}
	}
}
