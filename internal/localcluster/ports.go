package localcluster

import (
	"fmt"
	"math/rand/v2"
	"net"
)

// Ports are taken from below the range from which systems take ports for outgoing connections (Linux: 32,768 and up; RFC 6335 section 6: 49,152
// and up): a free port from that range may be gone again, to a connection of anybody's, before the daemon that it is for has started.
const (
	lowestPort  = 10_240
	highestPort = 32_767
	portTries   = 1000
)

// FreePorts returns n ports of the loopback address that nobody listens on.
func FreePorts(n int) ([]int, error) {
	var ports []int
	for range portTries {
		if len(ports) == n {
			break
		}
		port := lowestPort + rand.IntN(highestPort-lowestPort+1)
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		defer l.Close() // until all are chosen, so that none is chosen twice
		ports = append(ports, port)
	}
	if len(ports) < n {
		return nil, fmt.Errorf("find free ports: %d of %d between %d and %d", len(ports), n, lowestPort, highestPort)
	}
	return ports, nil
}
