package main

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/spf13/cobra"

	"github.com/provledger/provledger/internal/backup"
)

func (a *app) backupCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "backup DIR",
		Short: "Copy the ledger to plain files, or verify such a copy",
		Long: `backup brings the backup in DIR up to date with the ledger, while it records: leaves, bodies and a signed checkpoint of every log. Only what is
new is fetched, and it is proven before it is written. A run that was interrupted is continued by the next one. Any node of a cluster will do.

There is no private key in a backup: keep the secret of the ledger's nodes, or what ` + "`ledgerctl key export`" + ` writes, in another place. There are all
bodies in it: keep it from those who may not read them.

A ledger that does not continue what is in DIR - another one, a fork, one that was turned back - is not written over it (exit code 1).`,
		Example: "  ledgerctl backup --ledger ledger.example:7600 /backup/ledger\n  ledgerctl backup verify /backup/ledger --trust ledger.policy",
		Args:    exactly(1, "one directory"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withLedger(c.Context(), false, func(s *session) error {
				progress, done := a.logProgress("copying")
				summary, err := backup.Run(c.Context(), backup.RunOptions{Source: s.Client, Dir: args[0], Progress: progress})
				done()
				if err != nil {
					return backupError(err)
				}
				return a.printBackup(args[0], summary)
			})
		},
	}
	verify := &cobra.Command{
		Use:   "verify DIR",
		Short: "Prove a backup from its files alone",
		Long: `verify reads every file of a backup, needs no ledger and no network, and names each file that is damaged. Exit code 0: all entries that the
checkpoints cover are there, lead to the signed roots and open their commitments. 1: damaged. 2: it could not be told.

--trust FILE pins keys. If it names the log "system" (` + "`ledgerctl --log system key show --policy`" + `), the keys of all logs are pinned by that.`,
		Example: "  ledgerctl backup verify /backup/ledger --trust system.policy",
		Args:    exactly(1, "one directory"),
		RunE: func(c *cobra.Command, args []string) error {
			policy, err := a.policy()
			if err != nil {
				return err
			}
			progress, done := a.logProgress("verifying")
			report, err := backup.Verify(c.Context(), backup.VerifyOptions{Dir: args[0], Trust: policy, Progress: progress})
			done()
			if err != nil {
				return backupError(err)
			}
			return a.printVerified(report, policy != nil)
		},
	}
	c.AddCommand(verify)
	return c
}

// backupError gives errors of backups their exit codes.
func backupError(err error) error {
	switch {
	case errors.Is(err, backup.ErrDamaged), errors.Is(err, backup.ErrDiverged), errors.Is(err, backup.ErrShorter):
		return &exitError{exitNotVerified, err}
	case errors.Is(err, fs.ErrPermission):
		return hinted(err, "A backup can be read by its owner only: run as the user who made it.")
	}
	return err
}

// logProgress shows how far work on the logs of a ledger is.
func (a *app) logProgress(what string) (progress func(log string, have, want uint64), done func()) {
	add, end := func(int64) {}, func() {}
	current, counted := "", uint64(0)
	progress = func(log string, have, want uint64) {
		if log != current {
			end()
			add, end = a.progress(what+" "+plain(log), int64(want), false)
			current, counted = log, 0
		}
		if have > counted {
			add(int64(have - counted))
			counted = have
		}
	}
	return progress, func() { end() }
}

func (a *app) printBackup(dir string, s *backup.Summary) error {
	if a.json() {
		logs := make([]map[string]any, len(s.Logs))
		for i, l := range s.Logs {
			logs[i] = map[string]any{"name": l.Name, "before": l.Before, "size": l.Size, "root": l.Root}
		}
		return a.printJSON(map[string]any{"directory": dir, "run": s.Run, "newEntries": s.Entries, "newBytes": s.Bytes, "logs": logs})
	}
	_, err := fmt.Fprintf(a.stdout, "BACKED UP: %s, run %d: %d new entries, %d bytes\n", dir, s.Run, s.Entries, s.Bytes)
	for _, l := range s.Logs {
		if err == nil {
			_, err = fmt.Fprintf(a.stdout, "  %s: %d entries, %d of them new\n", plain(l.Name), l.Size, l.Size-l.Before)
		}
	}
	return err
}

func (a *app) printVerified(r *backup.Report, trusted bool) error {
	outcome, code := "verified", exitOK
	switch {
	case len(r.Faults) > 0:
		outcome, code = "not verified", exitNotVerified
	case trusted && r.Pinned == 0:
		r.NotChecked = append(r.NotChecked, "the policy names no log of this backup")
		outcome, code = "unknown", exitUnknown
	case !r.Restorable():
		outcome, code = "unknown", exitUnknown
	}
	if err := a.printReport(r, outcome); err != nil {
		return err
	}
	if code != exitOK {
		return &exitError{code: code}
	}
	return nil
}

func (a *app) printReport(r *backup.Report, outcome string) error {
	if a.json() {
		faults, logs := []map[string]string{}, []map[string]any{}
		for _, f := range r.Faults {
			faults = append(faults, map[string]string{"file": f.File, "problem": f.Problem})
		}
		for _, l := range r.Logs {
			logs = append(logs, map[string]any{"name": l.Name, "size": l.Size, "root": l.Root, "pending": l.Pending, "keyKnown": l.KeyKnown})
		}
		return a.printJSON(map[string]any{"outcome": outcome, "faults": faults, "logs": logs, "notChecked": r.NotChecked})
	}
	head := map[string]string{"verified": "VERIFIED", "not verified": "NOT VERIFIED", "unknown": "COULD NOT TELL"}[outcome]
	if r.Manifest != nil {
		head += fmt.Sprintf(": cluster %s, run %d of %s", r.Manifest.ClusterID, r.Manifest.Run.Number, r.Manifest.Run.StartedAt)
	}
	lines := []string{head}
	for _, f := range r.Faults {
		lines = append(lines, "  damaged: "+f.String())
	}
	for _, l := range r.Logs {
		line := fmt.Sprintf("  %s: %d entries, root %s", l.Name, l.Size, l.Root)
		if l.Pending > 0 {
			line += fmt.Sprintf(", and %d that no checkpoint covers yet", l.Pending)
		}
		lines = append(lines, line)
	}
	for _, n := range r.NotChecked {
		lines = append(lines, "  not checked: "+n)
	}
	for _, line := range lines {
		if _, err := fmt.Fprintln(a.stdout, plain(line)); err != nil {
			return err
		}
	}
	return nil
}
