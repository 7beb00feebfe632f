package signer

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"go.uber.org/goleak"

	"github.com/provledger/provledger/internal/checkpoint"
	"github.com/provledger/provledger/internal/merkle"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// history is a tree: its root at every size.
type history []merkle.Hash

// newHistory is a tree of n leaves. Trees of one seed are prefixes of each other; those of another differ from leaf fork on.
func newHistory(n, fork, seed int) history {
	e := merkle.NewEdge()
	h := history{e.Root()}
	for i := range n {
		s := 0
		if i >= fork {
			s = seed
		}
		e.Append(merkle.LeafHash(fmt.Appendf(nil, "%d/%d", i, s)), nil)
		h = append(h, e.Root())
	}
	return h
}

func (h history) size() uint64 { return uint64(len(h) - 1) }

var (
	errNotThere = errors.New("beyond the tree")
	errDisk     = errors.New("disk broke")
)

// world is what the signer is given: trees that a test can replace.
type world struct {
	mu    sync.Mutex
	trees map[string]history
	err   error
	dead  []string
}

func (w *world) tree(origin string) (uint64, func(uint64) (merkle.Hash, error), error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return 0, nil, w.err
	}
	h := w.trees[origin]
	if h == nil {
		h = newHistory(0, 0, 0)
	}
	return h.size(), func(size uint64) (merkle.Hash, error) {
		if size > h.size() {
			return merkle.Hash{}, errNotThere
		}
		return h[size], nil
	}, nil
}

func (w *world) set(origin string, h history) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.trees[origin] = h
}

func newWorld(h history) *world { return &world{trees: map[string]history{origin: h}} }

