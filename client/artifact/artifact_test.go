package artifact

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/mod/sumdb/dirhash"

	"github.com/provledger/provledger/client/lineage"
)

// tree writes files below a new directory and returns it.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		write(t, filepath.Join(dir, filepath.FromSlash(name)), content)
	}
	return dir
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, target, path string) {
	t.Helper()
	if err := os.Symlink(target, path); err != nil {
		if runtime.GOOS == "windows" {
			t.Skip("no right to make symbolic links: ", err)
		}
		t.Fatal(err)
	}
}

func mustHash(t *testing.T, path string) *Artifact {
	t.Helper()
	a, err := Hash(t.Context(), path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestFile(t *testing.T) {
	content := strings.Repeat("0123456789abcdef", bufferBytes/16*2) + "tail" // more than two buffers
	path := filepath.Join(t.TempDir(), "data.bin")
	write(t, path, content)
	var seen atomic.Int64
	a, err := Hash(t.Context(), path, Options{Progress: func(n int64) { seen.Add(n) }})
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(content))
	if want := (lineage.Digest{Algorithm: lineage.SHA256, Value: string(sum[:])}); a.Digest != want {
		t.Errorf("digest %s, want %s", a.Digest, want)
	}
	if n := int64(len(content)); a.Size != n || seen.Load() != n || Total(path) != n {
		t.Errorf("size %d, progress %d, total %d, want %d", a.Size, seen.Load(), Total(path), n)
	}
	if a.Manifest != nil || a.Followed != "" {
		t.Errorf("a plain file has manifest %v, followed %q", a.Manifest, a.Followed)
	}
}

func TestEmptyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "empty")
	write(t, path, "")
	if got, want := mustHash(t, path).Digest.String(), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"; got != want {
		t.Errorf("digest %s, want %s", got, want)
	}
}

// The vector is that of the in-toto attestation framework's digest_set documentation.
func TestDirHashVector(t *testing.T) {
	a := mustHash(t, tree(t, map[string]string{"a.txt": "A", "b/c.bin": "B"}))
	if got, want := a.Digest.String(), "dirHash:89b54fa71ccf5b52917b782336bf27903eb1120fdfa4f1532dc0e0b41144f6d1"; got != want {
		t.Errorf("digest %s, want %s", got, want)
	}
	const manifest = `{"dirHash":"89b54fa71ccf5b52917b782336bf27903eb1120fdfa4f1532dc0e0b41144f6d1","files":[` +
		`{"path":"a.txt","sha256":"559aead08264d5795d3909718cdd05abd49572e84fe55590eef31a88a08fdffd","size":1},` +
		`{"path":"b/c.bin","sha256":"df7e70e5021544f4834bbee64a9e3789febc4be81470df629cad6ddb03320a5c","size":1}]}` + "\n"
	if got := string(a.Manifest.Encode()); got != manifest {
		t.Errorf("manifest\n%s\nwant\n%s", got, manifest)
	}
	if a.Size != 2 {
		t.Errorf("size %d, want 2", a.Size)
	}
}

// golang.org/x/mod computes the same hash for go.sum: an oracle written by others.
func TestDirHashOracle(t *testing.T) {
	files := map[string]string{}
	for i := range 200 {
		// Names where byte order of whole paths and order of path components differ.
		files[fmt.Sprintf("d%d/x.%d/f%d", i%7, i%3, i)] = strings.Repeat("x", i)
		files[fmt.Sprintf("d%d/x/é%d &<>", i%7, i)] = "y"
	}
	dir := tree(t, files)
	names, err := dirhash.DirFiles(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	h1, err := dirhash.Hash1(names, func(name string) (io.ReadCloser, error) { return os.Open(filepath.Join(dir, name)) })
	if err != nil {
		t.Fatal(err)
	}
	for _, parallel := range []int{1, 8} {
		a, err := Hash(t.Context(), dir, Options{Parallel: parallel})
		if err != nil {
			t.Fatal(err)
		}
		if got := "h1:" + b64(a.Digest.Value); got != h1 {
			t.Errorf("%d workers: %s, x/mod has %s", parallel, got, h1)
		}
		m, err := ParseManifest(a.Manifest.Encode())
		if err != nil {
			t.Fatal(err)
		}
		if m.DirHash != a.Digest || len(m.Files) != len(files) || m.Size() != Total(dir) {
			t.Errorf("manifest read back: %s with %d files", m.DirHash, len(m.Files))
		}
	}
}

// What does not count: modes, times, empty directories, ledgers.
func TestWhatDoesNotCount(t *testing.T) {
	files := map[string]string{"a": "1", "sub/b": "2"}
	want := mustHash(t, tree(t, files)).Digest
	dir := tree(t, files)
	for _, d := range []string{"none", "sub/none"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "a"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, ".ledger", "state"), "x")
	write(t, filepath.Join(dir, "sub", ".ledger", "state"), "x")
	a := mustHash(t, dir)
	if a.Digest != want {
		t.Errorf("digest %s, want %s", a.Digest, want)
	}
	if got := fmt.Sprint(a.LeftOut); got != "[.ledger sub/.ledger]" {
		t.Errorf("left out %s", got)
	}
	// A file of that name is no ledger.
	plain := tree(t, map[string]string{"a": "1", "sub/b": "2", "sub/.ledger": "3"})
	if mustHash(t, plain).Digest == want {
		t.Error("a file named .ledger was left out")
	}
}

