//go:build unix

package localcluster

import (
	"errors"
	"os"
	"syscall"
)

const supported = true

func detached() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }

// tryLock takes the lock of an open file (flock(2)), for itself or among others; it goes with the last copy of the descriptor, in
// whichever process.
func tryLock(f *os.File, alone bool) (bool, error) {
	how := syscall.LOCK_SH
	if alone {
		how = syscall.LOCK_EX
	}
	err := syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}

func terminate(pid int) error { return gone(syscall.Kill(pid, syscall.SIGTERM)) }
func kill(pid int) error      { return gone(syscall.Kill(pid, syscall.SIGKILL)) }

// gone forgives that the process has ended meanwhile.
func gone(err error) error {
	if errors.Is(err, syscall.ESRCH) {
		return nil
	}
	return err
}
