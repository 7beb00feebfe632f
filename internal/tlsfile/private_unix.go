//go:build unix

package tlsfile

import (
	"os"
	"syscall"
)

// private reports why a key file is not private enough. A process that is not root can read root's file through its group only, and
// whoever sets that group chose it.
func private(path string, info os.FileInfo) error {
	forbidden := os.FileMode(0o077)
	if s, ok := info.Sys().(*syscall.Stat_t); ok && s.Uid == 0 {
		forbidden = 0o037
	}
	if info.Mode().Perm()&forbidden != 0 {
		return errReadable(path, info.Mode())
	}
	return nil
}
