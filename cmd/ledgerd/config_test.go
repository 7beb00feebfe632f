package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

// loaded runs the whole way from command line, environment and file to a configuration.
func loaded(t *testing.T, file string, environ []string, args ...string) (Config, []string, error) {
	t.Helper()
	path := ""
	if file != "" {
		path = filepath.Join(t.TempDir(), "ledgerd.yaml")
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	all, defaults := settings(), Defaults()
	fs := pflag.NewFlagSet("ledgerd", pflag.ContinueOnError)
	typed := flags(fs, all, &defaults)
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	return load(path, environ, fs, typed, all)
}

func TestDefaultsAreValid(t *testing.T) {
	c, strange, err := loaded(t, "", nil)
	if err != nil || len(strange) != 0 {
		t.Fatalf("err %v, strange %q", err, strange)
	}
	if !reflect.DeepEqual(c, Defaults()) {
		t.Errorf("got %+v, want the defaults", c)
	}
}

// Every setting, whatever its type, obeys flag > environment > file > default.
func TestPrecedence(t *testing.T) {
	cert, key := writeKeyPair(t)
	valid := map[string][3]string{ // three valid texts, none the default: for file, environment, flag
		"data":              {"/a", "/b", "/c"},
		"grpc-address":      {"127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"},
		"http-address":      {"127.0.0.1:4", "127.0.0.1:5", "off"},
		"tls-cert":          {cert, cert, cert},
		"tls-key":           {key, key, key},
		"insecure":          {"true", "true", "true"},
		"origin-host":       {"a.example", "b.example", "c.example"},
		"lock-timeout":      {"1s", "2s", "3s"},
		"shutdown-timeout":  {"1s", "2s", "3s"},
		"log-format":        {"json", "json", "json"},
		"log-level":         {"debug", "warn", "error"},
		"address-file":      {"/a", "/b", "/c"},
		"peer-address":      {"127.0.0.1:6", "127.0.0.1:7", "127.0.0.1:8"},
		"advertise-peer":    {"a.example:1", "b.example:1", "c.example:1"},
		"advertise-grpc":    {"a.example:1", "b.example:1", "c.example:1"},
		"peer-cert":         {"/a", "/b", "/c"},
		"peer-key":          {"/a", "/b", "/c"},
		"peer-ca":           {"/a", "/b", "/c"},
		"members":           {"a.example:1", "a.example:1, b.example:1", "c.example:1,a.example:1"},
		"join":              {"a.example:1", "a.example:1,b.example:2", "c.example:1"},
		"join-as":           {"nonvoter", "nonvoter", "nonvoter"},
		"secret-file":       {"/a", "/b", "/c"},
		"key-dir":           {"/a", "/b", "/c"},
		"heartbeat-timeout": {"1s", "2s", "3s"},
		"otlp-endpoint":     {"a:1", "b:1", "c:1"},
	}
	// What goes together.
	peers := map[string]string{
		"peer-address": "127.0.0.1:5", "advertise-peer": "a.example:1", "peer-cert": "/z", "peer-key": "/z", "peer-ca": "/z",
	}
	for _, s := range settings() {
		texts, ok := valid[s.key]
		if !ok {
			t.Errorf("setting %s has no values in this test", s.key)
			continue
		}
		want := func(text string) any {
			var c Config
			if err := s.set(&c, text); err != nil {
				t.Fatal(err)
			}
			return s.value(&c)
		}
		// tls-cert and tls-key are only valid together.
		file, environ := "", []string(nil)
		switch s.key {
		case "tls-cert":
			file = "tls-key: " + key + "\n"
		case "tls-key":
			file = "tls-cert: " + cert + "\n"
		case "peer-address", "advertise-peer", "peer-cert", "peer-key", "peer-ca", "members", "join":
			for other, text := range peers {
				if other != s.key {
					file += other + ": " + text + "\n"
				}
			}
		}
		defaults := Defaults()
		if reflect.DeepEqual(want(texts[0]), s.value(&defaults)) {
			t.Errorf("%s: the test's value is the default and proves nothing", s.key)
		}
		for i, name := range []string{"file", "environment", "flag"} {
			var args []string
			switch i {
			case 0:
				text := texts[0]
				if _, list := s.value(&defaults).([]string); list {
					text = "[" + text + "]"
				}
				file += s.key + ": " + text + "\n"
			case 1:
				environ = append(environ, s.env+"="+texts[1])
			case 2:
				args = []string{"--" + s.key + "=" + texts[2]}
			}
			c, strange, err := loaded(t, file, environ, args...)
			if err != nil || len(strange) != 0 {
				t.Errorf("%s from the %s: err %v, strange %q", s.key, name, err, strange)
			}
			if got := s.value(&c); !reflect.DeepEqual(got, want(texts[i])) {
				t.Errorf("%s from the %s: got %v, want %v", s.key, name, got, want(texts[i]))
			}
		}
	}
	// A flag that sets a switch back.
	if c, _, err := loaded(t, "insecure: true\n", nil, "--insecure=false"); err != nil || c.Insecure {
		t.Errorf("--insecure=false over insecure: true: got %v, err %v", c.Insecure, err)
	}
	// An empty environment variable says nothing: compose files set them.
	if c, _, err := loaded(t, "data: /a\n", []string{"LEDGERD_DATA="}); err != nil || c.Data != "/a" {
		t.Errorf("empty LEDGERD_DATA: got %q, err %v", c.Data, err)
	}
}

func TestUnknownKeys(t *testing.T) {
	for _, file := range []string{"dta: /a\n", "Data: /a\n", "data: /a\ndata: /b\n", "data: /a\n---\ndata: /b\n", "- data\n", "lock-timeout: soon\n"} {
		if c, _, err := loaded(t, file, nil); err == nil {
			t.Errorf("%q was accepted: %+v", file, c)
		}
	}
	// Kubernetes sets LEDGERD_PORT and its like for a service named ledgerd: told, not refused.
	_, strange, err := loaded(t, "", []string{"LEDGERD_PORT=tcp://10.0.0.1:7600", "LEDGERD_DTA=/a", "HOME=/", "LEDGERD_CONFIG=/x"})
	if err != nil {
		t.Error(err)
	}
	if want := []string{"LEDGERD_DTA", "LEDGERD_PORT"}; !reflect.DeepEqual(strange, want) {
		t.Errorf("strange variables: got %q, want %q", strange, want)
	}
	if c, _, err := loaded(t, "# nothing\n", nil); err != nil || !reflect.DeepEqual(c, Defaults()) {
		t.Errorf("a file of comments: %+v, %v", c, err)
	}
}

func TestAllFaultsAreListed(t *testing.T) {
	_, _, err := loaded(t, "nonsense: 1\n", []string{"LEDGERD_LOCK_TIMEOUT=soon"},
		"--data=", "--grpc-address=0.0.0.0:99999", "--http-address=here", "--tls-cert=/nowhere", "--insecure=maybe",
		"--origin-host=My_Host", "--shutdown-timeout=0s", "--log-format=xml", "--log-level=loud",
		"--otlp-endpoint=grpc://collector")
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{
		"nonsense", "LEDGERD_LOCK_TIMEOUT", "data: is empty", `grpc-address: port "99999"`, `http-address: "here"`, "tls-cert: and tls-key go together",
		"--insecure", "origin-host:", "shutdown-timeout: 0s", `log-format: "xml"`, `log-level: "loud"`,
		`otlp-endpoint: "grpc://collector" has the scheme "grpc"`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the fault %q is not in:\n%v", want, err)
		}
	}
}

