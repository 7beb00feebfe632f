package deploytest

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// Each example is what a machine would run: ledgerd takes it as it is, but for the certificates, which are not here.
func TestExampleConfigs(t *testing.T) {
	cert, key := pair(t, "ledger.example.org")
	for _, name := range []string{"ledgerd.yaml", "ledgerd-cluster.yaml"} {
		c := inForce(t, nil, "--config", filepath.Join(deploy, name), "--tls-cert", cert, "--tls-key", key)
		if c.text("origin-host") != "ledger.example.org" {
			t.Errorf("%s: origin-host is %q", name, c.text("origin-host"))
		}
		if name == "ledgerd-cluster.yaml" {
			if members := c.texts("members"); len(members) != 3 || !slices.Contains(members, c.text("advertise-peer")) {
				t.Errorf("%s: the members are %q and this node is %q", name, members, c.text("advertise-peer"))
			}
		}
	}
}

// unit reads a systemd unit into section.key -> values. Lines that are neither section, comment nor assignment fail.
func unit(t *testing.T, name string) map[string][]string {
	t.Helper()
	out, section := map[string][]string{}, ""
	for s := bufio.NewScanner(strings.NewReader(string(read(t, name)))); s.Scan(); {
		line := strings.TrimSpace(s.Text())
		switch {
		case line == "" || line[0] == '#':
		case line[0] == '[' && strings.HasSuffix(line, "]"):
			section = line[1 : len(line)-1]
		default:
			k, v, ok := strings.Cut(line, "=")
			if !ok || section == "" {
				t.Fatalf("%s: %q is no assignment in a section", name, line)
			}
			out[section+"."+k] = append(out[section+"."+k], v)
		}
	}
	return out
}

// seconds is a systemd time of whole seconds.
func seconds(t *testing.T, s string) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(s + "s")
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestSystemdUnit(t *testing.T) {
	u := unit(t, "systemd/ledgerd.service")
	one := func(key string) string {
		t.Helper()
		if len(u[key]) != 1 {
			t.Fatalf("%s stands there %d times", key, len(u[key]))
		}
		return u[key][0]
	}
	command := strings.Fields(one("Service.ExecStart"))
	flags := known()
	for _, a := range command[1:] {
		if strings.HasPrefix(a, "--") && !flags[a] {
			t.Errorf("ExecStart has %s, which ledgerd does not", a)
		}
	}
	// Values that the process and the unit have to agree on.
	for key, want := range map[string]string{
		"Service.Type": "exec", "Service.Restart": "on-failure", "Service.RestartPreventExitStatus": "64", "Service.KillSignal": "SIGTERM",
		"Service.ProtectSystem": "strict", "Service.NoNewPrivileges": "true", "Service.LimitCORE": "0",
	} {
		if one(key) != want {
			t.Errorf("%s is %s, want %s", key, one(key), want)
		}
	}
	if one("Service.User") == "root" {
		t.Error("it runs as root")
	}
	// What is written lies under the state directory, for all else is read-only.
	state := "/var/lib/" + one("Service.StateDirectory")
	cert, key := pair(t, "ledger.example.org")
	for _, name := range []string{"ledgerd.yaml", "ledgerd-cluster.yaml"} {
		c := inForce(t, nil, "--config", filepath.Join(deploy, name), "--tls-cert", cert, "--tls-key", key)
		if data := c.text("data"); data != state && !strings.HasPrefix(data, state+"/") {
			t.Errorf("%s: data is %s, outside of the unit's %s", name, data, state)
		}
		drain, err := time.ParseDuration(c.text("shutdown-timeout"))
		if err != nil {
			t.Fatal(err)
		}
		if stop := seconds(t, one("Service.TimeoutStopSec")); stop < drain+flush {
			t.Errorf("%s: systemd kills after %v, before draining (%v) and flushing (%v) are over", name, stop, drain, flush)
		}
	}
}

// flush is how long ledgerd may take to flush its stores after draining (closeTimeout in cmd/ledgerd).
const flush = 10 * time.Second

