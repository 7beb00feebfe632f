//go:build !linux

package peer

import (
	"net"
	"time"
)

// setUserTimeout does nothing here: a peer that vanished while something was being sent is noticed by raft's and gRPC's own deadlines.
func setUserTimeout(*net.TCPConn, time.Duration) {}
