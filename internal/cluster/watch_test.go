package cluster

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/provledger/provledger/internal/peerapi"
	"github.com/provledger/provledger/internal/sequencer"
)

// A leader ahead of every other voter that answers hands leadership over; without anybody to take it, it refuses appends until its clock is
// right.
func TestClock(t *testing.T) {
	inModel(t, 3, func(t *testing.T, m *model) {
		old := m.lead()
		m.set(func() { m.nodes["n2:1"].skew = time.Minute }) // one other is ahead even more
		m.set(func() { old.skew = 30 * time.Second })
		time.Sleep(time.Minute)
		if m.lead() != old || old.AppendAllowed() != nil {
			t.Error("it is not ahead of all, and gave up")
		}
		m.set(func() { m.nodes["n2:1"].down = true })
		m.wait("handing over", func() bool { return m.lead() != old })
		if m.lead() != m.nodes["n3:1"] || old.AppendAllowed() != nil {
			t.Errorf("who leads no more says %v", old.AppendAllowed())
		}
		time.Sleep(10 * time.Minute)
		if m.handovers() != 1 {
			t.Errorf("%d transfers", m.handovers())
		}
	})
	inModel(t, 3, func(t *testing.T, m *model) {
		old := m.lead()
		m.set(func() {
			old.skew = 20 * time.Second
			for _, n := range m.nodes { // nobody can take over
				if n != old {
					n.status.Quarantine = "damaged"
				}
			}
		})
		m.wait("the refusal", func() bool { return old.AppendAllowed() != nil })
		if ahead := old.ClockAhead(); ahead < 5*time.Second {
			t.Errorf("refused, and said to be %v ahead", ahead)
		}
		if err := old.AppendAllowed(); !errors.Is(err, ErrClock) || !errors.Is(err, sequencer.ErrNotApplied) {
			t.Error(err)
		}
		if o := old.Overview(t.Context()); !strings.Contains(strings.Join(o.Warnings, "\n"), "refuses appends") {
			t.Errorf("%q", o.Warnings)
		}
		m.set(func() { old.skew = 4 * time.Second })
		m.wait("appends again", func() bool { return old.AppendAllowed() == nil })
		m.set(func() { old.skew = 20 * time.Second })
		m.wait("the refusal", func() bool { return old.AppendAllowed() != nil })
		m.set(func() { m.nodes["n2:1"].status.Quarantine = "" })
		m.wait("handing over", func() bool { return m.lead() == m.nodes["n2:1"] })
		m.wait("the end of the refusal", func() bool { return old.AppendAllowed() == nil })
	})
}

// The only voter's clock is the cluster's.
func TestClockOfASoleVoter(t *testing.T) {
	inModel(t, 1, func(t *testing.T, m *model) {
		m.start("n2:1")
		if _, err := m.lead().Add(t.Context(), "n2:1", false); err != nil {
			t.Fatal(err)
		}
		lead := m.lead()
		m.set(func() { lead.skew = time.Hour })
		time.Sleep(time.Minute)
		if err := m.lead().AppendAllowed(); err != nil {
			t.Error(err)
		}
	})
}

// Leadership goes to who has all keys, and rests there, whatever clocks say; without such a node it stays.
func TestKeys(t *testing.T) {
	inModel(t, 3, func(t *testing.T, m *model) {
		old, third := m.lead(), m.nodes["n3:1"]
		m.set(func() {
			for _, n := range m.nodes {
				n.status.MissingKeyCount, n.status.MissingKeys = 1, []string{"models"}
			}
		})
		time.Sleep(time.Minute)
		if m.handovers() != 0 {
			t.Error("handed over, and nobody has the keys")
		}
		m.set(func() { third.status.MissingKeyCount, third.status.MissingKeys = 0, nil })
		m.wait("handing over", func() bool { return m.lead() == third })
		// It is ahead of both, who lack keys: neither rule may send leadership round in circles.
		m.set(func() { third.skew = time.Minute })
		time.Sleep(time.Hour)
		if m.lead() != third || m.handovers() > 1 {
			t.Errorf("%d transfers", m.handovers())
		}
		if third.AppendAllowed() == nil {
			t.Error("ahead of all, with nobody fit to take over, and it appends")
		}
		if w := strings.Join(old.Overview(t.Context()).Warnings, "\n"); !strings.Contains(w, "models") {
			t.Error(w)
		}
	})
}

// Leadership leaves a full disk for one with space that is not worse off otherwise, once; when all are full it stays.
func TestFullDisk(t *testing.T) {
	inModel(t, 3, func(t *testing.T, m *model) {
		old, second, third := m.lead(), m.nodes["n2:1"], m.nodes["n3:1"]
		m.set(func() {
			old.status.Full = true
			second.status.MissingKeyCount, second.status.MissingKeys = 1, []string{"models"}
			third.status.Full = true
		})
		time.Sleep(time.Hour)
		if m.handovers() != 0 {
			t.Error("handed over to a node without keys, or to one that is full too")
		}
		m.set(func() { third.status.Full = false })
		m.wait("handing over", func() bool { return m.lead() == third })
		if err := third.Transfer(t.Context(), old.id()); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "disk") {
			t.Errorf("transfer to a full node: %v", err)
		}
		if w := strings.Join(third.Overview(t.Context()).Warnings, "\n"); !strings.Contains(w, "too little to take appends") {
			t.Error(w)
		}
		// It is ahead of both: one is full, the other lacks keys. Neither rule may send leadership round in circles.
		m.set(func() { third.skew = time.Minute })
		time.Sleep(time.Hour)
		if m.lead() != third || m.handovers() != 1 {
			t.Errorf("%d transfers", m.handovers())
		}
		m.set(func() {
			third.skew = 0
			third.status.Full = true
			second.status.MissingKeyCount = 0
			second.status.Full = true
		})
		time.Sleep(time.Hour)
		if m.lead() != third || m.handovers() != 1 {
			t.Errorf("all are full, and there were %d transfers", m.handovers())
		}
		for i := range 3600 { // space comes and goes: leadership follows it seldom
			m.set(func() {
				for j, n := range []*modelNode{old, second, third} {
					n.status.Full = (i+j)%3 != 0
				}
			})
			time.Sleep(time.Second)
		}
		if n := m.handovers(); n < 2 || n > 3*25 {
			t.Errorf("%d transfers in an hour of space that comes and goes", n)
		}
	})
}

