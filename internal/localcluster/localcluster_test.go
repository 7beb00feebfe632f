//go:build unix

package localcluster

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// sleeper stands in for ledgerd where only its being a process matters; internal/e2e runs the real one.
func sleeper(t *testing.T, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ledgerd")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t *testing.T, dir string, o Options) *Cluster {
	t.Helper()
	c, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if _, err := c.Stop(ctx, c.Nodes()...); err != nil {
			t.Error(err)
		}
	})
	return c
}

func TestOpen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "cluster")
	first := open(t, dir, Options{}).Nodes()
	if len(first) != 3 {
		t.Fatalf("%d nodes, want 3", len(first))
	}
	seen := map[string]bool{}
	for _, n := range first {
		for _, a := range []string{n.Peer, n.GRPC, n.HTTP} {
			if seen[a] {
				t.Errorf("%s is there twice", a)
			}
			seen[a] = true
		}
	}
	secret, err := os.ReadFile(filepath.Join(dir, secretFile))
	if err != nil || len(secret) != secretBytes {
		t.Fatalf("secret: %d bytes, %v", len(secret), err)
	}
	// The same directory is the same cluster, with more nodes if they are wanted.
	grown := open(t, dir, Options{Nodes: 4, BasePort: 20000})
	if got := grown.Nodes(); got[0] != first[0] || got[2] != first[2] || !got[3].Joins || got[3].GRPC != "127.0.0.1:20030" {
		t.Errorf("grown: %+v", got)
	}
	if again, err := os.ReadFile(filepath.Join(dir, secretFile)); err != nil || string(again) != string(secret) {
		t.Errorf("the secret changed: %v", err)
	}
	if text := grown.config(grown.nodes[3]); !strings.Contains(text, "\njoin: [") || strings.Contains(text, grown.nodes[3].Peer+`"]`) {
		t.Errorf("the fourth node does not join the others:\n%s", text)
	}
	if text := grown.config(grown.nodes[0]); !strings.Contains(text, "\nmembers: [") || strings.Contains(text, grown.nodes[3].Peer) {
		t.Errorf("the first node counts the fourth among the founders:\n%s", text)
	}

	strange := t.TempDir()
	if err := os.WriteFile(filepath.Join(strange, "thesis.tex"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	broken := t.TempDir()
	if err := os.WriteFile(filepath.Join(broken, clusterFile), []byte(`{"version":1,"nodes":[{"name":"../n1"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		dir  string
		o    Options
		want string
	}{
		{dir, Options{Nodes: 2}, "cluster remove"},
		{dir, Options{Nodes: MaxNodes + 1}, "want 1 to"},
		{strange, Options{}, "not empty"},
		{broken, Options{}, "named"},
		{t.TempDir(), Options{BasePort: 80}, "base port"},
	} {
		if _, err := Open(tc.dir, tc.o); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("Open(%s, %+v): %v, want %q", tc.dir, tc.o, err, tc.want)
		}
	}
	if _, err := Existing(t.TempDir(), ""); err == nil {
		t.Error("an empty directory holds a cluster")
	}
}

// A secret that is gone is not replaced once anything was made with it.
func TestLostSecret(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir, Options{Nodes: 1})
	if err := os.Remove(filepath.Join(dir, secretFile)); err != nil {
		t.Fatal(err)
	}
	open(t, dir, Options{}) // nothing was made yet: a new one will do
	if err := os.MkdirAll(c.path(c.nodes[0], dataDir), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, secretFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Options{}); err == nil || !strings.Contains(err.Error(), "put it back") {
		t.Errorf("a lost secret: %v", err)
	}
}

func TestProcesses(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir, Options{Nodes: 2, Ledgerd: sleeper(t, "exec sleep 600")})
	n := c.nodes[0]
	running := func(want int) {
		t.Helper()
		if pid, err := c.Running(n); err != nil || pid != want {
			t.Errorf("running: %d, %v, want %d", pid, err, want)
		}
	}
	running(0)
	p, err := c.Start(n)
	if err != nil {
		t.Fatal(err)
	}
	running(p.Pid())
	if _, err := c.Start(n); !errors.Is(err, ErrRunning) {
		t.Errorf("started twice: %v", err)
	}
	// Another process, or one that has forgotten, sees the same.
	other, err := Existing(dir, c.ledgerd)
	if err != nil {
		t.Fatal(err)
	}
	if stopped, err := other.Stop(t.Context(), other.Nodes()...); err != nil || len(stopped) != 1 || stopped[0] != "n1" {
		t.Errorf("stopped %v, %v", stopped, err)
	}
	<-p.Done()
	if !strings.Contains(p.How(), "terminated") {
		t.Errorf("it ended: %s", p.How())
	}
	running(0)

	// The number of a process that has ended may be another's by now, here our own: it is not taken for the node, and not signalled.
	if err := os.WriteFile(c.path(n, pidFile), []byte(strconv.Itoa(os.Getpid())), 0o600); err != nil {
		t.Fatal(err)
	}
	running(0)
	if stopped, err := c.Stop(t.Context(), n); err != nil || len(stopped) != 0 {
		t.Errorf("stopped %v, %v", stopped, err)
	}

	if p, err = c.Start(n); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(p.Pid(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	running(0)
}

// A process that does not live says why.
func TestAwaitEnded(t *testing.T) {
	c := open(t, t.TempDir(), Options{Nodes: 1, Ledgerd: sleeper(t, "echo the disk is on fire >&2; exit 70")})
	p, err := c.Start(c.nodes[0])
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := c.Await(ctx, []*Process{p}); err == nil || !strings.Contains(err.Error(), "on fire") || !strings.Contains(err.Error(), "70") {
		t.Errorf("await: %v", err)
	}
	if key, err := os.Stat(c.path(c.nodes[0], keyFile)); err != nil || key.Mode().Perm() != 0o600 {
		t.Errorf("the key: %v, %v", key, err)
	}
}

// The environment of the caller is for another ledgerd, and would win over the node's file.
func TestEnvironment(t *testing.T) {
	t.Setenv("LEDGERD_DATA", "/elsewhere")
	c := open(t, t.TempDir(), Options{Nodes: 1, Ledgerd: sleeper(t, `echo "data=$LEDGERD_DATA, in $(pwd -P), $*"`)})
	p, err := c.Start(c.nodes[0])
	if err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	b, err := os.ReadFile(c.Log(c.nodes[0]))
	if err != nil || !strings.Contains(string(b), "data=,") || !strings.Contains(string(b), filepath.Join("n1,")) || !strings.Contains(string(b), "--config ledgerd.yaml") {
		t.Errorf("the process saw: %s, %v", b, err)
	}
}
