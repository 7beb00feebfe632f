package consensus

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/hashicorp/raft"
)

// durable is the position that a power cut would leave on a node.
func (n *node) durable(t *testing.T) Position {
	t.Helper()
	d, err := n.toy.Durable()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// Two of three are gone. The one that is left keeps all that it has, its uncommitted tail included, goes on alone, and grows again.
func TestTakeOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startCluster(t)
		id, others := c.leader(t, c.ids...)
		n := c.nodes[id]
		n.propose(t, "a")
		n.propose(t, "b")
		n.toy.makeDurable()
		n.propose(t, "c")
		c.expect(t, "a", "b", "c")
		c.isolate(id)
		tail := n.Propose([]byte("tail")) // nobody else will ever have it
		eventually(t, "the tail is in the log", func() bool {
			last, err := n.store.LastIndex()
			var l raft.Log
			return err == nil && n.store.GetLog(last, &l) == nil && string(l.Data) == "tail"
		})
		for _, other := range []string{id, others[0], others[1]} {
			c.stop(t, other)
		}
		if _, _, err := tail.Wait(t.Context()); err == nil {
			t.Fatal("the tail was committed without a majority")
		}
		n.toy = n.toy.powerCut()
		d := n.durable(t)
		kept, err := n.store.LastIndex()
		if err != nil {
			t.Fatal(err)
		}
		before, err := n.store.GetUint64([]byte("CurrentTerm"))
		if err != nil {
			t.Fatal(err)
		}

		x, err := TakeOver(n.store, d, id, id, nil)
		if err != nil {
			t.Fatal(err)
		}
		if x.Kept != kept || x.Index != kept+1 || x.Term <= before || len(x.Before) != 3 {
			t.Errorf("took over %+v, the log ended at %d in term %d", x, kept, before)
		}
		alone := c.open(t, id)
		if err := alone.WaitLeader(t.Context()); err != nil {
			t.Fatal(err)
		}
		c.expect(t, "a", "b", "c", "tail")
		servers, index := alone.Servers()
		if want := []Server{{ID: id, Address: id, Voter: true}}; !slices.Equal(servers, want) || index != x.Index {
			t.Errorf("members %v of index %d, want %v of %d", servers, index, want, x.Index)
		}
		alone.propose(t, "d")

		c.create(t, "n4")
		c.open(t, "n4", func(conf *Config) { conf.Joining = true })
		if err := alone.AddVoter(t.Context(), "n4", "n4", index); err != nil {
			t.Fatal(err)
		}
		alone.propose(t, "e")
		c.expect(t, "a", "b", "c", "tail", "d", "e")
		if got := alone.durable(t).ConfigurationIndex; got != d.ConfigurationIndex {
			t.Errorf("the durable membership moved from %d to %d without a flush", d.ConfigurationIndex, got)
		}
		alone.toy.makeDurable()
		if got := alone.durable(t).ConfigurationIndex; got <= x.Index {
			t.Errorf("the machine's membership is of %d, taken over was at %d", got, x.Index)
		}
	})
}

// The membership that counts is the newest in the log, not the one that the machine has applied.
func TestTakeOverReadsTheLog(t *testing.T) {
	y := &toy{}
	s := newMemStore(y)
	if err := Bootstrap(s, "n1", ""); err != nil {
		t.Fatal(err)
	}
	y.Apply([]Entry{{Index: 1, Term: 1, Configuration: true, Data: SoleVoter("n1", "n1")}})
	y.makeDurable()
	next := raft.EncodeConfiguration(raft.Configuration{Servers: []raft.Server{
		{Suffrage: raft.Voter, ID: "n2", Address: "a2"}, {Suffrage: raft.Nonvoter, ID: "n3", Address: "a3"},
	}})
	if err := s.StoreLogs([]*raft.Log{{Index: 2, Term: 4, Type: raft.LogConfiguration, Data: next}, {Index: 3, Term: 7, Data: []byte("x")}}); err != nil {
		t.Fatal(err)
	}
	d, err := y.Durable()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := TakeOver(s, d, "n1", "n1", nil); !errors.Is(err, ErrNotMember) {
		t.Errorf("a node that was removed: %v", err)
	}
	if last, _ := s.LastIndex(); last != 3 {
		t.Errorf("a refusal wrote up to %d", last)
	}
	stop := errors.New("stop")
	if _, err := TakeOver(s, d, "n3", "a3", func(x Takeover) error {
		if x.Index != 4 || x.Term != 8 {
			t.Errorf("it is about to write %+v", x)
		}
		return stop
	}); !errors.Is(err, stop) {
		t.Errorf("stopped before it wrote: %v", err)
	}
	if term, err := s.GetUint64([]byte("CurrentTerm")); err == nil && term >= 8 {
		t.Errorf("it wrote term %d all the same", term)
	}
	x, err := TakeOver(s, d, "n3", "a3", nil)
	if err != nil || x.Term != 8 || x.Index != 4 || x.BeforeIndex != 2 || !slices.Equal(x.Before, []Server{{"n2", "a2", true}, {"n3", "a3", false}}) {
		t.Errorf("took over %+v, %v", x, err)
	}
	if servers, index, err := LastMembership(s, d); err != nil || index != 4 || !slices.Equal(servers, []Server{{"n3", "a3", true}}) {
		t.Errorf("membership %v of %d, %v", servers, index, err)
	}
	if term, err := s.GetUint64([]byte("CurrentTerm")); err != nil || term != 8 {
		t.Errorf("term %d, %v", term, err)
	}
}

// A log that has lost entries which the machine has is not taken over.
func TestTakeOverRefusesAShortLog(t *testing.T) {
	y := &toy{}
	s := newMemStore(y)
	if err := Bootstrap(s, "n1", ""); err != nil {
		t.Fatal(err)
	}
	y.Apply([]Entry{{Index: 1, Term: 1, Configuration: true, Data: SoleVoter("n1", "n1")}, {Index: 2, Term: 1, Data: []byte("a")}})
	y.makeDurable()
	d, err := y.Durable()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := TakeOver(s, d, "n1", "n1", nil); !errors.Is(err, ErrLogMismatch) {
		t.Errorf("got %v", err)
	}
}