// A transfer that fails is not tried all the time.
func TestHandoverBacksOff(t *testing.T) {
	inModel(t, 3, func(t *testing.T, m *model) {
		lead := m.lead()
		m.set(func() {
			lead.status.MissingKeyCount = 1
			m.fail = func(int) { m.failed = errors.New("transfer fails") }
		})
		time.Sleep(time.Hour)
		m.mu.Lock()
		defer m.mu.Unlock()
		// Twice a minute for raising and recording at most, the rest are transfers.
		if lead.watch.handovers > 25 || lead.watch.handovers < 10 {
			t.Errorf("%d attempts in an hour", lead.watch.handovers)
		}
	})
}

// The version is raised when every voter knows the next, one step at a time, and not before.
func TestVersion(t *testing.T) {
	inModel(t, 3, func(t *testing.T, m *model) {
		m.set(func() { m.version = 1; m.nodes["n3:1"].status.MaxCommand = 1 })
		time.Sleep(time.Minute)
		if v := m.lead().CommandVersion(); v != 1 {
			t.Errorf("version %d, and a voter knows 1", v)
		}
		m.start("n4:1")
		if _, err := m.lead().Add(t.Context(), "n4:1", true); !errors.Is(err, sequencer.ErrNotApplied) {
			t.Errorf("a change that cannot be recorded yet: %v", err)
		}
		m.set(func() { m.nodes["n3:1"].status.MaxCommand = 2; m.nodes["n3:1"].down = true })
		time.Sleep(time.Minute)
		if v := m.lead().CommandVersion(); v != 1 {
			t.Errorf("version %d, and a voter does not answer", v)
		}
		m.set(func() { m.nodes["n3:1"].down = false })
		m.wait("the raise", func() bool { return m.lead().CommandVersion() == 2 })
		m.set(func() {
			for _, n := range m.nodes {
				n.status.MaxCommand = 3
			}
		})
		m.wait("the next raise", func() bool { return m.lead().CommandVersion() == 3 })
		time.Sleep(time.Minute)
		if v := m.lead().CommandVersion(); v != 3 {
			t.Errorf("version %d, and nobody knows it", v)
		}
	})
}

func TestWarnings(t *testing.T) {
	inModel(t, 4, func(t *testing.T, m *model) {
		lead := m.lead()
		look := func() string { return strings.Join(m.nodes["n2:1"].Overview(t.Context()).Warnings, "\n") }
		if w := look(); !strings.Contains(w, "There are 4 voters, which tolerate the loss of 1 as 3 would") {
			t.Error(w)
		}
		m.set(func() {
			n := m.nodes["n3:1"]
			m.applied = 100_000
			n.status.FreeBytes, n.status.Version, n.skew = 1<<20, "v2", 2*time.Second
			n.status.CertificateExpires = time.Now().Add(24 * time.Hour).UnixMicro()
			n.caught = time.Now().Add(time.Hour)
			m.nodes["n4:1"].hangs = true
			m.servers[1].Address = m.servers[0].Address
		})
		start := time.Now()
		w := look()
		if took := time.Since(start); took > 2*lookTimeout {
			t.Errorf("took %s with a node that says nothing", took)
		}
		for _, want := range []string{"1 MiB of free", "2 versions", "clock that differs by 2", "expires on", "entries behind", "same address", m.nodes["n4:1"].id() + " do"} {
			if !strings.Contains(w, want) {
				t.Errorf("%q is not in\n%s", want, w)
			}
		}
		m.set(func() {
			m.servers[1].Address = "n2:1"
			lead.down = true
			m.leader = ""
			m.nodes["n3:1"].status.Quarantine = "bits"
		})
		w = look()
		for _, want := range []string{"no leader", "Only 2 of 4 voters answer", "quarantined"} {
			if !strings.Contains(w, want) {
				t.Errorf("%q is not in\n%s", want, w)
			}
		}
	})
}

// TestSuperseded: a leader whose member keeps having a newer membership than itself records nothing; one that is told so for a moment goes on.
func TestSuperseded(t *testing.T) {
	inModel(t, 3, func(t *testing.T, m *model) {
		lead, other := m.lead(), m.nodes["n2:1"]
		if other == lead {
			other = m.nodes["n3:1"]
		}
		_, index := lead.o.Raft.Servers()
		m.set(func() { other.status.Configuration, other.status.State = index+7, peerapi.StateServing })
		time.Sleep(time.Second)
		if err := lead.AppendAllowed(); err != nil {
			t.Errorf("at once: %v", err)
		}
		m.wait("the refusal", func() bool { return lead.AppendAllowed() != nil })
		if err := lead.AppendAllowed(); !errors.Is(err, ErrSuperseded) || !errors.Is(err, sequencer.ErrNotApplied) {
			t.Error(err)
		}
		if o := lead.Overview(t.Context()); !strings.Contains(strings.Join(o.Warnings, "\n"), "newer membership") {
			t.Errorf("%q", o.Warnings)
		}
		m.set(func() { other.status.Configuration = 0 })
		m.wait("appends again", func() bool { return lead.AppendAllowed() == nil })
	})
}
