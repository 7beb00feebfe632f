package consensus

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A sole voter must not wait for a timeout that exists to hear of other voters: with one of an hour, no fake time passes.
// Nor does it warn of the timeout that it fakes.
func TestSoleVoterLeadsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		begin := time.Now()
		n := start(t, func(c *Config) {
			c.HeartbeatTimeout = time.Hour
			c.Logger = slog.New(slog.NewTextHandler(&log, nil))
		})
		n.propose(t, "a")
		if d := time.Since(begin); d >= time.Second {
			t.Errorf("led and applied after %v of fake time, HeartbeatTimeout is an hour", d)
		}
		if !n.IsLeader() || n.Term() != 2 {
			t.Errorf("IsLeader %v, Term %d; want true, 2", n.IsLeader(), n.Term())
		}
		// What it leads with is the timeout that was asked for.
		if rc := n.raft.ReloadableConfig(); rc.HeartbeatTimeout != time.Hour || rc.ElectionTimeout != time.Hour || rc.TrailingLogs != 2 {
			t.Errorf("timeouts are %v and %v, TrailingLogs %d; want an hour, 2", rc.HeartbeatTimeout, rc.ElectionTimeout, rc.TrailingLogs)
		}
		synctest.Wait()
		if log.Len() > 0 {
			t.Errorf("a normal start logged %s", &log)
		}
		if got := n.logger.GetLevel(); got != hclog.Warn {
			t.Errorf("level of a leader's raft log is %v, want warn", got)
		}
	})
}

func TestLeaderChanges(t *testing.T) {
	n := start(t)
	if !<-n.LeaderChanges() {
		t.Error("first change is a loss")
	}
	if err := n.StepDown(); !errors.Is(err, ErrSoleVoter) {
		t.Errorf("StepDown of a sole voter: %v, want ErrSoleVoter", err)
	}
	n.propose(t, "a") // still leads
	if err := n.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if <-n.LeaderChanges() {
		t.Error("Close was seen as a gain")
	}
}

// Nobody receives: raft must not be held up, and the newest change must be the one that is kept.
func TestLeaderChangesNewestWins(t *testing.T) {
	l := newLeadership()
	gains := make(chan struct{}, 20)
	go l.watch(func() { gains <- struct{}{} })
	for range 10 {
		l.notify <- true
		l.notify <- false
	}
	l.notify <- true
	for range 11 {
		<-gains
	}
	if err := l.wait(t.Context(), nil); err != nil { // that of the eleventh: all before it are lost again
		t.Fatal(err)
	}
	close(l.stop)
	<-l.done
	if got := <-l.changes; got {
		t.Error("newest change is a gain, want the loss of the stop")
	}
}

func TestWaitLeaderEndsWithContext(t *testing.T) {
	l := newLeadership()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.wait(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("wait: %v, want context.Canceled", err)
	}
}

func TestBootstrap(t *testing.T) {
	s := newMemStore(&toy{})
	if err := Bootstrap(s, testNode, ""); err != nil {
		t.Fatal(err)
	}
	var l raft.Log
	if err := s.GetLog(1, &l); err != nil {
		t.Fatal(err)
	}
	want := []raft.Server{{Suffrage: raft.Voter, ID: testNode, Address: testNode}}
	if got := raft.DecodeConfiguration(l.Data); l.Type != raft.LogConfiguration || !slices.Equal(got.Servers, want) {
		t.Errorf("entry 1 is %v %v, want configuration %v", l.Type, got, want)
	}
	if err := Bootstrap(s, testNode, ""); !errors.Is(err, raft.ErrCantBootstrap) {
		t.Errorf("second Bootstrap: %v, want %v", err, raft.ErrCantBootstrap)
	}
	if err := Bootstrap(raft.NewInmemStore(), "", ""); err == nil {
		t.Error("a node without id was made a member")
	}
}

