package signer

import (
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/mod/sumdb/note"

	"github.com/provledger/provledger/internal/checkpoint"
)

// ErrNoKey means that this node holds neither a key file of a log nor the secret that its key could be derived from.
var ErrNoKey = errors.New("this node has no key of the log")

const (
	// seedBytes is the length of an Ed25519 seed (RFC 8032 private key).
	seedBytes = 32
	// algEd25519 stands in front of the seed in a private key's text (C2SP signed-note, signature type 0x01).
	algEd25519 = 1
	// privatePrefix begins the text of a private key, PRIVATE+KEY+name+hash+base64(type || seed), as golang.org/x/mod/sumdb/note writes it.
	privatePrefix = "PRIVATE+KEY+"
	// maxKeyFileBytes is far above one line with a name of 255 bytes.
	maxKeyFileBytes = 4096
	// keySuffix marks the files of KeyDir that are keys, so that a README or an editor's copy beside them is not an error.
	keySuffix = ".key"
	// rescanEvery bounds how often a missing key makes the directory be read again: a key that is dropped in is found without restart.
	rescanEvery = 5 * time.Second
)

// keys are the keys that a node has: those in files, and those that its secret gives.
type keys struct {
	fs     vfs.FS
	dir    string // "" without key files
	secret *[SecretBytes]byte
	logger *slog.Logger

	mu      sync.Mutex
	files   map[string]*checkpoint.Key // by origin
	derived map[string]*checkpoint.Key
	read    time.Time
}

func openKeys(o Options) (*keys, error) {
	k := &keys{fs: o.FS, dir: o.KeyDir, logger: o.Logger, derived: map[string]*checkpoint.Key{}}
	if o.Secret != nil {
		secret := *o.Secret
		k.secret = &secret
	}
	if k.dir == "" {
		return k, nil
	}
	var err error
	k.files, err = readKeyDir(k.fs, k.dir)
	k.read = time.Now()
	return k, err
}

// key returns the key of an origin: that of a file if there is one, else the derived one. The error wraps ErrNoKey when there is neither.
func (k *keys) key(origin string) (*checkpoint.Key, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if key := k.files[origin]; key != nil {
		return key, nil
	}
	if key := k.derived[origin]; key != nil {
		return key, nil
	}
	if k.secret != nil {
		key, err := DeriveKey(k.secret, origin)
		if err == nil {
			k.derived[origin] = key
		}
		return key, err
	}
	if k.dir == "" {
		return nil, fmt.Errorf("%w %s: there is no secret in its directory and no key-dir is set", ErrNoKey, origin)
	}
	if time.Since(k.read) >= rescanEvery {
		k.read = time.Now()
		if files, err := readKeyDir(k.fs, k.dir); err != nil {
			k.logger.Warn("the key directory cannot be read again; the keys read before stay", "dir", k.dir, "err", err)
		} else if k.files = files; files[origin] != nil {
			return files[origin], nil
		}
	}
	return nil, fmt.Errorf("%w %s: there is no secret in its directory and no *%s file of that name in %s", ErrNoKey, origin, keySuffix, k.dir)
}

// readKeyDir reads the key files of a directory: one private key each.
func readKeyDir(fs vfs.FS, dir string) (map[string]*checkpoint.Key, error) {
	names, err := fs.List(dir)
	if err != nil {
		return nil, fmt.Errorf("key directory: %w", err)
	}
	found, from := map[string]*checkpoint.Key{}, map[string]string{}
	var faults []error
	for _, name := range names {
		if !strings.HasSuffix(name, keySuffix) {
			continue
		}
		path := fs.PathJoin(dir, name)
		key, err := readKeyFile(fs, path)
		switch {
		case err != nil:
			faults = append(faults, fmt.Errorf("key file %s: %w", path, err))
		case found[key.Name()] != nil:
			faults = append(faults, fmt.Errorf("%s and %s both hold a key of %s; keep one", from[key.Name()], path, key.Name()))
		default:
			found[key.Name()], from[key.Name()] = key, path
		}
	}
	return found, errors.Join(faults...)
}

func readKeyFile(fs vfs.FS, path string) (*checkpoint.Key, error) {
	f, err := fs.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if fs == vfs.Default && runtime.GOOS != "windows" { // other file systems have no modes worth the name
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		if mode := info.Mode().Perm(); mode&0o077 != 0 {
			return nil, fmt.Errorf("it can be read by others (mode %04o): chmod 600 it", mode)
		}
	}
	b, err := io.ReadAll(io.LimitReader(f, maxKeyFileBytes))
	if err != nil {
		return nil, err
	}
	return ParseKey(b)
}

// ParseKey reads the text of an Ed25519 private key, one line as `ledgerctl key export` and golang.org/x/mod/sumdb/note write it:
// "PRIVATE+KEY+name+hash+base64". The name is the origin of the log. No error shows any of the text.
func ParseKey(text []byte) (*checkpoint.Key, error) {
	line := strings.TrimSuffix(strings.TrimSuffix(string(text), "\n"), "\r")
	s, err := note.NewSigner(line) // checks form, type and hash
	if err != nil {
		return nil, errors.New("it is not one line PRIVATE+KEY+NAME+HASH+KEY with an Ed25519 key")
	}
	part := strings.SplitN(line, "+", 5) // base64 may hold more of them
	raw, err := base64.StdEncoding.DecodeString(part[4])
	if err != nil || len(raw) != 1+seedBytes || raw[0] != algEd25519 {
		return nil, errors.New("it is not an Ed25519 key")
	}
	return checkpoint.NewKey(s.Name(), (*[seedBytes]byte)(raw[1:]))
}

// deriveSeed is HKDF-SHA-256 (RFC 5869) of the secret, info = tag || origin || NUL || generation.
func deriveSeed(secret *[SecretBytes]byte, origin string) (*[seedBytes]byte, error) {
	const generation = "1"
	seed, err := hkdf.Key(sha256.New, secret[:], nil, seedTag+origin+"\x00"+generation, seedBytes)
	if err != nil {
		return nil, fmt.Errorf("derive the key of %s: %w", origin, err)
	}
	return (*[seedBytes]byte)(seed), nil
}

// DeriveKey returns the key of an origin that a node's secret gives.
func DeriveKey(secret *[SecretBytes]byte, origin string) (*checkpoint.Key, error) {
	seed, err := deriveSeed(secret, origin)
	if err != nil {
		return nil, err
	}
	return checkpoint.NewKey(origin, seed)
}

// ExportKey returns the text of the private key of an origin that a node's secret gives, for a key file: one line with its line feed.
func ExportKey(secret *[SecretBytes]byte, origin string) ([]byte, error) {
	seed, err := deriveSeed(secret, origin)
	if err != nil {
		return nil, err
	}
	key, err := checkpoint.NewKey(origin, seed)
	if err != nil {
		return nil, err
	}
	private := base64.StdEncoding.EncodeToString(append([]byte{algEd25519}, seed[:]...))
	return fmt.Appendf(nil, "%s%s+%08x+%s\n", privatePrefix, origin, key.KeyHash(), private), nil
}
