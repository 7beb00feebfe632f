package node

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/signer"
	"github.com/provledger/provledger/internal/tlsfile"
)

// Files of a ledger directory. FORMAT is written last and in one step: a directory without it is not a ledger yet, and what a broken
// attempt left there is thrown away.
const (
	lockFile   = "LOCK"
	formatFile = "FORMAT"
	secretFile = "secret"
	raftDir    = "raft"
	stateDir   = "state"
	signerDir  = "signer"

	formatVersion = 1
	// maxFormatBytes is far above what FORMAT holds.
	maxFormatBytes = 4096
)

// ErrBusy means that another process has the directory open.
var ErrBusy = errors.New("the ledger directory is in use by another process")

// ErrFormat means a directory that this program cannot open.
var ErrFormat = errors.New("not a ledger directory that this program can open")

// format is the content of FORMAT.
type format struct {
	Version   int        `json:"version"`
	ClusterID lineage.ID `json:"clusterId"`
	NodeID    lineage.ID `json:"nodeId"`
}

// encode returns the one form of FORMAT.
func (f format) encode() ([]byte, error) {
	b, err := json.Marshal(f)
	return append(b, '\n'), err
}

// directory is a locked ledger directory.
type directory struct {
	fs   vfs.FS
	path string
	lock io.Closer
	format
	secret *[signer.SecretBytes]byte // nil: there is none
	taken  string                    // the operator's file that this start took the secret from, "" if it did not
	fresh  bool                      // FORMAT is not there yet
	// existing forbids to start a ledger.
	existing bool
	// parents are the directories that got a new entry when this one was made.
	parents []string
}

func (d *directory) join(name string) string { return d.fs.PathJoin(d.path, name) }

// lockRetry is how often a busy directory is tried again.
const lockRetry = 20 * time.Millisecond

// openDirectory locks a directory, waiting up to patience for another process to let go of it, and reads what it is.
func openDirectory(ctx context.Context, fs vfs.FS, path string, patience time.Duration, existing bool) (*directory, error) {
	d := &directory{fs: fs, path: path, existing: existing}
	if err := d.make(); err != nil {
		return nil, fmt.Errorf("ledger directory %s: %w", path, err)
	}
	for deadline := time.Now().Add(patience); ; {
		var err error
		if d.lock, err = fs.Lock(d.join(lockFile)); err == nil {
			break
		}
		// A lock file that cannot be made is a fault of the path; a lock that is held is reported without one.
		if _, ok := errors.AsType[*os.PathError](err); ok {
			return nil, fmt.Errorf("ledger directory %s: %w", path, err)
		}
		if !time.Now().Before(deadline) {
			return nil, fmt.Errorf("%w: %s (waited %v): %w", ErrBusy, path, patience, err)
		}
		select {
		case <-time.After(lockRetry):
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %s: %w", ErrBusy, path, ctx.Err())
		}
	}
	if err := d.read(); err != nil {
		return nil, errors.Join(err, d.lock.Close())
	}
	return d, nil
}

// make makes the directory and what is missing above it.
func (d *directory) make() error {
	for dir := d.path; ; {
		if _, err := d.fs.Stat(dir); err == nil || !errors.Is(err, os.ErrNotExist) {
			break
		}
		parent := d.fs.PathDir(dir)
		if parent == dir {
			break
		}
		d.parents = append(d.parents, parent)
		dir = parent
	}
	return d.fs.MkdirAll(d.path, 0o700)
}

func (d *directory) read() error {
	b, err := d.readFile(formatFile)
	if errors.Is(err, os.ErrNotExist) {
		return d.start()
	}
	if err != nil {
		return err
	}
	j := json.NewDecoder(bytes.NewReader(b))
	j.DisallowUnknownFields()
	if err := j.Decode(&d.format); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrFormat, d.join(formatFile), err)
	}
	if d.Version != formatVersion {
		return fmt.Errorf("%w: %s has format %d, this program knows %d; use the version of Provledger that wrote it or a newer one", ErrFormat, d.path, d.Version, formatVersion)
	}
	if want, err := d.format.encode(); err != nil || !bytes.Equal(b, want) {
		return fmt.Errorf("%w: %s is not as this program wrote it", ErrFormat, d.join(formatFile))
	}
	return d.readSecret()
}

// readSecret reads the secret, if there is one.
func (d *directory) readSecret() error {
	b, err := d.readFile(secretFile)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("the node's secret: %w", err)
	case len(b) != signer.SecretBytes:
		return fmt.Errorf("%w: %s has %d bytes, not %d", ErrFormat, d.join(secretFile), len(b), signer.SecretBytes)
	}
	d.secret = (*[signer.SecretBytes]byte)(b)
	return nil
}

// takeSecret gives a directory without a secret one: that of a file of the operator's if there is one, else, if mint is set, a new one. A
// secret that is there is never replaced or thrown away.
func (d *directory) takeSecret(file string, mint bool) error {
	if d.secret != nil {
		return nil
	}
	var b []byte
	switch {
	case file != "":
		var err error
		if b, err = readPrivate(file); err != nil {
			return fmt.Errorf("secret file: %w", err)
		}
		if len(b) != signer.SecretBytes {
			return fmt.Errorf("secret file %s has %d bytes, not %d", file, len(b), signer.SecretBytes)
		}
	case mint:
		b = randomBytes(signer.SecretBytes)
	default:
		return nil
	}
	d.secret, d.taken = (*[signer.SecretBytes]byte)(b), file
	return d.write(secretFile, b, true)
}

