//go:build unix

package tlsfile

import (
	"os"
	"syscall"
)

// Private reports why a file with a key or a secret is not private enough. A process that is not root can read root's file through its group only, and
// whoever sets that group chose it.
func Private(path string, info os.FileInfo) error {
	forbidden := os.FileMode(0o077)
	if s, ok := info.Sys().(*syscall.Stat_t); ok && s.Uid == 0 {
		forbidden = 0o037
	}
	if info.Mode().Perm()&forbidden != 0 {
		return errReadable(path, info.Mode())
	}
	return nil
}
