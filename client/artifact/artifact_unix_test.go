//go:build unix

package artifact

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestSpecial(t *testing.T) {
	dir := tree(t, map[string]string{"a": "1"})
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	// Opening a pipe blocks until someone writes: that these return is part of the test.
	for _, path := range []string{pipe, dir, "/dev/null"} {
		if _, err := Hash(t.Context(), path, Options{}); !errors.Is(err, ErrSpecial) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// The superuser may read everything, so the test runs itself again as nobody.
func TestUnreadable(t *testing.T) {
	const variable = "ARTIFACT_TEST_UNREADABLE"
	if dir := os.Getenv(variable); dir != "" {
		for _, name := range []string{"file/secret", "directory/secret"} {
			_, err := Hash(t.Context(), filepath.Join(dir, filepath.Dir(name)), Options{})
			if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), filepath.Join(dir, filepath.FromSlash(name))) {
				t.Errorf("%s: %v", name, err)
			}
		}
		return
	}
	dir, err := os.MkdirTemp("", "artifact") // below t.TempDir() nobody could not even look
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	write(t, filepath.Join(dir, "file", "a"), "1")
	write(t, filepath.Join(dir, "file", "secret"), "2")
	write(t, filepath.Join(dir, "directory", "secret", "b"), "3")
	exe := filepath.Join(dir, "test")
	self, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		os.Chmod(dir, 0o755), os.Chmod(filepath.Join(dir, "file", "secret"), 0), os.Chmod(filepath.Join(dir, "directory", "secret"), 0),
		os.WriteFile(exe, self, 0o755),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	defer os.Chmod(filepath.Join(dir, "directory", "secret"), 0o700)
	cmd := exec.Command(exe, "-test.run=^TestUnreadable$")
	cmd.Dir, cmd.Env = dir, append(os.Environ(), variable+"="+dir)
	if os.Getuid() == 0 {
		const nobody = 65534
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}
