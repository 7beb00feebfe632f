package consensus

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// deliveredIndexes of commands and configurations, in order.
func deliveredIndexes(y *toy) []uint64 {
	y.mu.Lock()
	defer y.mu.Unlock()
	var is []uint64
	for _, e := range y.delivered {
		is = append(is, e.Index)
	}
	return is
}

// logIndexes of the commands and configurations that the log holds above index.
func logIndexes(t *testing.T, s Store, index uint64) []uint64 {
	t.Helper()
	first, _ := s.FirstIndex()
	last, _ := s.LastIndex()
	var is []uint64
	for i := max(first, index+1); i <= last; i++ {
		var l raft.Log
		if err := s.GetLog(i, &l); err != nil {
			t.Fatal(err)
		}
		if l.Type == raft.LogCommand || l.Type == raft.LogConfiguration {
			is = append(is, i)
		}
	}
	return is
}

func TestRestartReplaysWhatIsNotDurable(t *testing.T) {
	n := start(t)
	for i := range 10 {
		n.propose(t, command(i))
	}
	n.toy.makeDurable()
	at := n.toy.durable.at.Index
	for i := range 7 {
		n.propose(t, command(10+i))
	}
	want := n.toy.commands()

	n = n.powerCut(t)
	n.barrier(t)
	if got := n.toy.commands(); !slices.Equal(got, want) {
		t.Errorf("after a power cut %q\nwant %q", got, want)
	}
	if got, want := deliveredIndexes(n.toy), logIndexes(t, n.store, at); len(got) != 7 || !slices.Equal(got, want) {
		t.Errorf("delivered %v after a start from index %d, want %v", got, at, want)
	}
}

func TestSnapshotCompactsTheLog(t *testing.T) {
	n := start(t)
	for i := range 20 {
		n.propose(t, command(i))
	}
	if err := n.snapshot(); err != nil {
		t.Fatal(err)
	}
	last, _ := n.store.LastIndex()
	if first, _ := n.store.FirstIndex(); first != last-1 { // TrailingLogs is 2
		t.Errorf("log is [%d, %d] after a snapshot, want the 2 newest entries", first, last)
	}
	want := n.toy.commands()
	n = n.powerCut(t)
	n.propose(t, "next")
	if got := n.toy.commands(); !slices.Equal(got, append(want, "next")) {
		t.Errorf("after compaction and a power cut %q", got)
	}
}

// H1 (a): whatever Flush says, raft must not compact what is not durable. Each of these machines would lose commands.
func TestNoCompactionBeyondDurable(t *testing.T) {
	failed := errors.New("flush failed")
	for name, flush := range map[string]func(y *toy) func(context.Context, uint64) error{
		"lies": func(*toy) func(context.Context, uint64) error {
			return func(context.Context, uint64) error { return nil }
		},
		"fails": func(*toy) func(context.Context, uint64) error {
			return func(context.Context, uint64) error { return failed }
		},
		"hangs": func(*toy) func(context.Context, uint64) error {
			return func(ctx context.Context, _ uint64) error { <-ctx.Done(); return context.Cause(ctx) }
		},
		"stops one short": func(y *toy) func(context.Context, uint64) error {
			return func(context.Context, uint64) error {
				y.makeDurable()
				y.mu.Lock()
				defer y.mu.Unlock()
				y.durable.at.Index--
				return nil
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := start(t)
				n.store.durable = nil // without the second lock, H1 (b)
				n.barrier(t)
				n.toy.makeDurable() // the configuration, which has a lock of its own
				for i := range 10 {
					n.propose(t, command(i))
				}
				n.toy.mu.Lock()
				n.toy.flush = flush(n.toy)
				n.toy.mu.Unlock()
				if err := n.snapshot(); err == nil {
					t.Error("snapshot succeeded")
				}
				if d := n.store.deleted(); len(d) > 0 {
					t.Errorf("raft compacted %v, nothing of that is durable", d)
				}
			})
		})
	}
}

