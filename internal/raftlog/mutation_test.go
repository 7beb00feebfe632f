package raftlog

import (
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// Each of these breaks one rule of the store and expects a storm to notice: a harness that passes whatever the store
// does proves nothing. The store is not changed for it; its writes and syncs are.

func pass(f vfs.File, p []byte, off int64) (int, error) { return f.WriteAt(p, off) }

func TestCrashStormFindsBrokenRules(t *testing.T) {
	dropSync := func(which func(name string, dir bool) bool) func(vfs.FS) vfs.FS {
		return func(fs vfs.FS) vfs.FS {
			return &tamperFS{FS: fs, sync: func(f vfs.File, name string, dir bool) error {
				if which(name, dir) {
					return nil
				}
				return f.Sync()
			}}
		}
	}
	editBatch := func(edit func(h *segmentHeader, records []record)) func(vfs.FS) vfs.FS {
		return func(fs vfs.FS) vfs.FS {
			return &tamperFS{FS: fs, write: func(f vfs.File, name string, p []byte, off int64) (int, error) {
				if !isSegment(name) {
					return pass(f, p, off)
				}
				return f.WriteAt(rewriteBatch(f, p, off, edit), off)
			}}
		}
	}
	for _, c := range []struct {
		name   string
		steps  int
		only   func(errorfs.Op) bool
		tamper func(vfs.FS) vfs.FS
	}{
		{"no sync of segments", 200, nil,
			dropSync(func(name string, dir bool) bool { return isSegment(name) })},
		{"no sync of the vote", 200, nil,
			dropSync(func(name string, dir bool) bool { return name == voteName })},
		{"no sync of the directory", 200, nil,
			dropSync(func(name string, dir bool) bool { return dir && name == "raft" })},
		{"no sync of the parent directory", 200, nil,
			dropSync(func(name string, dir bool) bool { return dir && name == "node" })},
		{"no sync of a new store's directory", 0, atDirectory,
			dropSync(func(name string, dir bool) bool { return dir && name == "raft"+newSuffix })},
		{"a suffix delete leaves no record", 200, nil, editBatch(func(h *segmentHeader, records []record) {
			if len(records) == 1 && records[0].kind == kindSuffixDelete {
				records[0].index = 1 << 60 // cuts nothing
			}
		})},
		{"a head delete leaves no record", 200, nil, editBatch(func(h *segmentHeader, records []record) {
			if len(records) == 1 && records[0].kind == kindHeadDelete {
				records[0].index = 1
			}
		})},
		{"head deletes do not name the oldest needed segment", 200, atBatch, editBatch(func(h *segmentHeader, records []record) {
			if len(records) == 1 && records[0].kind == kindHeadDelete {
				records[0].oldest = 1
			}
		})},
		{"headers do not name the oldest needed segment", 200, nil,
			editBatch(func(h *segmentHeader, records []record) { h.oldest = 1 })},
		{"headers name themselves as the oldest needed segment", 200, nil,
			editBatch(func(h *segmentHeader, records []record) { h.oldest = h.sequence })},
	} {
		t.Run(c.name, func(t *testing.T) {
			for seed := range uint64(50) {
				st := storm{seed: seed, steps: c.steps, every: 3, only: c.only, tamper: c.tamper}
				if c.only != nil {
					st.every = 1
				}
				if found := st.run(); len(found) > 0 {
					t.Logf("seed %d: found: %v", seed, found[0])
					return
				}
			}
			t.Error("the storm did not notice")
		})
	}
}
