package raftlog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testSegment = 64 << 10

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// testOptions are small segments and a mark that keeps up.
func testOptions(fs vfs.FS) Options {
	return Options{FS: fs, Dir: "node/raft", SegmentBytes: testSegment, MarkInterval: time.Millisecond, Logger: quiet}
}

func mustOpen(t testing.TB, o Options) *Store {
	t.Helper()
	s, err := Open(o)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	return s
}

func mustClose(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
}

// entry makes an entry whose content is a function of its index, term and size.
func entry(index, term uint64, size int) *raft.Log {
	l := &raft.Log{Index: index, Term: term, Type: raft.LogType(index % 6), AppendedAt: time.Unix(int64(index), int64(term)).UTC()}
	if size > 0 {
		l.Data = bytes.Repeat([]byte(fmt.Sprintf("%d/%d;", index, term)), size)[:size]
	}
	if index%3 == 0 {
		l.Extensions = []byte(fmt.Sprintf("ext %d", index))
	}
	return l
}

func entries(first, last, term uint64, size int) []*raft.Log {
	var logs []*raft.Log
	for i := first; i <= last; i++ {
		logs = append(logs, entry(i, term, size))
	}
	return logs
}

func sameEntry(a, b *raft.Log) bool {
	return a.Index == b.Index && a.Term == b.Term && a.Type == b.Type && bytes.Equal(a.Data, b.Data) &&
		bytes.Equal(a.Extensions, b.Extensions) && a.AppendedAt.Equal(b.AppendedAt)
}

// readAll reads the whole log.
func readAll(s *Store) ([]*raft.Log, error) {
	first, err := s.FirstIndex()
	if err != nil {
		return nil, err
	}
	last, err := s.LastIndex()
	if err != nil || last == 0 {
		return nil, err
	}
	var logs []*raft.Log
	for i := first; i <= last; i++ {
		l := new(raft.Log)
		if err := s.GetLog(i, l); err != nil {
			return nil, err
		}
		logs = append(logs, l)
	}
	return logs, nil
}

func checkLog(t testing.TB, s *Store, want []*raft.Log) {
	t.Helper()
	got, err := readAll(s)
	if err != nil {
		t.Fatalf("read log: %v", err)
	}
	if !slices.EqualFunc(got, want, sameEntry) {
		t.Fatalf("log is %s, want %s", span(got), span(want))
	}
}

func span(logs []*raft.Log) string {
	if len(logs) == 0 {
		return "empty"
	}
	return fmt.Sprintf("[%d, %d]", logs[0].Index, logs[len(logs)-1].Index)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestStoreAndReopen(t *testing.T) {
	fs := vfs.NewMem()
	s := mustOpen(t, testOptions(fs))
	checkLog(t, s, nil)
	want := entries(1, 3, 1, 100)
	must(t, s.StoreLogs(want))
	for i := uint64(4); i <= 100; i++ {
		l := entry(i, 1, int(i)*50)
		must(t, s.StoreLog(l))
		want = append(want, l)
	}
	checkLog(t, s, want)
	if n := len(s.segs); n < 4 {
		t.Fatalf("%d segments, expected several", n)
	}
	mustClose(t, s)

	s = mustOpen(t, testOptions(fs))
	checkLog(t, s, want)
	must(t, s.DeleteRange(91, 100))
	must(t, s.DeleteRange(1, 80))
	want = want[80:90]
	checkLog(t, s, want)
	mustClose(t, s)

	s = mustOpen(t, testOptions(fs))
	checkLog(t, s, want)
	must(t, s.DeleteRange(81, 90))
	checkLog(t, s, nil)
	want = entries(500, 520, 3, 4000) // an empty log takes any index
	must(t, s.StoreLogs(want))
	checkLog(t, s, want)
	mustClose(t, s)
	s = mustOpen(t, testOptions(fs))
	checkLog(t, s, want)
	mustClose(t, s)
	if err := s.StoreLog(entry(521, 3, 0)); !errors.Is(err, ErrClosed) {
		t.Fatalf("StoreLog after Close: %v", err)
	}
}

// counter is a state machine that counts commands.
type counter struct {
	applied atomic.Int64
	sum     atomic.Int64
}

func (c *counter) Apply(l *raft.Log) any {
	c.applied.Add(1)
	return c.sum.Add(int64(len(l.Data)))
}
func (c *counter) Snapshot() (raft.FSMSnapshot, error) { return nil, errors.New("no snapshots here") }
func (c *counter) Restore(io.ReadCloser) error         { return errors.New("no snapshots here") }

// TestRaft runs raft itself on a guarded store: bootstrap, elections, appends, restarts with replay, and a power cut.
func TestRaft(t *testing.T) {
	fs := vfs.NewCrashableMem()
	const rounds, commands = 3, 40
	for round := range rounds {
		s := mustOpen(t, testOptions(fs))
		var c counter
		g := Guard(s, GuardOptions{
			Durable: func() uint64 { return 0 }, Applied: func() uint64 { return uint64(c.applied.Load()) },
			Die: func(reason string, err error) { panic(fmt.Sprint(reason, ": ", err)) }, Logger: quiet,
		})
		conf := raft.DefaultConfig()
		conf.LocalID, conf.LogOutput = "a", io.Discard
		conf.HeartbeatTimeout, conf.ElectionTimeout, conf.LeaderLeaseTimeout = 20*time.Millisecond, 20*time.Millisecond, 20*time.Millisecond
		addr, trans := raft.NewInmemTransport("a")
		snaps := raft.NewDiscardSnapshotStore()
		if round == 0 {
			must(t, raft.BootstrapCluster(conf, g, g, snaps, trans, raft.Configuration{Servers: []raft.Server{{ID: "a", Address: addr}}}))
		} else if has, err := raft.HasExistingState(g, g, snaps); err != nil || !has {
			t.Fatalf("round %d: existing state %v: %v", round, has, err)
		}
		r, err := raft.NewRaft(conf, &c, g, g, snaps, trans)
		must(t, err)
		for r.State() != raft.Leader {
			time.Sleep(time.Millisecond)
		}
		must(t, r.Barrier(time.Minute).Error())
		if n := c.applied.Load(); n != int64(round*commands) {
			t.Fatalf("round %d: %d commands replayed, want %d", round, n, round*commands)
		}
		for i := range commands {
			must(t, r.Apply(make([]byte, i*100), time.Minute).Error())
		}
		must(t, r.Shutdown().Error())
		if n := c.sum.Load(); n != int64((round+1)*100*commands*(commands-1)/2) {
			t.Errorf("round %d: state is %d", round, n)
		}
		after := fs.CrashClone(vfs.CrashCloneCfg{})
		mustClose(t, s)
		fs = after
	}
}