// The index of a raft snapshot counts barriers, which no machine sees: it runs ahead of the durable index, and would take the
// head of the log with it. The entry at the durable index stays, whatever the store itself does about it.
func TestTrailingBarriers(t *testing.T) {
	run := func(t *testing.T) (n *node, durable uint64) {
		n = start(t)
		n.store.durable = nil
		n.propose(t, "a")
		for range 10 {
			n.barrier(t)
		}
		if err := n.snapshot(); err != nil {
			t.Fatal(err)
		}
		d, _ := n.toy.Durable()
		if last, _ := n.store.LastIndex(); last-2 <= d.Index { // TrailingLogs is 2
			t.Fatalf("raft leaves what is above %d, the durable index is %d: this test tests nothing", last-2, d.Index)
		}
		if asked := n.store.deleted(); len(asked) != 1 || asked[0] != [2]uint64{1, d.Index - 1} {
			t.Fatalf("deleted %v with durable index %d", asked, d.Index)
		}
		return n, d.Index
	}
	t.Run("kept", func(t *testing.T) {
		n, _ := run(t)
		n = n.powerCut(t)
		n.propose(t, "b")
		if got := n.toy.commands(); !slices.Equal(got, []string{"a", "b"}) {
			t.Errorf("applied %q", got)
		}
	})
	t.Run("lost", func(t *testing.T) {
		n, durable := run(t)
		if err := n.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := n.store.DeleteRange(1, durable+1); err != nil {
			t.Fatal(err)
		}
		c, err := Open(testConfig(t, n.store, n.toy.powerCut()))
		if !errors.Is(err, ErrLogMismatch) {
			t.Errorf("Open on a log with a gap: %v, %v; want ErrLogMismatch", c, err)
		}
	})
}

// H2: metadata is what the machine holds when asked.
func TestSnapshotMetadataIsLive(t *testing.T) {
	n := start(t)
	for i := range 5 {
		n.propose(t, command(i))
	}
	s := snapshots{n.toy}
	if metas, err := s.List(); len(metas) != 0 || err != nil {
		t.Errorf("List with nothing durable: %v, %v", metas, err)
	}
	if _, _, err := s.Open(snapshotID); err == nil {
		t.Error("Open with nothing durable succeeded")
	}
	check := func() {
		t.Helper()
		d, _ := n.toy.Durable()
		metas, err := s.List()
		if err != nil || len(metas) != 1 {
			t.Fatalf("List: %v, %v", metas, err)
		}
		opened, r, err := s.Open(metas[0].ID)
		if err != nil {
			t.Fatal(err)
		}
		r.Close()
		for _, m := range []*raft.SnapshotMeta{metas[0], opened} {
			if m.Index != d.Index || m.Term != d.Term || m.ConfigurationIndex != d.ConfigurationIndex ||
				!slices.Equal(raft.EncodeConfiguration(m.Configuration), d.Configuration) || m.Size != 0 {
				t.Errorf("metadata %+v, durable is %+v", m, d)
			}
		}
	}
	n.toy.makeDurable()
	old := n.toy.durable.clone()
	check()
	n.propose(t, "more")
	n.toy.makeDurable()
	check()
	n.toy.mu.Lock()
	n.toy.durable = old // a backup was put back under our feet
	n.toy.mu.Unlock()
	check()
	if _, _, err := s.Open("another"); err == nil {
		t.Error("a snapshot of another name exists")
	}
}

// H2: a machine that comes back from an older copy gets everything again, although raft took a snapshot further up.
func TestMachineOlderThanItsSnapshot(t *testing.T) {
	keep := func(c *Config) { c.TrailingLogs = 1000 }
	n := start(t, keep)
	n.propose(t, "a")
	n.toy.makeDurable()
	old := n.toy.powerCut()
	n.propose(t, "b")
	if err := n.snapshot(); err != nil {
		t.Fatal(err)
	}
	n.propose(t, "c")
	if err := n.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	n = reopen(t, n.store, old, keep)
	n.barrier(t)
	if got := n.toy.commands(); !slices.Equal(got, []string{"a", "b", "c"}) {
		t.Errorf("applied %q, want a b c", got)
	}
}

