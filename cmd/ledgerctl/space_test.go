package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/provledger/provledger/client/lineage"
)

// A nearly full disk: what cannot succeed fails at once with the number, the event is kept, nothing is left half-made, and reading goes on.
func TestNearlyFull(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	t.Setenv("LEDGER", "")
	t.Setenv(stateVariable, filepath.Join(dir, "state"))
	mustCtl(t, "log", "create", "team")
	start := time.Now()
	var out, errs bytes.Buffer
	a := &app{stdout: &out, stderr: &errs, noted: map[string]bool{}, ledger: "./.ledger", log: "main", stateDir: "state", output: "table", timeout: time.Minute, minFree: 1 << 60}
	to, err := parseTarget(a.ledger)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.canRecord(t.Context(), to); err != nil {
		t.Errorf("a full disk keeps a command from running: %v", err)
	}
	id := lineage.NewID()
	_, err = a.deliver(t.Context(), to, "main", &lineage.Event{ID: id, Kind: lineage.KindRun, Action: uint8(lineage.RunComplete), RunID: id}, func() {})
	if err == nil || deliveryCode(err) != exitSpooled || !strings.Contains(err.Error(), "MiB are free in") {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(filepath.Join("state", "spool", id.String()+spoolSuffix)); err != nil {
		t.Error(err)
	}
	if err := a.quickstart(t.Context(), "tour"); err == nil || !strings.Contains(err.Error(), "a new ledger needs") {
		t.Errorf("quickstart: %v", err)
	}
	if _, err := os.Stat("tour"); err == nil {
		t.Error("quickstart left a directory")
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("%v: waited for space that nobody frees", took)
	}
	err = a.withLedger(t.Context(), false, func(s *session) error {
		_, err := s.Checkpoint(t.Context(), "main")
		return err
	})
	if err != nil {
		t.Errorf("reading: %v", err)
	}
}
