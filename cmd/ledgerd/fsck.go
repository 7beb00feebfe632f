package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/spf13/pflag"

	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/node"
	"github.com/provledger/provledger/internal/raftlog"
	"github.com/provledger/provledger/internal/signer"
)

// exitUnsure is the exit code of fsck when something could not be looked at.
const exitUnsure = 2

const fsckManual = `Usage: ledgerd fsck DIR

Examines a data directory that no process has open: the raft log, every entry, body, tile, root and event id of the state store, what was signed, and the
secret. It repairs nothing, and says what to do. The state store is opened read-only; the raft log is opened as the next start would open it, which writes
its marks again and nothing else. Exit codes: 0 sound, 1 damaged, 2 could not tell, 75 a process has the directory.

`

// fsck is one examination. Each part says what it found; later ones go on after a fault.
type fsck struct {
	dir            string
	stdout, stderr io.Writer
	log            *slog.Logger
	die            func(reason string, err error)
	damaged, torn  bool
}

func runFsck(ctx context.Context, args []string, stdout, stderr io.Writer, exit func(int)) int {
	fs := pflag.NewFlagSet("ledgerd fsck", pflag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() { fmt.Fprint(stdout, fsckManual) }
	switch err := fs.Parse(args); {
	case errors.Is(err, pflag.ErrHelp):
		return exitOK
	case err != nil:
		fmt.Fprintf(stderr, "ledgerd fsck: %v\n", err)
		return exitUsage
	case fs.NArg() != 1:
		fmt.Fprintf(stderr, "ledgerd fsck: takes one DIR, got %q\n", fs.Args())
		return exitUsage
	}
	f := &fsck{
		dir: fs.Arg(0), stdout: stdout, stderr: stderr,
		log: slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelError, ReplaceAttr: plainErrors})),
		die: func(reason string, err error) {
			fmt.Fprintf(stderr, "ledgerd fsck: %s: %v\n", reason, err)
			exit(exitUnsure)
		},
	}
	if _, err := os.Stat(f.dir); err != nil {
		fmt.Fprintf(stderr, "ledgerd fsck: %v\n", err)
		return exitUnsure
	}
	id, release, err := node.Identify(f.dir)
	switch {
	case errors.Is(err, node.ErrBusy):
		fmt.Fprintf(stderr, "ledgerd fsck: %v; stop that process first\n", err)
		return exitBusy
	case errors.Is(err, node.ErrFormat):
		f.fault("FORMAT", err, "Put FORMAT back from where this directory was copied or restored; it says which ledger and which node this is.")
		return exitFailed
	case err != nil:
		fmt.Fprintf(stderr, "ledgerd fsck: %v\n", err)
		return exitUnsure
	}
	fmt.Fprintf(stdout, "FORMAT      ok: cluster %s, node %s\n", id.ClusterID, id.NodeID)
	f.examine(ctx, id)
	if err := release(); err != nil {
		fmt.Fprintf(stderr, "ledgerd fsck: %v\n", err)
	}
	switch {
	case f.damaged:
		return exitFailed
	case f.torn || ctx.Err() != nil:
		return exitUnsure
	}
	fmt.Fprintf(stdout, "sound\n")
	return exitOK
}

// fault says what is damaged and what to do about it.
func (f *fsck) fault(what string, err error, advice string) {
	f.damaged = true
	text, _, _ := strings.Cut(err.Error(), "\n") // what the store adds about a corruption is for its authors
	fmt.Fprintf(f.stdout, "%-11s DAMAGED: %s\n            %s\n", what, text, advice)
}

func (f *fsck) unsure(what string, err error) {
	f.torn = true
	fmt.Fprintf(f.stdout, "%-11s could not tell: %v\n", what, err)
}

func (f *fsck) examine(ctx context.Context, id node.Identity) {
	first, last, known := f.raft()
	l, err := ledger.Open(ledger.Options{
		FS: vfs.Default, Dir: filepath.Join(f.dir, node.StateDir), ClusterID: id.ClusterID, ReadOnly: true,
		MemTableBytes: 1 << 20, BlockCacheBytes: inspectCacheBytes, Logger: f.log, Die: f.die,
	})
	const repair = "The raft log is what the node is; the state can be had again. In a cluster move state/ away and start the node: it fetches the state from its peers, proves it, " +
		"and keeps its identity. A node that is alone is restored from a backup (`ledgerctl restore`, docs/backup.md)."
	if errors.Is(err, ledger.ErrCorrupt) || errors.Is(err, os.ErrNotExist) {
		f.fault("state", err, repair)
		return
	} else if err != nil {
		f.unsure("state", err)
		return
	}
	defer func() {
		if err := l.Abandon(); err != nil {
			f.unsure("state", err)
		}
	}()
	d, err := l.Durable()
	if err != nil {
		f.unsure("state", err)
		return
	}
	fmt.Fprintf(f.stderr, "reading the whole state store once\n")
	start := time.Now()
	switch err := l.Check(ctx); {
	case errors.Is(err, ledger.ErrCorrupt):
		f.fault("state", err, repair)
	case err != nil:
		f.unsure("state", err)
	default:
		fmt.Fprintf(f.stdout, "state       ok: %d logs, applied up to %d; every entry, body, tile, root and event id, in %v\n", len(l.Logs()), d.Index, time.Since(start).Round(time.Millisecond))
	}
	if known && last > 0 {
		switch {
		case last < d.Index:
			f.fault("raft", fmt.Errorf("it ends at %d, the state store is at %d: it has lost its end", last, d.Index), lostIdentity)
		case first > d.Index+1:
			f.fault("state", fmt.Errorf("it ends at %d, the raft log begins at %d", d.Index, first), repair)
		}
	}
	f.signed(l, known && last > d.Index)
	f.secret(l)
}