func TestPlainTextOnlyOnLoopback(t *testing.T) {
	cert, key := writeKeyPair(t)
	for _, tc := range []struct {
		args []string
		ok   bool
	}{
		{[]string{"--grpc-address=127.0.0.1:1"}, true},
		{[]string{"--grpc-address=127.8.9.1:1"}, true},
		{[]string{"--grpc-address=[::1]:1"}, true},
		{[]string{"--grpc-address=localhost:1"}, true},
		{[]string{"--grpc-address=:1"}, false},
		{[]string{"--grpc-address=0.0.0.0:1"}, false},
		{[]string{"--grpc-address=[::]:1"}, false},
		{[]string{"--grpc-address=192.0.2.1:1"}, false},
		{[]string{"--grpc-address=localhost.example:1"}, false},
		{[]string{"--http-address=:1"}, false},
		{[]string{"--http-address=off"}, true},
		{[]string{"--grpc-address=off"}, false},
		{[]string{"--grpc-address=:1", "--insecure"}, true},
		{[]string{"--grpc-address=:1", "--http-address=:2", "--tls-cert=" + cert, "--tls-key=" + key}, true},
		{[]string{"--grpc-address=127.0.0.1:7601"}, false}, // also http-address
		{[]string{"--grpc-address=127.0.0.1:0", "--http-address=127.0.0.1:0"}, true},
	} {
		if _, _, err := loaded(t, "", nil, tc.args...); (err == nil) != tc.ok {
			t.Errorf("%q: err %v, want accepted: %v", tc.args, err, tc.ok)
		}
	}
}

