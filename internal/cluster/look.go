package cluster

import (
	"context"
	"sync"
	"time"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/consensus"
	"github.com/provledger/provledger/internal/peerapi"
)

// sight is what one look saw of a member.
type sight struct {
	consensus.Server
	peerapi.Status
	err error // why it is not reachable; nil if it is
	// asked and answered bound when Status.Now was read, by this node's clock, microseconds since the Unix epoch.
	asked, answered int64
}

func (s *sight) reachable() bool { return s.err == nil }

// ahead is how far this node's clock is ahead of the member's for certain: it had been read before the member read its own.
func (s *sight) ahead() time.Duration { return time.Duration(s.asked-s.Now) * time.Microsecond }

// behind is how far this node's clock is behind the member's for certain.
func (s *sight) behind() time.Duration { return time.Duration(s.Now-s.answered) * time.Microsecond }

// offset is the member's clock minus this node's, as exactly as the round trip allows.
func (s *sight) offset() time.Duration {
	return time.Duration(s.Now-s.asked-(s.answered-s.asked)/2) * time.Microsecond
}

// look asks all members of a membership at once how they are. It takes lookTimeout at most.
func (c *Controller) look(ctx context.Context, m membership) []sight {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	sights := make([]sight, len(m.servers))
	var wg sync.WaitGroup
	for i, s := range m.servers {
		sights[i].Server = s
		wg.Go(func() { c.see(ctx, &sights[i]) })
	}
	wg.Wait()
	return sights
}

func (c *Controller) see(ctx context.Context, s *sight) {
	s.asked = c.o.Now()
	if s.Server.ID == c.o.NodeID {
		s.Status = c.o.Self(ctx)
	} else if s.Status, s.err = c.o.Peers.Status(ctx, s.Server.ID, s.Server.Address); s.err == nil {
		s.err = c.checkIdentity(s.Server.ID, s.Status)
	}
	s.answered = c.o.Now()
}

// checkIdentity holds a status to the node that was asked.
func (c *Controller) checkIdentity(id string, st peerapi.Status) error {
	if st.NodeID.String() != id {
		return refused("node %s answers there", st.NodeID)
	}
	if st.ClusterID != c.o.ClusterID && st.ClusterID != (lineage.ID{}) {
		return refused("it belongs to cluster %s", st.ClusterID)
	}
	return nil
}

// sightOf returns the sight of a member.
func sightOf(sights []sight, id string) *sight {
	for i := range sights {
		if sights[i].Server.ID == id {
			return &sights[i]
		}
	}
	return nil
}