const lostIdentity = "The node must not start under its id again: it could vote and acknowledge twice. Remove it (`ledgerctl cluster remove`), empty the directory and let it join as a new node. " +
	"If it was the only node: restore a backup, with signer/ of this directory as --signer-dir."

// raft examines the raft log.
func (f *fsck) raft() (first, last uint64, known bool) {
	dir := filepath.Join(f.dir, node.RaftDir)
	if _, err := os.Stat(dir); err != nil { // opening would make a new one
		f.fault("raft", err, lostIdentity)
		return 0, 0, false
	}
	s, err := raftlog.Open(raftlog.Options{Dir: dir, Logger: f.log, Die: f.die})
	if errors.Is(err, raftlog.ErrCorrupt) {
		f.fault("raft", err, lostIdentity)
		return 0, 0, false
	} else if err != nil {
		f.unsure("raft", err)
		return 0, 0, false
	}
	first, err = s.FirstIndex()
	if err == nil {
		last, err = s.LastIndex()
	}
	if err = errors.Join(err, s.Close()); err != nil {
		f.unsure("raft", err)
		return 0, 0, false
	}
	fmt.Fprintf(f.stdout, "raft        ok: entries %d to %d\n", first, last)
	return first, last, true
}

// signed compares what was signed with the trees. more says that the raft log holds entries which the trees do not have yet.
func (f *fsck) signed(l *ledger.Ledger, more bool) {
	compared := 0
	for _, g := range l.Logs() {
		size, root, ok, err := signer.ReadRecord(vfs.Default, filepath.Join(f.dir, node.SignerDir), g.Origin)
		switch {
		case errors.Is(err, signer.ErrRecord):
			f.fault("signer", err, "What was signed for this log is not known. If its state is sound and it has peers, its largest checkpoint is theirs; put the file back from a copy of signer/.")
			continue
		case err != nil:
			f.unsure("signer", err)
			continue
		case !ok || size == 0:
			continue
		}
		t, err := l.Tree(g.Number)
		if err != nil {
			return // said of the state already
		}
		if size > t.Head().Size {
			if more {
				continue // the next start replays
			}
			f.fault("signer", fmt.Errorf("log %s was signed at size %d, the tree has %d", g.Name, size, t.Head().Size),
				"This directory is older than what it signed: a copy that was put back, or a lost disk write. Do not force it; let it fetch from its peers, or restore.")
			continue
		}
		got, err := t.RootAt(size)
		switch {
		case err != nil:
			f.unsure("signer", err)
		case got != root:
			f.fault("signer", fmt.Errorf("log %s at size %d was signed with root %s, the tree has %s", g.Name, size, root, got),
				"Two histories under one key. Keep this directory as evidence, and do not start it.")
		default:
			compared++
		}
	}
	fmt.Fprintf(f.stdout, "signer      %d logs compared with what was signed\n", compared)
}

// secret looks at the secret: whether others may read it, and whether it is the one of this ledger.
func (f *fsck) secret(l *ledger.Ledger) {
	path := filepath.Join(f.dir, "secret")
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		fmt.Fprintf(f.stdout, "secret      none: this node signs with key files, or not at all\n")
		return
	}
	if err != nil {
		f.unsure("secret", err)
		return
	}
	if mode := info.Mode().Perm(); runtime.GOOS != "windows" && mode&0o077 != 0 {
		f.fault("secret", fmt.Errorf("others can read it (mode %04o)", mode), "chmod 600 it. Whoever read it can sign as this ledger: if somebody may have, begin a new origin.")
		return
	}
	b, err := readSmall(path, signer.SecretBytes+1)
	if err != nil {
		f.unsure("secret", err)
		return
	}
	const putBack = "Put the right one back from where you keep it."
	if len(b) != signer.SecretBytes {
		f.fault("secret", fmt.Errorf("it has %d bytes, not %d", len(b), signer.SecretBytes), putBack)
		return
	}
	g, err := l.LogByNumber(ledger.SystemLog)
	if err != nil {
		return // a ledger that was never begun
	}
	key, err := signer.DeriveKey((*[signer.SecretBytes]byte)(b), g.Origin)
	if err == nil && key.VKey() != g.VKey {
		err = fmt.Errorf("it gives %s, log %s has %s", key.VKey(), g.Name, g.VKey)
	}
	if err != nil {
		f.fault("secret", err, putBack)
		return
	}
	fmt.Fprintf(f.stdout, "secret      ok\n")
}