// The image cannot be built here; that its steps fit together can be seen.
func TestContainerfile(t *testing.T) {
	var stages [][]string // instructions by stage
	text := regexp.MustCompile(`\\\n`).ReplaceAllString(string(read(t, "container/Containerfile")), " ")
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		instruction, _, _ := strings.Cut(line, " ")
		if !slices.Contains([]string{"FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "VOLUME", "EXPOSE", "STOPSIGNAL", "ENTRYPOINT"}, instruction) {
			t.Errorf("%q is not an instruction that is used here", line)
		}
		if instruction == "FROM" {
			stages = append(stages, nil)
		}
		if len(stages) == 0 {
			t.Fatalf("%q stands before FROM", line)
		}
		stages[len(stages)-1] = append(stages[len(stages)-1], line)
	}
	if len(stages) != 2 {
		t.Fatalf("there are %d stages, want build and result", len(stages))
	}
	build, result := strings.Join(stages[0], "\n"), strings.Join(stages[1], "\n")
	mod, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	version := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindStringSubmatch(string(mod))[1]
	for _, want := range []string{"golang:" + version, " AS build", "CGO_ENABLED=0", "go mod download", "./cmd/ledgerd ./cmd/ledgerctl"} {
		if !strings.Contains(build, want) {
			t.Errorf("the build stage has no %q", want)
		}
	}
	for _, want := range []string{"FROM scratch", "USER 65532:65532", `ENTRYPOINT ["/usr/local/bin/ledgerd"]`, "STOPSIGNAL SIGTERM", "/out/ledgerd /out/ledgerctl /usr/local/bin/"} {
		if !strings.Contains(result, want) {
			t.Errorf("the resulting stage has no %q", want)
		}
	}
	if regexp.MustCompile(`(?m)^RUN`).MatchString(result) {
		t.Error("there is no shell in scratch that could RUN anything")
	}
	// What COPY takes from the tree exists, and variables are ledgerd's.
	for _, m := range regexp.MustCompile(`(?m)^COPY (go\.mod) (go\.sum) `).FindAllStringSubmatch(build, -1) {
		for _, f := range m[1:] {
			if _, err := os.Stat(filepath.Join("../..", f)); err != nil {
				t.Error(err)
			}
		}
	}
	names := known()
	for _, v := range regexp.MustCompile(`LEDGERD_[A-Z_]+`).FindAllString(result, -1) {
		if !names[v] {
			t.Errorf("ledgerd reads no %s", v)
		}
	}
}

// Compose gives each node a configuration that ledgerd takes, and all the same members.
func TestCompose(t *testing.T) {
	all := documents(t, "container/compose.yaml")
	if len(all) != 1 {
		t.Fatalf("%d documents", len(all))
	}
	c, names, published := all[0], known(), map[string]bool{}
	var members []string
	nodes := []string{"n1", "n2", "n3"}
	for _, name := range nodes {
		environment, _ := c.at("services", name, "environment").(map[string]any)
		var environ []string
		for k := range environment {
			if strings.HasPrefix(k, "LEDGERD_") && !names[k] {
				t.Errorf("%s: ledgerd reads no %s", name, k)
			}
			environ = append(environ, k+"="+object(environment).text(k))
		}
		got := inForce(t, environ)
		if want := name + ":7602"; got.text("advertise-peer") != want || !slices.Contains(got.texts("members"), want) {
			t.Errorf("%s: advertises %s among %q", name, got.text("advertise-peer"), got.texts("members"))
		}
		if members == nil {
			members = got.texts("members")
		}
		if !slices.Equal(members, got.texts("members")) || len(members) != len(nodes) {
			t.Errorf("%s: members %q, others have %q", name, got.texts("members"), members)
		}
		if c.text("services", name, "image") == "" || c.text("services", name, "read_only") != "true" {
			t.Errorf("%s has no image, or may write to it", name)
		}
		for _, p := range c.texts("services", name, "ports") {
			host, _, _ := strings.Cut(p, ":")
			if host != "127.0.0.1" || published[p] {
				t.Errorf("%s publishes %s: twice, or to the world without TLS", name, p)
			}
			published[p] = true
		}
		for _, v := range c.texts("services", name, "volumes") {
			volume, _, _ := strings.Cut(v, ":")
			if _, ok := c["volumes"].(map[string]any)[volume]; !ok {
				t.Errorf("%s mounts %s, which is not declared", name, volume)
			}
		}
	}
	if _, err := os.Stat(filepath.Join(deploy, "container", c.text("services", "certificates", "build", "context"), c.text("services", "certificates", "build", "dockerfile"))); err != nil {
		t.Error(err)
	}
	runCertificates(t, c.text("services", "certificates", "command", "0"), c, nodes)
}

// runCertificates runs the script that makes certificates, here, and looks whether it leaves what the nodes are told to read.
func runCertificates(t *testing.T, script string, c object, nodes []string) {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{"tls", "ca"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	script = strings.NewReplacer("/tls", dir+"/tls", "/ca ", dir+"/ca ", "/ca\n", dir+"/ca\n", "/ca/", dir+"/ca/", "/out/ledgerctl", ledgerctl, "$$", "$",
		"chown -R 65532:65532", "test -d").Replace(script)
	for range 2 { // the second time it finds everything there
		if out, err := exec.Command("/bin/sh", "-euc", script).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s\n%s", err, script, out)
		}
	}
	for _, name := range nodes {
		for _, v := range []string{"LEDGERD_PEER_CERT", "LEDGERD_PEER_KEY", "LEDGERD_PEER_CA", "LEDGERD_SECRET_FILE"} {
			if _, err := os.Stat(dir + c.text("services", name, "environment", v)); err != nil {
				t.Errorf("%s: %s: %v", name, v, err)
			}
		}
	}
}
