package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/spf13/pflag"

	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/node"
	"github.com/provledger/provledger/internal/raftlog"
)

// inspectCacheBytes is enough for a scan.
const inspectCacheBytes = 16 << 20

// runInspect prints what a data directory holds. The directory is locked while it is looked at; the state store is opened read-only,
// and the raft log as the next start would open it.
func runInspect(ctx context.Context, args []string, stdout, stderr io.Writer, exit func(int)) int {
	fs := pflag.NewFlagSet("ledgerd inspect", pflag.ContinueOnError)
	fs.SetOutput(stderr)
	verify := fs.Bool("verify", false, "hash every entry of every log again and compare with what is recorded")
	fs.Usage = func() {
		fmt.Fprintf(stdout, "Usage: ledgerd inspect [--verify] DIR\n\n%s\nExample:\n  ledgerd inspect --verify ./ledger-data\n", fs.FlagUsages())
	}
	switch err := fs.Parse(args); {
	case errors.Is(err, pflag.ErrHelp):
		return exitOK
	case err != nil:
		fmt.Fprintf(stderr, "ledgerd inspect: %v\n", err)
		return exitUsage
	case fs.NArg() != 1:
		fmt.Fprintf(stderr, "ledgerd inspect: takes one DIR, got %q\n", fs.Args())
		return exitUsage
	}
	dir := fs.Arg(0)
	id, release, err := node.Identify(dir)
	if err == nil {
		in := &inspection{dir: dir, id: id, out: stdout, log: slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))}
		in.die = func(reason string, err error) {
			fmt.Fprintf(stderr, "ledgerd inspect: %s: %v\n", reason, err)
			exit(exitFailed)
		}
		err = errors.Join(in.run(ctx, *verify), release())
	}
	if err != nil {
		fmt.Fprintf(stderr, "ledgerd inspect: %v\n", err)
		if errors.Is(err, node.ErrBusy) {
			return exitBusy
		}
		return exitFailed
	}
	return exitOK
}

type inspection struct {
	dir string
	id  node.Identity
	out io.Writer
	log *slog.Logger
	die func(reason string, err error)
}

func (in *inspection) printf(format string, args ...any) { fmt.Fprintf(in.out, format, args...) }

func (in *inspection) run(ctx context.Context, verify bool) (err error) {
	in.printf("directory   %s\nformat      %d\ncluster     %s\nnode        %s\n", in.dir, in.id.Format, in.id.ClusterID, in.id.NodeID)
	first, last, err := in.raftLog()
	if err != nil {
		return err
	}
	l, err := ledger.Open(ledger.Options{
		FS: vfs.Default, Dir: filepath.Join(in.dir, node.StateDir), ClusterID: in.id.ClusterID, ReadOnly: true,
		MemTableBytes: 1 << 20, BlockCacheBytes: inspectCacheBytes, Logger: in.log, Die: in.die,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Abandon()) }()
	durable, err := l.Durable()
	if err != nil {
		return err
	}
	in.printf("state       applied up to %d (term %d)\n", durable.Index, durable.Term)
	switch {
	case last < durable.Index:
		return fmt.Errorf("the raft log ends at %d, before what is applied: it lost its end", last)
	case first > durable.Index+1:
		return fmt.Errorf("the raft log begins at %d, after what is applied: entries are missing", first)
	case last > durable.Index:
		in.printf("            %d raft entries are replayed at the next start\n", last-durable.Index)
	}
	for _, g := range l.Logs() {
		t, err := l.Tree(g.Number)
		if err != nil {
			return fmt.Errorf("log %s: %w", g.Name, err)
		}
		in.printf("log         %s: number %d, %d entries, root %s\n            origin %s\n            key    %s\n",
			g.Name, g.Number, t.Head().Size, t.Head().Root, g.Origin, g.VKey)
	}
	if !verify {
		return nil
	}
	if err := l.Check(ctx); err != nil {
		return err
	}
	in.printf("verified    every entry, body, tile, root and event id\n")
	return nil
}

// raftLog opens the raft log as a start would, which finds damage, and says what is in it.
func (in *inspection) raftLog() (first, last uint64, err error) {
	dir := filepath.Join(in.dir, node.RaftDir)
	if _, err := os.Stat(dir); err != nil {
		return 0, 0, fmt.Errorf("raft log: %w", err) // opening would make a new one
	}
	s, err := raftlog.Open(raftlog.Options{Dir: dir, Logger: in.log, Die: in.die})
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if first, err = s.FirstIndex(); err != nil {
		return 0, 0, err
	}
	if last, err = s.LastIndex(); err != nil {
		return 0, 0, err
	}
	in.printf("raft log    entries %d to %d, %d MiB\n", first, last, s.Bytes()>>20)
	return first, last, nil
}