// Open refuses what would make raft skip, repeat or fork entries, and leaves nothing running (TestMain).
func TestOpenRefuses(t *testing.T) {
	conf := raft.EncodeConfiguration(raft.Configuration{
		Servers: []raft.Server{{Suffrage: raft.Voter, ID: testNode, Address: testNode}},
	})
	// A log of index 1 (configuration) to 9 in term 2, and a machine that is durable at index 5.
	at := Position{Index: 5, Term: 2, ConfigurationIndex: 1, Configuration: conf}
	for name, test := range map[string]struct {
		change func(s *raft.InmemStore, at *Position)
		id     string
		want   error // nil: opens
	}{
		"healthy":              {change: func(*raft.InmemStore, *Position) {}},
		"empty machine":        {change: func(_ *raft.InmemStore, at *Position) { *at = Position{} }},
		"log begins after":     {change: func(s *raft.InmemStore, _ *Position) { s.DeleteRange(1, 5) }},
		"log begins at":        {change: func(s *raft.InmemStore, _ *Position) { s.DeleteRange(1, 4) }},
		"log ends at":          {change: func(s *raft.InmemStore, _ *Position) { s.DeleteRange(6, 9) }},
		"log lost its tail":    {change: func(s *raft.InmemStore, _ *Position) { s.DeleteRange(5, 9) }, want: ErrLogMismatch},
		"log is gone":          {change: func(s *raft.InmemStore, _ *Position) { s.DeleteRange(1, 9) }, want: ErrLogMismatch},
		"log lost its head":    {change: func(s *raft.InmemStore, _ *Position) { s.DeleteRange(1, 6) }, want: ErrLogMismatch},
		"machine is gone":      {change: func(s *raft.InmemStore, at *Position) { s.DeleteRange(1, 2); *at = Position{} }, want: ErrLogMismatch},
		"another term":         {change: func(_ *raft.InmemStore, at *Position) { at.Term = 1 }, want: ErrLogMismatch},
		"no configuration":     {change: func(_ *raft.InmemStore, at *Position) { at.Configuration = nil }, want: ErrLogMismatch},
		"broken configuration": {change: func(_ *raft.InmemStore, at *Position) { at.Configuration = conf[:9] }, want: ErrLogMismatch},
		"configuration of nobody": {change: func(_ *raft.InmemStore, at *Position) {
			at.Configuration = raft.EncodeConfiguration(raft.Configuration{})
		}, want: ErrLogMismatch},
		"configuration of the future": {change: func(_ *raft.InmemStore, at *Position) { at.ConfigurationIndex = 6 }, want: ErrLogMismatch},
		"never bootstrapped":          {change: func(s *raft.InmemStore, at *Position) { s.DeleteRange(1, 9); *at = Position{} }, want: ErrNotMember},
		"another node":                {change: func(*raft.InmemStore, *Position) {}, id: "node-2", want: ErrNotMember},
	} {
		t.Run(name, func(t *testing.T) {
			s, at := raft.NewInmemStore(), at
			s.SetUint64([]byte("CurrentTerm"), 2)
			logs := []*raft.Log{{Index: 1, Term: 2, Type: raft.LogConfiguration, Data: conf}}
			for i := uint64(2); i <= 9; i++ {
				logs = append(logs, &raft.Log{Index: i, Term: 2, Data: []byte(command(int(i)))})
			}
			s.StoreLogs(logs)
			test.change(s, &at)
			y := &toy{live: toyState{at: at}, durable: toyState{at: at}}
			config := testConfig(t, s, y)
			if test.id != "" {
				config.NodeID = test.id
			}
			c, err := Open(config)
			if !errors.Is(err, test.want) {
				t.Errorf("Open: %v, want %v", err, test.want)
			}
			if err != nil {
				return
			}
			if err := errors.Join(c.WaitLeader(t.Context()), c.Barrier(t.Context()), c.Close(t.Context())); err != nil {
				t.Error(err)
			}
			if last := y.live.at.Index; last < 5 {
				t.Errorf("opened and applied up to %d", last)
			}
		})
	}
}

