package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// temporaryPrefix begins the names of files that are not whole yet.
const temporaryPrefix = ".tmp-"

// writeFileSync replaces a file so that after a crash there is the old one or the whole new one, and returns when it is on disk.
func writeFileSync(path string, content []byte, mode os.FileMode) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, temporaryPrefix+"*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if _, err = f.Write(content); err != nil {
		return err
	}
	if err = f.Chmod(mode); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

// writeNew writes a file that must not be there yet, unless force says so.
func writeNew(path string, content []byte, force bool) error {
	if err := mayWrite(path, force); err != nil {
		return err
	}
	if force {
		return writeFileSync(path, content, 0o644)
	}
	if err := writeNewMode(path, content, 0o644); errors.Is(err, fs.ErrExist) {
		return existsError(path)
	} else {
		return err
	}
}

func existsError(path string) error {
	return fmt.Errorf("%s exists; choose another name, or add --force to replace it", path)
}

// mayWrite reports why writeNew would not write a file, as far as it can be told before. Only a regular file is ever replaced; subjects are
// files and directories that it must not be, under any name.
func mayWrite(path string, force bool, subjects ...string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := writable(filepath.Dir(path)); err != nil {
			return err
		}
	case err != nil:
		return err
	case info.Mode()&fs.ModeSymlink != 0:
		return fmt.Errorf("%s is a symbolic link, which is neither followed nor replaced; name a file", path)
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is no regular file and is not replaced; name a file", path)
	}
	for _, s := range subjects {
		same := sameName(path, s)
		if other, bad := os.Stat(s); err == nil && bad == nil {
			same = same || os.SameFile(info, other)
		}
		if same {
			return fmt.Errorf("%s is what the receipt is about (%s); name another file", path, s)
		}
	}
	if err == nil && !force {
		return existsError(path)
	}
	return nil
}

func sameName(a, b string) bool {
	x, errX := filepath.Abs(a)
	y, errY := filepath.Abs(b)
	return errX == nil && errY == nil && x == y
}

// writable tries whether files can be made in a directory.
func writable(dir string) error {
	f, err := os.CreateTemp(dir, temporaryPrefix+"*")
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// writeNewMode creates a file; it is an error if the name is taken.
func writeNewMode(path string, content []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if bad := f.Close(); err == nil {
		err = bad
	}
	if err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}
