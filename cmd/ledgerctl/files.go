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
	if force {
		return writeFileSync(path, content, 0o644)
	}
	if err := writeNewMode(path, content, 0o644); errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s exists; choose another name, or add --force to replace it", path)
	} else {
		return err
	}
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
