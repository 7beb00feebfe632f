package raftlog

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
)

const (
	segmentSuffix = ".seg"
	// fillBytes is one write of zeros: large enough to cost few calls, small enough that Close waits little for it.
	fillBytes = 1 << 20
)

var errStopped = errors.New("stopped")

// slotFile is an open segment file, live or spare.
type slotFile struct {
	vfs.File
	name string // base name: a slot number without meaning
	size int64
}

// spares are files that hold nothing needed. Their directory entries and sizes are durable.
type spares struct {
	mu       sync.Mutex
	ready    []slotFile
	running  chan struct{} // closed when the spare being made in the background is there, or is not going to be
	lastSlot uint64        // highest slot number in the directory
}

func (p *spares) add(f slotFile) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ready = append(p.ready, f)
}

// remove forgets the spare of that name.
func (p *spares) remove(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ready = slices.DeleteFunc(p.ready, func(f slotFile) bool { return f.name == name })
}

// take removes and returns all spares.
func (p *spares) take() []slotFile {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := p.ready
	p.ready = nil
	return all
}

func slotName(slot uint64) string { return fmt.Sprintf("%06d%s", slot, segmentSuffix) }

// parseSlot is the strict inverse of slotName.
func parseSlot(name string) (uint64, bool) {
	digits, ok := strings.CutSuffix(name, segmentSuffix)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	return n, err == nil && slotName(n) == name
}

// spare returns a file of at least size bytes to be made a segment: a ready one, else the one that is being made in the
// background, else one made here and now.
func (s *Store) spare(size int64) (slotFile, error) {
	p := &s.spares
	p.mu.Lock()
	for {
		for i, f := range p.ready {
			if f.size >= size {
				p.ready = slices.Delete(p.ready, i, i+1)
				p.mu.Unlock()
				return f, nil
			}
		}
		if p.running == nil || size > s.segmentBytes {
			break
		}
		running := p.running
		p.mu.Unlock()
		<-running
		p.mu.Lock()
	}
	p.mu.Unlock()
	return s.makeSpare(size)
}

// prepareSpare makes a spare in the background unless there is one. An error is not reported: nothing is lost by it,
// and the append that needs the spare tries again and reports what it finds.
func (s *Store) prepareSpare() {
	p := &s.spares
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running != nil || len(p.ready) > 0 {
		return
	}
	running := make(chan struct{})
	p.running = running
	s.bg.Go(func() {
		f, err := s.makeSpare(s.segmentBytes)
		if err != nil && !errors.Is(err, errStopped) {
			s.log.Warn("raft log: cannot prepare a spare segment", "err", err)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if err == nil {
			p.ready = append(p.ready, f)
		}
		p.running = nil
		close(running)
	})
}

// makeSpare writes a new file of zeros and makes file and directory entry durable. Zeros are written, not allocated:
// overwriting written blocks needs no metadata commit at fsync, and it is here, not in an append, that a full disk
// shows. Of a spare that could not be completed nothing remains.
func (s *Store) makeSpare(size int64) (slotFile, error) {
	s.spares.mu.Lock()
	s.spares.lastSlot++
	name := slotName(s.spares.lastSlot)
	s.spares.mu.Unlock()
	f, err := writeZeros(s.fs, s.fs.PathJoin(s.dir, name), size, s.quit)
	if err == nil {
		if err = syncDir(s.fs, s.dir); err != nil {
			err = errors.Join(err, f.Close(), s.fs.Remove(s.fs.PathJoin(s.dir, name)))
		}
	}
	if err != nil {
		if vfs.IsNoSpaceError(err) {
			err = fmt.Errorf("%w: %w", ErrNoSpace, err)
		}
		return slotFile{}, fmt.Errorf("make segment file %s: %w", name, err)
	}
	return slotFile{File: f, name: name, size: size}, nil
}

// writeZeros creates a file of size zero bytes and syncs it, or removes it again.
func writeZeros(fs vfs.FS, path string, size int64, quit <-chan struct{}) (f vfs.File, err error) {
	if f, err = fs.OpenReadWrite(path, vfs.WriteCategoryUnspecified); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), fs.Remove(path))
			f = nil
		}
	}()
	zeros := make([]byte, min(size, fillBytes))
	for off := int64(0); off < size; off += int64(len(zeros)) {
		select {
		case <-quit:
			return f, errStopped
		default:
		}
		zeros = zeros[:min(size-off, int64(len(zeros)))]
		clear(zeros) // a vfs.File may modify what it is given
		if _, err := f.Write(zeros); err != nil {
			return f, err
		}
	}
	return f, f.Sync()
}

// syncDir makes the entries of a directory durable.
func syncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
