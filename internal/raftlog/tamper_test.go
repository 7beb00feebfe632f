package raftlog

import (
	"github.com/cockroachdb/pebble/v2/vfs"
)

// tamperFS lets a test take the place of writes and syncs: the store under test stays as it is, its disk is broken.
type tamperFS struct {
	vfs.FS
	write func(f vfs.File, name string, p []byte, off int64) (int, error) // nil: f.WriteAt
	sync  func(f vfs.File, name string, dir bool) error                   // nil: f.Sync

	// dataOnly leaves whole syncs of files alone. Only a spare in the making has them, and that is made in the background, whenever.
	dataOnly bool
}

func (t *tamperFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	f, err := t.FS.OpenReadWrite(name, c, o...)
	if err != nil {
		return nil, err
	}
	return &tamperFile{File: f, t: t, name: t.PathBase(name)}, nil
}

func (t *tamperFS) OpenDir(name string) (vfs.File, error) {
	f, err := t.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return &tamperFile{File: f, t: t, name: t.PathBase(name), dir: true}, nil
}

type tamperFile struct {
	vfs.File
	t    *tamperFS
	name string
	dir  bool
}

func (f *tamperFile) WriteAt(p []byte, off int64) (int, error) {
	if f.t.write == nil {
		return f.File.WriteAt(p, off)
	}
	return f.t.write(f.File, f.name, p, off)
}

func (f *tamperFile) Sync() error {
	if f.t.sync == nil || f.t.dataOnly && !f.dir {
		return f.File.Sync()
	}
	return f.t.sync(f.File, f.name, f.dir)
}

func (f *tamperFile) SyncData() error {
	if f.t.sync == nil {
		return f.File.SyncData()
	}
	return f.t.sync(f.File, f.name, f.dir)
}

// isSegment tells segment files.
func isSegment(name string) bool {
	_, ok := parseSlot(name)
	return ok
}

// rewriteBatch returns what the store would have written had its header and records been others. p is one write of the
// store to a segment file; edit gets the header of the segment (also in p when p begins with it) and the records.
func rewriteBatch(f vfs.File, p []byte, off int64, edit func(h *segmentHeader, records []record)) []byte {
	b := p
	if off != 0 {
		b = make([]byte, segmentHeaderLen)
		if _, err := f.ReadAt(b, 0); err != nil {
			return p
		}
	}
	h, ok := decodeSegmentHeader(b)
	if !ok {
		return p // zeros of a spare
	}
	seed := h.seed() // before edit: fields that seed checksums are not to be edited
	body := p
	if off == 0 {
		body = p[blockSize:]
	}
	var records []record
	bh, err := decodeBatch(body, seed, func(r record, _, _ int) { records = append(records, r) })
	if err != nil {
		records = nil
	}
	edit(&h, records)
	var out []byte
	if off == 0 {
		out = h.appendTo(out)
	}
	if err == nil {
		out = appendBatch(out, seed, bh.number, records)
	}
	return append(out, p[len(out):]...)
}
