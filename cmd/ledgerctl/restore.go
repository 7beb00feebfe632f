package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/provledger/provledger/client"
	"github.com/provledger/provledger/internal/backup"
)

// secretBytes is the length of the secret of a node.
const secretBytes = 32

// restoreFlags are those of restore.
type restoreFlags struct {
	from, data, secretFile   string
	checkpoints, signerDirs  []string
	noWitness, newOrigin     bool
	originHost, reason, name string
}

func (a *app) restoreCommand() *cobra.Command {
	var f restoreFlags
	c := &cobra.Command{
		Use:   "restore --from DIR --data NEWDIR",
		Short: "Build a ledger from a backup",
		Long: `restore builds a new ledger directory from a backup: a cluster of one with a new node id, for ledgerd --data or --ledger. Everything is proven
again on the way; if anything fails there is no new directory.

The restored ledger goes on under the old origins and keys. If receipts left the old ledger after the backup was made, it would then sign a second
history, and everybody who remembers the first one would rightly call it forged. So somebody has to say what was released:
  --signer-dir DIR    signer/ of an old data directory: what that node signed. Name those of all nodes that you still have.
  --checkpoint FILE   a checkpoint of a log from outside: ` + "`ledgerctl checkpoint`" + ` (--log NAME) as a monitor or another machine kept it, or the newest receipt's
Each of them has to lie within the backup, and every log needs one. --no-witness does without: you then answer for it that nothing was recorded after
the backup. What this machine remembers is compared too.

If they have seen more than the backup has, the old origins are lost: --new-origin begins new ones. Each new log names its predecessor, whose entries stay
readable beside it as NAME@CLUSTER.`,
		Example: "  ledgerctl restore --from /backup/ledger --data /var/lib/provledger --secret-file secret --signer-dir /mnt/old/signer\n" +
			"  ledgerctl restore --from /backup/ledger --data /var/lib/provledger --secret-file secret --new-origin",
		Args: exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error { return a.restore(c, &f) },
	}
	s := c.Flags()
	s.StringVar(&f.from, "from", "", "`DIRECTORY` of the backup")
	s.StringVar(&f.data, "data", "", "`DIRECTORY` to build the ledger in; must be empty or not exist")
	s.StringVar(&f.secretFile, "secret-file", "", "`FILE` with the secret of the ledger's nodes (32 bytes, readable by you only); without it nothing can be signed before key files are put in place")
	s.StringArrayVar(&f.signerDirs, "signer-dir", nil, "signer `DIRECTORY` of an old data directory; may be repeated")
	s.StringArrayVar(&f.checkpoints, "checkpoint", nil, "`FILE` with a checkpoint that somebody saw; may be repeated")
	s.BoolVar(&f.noWitness, "no-witness", false, "nothing was recorded after the backup, on your word")
	s.BoolVar(&f.newOrigin, "new-origin", false, "begin new origins that name those of the backup as predecessors")
	s.StringVar(&f.originHost, "origin-host", "", "first part of the new origins, a DNS `NAME` of yours; that of the old ones if it is not given")
	s.StringVar(&f.reason, "reason", "", "`TEXT` for the record in the system log")
	s.StringVar(&f.name, "by", "", "`NAME` for that record; the operating system user if it is not given")
	return c
}

func (a *app) restore(c *cobra.Command, f *restoreFlags) error {
	switch {
	case f.from == "" || f.data == "":
		return usage("restore needs --from DIR and --data NEWDIR")
	case f.originHost != "" && !f.newOrigin:
		return usage("--origin-host goes with --new-origin")
	}
	stopped := newEnd()
	o := backup.RestoreOptions{
		From: f.from, Dir: f.data, NoWitness: f.noWitness, NewOrigin: f.newOrigin, OriginHost: f.originHost, Reason: f.reason, By: f.name,
		Logger: slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
		Die: func(reason string, err error) {
			stopped.die(reason, err)
			select {} // going on after a failed write could make a ledger that is not whole
		},
	}
	if o.By == "" {
		if u, err := user.Current(); err == nil {
			o.By = u.Username
		}
	}
	var err error
	if o.Trust, err = a.policy(); err != nil {
		return err
	}
	if o.Witnesses, err = a.witnesses(f); err != nil {
		return backupError(err)
	}
	if f.secretFile != "" {
		if o.Secret, err = readSecret(f.secretFile); err != nil {
			return err
		}
	}
	progress, done := a.logProgress("restoring")
	o.Progress = progress
	var r *backup.Restored
	err = stopped.within(func() (err error) {
		r, err = backup.Restore(c.Context(), o)
		return err
	})
	done()
	switch {
	case errors.Is(err, backup.ErrNoWitness):
		return hinted(err, "Name one with --signer-dir or --checkpoint; `ledgerctl restore --help` says how to get one.")
	case errors.Is(err, backup.ErrShorter):
		return hinted(backupError(err), "Look for a newer backup or a surviving node (`ledgerd recover`). If there is none, the old origin is lost: --new-origin.")
	case err != nil:
		return backupError(err)
	}
	return a.printRestored(f, r)
}

