package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// localNodes is what `ledgerctl cluster local -o json` says.
type localNodes struct {
	Nodes []struct {
		Name, GRPC string
		PID        int
	}
}

// TestClusterLocal does what somebody does who tries a cluster out: start one, record, kill a node, record, start it again, add one, stop
// all, and go on another day.
func TestClusterLocal(t *testing.T) {
	t.Parallel()
	work := t.TempDir()
	env := []string{"LEDGER_STATE_DIR=" + t.TempDir()}
	local := func(args ...string) localNodes {
		t.Helper()
		var v localNodes
		if err := json.Unmarshal([]byte(mustCtl(t, work, env, append([]string{"cluster", "local", "-o", "json"}, args...)...)), &v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	t.Cleanup(func() { ctl(t, work, env, "cluster", "local", "--stop", "try") })
	v := local("--detach", "try")
	if len(v.Nodes) != 3 {
		t.Fatalf("%d nodes", len(v.Nodes))
	}
	record := func(node int, output string) {
		t.Helper()
		mustCtl(t, work, env, "--ledger", v.Nodes[node].GRPC, "run", "--job", "try", "--output", output, "--", "sh", "-c", "echo "+output+" > "+output)
	}
	record(0, "a.txt")
	if err := syscall.Kill(v.Nodes[0].PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	record(1, "b.txt")
	if stdout, stderr, code := ctl(t, work, env, "cluster", "local", "--detach", "try"); code == 0 || !strings.Contains(stderr, "running") {
		t.Errorf("starting what runs: exit code %d\n%s%s", code, stdout, stderr)
	}
	again := local("--restart", "1", "try")
	if len(again.Nodes) != 1 || again.Nodes[0].GRPC != v.Nodes[0].GRPC || again.Nodes[0].PID == v.Nodes[0].PID {
		t.Errorf("restarted: %+v", again)
	}
	record(0, "c.txt")
	if out := mustCtl(t, work, env, "--ledger", v.Nodes[2].GRPC, "cluster", "status"); strings.Count(out, "serving") != 3 {
		t.Errorf("status:\n%s", out)
	}
	mustCtl(t, work, env, "cluster", "local", "--stop", "try")
	if out := mustCtl(t, work, env, "cluster", "local", "--stop", "try"); !strings.Contains(out, "No node") {
		t.Errorf("stopped twice: %s", out)
	}
	// Another day, another path, one node more.
	if err := os.Rename(filepath.Join(work, "try"), filepath.Join(work, "moved")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ctl(t, work, env, "cluster", "local", "--stop", "moved") })
	v = local("--detach", "--nodes", "4", "moved")
	if len(v.Nodes) != 4 {
		t.Fatalf("%d nodes", len(v.Nodes))
	}
	for _, name := range []string{"a.txt", "b.txt", "c.txt"} {
		if out := mustCtl(t, work, env, "--ledger", v.Nodes[3].GRPC, "trace", "./"+name); !strings.Contains(out, name) {
			t.Errorf("the fourth node does not know %s:\n%s", name, out)
		}
	}
}

// TestClusterLocalForeground: Ctrl-C takes everything down, and what a node does on the way is shown.
func TestClusterLocalForeground(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "try")
	out := new(output)
	cmd := exec.Command(ledgerctl, "cluster", "local", dir)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() { ctl(t, filepath.Dir(dir), nil, "cluster", "local", "--stop", dir) })
	wait := func(what string) {
		t.Helper()
		for deadline := time.Now().Add(patience); !strings.Contains(out.String(), what); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%q was not said within %v:\n%s", what, patience, out)
			}
		}
	}
	wait("Ctrl-C stops all")
	pid := func(node string) int {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(dir, node, "ledgerd.pid"))
		if err != nil {
			t.Fatal(err)
		}
		n, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if err := syscall.Kill(pid("n2"), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	wait("n2 | process ")
	wait("signal: killed")
	mustCtl(t, filepath.Dir(dir), nil, "cluster", "local", "--restart", "n2", dir)
	wait(strconv.Itoa(pid("n2")) + " runs")
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("after Ctrl-C: %v\n%s", err, out)
		}
	case <-time.After(patience):
		t.Fatalf("Ctrl-C did not end it:\n%s", out)
	}
	if !strings.Contains(out.String(), "Stopped n1, n2, n3") {
		t.Errorf("it did not stop all nodes:\n%s", out)
	}
	if out := mustCtl(t, filepath.Dir(dir), nil, "cluster", "local", "--stop", dir); !strings.Contains(out, "No node") {
		t.Errorf("nodes were left running: %s", out)
	}
}
