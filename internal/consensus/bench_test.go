package consensus

import (
	"testing"

	"github.com/hashicorp/raft"
)

// countMachine is a machine that costs next to nothing, so that what is measured is raft and this package.
type countMachine struct {
	noMachine
	applied uint64
}

func (m *countMachine) Apply(entries []Entry) []any {
	results := make([]any, len(entries))
	for i := range entries {
		m.applied++
		results[i] = m.applied
	}
	return results
}

func openBench(b *testing.B) *Consensus {
	b.Helper()
	s := raft.NewInmemStore()
	if err := Bootstrap(s, testNode, ""); err != nil {
		b.Fatal(err)
	}
	c, err := Open(testConfig(b, s, &countMachine{}))
	if err != nil {
		b.Fatal(err)
	}
	if err := c.WaitLeader(b.Context()); err != nil {
		b.Fatal(err)
	}
	return c
}

// BenchmarkOpen: from a bootstrapped store to the first result, and to a clean stop.
func BenchmarkOpen(b *testing.B) {
	for b.Loop() {
		c := openBench(b)
		if _, _, err := c.Propose([]byte("a")).Wait(b.Context()); err != nil {
			b.Fatal(err)
		}
		if err := c.Close(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkPropose: commands with a log in memory, one after the other and four in flight.
func BenchmarkPropose(b *testing.B) {
	for _, window := range []int{1, 4} {
		b.Run(map[int]string{1: "one", 4: "four"}[window], func(b *testing.B) {
			c := openBench(b)
			data := make([]byte, 256)
			var flying []*Proposal
			for b.Loop() {
				if len(flying) == window {
					if _, _, err := flying[0].Wait(b.Context()); err != nil {
						b.Fatal(err)
					}
					flying = append(flying[:0], flying[1:]...)
				}
				flying = append(flying, c.Propose(data))
			}
			if err := c.Close(b.Context()); err != nil {
				b.Fatal(err)
			}
		})
	}
}
