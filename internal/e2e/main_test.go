package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// startTimeout is how long a start may take. Starting replays at most a few memtables; a busy machine takes its time.
const startTimeout = 60 * time.Second

// Paths of the binaries under test.
var ledgerd, ledgerctl string

func TestMain(m *testing.M) {
	flag.Parse()
	// Tests of clusters run side by side after the others: they wait far more than they compute, for elections and promotions.
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		if err := f.Value.Set("3"); err != nil {
			panic(err)
		}
	}
	os.Exit(func() int {
		bin, err := os.MkdirTemp("", "provledger-e2e-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(bin)
		build := exec.Command("go", "build", "-buildvcs=false", "-o", bin+"/", "../../cmd/ledgerd", "../../cmd/ledgerctl")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
			return 1
		}
		ledgerd, ledgerctl = filepath.Join(bin, "ledgerd"), filepath.Join(bin, "ledgerctl")
		return m.Run()
	}())
}

// rounds returns how often a test repeats its fault.
func rounds(t testing.TB, normal, full int) int {
	if s := os.Getenv("PROVLEDGER_E2E_ROUNDS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			t.Fatalf("PROVLEDGER_E2E_ROUNDS=%q is not a number above zero", s)
		}
		return n
	}
	switch {
	case os.Getenv("PROVLEDGER_E2E") == "full":
		return full
	case testing.Short():
		return 1
	}
	return normal
}

// dice returns the test's randomness and says how to get the same again.
func dice(t testing.TB) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("PROVLEDGER_E2E_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("PROVLEDGER_E2E_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// output collects what a process writes; the test reads it while the process lives.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// daemon is one ledgerd process.
type daemon struct {
	t          testing.TB
	cmd        *exec.Cmd
	log        *output
	grpc, http string
	done       chan struct{} // closed when the process is gone
	err        error         // how it went; read after done
}

// spawn starts a ledgerd and does not wait for it to serve. wrap, if any, is a command line that ledgerd's is appended to.
func spawn(t testing.TB, dir string, wrap []string, args ...string) *daemon {
	t.Helper()
	addresses := filepath.Join(t.TempDir(), "addresses")
	line := append(append([]string{}, wrap...), ledgerd, "--data", dir, "--address-file", addresses, "--log-level", "debug")
	d := &daemon{t: t, log: new(output), done: make(chan struct{})}
	d.cmd = exec.Command(line[0], append(line[1:], args...)...)
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	d.cmd.Env = append(os.Environ(), "LEDGERD_CONFIG=")
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		d.err = d.cmd.Wait()
		close(d.done)
	}()
	t.Cleanup(func() {
		d.kill()
		if t.Failed() {
			t.Logf("ledgerd %d said:\n%s", d.cmd.Process.Pid, d.tail())
		}
	})
	return d
}

// await waits until the process serves, and learns its addresses; it returns false when the process ended instead.
func (d *daemon) await() bool {
	d.t.Helper()
	var file string
	for i, a := range d.cmd.Args {
		if a == "--address-file" {
			file = d.cmd.Args[i+1]
		}
	}
	for deadline := time.Now().Add(startTimeout); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if b, err := os.ReadFile(file); err == nil {
			var a struct{ GRPC, HTTP string }
			if err := json.Unmarshal(b, &a); err != nil {
				d.t.Fatalf("address file %q: %v", b, err)
			}
			d.grpc, d.http = a.GRPC, a.HTTP
			return true
		}
		select {
		case <-d.done:
			return false
		default:
		}
	}
	d.t.Fatalf("ledgerd did not serve within %v", startTimeout)
	return false
}

// start runs ledgerd on dir until it serves. An empty address takes a free port.
func start(t testing.TB, dir, grpcAddress string, args ...string) *daemon {
	t.Helper()
	if grpcAddress == "" {
		grpcAddress = "127.0.0.1:0"
	}
	d := spawn(t, dir, nil, append([]string{"--grpc-address", grpcAddress, "--http-address", "127.0.0.1:0"}, args...)...)
	if !d.await() {
		t.Fatalf("ledgerd ended at start: %v\n%s", d.err, d.tail())
	}
	return d
}

// tail is the end of the log: enough to see why, little enough to read.
func (d *daemon) tail() string {
	const most = 8 << 10
	s := d.log.String()
	if len(s) > most {
		s = "..." + s[len(s)-most:]
	}
	return s
}

// kill ends the process as a power cut would end it, as far as a process can: without a chance to write another byte.
func (d *daemon) kill() {
	if err := d.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		d.t.Error(err)
	}
	<-d.done
}

// terminate asks the process to end and returns its exit code.
func (d *daemon) terminate() int {
	d.t.Helper()
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		d.t.Fatal(err)
	}
	return d.exitCode()
}

// exitCode waits for the process to end by itself.
func (d *daemon) exitCode() int {
	d.t.Helper()
	select {
	case <-d.done:
	case <-time.After(startTimeout):
		d.t.Fatalf("ledgerd did not end within %v", startTimeout)
	}
	return d.cmd.ProcessState.ExitCode()
}

// dial connects to the daemon's gRPC port.
func (d *daemon) dial() *grpc.ClientConn {
	d.t.Helper()
	conn, err := grpc.NewClient(d.grpc, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { conn.Close() })
	return conn
}

// ctl runs ledgerctl and returns what it wrote and its exit code.
func ctl(t *testing.T, dir string, env []string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, ledgerctl, args...)
	var out, errs bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &out, &errs
	cmd.Env = append(append(os.Environ(), "LEDGER="), env...)
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// run runs a program to its end and returns all that it wrote and its exit code.
func run(t *testing.T, program string, args ...string) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}
