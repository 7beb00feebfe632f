package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io/fs"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/provledger/provledger/client"
)

// mustCtl runs ledgerctl and wants exit code 0.
func mustCtl(t *testing.T, dir string, env []string, args ...string) string {
	t.Helper()
	stdout, stderr, code := ctl(t, dir, env, args...)
	if code != 0 {
		t.Fatalf("ledgerctl %s: exit code %d\n%s%s", strings.Join(args, " "), code, stdout, stderr)
	}
	return stdout
}

// TestTakeOver makes a ledger in a directory without a daemon, lets ledgerd take it over, then gives it back: one history all along, with
// every receipt good to the end, and offline (S8). Whoever copies the directory on the way and records into the copy is found out.
func TestTakeOver(t *testing.T) {
	work, data := t.TempDir(), "./project"
	env := []string{"LEDGER_STATE_DIR=" + t.TempDir()}
	if err := os.WriteFile(filepath.Join(work, "raw.csv"), []byte("1,2\n3,4\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	// Each output differs from its input, so that each digest has one entry that made it.
	record := func(ledger, in, out string) {
		t.Helper()
		mustCtl(t, work, env, "--ledger", ledger, "run", "--job", "make-"+out, "--input", in, "--output", out,
			"--", "sh", "-c", "(cat "+in+"; echo "+out+") > "+out)
	}
	record(data, "raw.csv", "clean.csv")
	mustCtl(t, work, env, "--ledger", data, "prove", "./clean.csv", "--out", "clean.receipt")
	if err := os.WriteFile(filepath.Join(work, "trust.policy"), []byte(mustCtl(t, work, env, "--ledger", data, "key", "show", "--policy")), 0o644); err != nil {
		t.Fatal(err)
	}

	d := start(t, filepath.Join(work, data), "")
	address := strings.Replace(d.grpc, "127.0.0.1", "localhost", 1)
	record(address, "clean.csv", "model.bin")
	mustCtl(t, work, env, "--ledger", address, "prove", "./model.bin", "--out", "model.receipt")
	if tree := mustCtl(t, work, env, "--ledger", address, "trace", "./model.bin"); !strings.Contains(tree, "clean.csv") || !strings.Contains(tree, "raw.csv") {
		t.Errorf("the trace does not reach from the daemon's part of the history into the embedded one:\n%s", tree)
	}
	if code := d.terminate(); code != 0 {
		t.Errorf("exit code %d", code)
	}

	// A copy goes its own way from here.
	copied := filepath.Join(work, "copy")
	copyDir(t, filepath.Join(work, data), copied)

	record(data, "model.bin", "report.txt")
	mustCtl(t, work, env, "--ledger", data, "checkpoint", "--verify")
	// Offline, with nothing running and the ledger gone.
	if err := os.Rename(filepath.Join(work, data), filepath.Join(work, "away")); err != nil {
		t.Fatal(err)
	}
	for file, receipt := range map[string]string{"clean.csv": "clean.receipt", "model.bin": "model.receipt"} {
		mustCtl(t, work, env, "verify", file, "--receipt", receipt, "--trust", "trust.policy")
	}
	if _, _, code := ctl(t, work, env, "verify", "raw.csv", "--receipt", "model.receipt", "--trust", "trust.policy"); code != 1 {
		t.Errorf("a receipt of another file: exit code %d, want 1", code)
	}

	// The copy in the place of the ledger, with another entry at the same index: the same key, another history.
	if err := os.Rename(copied, filepath.Join(work, data)); err != nil {
		t.Fatal(err)
	}
	stdout, stderr, code := ctl(t, work, env, "--ledger", data, "checkpoint", "--verify")
	if code != 1 {
		t.Errorf("a ledger that went back: exit code %d, want 1\n%s%s", code, stdout, stderr)
	}
	fresh := []string{"LEDGER_STATE_DIR=" + t.TempDir()} // somebody who remembers nothing records into it
	mustCtl(t, work, fresh, "--ledger", data, "run", "--job", "other", "--input", "raw.csv", "--", "true")
	stdout, stderr, code = ctl(t, work, env, "--ledger", data, "checkpoint", "--verify")
	if code != 1 {
		t.Errorf("a ledger that forked: exit code %d, want 1\n%s%s", code, stdout, stderr)
	}
}

func copyDir(t *testing.T, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

// TestInspect looks into a directory after a kill, finds a flipped byte, and keeps its hands off a running ledger.
func TestInspect(t *testing.T) {
	r := dice(t)
	dir := t.TempDir()
	d := start(t, dir, "")
	h := newHistory()
	conn := d.dial()
	for range 600 { // more than a tile
		if o := h.appendRaw(t.Context(), conn, newEvent(r)); o.err != nil {
			t.Fatal(o.err)
		}
	}
	if out, code := inspect(t, "--verify", dir); code != 75 {
		t.Errorf("inspecting a running ledger: exit code %d, want 75\n%s", code, out)
	}
	d.kill()
	if out, code := inspect(t, dir); code != 0 || !strings.Contains(out, "replayed at the next start") {
		t.Errorf("inspecting after a kill: exit code %d\n%s", code, out)
	}
	d = start(t, dir, "")
	if code := d.terminate(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	out, code := inspect(t, "--verify", dir)
	if code != 0 || !strings.Contains(out, "main: number 1, 601 entries") || !strings.Contains(out, "\nverified ") {
		t.Errorf("inspect --verify: exit code %d\n%s", code, out)
	}
	flip(t, dir, "state", ".sst")
	if out, code := inspect(t, "--verify", dir); code != 1 {
		t.Errorf("inspect --verify of a damaged store: exit code %d, want 1\n%s", code, out)
	}
	if out, code := inspect(t, t.TempDir()); code != 1 {
		t.Errorf("inspecting an empty directory: exit code %d, want 1\n%s", code, out)
	}
}

func inspect(t *testing.T, args ...string) (string, int) {
	t.Helper()
	out, code := run(t, ledgerd, append([]string{"inspect"}, args...)...)
	return out, code
}

// flip changes a bit in the middle of the largest file below dir/sub with the suffix.
func flip(t *testing.T, dir, sub, suffix string) {
	t.Helper()
	var largest string
	var most int64
	err := filepath.WalkDir(filepath.Join(dir, sub), func(p string, e fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(p, suffix) {
			return err
		}
		i, err := e.Info()
		if err == nil && i.Size() > most {
			largest, most = p, i.Size()
		}
		return err
	})
	if err != nil || largest == "" {
		t.Fatalf("no %s below %s/%s: %v", suffix, dir, sub, err)
	}
	b, err := os.ReadFile(largest)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 0x10
	if err := os.WriteFile(largest, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestTLS records and asks over TLS on both ports, and not without.
func TestTLS(t *testing.T) {
	cert, key, pool := certificate(t)
	d := start(t, t.TempDir(), "", "--tls-cert", cert, "--tls-key", key)
	c, err := client.Dial(d.grpc, client.Options{StateDir: t.TempDir(), TLS: &tls.Config{RootCAs: pool}})
	if err != nil {
		t.Fatal(err)
	}
	h := newHistory()
	if o := h.appendClient(t.Context(), c, newEvent(dice(t))); o.err != nil {
		t.Error(o.err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	web := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	resp, err := web.Get("https://" + d.http + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("/readyz over TLS: %s", resp.Status)
	}
	if o := h.appendRaw(t.Context(), d.dial(), newEvent(dice(t))); o.err == nil {
		t.Error("an append without TLS was accepted")
	}
}

// certificate makes a self-signed certificate for 127.0.0.1.
func certificate(t *testing.T) (cert, key string, pool *x509.CertPool) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ledgerd e2e"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for name, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pool = x509.NewCertPool()
	pool.AppendCertsFromPEM(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return cert, key, pool
}
