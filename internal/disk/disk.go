// Package disk opens a Pebble store our one way and watches it.
//
// The stores hold derived data: the raft log is the only fsynced write, so their WAL is off and what a crash takes is replayed. That
// makes two things this package's business: knowing what is durable (H1), and never letting a store that cannot write go on quietly
// (H5: Pebble retries a failed flush in a hot loop for ever and reports it only to an event listener).
package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// ErrDamaged marks what is stored and cannot be read back: a checksum is wrong, or a file that the store names is gone or no such file.
var ErrDamaged = errors.New("the store is damaged")

// Options of a store.
type Options struct {
	FS   vfs.FS
	Dir  string
	Name string // for logs: "state", "index"
	// MemTableBytes is the size of a memtable; up to memTables of them wait for a flush. It bounds how much a restart replays.
	MemTableBytes uint64
	// BlockCacheBytes is the size of the cache of decoded blocks.
	BlockCacheBytes int64
	// ReadOnly opens an existing store and writes nothing, so that looking at a damaged one cannot make it worse: opening for writing
	// removes tables that a damaged MANIFEST no longer names (H13). Close such a store with Abandon.
	ReadOnly bool
	Logger   *slog.Logger
	// Die ends the process; it must not return to the caller's work. Called when the store can no longer write.
	Die func(reason string, err error)
	// Damaged is told, with an error that wraps ErrDamaged, that something stored cannot be read back. The call comes from the middle of a
	// read, of any goroutine, perhaps more than once: it must not block and must not use the store. Nil: Die is called instead.
	Damaged func(err error)
	// SlowWarn and SlowKill bound how long one disk operation may take (H7). SlowWarn 0 turns the watch off.
	SlowWarn, SlowKill time.Duration
}

const (
	// memTables waiting or in use before writes stall: flushing one takes less time than filling three at any rate that raft can carry.
	memTables = 4
	// maxBackgroundErrors in a row end the process: one may be a hiccup that Pebble's retry cures, three are a store that cannot write.
	maxBackgroundErrors = 3
	// blockBytes is large because almost every read is a chunk of entries or a full tile of 8 KiB.
	blockBytes = 32 << 10
	// tableBytes keeps the number of tables small: keys arrive in order, so tables move down whole and are not rewritten.
	tableBytes = 32 << 20
	// flushTableBytes and flushSplitBytes cut what a flush writes into tables that mostly lie within one kind of key. A table that spans
	// kinds overlaps with those of every other flush and would be rewritten; one that does not moves down as it is. It halved the time
	// spent compacting.
	flushTableBytes = 4 << 20
	flushSplitBytes = 4 << 20
	// baseLevelBytes lets as much stay in the first level below L0 before another level opens.
	baseLevelBytes = 1 << 30
)

// Store is an open Pebble store.
type Store struct {
	DB *pebble.DB

	o       Options
	health  io.Closer
	bad     atomic.Int32   // background errors in a row
	flushes sync.WaitGroup // goroutines of Flush
	counts  counts
}

// Open opens or creates the store in o.Dir.
func Open(o Options) (*Store, error) {
	s := &Store{o: o}
	watched, health := vfs.WithDiskHealthChecks(orderedFS{o.FS}, o.SlowWarn, nil, s.slow)
	s.health = health
	cache := pebble.NewCache(o.BlockCacheBytes)
	defer cache.Unref()
	opts := &pebble.Options{
		FS:                          watched,
		Cache:                       cache,
		Logger:                      logger{o.Logger, o.Name, o.Die},
		DisableWAL:                  true,
		ReadOnly:                    o.ReadOnly,
		FormatMajorVersion:          pebble.FormatTableFormatV6,
		MemTableSize:                o.MemTableBytes,
		MemTableStopWritesThreshold: memTables,
		L0CompactionThreshold:       4,
		FlushSplitBytes:             flushSplitBytes,
		LBaseMaxBytes:               baseLevelBytes,
		L0StopWritesThreshold:       24,
		BytesPerSync:                1 << 20,
		MaxOpenFiles:                1000,
		CompactionConcurrencyRange:  func() (int, int) { return 1, 1 },
		EventListener: &pebble.EventListener{
			BackgroundError: s.backgroundError,
			FlushEnd:        func(i pebble.FlushInfo) { s.ended(i.Err) },
			WriteStallBegin: func(pebble.WriteStallBeginInfo) { s.counts.stall() },
			WriteStallEnd:   s.counts.unstall,
			DataCorruption: func(i pebble.DataCorruptionInfo) {
				s.damaged(fmt.Errorf("%s: %w", i.Path, i.Details))
			},
		},
	}
	for i := range opts.Levels {
		opts.Levels[i].BlockSize = blockBytes
		// Only look-ups by event id miss; everything else is found by position.
		opts.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
	}
	for i := range opts.TargetFileSizes {
		opts.TargetFileSizes[i] = tableBytes
	}
	opts.TargetFileSizes[0] = flushTableBytes
	// Hashes, keys and HMACs do not compress, and Snappy over them was a fifth of the cost of an event.
	opts.ApplyCompressionSettings(func() pebble.DBCompressionSettings { return pebble.DBCompressionNone })
	db, err := pebble.Open(o.Dir, opts)
	if err != nil {
		// Pebble made the directory and everything in it, so a file that is missing was there.
		if pebble.IsCorruptionError(err) || errors.Is(err, fs.ErrNotExist) && !o.ReadOnly {
			err = fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		return nil, errors.Join(fmt.Errorf("open the %s store in %s: %w", o.Name, o.Dir, err), health.Close())
	}
	s.DB = db
	return s, nil
}

func (s *Store) slow(i vfs.DiskSlowInfo) {
	s.counts.slow.Add(1)
	if s.o.SlowKill > 0 && i.Duration >= s.o.SlowKill {
		s.o.Die(fmt.Sprintf("the disk hangs: %s for %v on the %s store", i.OpType, i.Duration.Round(time.Millisecond), s.o.Name), nil)
	}
}

// damaged passes on that something stored is damaged.
func (s *Store) damaged(err error) {
	s.counts.damaged.Add(1)
	if s.o.Damaged == nil {
		s.o.Die(fmt.Sprintf("the %s store is damaged", s.o.Name), err)
		return
	}
	s.o.Damaged(fmt.Errorf("the %s store: %w: %w", s.o.Name, ErrDamaged, err))
}

func (s *Store) backgroundError(err error) {
	if pebble.IsCorruptionError(err) && s.o.Damaged != nil {
		// A compaction over a damaged table fails for ever, and the store can still write: it is to be replaced, not to die of this.
		s.damaged(err)
		return
	}
	n := s.bad.Add(1)
	s.counts.errors.Add(1)
	s.o.Logger.Error("store background error", "store", s.o.Name, "in_a_row", n, "err", err)
	if n >= maxBackgroundErrors || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EIO) {
		s.o.Die(fmt.Sprintf("the %s store cannot write", s.o.Name), err)
	}
}

