package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/consensus"
	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/sequencer"
	"github.com/provledger/provledger/internal/signer"
)

// calm keeps the log and the state as they are until a test says otherwise.
func calm(c *Config) { c.SnapshotBytes, c.SnapshotEvery = 1<<40, time.Hour }

func mustOpenStorm(t *testing.T, fs vfs.FS, edit func(*Config)) *opened {
	t.Helper()
	n, err := openStorm(t.Context(), fs, edit)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func mustCloseStorm(t *testing.T, n *opened) {
	t.Helper()
	if err := errors.Join(n.Close(t.Context()), n.death()); err != nil {
		t.Fatal(err)
	}
}

// filled makes a ledger with n events, one command each, and what is known of it.
func filled(t *testing.T, fs vfs.FS, edit func(*Config), n int) (*opened, *history) {
	t.Helper()
	h := &history{sent: map[lineage.ID]bool{}}
	x := mustOpenStorm(t, fs, edit)
	for i := range n {
		if err := h.append(t.Context(), x, "main", testEvent(i)); err != nil {
			t.Fatal(err)
		}
	}
	return x, h
}

// copyDir copies a directory of one disk to another, over what is there.
func copyDir(t *testing.T, from, to vfs.FS, dir string) {
	t.Helper()
	if err := to.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := vfs.Clone(from, to, dir, dir, vfs.CloneSync); err != nil {
		t.Fatal(err)
	}
}

func snapshotOf(disk *vfs.MemFS) *vfs.MemFS { return disk.CrashClone(vfs.CrashCloneCfg{}) }

func write(t *testing.T, fs vfs.FS, name string, b []byte) {
	t.Helper()
	f, err := fs.Create(name, vfs.WriteCategoryUnspecified)
	if err == nil {
		_, err = f.Write(bytes.Clone(b)) // which a vfs.File may change
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, fs vfs.FS, name string) []byte {
	t.Helper()
	b, err := (&directory{fs: fs, path: path.Dir(name)}).readFile(path.Base(name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestBusy: one process at a time, in words that say so.
func TestBusy(t *testing.T) {
	disk := vfs.NewMem()
	n, _ := filled(t, disk, nil, 1)
	if _, err := openStorm(t.Context(), disk, nil); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), stormDir) {
		t.Errorf("second open: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := openStorm(ctx, disk, func(c *Config) { c.LockTimeout = time.Hour }); !errors.Is(err, ErrBusy) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("second open, waiting: %v", err)
	}
	second := make(chan error, 1)
	go func() {
		m, err := openStorm(t.Context(), disk, func(c *Config) { c.LockTimeout = time.Minute })
		if err == nil {
			err = m.Close(t.Context())
		}
		second <- err
	}()
	time.Sleep(30 * time.Millisecond)
	mustCloseStorm(t, n)
	if err := <-second; err != nil {
		t.Errorf("waited for the directory: %v", err)
	}
}

// TestDirectory: what is no ledger, or not whole, is refused and left as it is.
func TestDirectory(t *testing.T) {
	origin := vfs.NewCrashableMem()
	n, h := filled(t, origin, nil, 5)
	mustCloseStorm(t, n)
	file := func(name string) string { return path.Join(stormDir, name) }
	format, secret := read(t, origin, file(formatFile)), read(t, origin, file(secretFile))
	remove := func(name string) func(t *testing.T, d *vfs.MemFS) {
		return func(t *testing.T, d *vfs.MemFS) {
			if err := d.RemoveAll(file(name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	put := func(name string, b []byte) func(t *testing.T, d *vfs.MemFS) {
		return func(t *testing.T, d *vfs.MemFS) { write(t, d, file(name), b) }
	}
	other := slices.Concat([]byte{secret[0] ^ 1}, secret[1:])
	for _, c := range []struct {
		name   string
		spoil  func(t *testing.T, d *vfs.MemFS)
		want   error // nil: any
		repair func(t *testing.T, d *vfs.MemFS)
	}{
		{"FORMAT gone", remove(formatFile), ErrFormat, put(formatFile, format)},
		{"FORMAT empty", put(formatFile, nil), ErrFormat, put(formatFile, format)},
		{"FORMAT cut short", put(formatFile, format[:len(format)/2]), ErrFormat, put(formatFile, format)},
		{"FORMAT of the future", put(formatFile, bytes.Replace(format, []byte(`"version":1`), []byte(`"version":2`), 1)), ErrFormat, put(formatFile, format)},
		{"FORMAT with more", put(formatFile, bytes.Replace(format, []byte(`{`), []byte(`{"x":1,`), 1)), ErrFormat, put(formatFile, format)},
		{"FORMAT of another ledger", func(t *testing.T, d *vfs.MemFS) {
			m := vfs.NewMem()
			n, _ := filled(t, m, nil, 1)
			mustCloseStorm(t, n)
			write(t, d, file(formatFile), read(t, m, file(formatFile)))
		}, ledger.ErrCorrupt, put(formatFile, format)},
		{"secret gone", remove(secretFile), nil, put(secretFile, secret)},
		{"secret of another ledger", put(secretFile, other), ErrFormat, put(secretFile, secret)},
		{"secret cut short", put(secretFile, secret[:31]), ErrFormat, put(secretFile, secret)},
		{"raft log gone (H9)", remove(raftDir), ErrIdentity, func(t *testing.T, d *vfs.MemFS) { copyDir(t, origin, d, file(raftDir)) }},
		{"vote gone", remove(raftDir + "/vote"), nil, func(t *testing.T, d *vfs.MemFS) { copyDir(t, origin, d, file(raftDir)) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := snapshotOf(origin)
			c.spoil(t, d)
			for range 2 { // the first attempt must not make the second succeed
				n, err := openStorm(t.Context(), d, nil)
				if err == nil {
					_ = n.Close(t.Context())
					t.Fatal("opened")
				}
				if c.want != nil && !errors.Is(err, c.want) {
					t.Errorf("%v, want %v", err, c.want)
				}
				t.Log(strings.TrimSpace(err.Error()))
			}
			c.repair(t, d)
			if err := checkDisk(d, h.known(), nil); err != nil {
				t.Errorf("after the repair: %v", err)
			}
		})
	}
	t.Run("flipped bits in FORMAT", func(t *testing.T) {
		for bit := 0; bit < len(format)*8; bit += 5 {
			d := snapshotOf(origin)
			bad := bytes.Clone(format)
			bad[bit/8] ^= 1 << (bit % 8)
			write(t, d, file(formatFile), bad)
			if n, err := openStorm(t.Context(), d, nil); err == nil {
				t.Errorf("bit %d: opened with %q", bit, bad)
				mustCloseStorm(t, n)
			}
		}
	})
	t.Run("not a ledger", func(t *testing.T) {
		d := vfs.NewMem()
		if err := d.MkdirAll(file(raftDir), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, d, file("thesis.tex"), []byte("years of work"))
		if _, err := openStorm(t.Context(), d, nil); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "thesis.tex") {
			t.Error(err)
		}
		if names, _ := d.List(stormDir); !slices.Contains(names, raftDir) || !slices.Contains(names, "thesis.tex") {
			t.Errorf("left %v", names)
		}
	})
	t.Run("a secret that is there is used", func(t *testing.T) {
		d := vfs.NewMem()
		if err := d.MkdirAll(stormDir, 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, d, file(secretFile), secret)
		n := mustOpenStorm(t, d, nil)
		mustCloseStorm(t, n)
		if !bytes.Equal(read(t, d, file(secretFile)), secret) {
			t.Error("a secret was thrown away")
		}
	})
}

// TestStoresOfDifferentAge: raft log, state and signer record from different times either are a state that replay makes whole, or are
// refused: nothing is forgotten silently.
func TestStoresOfDifferentAge(t *testing.T) {
	disk := vfs.NewCrashableMem()
	n, h := filled(t, disk, calm, 10)
	mustCloseStorm(t, n)
	early := snapshotOf(disk)
	n = mustOpenStorm(t, disk, calm)
	for i := range 60 {
		if err := h.append(t.Context(), n, "main", testEvent(i)); err != nil {
			t.Fatal(err)
		}
	}
	mustCloseStorm(t, n)
	whole, known := snapshotOf(disk), h.known() // the log goes back to its beginning
	// Now the log is cut.
	n = mustOpenStorm(t, disk, func(c *Config) { c.TrailingLogs = 1 })
	if err := h.append(t.Context(), n, "main", testEvent(1)); err != nil {
		t.Fatal(err)
	}
	for n.raft().Stats().First < 40 {
		time.Sleep(10 * time.Millisecond)
	}
	mustCloseStorm(t, n)
	cut := snapshotOf(disk)
	mix := func(base *vfs.MemFS, other *vfs.MemFS, dirs ...string) *vfs.MemFS {
		d := snapshotOf(base)
		for _, dir := range dirs {
			if other == nil {
				if err := d.RemoveAll(path.Join(stormDir, dir)); err != nil {
					t.Fatal(err)
				}
			} else {
				copyDir(t, other, d, path.Join(stormDir, dir))
			}
		}
		return d
	}
	for _, c := range []struct {
		name  string
		disk  *vfs.MemFS
		known *history // nil: refused
		want  error
	}{
		{"state gone, log whole: replayed", mix(whole, nil, stateDir), known, nil},
		{"state older, log whole: replayed", mix(whole, early, stateDir), known, nil},
		{"state gone, log cut (H10)", mix(cut, nil, stateDir), nil, ledger.ErrCorrupt},
		{"state older, log cut (H13)", mix(cut, early, stateDir), nil, ledger.ErrCorrupt},
		{"log older than state (H9 i)", mix(cut, early, raftDir), nil, consensus.ErrLogMismatch},
		{"log and state older: a backup, or amnesia", mix(whole, early, raftDir, stateDir), known, nil},
	} {
		if c.known == nil {
			if _, err := openStorm(t.Context(), c.disk, calm); !errors.Is(err, c.want) {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		if strings.HasPrefix(c.name, "log and state older") {
			// Everything agrees but the signer's record: the node serves, and signs nothing until it has caught up (H17).
			n := mustOpenStorm(t, c.disk, calm)
			g, _ := n.Ledger().LogByName("main")
			tree, err := n.Ledger().Tree(g.Number)
			if err != nil {
				t.Fatal(err)
			}
			head := tree.Head()
			if _, err := n.Signer().Checkpoint(g.Origin, head.Size, head.Root); !errors.Is(err, signer.ErrBehind) {
				t.Errorf("%s: signs at size %d: %v", c.name, head.Size, err)
			}
			// It grows past that size with other entries: a fork, which it will not sign either.
			events := make([]*lineage.Event, 100)
			for i := range events {
				events[i] = testEvent(i)
			}
			out, err := n.Sequencer().Append(t.Context(), stormRequest(n.Node, g, events...))
			if err != nil {
				t.Fatal(err)
			}
			head = out.Tree.Head()
			if _, err := n.Signer().Checkpoint(g.Origin, head.Size, head.Root); !errors.Is(err, signer.ErrFork) {
				t.Errorf("%s: signs another history at size %d: %v", c.name, head.Size, err)
			}
			mustCloseStorm(t, n)
			continue
		}
		if err := checkDisk(c.disk, c.known.known(), calm); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// TestCopyForks: a copied directory is another node with the same key. Nothing inside can tell; the checkpoints of the two can.
func TestCopyForks(t *testing.T) {
	disk := vfs.NewCrashableMem()
	n, h := filled(t, disk, nil, 5)
	mustCloseStorm(t, n)
	var notes []issuedNote
	for range 2 {
		d, k := snapshotOf(disk), h.known()
		if err := checkDisk(d, k, nil); err != nil {
			t.Fatal(err)
		}
		notes = append(notes, k.notes[len(k.notes)-1])
		defer func() {
			n := mustOpenStorm(t, d, nil)
			held := 0
			for _, i := range notes {
				if i.holds(n.Ledger()) == nil {
					held++
				}
			}
			if held != 1 {
				t.Errorf("%d of two forked checkpoints hold", held)
			}
			mustCloseStorm(t, n)
		}()
	}
	if bytes.Equal(notes[0].note, notes[1].note) || notes[0].vkey != notes[1].vkey {
		t.Error("no fork: this test tests nothing")
	}
}

// dies runs f and waits for the node to say why it ends.
func dies(t *testing.T, n *opened, f func()) string {
	t.Helper()
	go f()
	for range 2000 {
		if err := n.death(); err != nil {
			return err.Error()
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("survived")
	return ""
}

// TestGuardsAreWired: the raft log that raft is given is behind its guards, with this ledger's numbers (H1, H6, H18).
func TestGuardsAreWired(t *testing.T) {
	n, _ := filled(t, vfs.NewMem(), calm, 20)
	g := n.guarded()
	first, _ := g.FirstIndex()
	last, _ := g.LastIndex()
	if err := g.DeleteRange(first, last-2); err != nil {
		t.Fatal(err)
	}
	if now, _ := g.FirstIndex(); now != first {
		t.Errorf("the log was cut to %d with nothing durable (H1)", now)
	}
	if err := n.Ledger().Flush(t.Context(), n.Ledger().Applied().Index); err != nil {
		t.Fatal(err)
	}
	if err := g.DeleteRange(first, last-2); err != nil {
		t.Fatal(err)
	}
	if now, _ := g.FirstIndex(); now != last-1 {
		t.Errorf("the log begins at %d, want %d", now, last-1)
	}
	if why := dies(t, n, func() { _ = g.DeleteRange(last, last) }); !strings.Contains(why, "applied") {
		t.Errorf("H18: %s", why)
	}
	n.dead = ""
	if why := dies(t, n, func() { _ = g.Set([]byte("other"), nil) }); !strings.Contains(why, "Set failed") {
		t.Errorf("H6: %s", why)
	}
	n.dead = ""
	mustCloseStorm(t, n)
}

// TestUnknownCommandHalts: what this program cannot decode is never skipped, now or at the next start (H15).
func TestUnknownCommandHalts(t *testing.T) {
	disk := vfs.NewCrashableMem()
	n, _ := filled(t, disk, calm, 3)
	applied := n.Ledger().Applied()
	why := dies(t, n, func() {
		p := n.raft().Propose([]byte{ledger.MaxCommandVersion + 1, 0, 0, 0, 0, 1, 2, 3})
		_, _, _ = p.Wait(context.Background())
	})
	if !strings.Contains(why, fmt.Sprintf("version %d", ledger.MaxCommandVersion+1)) {
		t.Error(why)
	}
	if n.Ledger().Applied() != applied {
		t.Error("applied something")
	}
	dead := make(chan error, 1)
	go func() { // it neither opens nor returns
		_, err := openStorm(context.Background(), snapshotOf(disk), func(c *Config) {
			calm(c)
			c.Die = func(_ string, err error) { dead <- err }
		})
		dead <- fmt.Errorf("opened: %w", err)
	}()
	if err := <-dead; !strings.Contains(err.Error(), fmt.Sprintf("version %d", ledger.MaxCommandVersion+1)) {
		t.Errorf("at the next start: %v", err)
	}
	// n and the second node hang in Apply for ever, as a dying process does; their disks are their own.
}

// TestStateStoreThatCannotWriteDies: Pebble would try again for ever, and tell nobody (H5).
func TestStateStoreThatCannotWriteDies(t *testing.T) {
	for _, fault := range []error{syscall.ENOSPC, syscall.EIO, errors.New("odd")} {
		armed := make(chan struct{})
		disk := vfs.NewCrashableMem()
		fs := errorfs.Wrap(disk, errorfs.InjectorFunc(func(op errorfs.Op) error {
			select {
			case <-armed:
			default:
				return nil
			}
			if op.Kind == errorfs.OpCreate && strings.HasSuffix(op.Path, ".sst") {
				return fault
			}
			return nil
		}))
		n, h := filled(t, fs, calm, 3)
		known := h.known()
		close(armed)
		why := dies(t, n, func() {
			_ = n.Ledger().Flush(context.Background(), 1)
		})
		if !strings.Contains(why, "cannot write") || !strings.Contains(why, fault.Error()) {
			t.Errorf("%v: %s", fault, why)
		}
		if err := checkDisk(snapshotOf(disk), known, calm); err != nil {
			t.Errorf("%v: %v", fault, err)
		}
	}
}

// TestRaftLogThatCannotWriteDies: an append whose write fails is never acknowledged, and nothing goes on (H6).
func TestRaftLogThatCannotWriteDies(t *testing.T) {
	for _, kind := range []errorfs.OpKind{errorfs.OpFileWriteAt, errorfs.OpFileSyncData} {
		armed := make(chan struct{})
		disk := vfs.NewCrashableMem()
		fs := errorfs.Wrap(disk, errorfs.InjectorFunc(func(op errorfs.Op) error {
			select {
			case <-armed:
			default:
				return nil
			}
			if op.Kind == kind && strings.HasSuffix(op.Path, ".seg") {
				return syscall.EIO
			}
			return nil
		}))
		n, h := filled(t, fs, calm, 3)
		close(armed)
		answered := make(chan error, 1)
		e := testEvent(9)
		why := dies(t, n, func() { answered <- h.append(context.Background(), n, "main", e) })
		if !strings.Contains(why, "input/output error") {
			t.Error(why)
		}
		select {
		case err := <-answered:
			t.Errorf("answered %v", err)
		case <-time.After(20 * time.Millisecond):
		}
		if err := checkDisk(snapshotOf(disk), h.known(), calm); err != nil {
			t.Error(err)
		}
	}
}

// TestClosedStateIsWhole: after a clean stop the state store alone has everything, so that a copy of it is one of now (H4).
func TestClosedStateIsWhole(t *testing.T) {
	disk := vfs.NewCrashableMem()
	n, _ := filled(t, disk, calm, 10)
	applied := n.Ledger().Applied()
	mustCloseStorm(t, n)
	o := ledger.Options{
		FS: snapshotOf(disk), Dir: path.Join(stormDir, stateDir), ClusterID: n.dir.ClusterID, Logger: n.c.Logger, MemTableBytes: 1 << 20, BlockCacheBytes: 1 << 20,
		Die: func(reason string, err error) { panic(fmt.Sprint(reason, err)) },
	}
	l, err := ledger.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	if l.Applied() != applied {
		t.Errorf("the state store has %+v, applied was %+v", l.Applied(), applied)
	}
	if err := errors.Join(l.Check(t.Context()), l.Close(t.Context())); err != nil {
		t.Error(err)
	}
}

// TestDiskFull: appends stop while there is room to stop in good order, and go on by themselves.
func TestDiskFull(t *testing.T) {
	disk := vfs.NewMem()
	free := func(mib uint64) {
		disk.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: mib << 20, TotalBytes: 1 << 40, UsedBytes: 1 << 30})
	}
	free(1000)
	n, h := filled(t, disk, nil, 2)
	defer mustCloseStorm(t, n)
	until := func(want error) {
		t.Helper()
		var err error
		for range 300 {
			if err = h.append(t.Context(), n, "main", testEvent(1)); want == nil && err == nil || want != nil && errors.Is(err, want) {
				if (n.Ready() == nil) != (want == nil) {
					t.Errorf("ready: %v", n.Ready())
				}
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Fatalf("got %v, want %v", err, want)
	}
	free(255)
	until(ledger.ErrOverloaded)
	free(1000)
	until(nil)
}

// TestCloseUnderLoad: a node that stops answers everybody with the truth.
func TestCloseUnderLoad(t *testing.T) {
	disk := vfs.NewCrashableMem()
	n, h := filled(t, disk, nil, 1)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for {
				err := h.append(t.Context(), n, "main", testEvent(1))
				if err == nil {
					continue
				}
				if !errors.Is(err, sequencer.ErrNotApplied) {
					t.Error(err)
				}
				return
			}
		})
	}
	time.Sleep(50 * time.Millisecond)
	mustCloseStorm(t, n)
	wg.Wait()
	if err := checkDisk(disk, h.known(), nil); err != nil {
		t.Error(err)
	}
}

// TestOpenGivesUp: an Open whose context ends leaves a directory that opens.
func TestOpenGivesUp(t *testing.T) {
	disk := vfs.NewMem()
	for d := time.Duration(0); ; d += 500 * time.Microsecond {
		ctx, cancel := context.WithTimeout(t.Context(), d)
		n, err := openStorm(ctx, disk, nil)
		cancel()
		if err != nil {
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("after %v: %v", d, err)
			}
			continue
		}
		mustCloseStorm(t, n)
		break
	}
	if err := checkDisk(disk, &history{sent: map[lineage.ID]bool{}}, nil); err != nil {
		t.Error(err)
	}
}
