// Package artifact computes the identity of a file or a directory from its bytes, the same on Linux, macOS and Windows.
//
// A file is its SHA-256. A directory is its in-toto dirHash, and comes with a [lineage.Manifest] that lists every file in it, so that a
// member can be checked without the rest. Neither modes, owners, times nor empty directories count.
//
// What is not plain bytes has a rule each, so that nobody is surprised by what a digest covers:
//
//   - A symbolic link given as the path itself is followed, and [Artifact.Followed] says so.
//   - A symbolic link within a directory stands for the bytes of the regular file that it leads to, if it gets there without leaving the
//     directory: a copy that resolves links (an upload, a zip, a Windows share) then has the same digest, and every byte that counts is
//     in the tree. Links that leave the directory, are absolute, dangle or lead to a directory are refused.
//   - Devices, sockets and pipes are refused, as are names that are not UTF-8 or hold control characters or a backslash: they cannot be
//     the same on all three systems.
//   - Directories named .ledger are left out (an embedded ledger grows while it records its own directory); [Artifact.LeftOut] lists them.
//   - An empty directory has no identity and is refused.
//
// What changes while it is being read has no digest: see [ErrChanged].
package artifact

import (
	"context"
	"crypto/sha3"
	"crypto/sha512"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/provledger/provledger/client/lineage"
)

// Errors that say why something has no digest; the error text names the path.
var (
	// ErrEmpty means a directory without any file.
	ErrEmpty = errors.New("directory has no files, so it has no digest")
	// ErrSpecial means something that is neither a regular file nor a directory.
	ErrSpecial = errors.New("neither a regular file nor a directory")
	// ErrLink means a symbolic link inside a directory that does not lead to a regular file in that directory.
	ErrLink = errors.New("symbolic link does not lead to a regular file inside the directory")
	// ErrName means a file name that cannot be the same on every system.
	ErrName = errors.New("file name is not portable")
	// ErrChanged means that size, modification time or the list of files changed between the first and the last look.
	ErrChanged = errors.New("changed while it was being read")
)

// LedgerDir is the name of directories that are left out: the default place of an embedded ledger.
const LedgerDir = ".ledger"

// Options of [Hash]. The zero value is ready to use.
type Options struct {
	// Progress, if set, is told how many more bytes have been read. It is called from several goroutines at once.
	Progress func(bytes int64)
	// Parallel is how many files of a directory are read at once; 0 means one a CPU.
	Parallel int
	// Also lists algorithms by which a file is hashed too, in the same pass; see [Artifact.Digests]. Those that cannot be computed here are
	// left out, and so are all for a directory.
	Also []lineage.Algorithm
}

func (o Options) workers() int {
	if o.Parallel > 0 {
		return o.Parallel
	}
	return runtime.GOMAXPROCS(0)
}

// Artifact is a file or directory as it was when it was read.
type Artifact struct {
	Path     string            // as given
	Digest   lineage.Digest    // SHA256 of a file, DirHash of a directory
	Digests  []lineage.Digest  // Digest, and those of Options.Also
	Size     int64             // bytes, of all files in a directory
	Manifest *lineage.Manifest // nil for a file
	Followed string            // what Path leads to, if it is a symbolic link
	LeftOut  []string          // .ledger directories that were met and not read, relative to Path
}

// Hash reads the file or directory at path. Errors name the path within; see the variables for what is refused.
func Hash(ctx context.Context, path string, o Options) (*Artifact, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	a := &Artifact{Path: path}
	if l, err := os.Lstat(path); err == nil && l.Mode()&fs.ModeSymlink != 0 {
		if a.Followed, err = filepath.EvalSymlinks(path); err != nil {
			return nil, err
		}
	}
	switch {
	case info.IsDir():
		err = a.hashDir(ctx, o)
	case info.Mode().IsRegular():
		err = a.hashFile(ctx, o)
	default:
		err = fmt.Errorf("%s: %w", path, ErrSpecial)
	}
	if err != nil {
		return nil, err
	}
	return a, nil
}

func (a *Artifact) hashFile(ctx context.Context, o Options) error {
	f, err := os.Open(a.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	var also []io.Writer
	var hashes []hash.Hash
	var algorithms []lineage.Algorithm
	for _, a := range o.Also {
		if newHash := computable[a]; newHash != nil && !slices.Contains(algorithms, a) {
			h := newHash()
			also, hashes, algorithms = append(also, h), append(hashes, h), append(algorithms, a)
		}
	}
	sum, info, err := hashOpen(ctx, f, o.Progress, also...)
	if err == nil {
		// The name may lead elsewhere by now: what was read is then not what is there.
		var now fs.FileInfo
		if now, err = os.Stat(a.Path); err == nil && (!os.SameFile(info, now) || !sameState(info, now)) {
			err = ErrChanged
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", a.Path, err)
	}
	a.Digest, a.Size = lineage.Digest{Algorithm: lineage.SHA256, Value: string(sum[:])}, info.Size()
	a.Digests = []lineage.Digest{a.Digest}
	for i, h := range hashes {
		a.Digests = append(a.Digests, lineage.Digest{Algorithm: algorithms[i], Value: string(h.Sum(nil))})
	}
	return nil
}

// computable are the algorithms of files beside SHA-256 that the standard library has and that prove equal bytes: SHA-1 and MD5 do not,
// so that computing them would tell nothing.
var computable = map[lineage.Algorithm]func() hash.Hash{
	lineage.SHA384: sha512.New384, lineage.SHA512: sha512.New, lineage.SHA512256: sha512.New512_256,
	lineage.SHA3256: func() hash.Hash { return sha3.New256() },
	lineage.SHA3384: func() hash.Hash { return sha3.New384() },
	lineage.SHA3512: func() hash.Hash { return sha3.New512() },
}

// Computes reports whether [Options.Also] can ask for an algorithm.
func Computes(a lineage.Algorithm) bool { return computable[a] != nil }

// Total returns how many bytes [Hash] would read at path: the scale of a progress bar. It stops at the first error and returns what it
// has, for Hash will report the error.
func Total(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	if !info.IsDir() {
		return info.Size()
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return 0
	}
	defer root.Close()
	files, _, err := walk(root)
	if err != nil {
		return 0
	}
	var n int64
	for i := range files {
		n += files[i].info.Size()
	}
	return n
}
