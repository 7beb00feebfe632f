package signer

import (
	"bytes"
	"crypto/rand"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/mod/sumdb/note"

	"github.com/provledger/provledger/internal/checkpoint"
	"github.com/provledger/provledger/internal/merkle"
)

// openKeyed opens a signer whose trees are empty.
func openKeyed(t *testing.T, secret *[SecretBytes]byte, keyDir string) (*Signer, error) {
	t.Helper()
	w := newWorld(newHistory(10, 10, 0))
	s, err := Open(Options{
		FS: vfs.Default, Dir: filepath.Join(t.TempDir(), "signer"), Secret: secret, KeyDir: keyDir, Tree: w.tree,
		Logger: slog.New(slog.DiscardHandler), Die: func(reason string, err error) { panic(reason) },
	})
	if err == nil {
		t.Cleanup(func() { mustClose(t, s) })
	}
	return s, err
}

func writeKey(t *testing.T, dir, name string, content []byte, mode os.FileMode) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// A key that is exported and put into a key directory signs as the secret would, and what it signs is read by the reference.
func TestExportedKeySigns(t *testing.T) {
	secret := &[SecretBytes]byte{7}
	text, err := ExportKey(secret, origin)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := note.NewSigner(strings.TrimSpace(string(text))); err != nil {
		t.Fatalf("the reference does not read it: %v", err)
	}
	dir := t.TempDir()
	writeKey(t, dir, "main.key", text, 0o600)
	writeKey(t, dir, "README", []byte("no key"), 0o644)
	filed, err := openKeyed(t, nil, dir)
	if err != nil {
		t.Fatal(err)
	}
	derived, err := openKeyed(t, secret, "")
	if err != nil {
		t.Fatal(err)
	}
	vkey, err := derived.VKey(origin)
	if err != nil || !filed.Has(origin, vkey) {
		t.Fatalf("the exported key is not that of the secret (%v)", err)
	}
	root := newHistory(10, 10, 0)[3]
	a, err := filed.Checkpoint(origin, 3, root)
	if err != nil {
		t.Fatal(err)
	}
	b, err := derived.Checkpoint(origin, 3, root)
	if err != nil || !bytes.Equal(a, b) {
		t.Errorf("signed\n%s and\n%s, %v", a, b, err)
	}
	v, err := note.NewVerifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := note.Open(a, note.VerifierList(v)); err != nil {
		t.Error(err)
	}
}

func TestKeyFileWinsOverTheSecret(t *testing.T) {
	dir := t.TempDir()
	private, vkey, err := note.GenerateKey(rand.Reader, origin)
	if err != nil {
		t.Fatal(err)
	}
	writeKey(t, dir, "x.key", []byte(private+"\n"), 0o400)
	s, err := openKeyed(t, &[SecretBytes]byte{7}, dir)
	if err != nil {
		t.Fatal(err)
	}
	if !s.Has(origin, vkey) {
		t.Error("the key file does not count")
	}
	derived, err := DeriveKey(&[SecretBytes]byte{7}, origin)
	if err != nil || s.Has(origin, derived.VKey()) {
		t.Errorf("both keys count (%v)", err)
	}
	if other := origin + "2"; s.Has(other, vkey) {
		t.Error("one key serves two logs")
	} else if _, err := s.VKey(other); err != nil {
		t.Errorf("the secret does not serve the other log: %v", err)
	}
}

