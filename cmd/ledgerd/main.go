// Ledgerd serves a provenance ledger: gRPC for recording and proving, HTTP for metrics and health.
//
//	ledgerd [--data DIR] [flags]    serve; without flags ./ledger-data on 127.0.0.1:7600 (gRPC) and :7601 (HTTP)
//	ledgerd inspect [--verify] DIR  look into a data directory that no process has open
//	ledgerd fsck DIR                examine a data directory, and say what to do about it
//	ledgerd recover --data DIR ..   go on after the loss of a majority
//	ledgerd version
//
// [Config] is the manual of every setting; `ledgerd --print-config` prints it. Exit codes: 0 stopped cleanly, 1 failed, 64 wrong
// usage or configuration, 70 ended itself because going on could lose or falsify data (the log says why), 75 another process
// has the data directory.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/pflag"
)

// Exit codes; 64, 70 and 75 mean what sysexits.h says.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 64
	exitDied   = 70
	exitBusy   = 75
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Environ(), os.Stdout, os.Stderr, os.Exit))
}

// run is the program as a value. exit is called only when the process has to end at once, without unwinding (see node.Config.Die).
func run(ctx context.Context, args, environ []string, stdout, stderr io.Writer, exit func(int)) int {
	verb := ""
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		verb, args = args[0], args[1:]
	}
	switch verb {
	case "":
		return runServe(ctx, args, environ, stdout, stderr, exit)
	case "inspect":
		return runInspect(ctx, args, stdout, stderr, exit)
	case "fsck":
		return runFsck(ctx, args, stdout, stderr, exit)
	case "recover":
		return runRecover(ctx, args, stdout, stderr, exit)
	case "version":
		fmt.Fprintln(stdout, version())
		return exitOK
	}
	fmt.Fprintf(stderr, "ledgerd: there is no %q; ledgerd serves, ledgerd inspect DIR, ledgerd fsck DIR, ledgerd recover, ledgerd version, ledgerd --help\n", verb)
	return exitUsage
}

func runServe(ctx context.Context, args, environ []string, stdout, stderr io.Writer, exit func(int)) int {
	defaults := Defaults()
	all := settings()
	fs := pflag.NewFlagSet("ledgerd", pflag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.SortFlags = false
	fs.Usage = func() {
		fmt.Fprintf(stdout, "Usage: ledgerd [flags]\n       ledgerd inspect [--verify] DIR\n       ledgerd fsck DIR\n       ledgerd recover --data DIR ...\n       ledgerd version\n\n%s\n"+
			"ledgerd --print-config prints the whole manual.\n", fs.FlagUsages())
	}
	typed := flags(fs, all, &defaults)
	path := fs.String("config", "", "YAML file with settings ["+envPrefix+"CONFIG]")
	show := fs.Bool("print-config", false, "print the configuration in force, with its manual, and stop")
	switch err := fs.Parse(args); {
	case errors.Is(err, pflag.ErrHelp):
		return exitOK
	case err != nil:
		fmt.Fprintf(stderr, "ledgerd: %v\n", err)
		return exitUsage
	case fs.NArg() > 0:
		fmt.Fprintf(stderr, "ledgerd: takes no argument, got %q\n", fs.Args())
		return exitUsage
	}
	if !fs.Changed("config") {
		for _, kv := range environ {
			if text, ok := strings.CutPrefix(kv, envPrefix+"CONFIG="); ok {
				*path = text
			}
		}
	}
	c, strange, err := load(*path, environ, fs, typed, all)
	if err != nil {
		fmt.Fprintf(stderr, "ledgerd: the configuration has faults:\n")
		for line := range strings.Lines(err.Error() + "\n") {
			fmt.Fprintf(stderr, "  %s", line)
		}
		return exitUsage
	}
	if *show {
		if err := printConfig(stdout, &c); err != nil {
			fmt.Fprintf(stderr, "ledgerd: %v\n", err)
			return exitFailed
		}
		return exitOK
	}
	log := newLogger(&c, stderr)
	for _, name := range strange {
		log.Warn("environment variable means nothing to ledgerd", "name", name)
	}
	return serve(ctx, &c, log, exit)
}

// version says what this binary was built from, as far as the build knows.
func version() string {
	v, revision, dirty := "devel", "", ""
	if info, ok := debug.ReadBuildInfo(); ok {
		if info.Main.Version != "" && info.Main.Version != "(devel)" {
			v = info.Main.Version
		}
		for _, s := range info.Settings {
			switch {
			case s.Key == "vcs.revision":
				revision = " " + s.Value
			case s.Key == "vcs.modified" && s.Value == "true":
				dirty = " (modified)"
			}
		}
	}
	return fmt.Sprintf("ledgerd %s%s%s %s %s/%s", v, revision, dirty, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
