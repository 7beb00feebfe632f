package artifact

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
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

// TestAlso: one pass gives every digest that can be computed, and leaves out the rest.
func TestAlso(t *testing.T) {
	path := filepath.Join(t.TempDir(), "abc")
	write(t, path, "abc")
	a, err := Hash(t.Context(), path, Options{Also: []lineage.Algorithm{
		lineage.SHA256, lineage.SHA384, lineage.SHA512, lineage.SHA512256, lineage.SHA3256, lineage.SHA3384, lineage.SHA3512,
		lineage.SHA512, lineage.BLAKE2b, lineage.BLAKE3, lineage.GitBlob, lineage.SHA1, lineage.MD5, lineage.DirHash,
	}})
	if err != nil {
		t.Fatal(err)
	}
	// FIPS 180-4 and FIPS 202 example values of the message "abc".
	want := []string{
		"sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
		"sha384:cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed8086072ba1e7cc2358baeca134c825a7",
		"sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
		"sha512_256:53048e2681941ef99b2e29b76b4c7dabe4c2d0c634fc6d46e0e2f13107e7af23",
		"sha3_256:3a985da74fe225b2045c172d6bd390bd855f086e3e9d525b46bfe24511431532",
		"sha3_384:ec01498288516fc926459f58e2c6ad8df9b473cb0fc08c2596da7cf0e49be4b298d88cea927ac7f539f1edf228376d25",
		"sha3_512:b751850b1a57168a5693cd924b6b096e08f621827444f70d884f5d0240d2712e10e116e9192af3c91a7ec57647e3934057340b4cf408d5a56592f8274eec53f0",
	}
	var got []string
	for _, d := range a.Digests {
		got = append(got, d.String())
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") || a.Digests[0] != a.Digest {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	d := mustHash(t, tree(t, map[string]string{"a": "b"}))
	if len(d.Digests) != 1 || d.Digests[0] != d.Digest {
		t.Errorf("directory: %v", d.Digests)
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
		m, err := lineage.ParseManifest(a.Manifest.Encode())
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
		if err := lineage.CheckMemberPath(name); err == nil {
			t.Errorf("%q: accepted", name)
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
