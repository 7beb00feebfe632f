package consensus

import (
	"context"
	"fmt"
	"sync"

	"github.com/hashicorp/raft"
)

// leadership spreads raft's signals, that this node gains or loses leadership and that it knows another leader, to
// everybody who waits for them.
type leadership struct {
	// notify is what raft sends to. raft's main goroutine blocks until it is received, so that watch must always be ready;
	// the buffer lets the last change of a shutdown through.
	notify chan bool
	// changes is what LeaderChanges returns. Sent to by watch only.
	changes chan bool
	// stop is closed to end watch, done by watch when it has ended.
	stop, done chan struct{}

	mu      sync.Mutex
	leading bool
	changed chan struct{} // closed and replaced at every change

	// observed is what raft sends to when it knows another leader. One is kept, what it says is not looked at.
	observed chan raft.Observation
	leader   chan struct{} // closed and replaced after that
}

func newLeadership() leadership {
	return leadership{
		notify: make(chan bool, 4), changes: make(chan bool, 1), changed: make(chan struct{}),
		stop: make(chan struct{}), done: make(chan struct{}),
		observed: make(chan raft.Observation, 1), leader: make(chan struct{}),
	}
}

// observer makes raft send to observed.
func (l *leadership) observer() *raft.Observer {
	return raft.NewObserver(l.observed, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	})
}

// moved returns a channel that is closed when another leader, or none, is known.
func (l *leadership) moved() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.leader
}

func (l *leadership) move() {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.leader)
	l.leader = make(chan struct{})
}

// watch runs until stop is closed, and calls lead each time that leadership is gained.
func (l *leadership) watch(lead func()) {
	defer close(l.done)
	for {
		select {
		case leading := <-l.notify:
			if leading {
				lead()
			}
			l.set(leading)
		case <-l.observed:
			l.move()
		case <-l.stop:
			l.set(false)
			l.move()
			return
		}
	}
}

func (l *leadership) set(leading bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.leading == leading {
		return
	}
	l.leading = leading
	close(l.changed)
	l.changed = make(chan struct{})
	select {
	case <-l.changes: // an older change that nobody received
	default:
	}
	l.changes <- leading
}

func (l *leadership) wait(ctx context.Context, closing <-chan struct{}) error {
	for {
		select {
		case <-closing: // though this node may still lead until raft has stopped
			return fmt.Errorf("consensus: wait for leadership: %w", ErrClosed)
		default:
		}
		l.mu.Lock()
		leading, changed := l.leading, l.changed
		l.mu.Unlock()
		if leading {
			return nil
		}
		select {
		case <-changed:
		case <-closing:
			return fmt.Errorf("consensus: wait for leadership: %w", ErrClosed)
		case <-ctx.Done():
			return fmt.Errorf("consensus: wait for leadership: %w", context.Cause(ctx))
		}
	}
}
