package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/provledger/provledger/client/artifact"
)

// timeGrain is how coarse the times of file systems may be. A file that was written so shortly before it was looked at can be written again
// without its time changing, so of such a file the bytes are compared as well.
const timeGrain = 2 * time.Second

// standing is what stood at a path at one time, as a rule without the bytes: hashing every output beforehand would cost as much again as
// recording it.
type standing struct {
	at   time.Time
	info fs.FileInfo
	sum  [sha256.Size]byte // of names, sizes and times, and of young bytes
}

// look returns what stands at a path; nil if nothing does, or it cannot be told.
func look(path string) *standing { return lookSince(path, time.Now()) }

// lookSince is look where files count as young as they did at a time.
func lookSince(path string, at time.Time) *standing {
	info, err := os.Stat(path)
	if err != nil {
		return nil
	}
	s, h := &standing{at: at, info: info}, sha256.New()
	if info.Mode().IsRegular() {
		err = describe(h, path, info, at)
	} else if info.IsDir() {
		err = describeTree(h, path, at)
	}
	if err != nil {
		return nil
	}
	h.Sum(s.sum[:0])
	return s
}

func describeTree(w io.Writer, path string, at time.Time) error {
	root, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	return filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && d.Name() == artifact.LedgerDir && p != root:
			return fs.SkipDir // it is left out of the digest too, and nested runs record into it
		case d.IsDir():
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		return describe(w, p, info, at)
	})
}

func describe(w io.Writer, path string, info fs.FileInfo, at time.Time) error {
	fmt.Fprintf(w, "%q %d %d %v\n", path, info.Size(), info.ModTime().UnixNano(), info.Mode())
	if !info.Mode().IsRegular() || info.ModTime().Before(at.Add(-timeGrain)) {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}

// untouched reports whether what stood at a path is still there and was not written. What cannot be told was written.
func (s *standing) untouched(path string) bool {
	if s == nil {
		return false
	}
	now := lookSince(path, s.at)
	return now != nil && os.SameFile(s.info, now.info) && s.sum == now.sum
}
