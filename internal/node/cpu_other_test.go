//go:build !linux

package node_test

import (
	"testing"
	"time"
)

// cpuTime is measured on Linux only.
func cpuTime(*testing.B) time.Duration { return 0 }
