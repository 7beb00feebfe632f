package consensus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

var (
	// ErrConfigurationChanged: the cluster's configuration is not the one that the change was based on. Look again.
	ErrConfigurationChanged = errors.New("the cluster configuration has changed")
	// ErrNoServer: the latest configuration does not name the server, or not as a voter where one is needed.
	ErrNoServer = errors.New("no such server")
)

// Server is a member of the cluster.
type Server struct {
	// ID is its node id, Address its peer address; the node id too, as long as it has none.
	ID, Address string
	// Voter says that it counts for majorities. Others only follow.
	Voter bool
}

// members follows the configurations in the log: raft tells the latest one, but not its index. It is fed with every entry
// that passes the gate.
type members struct {
	mu      sync.Mutex
	list    []configuration // by index; the last one is in force
	applied uint64          // index of the newest one that was applied
}

type configuration struct {
	index   uint64
	servers []raft.Server
}

// see notes an entry that is in the log.
func (m *members) see(l *raft.Log) {
	if l.Type != raft.LogConfiguration {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if n := len(m.list); n > 0 && l.Index <= m.list[n-1].index {
		return
	}
	c, err := decodeConfiguration(l.Data)
	if err != nil {
		return // raft decodes it next, and panics
	}
	m.list = append(m.list, configuration{l.Index, c.Servers})
}

// cut forgets what was deleted from the end of the log, from index on.
func (m *members) cut(index uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.list = slices.DeleteFunc(m.list, func(c configuration) bool { return c.index >= index && c.index > m.applied })
}

// apply notes that the configuration at index can not be taken back any more.
func (m *members) apply(index uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.applied = index
	m.list = slices.DeleteFunc(m.list, func(c configuration) bool { return c.index < index })
}

// latest returns the configuration in force, committed or not. The caller must not change it.
func (m *members) latest() configuration {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.list) == 0 {
		return configuration{}
	}
	return m.list[len(m.list)-1]
}

func (m *members) has(id raft.ServerID) bool { _, ok := m.latest().find(id); return ok }

func (c configuration) find(id raft.ServerID) (raft.Server, bool) {
	i := slices.IndexFunc(c.servers, func(s raft.Server) bool { return s.ID == id })
	if i < 0 {
		return raft.Server{}, false
	}
	return c.servers[i], true
}

// Servers returns the latest configuration, committed or not, and its index in the log. A node that was removed is not in
// it; it learns of that only if it could be reached. None and 0: nobody has told this node yet.
func (c *Consensus) Servers() (servers []Server, index uint64) {
	latest := c.log.members.latest()
	for _, s := range latest.servers {
		servers = append(servers, Server{ID: string(s.ID), Address: string(s.Address), Voter: s.Suffrage == raft.Voter})
	}
	return servers, latest.index
}

// AddVoter makes a server a voter: a new one, or one that was none. Of one that is a voter already the address changes.
// prevIndex is the index of the configuration that the decision was based on, 0 for any; if it is not the latest,
// nothing happens and the error wraps ErrConfigurationChanged. nil means that the change is committed. Errors wrap
// ErrNotApplied or ErrUnknown as those of proposals do. One change at a time; a second one waits.
func (c *Consensus) AddVoter(ctx context.Context, id, address string, prevIndex uint64) error {
	return c.change(ctx, "add voter", id, func(timeout time.Duration) raft.IndexFuture {
		return c.raft.AddVoter(raft.ServerID(id), raft.ServerAddress(address), prevIndex, timeout)
	})
}

// AddNonvoter adds a server that follows and does not vote. A voter stays one, only its address changes. See AddVoter.
func (c *Consensus) AddNonvoter(ctx context.Context, id, address string, prevIndex uint64) error {
	return c.change(ctx, "add non-voter", id, func(timeout time.Duration) raft.IndexFuture {
		return c.raft.AddNonvoter(raft.ServerID(id), raft.ServerAddress(address), prevIndex, timeout)
	})
}

// Demote takes the vote from a server. Demoting the leader ends its leadership. ErrNoServer if there is no such server. See
// AddVoter.
func (c *Consensus) Demote(ctx context.Context, id string, prevIndex uint64) error {
	if !c.log.members.has(raft.ServerID(id)) {
		return fmt.Errorf("consensus: demote %s: %w: %w", id, ErrNotApplied, ErrNoServer)
	}
	return c.change(ctx, "demote", id, func(timeout time.Duration) raft.IndexFuture {
		return c.raft.DemoteVoter(raft.ServerID(id), prevIndex, timeout)
	})
}

// Remove takes a server out of the cluster. Removing the leader ends its leadership. The last voter cannot be removed.
// ErrNoServer if there is no such server. See AddVoter.
func (c *Consensus) Remove(ctx context.Context, id string, prevIndex uint64) error {
	if !c.log.members.has(raft.ServerID(id)) {
		return fmt.Errorf("consensus: remove %s: %w: %w", id, ErrNotApplied, ErrNoServer)
	}
	return c.change(ctx, "remove", id, func(timeout time.Duration) raft.IndexFuture {
		return c.raft.RemoveServer(raft.ServerID(id), prevIndex, timeout)
	})
}

