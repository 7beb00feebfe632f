package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/consensus"
	"github.com/provledger/provledger/internal/peer"
	"github.com/provledger/provledger/internal/peerapi"
	"github.com/provledger/provledger/internal/sequencer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// refusedWith fails unless err refuses and says all of what.
func refusedWith(t *testing.T, name string, err error, what ...string) {
	t.Helper()
	if !errors.Is(err, ErrRefused) {
		t.Errorf("%s: %v, want a refusal", name, err)
		return
	}
	for _, w := range what {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s: %v, which does not say %q", name, err, w)
		}
	}
}

// Nodes ask to join, are added at once, and vote when they have caught up and kept up.
func TestJoin(t *testing.T) {
	inModel(t, 1, func(t *testing.T, m *model) {
		first, second, third := m.lead(), m.start("n2:1"), m.start("n3:1")
		second.caught = time.Now().Add(10 * time.Second)
		for _, n := range []*modelNode{second, third} {
			for range 3 { // it asks again and again
				if r, err := n.ask(first, true); err != nil || !r.Admitted || r.ClusterID != m.id {
					t.Fatalf("%+v, %v", r, err)
				}
			}
			if s := m.member(n); s == nil || s.Voter {
				t.Fatalf("right after joining it is %+v", s)
			}
		}
		if r, err := m.start("n9:1").ask(second, true); err != nil || r.Admitted || r.Leader != first.address {
			t.Errorf("who does not lead answers %+v, %v", r, err)
		}
		start := time.Now()
		m.wait("the promotion of the third", func() bool { return m.member(third).Voter })
		if took := time.Since(start); took < DefaultCaughtUpFor || took > DefaultCaughtUpFor+2*time.Second {
			t.Errorf("it votes after %s", took)
		}
		if m.member(second).Voter {
			t.Error("who has not caught up votes")
		}
		m.wait("the promotion of the second", func() bool { return m.member(second).Voter })
		if took := time.Since(start); took < 10*time.Second+DefaultCaughtUpFor {
			t.Errorf("who caught up after 10 s votes after %s", took)
		}
		want := []string{actionAdded, actionAdded, actionPromoted, actionPromoted}
		if got := m.actions(); !slices.Equal(got, want) {
			t.Errorf("recorded %q, want %q", got, want)
		}
		if o := second.Overview(t.Context()); len(o.Warnings) != 0 || len(o.Members) != 3 || o.Leader != first.id() {
			t.Errorf("%+v", o)
		}
	})
}

func TestAddRefuses(t *testing.T) {
	inModel(t, 3, func(t *testing.T, m *model) {
		lead := m.lead()
		fresh, strange, old, lost := m.start("fresh:1"), m.start("strange:1"), m.start("old:1"), m.start("lost:1")
		fresh.status.NodeID = lineage.ID{}
		strange.status.ClusterID = lineage.NewID()
		old.status.MaxCommand = 1
		lost.status.ClusterID = lineage.ID{}
		gone := m.start("gone:1")
		if _, err := lead.Add(t.Context(), "gone:1", false); err != nil {
			t.Fatal(err)
		}
		if err := lead.Remove(t.Context(), gone.id(), false); err != nil {
			t.Fatal(err)
		}
		add := func(address string) error { _, err := lead.Add(t.Context(), address, true); return err }
		refusedWith(t, "nobody there", add("nowhere:1"), "--join")
		refusedWith(t, "no address", add("nowhere"), "HOST:PORT")
		refusedWith(t, "without a directory", add("fresh:1"), "--join")
		refusedWith(t, "that knows no cluster", add("lost:1"), "--join")
		refusedWith(t, "another cluster", add("strange:1"), "another cluster")
		refusedWith(t, "an old program", add("old:1"), "upgrade")
		refusedWith(t, "removed before", add("gone:1"), "empty directory")
		victim := m.nodes["n2:1"].id()
		wiped := m.start("n2:1")
		command := "ledgerctl cluster replace " + victim + " n2:1"
		refusedWith(t, "a wiped node", add("n2:1"), command)
		_, err := wiped.ask(lead, true)
		refusedWith(t, "a wiped node that asks", err, command)
		if !errors.Is(err, peerapi.ErrAddressTaken) {
			t.Errorf("%v is not told from refusals that are final", err)
		}
		if _, err := m.nodes["n3:1"].Add(t.Context(), "nowhere:1", true); !errors.Is(err, ErrNotLeader) || !strings.Contains(err.Error(), lead.address) {
			t.Errorf("who does not lead: %v", err)
		}
		if n := len(m.configuration().servers); n != 3 {
			t.Errorf("%d members", n)
		}
		// A member at its address is no error and no change.
		index := m.configuration().index
		if x, err := lead.Add(t.Context(), "n3:1", true); err != nil || x.ID != m.nodes["n3:1"].id() || !x.Voter || m.configuration().index != index {
			t.Errorf("a member: %+v, %v", x, err)
		}
	})
}

