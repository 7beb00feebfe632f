package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/user"
	"time"

	"github.com/spf13/pflag"

	"github.com/provledger/provledger/internal/node"
	"github.com/provledger/provledger/internal/recovery"
)

// maxCheckpointBytes is far above a checkpoint with many cosignatures.
const maxCheckpointBytes = 64 << 10

const recoverManual = `Usage: ledgerd recover --data DIR (--checkpoint FILE... | --no-witness) --reason TEXT

Makes a stopped node the only voter of its cluster. For one case only: a majority of the voters is gone for good. As long as a majority can be brought
back, do that: nothing is lost then. Before you run it, make sure that the other members never start again from what they had, and run it
on the survivor whose raft log reaches furthest ("ledgerd inspect" shows it).

Everything that this node has is kept, its newest raft entries included. What it never received is lost, and may have been acknowledged: --checkpoint names
a file with a checkpoint that somebody saw last (a monitor's, "ledgerctl checkpoint" of another machine); if it covers more than this node has, the recovery is
refused. What this node signed itself is compared too. --no-witness goes on without a checkpoint, on your word.

The next start records the recovery in the system log. Then add new nodes; the lost ones are no members any more, and can join only as new ones.

`

// runRecover makes a survivor the only voter.
func runRecover(ctx context.Context, args []string, stdout, stderr io.Writer, exit func(int)) int {
	fs := pflag.NewFlagSet("ledgerd recover", pflag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.SortFlags = false
	data := fs.String("data", "", "data directory of the survivor; no process may have it open")
	files := fs.StringArray("checkpoint", nil, "`FILE` with a checkpoint that somebody saw; may be repeated")
	noWitness := fs.Bool("no-witness", false, "recover without a checkpoint")
	reason := fs.String("reason", "", "`TEXT` for the record: what happened")
	by := fs.String("by", "", "`NAME` for the record; the operating system user if it is not given")
	dry := fs.Bool("dry-run", false, "say what would be done, and do nothing")
	fs.Usage = func() { fmt.Fprintf(stdout, "%s%s", recoverManual, fs.FlagUsages()) }
	fail := func(code int, format string, a ...any) int {
		fmt.Fprintf(stderr, "ledgerd recover: "+format+"\n", a...)
		return code
	}
	switch err := fs.Parse(args); {
	case errors.Is(err, pflag.ErrHelp):
		return exitOK
	case err != nil:
		return fail(exitUsage, "%v", err)
	case fs.NArg() > 0:
		return fail(exitUsage, "takes no argument, got %q", fs.Args())
	case *data == "" || *reason == "" && !*dry:
		return fail(exitUsage, "needs --data DIR and --reason TEXT; see ledgerd recover --help")
	case len(*files) == 0 && !*noWitness:
		return fail(exitUsage, "needs --checkpoint FILE, or --no-witness; see ledgerd recover --help")
	}
	if *by == "" {
		if u, err := user.Current(); err == nil {
			*by = u.Username
		}
	}
	o := recovery.Options{
		Dir: *data, StateDir: node.StateDir, RaftDir: node.RaftDir, SignerDir: node.SignerDir, Checkpoints: map[string][]byte{}, NoWitness: *noWitness,
		Reason: *reason, By: *by, DryRun: *dry, Now: time.Now,
		Logger: slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn, ReplaceAttr: plainErrors})),
		Die: func(reason string, err error) {
			fmt.Fprintf(stderr, "ledgerd recover: %s: %v\n", reason, err)
			exit(exitDied)
		},
	}
	for _, file := range *files {
		note, err := readSmall(file, maxCheckpointBytes)
		if err != nil {
			return fail(exitFailed, "%v", err)
		}
		o.Checkpoints[file] = note
	}
	id, release, err := node.Identify(*data)
	if err == nil {
		o.ClusterID, o.NodeID = id.ClusterID, id.NodeID
		var out *recovery.Outcome
		if out, err = recovery.Run(ctx, o); err == nil {
			printRecovery(stdout, out, *dry)
		}
		err = errors.Join(err, release())
	}
	switch {
	case errors.Is(err, node.ErrBusy):
		return fail(exitBusy, "%v", err)
	case errors.Is(err, recovery.ErrAlone):
		return fail(exitFailed, "%v: just start it", err)
	case err != nil:
		return fail(exitFailed, "%v", err)
	}
	return exitOK
}

func readSmall(file string, most int64) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, most))
}

func printRecovery(w io.Writer, out *recovery.Outcome, dry bool) {
	head := "recovered"
	if dry {
		head = "would recover"
	}
	r := &out.Record
	fmt.Fprintf(w, "%s   node %s alone, by the membership of raft index %d, term %d\n", head, r.Node, r.Index, r.Term)
	fmt.Fprintf(w, "kept        raft entries up to %d; %d of them are beyond the state store and are committed at the next start\n", r.Kept, out.Replayed)
	for _, m := range r.Lost {
		what := "voter"
		if !m.Voter {
			what = "non-voter"
		}
		fmt.Fprintf(w, "lost        %s %s at %s\n", what, m.ID, m.Address)
	}
	for _, l := range out.Logs {
		witness := "nobody said how far it was released"
		if l.Witness != "" {
			witness = "not short of " + l.Witness
		}
		fmt.Fprintf(w, "log         %s: %d entries, root %s (%s)\n", l.Name, l.Size, l.Root, witness)
	}
}
