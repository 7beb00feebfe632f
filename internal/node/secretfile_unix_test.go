//go:build unix

package node

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A secret that others can read is refused; root's may be read by its group, which is how a process that is not root gets at what Kubernetes
// mounts.
func TestSecretFileMode(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	root := os.Getuid() == 0
	for mode, ok := range map[os.FileMode]bool{0o600: true, 0o400: true, 0o440: root, 0o640: root, 0o660: false, 0o444: false, 0o644: false} {
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := readPrivate(file); (err == nil) != ok {
			t.Errorf("mode %04o: %v", mode, err)
		}
	}
}

// A wrong secret file is refused and leaves nothing behind that would stand in the way of the right one.
func TestWrongSecretFile(t *testing.T) {
	dir, file := filepath.Join(t.TempDir(), "ledger"), filepath.Join(t.TempDir(), "secret")
	open := func(secretFile string) error {
		c := testConfig(t, nil, dir)
		c.SecretFile = secretFile
		n, err := Open(t.Context(), c)
		if err != nil {
			return err
		}
		return n.Close(t.Context())
	}
	if err := open(""); err != nil {
		t.Fatal(err)
	}
	inside := filepath.Join(dir, secretFile)
	right, err := os.ReadFile(inside)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(inside); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, bytes.Repeat([]byte{7}, len(right)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := open(file); err == nil || !strings.Contains(err.Error(), file) {
		t.Fatalf("a wrong secret: %v", err)
	}
	if _, err := os.Stat(inside); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the wrong secret is kept: %v", err)
	}
	if err := os.WriteFile(file, right, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := open(file); err != nil {
		t.Errorf("the right secret afterwards: %v", err)
	}
}