// newDisk is a disk that forgets what is not synced, with a directory that the node has made durable.
func newDisk(t *testing.T) *vfs.MemFS {
	t.Helper()
	mem := vfs.NewCrashableMem()
	if err := mem.MkdirAll("node", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syncDir(mem, "/"); err != nil {
		t.Fatal(err)
	}
	return mem
}

const origin = "example.org/ledger/lineage/main"

func (w *world) open(t *testing.T, fs vfs.FS) *Signer {
	t.Helper()
	s, err := Open(Options{
		FS: fs, Dir: "node/signer", Secret: &[SecretBytes]byte{1, 2, 3}, Tree: w.tree, Logger: slog.New(slog.DiscardHandler),
		Die: func(reason string, err error) {
			w.mu.Lock()
			w.dead = append(w.dead, fmt.Sprintf("%s: %v", reason, err))
			w.mu.Unlock()
			runtime.Goexit()
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// sign signs what the tree has at a size.
func (w *world) sign(t *testing.T, s *Signer, size uint64) []byte {
	t.Helper()
	w.mu.Lock()
	root := w.trees[origin][size]
	w.mu.Unlock()
	note, err := s.Checkpoint(origin, size, root)
	if err != nil {
		t.Fatalf("size %d: %v", size, err)
	}
	return note
}

func mustClose(t *testing.T, s *Signer) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// A note is over what was asked for, under the log's key, and the same every time.
func TestCheckpoint(t *testing.T) {
	h := newHistory(300, 300, 0)
	w := newWorld(h)
	fs := vfs.NewMem()
	s := w.open(t, fs)
	vkey, err := s.VKey(origin)
	if err != nil {
		t.Fatal(err)
	}
	v, err := checkpoint.NewVerifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	first := map[uint64][]byte{}
	for _, size := range []uint64{0, 1, 7, 64, 65, 300} {
		first[size] = w.sign(t, s, size)
		c, err := checkpoint.Open(first[size], v)
		if err != nil || c != (checkpoint.Checkpoint{Origin: origin, Size: size, Root: h[size]}) {
			t.Errorf("size %d: %+v, %v", size, c, err)
		}
	}
	for range 2 { // 1 and 65 share a place among the recent notes
		for size, note := range first {
			if again := w.sign(t, s, size); !bytes.Equal(again, note) {
				t.Errorf("size %d is signed as %q and %q", size, note, again)
			}
		}
		mustClose(t, s)
		s = w.open(t, fs)
	}
	mustClose(t, s)
	other := w.open(t, vfs.NewMem())
	defer mustClose(t, other)
	other.keys.secret[0]++
	if k, _ := other.VKey(origin); k == vkey {
		t.Error("another secret gives the same key")
	}
	if k, _ := s.VKey(origin + "2"); k == vkey {
		t.Error("another origin has the same key")
	}
}

// Only what the tree has is signed, whatever the caller says, and nothing while the trees are not served (S13, H14).
func TestOnlyWhatTheTreeHas(t *testing.T) {
	h := newHistory(100, 100, 0)
	w := newWorld(h)
	s := w.open(t, vfs.NewMem())
	defer mustClose(t, s)
	bad := merkle.Hash{1}
	refused := func(size uint64, want error) {
		t.Helper()
		if note, err := s.Checkpoint(origin, size, bad); !errors.Is(err, want) || note != nil {
			t.Errorf("size %d with a wrong root: %q, %v; want %v", size, note, err, want)
		}
	}
	refused(0, ErrFork)
	refused(50, ErrFork)
	refused(100, ErrFork)
	refused(101, errNotThere)
	w.sign(t, s, 80)
	refused(80, ErrFork)
	refused(16, ErrFork) // evicts nothing
	w.sign(t, s, 16)     // evicts 80
	refused(80, ErrFork)
	refused(90, ErrFork)
	w.err = errors.New("quarantined")
	for _, size := range []uint64{16, 80, 100} { // one of them is at hand
		if note, err := s.Checkpoint(origin, size, h[size]); !errors.Is(err, w.err) || note != nil {
			t.Errorf("a quarantined node signs size %d: %v", size, err)
		}
	}
	if made, refused := s.Counts(); made != 2 || refused != 7 {
		t.Errorf("counted %d signatures and %d refusals, want 2 and 7: what is not there yet, and quarantine, contradict nothing", made, refused)
	}
}

// However the tree changes, in a run or between two, there are never two roots for one size (S3), and a tree that has not reached what was
// signed, or does not contain it, gets no signature.
func TestNeverTwoRoots(t *testing.T) {
	honest, forked := newHistory(200, 200, 0), newHistory(200, 40, 1)
	for _, restart := range []bool{false, true} {
		w := newWorld(honest[:101])
		fs := vfs.NewMem()
		s := w.open(t, fs)
		w.sign(t, s, 30)
		w.sign(t, s, 60)
		if restart {
			mustClose(t, s)
			s = w.open(t, fs)
		}
		w.set(origin, forked)
		if _, err := s.Checkpoint(origin, 60, forked[60]); !errors.Is(err, ErrFork) {
			t.Errorf("restart %v: a second root for size 60: %v", restart, err)
		}
		if restart {
			for _, size := range []uint64{30, 50, 61, 200} { // nothing of that tree, not even what is not signed yet
				if _, err := s.Checkpoint(origin, size, forked[size]); !errors.Is(err, ErrFork) {
					t.Errorf("size %d of a tree that does not contain what was signed: %v", size, err)
				}
			}
			w.set(origin, honest[:60])
			_, before := s.Counts()
			for _, size := range []uint64{30, 59} {
				if _, err := s.Checkpoint(origin, size, honest[size]); !errors.Is(err, ErrBehind) {
					t.Errorf("size %d of a tree that has not reached what was signed: %v", size, err)
				}
			}
			if _, after := s.Counts(); after != before {
				t.Errorf("%d refusals are counted of a tree that is merely behind", after-before)
			}
		}
		w.set(origin, honest)
		for _, size := range []uint64{60, 30, 59, 200} {
			w.sign(t, s, size)
		}
		mustClose(t, s)
	}
}

// recordName is the file of the test's origin.
func recordName(t *testing.T, fs vfs.FS) string {
	t.Helper()
	names, err := fs.List("node/signer")
	if err != nil || len(names) != 1 {
		t.Fatal(names, err)
	}
	return "node/signer/" + names[0]
}

func readRecord(t *testing.T, fs vfs.FS) []byte {
	t.Helper()
	f, err := fs.Open(recordName(t, fs))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, recordBytes)
	if _, err := f.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

func writeRecord(t *testing.T, fs vfs.FS, b []byte) {
	t.Helper()
	f, err := fs.Create(recordName(t, fs), vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(bytes.Clone(b)); err != nil { // which a vfs.File may change
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// stored is what the record on a disk says.
func stored(t *testing.T, fs vfs.FS) signed {
	t.Helper()
	r, last, err := openRecord(fs, "node/signer", origin)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.close(); err != nil {
		t.Fatal(err)
	}
	return last
}

// One damaged slot leaves the other, a lower bound; with two, nobody knows what was signed, and nothing is.
func TestDamagedRecord(t *testing.T) {
	h := newHistory(100, 100, 0)
	w := newWorld(h)
	fs := vfs.NewMem()
	s := w.open(t, fs)
	for _, size := range []uint64{10, 20, 30} {
		w.sign(t, s, size)
		if err := s.persist(); err != nil {
			t.Fatal(err)
		}
	}
	mustClose(t, s)
	good := readRecord(t, fs)
	newest := 3 % 2 // generation 3
	for bit := range slotBytes * 8 {
		for slot := range 2 {
			bad := bytes.Clone(good)
			bad[slot*slotDistance+bit/8] ^= 1 << (bit % 8)
			writeRecord(t, fs, bad)
			want := uint64(30)
			if slot == newest {
				want = 20
			}
			if got := stored(t, fs); got.size != want || got.root != h[want] {
				t.Fatalf("slot %d, bit %d: %d, want %d", slot, bit, got.size, want)
			}
		}
	}
	for name, bad := range map[string][]byte{"both slots": bytes.Clone(good), "cut short": good[:slotBytes-1], "empty": {}, "of another origin": nil} {
		asked := origin
		switch name {
		case "both slots":
			bad[5] ^= 1
			bad[slotDistance+5] ^= 1
		case "of another origin":
			bad, asked = good, "example.org/other"
		}
		writeRecord(t, fs, bad)
		if asked != origin {
			// A record that was renamed: its checksums are of the origin that it was made for.
			sr := record{origin: asked}
			if _, _, ok := sr.decode(bad); ok {
				t.Error("a record is valid for another origin")
			}
			continue
		}
		s = w.open(t, fs)
		if note, err := s.Checkpoint(origin, 100, h[100]); err == nil {
			t.Errorf("%s: signed %q", name, note)
		}
		mustClose(t, s)
		f, _ := fs.Open(recordName(t, fs))
		if i, err := f.Stat(); err != nil || i.Size() != int64(len(bad)) {
			t.Errorf("%s: the evidence is gone", name)
		}
		_ = f.Close()
	}
	// A record that cannot be looked at is not one that is not there.
	writeRecord(t, fs, good)
	for _, kind := range []errorfs.OpKind{errorfs.OpStat, errorfs.OpOpen, errorfs.OpFileReadAt} {
		var armed atomic.Bool
		s = w.open(t, errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if armed.Load() && op.Kind == kind {
				return syscall.EIO
			}
			return nil
		})))
		armed.Store(true)
		if _, err := s.Checkpoint(origin, 100, h[100]); !errors.Is(err, syscall.EIO) {
			t.Errorf("fault %d: %v", kind, err)
		}
		mustClose(t, s)
		if !bytes.Equal(readRecord(t, fs), good) {
			t.Fatalf("fault %d: the record was replaced", kind)
		}
	}
}

// faultyFS fails the n-th write or sync of a record, before or after it has done its work.
type faultyFS struct {
	vfs.FS
	sync    bool // the sync fails, not the write
	written bool // the operation happens and then fails
	nth     atomic.Int32
}

func (f *faultyFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	file, err := f.FS.OpenReadWrite(name, c, o...)
	return &faultyFile{file, f}, err
}

type faultyFile struct {
	vfs.File
	fs *faultyFS
}

func (f *faultyFile) WriteAt(p []byte, off int64) (int, error) {
	if !f.fs.sync && f.fs.nth.Add(-1) == 0 {
		if f.fs.written {
			_, _ = f.File.WriteAt(p, off)
		} else {
			_, _ = f.File.WriteAt(p[:len(p)/2], off) // torn
		}
		return 0, errDisk
	}
	return f.File.WriteAt(p, off)
}

func (f *faultyFile) Sync() error {
	if f.fs.sync && f.fs.nth.Add(-1) == 0 {
		if f.fs.written {
			_ = f.File.Sync()
		}
		return errDisk
	}
	return f.File.Sync()
}

// A record that cannot be kept ends the process; what is on the disk afterwards is one of the two last records, and a lower bound.
func TestRecordFaults(t *testing.T) {
	h := newHistory(100, 100, 0)
	for _, sync := range []bool{false, true} {
		for _, written := range []bool{false, true} {
			for nth := int32(1); nth <= 3; nth++ {
				synctest.Test(t, func(t *testing.T) {
					mem := newDisk(t)
					fs := &faultyFS{FS: mem, sync: sync, written: written}
					fs.nth.Store(nth)
					w := newWorld(h)
					s := w.open(t, fs)
					last := uint64(0)
					for i := int32(1); i <= nth; i++ {
						last = uint64(i) * 10
						w.sign(t, s, last)
						time.Sleep(2 * persistEvery)
						synctest.Wait()
						if (len(w.dead) > 0) != (i == nth) {
							t.Fatalf("sync %v, written %v, fault at %d: after record %d died of %v", sync, written, nth, i, w.dead)
						}
					}
					for _, percent := range []int{0, 50, 100} {
						clone := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rand.New(rand.NewPCG(1, 1))})
						got := stored(t, clone)
						if got.size != last && got.size != last-10 || got.size > 0 && got.root != h[got.size] {
							t.Errorf("sync %v, written %v, fault at %d, %d %%: recorded %d", sync, written, nth, percent, got.size)
						}
						// It goes on from there, and does not sign another history.
						s := w.open(t, clone)
						if got.size > 0 {
							fork := newHistory(100, 3, 9)
							w.set(origin, fork)
							if _, err := s.Checkpoint(origin, 50, fork[50]); !errors.Is(err, ErrFork) {
								t.Errorf("signs another history: %v", err)
							}
							w.set(origin, h)
						}
						w.sign(t, s, 100)
						mustClose(t, s)
						if got := stored(t, clone); got.size != 100 {
							t.Errorf("recorded %d after going on", got.size)
						}
					}
					// The write that failed is due again.
					if err := s.Close(); err != nil {
						t.Errorf("close: %v", err)
					}
					if got := stored(t, mem); got.size != last {
						t.Errorf("recorded %d, signed %d", got.size, last)
					}
				})
			}
		}
	}
}

// The record is at most a moment behind, without anybody waiting for it.
func TestRecordKeepsUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHistory(100, 100, 0)
		w := newWorld(h)
		mem := newDisk(t)
		s := w.open(t, mem)
		for size := uint64(1); size <= 100; size++ {
			w.sign(t, s, size)
			time.Sleep(persistEvery / 4)
			synctest.Wait()
			if got := stored(t, mem.CrashClone(vfs.CrashCloneCfg{})); got.size+4 < size || got.size > size {
				t.Fatalf("signed %d, recorded %d", size, got.size)
			}
		}
		w.sign(t, s, 50) // signing an old size again changes nothing
		mustClose(t, s)
		if got := stored(t, mem.CrashClone(vfs.CrashCloneCfg{})); got.size != 100 {
			t.Errorf("closed at %d", got.size)
		}
	})
}

