package node

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestProbe: what Open would refuse is found without a trace, in Open too.
func TestProbe(t *testing.T) {
	free := func(d *vfs.MemFS, mib uint64) {
		d.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: mib << 20, TotalBytes: 1 << 40, UsedBytes: 1 << 30})
	}
	ledger := vfs.NewMem()
	n, _ := filled(t, ledger, nil, 1)
	mustCloseStorm(t, n)
	foreign := vfs.NewMem()
	if err := foreign.MkdirAll(stormDir, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, foreign, stormDir+"/thesis.tex", []byte("years of work"))
	for _, c := range []struct {
		name     string
		disk     *vfs.MemFS
		free     uint64
		existing bool
		fresh    bool
		want     error
		says     string
	}{
		{"a ledger", ledger, 1000, true, false, nil, ""},
		{"a ledger, room to read only", ledger, 200, false, false, nil, ""},
		{"a ledger, no room to open", ledger, 3, false, false, ErrNoSpace, "3 MiB are free in " + stormDir},
		{"nothing", vfs.NewMem(), 1000, false, true, nil, ""},
		{"nothing, and none may be made", vfs.NewMem(), 1000, true, true, ErrNoLedger, stormDir},
		{"nothing, no room for it", vfs.NewMem(), 200, false, true, ErrNoSpace, "a new ledger needs 260 MiB"},
		{"something else", foreign, 1000, false, true, ErrFormat, "thesis.tex"},
	} {
		t.Run(c.name, func(t *testing.T) {
			free(c.disk, c.free)
			config := testConfig(t, c.disk, stormDir)
			config.Existing = c.existing
			before, _ := c.disk.List(stormDir)
			fresh, err := Probe(config)
			if fresh != c.fresh || !errors.Is(err, c.want) || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("fresh %v, %v; want %v, %v with %q", fresh, err, c.fresh, c.want, c.says)
			}
			if c.want == nil {
				return
			}
			if n, err := Open(t.Context(), config); !errors.Is(err, c.want) {
				t.Errorf("Open: %v, %v", n, err)
			}
			if after, _ := c.disk.List(stormDir); len(after) != len(before) {
				t.Errorf("before %v, after %v", before, after)
			}
		})
	}
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// TestSpaceIsLogged: one line when refusing begins, one when it ends, and not one every time that the node looks.
func TestSpaceIsLogged(t *testing.T) {
	disk := vfs.NewMem()
	free := func(mib uint64) {
		disk.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: mib << 20, TotalBytes: 1 << 40, UsedBytes: 1 << 30})
	}
	free(1000)
	var log logBuffer
	n := mustOpenStorm(t, disk, func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	defer mustCloseStorm(t, n)
	for _, mib := range []uint64{200, 201, 202, 1000, 1001} {
		free(mib)
		n.lookAtSpace()
	}
	time.Sleep(2 * watchEvery) // the node looks by itself as well
	for _, line := range []string{"appends are refused", "appends are accepted again"} {
		if got := strings.Count(log.String(), line); got != 1 {
			t.Errorf("%q %d times in\n%s", line, got, log.String())
		}
	}
	if !strings.Contains(log.String(), "free_mib=200 needed_mib=256") {
		t.Error(log.String())
	}
}