func TestJoinRefuses(t *testing.T) {
	inModel(t, 1, func(t *testing.T, m *model) {
		lead, n := m.lead(), m.start("n2:1")
		hello := peer.Hello{ClusterID: m.id, NodeID: n.status.NodeID, BootID: n.status.BootID, Address: n.address}
		ask := func(h peer.Hello, q peerapi.JoinRequest) error {
			r, err := lead.Join(t.Context(), peer.Remote{Hello: h}, q)
			if r.Admitted {
				t.Errorf("%+v is admitted", q)
			}
			return err
		}
		good := peerapi.JoinRequest{NodeID: n.status.NodeID, Address: n.address}
		other, wrong, nowhere := good, good, good
		other.NodeID = lineage.NewID()
		refusedWith(t, "for another node", ask(hello, other))
		wrong.Address = "wrong:1"
		refusedWith(t, "with a certificate for another name", ask(hello, wrong), "certificate")
		strange, copied := hello, hello
		strange.ClusterID = lineage.NewID()
		refusedWith(t, "of another cluster", ask(strange, good), "another cluster")
		copied.BootID = lineage.NewID()
		refusedWith(t, "another process than answers", ask(copied, good), "another process")
		nowhere.Address = "nowhere:1"
		if err := ask(hello, nowhere); errors.Is(err, ErrRefused) || !errors.Is(err, peerapi.ErrUnreachable) {
			t.Errorf("not reachable where it claims to be, which may pass: %v", err)
		}
		if len(m.configuration().servers) != 1 {
			t.Errorf("members: %v", m.configuration())
		}
	})
}

// A member that comes back under another address keeps its suffrage. Two processes of one directory are told apart.
func TestMove(t *testing.T) {
	inModel(t, 3, func(t *testing.T, m *model) {
		lead, n := m.lead(), m.nodes["n3:1"]
		twin := m.start("n4:1")
		twin.status.NodeID = n.status.NodeID
		_, err := twin.ask(lead, true)
		refusedWith(t, "a copy", err, "two processes")
		m.set(func() { n.down = true })
		if r, err := twin.ask(lead, true); err != nil || !r.Admitted {
			t.Fatalf("%+v, %v", r, err)
		}
		if s := m.member(twin); s.Address != "n4:1" || !s.Voter || len(m.configuration().servers) != 3 {
			t.Errorf("%+v", m.configuration())
		}
		// A leader writes its own address.
		m.set(func() {
			for i := range m.servers {
				if m.servers[i].ID == lead.id() {
					m.servers[i].Address = lead.id()
				}
			}
			m.index++
		})
		m.wait("the leader's address in the membership", func() bool { return m.member(lead).Address == lead.address })
		if got := m.actions(); !slices.Equal(got, []string{actionMoved, actionMoved}) {
			t.Errorf("recorded %q", got)
		}
	})
}

// What would take the majority away is refused.
func TestMajorityGuard(t *testing.T) {
	inModel(t, 3, func(t *testing.T, m *model) {
		lead, up, down := m.lead(), m.nodes["n2:1"], m.nodes["n3:1"]
		m.set(func() { down.hangs = true })
		refusedWith(t, "removing one of two", lead.Remove(t.Context(), up.id(), false), down.id(), "--force")
		refusedWith(t, "demoting one of two", lead.Demote(t.Context(), up.id(), false), down.id())
		refusedWith(t, "removing itself", lead.Remove(t.Context(), lead.id(), false), down.id())
		if err := lead.Remove(t.Context(), down.id(), false); err != nil {
			t.Errorf("removing the dead one: %v", err)
		}
		if err := lead.Remove(t.Context(), down.id(), false); err != nil {
			t.Errorf("again: %v", err)
		}
		refusedWith(t, "a stranger", lead.Remove(t.Context(), lineage.NewID().String(), false), "no member")
		if err := lead.Demote(t.Context(), up.id(), false); err != nil {
			t.Error(err)
		}
		refusedWith(t, "the last voter", lead.Demote(t.Context(), lead.id(), true), "last voter")
		refusedWith(t, "the last voter", lead.Remove(t.Context(), lead.id(), true), "last voter")
		time.Sleep(time.Minute)
		if m.member(up).Voter {
			t.Error("who was demoted votes again")
		}
		if _, err := up.ask(lead, true); err != nil || m.member(up).Voter {
			t.Error(err)
		}
		time.Sleep(time.Minute)
		if m.member(up).Voter {
			t.Error("who was demoted was made to vote by what it was started with")
		}
		if err := lead.Promote(t.Context(), up.id()); err != nil || !m.member(up).Voter {
			t.Errorf("promoted by an operator: %v", err)
		}
	})
}

