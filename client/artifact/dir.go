package artifact

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/provledger/provledger/client/lineage"
)

// found is a file met on a walk.
type found struct {
	path string // slash-separated, relative to the directory
	info fs.FileInfo
}

func (a *Artifact) hashDir(ctx context.Context, o Options) error {
	// os.Root resolves every name below one open directory and refuses to leave it, which is the rule for links, free of races.
	root, err := os.OpenRoot(a.Path)
	if err != nil {
		return err
	}
	defer root.Close()
	files, leftOut, err := walk(root)
	if err == nil && len(files) == 0 {
		err = ErrEmpty
	}
	if err != nil {
		return within(a.Path, "", err)
	}
	members, err := hashAll(ctx, a.Path, root, files, o)
	if err != nil {
		return err
	}
	again, _, err := walk(root)
	if err != nil {
		return within(a.Path, "", err)
	}
	if path, same := compare(files, again); !same {
		return within(a.Path, path, ErrChanged)
	}
	a.Manifest = lineage.NewManifest(members)
	a.Digest, a.Size, a.LeftOut = a.Manifest.DirHash, a.Manifest.Size(), leftOut
	a.Digests = []lineage.Digest{a.Digest}
	return nil
}

// within names the place of an error once: errors of the operating system already name the path below the directory.
func within(dir, path string, err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		if path == "" {
			path = filepath.ToSlash(p.Path)
		}
		err = fmt.Errorf("%s: %w", p.Op, p.Err)
	}
	return fmt.Errorf("%s: %w", filepath.Join(dir, filepath.FromSlash(path)), err)
}

// walk lists the files below root in byte order of their paths, and the directories that it left out.
func walk(root *os.Root) (files []found, leftOut []string, err error) {
	err = fs.WalkDir(root.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path == "." {
			return nil
		}
		if err := lineage.CheckMemberPath(path); err != nil {
			return &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("%w: %v", ErrName, err)}
		}
		if d.IsDir() {
			if d.Name() == LedgerDir {
				leftOut = append(leftOut, path)
				return fs.SkipDir
			}
			return nil
		}
		link := d.Type()&fs.ModeSymlink != 0
		if !link && !d.Type().IsRegular() {
			return &fs.PathError{Op: "read", Path: path, Err: ErrSpecial}
		}
		info, err := root.Stat(filepath.FromSlash(path))
		switch {
		case link && (err != nil || !info.Mode().IsRegular()):
			return &fs.PathError{Op: "follow", Path: path, Err: ErrLink}
		case err != nil:
			return err
		case !info.Mode().IsRegular():
			return &fs.PathError{Op: "read", Path: path, Err: ErrChanged}
		}
		files = append(files, found{path, info})
		return nil
	})
	slices.SortFunc(files, func(a, b found) int { return cmp.Compare(a.path, b.path) })
	return files, leftOut, err
}

// compare returns the first path at which two walks differ.
func compare(before, after []found) (path string, same bool) {
	for i := range before {
		if i >= len(after) || before[i].path != after[i].path || !sameState(before[i].info, after[i].info) {
			return before[i].path, false
		}
	}
	if len(after) > len(before) {
		return after[len(before)].path, false
	}
	return "", true
}

// hashAll reads files with a few workers and returns their members in the same order. The error is that of the first file in order
// among those that failed, so that it does not depend on scheduling more than it must.
func hashAll(ctx context.Context, dir string, root *os.Root, files []found, o Options) ([]lineage.Member, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	members := make([]lineage.Member, len(files))
	failed := make([]error, len(files))
	next := make(chan int)
	var wg sync.WaitGroup
	for range min(o.workers(), len(files)) {
		wg.Go(func() {
			for i := range next {
				if members[i], failed[i] = hashMember(ctx, root, files[i], o.Progress); failed[i] != nil {
					cancel()
				}
			}
		})
	}
	for i := range files {
		if ctx.Err() != nil {
			break
		}
		next <- i
	}
	close(next)
	wg.Wait()
	var first error
	for i, err := range failed {
		if err == nil {
			continue
		}
		// A file that failed because another one did only says "canceled".
		if first == nil || errors.Is(first, context.Canceled) {
			first = within(dir, files[i].path, err)
		}
	}
	if first == nil {
		first = ctx.Err() // canceled from outside before any file failed
	}
	return members, first
}

func hashMember(ctx context.Context, root *os.Root, f found, progress func(int64)) (lineage.Member, error) {
	file, err := root.Open(filepath.FromSlash(f.path))
	if err != nil {
		return lineage.Member{}, err
	}
	defer file.Close()
	sum, info, err := hashOpen(ctx, file, progress)
	if err != nil {
		return lineage.Member{}, err
	}
	if !os.SameFile(f.info, info) || !sameState(f.info, info) {
		return lineage.Member{}, ErrChanged
	}
	return lineage.Member{Path: f.path, SHA256: hex.EncodeToString(sum[:]), Size: info.Size()}, nil
}
