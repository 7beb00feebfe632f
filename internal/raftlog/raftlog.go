// Package raftlog keeps the raft log, term and vote of a node on its disk.
//
// A [Store] is a raft.LogStore and a raft.StableStore on recycled, pre-written segment files. Its contract:
//
//   - What a call acknowledged survives a power cut: StoreLogs, DeleteRange, Set and SetUint64 return after fdatasync.
//   - What was deleted stays deleted, and a vote never goes back.
//   - Damage is found before it is believed: every read checks a checksum that is bound to the file's use, the segment
//     and the batch; a log that is shorter than what was acknowledged is refused at [Open] with [ErrCorrupt], never
//     silently cut. The one exception is stated: within MarkInterval (100 ms) before an unclean stop, damage to the
//     last batch cannot be told from a write that the power cut tore, and is treated as such.
//   - A Store never retries a failed write: after one it answers every call with that first error, because after a
//     failed fsync nobody knows what is on the disk. [Guard] turns the error into the end of the process.
//
// The format, byte by byte, and the argument for the recovery rules are in docs/format-raftlog.md. A directory holds
//
//	000001.seg ...  segments and spares; the number means nothing, the header does
//	mark            newest segment and last acknowledged batch, two slots, behind the acknowledgements
//	vote            current term and last vote, two slots, written before the acknowledgement
//
// All file access goes through pebble's vfs.FS, so that a whole node can run on its crashable in-memory file system.
// The caller holds the lock on the data directory: two Stores on one directory destroy it.
//
// Store does not implement raft.MonotonicLogStore although it refuses gaps: raft answers that interface by emptying
// the log after a snapshot install and carrying on with a stale last index (hashicorp/raft issue 697). The owner of the
// raft instance must recreate it after an install instead.
package raftlog

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"
)

const (
	// DefaultSegmentBytes is large enough that a new segment (one extra fsync, one batch split) is rare at full rate and
	// small enough that a spare is written in well under a second.
	DefaultSegmentBytes = 64 << 20

	// DefaultMarkInterval is how far the mark may lag behind the acknowledgements: the window in which damage to the
	// last batch looks like a torn write.
	DefaultMarkInterval = 100 * time.Millisecond

	// markHang ends the process when one mark write takes so long: appends do not wait for the mark, so nobody else
	// would notice that the promised window no longer holds.
	markHang = 10 * time.Second
)

var (
	// ErrCorrupt says that acknowledged content is damaged or missing. Nothing was changed on disk. The node has lost
	// its raft identity and must be replaced, not restarted.
	ErrCorrupt = errors.New("raft log is damaged")

	// ErrNoSpace says that there was no room for a segment that an append needed. Nothing was written.
	ErrNoSpace = errors.New("no space for a raft log segment")

	// ErrClosed is returned by every method of a closed Store.
	ErrClosed = errors.New("raft log is closed")
)

// Options of [Open].
type Options struct {
	// FS is the file system; nil means the operating system's.
	FS vfs.FS

	// Dir is created, with its parents, if it does not exist. An existing directory must be empty or hold a complete
	// store.
	Dir string

	// SegmentBytes is the size of new segments, rounded up to 4 KiB; 0 means DefaultSegmentBytes. It may change between
	// opens. An entry that does not fit gets a segment of its own size.
	SegmentBytes int64

	// MarkInterval bounds how far the mark lags behind the acknowledgements; 0 means DefaultMarkInterval.
	MarkInterval time.Duration

	// Logger gets recoveries worth knowing; nil means slog.Default().
	Logger *slog.Logger

	// Observe is told how long each durable write of a batch took. It is called under the lock of appends and must be quick; nil means nobody.
	Observe func(time.Duration)

	// Die is called, from a goroutine of the Store, when a write in the background failed or hung. It must end the
	// process. If it is nil the Store only refuses all further calls.
	Die func(reason string, err error)
}

// Store is a raft log with term and vote. It is safe for concurrent use; writes are serial.
type Store struct {
	fs           vfs.FS
	dir          string
	segmentBytes int64
	markInterval time.Duration
	log          *slog.Logger
	observe      func(time.Duration)
	dieFunc      func(reason string, err error)

	// mu makes appends and deletes serial. It is held over write and fsync.
	mu        sync.Mutex
	buf       []byte   // the batch being written, reused; guarded by mu
	records   []record // its records, reused; guarded by mu
	nextBatch uint64   // guarded by mu

	// view guards the in-memory index. It is held shared over a read of a segment and exclusively only to publish what
	// is already durable, so a reader never waits for an fsync and a segment is never recycled under a reader.
	view  sync.RWMutex
	segs  []*segment // live segments, oldest first, consecutive sequences; the last one is written to
	first uint64     // index of the first entry; first > last when the log is empty
	last  uint64

	bytes  atomic.Int64
	spares spares
	mark   mark
	vote   vote

	quit   chan struct{} // closed by Close
	bg     sync.WaitGroup
	closed atomic.Bool
	failed atomic.Pointer[error] // first failed write: sticky
}

