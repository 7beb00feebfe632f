package consensus

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/provledger/provledger/internal/raftlog"
)

// plugged is a node on the real log, over a disk that forgets what was not synced.
type plugged struct {
	*Consensus
	toy  *toy
	disk *vfs.MemFS
	log  *raftlog.Store
}

func plug(t *testing.T, disk *vfs.MemFS, y *toy) *plugged {
	t.Helper()
	die := func(reason string, err error) { panic(reason + ": " + err.Error()) }
	logger := testLogger(t)
	log, err := raftlog.Open(raftlog.Options{FS: disk, Dir: "raft", SegmentBytes: 64 << 10, Logger: logger, Die: die})
	if err != nil {
		t.Fatal(err)
	}
	guarded := raftlog.Guard(log, raftlog.GuardOptions{
		Durable: func() uint64 { d, _ := y.Durable(); return d.Index },
		Applied: func() uint64 { y.mu.Lock(); defer y.mu.Unlock(); return y.live.at.Index },
		Die:     die, Logger: logger,
	})
	if last, _ := log.LastIndex(); last == 0 {
		if err := Bootstrap(guarded, testNode, ""); err != nil {
			t.Fatal(err)
		}
	}
	c, err := Open(testConfig(t, guarded, y))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.WaitLeader(t.Context()); err != nil {
		t.Fatal(err)
	}
	return &plugged{c, y, disk, log}
}

func (p *plugged) stop(t *testing.T) {
	t.Helper()
	if err := errors.Join(p.Close(context.Background()), p.log.Close()); err != nil {
		t.Error(err)
	}
}

// pull cuts the power now, with commands in flight, and returns what comes up again.
func (p *plugged) pull(t *testing.T, rng *rand.Rand, unsynced int) *plugged {
	t.Helper()
	// The machine first, the log second: nothing compacts in between, so together they are a state of one instant or
	// one with a log that is a little ahead, which a machine that flushes late gives too.
	y := p.toy.powerCut()
	disk := p.disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: unsynced, RNG: rng})
	p.stop(t)
	return plug(t, disk, y)
}

// Consensus, the guarded segment log and a machine without a log of its own, through one power cut after another: every
// acknowledged command is there at its index, none is there twice.
func TestPowerCutsOnSegmentLog(t *testing.T) {
	rounds := 60
	if testing.Short() {
		rounds = 10
	}
	rng := rand.New(rand.NewPCG(7, uint64(rounds)))
	p := plug(t, vfs.NewCrashableMem(), &toy{})
	type flight struct {
		command string
		*Proposal
	}
	acked := map[string]uint64{}
	var made int
	for round := range rounds {
		var flying []flight
		for range rng.IntN(40) {
			switch rng.IntN(12) {
			case 0:
				p.toy.makeDurable()
			case 1:
				_ = p.raft.Snapshot().Error() // may have nothing to do
			case 2:
				if err := p.Barrier(t.Context()); err != nil {
					t.Fatal(err)
				}
			default:
				if len(flying) == DefaultMaxAppendEntries {
					for _, f := range flying {
						_, index, err := f.Wait(t.Context())
						if err != nil {
							t.Fatal(err)
						}
						acked[f.command] = index
					}
					flying = flying[:0]
				}
				made++
				c := command(made)
				flying = append(flying, flight{c, p.Propose([]byte(c))})
			}
		}
		for _, f := range flying[:rng.IntN(len(flying)+1)] { // the others are in flight when the power goes
			_, index, err := f.Wait(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			acked[f.command] = index
		}
		p = p.pull(t, rng, []int{0, 50, 100}[round%3])
		if err := p.Barrier(t.Context()); err != nil {
			t.Fatal(err)
		}
		p.toy.mu.Lock()
		found := map[string]uint64{}
		for i, c := range p.toy.live.commands {
			if found[c] != 0 {
				t.Fatalf("round %d: %q is there twice, at %d and %d", round, c, found[c], p.toy.live.indexes[i])
			}
			found[c] = p.toy.live.indexes[i]
		}
		p.toy.mu.Unlock()
		for c, index := range acked {
			if found[c] != index {
				t.Fatalf("round %d: %q was acknowledged at %d and is at %d (0: nowhere)", round, c, index, found[c])
			}
		}
	}
	if first, _ := p.log.FirstIndex(); first == 1 || len(acked) < made/2 {
		t.Errorf("log begins at %d, %d of %d commands acknowledged: this test tests nothing", first, len(acked), made)
	}
	p.stop(t)
}
