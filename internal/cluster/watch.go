package cluster

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/provledger/provledger/internal/peerapi"
	"github.com/provledger/provledger/internal/sequencer"
)

// watch is what Run remembers from one look to the next.
type watch struct {
	applied   uint64    // what this leader had applied at the look before
	ahead     int       // looks in a row in which the clock was ahead of every other voter's
	newer     int       // looks in a row in which a member had a newer membership
	handovers int       // attempts to hand leadership over, not long ago
	handover  time.Time // no other attempt before
	raise     time.Time // no other attempt to raise the version before
	move      time.Time // no other attempt to correct this node's own address before
	observed  uint64    // index of the newest membership that is recorded
	observe   time.Time // no other attempt to record the membership before
	warned    time.Time // when the clock of a sole voter was last warned of
}

// Run does, while this node leads, what the controller does by itself, until ctx ends. It must be called once.
func (c *Controller) Run(ctx context.Context) {
	t := time.NewTicker(lookEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			c.tick(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// tick is one look and what follows from it.
func (c *Controller) tick(ctx context.Context) {
	defer c.announce()
	if !c.o.Raft.IsLeader() {
		c.follow()
		return
	}
	if err := c.lead(); err != nil {
		c.o.Logger.Warn("what was recorded of the membership cannot be read yet", "err", err)
		return
	}
	m := c.membership()
	applied := c.o.Self(ctx).Applied
	sights := c.look(ctx, m)
	if !c.o.Raft.IsLeader() || ctx.Err() != nil {
		return
	}
	c.keepUp(sights)
	c.watch.applied = applied
	c.checkSuperseded(sights)
	if c.checkClock(ctx, sights) || c.checkKeys(ctx, sights) || c.checkDisk(ctx, sights) {
		return
	}
	c.checkVersion(ctx, sights)
	c.checkOwnAddress(ctx, m)
	c.checkWishes(ctx, sights)
	c.checkRecord(ctx)
}

// checkSuperseded stops appends when a member of this leader's keeps having a newer membership than the leader itself. That cannot be as long as
// they are one cluster. It is so when one node was made to go on alone after the loss of a majority (docs/backup.md), and the lost ones come
// back: they are a majority of the membership that they know, and would record a second history under the same keys.
func (c *Controller) checkSuperseded(sights []sight) {
	index := c.membership().index
	for i := range sights {
		s := &sights[i]
		if !s.reachable() || s.Server.ID == c.o.NodeID || s.Configuration <= index {
			continue
		}
		if c.watch.newer++; c.watch.newer < supersededLooks {
			return
		}
		err := fmt.Errorf("%w: %w: node %s has the membership of raft index %d, this leader that of %d; if the cluster was recovered there (ledgerd recover), "+
			"stop this node and let it join again with an empty directory", sequencer.ErrNotApplied, ErrSuperseded, s.Server.ID, s.Configuration, index)
		if c.superseded.Swap(&err) == nil {
			c.o.Logger.Error("this leader records nothing any more", "err", err)
		}
		return
	}
	c.watch.newer = 0
	if c.superseded.Swap(nil) != nil {
		c.o.Logger.Info("this leader records again")
	}
}

// announce wakes who waits for a look.
func (c *Controller) announce() {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.looked)
	c.looked = make(chan struct{})
}

// follow forgets what is a leader's to know.
func (c *Controller) follow() {
	c.clock.Store(nil)
	c.superseded.Store(nil)
	c.ahead.Store(0)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.term == 0 {
		return
	}
	c.term = 0
	clear(c.keeps)
	clear(c.wishes)
	// What was attempted lately stays known: leadership may come back at once.
	c.watch = watch{handovers: c.watch.handovers, handover: c.watch.handover, raise: c.watch.raise}
}

// lead learns what the system log says, once per leadership: which non-voters are to vote, and which membership is recorded.
func (c *Controller) lead() error {
	term := c.o.Raft.Term()
	c.mu.Lock()
	same := c.term == term
	c.mu.Unlock()
	if same {
		return nil
	}
	c.follow()
	m := c.membership()
	open := map[string]bool{} // non-voters of which no record has been met yet
	for _, s := range m.servers {
		if !s.Voter {
			open[s.ID] = true
		}
	}
	wishes, observed := map[string]bool{}, uint64(0)
	err := c.o.History.Records(func(r Record) bool {
		observed = max(observed, r.ConfigurationIndex) // the newest is met first
		if open[r.NodeID] {
			delete(open, r.NodeID)
			wishes[r.NodeID] = r.Voter
		}
		return len(open) > 0
	})
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wishes, c.term = wishes, term
	c.watch.observed = observed
	c.watch.applied = c.o.Self(context.Background()).Applied
	return nil
}

// keepUp notes who has applied what this leader had applied at the look before: a quarter of a second, or a command or two on an idle
// cluster. Comparing with the very newest command would never be true under load.
func (c *Controller) keepUp(sights []sight) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range sights {
		s := &sights[i]
		id := s.Server.ID
		if !s.reachable() || s.Quarantine != "" || s.State != peerapi.StateServing || s.Applied < c.watch.applied {
			delete(c.keeps, id)
			continue
		}
		k, ok := c.keeps[id]
		if !ok {
			k.first = now
		}
		k.last = now
		c.keeps[id] = k
	}
}

// checkClock hands leadership over, or stops appends, when this leader's clock is ahead of every other voter's that answers. It reports
// true when this node leads no more.
func (c *Controller) checkClock(ctx context.Context, sights []sight) (gone bool) {
	ahead, voters, others := time.Duration(1<<63-1), 0, 0
	for i := range sights {
		s := &sights[i]
		if s.Server.ID == c.o.NodeID || !s.reachable() {
			continue
		}
		others++
		if s.Server.Voter {
			voters++
			ahead = min(ahead, s.ahead())
		} else if soleVoter(sights) {
			ahead = min(ahead, s.ahead())
		}
	}
	c.ahead.Store(0)
	if voters > 0 {
		c.ahead.Store(int64(ahead))
	}
	if others == 0 || ahead <= maxClockLead || voters == 0 && !soleVoter(sights) {
		c.watch.ahead = 0
		c.clock.Store(nil)
		return false
	}
	if voters == 0 {
		// There is nobody else to believe: a sole voter's clock is the cluster's.
		if time.Since(c.watch.warned) > time.Minute {
			c.watch.warned = time.Now()
			c.o.Logger.Warn("the clock of the only voter is ahead of every other node's", "ahead", ahead.Round(time.Millisecond))
		}
		return false
	}
	if c.watch.ahead++; c.watch.ahead < 2 {
		return false // one look may have met a moment at which clocks were set
	}
	reason := fmt.Sprintf("its clock is %s ahead of every other voter's", ahead.Round(time.Millisecond))
	if c.handOver(ctx, sights, reason, func(*sight) string { return "" }) {
		return true
	}
	err := fmt.Errorf("%w: %w: it is %s ahead", sequencer.ErrNotApplied, ErrClock, ahead.Round(time.Millisecond))
	if c.clock.Swap(&err) == nil {
		c.o.Logger.Error("appends are refused", "err", err)
	}
	return false
}

// ClockAhead is how far this leader's clock is ahead of the closest other voter's, as last looked at; negative if it is behind all.
func (c *Controller) ClockAhead() time.Duration { return time.Duration(c.ahead.Load()) }

func soleVoter(sights []sight) bool {
	n := 0
	for i := range sights {
		if sights[i].Server.Voter {
			n++
		}
	}
	return n == 1
}

// checkKeys hands leadership to a voter that has the keys of all logs, if this node has not. It reports true when this node leads no more.
func (c *Controller) checkKeys(ctx context.Context, sights []sight) (gone bool) {
	self := sightOf(sights, c.o.NodeID)
	if self == nil || self.MissingKeyCount == 0 {
		return false
	}
	reason := fmt.Sprintf("it lacks the keys of %d logs (%s)", self.MissingKeyCount, strings.Join(self.MissingKeys, ", "))
	return c.handOver(ctx, sights, reason, func(s *sight) string {
		if s.MissingKeyCount > 0 {
			return "lacks keys too"
		}
		return ""
	})
}

// checkDisk hands leadership to a voter that has space, if this node's disk is too full to take appends. It reports true when this node leads
// no more.
func (c *Controller) checkDisk(ctx context.Context, sights []sight) (gone bool) {
	self := sightOf(sights, c.o.NodeID)
	if self == nil || !self.Full {
		return false
	}
	return c.handOver(ctx, sights, "its disk is too full to take appends", func(s *sight) string {
		if s.Full {
			return "has a full disk too"
		}
		return ""
	})
}

// handOver gives leadership to the best voter, unless that was tried not long ago. It reports true when this node leads no more.
func (c *Controller) handOver(ctx context.Context, sights []sight, reason string, not func(*sight) string) bool {
	best, why := c.bestVoter(sights, not)
	if best == nil {
		c.o.Logger.Debug("leadership stays here, nobody else can have it", "reason", reason, "others", why)
		return false
	}
	now := time.Now()
	if now.Before(c.watch.handover) {
		return false
	}
	if now.Sub(c.watch.handover) > 2*handoverPauseMax {
		c.watch.handovers = 0
	}
	c.watch.handover = now.Add(min(handoverPause<<min(c.watch.handovers, 8), handoverPauseMax))
	c.watch.handovers++
	c.o.Logger.Warn("handing leadership over", "reason", reason, "to", best.Server.ID)
	if err := c.transfer(ctx, best.Server.ID); err != nil {
		c.o.Logger.Error("leadership could not be handed over", "err", err)
		return false
	}
	c.follow()
	return true
}

// checkVersion raises the version of commands when every voter knows the next one.
func (c *Controller) checkVersion(ctx context.Context, sights []sight) {
	if time.Now().Before(c.watch.raise) || c.mayRaise(sights) != nil {
		return
	}
	if err := c.raise(ctx, sights); err != nil {
		c.watch.raise = time.Now().Add(raisePause)
		c.o.Logger.Warn("the version of commands was not raised", "err", err)
	}
}

// mayRaise returns why the version of commands cannot be raised, nil if it can. Non-voters that answer count too: they would stop.
func (c *Controller) mayRaise(sights []sight) error {
	next := c.o.History.CommandVersion() + 1
	for i := range sights {
		switch s := &sights[i]; {
		case !s.reachable() && !s.Server.Voter:
		case !s.reachable():
			return fmt.Errorf("%w: voter %s does not answer, so it is not known whether it knows commands of version %d", sequencer.ErrNotApplied, s.Server.ID, next)
		case s.MaxCommand < next:
			return fmt.Errorf("%w: node %s runs %s, which knows commands up to version %d", sequencer.ErrNotApplied, s.Server.ID, s.Version, s.MaxCommand)
		}
	}
	return nil
}

func (c *Controller) raise(ctx context.Context, sights []sight) error {
	if err := c.mayRaise(sights); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	if err := c.o.Recorder.RaiseVersion(ctx); err != nil {
		return err
	}
	c.o.Logger.Info("version of commands raised", "version", c.o.History.CommandVersion())
	return nil
}

// attempt makes a change on Run's own account; when another change is under way, the next look tries again.
func (c *Controller) attempt(ctx context.Context, fn func(ctx context.Context, m membership) error) error {
	select {
	case c.changing <- struct{}{}:
		defer func() { <-c.changing }()
	default:
		return nil
	}
	if !c.o.Raft.IsLeader() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	return fn(ctx, c.membership())
}

// checkOwnAddress writes the address that this node advertises into the membership: it was moved, or began without one.
func (c *Controller) checkOwnAddress(ctx context.Context, m membership) {
	self := m.find(c.o.NodeID)
	if c.o.Address == "" || self == nil || self.Address == c.o.Address || !self.Voter || time.Now().Before(c.watch.move) {
		return
	}
	err := c.attempt(ctx, func(ctx context.Context, m membership) error {
		if other := m.at(c.o.Address); other != nil {
			return refused("this node advertises %s, which is the address of %s", c.o.Address, other.ID)
		}
		if err := c.prepare(ctx); err != nil {
			return err
		}
		if err := c.translate("move "+c.o.NodeID, c.o.Raft.AddVoter(ctx, c.o.NodeID, c.o.Address, m.index)); err != nil {
			return err
		}
		c.o.Logger.Info("this node's address is in the membership now", "address", c.o.Address)
		c.record(ctx, Record{Action: actionMoved, NodeID: c.o.NodeID, Address: c.o.Address, Voter: true})
		return nil
	})
	if err != nil {
		c.watch.move = time.Now().Add(raisePause)
		c.o.Logger.Warn("this node's address could not be written into the membership", "address", c.o.Address, "err", err)
	}
}

// checkWishes promotes non-voters that are to vote and have caught up, one a look.
func (c *Controller) checkWishes(ctx context.Context, sights []sight) {
	for i := range sights {
		s := &sights[i]
		if s.Server.Voter || !c.wished(s.Server.ID) || !c.caughtUp(s.Server.ID) || s.MaxCommand < c.o.History.CommandVersion() {
			continue
		}
		err := c.attempt(ctx, func(ctx context.Context, m membership) error {
			if now := m.find(s.Server.ID); now != nil && !now.Voter && c.wished(now.ID) {
				return c.promote(ctx, m, *now, "")
			}
			return nil
		})
		if err != nil {
			c.o.Logger.Warn("a node that has caught up was not promoted yet", "node", s.Server.ID, "err", err)
		}
		return
	}
}

// checkRecord records a membership that no record speaks of: the first one, and what a leader changed that was lost before it could write
// it down.
func (c *Controller) checkRecord(ctx context.Context) {
	if c.membership().index <= c.watch.observed || time.Now().Before(c.watch.observe) {
		return
	}
	err := c.attempt(ctx, func(ctx context.Context, m membership) error {
		err := c.prepareVersion(ctx)
		if err == nil {
			c.watch.observed, err = c.observe(ctx)
		}
		if err != nil {
			c.watch.observed = 0
		}
		return err
	})
	if err != nil {
		c.watch.observe = time.Now().Add(raisePause)
		c.o.Logger.Warn("the membership is not recorded yet", "err", err)
	}
}
