package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/provledger/provledger/client"
	"github.com/provledger/provledger/client/receipt"
)

// Exit codes. `run` passes the code of the command that it ran through instead, see there.
const (
	exitOK          = 0
	exitNotVerified = 1
	exitUnknown     = 2
	exitUsage       = 64 // EX_USAGE of sysexits.h
	exitSpooled     = 75 // EX_TEMPFAIL: nothing is lost, the ledger does not have it yet
)

// exitError is an error with an exit code. A nil err says that everything has been said.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

func usage(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, args...)}
}

// app is one invocation: the streams, the global flags, and where they lead.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer

	ledger      string
	log         string
	output      string
	lockTimeout time.Duration
	timeout     time.Duration
	trust       string
	stateDir    string
	tlsCA       string
	newLedger   bool

	noted map[string]bool // see noteOnce

	minFree uint64 // free bytes that an embedded ledger wants to append; 0: as the node has it
}

// run is the program: it returns the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr, noted: map[string]bool{}}
	out := &checkedWriter{Writer: stdout}
	a.stdout = out
	root := a.root()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(out)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil && out.err != nil {
		err = fmt.Errorf("the output could not be written: %w", out.err)
	}
	if err == nil {
		return exitOK
	}
	code, said := exitUnknown, false
	var e *exitError
	var untrusted *client.UntrustedError
	switch {
	case errors.As(err, &e):
		code, said = e.code, e.err == nil
	case errors.As(err, &untrusted):
		code = exitNotVerified
	}
	switch {
	case said:
	case a.json():
		view := map[string]any{"error": message(err), "exitCode": code}
		if hint := advice(err); hint != "" {
			view["hint"] = hint
		}
		a.noteJSON(view)
	default:
		// Names from a ledger may be in it, so it is made safe for a terminal, line by line.
		for i, line := range strings.Split("ledgerctl: "+message(err), "\n") {
			fmt.Fprintln(stderr, strings.Repeat("  ", min(i, 1))+plain(line))
		}
		if hint := advice(err); hint != "" {
			fmt.Fprintf(stderr, "  %s\n", hint)
		}
	}
	return code
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "ledgerctl",
		Short: "Record, prove and verify where data and models come from",
		Long: `ledgerctl records what pipelines do in a provenance ledger, proves it, and verifies what others proved.

The ledger (--ledger, or LEDGER in the environment) is
  HOST:PORT    a ledgerd: a colon and a port number at the end, no path separator; of a cluster any node will do, and several, separated by
               commas, are tried in turn
  a directory  everything else: an embedded ledger, opened in this process while it is needed, no daemon. It is created if it does
               not exist; a new directory is written with a separator (./NAME), so that a mistyped host is not taken for one.
The default is ./.ledger.

An ARTIFACT is one of
  ./PATH                      a file or directory here (also ../PATH and absolute paths): its bytes are hashed
  sha256:HEX                  its digest (or dirHash:HEX ..); 8 or more digits that are unique will do
  NAME[:VERSION|@ALIAS]       its recorded name; @ALIAS is what was last promoted to that alias
If it may be several, they are listed and the exit code is 2.

Times are RFC 3339. Exit codes: 0 verified or done, 1 NOT verified, 2 could not tell or could not do, 64 wrong usage, 75 kept in the
spool because the ledger could not be reached (` + "`ledgerctl record --spool`" + ` sends it).`,
		Example: `  ledgerctl quickstart
  ledgerctl run --job train --input data/train.csv --output model.json -- python train.py
  ledgerctl trace ./model.json`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usage("there is no verb %q; `ledgerctl --help` lists them", args[0])
			}
			return nil
		},
		RunE:              func(c *cobra.Command, _ []string) error { return c.Help() },
		PersistentPreRunE: func(*cobra.Command, []string) error { return a.checkFlags() },
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	f := root.PersistentFlags()
	f.StringVar(&a.ledger, "ledger", envOr("LEDGER", defaultLedger), "`ADDRESS[,ADDRESS..]|DIRECTORY` of the ledger; env LEDGER")
	f.StringVar(&a.log, "log", envOr("LEDGER_LOG", client.DefaultLog), "`NAME` of the log; env LEDGER_LOG")
	f.StringVarP(&a.output, "format", "o", "table", "`FORMAT` of the output: table or json")
	f.DurationVar(&a.lockTimeout, "lock-timeout", 30*time.Second, "how long to wait for a ledger directory that another process has open")
	f.DurationVar(&a.timeout, "timeout", client.DefaultTimeout, "how long to try to get one answer from the ledger, retries included")
	f.StringVar(&a.trust, "trust", os.Getenv("LEDGER_TRUST"), "`FILE` with the pinned log keys (a C2SP tlog-policy); env LEDGER_TRUST")
	f.StringVar(&a.stateDir, "state-dir", os.Getenv(stateVariable), "`DIRECTORY` for remembered checkpoints and the spool; env "+stateVariable)
	f.StringVar(&a.tlsCA, "tls-ca", os.Getenv("LEDGER_TLS_CA"), "connect with TLS and trust the certificates in this `FILE` (\"system\": those of the system); env LEDGER_TLS_CA")
	f.BoolVar(&a.newLedger, "new-ledger", false, "accept another, or a new, ledger where one is remembered that is gone")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usage("%v; see `%s --help`", err, c.CommandPath())
	})
	root.AddCommand(a.runCommand(), a.recordCommand(), withFreshness(a.proveCommand()), withFreshness(a.verifyCommand()), withFreshness(a.traceCommand()), a.logCommand(),
		withFreshness(a.checkpointCommand()), a.entryCommand(), a.keyCommand(), a.certCommand(), a.clusterCommand(), a.backupCommand(), a.restoreCommand(), a.quickstartCommand(), a.stageCommand(), a.versionCommand())
	return root
}

// stateVariable moves the state directory, for this process and for nested ones.
const stateVariable = "LEDGER_STATE_DIR"

func envOr(name, other string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return other
}

func (a *app) checkFlags() error {
	if a.timeout <= 0 {
		return usage("--timeout %v: must be positive", a.timeout)
	}
	if a.lockTimeout < 0 {
		return usage("--lock-timeout %v: must not be negative", a.lockTimeout)
	}
	if a.output != "table" && a.output != "json" {
		return usage("-o %s: table or json", a.output)
	}
	return nil
}

func (a *app) json() bool { return a.output == "json" }

// exactly and atLeast are cobra's checks with the exit code of wrong usage and a message that says what is missing.
func exactly(n int, what string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) != n {
			return usage("%s takes %s, not %d arguments; see `%s --help`", c.Name(), what, len(args), c.CommandPath())
		}
		return nil
	}
}

func atLeast(n int, what string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) < n {
			return usage("%s takes %s; see `%s --help`", c.Name(), what, c.CommandPath())
		}
		return nil
	}
}

// maxPolicyBytes is far above what a policy with many logs and witnesses has.
const maxPolicyBytes = 1 << 20

// policy reads the file of --trust; nil if there is none.
func (a *app) policy() (*receipt.Policy, error) {
	if a.trust == "" {
		return nil, nil
	}
	text, err := readRegular(a.trust, maxPolicyBytes)
	if err != nil {
		return nil, fmt.Errorf("--trust: %w", err)
	}
	p, err := receipt.ParsePolicy(text)
	if err != nil {
		return nil, fmt.Errorf("--trust %s: %w", a.trust, err)
	}
	return p, nil
}

// isTerminal reports whether a stream is shown to a person.
func isTerminal(stream any) bool {
	if w, ok := stream.(*checkedWriter); ok {
		stream = w.Writer
	}
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
