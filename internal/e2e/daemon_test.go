package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/health/grpc_health_v1"

	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

// TestDrain stops the process politely under load. Whoever got an answer keeps it, whoever got none is told apart, and the process
// ends with 0 within its own patience.
func TestDrain(t *testing.T) {
	r := dice(t)
	dir := t.TempDir()
	d := start(t, dir, "")
	h := newHistory()
	a := newAuditor(t, h, d.dial())
	c := newClient(t, d)
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		conn := d.dial()
		ctx, cancel := context.WithCancel(t.Context())
		wait := load(ctx, h, conn, c, r.Uint64())
		time.Sleep(200 * time.Millisecond)
		began := time.Now()
		if err := d.cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		if code := d.exitCode(); code != 0 {
			t.Errorf("%v: exit code %d", signal, code)
		}
		if took := time.Since(began); took > 15*time.Second {
			t.Errorf("%v: draining took %v", signal, took)
		}
		cancel()
		wait()
		conn.Close()
		d = start(t, dir, d.grpc)
	}
	conn := d.dial()
	a.resend(conn, h.ops)
	a.audit(conn)
	closeClient(t, c)
}

// TestSecondSignalEndsAtOnce: who asks twice does not want to wait.
func TestSecondSignalEndsAtOnce(t *testing.T) {
	d := start(t, t.TempDir(), "", "--shutdown-timeout", "10m")
	conn, h, r := d.dial(), newHistory(), dice(t)
	// A reader that does not read: the stream is far larger than what fits into a connection, so draining waits for it.
	for range 8 {
		e := newEvent(r)
		e.Documents[0].Content = bytes.Repeat([]byte("x"), 900<<10)
		if o := h.appendRaw(t.Context(), conn, e); o.err != nil {
			t.Fatal(o.err)
		}
	}
	stream, err := ledgerv1.NewLedgerServiceClient(conn).StreamEntries(t.Context(), &ledgerv1.StreamEntriesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatalf("the process did not wait for a call that was running: %v", err)
		}
		time.Sleep(300 * time.Millisecond)
	}
	select {
	case <-d.done:
	case <-time.After(10 * time.Second):
		t.Error("the process goes on draining after a second signal")
	}
}

