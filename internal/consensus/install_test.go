package consensus

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	"github.com/provledger/provledger/internal/raftlog"
)

// segmentLog is the real log of a test's node, on a disk that can lose power.
type segmentLog struct {
	*raftlog.Store
	guarded *raftlog.Guarded
	fs      *vfs.MemFS
}

// useSegmentLog gives n the real log in place of the one in memory.
func (n *node) useSegmentLog(t *testing.T, fs *vfs.MemFS) {
	t.Helper()
	die := func(reason string, err error) { panic(reason + ": " + err.Error()) }
	s, err := raftlog.Open(raftlog.Options{FS: fs, Dir: "raft", SegmentBytes: 64 << 10, Logger: testLogger(t), Die: die})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil && !errors.Is(err, raftlog.ErrClosed) {
			t.Error(err)
		}
	})
	y := n.toy
	n.segments = &segmentLog{Store: s, fs: fs, guarded: raftlog.Guard(s, raftlog.GuardOptions{
		Durable: func() uint64 { d, _ := y.Durable(); return d.Index },
		Applied: func() uint64 { y.mu.Lock(); defer y.mu.Unlock(); return y.live.at.Index },
		Die:     die, Logger: testLogger(t),
	})}
}

// copyOf is what a node gets that catches up from y: its state at one position, durable.
func copyOf(y *toy) *toy {
	y.mu.Lock()
	defer y.mu.Unlock()
	return &toy{live: y.live.clone(), durable: y.live.clone()}
}

// leaveBehind brings one voter of three beyond the logs of both others, and returns the leader, the other and that one.
func leaveBehind(t *testing.T, c *cluster) (leader, other, behind string) {
	t.Helper()
	leader, others := c.leader(t, c.ids...)
	behind, other = others[0], others[1]
	n := c.nodes[leader]
	n.propose(t, "a")
	c.expect(t, "a")
	c.isolate(behind)
	for i := range 20 {
		n.propose(t, command(i))
	}
	n.barrier(t)
	want := n.toy.commands()
	eventually(t, "the other follower has all", func() bool { return slices.Equal(c.nodes[other].toy.commands(), want) })
	last := c.nodes[behind].Stats().Last
	for _, id := range []string{leader, other} {
		if err := c.nodes[id].snapshot(); err != nil {
			t.Fatal(err)
		}
		// One message may be on its way since before.
		if first := c.nodes[id].Stats().First; first <= last+DefaultMaxAppendEntries+1 {
			t.Fatalf("the log of %s begins at %d, the follower's ends at %d: this test tests nothing", id, first, last)
		}
	}
	return leader, other, behind
}

// A follower beyond the log is told so, votes on, catches up by its own means, and the log goes on from there, whoever
// leads.
func TestFollowerBeyondTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster()
		c.segmented = true
		c.found(t, "n1", "n2", "n3")
		for _, id := range []string{"n1", "n2", "n3"} {
			c.open(t, id)
		}
		leader, other, behind := leaveBehind(t, c)
		c.connect(behind)
		time.Sleep(time.Minute)
		n := c.nodes[behind]
		if got := n.toy.commands(); len(got) >= 20 {
			t.Errorf("the follower skipped to %q", got)
		}
		if !c.nodes[leader].IsLeader() {
			t.Error("the leader has stepped down")
		}
		d, _ := c.nodes[leader].toy.Durable()
		c.mu.Lock()
		told := c.behind[behind]
		c.mu.Unlock()
		if len(told) < 10 || told[0] != (Behind{Leader: leader, Index: d.Index, Term: d.Term}) {
			t.Errorf("told of %v, want %q at %d again and again", told, leader, d.Index)
		}

		// It votes, though its leader sends it nothing but that: with the leader gone, nobody leads without its vote.
		c.stop(t, leader)
		eventually(t, "a leader by the vote of the node that is behind", func() bool { return c.nodes[other].IsLeader() })

		// Without its log nothing is committed, with it everything is.
		p := c.nodes[other].Propose([]byte("b"))
		time.Sleep(time.Second)
		c.stop(t, behind)
		n.toy = copyOf(c.nodes[other].toy)
		at, _ := n.toy.Durable()
		if err := ResetLog(n.segments.Store, at); err != nil {
			t.Fatal(err)
		}
		fs := n.segments.fs.CrashClone(vfs.CrashCloneCfg{}) // and the power goes
		n.useSegmentLog(t, fs)
		if err := ResetLog(n.segments.Store, at); err != nil {
			t.Errorf("ResetLog again: %v", err)
		}
		began := time.Now()
		c.open(t, behind)
		if _, _, err := p.Wait(t.Context()); err != nil {
			// The leader may have lost its majority for a moment; somebody leads again, and it can be proposed again.
			if !errors.Is(err, ErrUnknown) {
				t.Fatal(err)
			}
			next, _ := c.leader(t, other, behind)
			if !slices.Contains(c.nodes[next].toy.commands(), "b") {
				c.nodes[next].propose(t, "b")
			}
		}
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("%v until the log went on", took)
		}
		c.open(t, leader)
		want := []string{"a"}
		for i := range 20 {
			want = append(want, command(i))
		}
		c.expect(t, append(want, "b")...)
	})
}

