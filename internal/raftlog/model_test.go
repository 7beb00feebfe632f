package raftlog

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/hashicorp/raft"
)

// model is the reference: what a log with term and vote must hold. Values are immutable; steps return a new one.
type model struct {
	log      []*raft.Log
	term     uint64 // 0 = not set
	voteTerm uint64
	cand     string // "" = not set
}

func (m model) equal(o model) bool {
	return m.term == o.term && m.voteTerm == o.voteTerm && m.cand == o.cand && slices.EqualFunc(m.log, o.log, sameEntry)
}

func (m model) String() string {
	return fmt.Sprintf("log %s term %d vote %d for %q", span(m.log), m.term, m.voteTerm, m.cand)
}

func (m model) bounds() (first, last uint64) {
	if len(m.log) == 0 {
		return 0, 0
	}
	return m.log[0].Index, m.log[len(m.log)-1].Index
}

// step is one call on a Store.
type step struct {
	store    []*raft.Log
	min, max uint64 // delete, if max > 0
	term     uint64
	cand     string // vote in voteTerm
	voteTerm uint64
}

func (st step) String() string {
	switch {
	case st.store != nil:
		return "store " + span(st.store)
	case st.max > 0:
		return fmt.Sprintf("delete [%d, %d]", st.min, st.max)
	case st.cand != "":
		return fmt.Sprintf("vote %d for %q", st.voteTerm, st.cand)
	}
	return fmt.Sprintf("term %d", st.term)
}

// apply is the meaning of a step.
func (m model) apply(st step) model {
	switch {
	case st.store != nil:
		m.log = append(slices.Clip(m.log), st.store...)
	case st.max > 0:
		m.log = slices.DeleteFunc(slices.Clone(m.log), func(l *raft.Log) bool { return l.Index >= st.min && l.Index <= st.max })
	case st.cand != "":
		m.voteTerm, m.cand = st.voteTerm, st.cand
	default:
		m.term = st.term
	}
	return m
}

// partial returns every state that may be found if the power goes during a step: a store may be torn between entries,
// all else happens or does not.
func (m model) partial(st step) []model {
	states := []model{m}
	for i := 1; i < len(st.store); i++ {
		states = append(states, m.apply(step{store: st.store[:i]}))
	}
	return append(states, m.apply(st))
}

// do makes the call.
func (st step) do(s interface {
	raft.LogStore
	raft.StableStore
}) error {
	switch {
	case st.store != nil:
		return s.StoreLogs(st.store)
	case st.max > 0:
		return s.DeleteRange(st.min, st.max)
	case st.cand != "":
		if err := s.SetUint64([]byte(keyLastVoteTerm), st.voteTerm); err != nil {
			return err
		}
		return s.Set([]byte(keyLastVoteCand), []byte(st.cand))
	}
	return s.SetUint64([]byte(keyCurrentTerm), st.term)
}

// observe reads everything that a Store holds.
func observe(s *Store) (m model, err error) {
	if m.log, err = readAll(s); err != nil {
		return m, err
	}
	missing := func(err error) error {
		if err != nil && err.Error() == "not found" {
			return nil
		}
		return err
	}
	var e1, e2, e3 error
	var cand []byte
	m.term, e1 = s.GetUint64([]byte(keyCurrentTerm))
	m.voteTerm, e2 = s.GetUint64([]byte(keyLastVoteTerm))
	cand, e3 = s.Get([]byte(keyLastVoteCand))
	m.cand = string(cand)
	return m, errors.Join(missing(e1), missing(e2), missing(e3))
}

// next draws a step that raft could take in state m. Sizes are chosen for 64 KiB segments: many small batches, some that
// roll over, a few that need several segments or one of their own size.
func (m model) next(rng *rand.Rand) step {
	first, last := m.bounds()
	term := max(m.term, 1)
	size := func() int {
		switch n := rng.IntN(100); {
		case n < 50:
			return rng.IntN(300)
		case n < 90:
			return rng.IntN(9000)
		case n < 98:
			return 20000 + rng.IntN(20000)
		}
		return testSegment + rng.IntN(2000)
	}
	switch n := rng.IntN(100); {
	case n < 10:
		return step{term: term + uint64(rng.IntN(3))}
	case n < 18:
		return step{voteTerm: max(m.voteTerm, term) + 1, cand: fmt.Sprintf("node-%d", rng.IntN(1000))}
	case n < 26 && last > 0:
		min := last - min(last-first, uint64(rng.IntN(5)))
		return step{min: min, max: last}
	case n < 38 && last > 0:
		return step{min: first, max: first + uint64(rng.IntN(int(last-first+1)))}
	case n < 40 && last > 0:
		return step{min: first, max: last}
	}
	next := last + 1
	if last == 0 {
		next = uint64(rng.IntN(50)) + 1
	}
	logs := make([]*raft.Log, 1+rng.IntN(6))
	for i := range logs {
		logs[i] = entry(next+uint64(i), term, size())
	}
	return step{store: logs}
}