func (s *Store) ended(err error) {
	if err == nil {
		s.bad.Store(0)
	}
}

// DurableValue returns the newest value of key that survives a power cut now: memtables are not looked at.
func (s *Store) DurableValue(key []byte) (value []byte, ok bool, err error) {
	it, err := s.DB.NewIter(&pebble.IterOptions{OnlyReadGuaranteedDurable: true, LowerBound: key, UpperBound: append(key[:len(key):len(key)], 0)})
	if err != nil {
		return nil, false, err
	}
	if it.First() {
		v, verr := it.ValueAndErr()
		value, ok, err = append([]byte(nil), v...), true, verr
	}
	return value, ok, errors.Join(err, it.Close())
}

// Flush makes everything written so far durable, or returns when ctx ends. AsyncFlush itself may block on a stalled store, so it runs
// in a goroutine of its own; that goroutine ends with the flush.
func (s *Store) Flush(ctx context.Context) error {
	if ctx.Err() != nil { // else a flush that is quick might win
		return fmt.Errorf("flush the %s store: %w", s.o.Name, context.Cause(ctx))
	}
	done := make(chan error, 1)
	s.flushes.Add(1)
	go func() {
		defer s.flushes.Done()
		ch, err := s.DB.AsyncFlush()
		if err == nil {
			<-ch
		}
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("flush the %s store: %w", s.o.Name, context.Cause(ctx))
	}
}

// Close flushes (H4: Pebble's Close does not, which would only cost a replay but would spoil a copy made after a clean stop) and
// closes the store. When ctx ends first the store is left as it is: what is not flushed is replayed.
func (s *Store) Close(ctx context.Context) error {
	if err := s.Flush(ctx); err != nil {
		return err
	}
	return s.Abandon()
}

// Abandon closes the store without making anything durable, as a crash would leave it.
func (s *Store) Abandon() error {
	s.flushes.Wait() // one whose caller has gone may still be about to call Pebble, which panics when closed
	return errors.Join(s.DB.Close(), s.health.Close())
}

// FreeBytes returns the bytes that an ordinary process may still write under dir; the largest number when the file system cannot say.
func FreeBytes(fs vfs.FS, dir string) (uint64, error) {
	u, err := fs.GetDiskUsage(dir)
	if errors.Is(err, vfs.ErrUnsupported) {
		return ^uint64(0), nil
	}
	if err != nil {
		return 0, fmt.Errorf("free space of %s: %w", dir, err)
	}
	return u.AvailBytes, nil
}

// logger hands Pebble's own words to slog: its chatter at debug level.
type logger struct {
	l    *slog.Logger
	name string
	die  func(reason string, err error)
}

func (l logger) Infof(format string, args ...any) {
	l.l.Debug(fmt.Sprintf(format, args...), "store", l.name)
}

func (l logger) Errorf(format string, args ...any) {
	l.l.Error(fmt.Sprintf(format, args...), "store", l.name)
}

// Fatalf is Pebble's word for a state after which it cannot go on, such as a MANIFEST that could not be written. It does not expect to
// return.
func (l logger) Fatalf(format string, args ...any) {
	reason := fmt.Sprintf("the %s store cannot go on: "+format, append([]any{l.name}, args...)...)
	l.die(reason, nil)
	panic("disk: " + reason)
}