// The other way round: the node that caught up leads others from a log that was emptied.
func TestNodeThatCaughtUpLeads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster()
		c.segmented = true
		c.found(t, "n1", "n2", "n3")
		for _, id := range []string{"n1", "n2", "n3"} {
			c.open(t, id)
		}
		leader, other, behind := leaveBehind(t, c)
		c.stop(t, behind)
		n := c.nodes[behind]
		n.toy = copyOf(c.nodes[leader].toy)
		at, _ := n.toy.Durable()
		if err := ResetLog(n.segments.Store, at); err != nil {
			t.Fatal(err)
		}
		c.connect(leader)
		c.connect(other)
		c.mu.Lock()
		clear(c.cut)
		c.mu.Unlock()
		c.open(t, behind)
		eventually(t, "it follows", func() bool { return n.Leader() == leader })
		// The other follower misses the next entry and gets it from the node whose log begins there.
		c.isolate(other)
		c.nodes[leader].propose(t, "b")
		eventually(t, "it has the entry", func() bool { return slices.Contains(n.toy.commands(), "b") })
		c.isolate(leader)
		c.connect(other)
		c.sever(other, leader)
		next, _ := c.leader(t, behind, other)
		if next != behind {
			t.Fatalf("%s leads, which lacks an entry", next)
		}
		n.propose(t, "c")
		c.connect(leader)
		want := []string{"a"}
		for i := range 20 {
			want = append(want, command(i))
		}
		c.expect(t, append(want, "b", "c")...)
	})
}

// raft lets the pauses between attempts to reach a node grow to ten seconds. A node that was away for a while and is back
// must not wait for that.
func TestReturningFollowerIsFedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startCluster(t)
		leader, others := c.leader(t, c.ids...)
		c.nodes[leader].propose(t, "a")
		c.expect(t, "a")
		c.isolate(others[0])
		c.nodes[leader].propose(t, "b")
		time.Sleep(time.Minute)
		c.connect(others[0])
		began := time.Now()
		c.expect(t, "a", "b")
		if took := time.Since(began); took > time.Second {
			t.Errorf("the follower got the entry %v after its return", took)
		}
	})
}

// history has an entry of term 2 at every index from 5 on, of term 1 below.
func history(from, to uint64) (es []*raft.Log) {
	for i := from; i <= to; i++ {
		es = append(es, &raft.Log{Index: i, Term: 1 + i/5})
	}
	return es
}