// H3: after compaction the machine holds the only copy of the configuration.
func TestConfigurationSurvivesCompaction(t *testing.T) {
	n := start(t)
	for i := range 10 {
		n.propose(t, command(i))
	}
	first := n.toy.delivered[0]
	if !first.Configuration || first.Index != 1 || n.toy.delivered[1].Configuration {
		t.Errorf("first entry delivered is %+v, want the configuration of index 1", first)
	}
	if err := n.snapshot(); err != nil {
		t.Fatal(err)
	}
	if left := logIndexes(t, n.store, 0); len(left) == 0 || left[0] <= 1 {
		t.Fatalf("log still holds %v: this test tests nothing", left)
	}
	n = n.powerCut(t) // leads again
	want := raft.Configuration{Servers: []raft.Server{{Suffrage: raft.Voter, ID: testNode, Address: testNode}}}
	got := n.raft.GetConfiguration().Configuration()
	if !slices.Equal(got.Servers, want.Servers) {
		t.Errorf("configuration after compaction and restart is %v, want %v", got, want)
	}
}

// H3: a machine that drops configurations must not get the log compacted.
func TestNoCompactionWithoutConfiguration(t *testing.T) {
	n := start(t)
	n.store.durable = nil
	for i := range 10 {
		n.propose(t, command(i))
	}
	n.toy.mu.Lock()
	n.toy.live.at.ConfigurationIndex, n.toy.live.at.Configuration = 0, nil
	n.toy.mu.Unlock()
	if err := n.snapshot(); err == nil {
		t.Error("snapshot succeeded")
	}
	if d := n.store.deleted(); len(d) > 0 {
		t.Errorf("raft compacted %v, the configuration with it", d)
	}
}

// H16: raft knows nothing to snapshot until the first entry after a start is applied.
func TestSnapshotRightAfterRestart(t *testing.T) {
	n := start(t)
	n.propose(t, "a")
	n.toy.makeDurable()
	n = n.powerCut(t)
	if err := n.snapshot(); !errors.Is(err, raft.ErrNothingNewToSnapshot) {
		t.Errorf("snapshot before the first entry: %v, want %v", err, raft.ErrNothingNewToSnapshot)
	}
	n.propose(t, "b")
	if err := n.snapshot(); err != nil {
		t.Error(err)
	}
}

// What arrives as a snapshot has no content: neither half of an installation may seem to work.
func TestInstallIsRefused(t *testing.T) {
	y := &toy{}
	k, err := snapshots{y}.Create(raft.SnapshotVersionMax, 9, 3, raft.Configuration{}, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Write([]byte{1}); !errors.Is(err, ErrInstall) {
		t.Errorf("Write: %v, want ErrInstall", err)
	}
	if err := k.Close(); !errors.Is(err, ErrInstall) {
		t.Errorf("Close without Persist: %v, want ErrInstall", err)
	}
	r := &closeRecorder{}
	if err := (&fsm{machine: y}).Restore(r); !errors.Is(err, ErrInstall) || !r.closed {
		t.Errorf("Restore: %v, reader closed: %v", err, r.closed)
	}
}

type closeRecorder struct{ closed bool }

func (r *closeRecorder) Read([]byte) (int, error) { return 0, errors.New("read") }
func (r *closeRecorder) Close() error             { r.closed = true; return nil }

func TestWrongNumberOfResults(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("a machine returned too few results and nobody noticed")
		}
	}()
	(&fsm{machine: shortMachine{}}).Apply(&raft.Log{Index: 1})
}

type shortMachine struct{ noMachine }

func (shortMachine) Apply([]Entry) []any { return nil }

