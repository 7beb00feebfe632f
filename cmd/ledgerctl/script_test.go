package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/node"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"ledgerctl": main, "tool": tool})
}

var updateScripts = flag.Bool("update", false, "rewrite the expected output in scripts")

// The scripts are the specification of the verbs: what a user types, what comes back, and the exit code.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		UpdateScripts:       *updateScripts,
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("LEDGER_STATE_DIR", filepath.Join(env.WorkDir, "state"))
			env.Setenv("HOME", filepath.Join(env.WorkDir, "home"))
			s := &servers{open: map[string]func(){}}
			env.Values[serversKey{}] = s
			env.Defer(s.closeAll)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code": cmdCode, "flip": cmdFlip, "truncate": cmdTruncate, "serve": cmdServe, "hold": cmdHold, "release": cmdRelease, "freeport": cmdFreePort,
			"capture": cmdCapture, "mode": cmdMode, "copydir": cmdCopyDir, "await": cmdAwait,
		},
	})
}

// code N CMD ARG... runs a command and wants exactly this exit code.
func cmdCode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N CMD ARG...")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	if err != nil {
		s := err.Error() // "exit status N", or why it did not start
		if _, e := fmt.Sscanf(s, "exit status %d", &got); e != nil {
			ts.Fatalf("%s: %v", args[1], err)
		}
	}
	if want := args[0]; strconv.Itoa(got) != want {
		ts.Fatalf("exit code %d, want %s\nstdout:\n%s\nstderr:\n%s", got, want, ts.ReadFile("stdout"), ts.ReadFile("stderr"))
	}
}

// flip FILE OFFSET flips the lowest bit of a byte; a negative offset counts from the end. A * in FILE is expanded.
func cmdFlip(ts *testscript.TestScript, _ bool, args []string) {
	paths, err := filepath.Glob(ts.MkAbs(args[0]))
	ts.Check(err)
	if len(paths) == 0 {
		ts.Fatalf("no %s", args[0])
	}
	for _, path := range paths {
		raw, err := os.ReadFile(path)
		ts.Check(err)
		i, err := strconv.Atoi(args[1])
		ts.Check(err)
		if i < 0 {
			i += len(raw)
		}
		raw[i] ^= 1
		ts.Check(os.WriteFile(path, raw, 0o644))
	}
}

// truncate FILE N cuts N bytes from the end.
func cmdTruncate(ts *testscript.TestScript, _ bool, args []string) {
	path := ts.MkAbs(args[0])
	raw, err := os.ReadFile(path)
	ts.Check(err)
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	ts.Check(os.WriteFile(path, raw[:len(raw)-n], 0o644))
}

// capture VAR FILE sets a variable to the content of a file, without the line feed.
func cmdCapture(ts *testscript.TestScript, _ bool, args []string) {
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile(args[1])))
}

// mode FILE OCTAL wants these permissions; a * in FILE is expanded.
func cmdMode(ts *testscript.TestScript, _ bool, args []string) {
	paths, err := filepath.Glob(ts.MkAbs(args[0]))
	ts.Check(err)
	if len(paths) != 1 {
		ts.Fatalf("%s is %d files", args[0], len(paths))
	}
	info, err := os.Stat(paths[0])
	ts.Check(err)
	if got := fmt.Sprintf("%o", info.Mode().Perm()); got != args[1] {
		ts.Fatalf("%s has mode %s, want %s", args[0], got, args[1])
	}
}

// await PATTERN waits until a file of that form is there.
func cmdAwait(ts *testscript.TestScript, _ bool, args []string) {
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if paths, _ := filepath.Glob(ts.MkAbs(args[0])); len(paths) > 0 {
			return
		}
	}
	ts.Fatalf("no %s", args[0])
}

func cmdCopyDir(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(os.CopyFS(ts.MkAbs(args[1]), os.DirFS(ts.MkAbs(args[0]))))
}

type serversKey struct{}

// servers are the ledgers that a script keeps open within the test process.
type servers struct {
	mu   sync.Mutex
	open map[string]func()
}

func (s *servers) closeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, stop := range s.open {
		stop()
		delete(s.open, name)
	}
}

func openNode(ts *testscript.TestScript, dir string, minFree uint64) *node.Node {
	n, err := node.Open(context.Background(), node.Config{
		Dir: dir, MinFreeBytes: minFree, Authn: lineage.AuthnNone, LockTimeout: time.Second, SegmentBytes: 16 << 20, Logger: slog.New(slog.DiscardHandler),
		Die: func(reason string, err error) { panic(fmt.Sprint(reason, ": ", err)) },
	})
	ts.Check(err)
	return n
}

func (s *servers) add(name string, stop func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open[name] = stop
}