func TestRebase(t *testing.T) {
	at := func(index uint64) Position { return Position{Index: index, Term: 1 + index/5} }
	message := func(prev, prevTerm, last, commit uint64) *raft.AppendEntriesRequest {
		return &raft.AppendEntriesRequest{
			Term: 9, PrevLogEntry: prev, PrevLogTerm: prevTerm, Entries: history(prev+1, last), LeaderCommitIndex: commit,
		}
	}
	for name, tt := range map[string]struct {
		log  []*raft.Log
		at   Position
		q    *raft.AppendEntriesRequest
		want string // what is left of it: previous index, entries, commit index; "" as it was
	}{
		"heartbeat":                             {nil, at(8), message(0, 0, 0, 0), ""},
		"log reaches back":                      {history(4, 9), at(8), message(4, 1, 12, 8), ""},
		"log reaches back to its start":         {history(1, 9), at(8), message(0, 0, 12, 8), ""},
		"new node":                              {nil, Position{}, message(0, 0, 3, 3), ""},
		"continues at the position":             {nil, at(8), message(8, 2, 10, 9), "0 [9 10] 9"},
		"continues with another term":           {nil, at(8), message(8, 3, 10, 9), ""},
		"begins behind the position":            {nil, at(8), message(9, 2, 10, 9), ""},
		"spans the position":                    {nil, at(8), message(5, 2, 10, 12), "0 [9 10] 10"},
		"spans it, from the start of the log":   {nil, at(8), message(0, 0, 10, 8), "0 [9 10] 8"},
		"ends at the position":                  {nil, at(8), message(5, 2, 8, 12), "0 [] 8"},
		"below, committed":                      {nil, at(8), message(2, 1, 4, 12), "0 [] 8"},
		"below, committed, no entries":          {nil, at(8), message(2, 1, 2, 12), "0 [] 8"},
		"below, not known to be committed":      {nil, at(8), message(2, 1, 4, 3), ""},
		"from the start, not committed":         {nil, at(8), message(0, 0, 4, 3), "8 [1 2 3 4] 3"},
		"compacted log, spans the position":     {history(7, 9), at(8), message(4, 1, 10, 10), "0 [9 10] 10"},
		"compacted log, from the start":         {history(7, 9), at(8), message(0, 0, 8, 8), "0 [] 8"},
		"compacted log that ends past position": {history(7, 12), at(8), message(4, 1, 9, 12), "0 [9] 9"},
	} {
		t.Run(name, func(t *testing.T) {
			y := &toy{durable: toyState{at: tt.at}}
			s := raft.NewInmemStore()
			if err := s.StoreLogs(tt.log); err != nil {
				t.Fatal(err)
			}
			tr := &transport{node: &Consensus{conf: Config{Machine: y}, log: &gate{LogStore: s, durable: y.Durable}}}
			before := *tt.q
			got := tr.rebase(tt.q)
			if tt.want == "" {
				if got.PrevLogEntry != tt.q.PrevLogEntry || got.PrevLogTerm != tt.q.PrevLogTerm || len(got.Entries) != len(tt.q.Entries) {
					t.Errorf("changed to %+v", got)
				}
				return
			}
			var is []uint64
			for _, e := range got.Entries {
				is = append(is, e.Index)
			}
			if is == nil {
				is = []uint64{}
			}
			if s := fmt.Sprintf("%d %v %d", got.PrevLogEntry, is, got.LeaderCommitIndex); s != tt.want {
				t.Errorf("became %s, want %s", s, tt.want)
			}
			if got.PrevLogEntry > 0 && got.PrevLogTerm == tt.at.Term {
				t.Error("raft would take this one")
			}
			if tt.q.PrevLogEntry != before.PrevLogEntry || len(tt.q.Entries) != len(before.Entries) || tt.q.LeaderCommitIndex != before.LeaderCommitIndex {
				t.Error("the sender's message was changed")
			}
		})
	}
}

// Another term at the position: no part of the message may be taken.
func TestRebaseOfAnotherHistory(t *testing.T) {
	y := &toy{durable: toyState{at: Position{Index: 8, Term: 7}}}
	tr := &transport{node: &Consensus{conf: Config{Machine: y}, log: &gate{LogStore: raft.NewInmemStore(), durable: y.Durable}}}
	q := &raft.AppendEntriesRequest{Term: 9, PrevLogEntry: 5, PrevLogTerm: 2, Entries: history(6, 10), LeaderCommitIndex: 10}
	if got := tr.rebase(q); got.PrevLogEntry != 5 || len(got.Entries) != 5 {
		t.Errorf("became %+v", got)
	}
}