// compact: by growth of the log, by time, not without something new, not in a loop, again after a failure.
func TestCompactTriggers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var size atomic.Int64
		n := start(t, func(c *Config) {
			c.LogBytes, c.SnapshotBytes, c.SnapshotEvery = size.Load, 1000, time.Hour
		})
		pause := func(d time.Duration) { time.Sleep(d); synctest.Wait() }
		expect := func(step string, want uint64) {
			t.Helper()
			if got := n.Stats().Snapshots; got != want {
				t.Fatalf("%s: %d snapshots, want %d", step, got, want)
			}
		}
		n.propose(t, "a")
		size.Store(999)
		pause(time.Minute)
		expect("log below the bound", 0)
		size.Store(1000)
		pause(2 * snapshotPoll)
		expect("log at the bound", 1)
		pause(time.Minute)
		expect("log stays at the bound", 1)
		size.Store(5000)
		pause(time.Minute)
		expect("log grew, nothing new was applied", 1)
		n.propose(t, "b")
		pause(2 * snapshotPoll)
		expect("log grew, one more applied", 2)
		n.propose(t, "c")
		size.Store(5999)
		pause(time.Minute)
		expect("log grew by less than the bound over what compaction left", 2)
		size.Store(100)
		pause(time.Minute)
		size.Store(1100)
		pause(2 * snapshotPoll)
		expect("log shrank, then grew by the bound", 3)
		n.propose(t, "d")
		pause(time.Hour + time.Minute)
		expect("an hour went by", 4)
		pause(3 * time.Hour)
		expect("hours without anything new", 4)

		n.toy.mu.Lock()
		n.toy.flush = func(context.Context, uint64) error { return errors.New("disk is slow") }
		n.toy.mu.Unlock()
		n.propose(t, "e")
		size.Store(9000)
		pause(3*snapshotRetry - time.Second)
		expect("flush fails", 4)
		if got := n.Stats().SnapshotFailures; got < 2 || got > 3 {
			t.Errorf("%d attempts within three pauses, want one each", got)
		}
		n.toy.mu.Lock()
		n.toy.flush = nil
		n.toy.mu.Unlock()
		pause(2 * snapshotRetry)
		expect("flush works again", 5)
	})
}

// A flush under way must not hold Close up.
func TestCloseEndsFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := start(t)
		n.propose(t, "a")
		n.toy.mu.Lock()
		n.toy.flush = func(ctx context.Context, _ uint64) error { <-ctx.Done(); return context.Cause(ctx) }
		n.toy.mu.Unlock()
		taken := make(chan error, 1)
		go func() { taken <- n.snapshot() }()
		synctest.Wait() // the machine flushes
		begin := time.Now()
		if err := n.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if err := <-taken; err == nil {
			t.Error("snapshot succeeded")
		}
		if d := time.Since(begin); d >= flushTimeout {
			t.Errorf("Close waited %v for a flush", d)
		}
	})
}

// Random histories of commands, barriers, partial flushes, snapshots and power cuts: what was acknowledged stays, in its
// order and at its index.
func TestPowerCuts(t *testing.T) {
	seeds := 150
	if testing.Short() {
		seeds = 20
	}
	for seed := range seeds {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(uint64(seed), 1))
			trailing := func(c *Config) { c.TrailingLogs = 1 + r.Uint64N(4) }
			n := start(t, trailing)
			type acked struct {
				command string
				index   uint64
			}
			var want []acked
			check := func() {
				n.barrier(t)
				n.toy.mu.Lock()
				defer n.toy.mu.Unlock()
				for i, a := range want {
					if i >= len(n.toy.live.commands) || n.toy.live.commands[i] != a.command || n.toy.live.indexes[i] != a.index {
						t.Fatalf("seed %d: acknowledged command %d, %v, is not there: %q at %v",
							seed, i, a, n.toy.live.commands, n.toy.live.indexes)
					}
				}
			}
			for step := range 60 {
				switch r.IntN(10) {
				case 0, 1, 2, 3, 4:
					c := command(step)
					_, index := n.propose(t, c)
					want = append(want, acked{c, index})
				case 5, 6:
					n.barrier(t)
				case 7:
					n.toy.makeDurable()
				case 8:
					// A machine that flushes honestly, or claims to.
					lie := r.IntN(3) == 0
					n.toy.mu.Lock()
					n.toy.flush = nil
					if lie {
						n.toy.flush = func(context.Context, uint64) error { return nil }
					}
					n.toy.mu.Unlock()
					_ = n.snapshot() // may have nothing to do, or be refused
				case 9:
					n = n.powerCut(t, trailing)
					check()
				}
			}
			check()
		})
	}
}