func TestForce(t *testing.T) {
	inModel(t, 3, func(t *testing.T, m *model) {
		lead, up := m.lead(), m.nodes["n2:1"]
		m.force = true
		m.set(func() { m.nodes["n3:1"].down = true })
		if err := lead.Remove(t.Context(), up.id(), true); errors.Is(err, ErrRefused) || !errors.Is(err, sequencer.ErrUnknown) {
			t.Errorf("forced into a configuration that cannot commit: %v", err)
		}
	})
}

// Who leads hands leadership over before it goes, and the new leader does it.
func TestRemoveLeader(t *testing.T) {
	inModel(t, 3, func(t *testing.T, m *model) {
		old := m.lead()
		if err := old.Remove(t.Context(), old.id(), false); !errors.Is(err, ErrNotLeader) {
			t.Fatal(err)
		}
		if m.lead() == old {
			t.Fatal("it leads still")
		}
		if err := m.lead().Remove(t.Context(), old.id(), false); err != nil || m.member(old) != nil {
			t.Fatal(err)
		}
	})
}

func TestTransfer(t *testing.T) {
	inModel(t, 3, func(t *testing.T, m *model) {
		lead, second, third := m.lead(), m.nodes["n2:1"], m.nodes["n3:1"]
		extra := m.start("n4:1")
		if _, err := lead.Add(t.Context(), "n4:1", false); err != nil {
			t.Fatal(err)
		}
		refusedWith(t, "a non-voter", lead.Transfer(t.Context(), extra.id()), "does not vote")
		refusedWith(t, "a stranger", lead.Transfer(t.Context(), "x"), "no member")
		m.set(func() { second.caught = time.Now().Add(time.Hour) })
		refusedWith(t, "one behind", lead.Transfer(t.Context(), second.id()), "behind")
		m.set(func() {
			second.caught = time.Time{}
			second.status.MissingKeyCount, second.status.MissingKeys = 1, []string{"main"}
		})
		refusedWith(t, "one without keys", lead.Transfer(t.Context(), second.id()), "main")
		m.set(func() { second.status.MissingKeyCount = 0; second.status.Quarantine = "bits flipped" })
		refusedWith(t, "a damaged one", lead.Transfer(t.Context(), second.id()), "bits flipped")
		m.set(func() { third.down = true })
		refusedWith(t, "nobody", lead.Transfer(t.Context(), ""), third.id(), "bits flipped")
		m.set(func() { third.down = false })
		if err := lead.Transfer(t.Context(), ""); err != nil || m.lead() != third {
			t.Errorf("to the best: %v", err)
		}
		if err := third.Transfer(t.Context(), third.id()); err != nil {
			t.Errorf("to itself: %v", err)
		}
	})
}

// A new leader knows who is to vote, and who not, from the log.
func TestWishesSurviveTheLeader(t *testing.T) {
	inModel(t, 3, func(t *testing.T, m *model) {
		old := m.lead()
		wants, stays := m.start("n4:1"), m.start("n5:1")
		m.set(func() { wants.caught = time.Now().Add(5 * time.Second) })
		if _, err := old.Add(t.Context(), "n4:1", true); err != nil {
			t.Fatal(err)
		}
		if _, err := old.Add(t.Context(), "n5:1", false); err != nil {
			t.Fatal(err)
		}
		m.set(func() { old.down = true; m.elect() })
		if m.lead() == old {
			t.Fatal("no other leader")
		}
		m.wait("the promotion by the new leader", func() bool { return m.member(wants).Voter })
		time.Sleep(time.Minute)
		if m.member(stays).Voter {
			t.Error("who was to stay a non-voter votes")
		}
	})
}

