package localcluster

import (
	"os"
	"syscall"
)

// Windows has neither sessions nor a signal that asks a process to end; Open says so before any of these is reached.
const supported = false

func detached() *syscall.SysProcAttr       { return nil }
func tryLock(*os.File, bool) (bool, error) { return false, ErrUnsupported }
func terminate(int) error                  { return ErrUnsupported }
func kill(int) error                       { return ErrUnsupported }
