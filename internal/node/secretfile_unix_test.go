//go:build unix

package node

import (
	"os"
	"path/filepath"
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