// TestSecondProcessIsRefused: two processes on one directory would destroy it.
func TestSecondProcessIsRefused(t *testing.T) {
	dir := t.TempDir()
	d := start(t, dir, "")
	second := spawn(t, dir, nil, "--grpc-address", "127.0.0.1:0", "--http-address", "off")
	if code := second.exitCode(); code != 75 {
		t.Errorf("exit code %d, want 75", code)
	}
	if !strings.Contains(second.log.String(), dir) || !strings.Contains(second.log.String(), "another process") {
		t.Errorf("the message does not name the directory and the reason:\n%s", second.log)
	}
	// The first one has not noticed.
	h := newHistory()
	if o := h.appendRaw(t.Context(), d.dial(), newEvent(dice(t))); o.err != nil {
		t.Error(o.err)
	}
	// One that waits gets the directory when the first one lets go.
	waiting := spawn(t, dir, nil, "--grpc-address", "127.0.0.1:0", "--http-address", "off", "--lock-timeout", "1m")
	time.Sleep(200 * time.Millisecond)
	if code := d.terminate(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if !waiting.await() {
		t.Fatalf("the waiting process ended:\n%s", waiting.tail())
	}
}

// TestRefusesOpenPort: nobody publishes a ledger by a typing error.
func TestRefusesOpenPort(t *testing.T) {
	d := spawn(t, t.TempDir(), nil, "--grpc-address", "0.0.0.0:0", "--http-address", "off")
	if code := d.exitCode(); code != 64 {
		t.Errorf("exit code %d, want 64", code)
	}
	if !strings.Contains(d.log.String(), "insecure") {
		t.Errorf("the message does not name the way out:\n%s", d.log)
	}
	d = spawn(t, t.TempDir(), nil, "--grpc-address", "0.0.0.0:0", "--http-address", "off", "--insecure")
	if !d.await() {
		t.Errorf("--insecure: %s", d.tail())
	}
}

// TestOtherDirectoriesAreLeftAlone: a directory that holds something else, or a ledger that lost its FORMAT, is not made into a new ledger.
func TestOtherDirectoriesAreLeftAlone(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "thesis.tex"), []byte("years of work"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := spawn(t, dir, nil, "--grpc-address", "127.0.0.1:0", "--http-address", "off")
	if code := d.exitCode(); code != 1 {
		t.Errorf("exit code %d, want 1:\n%s", code, d.tail())
	}
	if b, err := os.ReadFile(filepath.Join(dir, "thesis.tex")); err != nil || string(b) != "years of work" {
		t.Errorf("the file is %q, %v", b, err)
	}

	dir = t.TempDir()
	r := dice(t)
	d = start(t, dir, "")
	h := newHistory()
	conn := d.dial()
	a := newAuditor(t, h, conn)
	if o := h.appendRaw(t.Context(), conn, newEvent(r)); o.err != nil {
		t.Fatal(o.err)
	}
	d.terminate()
	format, aside := filepath.Join(dir, "FORMAT"), filepath.Join(t.TempDir(), "FORMAT")
	if err := os.Rename(format, aside); err != nil {
		t.Fatal(err)
	}
	if d := spawn(t, dir, nil, "--grpc-address", "127.0.0.1:0", "--http-address", "off"); d.exitCode() != 1 {
		t.Errorf("a ledger without FORMAT: exit code %d, want 1:\n%s", d.exitCode(), d.tail())
	}
	if err := os.Rename(aside, format); err != nil {
		t.Fatal(err)
	}
	d = start(t, dir, "")
	a.audit(d.dial())
}

// TestHealthAndMetrics asks what a supervisor and a monitoring ask.
func TestHealthAndMetrics(t *testing.T) {
	d := start(t, t.TempDir(), "", "--log-format", "json")
	h := newHistory()
	conn := d.dial()
	if o := h.appendRaw(t.Context(), conn, newEvent(dice(t))); o.err != nil {
		t.Fatal(o.err)
	}
	for path, want := range map[string]string{"/healthz": "ok", "/readyz": "ok", "/metrics": "provledger_"} {
		resp, err := http.Get("http://" + d.http + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(body), want) {
			t.Errorf("%s: %s, %v; %q is not in\n%s", path, resp.Status, err, want, body)
		}
		if path == "/metrics" {
			compareWithManual(t, string(body))
		}
	}
	resp, err := grpc_health_v1.NewHealthClient(conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	if err != nil || resp.Status != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("gRPC health: %v, %v", resp, err)
	}
	d.terminate()
	for line := range strings.Lines(d.log.String()) {
		var v map[string]any
		if err := json.Unmarshal([]byte(line), &v); err != nil || v["msg"] == "" || v["level"] == "" {
			t.Errorf("not a JSON log line: %s", line)
		}
	}
}

// compareWithManual: what is exported is explained in docs/operations/metrics.md. That what is explained there is exported is tested where it is
// made (internal/telemetry), for some of it is exported in clusters only.
func compareWithManual(t *testing.T, metrics string) {
	t.Helper()
	manual, err := os.ReadFile("../../docs/operations/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	exported := regexp.MustCompile(`(?m)^# TYPE (provledger_[a-z0-9_]+) `).FindAllStringSubmatch(metrics, -1)
	if len(exported) < 50 {
		t.Errorf("only %d metrics are exported", len(exported))
	}
	for _, m := range exported {
		if !strings.Contains(string(manual), "`"+m[1]+"`") {
			t.Errorf("docs/operations/metrics.md does not explain the metric %s", m[1])
		}
	}
}