// What a node answers to raft's snapshot message.
func TestInstallAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startCluster(t)
		id, others := c.leader(t, c.ids...)
		c.nodes[id].propose(t, "a")
		c.expect(t, "a")
		n := c.nodes[others[0]]
		n.toy.makeDurable()
		d, _ := n.toy.Durable()
		c.nodes[id].propose(t, "b")
		c.expect(t, "a", "b")
		term := n.Term()
		for name, tt := range map[string]struct {
			q       raft.InstallSnapshotRequest
			success bool
			err     error
			behind  int
		}{
			"in the machine":      {raft.InstallSnapshotRequest{Term: term, LastLogIndex: d.Index, LastLogTerm: d.Term}, true, nil, 0},
			"far in the machine":  {raft.InstallSnapshotRequest{Term: term + 1, LastLogIndex: 1, LastLogTerm: 1}, true, nil, 0},
			"in the log":          {raft.InstallSnapshotRequest{Term: term, LastLogIndex: d.Index + 1, LastLogTerm: term}, true, nil, 0},
			"other term in log":   {raft.InstallSnapshotRequest{Term: term, LastLogIndex: d.Index + 1, LastLogTerm: term + 1}, false, nil, 1},
			"not here":            {raft.InstallSnapshotRequest{Term: term, LastLogIndex: 1000, LastLogTerm: term}, false, nil, 1},
			"of an earlier term":  {raft.InstallSnapshotRequest{Term: term - 1, LastLogIndex: 1, LastLogTerm: 1}, false, nil, 0},
			"with a body":         {raft.InstallSnapshotRequest{Term: term, LastLogIndex: 1, LastLogTerm: 1, Size: 3}, false, ErrInstall, 0},
			"from 0, with a body": {raft.InstallSnapshotRequest{Term: 0, Size: 1 << 40}, false, ErrInstall, 0},
		} {
			c.mu.Lock()
			clear(c.behind)
			c.mu.Unlock()
			answer := make(chan raft.RPCResponse, 1)
			n.transport.install(raft.RPC{Command: &tt.q, Reader: bytes.NewReader([]byte("xyz")), RespChan: answer}, &tt.q)
			a := <-answer
			if got := a.Response.(*raft.InstallSnapshotResponse); got.Success != tt.success || got.Term != term || !errors.Is(a.Error, tt.err) {
				t.Errorf("%s: %+v, %v", name, got, a.Error)
			}
			if len(c.behind[others[0]]) != tt.behind {
				t.Errorf("%s: told of %v", name, c.behind)
			}
		}
	})
}

// What a node catches up to lies beyond the leader's durable position, which is all that the leader names, and below the entries
// that it sends next. The leader goes on with the node at once, though it has asked in vain for a while.
func TestCaughtUpBeyondTheLeadersDurablePosition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster()
		c.segmented = true
		c.found(t, "n1", "n2", "n3")
		for _, id := range []string{"n1", "n2", "n3"} {
			c.open(t, id)
		}
		leader, _, behind := leaveBehind(t, c)
		l, n := c.nodes[leader], c.nodes[behind]
		for i := range 40 {
			l.propose(t, command(20+i))
		}
		c.connect(behind)
		time.Sleep(53 * time.Second) // raft by itself would try after 51 and 61 seconds
		c.stop(t, behind)
		n.toy = copyOf(l.toy)
		at, _ := n.toy.Durable()
		if d, _ := l.toy.Durable(); d.Index+2*DefaultMaxAppendEntries > at.Index {
			t.Fatalf("the leader's durable index is %d, the node's %d: this test tests nothing", d.Index, at.Index)
		}
		if err := ResetLog(n.segments.Store, at); err != nil {
			t.Fatal(err)
		}
		l.propose(t, "b")
		c.open(t, behind)
		began := time.Now()
		want := l.toy.commands()
		eventually(t, "the node has what came after", func() bool { return slices.Equal(n.toy.commands(), want) })
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("the leader went on after %v", took)
		}
	})
}
