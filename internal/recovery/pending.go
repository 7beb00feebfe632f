package recovery

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// PendingFile is the file of a ledger directory that holds a record until the ledger has it.
const PendingFile = "recovery.json"

// maxPendingBytes bounds a record: the limit of a control entry's document.
const maxPendingBytes = 64 << 10

// Causes of a recovery.
const (
	MajorityLost = "majority lost"
	Restored     = "restored from backup"
	NewOrigin    = "restored from backup under a new origin"
)

// Record is what a recovery did, for the system log: the document of a control entry of kind recovery. Everything in it is the word of whoever
// ran the recovery.
type Record struct {
	Cause string `json:"cause"`
	// At is when, RFC 3339 in UTC, by that machine's clock. By is who, an operating system user unless another name was given.
	At     string `json:"at"`
	By     string `json:"by,omitempty"`
	Reason string `json:"reason,omitempty"`
	// Node is the only voter afterwards, by the membership of raft index Index in term Term. What it held up to Kept was kept.
	Node  string `json:"node"`
	Kept  uint64 `json:"kept"`
	Index uint64 `json:"index"`
	Term  uint64 `json:"term"`
	// Lost are the members that it replaced.
	Lost []Member `json:"lost,omitempty"`
	// Witnesses say on whose word nothing that was released is missing; none means that nobody was asked.
	Witnesses []string `json:"witnesses,omitempty"`
	// Backup is what was restored.
	Backup *Backup `json:"backup,omitempty"`
}

// Member is a lost member of a cluster.
type Member struct {
	ID      string `json:"id"`
	Address string `json:"address"`
	Voter   bool   `json:"voter"`
}

// Backup names a run of a backup.
type Backup struct {
	Run        uint64 `json:"run"`
	FinishedAt string `json:"finishedAt"`
	SHA256     string `json:"sha256"` // of the manifest
}

// Save makes a record durable in a ledger directory, in place of one that is there.
func (r *Record) Save(fs vfs.FS, dir string) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	path := fs.PathJoin(dir, PendingFile)
	f, err := fs.Create(path+".new", vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = fs.Rename(path+".new", path)
	}
	if err == nil {
		err = syncDir(fs, dir)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// Pending returns the record that a ledger directory holds, and its text for the system log; nil if there is none.
func Pending(fs vfs.FS, dir string) (*Record, []byte, error) {
	path := fs.PathJoin(dir, PendingFile)
	f, err := fs.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxPendingBytes))
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	r, err := ParseRecord(b)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	return r, bytes.TrimSuffix(b, []byte("\n")), nil
}

// ParseRecord reads the text of a record.
func ParseRecord(b []byte) (*Record, error) {
	r := &Record{}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(r); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the record")
	}
	return r, nil
}

// Done removes the record: the ledger has it.
func Done(fs vfs.FS, dir string) error {
	if err := fs.Remove(fs.PathJoin(dir, PendingFile)); err != nil {
		return err
	}
	return syncDir(fs, dir)
}

func syncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