// At whatever file operation the power goes, the record is there, valid, and between what was recorded and what was signed.
func TestPowerCuts(t *testing.T) {
	h := newHistory(100, 100, 0)
	mem := newDisk(t)
	w := newWorld(h)
	var mu sync.Mutex
	var signedSize, recorded uint64
	clones := 0
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind.ReadOrWrite() == errorfs.OpIsRead {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		for _, percent := range []int{0, 50, 100} {
			clones++
			clone := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rand.New(rand.NewPCG(uint64(clones), 1))})
			if _, err := clone.Stat("node/signer"); err != nil && recorded == 0 && signedSize == 0 {
				continue // nothing was signed yet
			}
			r, last, err := openRecord(clone, "node/signer", origin)
			if err != nil {
				t.Errorf("operation %v of %s, %d %%: %v", op.Kind, path.Base(op.Path), percent, err)
				return nil
			}
			_ = r.close()
			if last.size < recorded || last.size > signedSize || last.size > 0 && last.root != h[last.size] {
				t.Errorf("operation %v of %s, %d %%: recorded %d, want %d to %d", op.Kind, path.Base(op.Path), percent, last.size, recorded, signedSize)
			}
		}
		return nil
	}))
	s := w.open(t, fs)
	for size := uint64(1); size <= 20; size++ {
		mu.Lock()
		signedSize = size
		mu.Unlock()
		w.sign(t, s, size)
		if err := s.persist(); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		recorded = size
		mu.Unlock()
		if size%7 == 0 {
			mustClose(t, s)
			s = w.open(t, fs)
		}
	}
	mustClose(t, s)
	if clones < 100 {
		t.Errorf("only %d clones", clones)
	}
}

// Logs sign in parallel, each with its own record.
func TestManyOrigins(t *testing.T) {
	h := newHistory(300, 300, 0)
	w := &world{trees: map[string]history{}}
	origins := make([]string, 8)
	for i := range origins {
		origins[i] = fmt.Sprintf("%s-%d", origin, i)
		w.trees[origins[i]] = h
	}
	fs := vfs.NewMem()
	s := w.open(t, fs)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for size := uint64(1); size <= 300; size++ {
				if _, err := s.Checkpoint(origins[(g+int(size))%8], size, h[size]); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	mustClose(t, s)
	for _, o := range origins {
		if r, last, err := openRecord(fs, "node/signer", o); err != nil || last.size < 293 {
			t.Errorf("%s: %+v, %v", o, last, err)
		} else {
			_ = r.close()
		}
	}
}
