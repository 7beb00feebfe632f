package peer

import (
	"context"
	"sync"
	"time"

	"github.com/provledger/provledger/client/lineage"
)

// bootRecheck is how long an answer other than yes counts: long enough that a process which keeps coming causes no storm of questions, short
// enough that a node whose address was dead for a moment is asked about again.
const bootRecheck = 5 * time.Second

// maxChecks is when answers that no longer count are forgotten: a process that invents boot ids must not fill the memory.
const maxChecks = 64

// boots remembers which process is the one of a node. Two processes on copies of a directory have one node id and one certificate; what
// tells them apart is which of them answers at the address that the membership has for the node.
type boots struct {
	mu        sync.Mutex
	confirmed map[lineage.ID]lineage.ID // by node: the boot that answered
	checks    map[bootKey]*bootCheck    // under way, or with another answer than yes, not long ago
}

type bootKey struct{ node, boot lineage.ID }

type bootCheck struct {
	done   chan struct{} // closed with err set
	err    error         // why not; nil also if nobody could be asked
	at     time.Time
	warned bool
}

// checkBoot asks, at the first connection of a node's process, which process answers at the node's address. Another one there is an error.
// Nobody there is none, because a node must be let in when its way back does not work; it is said once.
func (p *Port) checkBoot(ctx context.Context, h Hello, address string) error {
	b := &p.boots
	key := bootKey{h.NodeID, h.BootID}
	b.mu.Lock()
	if b.confirmed[h.NodeID] == h.BootID {
		b.mu.Unlock()
		return nil
	}
	old := b.checks[key]
	if old != nil && (!isClosed(old.done) || time.Since(old.at) < bootRecheck) {
		b.mu.Unlock()
		<-old.done // bounded by bootTimeout
		return old.err
	}
	check := &bootCheck{done: make(chan struct{}), warned: old != nil && old.warned}
	if b.checks == nil {
		b.checks, b.confirmed = map[bootKey]*bootCheck{}, map[lineage.ID]lineage.ID{}
	}
	b.checks[key] = check
	if len(b.checks) > maxChecks {
		for k, c := range b.checks {
			if isClosed(c.done) && time.Since(c.at) >= bootRecheck {
				delete(b.checks, k)
			}
		}
	}
	b.mu.Unlock()

	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	there, err := p.Ask(ctx, h.NodeID, address)

	b.mu.Lock()
	check.at = time.Now()
	switch {
	case err != nil:
		if !check.warned {
			check.warned = true
			p.log.Warn("the registered address of a node that connected could not be asked whether it is the same process; let in unchecked",
				"node", h.NodeID, "address", address, "error", err)
		}
	case there.BootID == h.BootID:
		b.confirmed[h.NodeID] = h.BootID
		for k := range b.checks {
			if k.node == h.NodeID && isClosed(b.checks[k].done) {
				delete(b.checks, k)
			}
		}
		delete(b.checks, key)
	default:
		check.err = twoProcesses(h.NodeID, "the one at its registered address "+address, "the one that says it is at "+h.Address)
	}
	close(check.done)
	b.mu.Unlock()
	if err == nil {
		p.closeOthers(h.NodeID, there.BootID)
	}
	return check.err
}

func isClosed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
