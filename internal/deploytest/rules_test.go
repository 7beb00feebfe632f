package deploytest

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// rule is one alert.
type rule struct {
	alert, expr string
	object
}

func rules(t *testing.T) []rule {
	t.Helper()
	all := documents(t, "prometheus-rules.yaml")
	if len(all) != 1 {
		t.Fatalf("%d documents", len(all))
	}
	var out []rule
	for _, g := range all[0].list("groups") {
		for _, r := range object(g.(map[string]any)).list("rules") {
			o := object(r.(map[string]any))
			out = append(out, rule{o.text("alert"), o.text("expr"), o})
		}
	}
	if len(out) < 15 {
		t.Fatalf("only %d alerts: is the file read right?", len(out))
	}
	return out
}

var (
	metricName = regexp.MustCompile(`\bprovledger_[a-z0-9_]+`)
	matcher    = regexp.MustCompile(`(provledger_[a-z0-9_]+)\{([a-z]+)(=|!=)"([^"]*)"\}`)
)

// Each alert is whole, and the manual says what it means.
func TestRulesAreExplained(t *testing.T) {
	manual, err := os.ReadFile("../../docs/operations/monitoring.md")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, r := range rules(t) {
		if r.alert == "" || seen[r.alert] || !slices.Contains([]string{"warning", "critical"}, r.text("labels", "severity")) || r.text("annotations", "summary") == "" {
			t.Errorf("alert %q has no name of its own, no severity or no summary", r.alert)
		}
		seen[r.alert] = true
		for key := range r.object {
			if !slices.Contains([]string{"alert", "expr", "for", "labels", "annotations"}, key) {
				t.Errorf("%s: Prometheus knows no %q", r.alert, key)
			}
		}
		if strings.Count(r.expr, "(") != strings.Count(r.expr, ")") || strings.Count(r.expr, "{") != strings.Count(r.expr, "}") {
			t.Errorf("%s: brackets do not match in %s", r.alert, r.expr)
		}
		if !strings.Contains(string(manual), "`"+r.alert+"`") {
			t.Errorf("docs/operations/monitoring.md does not explain %s", r.alert)
		}
	}
	for _, m := range regexp.MustCompile("`(Provledger[A-Za-z]+)`").FindAllStringSubmatch(string(manual), -1) {
		if !seen[m[1]] {
			t.Errorf("docs/operations/monitoring.md explains %s, which is no alert", m[1])
		}
	}
}

// free returns an address that nobody listens on. The peer address stands in the membership, so it has to be known beforehand.
func free(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// startNode runs a ledgerd with everything that exports metrics: TLS on its ports, and a peer port as the only member of a cluster.
// It returns a client and the address of HTTP.
func startNode(t *testing.T) (*http.Client, string) {
	t.Helper()
	dir := t.TempDir()
	cert, key := pair(t, "127.0.0.1")
	peer, file := free(t), filepath.Join(dir, "addresses.json")
	var log bytes.Buffer
	c := exec.Command(ledgerd, "--data", filepath.Join(dir, "data"), "--grpc-address", "127.0.0.1:0", "--http-address", "127.0.0.1:0", "--tls-cert", cert, "--tls-key", key,
		"--peer-address", peer, "--peer-cert", cert, "--peer-key", key, "--peer-ca", cert, "--members", peer, "--address-file", file)
	c.Stdout, c.Stderr = &log, &log
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	t.Cleanup(func() {
		if err := c.Process.Signal(syscall.SIGTERM); err != nil {
			return // it has ended, which was noticed below
		}
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("ledgerd ended with %v:\n%s", err, &log)
			}
		case <-time.After(30 * time.Second):
			c.Process.Kill()
			t.Errorf("ledgerd did not stop:\n%s", &log)
		}
	})
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		var a struct{ HTTP string }
		if b, err := os.ReadFile(file); err == nil && json.Unmarshal(b, &a) == nil {
			return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}, "https://" + a.HTTP
		}
		select {
		case err := <-ended:
			t.Fatalf("ledgerd ended with %v before it served:\n%s", err, &log)
		default:
		}
		if time.Now().After(end) {
			t.Fatalf("ledgerd does not serve after 60 s:\n%s", &log)
		}
	}
}

func get(t *testing.T, c *http.Client, url string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v\n%s", url, resp.Status, err, b)
	}
	return string(b)
}

// A node that runs answers the probes, exports each metric and label that an alert asks for, and nothing that the manual does not
// explain.
func TestRunningNode(t *testing.T) {
	c, address := startNode(t)
	get(t, c, address+"/healthz")
	get(t, c, address+"/readyz")
	metrics := get(t, c, address+"/metrics")
	for _, r := range rules(t) {
		for _, name := range metricName.FindAllString(r.expr, -1) {
			if !regexp.MustCompile(`(?m)^` + name + `[{ ]`).MatchString(metrics) {
				t.Errorf("%s asks for %s, which ledgerd does not export", r.alert, name)
			}
		}
		for _, m := range matcher.FindAllStringSubmatch(r.expr, -1) {
			if series := fmt.Sprintf(`%s{%s=%q`, m[1], m[2], m[4]); !strings.Contains(metrics, series) {
				t.Errorf("%s asks for %s}, which ledgerd does not export", r.alert, series)
			}
		}
	}
	manual, err := os.ReadFile("../../docs/operations/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (provledger_[a-z0-9_]+) `).FindAllStringSubmatch(metrics, -1) {
		if !strings.Contains(string(manual), "`"+m[1]+"`") {
			t.Errorf("docs/operations/metrics.md does not explain %s", m[1])
		}
	}
}