// witnesses gathers who saw what. What this machine remembers can only object: it made the backup, perhaps.
func (a *app) witnesses(f *restoreFlags) ([]backup.Witness, error) {
	var all []backup.Witness
	for _, dir := range f.signerDirs {
		list, err := backup.SignerWitnesses(f.from, dir)
		if err != nil {
			return nil, err
		}
		all = append(all, list...)
	}
	for _, file := range f.checkpoints {
		w, err := backup.CheckpointWitness(f.from, file)
		if err != nil {
			return nil, err
		}
		all = append(all, w)
	}
	origins, err := backup.Origins(f.from)
	if err != nil {
		return nil, err
	}
	for _, origin := range origins {
		cp, ok, err := client.RememberedOf(a.stateDir, origin)
		if err != nil {
			return nil, err
		}
		if ok {
			all = append(all, backup.Witness{From: "the memory of this machine", Origin: origin, Size: cp.Size, Root: cp.Root})
		}
	}
	return all, nil
}

// readSecret reads the secret of a node from a file that nobody else may read.
func readSecret(file string) (*[secretBytes]byte, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if mode := info.Mode().Perm(); runtime.GOOS != "windows" && mode&0o077 != 0 {
		return nil, fmt.Errorf("%s can be read by others (mode %04o): chmod 600 it", file, mode)
	}
	b, err := readRegular(file, 2*secretBytes)
	if err != nil {
		return nil, err
	}
	if len(b) != secretBytes {
		return nil, fmt.Errorf("%s has %d bytes; the secret of a node has %d", file, len(b), secretBytes)
	}
	return (*[secretBytes]byte)(b), nil
}

func (a *app) printRestored(f *restoreFlags, r *backup.Restored) error {
	if a.json() {
		logs := make([]map[string]any, len(r.Logs))
		for i, l := range r.Logs {
			logs[i] = map[string]any{"name": l.Name, "origin": l.Origin, "size": l.Size, "root": l.Root, "witnesses": l.Witnesses, "predecessor": l.Predecessor, "frozen": l.Frozen}
		}
		return a.printJSON(map[string]any{"directory": f.data, "clusterId": r.ClusterID.String(), "nodeId": r.NodeID.String(), "logs": logs, "leftOut": r.LeftOut, "newSecret": r.NewSecret})
	}
	lines := []string{fmt.Sprintf("RESTORED: %s: cluster %s, node %s", f.data, r.ClusterID, r.NodeID)}
	for _, l := range r.Logs {
		line := fmt.Sprintf("  %s: %d entries, origin %s", l.Name, l.Size, l.Origin)
		switch {
		case l.Predecessor != "":
			line += ", succeeds " + l.Predecessor
		case l.Frozen:
			line += ", frozen"
		case len(l.Witnesses) == 0:
			line += ", on your word"
		}
		lines = append(lines, line)
	}
	for _, name := range r.LeftOut {
		lines = append(lines, fmt.Sprintf("  %s is left out: the run that copied it did not finish", name))
	}
	switch {
	case r.NewSecret:
		lines = append(lines, "  A new secret was made: keep a copy of "+f.data+"/secret offline. The frozen logs cannot be signed with it.")
	case f.secretFile == "":
		lines = append(lines, "  There is no secret: put it into "+f.data+"/secret (mode 0600), or key files into key-dir, before anything can be signed.")
	}
	for _, line := range lines {
		if _, err := fmt.Fprintln(a.stdout, plain(line)); err != nil {
			return err
		}
	}
	return nil
}