// Positions and log that cannot be read are errors, not empty ones.
func TestOpenReadErrors(t *testing.T) {
	broken := errors.New("input/output error")
	s := raft.NewInmemStore()
	if err := Bootstrap(s, testNode, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(testConfig(t, s, brokenMachine{err: broken})); !errors.Is(err, broken) {
		t.Errorf("Open with an unreadable machine: %v", err)
	}
	if _, err := Open(testConfig(t, brokenLog{s, broken}, &toy{})); !errors.Is(err, broken) {
		t.Errorf("Open with an unreadable log: %v", err)
	}
}

type brokenMachine struct {
	noMachine
	err error
}

func (m brokenMachine) Durable() (Position, error) { return Position{}, m.err }

type brokenLog struct {
	*raft.InmemStore
	err error
}

func (l brokenLog) LastIndex() (uint64, error) { return 0, l.err }

func TestConfigNamesAllFaults(t *testing.T) {
	_, err := Open(Config{
		HeartbeatTimeout: time.Millisecond, MaxAppendEntries: 1025, SnapshotEvery: -1, SnapshotBytes: -1,
	})
	if err == nil {
		t.Fatal("opened")
	}
	for _, field := range []string{
		"NodeID", "Store", "Machine", "HeartbeatTimeout", "MaxAppendEntries", "SnapshotEvery", "SnapshotBytes",
	} {
		if !strings.Contains(err.Error(), field) {
			t.Errorf("%v does not name %s", err, field)
		}
	}
	for _, h := range []time.Duration{minHeartbeatTimeout, DefaultHeartbeatTimeout, time.Hour} {
		c, err := Config{NodeID: "n", Store: raft.NewInmemStore(), Machine: noMachine{}, HeartbeatTimeout: h}.withDefaults()
		if err != nil {
			t.Fatal(err)
		}
		if err := raft.ValidateConfig(c.raftConfig(nil, nil)); err != nil {
			t.Errorf("raft refuses what HeartbeatTimeout %v gives: %v", h, err)
		}
	}
}

func TestStats(t *testing.T) {
	n := start(t)
	_, index := n.propose(t, "a")
	n.barrier(t)
	got := n.Stats()
	want := Stats{
		Leader: true, Term: 2, First: 1, Last: index + 1, Committed: index + 1, // the barrier's
		Delivered: index,
	}
	if got != want {
		t.Errorf("Stats %+v, want %+v", got, want)
	}
}

func TestLogger(t *testing.T) {
	var out bytes.Buffer
	text := slog.NewTextHandler(&out, &slog.HandlerOptions{
		Level: slog.LevelInfo,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	})
	l := newLogger(slog.New(text), hclog.Warn)
	sub := l.With("id", 7).Named("net")
	for _, step := range []struct {
		do   func()
		want string
	}{
		{func() { l.Info("quiet") }, ""},
		{func() { l.Warn("loud", "servers", hclog.Fmt("%+v", []int{1, 2})) }, "level=WARN msg=loud component=raft servers=\"[1 2]\"\n"},
		{func() { sub.Error("bad", "error", errors.New("x")) }, "level=ERROR msg=bad component=raft id=7 logger=raft.net error=x\n"},
		{func() { l.SetLevel(hclog.Error); sub.Warn("quiet") }, ""},
		{func() { sub.SetLevel(hclog.Trace); l.Info("now"); l.Debug("slog says no") }, "level=INFO msg=now component=raft\n"},
		{func() { l.Log(hclog.NoLevel, "no such level") }, ""},
		{func() { l.StandardLogger(nil).Print("std") }, "level=INFO msg=std component=raft\n"},
	} {
		out.Reset()
		step.do()
		if got := out.String(); got != step.want {
			t.Errorf("logged %q, want %q", got, step.want)
		}
	}
	if l.IsDebug() || !l.IsInfo() || !l.IsWarn() || sub.IsTrace() || !sub.IsError() {
		t.Error("guards disagree with what is logged")
	}
	if got := sub.ImpliedArgs(); len(got) != 2 || got[1] != 7 {
		t.Errorf("ImpliedArgs %v", got)
	}
}

// Close promises that the store is left alone. raft has a goroutine, one per leadership, that its Shutdown does not wait
// for: every ten seconds it reads the oldest entry for a metric. A guarded log that is closed by then would end the
// process over it.
func TestStoreIsLeftAloneAfterClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := start(t)
		slow := make(chan struct{})
		n.store.mu.Lock()
		n.store.slow = slow
		n.store.mu.Unlock()
		time.Sleep(10 * time.Second)
		synctest.Wait() // the metric is being read
		var closed atomic.Bool
		done := make(chan error, 1)
		go func() {
			err := n.Close(t.Context())
			closed.Store(true)
			done <- err
		}()
		for range 10_000 { // time stands still while Close waits for a mutex
			runtime.Gosched()
		}
		if closed.Load() {
			t.Error("Close returned while raft reads the store")
		}
		close(slow)
		if err := <-done; err != nil {
			t.Error(err)
		}
		if _, err := n.log.FirstIndex(); !errors.Is(err, ErrClosed) {
			t.Errorf("FirstIndex after Close: %v, want ErrClosed", err)
		}
		if err := n.log.GetLog(1, new(raft.Log)); !errors.Is(err, ErrClosed) {
			t.Errorf("GetLog after Close: %v, want ErrClosed", err)
		}
		if s := n.Stats(); s.First != 0 {
			t.Errorf("Stats after Close has read the log: %+v", s)
		}
	})
}