var (
	_ raft.LogStore    = (*Store)(nil)
	_ raft.StableStore = (*Store)(nil)
)

// segment is an open segment file. Its fields are guarded by Store.view once it is in Store.segs.
type segment struct {
	segmentHeader
	file slotFile
	sum  uint32 // seed of its checksums
	end  int64  // offset of the next batch

	// refs are the live entries in this segment, in order, from index first. A segment without entries has the first
	// of its successor, or the next index.
	first uint64
	refs  []ref
}

// ref is the place of an entry's record: 12 bytes of memory an entry.
type ref struct {
	offset uint32
	length uint32
	batch  uint32 // number of its batch, counted from the segment's first
}

// Open opens the store in o.Dir, or creates it. Errors wrap [ErrCorrupt] when acknowledged content is damaged or
// missing, and then nothing has been changed on disk; the caller must not start the node.
func Open(o Options) (*Store, error) {
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.SegmentBytes == 0 {
		o.SegmentBytes = DefaultSegmentBytes
	}
	if o.MarkInterval == 0 {
		o.MarkInterval = DefaultMarkInterval
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Dir == "" {
		return nil, errors.New("raftlog: Dir is empty")
	}
	if o.SegmentBytes < minSegmentBytes || o.SegmentBytes > maxSegmentBytes {
		return nil, fmt.Errorf("raftlog: SegmentBytes is %d, must be within [%d, %d]", o.SegmentBytes, int64(minSegmentBytes), int64(maxSegmentBytes))
	}
	if o.MarkInterval < 0 {
		return nil, fmt.Errorf("raftlog: MarkInterval is %v, must be positive", o.MarkInterval)
	}
	s := &Store{
		fs: o.FS, dir: o.FS.PathJoin(o.Dir) /* without a trailing slash */, segmentBytes: align(o.SegmentBytes), markInterval: o.MarkInterval, log: o.Logger, observe: o.Observe, dieFunc: o.Die,
		quit: make(chan struct{}), first: 1,
	}
	s.mark.dirty = make(chan struct{}, 1)
	if err := s.open(); err != nil {
		s.closeFiles()
		return nil, fmt.Errorf("raftlog: open %s: %w", o.Dir, err)
	}
	s.bg.Add(1)
	go s.runMark()
	s.mark.wake()
	return s, nil
}

// Close writes the final mark and closes the files. It does not wait for a background write that failed.
func (s *Store) Close() error {
	if s.closed.Swap(true) {
		return ErrClosed
	}
	close(s.quit) // first: an append may be waiting for a spare
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bg.Wait() // under mu, so that no append starts a spare meanwhile
	s.vote.mu.Lock()
	defer s.vote.mu.Unlock()
	s.view.Lock()
	defer s.view.Unlock()
	var err error
	if s.failed.Load() == nil {
		err = s.mark.writeFinal()
	}
	if cerr := s.closeFiles(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("raftlog: close: %w", err)
	}
	return nil
}

func (s *Store) closeFiles() error {
	var first error
	closeFile := func(f vfs.File) {
		if f == nil {
			return
		}
		if err := f.Close(); err != nil && first == nil {
			first = err
		}
	}
	for _, g := range s.segs {
		closeFile(g.file.File)
	}
	for _, f := range s.spares.take() {
		closeFile(f.File)
	}
	closeFile(s.mark.file)
	closeFile(s.vote.file)
	return first
}

// Bytes returns the bytes of segments that are in use: headers, batches and padding, deletes not subtracted until
// they free a whole segment.
func (s *Store) Bytes() int64 { return s.bytes.Load() }

// usable reports why the store must not be used any more.
func (s *Store) usable() error {
	if s.closed.Load() {
		return ErrClosed
	}
	if err := s.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// fail makes err the answer of all further calls and returns it.
func (s *Store) fail(err error) error {
	err = fmt.Errorf("raftlog: %w", err)
	s.failed.CompareAndSwap(nil, &err)
	return err
}

// die reports a failed background write. Callers have released everything that Close waits for, because a Die in a
// test may never return.
func (s *Store) die(reason string, err error) {
	s.log.Error("raft log: "+reason, "err", err)
	if s.dieFunc != nil {
		s.dieFunc(reason, err)
	}
}
