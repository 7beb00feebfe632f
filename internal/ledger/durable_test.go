package ledger

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// What is durable lags behind what is applied until Flush, and Flush does not claim too much (H1 a).
func TestDurable(t *testing.T) {
	disk := vfs.NewCrashableMem()
	s, l := simple(t, disk, 50)
	durable := func(l *Ledger) uint64 {
		p, err := l.Durable()
		if err != nil {
			t.Fatal(err)
		}
		return p.Index
	}
	if d := durable(l); d != 0 {
		t.Errorf("durable %d before any flush", d)
	}
	if err := l.Flush(t.Context(), s.m.index); err != nil {
		t.Fatal(err)
	}
	p, _ := l.Durable()
	if m := s.entries[1]; p.Index != s.m.index || p.Term != s.m.term || p.ConfigurationIndex != m.Index || !bytes.Equal(p.Configuration, m.Data) {
		t.Errorf("durable %+v after a flush at %d", p, s.m.index)
	}
	if err := l.Flush(t.Context(), s.m.index+1); err == nil {
		t.Error("flushed what was not applied")
	}
	at := len(s.entries)
	s.add(s.good(5).encoded())
	s.apply(t, l, at, len(s.entries))
	if d := durable(l); d != s.entries[at-1].Index {
		t.Errorf("durable %d, applied %d, flushed %d", d, l.Applied().Index, s.entries[at-1].Index)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Flush(ctx, 1<<40); !errors.Is(err, context.Canceled) {
		t.Errorf("flush under an ended context: %v", err)
	}
	clone := disk.CrashClone(vfs.CrashCloneCfg{})
	mustClose(t, l)
	l = mustOpen(t, testOptions(clone))
	if l.Applied().Index < p.Index {
		t.Errorf("a power cut left %d of %d", l.Applied().Index, p.Index)
	}
	mustClose(t, l)
}

// Whatever a power cut takes, the rest is the state after some prefix of the commands, whole (H1, S14).
func TestPowerCutKeepsAPrefix(t *testing.T) {
	disk := vfs.NewCrashableMem()
	o := testOptions(disk)
	o.MemTableBytes = 64 << 10
	s := newScript(5)
	l := mustOpen(t, o)
	rng := rand.New(rand.NewPCG(5, 5))
	s.bootstrap()
	found := map[uint64]bool{}
	tiles := map[string]string{}
	for i := range 40 {
		at := len(s.entries)
		if i == 0 {
			at = 0
		}
		s.add(s.good(10 + rng.IntN(40)).encoded())
		s.apply(t, l, at, len(s.entries))
		d, err := l.Durable()
		if err != nil {
			t.Fatal(err)
		}
		for _, percent := range []int{0, 50, 100} {
			clone := o
			clone.FS = disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng})
			c := mustOpen(t, clone)
			at := c.Applied()
			if at.Index < d.Index || at.Index > s.m.index || at.Digest != s.digests[at.Index] {
				t.Fatalf("command %d, %d %%: came up at %+v; durable was %d", i, percent, at, d.Index)
			}
			found[at.Index] = true
			if at.Index > 0 {
				if err := c.Check(t.Context()); err != nil {
					t.Fatalf("command %d, %d %%, up at %d: %v", i, percent, at.Index, err)
				}
			}
			for k, v := range dump(t, c) {
				if k[0] != tagTile {
					continue
				}
				if old, ok := tiles[k]; ok && old != v {
					t.Fatalf("tile %x changed", k)
				}
				tiles[k] = v
			}
			if err := c.Abandon(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(found) < 4 {
		t.Errorf("only %d different states came up: this test tests nothing", len(found))
	}
	mustClose(t, l)
}
