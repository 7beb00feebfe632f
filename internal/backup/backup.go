// Package backup turns the history of a ledger into plain files and back.
//
// A backup holds each log up to a signed checkpoint: leaves and bodies in files of their own by ranges of entries, and a manifest with
// the digest of each file. It is made online by [Run] through the verifying client, from any node; [Verify] checks it offline; [Restore]
// builds a new ledger directory from it. No private key is ever in it.
//
// What is in a backup is enough to compute the rest of a state store anew, and is checked down to the signature whenever it is read. What
// it cannot know is which checkpoints were released after it was made. Restore therefore keeps an origin only on the word of a witness
// ([Witnesses]), else it begins a new one that names its predecessor.
//
// docs/backup.md specifies the files and argues the rules.
package backup

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/cockroachdb/pebble/v2/vfs"
)

const (
	// manifestName is the file that says what a backup holds.
	manifestName = "manifest.json"
	lockName     = "LOCK"
	logsDir      = "logs"
	// newSuffix marks what is not whole yet.
	newSuffix = ".new"

	// rangeEntries and rangeBytes bound a range, which is held in memory while it is written or read: small enough for that, large enough
	// that a billion entries are some ten thousand files.
	rangeEntries = 65_536
	rangeBytes   = 32 << 20
	// maxRangeFileBytes is the largest file that a reader takes into memory: a range ends with the entry that reaches rangeBytes, and an
	// entry has at most 1 MiB of body and 64 KiB of leaf.
	maxRangeFileBytes = rangeBytes + 4<<20
	// maxManifestBytes bounds what a reader takes for a manifest: a hundred thousand logs with two thousand bytes each.
	maxManifestBytes = 256 << 20
)

// Errors by class; callers test with errors.Is.
var (
	// ErrNoBackup means that a directory holds no manifest.
	ErrNoBackup = errors.New("not a backup")
	// ErrBusy means that another run writes the backup.
	ErrBusy = errors.New("another run has the backup open")
	// ErrDamaged means that what is in a backup contradicts itself.
	ErrDamaged = errors.New("the backup is damaged")
	// ErrDiverged means that the ledger does not continue what was backed up.
	ErrDiverged = errors.New("the ledger does not continue what is in the backup")
)

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrDamaged}, args...)...)
}

// lockDir keeps other runs out. It is released by Close, and by the end of the process.
func lockDir(dir string) (io.Closer, error) {
	l, err := vfs.Default.Lock(filepath.Join(dir, lockName))
	if _, ok := errors.AsType[*os.PathError](err); ok {
		return nil, err
	} else if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrBusy, dir, err)
	}
	return l, nil
}

// writeFile makes a file appear whole and durable, or not at all. Nobody else may read it: bodies are in it.
func writeFile(path string, content []byte) error {
	f, err := os.OpenFile(path+newSuffix, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(path+newSuffix, path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	return err
}

// syncDir makes the entries of a directory durable.
func syncDir(dir string) error {
	d, err := vfs.Default.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// makeDir makes a directory, and what is missing above it, durably.
func makeDir(dir string) error {
	if info, err := os.Stat(dir); err == nil && info.IsDir() {
		return nil
	}
	parent := filepath.Dir(dir)
	if parent != dir {
		if err := makeDir(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	return syncDir(parent)
}

// readFile reads a file of at most most bytes.
func readFile(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > most {
		return nil, damaged("%s has more than %d bytes", path, most)
	}
	return b, nil
}

func hexSum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
