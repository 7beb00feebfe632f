package client

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"time"
)

// noMemory as StateDir means that nothing is remembered.
const noMemory = "-"

// DefaultStateDir returns where checkpoints are remembered: $XDG_STATE_HOME/provledger or ~/.local/state/provledger, on macOS
// ~/Library/Application Support/provledger, on Windows %LocalAppData%\provledger.
func DefaultStateDir() (string, error) {
	// A relative XDG_STATE_HOME is invalid and ignored (XDG base directory specification).
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "provledger"), nil
	}
	if runtime.GOOS == "windows" {
		if dir := os.Getenv("LocalAppData"); dir != "" {
			return filepath.Join(dir, "provledger"), nil
		}
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("no directory to remember checkpoints in: %w", err)
	}
	if runtime.GOOS == "darwin" {
		return filepath.Join(home, "Library", "Application Support", "provledger"), nil
	}
	return filepath.Join(home, ".local", "state", "provledger"), nil
}

// memory is the state directory. It holds
//
//	logs/<hash of origin>.json      a record: origin, key, last verified checkpoint
//	targets/<hash of target>.json   a pin: which origins the logs of the ledger at a target have
//
// Files are replaced by rename under a lock file, so that concurrent processes of a user neither see half a file nor undo each other's
// progress. The zero dir means that nothing is remembered.
type memory struct {
	dir string
	err error // the directory cannot be told
}

// record is what is remembered of a log.
type record struct {
	Origin     string `json:"origin"`
	VKey       string `json:"vkey"`
	Checkpoint string `json:"checkpoint"` // signed note
}

// pin is what is remembered of a target.
type pin struct {
	Target string            `json:"target"`
	Logs   map[string]string `json:"logs"` // name to origin
}

func newMemory(dir string) *memory {
	switch dir {
	case noMemory:
		return &memory{}
	case "":
		dir, err := DefaultStateDir()
		return &memory{dir, err}
	}
	return &memory{dir: dir}
}

// on reports whether anything is remembered. Not knowing where is an error: a memory that is silently off would detect nothing.
func (m *memory) on() (bool, error) {
	if m.err != nil {
		return false, fmt.Errorf("%w; set StateDir, or %q to remember nothing", m.err, noMemory)
	}
	return m.dir != "", nil
}

func (m *memory) recordPath(origin string) string { return m.path("logs", origin) }
func (m *memory) pinPath(target string) string    { return m.path("targets", target) }

func (m *memory) path(kind, name string) string {
	sum := sha256.Sum256([]byte(name))
	return filepath.Join(m.dir, kind, hex.EncodeToString(sum[:16])+".json")
}

// record returns what is remembered of a log, nil if nothing is.
func (m *memory) record(origin string) (*record, error) {
	path := m.recordPath(origin)
	r := &record{}
	if found, err := readJSON(path, r); !found || err != nil {
		return nil, err
	}
	if r.Origin != origin {
		return nil, damaged(path, fmt.Errorf("it is about %q, not %q", r.Origin, origin))
	}
	return r, nil
}

// pin returns the origins that the logs at a target had.
func (m *memory) pin(target string) (*pin, error) {
	path := m.pinPath(target)
	p := &pin{Target: target}
	if _, err := readJSON(path, p); err != nil {
		return nil, err
	}
	if p.Target != target {
		return nil, damaged(path, fmt.Errorf("it is about %q, not %q", p.Target, target))
	}
	if p.Logs == nil {
		p.Logs = make(map[string]string)
	}
	return p, nil
}

// setPin remembers the origin of a log at a target.
func (m *memory) setPin(target, name, origin string) error {
	return m.locked(func() error {
		p, err := m.pin(target)
		if err != nil || p.Logs[name] == origin {
			return err
		}
		for n, o := range p.Logs {
			if !isFrozen(n) && !isFrozen(name) && ledgerOf(o) != ledgerOf(origin) {
				delete(p.Logs, n) // of the ledger that was there before; the caller accepted the new one
			}
		}
		p.Logs[name] = origin
		return writeJSON(m.pinPath(target), p)
	})
}

// update replaces the record of a log if it is still the one that the caller knows, nil meaning none, and reports whether it was. If not,
// another process has been faster: the caller must prove that both belong together before either may stay.
func (m *memory) update(known *record, next record) (done bool, err error) {
	err = m.locked(func() error {
		r, err := m.record(next.Origin)
		if err != nil {
			return err
		}
		if (r == nil) != (known == nil) || r != nil && *r != *known {
			return nil
		}
		done = true
		return writeJSON(m.recordPath(next.Origin), next)
	})
	return done, err
}

// locked runs f while no other process of this user changes the directory. The lock is held for the time of reading and writing a file.
func (m *memory) locked(f func() error) error {
	if err := os.MkdirAll(m.dir, 0o700); err != nil {
		return m.cannot(err)
	}
	l, err := os.OpenFile(filepath.Join(m.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return m.cannot(err)
	}
	defer l.Close()
	if err := lockFile(l); err != nil {
		return m.cannot(err)
	}
	defer unlockFile(l)
	return f()
}

func (m *memory) cannot(err error) error {
	return fmt.Errorf("cannot remember checkpoints in %s: %w", m.dir, err)
}

func damaged(path string, err error) error {
	return fmt.Errorf("%s is damaged: %w; delete it to trust the ledger anew", path, err)
}

func readJSON(path string, v any) (found bool, err error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("remembered checkpoint: %w", err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return false, damaged(path, err)
	}
	return true, nil
}

const (
	// newPrefix begins the names of files that are not whole yet.
	newPrefix = ".new-"
	// staleAfter is when such a file is of a process that died: writing one takes milliseconds.
	staleAfter = time.Hour
)

// removeStale removes what processes that died left. Failing to does no harm.
func removeStale(dir string) {
	paths, _ := filepath.Glob(filepath.Join(dir, newPrefix+"*"))
	for _, path := range paths {
		if info, err := os.Stat(path); err == nil && time.Since(info.ModTime()) > staleAfter {
			_ = os.Remove(path)
		}
	}
}

// writeJSON replaces a file by a synced one: after a power cut it is the old or the new one, and not an empty one, which would read as
// damage.
func writeJSON(path string, v any) (err error) {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	removeStale(dir)
	f, err := os.CreateTemp(dir, newPrefix+"*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = f.Write(append(b, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	return err
}
