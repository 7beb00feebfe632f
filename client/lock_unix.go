//go:build !windows

package client

import (
	"os"
	"syscall"
)

// lockFile waits for the exclusive lock of a file. Closing the file, or the end of the process, gives it up.
func lockFile(f *os.File) error {
	for {
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != syscall.EINTR {
			return err
		}
	}
}

func unlockFile(f *os.File) { _ = syscall.Flock(int(f.Fd()), syscall.LOCK_UN) }
