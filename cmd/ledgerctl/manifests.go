package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/provledger/provledger/client"
	"github.com/provledger/provledger/client/lineage"
)

const (
	// maxManifestBytes bounds a manifest file: two million files, far more than a directory is usable with.
	maxManifestBytes = 512 << 20

	// maxDoubts is how many entries are opened to see whether one of them may hold a file: then it is not told apart any more.
	maxDoubts = 100
)

// readManifests reads the files of --manifest.
func readManifests(paths []string) (list []*lineage.Manifest, err error) {
	for _, path := range paths {
		m, err := readManifest(path)
		if err != nil {
			return nil, fmt.Errorf("--manifest: %w", err)
		}
		list = append(list, m)
	}
	return list, nil
}

func readManifest(path string) (*lineage.Manifest, error) {
	raw, err := readRegular(path, maxManifestBytes)
	if err != nil {
		return nil, err
	}
	m, err := lineage.ParseManifest(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

// readRegular reads a regular file; a pipe or device might never end. Of a larger file than limit it returns one byte more than that.
func readRegular(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "read", Path: path, Err: errors.New("not a regular file")}
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit+1))
}

// withMember returns the manifests that list a file: of those given, and of those that runs on this machine kept. One that cannot be read, or
// does not give the dirHash that it says, is none.
func (a *app) withMember(d lineage.Digest, given []*lineage.Manifest) (list []*lineage.Manifest) {
	lists := func(m *lineage.Manifest) bool {
		return slices.ContainsFunc(m.Files, func(f lineage.Member) bool { return f.Digest() == d })
	}
	for _, m := range given {
		if lists(m) {
			list = append(list, m)
		}
	}
	s, err := a.spool()
	if err != nil {
		return list
	}
	kept, err := filepath.Glob(filepath.Join(filepath.Dir(s.dir), manifestsDir, "*.json"))
	if err != nil {
		return list
	}
	for _, path := range kept {
		if m, err := readManifest(path); err == nil && lists(m) {
			list = append(list, m)
		}
	}
	return list
}

// mayHoldMembers returns an entry with a directory whose manifest is an artifact of its own: any file may be in it, for all the ledger knows.
func (a *app) mayHoldMembers(ctx context.Context, s *session) (index uint64, found bool, err error) {
	var doubts []uint64
	for e, err := range s.Entries(ctx, a.log, 0, 0, false) {
		if err != nil {
			return 0, false, err
		}
		directory, document := false, false
		for _, f := range e.Leaf.References {
			directory = directory || f.Identity.Algorithm == lineage.DirHash
			document = document || f.Kind == lineage.DocumentKind && f.Identity.Algorithm == lineage.SHA256
		}
		if directory && document {
			doubts = append(doubts, e.Index)
		}
		if len(doubts) > maxDoubts {
			return e.Index, true, nil
		}
	}
	for _, i := range doubts {
		e, err := s.Entry(ctx, a.log, client.AtIndex(i))
		if err != nil {
			return 0, false, err
		}
		x, err := e.Identifiers()
		if err != nil {
			return 0, false, err
		}
		if len(x.References) == 0 { // erased or withheld
			return i, true, nil
		}
		for _, f := range x.References {
			if f.MediaType == lineage.ManifestMediaType {
				return i, true, nil
			}
		}
	}
	return 0, false, nil
}
