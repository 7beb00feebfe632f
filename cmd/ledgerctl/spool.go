package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/provledger/provledger/client"
	"github.com/provledger/provledger/client/eventpb"
	"github.com/provledger/provledger/client/lineage"
)

// spoolMediaType names the format of a spool file: a JSON object with the members of spoolFile, the event in the API's JSON form.
const spoolMediaType = "application/vnd.provledger.spool.v1+json"

// spoolSuffix ends the name of a spool file; what is before it is the event id.
const spoolSuffix = ".json"

// spoolFile is an event on its way to a ledger. It is on disk, synced, before the ledger is opened, and goes when the receipt is there,
// so that neither a crash nor an unreachable ledger loses what a run has to say.
type spoolFile struct {
	MediaType string          `json:"mediaType"`
	Ledger    string          `json:"ledger"` // HOST:PORT or absolute directory
	Log       string          `json:"log"`
	SpooledAt string          `json:"spooledAt"`
	Event     json.RawMessage `json:"event"`
}

// spooled is a spool file that was read.
type spooled struct {
	path  string
	to    target
	log   string
	at    string // when it was put there
	event *lineage.Event
}

// spool is the directory of the user's spool files.
type spool struct{ dir string }

func (a *app) spool() (spool, error) {
	dir := a.stateDir
	if dir == "" || dir == noMemory {
		var err error
		if dir, err = client.DefaultStateDir(); err != nil {
			return spool{}, fmt.Errorf("no place for the spool: %w; set --state-dir", err)
		}
	}
	return spool{filepath.Join(dir, "spool")}, nil
}

// noMemory as --state-dir means that no checkpoint is remembered; the spool then stands in the default place.
const noMemory = "-"

// put writes an event into the spool and returns the file's path when it is on disk.
func (s spool) put(to target, log string, e *lineage.Event) (string, error) {
	event, err := eventpb.MarshalJSON(e)
	if err != nil {
		return "", err
	}
	raw, err := json.MarshalIndent(spoolFile{spoolMediaType, to.String(), log, time.Now().UTC().Format(time.RFC3339), event}, "", "  ")
	if err != nil {
		return "", err
	}
	// Private: names, parameters and hosts are in it, and nobody else is to put events in.
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return "", fmt.Errorf("spool: %w", err)
	}
	path := filepath.Join(s.dir, e.ID.String()+spoolSuffix)
	if err := writeFileSync(path, append(raw, '\n'), 0o600); err != nil {
		return "", fmt.Errorf("spool: %w", err)
	}
	return path, nil
}

// done removes a spool file. Another process may have sent and removed it in between, under the same event id.
func (s spool) done(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the event is recorded, but its spool file stays (sending it again does no harm): %w", err)
	}
	return nil
}

// list reads the spool in the order of event ids, which for UUIDv7 is that of time. What cannot be read is in bad and stays where it is.
func (s spool) list() (files []spooled, bad []error, err error) {
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("spool: %w", err)
	}
	for _, d := range entries {
		if strings.HasPrefix(d.Name(), temporaryPrefix) {
			continue // being written, or left by a crash before it counted
		}
		path := filepath.Join(s.dir, d.Name())
		f, err := readSpooled(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			bad = append(bad, fmt.Errorf("%s: %w", path, err))
		default:
			files = append(files, *f)
		}
	}
	slices.SortFunc(files, func(a, b spooled) int { return bytes.Compare(a.event.ID[:], b.event.ID[:]) })
	return files, bad, nil
}

func readSpooled(path string) (*spooled, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	var f spoolFile
	if err := d.Decode(&f); err != nil {
		return nil, fmt.Errorf("not a spool file: %w", err)
	}
	if f.MediaType != spoolMediaType {
		return nil, fmt.Errorf("media type %q is not %s: written by a newer ledgerctl?", f.MediaType, spoolMediaType)
	}
	e, err := eventpb.ParseJSON(f.Event)
	if err == nil {
		err = e.Validate()
	}
	if err != nil {
		return nil, err
	}
	s := &spooled{path: path, log: f.Log, at: f.SpooledAt, event: e}
	if filepath.IsAbs(f.Ledger) {
		s.to.directory = f.Ledger // even if it is gone
	} else if s.to, err = parseTarget(f.Ledger); err != nil {
		return nil, err
	}
	return s, nil
}