// readPrivate reads a small file of the operator's that nobody else may be able to read.
func readPrivate(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if err := tlsfile.Private(file, info); err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(f, maxFormatBytes))
}

func (d *directory) readFile(name string) ([]byte, error) {
	f, err := d.fs.Open(d.join(name))
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFormatBytes))
	return b, errors.Join(err, f.Close())
}

// start begins a new ledger in a directory that holds nothing but what an earlier, broken attempt left. Such an attempt has made no
// state: that comes after FORMAT. A directory with state and without FORMAT is a ledger that somebody lost a file of, and stays as it is.
func (d *directory) start() error {
	if d.existing {
		return fmt.Errorf("%w: %s", ErrNoLedger, d.path)
	}
	names, err := d.fs.List(d.path)
	if err != nil {
		return err
	}
	if err := d.mayStart(names); err != nil {
		return err
	}
	if err := d.fs.RemoveAll(d.join(raftDir)); err != nil {
		return err
	}
	// The parent always: a process that was killed here may have made the directory without syncing that.
	for _, parent := range append(d.parents, d.fs.PathDir(d.path)) {
		if err := syncDir(d.fs, parent); err != nil && !errors.Is(err, os.ErrPermission) {
			return fmt.Errorf("make %s durable: %w", d.path, err)
		}
	}
	d.fresh = true
	d.format = format{formatVersion, lineage.ID(randomBytes(16)), lineage.ID(randomBytes(16))}
	return d.readSecret() // of a broken attempt, or put there
}

// mayStart refuses a directory with anything in it that a new ledger would stand between, or that was a ledger.
func (d *directory) mayStart(names []string) error {
	// These come into being after FORMAT, so whoever has one of them was a ledger and must not be thrown away.
	for _, name := range []string{stateDir, signerDir} {
		if slices.Contains(names, name) {
			return fmt.Errorf("%w: %s holds %s/ but no %s: put that file back from where this directory was copied or restored", ErrFormat, d.path, name, formatFile)
		}
	}
	ours := []string{lockFile, secretFile, raftDir}
	for _, name := range names {
		if !slices.Contains(ours, name) && !strings.HasPrefix(name, ".") && !strings.HasSuffix(name, temporarySuffix) {
			return fmt.Errorf("%w: %s is neither empty nor a ledger (it holds %q); name another directory", ErrFormat, d.path, name)
		}
	}
	return nil
}

// look reports whether there is no ledger yet, and an error where none may be started. It needs no lock and changes nothing.
func (d *directory) look() (fresh bool, err error) {
	_, err = d.fs.Stat(d.join(formatFile))
	if !errors.Is(err, os.ErrNotExist) {
		return false, err
	}
	names, err := d.fs.List(d.path)
	if errors.Is(err, os.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	return true, d.mayStart(names)
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails (crypto/rand)
	return b
}

// complete writes FORMAT: from now on the directory is a ledger.
func (d *directory) complete() error {
	b, err := d.format.encode()
	if err != nil {
		return err
	}
	if err := d.write(formatFile, b, false); err != nil {
		return err
	}
	d.fresh = false
	return nil
}

const temporarySuffix = ".new"

// write makes a file appear whole and durable, or not at all.
func (d *directory) write(name string, content []byte, private bool) error {
	temporary := d.join(name + temporarySuffix)
	f, err := d.fs.Create(temporary, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	if private && d.fs == vfs.Default {
		err = os.Chmod(temporary, 0o600) // before anything is in it
	}
	if err == nil {
		_, err = f.Write(bytes.Clone(content)) // a vfs.File may change what it is given, unlike other writers
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = d.fs.Rename(temporary, d.join(name))
	}
	if err == nil {
		err = syncDir(d.fs, d.path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", d.join(name), err)
	}
	return nil
}

// remove takes a file away for good, if it is there.
func (d *directory) remove(name string) error {
	if err := d.fs.Remove(d.join(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return syncDir(d.fs, d.path)
}

// syncDir makes the entries of a directory durable.
func syncDir(fs vfs.FS, path string) error {
	f, err := fs.OpenDir(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// checkSecret refuses a secret that is not the one that the ledger was made with: nobody could verify what it signs. One log tells, for
// all keys of a node come from its secret.
func (n *Node) checkSecret() error {
	g, err := n.Ledger().LogByNumber(ledger.SystemLog)
	if errors.Is(err, ledger.ErrNotFound) {
		return nil // a node that joined and has nothing yet: each log is checked when it is used
	}
	if err != nil {
		return err
	}
	vkey, err := n.signer.VKey(g.Origin)
	if errors.Is(err, signer.ErrNoKey) && n.clustered() {
		n.c.Logger.Warn("this node has neither the cluster's secret nor the key of the system log: it votes and serves, signs nothing of it, and cannot lead")
		return nil
	}
	if err != nil {
		return err
	}
	if vkey != g.VKey && n.dir.taken != "" {
		// It has signed nothing, and would stand in the way of the right one at the next start.
		return errors.Join(fmt.Errorf("the secret in %s is not that of this ledger: %s has %s, the secret gives %s", n.dir.taken, g.Origin, g.VKey, vkey),
			n.dir.remove(secretFile))
	}
	if vkey != g.VKey {
		return fmt.Errorf("%w: the secret in %s is not that of this ledger: %s has %s, the secret gives %s; put the right one back",
			ErrFormat, n.dir.join(secretFile), g.Origin, g.VKey, vkey)
	}
	return nil
}