// change asks raft for another configuration and waits.
func (c *Consensus) change(ctx context.Context, what, id string, send func(timeout time.Duration) raft.IndexFuture) error {
	var timeout time.Duration
	if end, ok := ctx.Deadline(); ok {
		// raft takes 0 for no limit. The wait is for a leader that knows its commit index and has no change under way.
		timeout = max(time.Until(end), time.Nanosecond)
	}
	var index uint64
	err := c.ask(ctx, func() error {
		f := send(timeout)
		err := f.Error()
		index = f.Index()
		return err
	})
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrNotApplied) || errors.Is(err, ErrUnknown):
	case strings.HasPrefix(err.Error(), "configuration changed since"): // raft has no name for it
		err = fmt.Errorf("%w: %w: %w", ErrNotApplied, ErrConfigurationChanged, err)
	case index == 0: // it never got a place in the log
		err = fmt.Errorf("%w: %w", ErrNotApplied, err)
	default:
		err = fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	return fmt.Errorf("consensus: %s %s: %w", what, id, err)
}

// ask runs something that waits for raft on a goroutine of its own, apart from proposals, whose order it must not hold up.
// Close waits for it: raft answers all that it was asked, but not once it has stopped. f must not be read from after an
// error that wraps ErrUnknown.
func (c *Consensus) ask(ctx context.Context, f func() error) error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return fmt.Errorf("%w: %w", ErrNotApplied, ErrClosed)
	}
	c.asked.Add(1)
	c.mu.Unlock()
	answer := make(chan error, 1)
	go func() {
		defer c.asked.Done()
		answer <- f()
	}()
	select {
	case err := <-answer:
		return err
	case <-c.abandoned:
		return fmt.Errorf("%w: %w", ErrUnknown, ErrClosed)
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrUnknown, context.Cause(ctx))
	}
}

// StepDown hands leadership to the voter that is furthest, and returns nil when this node leads no more. ErrSoleVoter
// when there is none. Proposals fail with ErrNotApplied meanwhile.
func (c *Consensus) StepDown() error {
	if c.soleVoter() {
		return ErrSoleVoter
	}
	err := c.ask(context.Background(), func() error { return c.raft.LeadershipTransfer().Error() })
	if err != nil {
		return fmt.Errorf("consensus: step down: %w", err)
	}
	return nil
}

// Transfer hands leadership to voter id, and returns nil when this node leads no more: mostly id leads then, but it may
// have lost the election. It gives up after about two heartbeat timeouts. Proposals fail with ErrNotApplied meanwhile.
func (c *Consensus) Transfer(ctx context.Context, id string) error {
	s, ok := c.log.members.latest().find(raft.ServerID(id))
	if !ok || s.Suffrage != raft.Voter {
		return fmt.Errorf("consensus: transfer to %s: %w", id, ErrNoServer)
	}
	err := c.ask(ctx, func() error { return c.raft.LeadershipTransferToServer(s.ID, s.Address).Error() })
	if err != nil {
		return fmt.Errorf("consensus: transfer to %s: %w", id, err)
	}
	return nil
}

// soleVoter says that this node is the one voter of the latest configuration.
func (c *Consensus) soleVoter() bool {
	voters := c.log.members.latest().voters()
	return len(voters) == 1 && voters[0] == raft.ServerID(c.conf.NodeID)
}

// voters returns the ids of those who count for a majority.
func (c configuration) voters() (ids []raft.ServerID) {
	for _, s := range c.servers {
		if s.Suffrage == raft.Voter {
			ids = append(ids, s.ID)
		}
	}
	return ids
}

// Leader returns the node id of the leader as this node knows it; "" if it knows none.
func (c *Consensus) Leader() string {
	_, id := c.raft.LeaderWithID()
	return string(id)
}

// LeaderChanged returns a channel that is closed when Leader may return another id than it did after this call. For the
// change after that there is a new channel.
func (c *Consensus) LeaderChanged() <-chan struct{} { return c.leadership.moved() }

// Follower is another member as a leader sees it.
type Follower struct {
	ID string
	// Match is the last log index that it is known to hold; 0: not known yet in this term.
	Match uint64
	// Contact is when it last answered; zero: not in this term.
	Contact time.Time
}

// Followers returns the other members, in the order of Servers; none if this node does not lead.
func (c *Consensus) Followers() []Follower {
	term := c.raft.CurrentTerm()
	if !c.IsLeader() {
		return nil
	}
	var fs []Follower
	for _, s := range c.log.members.latest().servers {
		if s.ID == raft.ServerID(c.conf.NodeID) {
			continue
		}
		p := c.transport.progress(s.ID, term)
		fs = append(fs, Follower{ID: string(s.ID), Match: p.match, Contact: p.contact})
	}
	return fs
}