func TestWithoutKeys(t *testing.T) {
	s, err := openKeyed(t, nil, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.VKey(origin); !errors.Is(err, ErrNoKey) {
		t.Errorf("VKey: %v", err)
	}
	if _, err := s.Checkpoint(origin, 1, merkle.Hash{}); !errors.Is(err, ErrNoKey) {
		t.Errorf("Checkpoint: %v", err)
	}
	if s.Has(origin, "") {
		t.Error("it claims to have a key")
	}
}

// What is wrong with a key file is said, with all files that are wrong, and never with any of the key.
func TestBadKeyFiles(t *testing.T) {
	text, err := ExportKey(&[SecretBytes]byte{7}, origin)
	if err != nil {
		t.Fatal(err)
	}
	half := text[len(text)-40 : len(text)-8] // of the key itself
	dir := t.TempDir()
	writeKey(t, dir, "a.key", text, 0o600)
	writeKey(t, dir, "again.key", text, 0o600)
	writeKey(t, dir, "cut.key", text[:len(text)-10], 0o600)
	writeKey(t, dir, "empty.key", nil, 0o600)
	writeKey(t, dir, "two.key", append(bytes.Clone(text), text...), 0o600)
	writeKey(t, dir, "open.key", text, 0o640)
	if err := os.Mkdir(filepath.Join(dir, "dir.key"), 0o700); err != nil {
		t.Fatal(err)
	}
	_, err = openKeyed(t, nil, dir)
	if err == nil {
		t.Fatal("opened")
	}
	want := []string{"again.key both hold a key of", "cut.key: it is not", "empty.key: it is not", "two.key: it is not", "dir.key: "}
	if runtime.GOOS != "windows" {
		want = append(want, "open.key: it can be read by others (mode 0640)")
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q is not said in\n%v", w, err)
		}
	}
	if strings.Contains(err.Error(), string(half)) {
		t.Errorf("the error shows a key:\n%v", err)
	}
	if _, err := openKeyed(t, nil, filepath.Join(dir, "nowhere")); err == nil {
		t.Error("a key directory that is not there was accepted")
	}
}

// A key that is put there later is found without a restart.
func TestKeyAddedLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := vfs.NewMem()
		if err := mem.MkdirAll("keys", 0o700); err != nil {
			t.Fatal(err)
		}
		k, err := openKeys(Options{FS: mem, KeyDir: "keys", Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		text, err := ExportKey(&[SecretBytes]byte{7}, origin)
		if err != nil {
			t.Fatal(err)
		}
		f, err := mem.Create("keys/a.key", vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(text); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := k.key(origin); !errors.Is(err, ErrNoKey) {
			t.Errorf("the directory is read at every question: %v", err)
		}
		time.Sleep(rescanEvery)
		if _, err := k.key(origin); err != nil {
			t.Error(err)
		}
	})
}

func TestReadRecord(t *testing.T) {
	fs := newDisk(t)
	if _, _, ok, err := ReadRecord(fs, "node/signer", origin); ok || err != nil {
		t.Errorf("without a record: %v, %v", ok, err)
	}
	h := newHistory(10, 10, 0)
	w := newWorld(h)
	s := w.open(t, fs)
	w.sign(t, s, 7)
	w.sign(t, s, 4)
	mustClose(t, s)
	size, root, ok, err := ReadRecord(fs, "node/signer", origin)
	if size != 7 || root != h[7] || !ok || err != nil {
		t.Errorf("got %d %s %v %v", size, root, ok, err)
	}
	name := fs.PathJoin("node/signer", RecordName(origin))
	for _, at := range []int64{8, slotDistance + 8} { // both slots
		f, err := fs.OpenReadWrite(name, vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte{0xff}, at); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, _, err := ReadRecord(fs, "node/signer", origin); !errors.Is(err, ErrRecord) {
		t.Errorf("damaged: %v", err)
	}
}

func FuzzParseKey(f *testing.F) {
	f.Add([]byte("PRIVATE+KEY+a+b+c"))
	f.Fuzz(func(t *testing.T, text []byte) {
		key, err := ParseKey(text)
		if err != nil {
			return
		}
		s, err := note.NewSigner(strings.TrimSuffix(strings.TrimSuffix(string(text), "\n"), "\r"))
		if err != nil {
			t.Fatalf("the reference refuses %q: %v", text, err)
		}
		message := []byte("a\n1\n")
		a, err := s.Sign(message)
		if err != nil {
			t.Fatal(err)
		}
		b, err := key.Sign(message)
		if err != nil || !bytes.Equal(a, b) || s.Name() != key.Name() || s.KeyHash() != key.KeyHash() {
			t.Errorf("%q signs otherwise than the reference", text)
		}
		if _, err := checkpoint.NewVerifier(key.VKey()); err != nil {
			t.Error(err)
		}
	})
}