func TestLinks(t *testing.T) {
	files := map[string]string{"ckpt/1.pt": "one", "ckpt/2.pt": "two"}
	dir := tree(t, files)
	link(t, "2.pt", filepath.Join(dir, "ckpt", "latest.pt"))
	link(t, filepath.Join("..", "ckpt", "1.pt"), filepath.Join(dir, "ckpt", "first.pt"))
	files["ckpt/latest.pt"], files["ckpt/first.pt"] = "two", "one"
	if got, want := mustHash(t, dir).Digest, mustHash(t, tree(t, files)).Digest; got != want {
		t.Errorf("links inside: %s, a copy with links resolved has %s", got, want)
	}

	outer := filepath.Join(t.TempDir(), "to-dir")
	link(t, dir, outer)
	a := mustHash(t, outer)
	resolved, err := filepath.EvalSymlinks(dir)
	if err != nil {
		t.Fatal(err)
	}
	if a.Followed != resolved || a.Digest != mustHash(t, dir).Digest {
		t.Errorf("link as argument: followed %q to %s", a.Followed, a.Digest)
	}

	outside := filepath.Join(t.TempDir(), "outside")
	write(t, outside, "x")
	for name, target := range map[string]string{
		"absolute": filepath.Join(dir, "ckpt", "1.pt"), "outside": outside, "dangling": "nothing", "directory": "ckpt", "loop": "loop",
		"escape": filepath.Join("..", filepath.Base(filepath.Dir(outside)), "outside"),
	} {
		d := tree(t, map[string]string{"ckpt/1.pt": "one"})
		link(t, target, filepath.Join(d, name))
		_, err := Hash(t.Context(), d, Options{})
		if !errors.Is(err, ErrLink) || !strings.Contains(err.Error(), filepath.Join(d, name)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRefused(t *testing.T) {
	if _, err := Hash(t.Context(), t.TempDir(), Options{}); !errors.Is(err, ErrEmpty) {
		t.Errorf("empty directory: %v", err)
	}
	missing := filepath.Join(t.TempDir(), "missing.csv")
	if _, err := Hash(t.Context(), missing, Options{}); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "missing.csv") {
		t.Errorf("missing file: %v", err)
	}
	for _, name := range []string{"bad\xff", "line\nfeed", "tab\t", `back\slash`, "del\x7f"} {
		if err := checkName(name); !errors.Is(err, ErrName) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if runtime.GOOS == "windows" {
		return // cannot make the name
	}
	dir := tree(t, map[string]string{"sub/line\nfeed": "x"})
	if _, err := Hash(t.Context(), dir, Options{}); !errors.Is(err, ErrName) || !strings.Contains(err.Error(), filepath.Join(dir, "sub")) {
		t.Errorf("name with line feed: %v", err)
	}
}

func TestChangedFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	write(t, path, strings.Repeat("x", 2*bufferBytes))
	grown := false
	_, err := Hash(t.Context(), path, Options{Progress: func(int64) {
		if !grown {
			grown = true
			write(t, path, strings.Repeat("y", 3*bufferBytes))
		}
	}})
	if !errors.Is(err, ErrChanged) || !strings.Contains(err.Error(), path) {
		t.Errorf("grown file: %v", err)
	}
	swapped := false
	_, err = Hash(t.Context(), path, Options{Progress: func(int64) {
		if !swapped {
			swapped = true
			other := path + ".new"
			write(t, other, strings.Repeat("z", 3*bufferBytes))
			if err := os.Rename(other, path); err != nil && runtime.GOOS != "windows" {
				t.Error(err)
			}
		}
	}})
	if !errors.Is(err, ErrChanged) && runtime.GOOS != "windows" {
		t.Errorf("swapped file: %v", err)
	}
}

func TestChangedDirectory(t *testing.T) {
	for name, change := range map[string]func(dir string){
		"added":   func(dir string) { write(t, filepath.Join(dir, "sub", "new"), "x") },
		"rewrite": func(dir string) { write(t, filepath.Join(dir, "z"), "longer") },
		"removed": func(dir string) { _ = os.Remove(filepath.Join(dir, "a")) },
	} {
		dir := tree(t, map[string]string{"a": "1", "sub/b": "2", "z": "3"})
		var once atomic.Bool
		_, err := Hash(t.Context(), dir, Options{Parallel: 1, Progress: func(int64) {
			if once.CompareAndSwap(false, true) {
				change(dir)
			}
		}})
		if !errors.Is(err, ErrChanged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCanceled(t *testing.T) {
	dir := tree(t, map[string]string{"a": "1", "b": "2"})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, path := range []string{dir, filepath.Join(dir, "a")} {
		if _, err := Hash(ctx, path, Options{}); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestParseManifestRefuses(t *testing.T) {
	good := mustHash(t, tree(t, map[string]string{"a": "1", "b": "2"})).Manifest.Encode()
	for i := range good {
		for bit := range 8 {
			bad := bytes.Clone(good)
			bad[i] ^= 1 << bit
			if _, err := ParseManifest(bad); !errors.Is(err, ErrManifest) && !strings.Contains(string(bad), `"size":`) {
				t.Fatalf("bit %d of byte %d (%q): %v", bit, i, bad, err)
			} else if err == nil && !onlySizeDiffers(good, bad) {
				t.Fatalf("bit %d of byte %d accepted: %s", bit, i, bad)
			}
		}
	}
	for _, bad := range []string{"", "{}", `{"dirHash":"","files":[]}`, string(good) + "x", string(good[:len(good)-1]), " " + string(good)} {
		if _, err := ParseManifest([]byte(bad)); !errors.Is(err, ErrManifest) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	sum := strings.Repeat("0", 64)
	for _, p := range []string{"/a", "../a", "a/../b", "a//b", "./a", "", ".", "..", "a/", `a\b`, "a\nb"} {
		m := newManifest([]Member{{Path: p, SHA256: sum}})
		if _, err := ParseManifest(m.Encode()); !errors.Is(err, ErrManifest) {
			t.Errorf("path %q: %v", p, err)
		}
	}
	twice := newManifest([]Member{{Path: "a", SHA256: sum}, {Path: "a", SHA256: sum}})
	if _, err := ParseManifest(twice.Encode()); !errors.Is(err, ErrManifest) {
		t.Errorf("same path twice: %v", err)
	}
}

// onlySizeDiffers reports whether two manifests list the same files: dirHash does not cover sizes, the body's commitment does.
func onlySizeDiffers(a, b []byte) bool {
	x, err1 := ParseManifest(a)
	y, err2 := ParseManifest(b)
	return err1 == nil && err2 == nil && x.DirHash == y.DirHash && len(x.Files) == len(y.Files)
}

func FuzzParseManifest(f *testing.F) {
	sum := hex.EncodeToString(make([]byte, 32))
	f.Add(newManifest([]Member{{Path: "a/b", SHA256: sum, Size: 3}}).Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ParseManifest(b)
		if err != nil {
			return
		}
		if again := m.Encode(); !bytes.Equal(again, b) {
			t.Fatalf("accepted %q, encodes %q", b, again)
		}
		// The paths must be usable below a directory on any system.
		for _, f := range m.Files {
			if !filepath.IsLocal(f.Path) {
				t.Fatalf("accepted path %q", f.Path)
			}
		}
	})
}

func BenchmarkHashFile(b *testing.B) {
	path := filepath.Join(b.TempDir(), "data")
	const size = 64 << 20
	if err := os.WriteFile(path, make([]byte, size), 0o644); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(size)
	for b.Loop() {
		if _, err := Hash(b.Context(), path, Options{}); err != nil {
			b.Fatal(err)
		}
	}
}

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