func TestPrintConfigParsesBack(t *testing.T) {
	c := Config{
		Data: "/päth: with # signs", GRPCAddress: "[::1]:1", HTTPAddress: off, Insecure: true, OriginHost: "x.example",
		LockTimeout: 90 * time.Second, ShutdownTimeout: time.Millisecond, LogFormat: "json", LogLevel: "debug", AddressFile: "true",
		PeerAddress: "h:1", Members: []string{"h:1", "[::1]:2"}, Join: []string{"x:1"},
	}
	for _, want := range []Config{Defaults(), c} {
		var b bytes.Buffer
		if err := printConfig(&b, &want); err != nil {
			t.Fatal(err)
		}
		var got Config
		if err := decode(b.Bytes(), &got); err != nil {
			t.Fatalf("%v in\n%s", err, &b)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, want %+v, from\n%s", got, want, &b)
		}
		for _, s := range settings() {
			first, _, _ := strings.Cut(s.manual, "\n")
			if len(first) < 20 || !strings.Contains(b.String(), "# "+first+"\n") {
				t.Errorf("the manual of %s is not printed: %q", s.key, first)
			}
			if !strings.Contains(s.manual, "Default ") {
				t.Errorf("the manual of %s does not name its default", s.key)
			}
		}
	}
}

// The default that the manual names is the default.
func TestManualNamesTheDefault(t *testing.T) {
	c := Defaults()
	for _, s := range settings() {
		manual := strings.ReplaceAll(s.manual, "\n", " ")
		text := manual[strings.LastIndex(manual, "Default ")+len("Default "):]
		text = strings.TrimSuffix(text, ".")
		if text == "none" {
			text = ""
		}
		var d Config
		if err := s.set(&d, text); err != nil {
			t.Errorf("%s: %v", s.key, err)
		}
		if !reflect.DeepEqual(s.value(&d), s.value(&c)) {
			t.Errorf("%s: the manual says %v, the default is %v", s.key, s.value(&d), s.value(&c))
		}
	}
}

// The example is what a machine would run; every key in it exists, and its values pass but for the certificate, which is not here.
func TestExampleConfig(t *testing.T) {
	text, err := os.ReadFile("../../deploy/ledgerd.yaml")
	if err != nil {
		t.Fatal(err)
	}
	c := Defaults()
	if err := decode(text, &c); err != nil {
		t.Fatal(err)
	}
	if reflect.DeepEqual(c, Defaults()) {
		t.Error("the example says nothing")
	}
	c.TLSCert, c.TLSKey = writeKeyPair(t)
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
}

func TestUsage(t *testing.T) {
	for _, tc := range []struct {
		args   string
		code   int
		stdout string
		stderr string
	}{
		{"version", exitOK, "ledgerd ", ""},
		{"--help", exitOK, "--shutdown-timeout", ""},
		{"--print-config", exitOK, "grpc-address: 127.0.0.1:7600\n", ""},
		{"--print-config --log-level=debug", exitOK, "log-level: debug\n", ""},
		{"serve", exitUsage, "", `no "serve"`},
		{"--nonsense", exitUsage, "", "nonsense"},
		{"--data x y", exitUsage, "", "no argument"},
		{"--log-level loud --log-format xml", exitUsage, "", "loud"},
		{"--config /nowhere", exitUsage, "", "/nowhere"},
		{"inspect", exitUsage, "", "DIR"},
	} {
		var stdout, stderr bytes.Buffer
		code := run(context.Background(), strings.Fields(tc.args), nil, &stdout, &stderr, func(int) { t.Error("exit called") })
		if code != tc.code || !strings.Contains(stdout.String(), tc.stdout) || !strings.Contains(stderr.String(), tc.stderr) {
			t.Errorf("ledgerd %s: code %d, want %d\nstdout: %s\nstderr: %s", tc.args, code, tc.code, &stdout, &stderr)
		}
	}
}
