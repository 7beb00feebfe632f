//go:build unix

package main

import (
	"os"
	"syscall"
)

// reloadSignals make ledgerd reread its certificates.
var reloadSignals = []os.Signal{syscall.SIGHUP}
