package sequencer

import (
	"cmp"
	"slices"

	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/merkle"
)

const (
	// maxSpecs bounds the logs whose speculative state is in memory: of ten thousand logs most are idle, and one that comes back is read
	// again, which costs a millisecond.
	maxSpecs = 1024
	// maxIDs bounds the event ids that all logs together keep in memory, at 60 bytes each.
	maxIDs = 1 << 20
	// manySpecs is how many logs in memory make a first use of one more an ordinary thing.
	manySpecs = 64
)

// spec is the speculative state of a log: applied state plus everything in flight.
type spec struct {
	log   ledger.Log
	edge  *merkle.Edge
	head  ledger.Head
	dedup *dedup

	flying int    // commands in flight that touch it
	used   uint64 // when it was last used, in uses of any
}

// specs is the speculative state in memory, least recently used logs leaving first. One that has something in flight stays: the
// store does not have what it knows.
type specs struct {
	logs         map[uint32]*spec
	most, mostID int
	uses         uint64
	counted      uint64 // uses when the ids were last counted
}

// countEvery is how many uses pass between two counts of the ids: a command brings 4,096 at most.
const countEvery = 64

func newSpecs(most, mostIDs int) specs {
	return specs{logs: map[uint32]*spec{}, most: most, mostID: mostIDs}
}

func (s *specs) len() int { return len(s.logs) }

func (s *specs) get(log uint32) *spec {
	x := s.logs[log]
	if x != nil {
		s.uses++
		x.used = s.uses
	}
	return x
}

func (s *specs) put(x *spec) {
	s.uses++
	x.used = s.uses
	s.logs[x.log.Number] = x
}

func (s *specs) forget(log uint32) { delete(s.logs, log) }

func (s *specs) clear() { clear(s.logs) }

// toLoad is how many event ids to read of a log that is not in memory.
func (s *specs) toLoad() int {
	if len(s.logs) >= manySpecs {
		return fewLoaded
	}
	return maxLoaded
}

// trim lets go of what was not used for longest, down to three quarters of what is allowed, so that it has something to do every few hundred logs
// only.
func (s *specs) trim() {
	if len(s.logs) <= s.most && s.uses-s.counted < countEvery {
		return
	}
	s.counted = s.uses
	ids := 0
	for _, x := range s.logs {
		ids += len(x.dedup.known)
	}
	if len(s.logs) <= s.most && ids <= s.mostID {
		return
	}
	idle := make([]*spec, 0, len(s.logs))
	for _, x := range s.logs {
		if x.flying == 0 {
			idle = append(idle, x)
		}
	}
	slices.SortFunc(idle, func(a, b *spec) int { return cmp.Compare(a.used, b.used) })
	for _, x := range idle {
		if len(s.logs) <= s.most-s.most/4 && ids <= s.mostID-s.mostID/4 {
			return
		}
		ids -= len(x.dedup.known)
		delete(s.logs, x.log.Number)
	}
}
