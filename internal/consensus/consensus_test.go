package consensus

import (
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A sole voter must not wait for a timeout that exists to hear of other voters: with one of an hour, no fake time passes.
func TestSoleVoterLeadsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		n := start(t, func(c *Config) { c.HeartbeatTimeout = time.Hour })
		n.propose(t, "a")
		if d := time.Since(begin); d >= time.Second {
			t.Errorf("led and applied after %v of fake time, HeartbeatTimeout is an hour", d)
		}
		if !n.IsLeader() || n.Term() != 2 {
			t.Errorf("IsLeader %v, Term %d; want true, 2", n.IsLeader(), n.Term())
		}
	})
}