// A change whose leader was lost before its record is recorded by the next one, as observed; and so is the first membership.
func TestUnrecordedChange(t *testing.T) {
	inModel(t, 3, func(t *testing.T, m *model) {
		newest := func() Record {
			m.mu.Lock()
			defer m.mu.Unlock()
			if len(m.records) == 0 {
				return Record{}
			}
			return m.records[len(m.records)-1]
		}
		m.wait("a record of the first membership", func() bool { return newest().Action == actionObserved && newest().ConfigurationIndex == 1 })
		old := m.lead()
		n := m.start("n4:1")
		m.set(func() {
			m.fail = func(int) {
				if m.index > 1 { // the change is made, its record is next
					m.failed, m.fail = errors.New("power cut"), nil
					old.down = true
					m.elect()
				}
			}
		})
		if _, err := old.Add(t.Context(), "n4:1", true); err != nil {
			t.Fatal(err)
		}
		m.wait("a record of the addition", func() bool { return newest().ConfigurationIndex == m.configuration().index })
		if r := newest(); r.Action != actionObserved || len(r.Members) != 4 || r.By != "" {
			t.Errorf("%+v", r)
		}
		// Its wish is not known to the new leader; the node says it again.
		if _, err := n.ask(m.lead(), true); err != nil {
			t.Fatal(err)
		}
		m.wait("its promotion", func() bool { return m.member(n).Voter })
		count := len(m.records)
		time.Sleep(time.Minute)
		if len(m.records) != count {
			t.Errorf("recorded without a change: %+v", m.records[count:])
		}
	})
}

func TestCallerIsRecorded(t *testing.T) {
	inModel(t, 1, func(t *testing.T, m *model) {
		m.start("n2:1")
		ctx := WithCaller(t.Context(), Caller{"oidc:alice", lineage.AuthnOIDC})
		if _, err := m.lead().Add(ctx, "n2:1", false); err != nil {
			t.Fatal(err)
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		if r := m.records[len(m.records)-1]; r.By != "oidc:alice" || r.Address != "n2:1" || r.NodeID != m.nodes["n2:1"].id() {
			t.Errorf("%+v", r)
		}
	})
}

// Replace, with leadership lost or the call failing at each of its steps, and done again on whoever leads.
func TestReplace(t *testing.T) {
	for _, address := range []string{"n4:1", "n3:1"} {
		for at := 0; ; at++ {
			last := false
			t.Run(fmt.Sprintf("%s/%d", address, at), func(t *testing.T) {
				inModel(t, 3, func(_ *testing.T, m *model) { last = replaceFailingAt(m, address, at) })
			})
			if last || t.Failed() {
				break
			}
		}
	}
}

func replaceFailingAt(m *model, address string, at int) (last bool) {
	t := m.t
	time.Sleep(2 * time.Second) // the first record is written
	dead := m.nodes["n3:1"]
	deadID := dead.id()
	refusedWith(t, "who is alive", m.lead().Replace(t.Context(), deadID, address, false, nil), "--force")
	m.set(func() { dead.down = true })
	refusedWith(t, "nobody there", m.lead().Replace(t.Context(), deadID, address, false, nil), address)
	if len(m.configuration().servers) != 3 {
		t.Errorf("a replacement that cannot be done changed %v", m.configuration())
	}
	fresh := m.start(address)
	if at > 0 {
		m.set(func() {
			first := m.calls
			m.fail = func(call int) {
				if call-first == at {
					m.failed, m.fail = fmt.Errorf("%w: power cut", consensus.ErrNotApplied), nil
					old := m.leader
					for m.leader == old { // the other one that is there
						slices.Reverse(m.servers)
						m.elect()
					}
				}
			}
		})
	}
	var said []string
	tries := 0
	for ; ; tries++ {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		err := m.lead().Replace(ctx, deadID, address, false, func(s string) { said = append(said, s) })
		cancel()
		if err == nil {
			break
		}
		if errors.Is(err, ErrRefused) || tries > 3 {
			t.Fatalf("%v, after %q", err, said)
		}
	}
	s := m.member(fresh)
	if s == nil || !s.Voter || len(m.configuration().servers) != 3 {
		t.Errorf("afterwards the members are %v, after %q", m.configuration(), said)
	}
	if len(said) < 3 {
		t.Errorf("said only %q", said)
	}
	if err := m.lead().Replace(t.Context(), deadID, address, false, nil); err != nil {
		t.Errorf("once more: %v", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return at > 0 && m.fail != nil // the step was not reached
}
