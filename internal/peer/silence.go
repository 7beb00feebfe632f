package peer

import (
	"net"
	"time"
)

// setSilence makes the kernel notice a peer whose machine is gone: it probes an idle connection each second, and gives up after as long as
// the lane bears. Errors do not matter: what is behind a proxy of tests has no such options.
func setSilence(c net.Conn, lane Lane) {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return
	}
	d := apiSilence
	if lane == LaneRaft {
		d = raftSilence
	}
	_ = t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: int(d / time.Second)})
	setUserTimeout(t, d)
}