// serve DIR ADDRESS [full] serves a ledger directory over gRPC, as ledgerd does, perhaps with a disk that is taken for full; hold DIR only keeps it open; release DIR ends either.
func cmdServe(ts *testscript.TestScript, _ bool, args []string) {
	minFree := uint64(0)
	if len(args) == 3 {
		minFree = 1 << 62
	}
	n := openNode(ts, ts.MkAbs(args[0]), minFree)
	l, err := net.Listen("tcp", args[1])
	ts.Check(err)
	server := n.NewServer()
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	ts.Value(serversKey{}).(*servers).add(args[0], func() { server.Stop(); <-done; _ = n.Close(context.Background()) })
}

func cmdHold(ts *testscript.TestScript, _ bool, args []string) {
	n := openNode(ts, ts.MkAbs(args[0]), 0)
	ts.Value(serversKey{}).(*servers).add(args[0], func() { _ = n.Close(context.Background()) })
}

func cmdRelease(ts *testscript.TestScript, _ bool, args []string) {
	s := ts.Value(serversKey{}).(*servers)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open[args[0]]()
	delete(s.open, args[0])
}

// freeport VAR sets a variable to an address on which nobody listens.
func cmdFreePort(ts *testscript.TestScript, _ bool, args []string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Setenv(args[0], l.Addr().String())
	ts.Check(l.Close())
}

// tool is the command that scripts wrap: it does on every system what they need.
func tool() {
	args := os.Args[1:]
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, "tool:", err)
			os.Exit(99)
		}
	}
	for len(args) > 0 {
		verb := args[0]
		args = args[1:]
		next := func() string { s := args[0]; args = args[1:]; return s }
		switch verb {
		case "exit":
			n, err := strconv.Atoi(next())
			fail(err)
			os.Exit(n)
		case "write":
			path := next()
			fail(os.MkdirAll(filepath.Dir(path), 0o755))
			fail(os.WriteFile(path, []byte(next()+"\n"), 0o644))
		case "copy":
			raw, err := os.ReadFile(next())
			fail(err)
			fail(os.WriteFile(next(), raw, 0o644))
		case "remove":
			fail(os.Remove(next()))
		case "removeall":
			fail(os.RemoveAll(next()))
		case "remove-state": // so that nothing can be kept in it either
			dir := os.Getenv(stateVariable)
			fail(os.RemoveAll(dir))
			fail(os.WriteFile(dir, nil, 0o600))
		case "spooled": // JOB: the id of the spooled event of a job
			job := next()
			paths, err := filepath.Glob(filepath.Join(os.Getenv(stateVariable), "spool", "*"+spoolSuffix))
			fail(err)
			for _, path := range paths {
				f, err := readSpooled(path)
				fail(err)
				if f.event.Job.Name == job {
					fmt.Println(f.event.ID)
				}
			}
		case "manifest": // FILE: a copy of the only manifest that is kept
			paths, err := filepath.Glob(filepath.Join(os.Getenv(stateVariable), manifestsDir, "*.json"))
			if err == nil && len(paths) != 1 {
				err = fmt.Errorf("%d manifests", len(paths))
			}
			fail(err)
			fail(os.Rename(paths[0], next()))
		case "say":
			fmt.Println(next())
		case "env":
			name := next()
			fmt.Println(name + "=" + os.Getenv(name))
		case "stdin":
			var s string
			_, err := fmt.Scanln(&s)
			fail(err)
			fmt.Println("read", s)
		case "sleep":
			d, err := time.ParseDuration(next())
			fail(err)
			time.Sleep(d)
		case "many": // DIR N: so many small files
			dir := next()
			n, err := strconv.Atoi(next())
			fail(err)
			fail(os.MkdirAll(dir, 0o755))
			for i := range n {
				fail(os.WriteFile(filepath.Join(dir, fmt.Sprintf("a-rather-long-name-so-that-the-manifest-grows-%06d.txt", i)), []byte{byte(i)}, 0o644))
			}
		case "events": // FILE N: so many events as JSON Lines
			path := next()
			n, err := strconv.Atoi(next())
			fail(err)
			var b strings.Builder
			for i := range n {
				fmt.Fprintf(&b, `{"event_id":"01980000-0000-7000-a000-%012x","run":"RUN_STATE_COMPLETE","run_id":"01980000-0000-7000-9000-%012x","job":{"name":"j"}}`+"\n", i, i)
			}
			fail(os.WriteFile(path, []byte(b.String()), 0o644))
		case "signal": // the parent gets SIGTERM, this waits for it to come back
			c := make(chan os.Signal, 1)
			signal.Notify(c, syscall.SIGTERM)
			p, err := os.FindProcess(os.Getppid())
			fail(err)
			fail(p.Signal(syscall.SIGTERM))
			<-c
			signal.Reset(syscall.SIGTERM)
			fail(selfTerminate())
			time.Sleep(time.Minute)
		default:
			fail(fmt.Errorf("no verb %q", verb))
		}
	}
}
