package consensus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// Commands are applied in the order of the Propose calls, each result and index goes to its own proposal.
func TestProposeKeepsOrder(t *testing.T) {
	n := start(t)
	const total = 500
	var want []string
	var flying []*Proposal
	var last uint64
	wait := func(i int) {
		result, index, err := flying[i].Wait(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if result != i+1 {
			t.Errorf("result of proposal %d is %v, want %d", i, result, i+1)
		}
		if index <= last {
			t.Errorf("index of proposal %d is %d, of the one before %d", i, index, last)
		}
		last = index
	}
	for i := range total {
		if i >= DefaultMaxAppendEntries {
			wait(i - DefaultMaxAppendEntries)
		}
		want = append(want, command(i))
		flying = append(flying, n.Propose([]byte(command(i))))
	}
	for i := total - DefaultMaxAppendEntries; i < total; i++ {
		wait(i)
	}
	if got := n.toy.commands(); !slices.Equal(got, want) {
		t.Errorf("applied %q\nwant %q", got, want)
	}
	if got := n.toy.live.indexes[total-1]; got != last {
		t.Errorf("the machine saw the last command at %d, its proposer at %d", got, last)
	}
}

// An error that a machine returns is an outcome like any other.
func TestErrorResultIsAResult(t *testing.T) {
	n := start(t)
	result, index := n.propose(t, "refuse this")
	if result != errRefused || index == 0 {
		t.Errorf("result %v at index %d, want %v at an index", result, index, errRefused)
	}
}

func TestWait(t *testing.T) {
	n := start(t)
	n.barrier(t) // no Apply of the start-up is left to be held
	hold := make(chan struct{})
	n.toy.mu.Lock()
	n.toy.hold = hold
	n.toy.mu.Unlock()
	p := n.Propose([]byte("a"))

	stop := errors.New("the caller went away")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(stop)
	if _, _, err := p.Wait(ctx); !errors.Is(err, ErrUnknown) || !errors.Is(err, stop) || errors.Is(err, ErrNotApplied) {
		t.Errorf("with an ended context: %v, want ErrUnknown and the cause", err)
	}

	// All of many waiters learn the end, whoever gave up before.
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if result, index, err := p.Wait(t.Context()); result != 1 || index == 0 || err != nil {
				t.Errorf("Wait = %v, %d, %v; want 1, an index, no error", result, index, err)
			}
		})
	}
	close(hold)
	wg.Wait()
	if result, _, err := p.Wait(ctx); result != 1 || err != nil {
		t.Errorf("a known result under an ended context: %v, %v; want 1", result, err)
	}
}

// Propose does not block on a machine that is stuck: it refuses.
func TestBusy(t *testing.T) {
	n := start(t, func(c *Config) { c.MaxAppendEntries = 4 })
	n.barrier(t)
	hold := make(chan struct{})
	n.toy.mu.Lock()
	n.toy.hold = hold
	n.toy.mu.Unlock()
	var flying []*Proposal
	for i := range 4 {
		flying = append(flying, n.Propose([]byte(command(i))))
	}
	_, _, err := n.Propose([]byte("one too many")).Wait(t.Context())
	if !errors.Is(err, ErrNotApplied) || !errors.Is(err, ErrBusy) {
		t.Errorf("fifth of four: %v, want ErrNotApplied and ErrBusy", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := n.Barrier(ctx); !errors.Is(err, ErrNotApplied) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("barrier without a slot: %v, want ErrNotApplied and the deadline", err)
	}
	close(hold)
	for _, p := range flying {
		if _, _, err := p.Wait(t.Context()); err != nil {
			t.Error(err)
		}
	}
	n.propose(t, "room again")
	if got, want := n.toy.commands(), []string{command(0), command(1), command(2), command(3), "room again"}; !slices.Equal(got, want) {
		t.Errorf("applied %q, want %q", got, want)
	}
}

func TestBarrier(t *testing.T) {
	n := start(t)
	hold := make(chan struct{}, 100)
	n.toy.mu.Lock()
	n.toy.hold = hold
	n.toy.mu.Unlock()
	p := n.Propose([]byte("a"))
	done := make(chan error, 1)
	go func() { done <- n.Barrier(t.Context()) }()
	select {
	case err := <-done:
		t.Fatalf("barrier passed (%v) a command that is not applied", err)
	case <-time.After(20 * time.Millisecond): // cannot fail wrongly: the machine is held
	}
	close(hold)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := n.toy.commands(); !slices.Equal(got, []string{"a"}) {
		t.Errorf("after the barrier %q is applied", got)
	}
	if _, _, err := p.Wait(t.Context()); err != nil {
		t.Error(err)
	}
}

// Every error that raft v1.8.0 can answer a proposal with, and one that it has never heard of.
func TestClassify(t *testing.T) {
	for _, test := range []struct {
		err  error
		want error
	}{
		{raft.ErrNotLeader, ErrNotApplied},
		{raft.ErrLeadershipTransferInProgress, ErrNotApplied},
		{raft.ErrEnqueueTimeout, ErrNotApplied},
		{ErrClosed, ErrNotApplied},
		{ErrBusy, ErrNotApplied},
		{raft.ErrLeadershipLost, ErrUnknown},
		{raft.ErrAbortedByRestore, ErrUnknown},
		{raft.ErrRaftShutdown, ErrUnknown},
		{errors.New("write raft/000003: input/output error"), ErrUnknown},
		{fmt.Errorf("wrapped: %w", raft.ErrNotLeader), ErrNotApplied},
	} {
		err := classify(test.err)
		if !errors.Is(err, test.err) {
			t.Errorf("classify(%v) = %v loses the reason", test.err, err)
		}
		for _, class := range []error{ErrNotApplied, ErrUnknown} {
			if errors.Is(err, class) != (class == test.want) {
				t.Errorf("errors.Is(classify(%v), %v) is %v", test.err, class, errors.Is(err, class))
			}
		}
	}
}

// A failed write may be on the disk all the same.
func TestStoreErrorIsUnknown(t *testing.T) {
	n := start(t)
	n.barrier(t)
	broken := errors.New("no space left on device")
	n.store.mu.Lock()
	n.store.storeAs = func([]*raft.Log) error { return broken }
	n.store.mu.Unlock()
	_, _, err := n.Propose([]byte("a")).Wait(t.Context())
	if !errors.Is(err, ErrUnknown) || !errors.Is(err, broken) || errors.Is(err, ErrNotApplied) {
		t.Errorf("%v, want ErrUnknown and the store's error", err)
	}
}

func TestCloseDrains(t *testing.T) {
	n := start(t)
	n.barrier(t)
	hold := make(chan struct{})
	n.toy.mu.Lock()
	n.toy.hold = hold
	n.toy.mu.Unlock()
	var flying []*Proposal
	for i := range 5 {
		flying = append(flying, n.Propose([]byte(command(i))))
	}
	closed := make(chan error, 1)
	go func() { closed <- n.Close(t.Context()) }()
	<-n.closing
	_, _, err := n.Propose([]byte("late")).Wait(t.Context())
	if !errors.Is(err, ErrNotApplied) || !errors.Is(err, ErrClosed) {
		t.Errorf("proposal while closing: %v, want ErrNotApplied and ErrClosed", err)
	}
	close(hold)
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
	for i, p := range flying {
		if result, _, err := p.Wait(t.Context()); result != i+1 || err != nil {
			t.Errorf("proposal %d, in flight when Close was called: %v, %v", i, result, err)
		}
	}
	if err := n.Barrier(t.Context()); !errors.Is(err, ErrNotApplied) || !errors.Is(err, ErrClosed) {
		t.Errorf("barrier after Close: %v, want ErrNotApplied and ErrClosed", err)
	}
	if err := n.WaitLeader(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("WaitLeader after Close: %v, want ErrClosed", err)
	}
	if n.IsLeader() {
		t.Error("leads after Close")
	}
	if err := n.Close(t.Context()); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

// A machine that hangs must not hang Close, nor those who wait for a proposal.
func TestCloseGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := &toy{}
		s := newMemStore(y)
		if err := Bootstrap(s, testNode, ""); err != nil {
			t.Fatal(err)
		}
		c, err := Open(testConfig(t, s, y))
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(c.WaitLeader(t.Context()), c.Barrier(t.Context())); err != nil {
			t.Fatal(err)
		}
		hold := make(chan struct{})
		y.mu.Lock()
		y.hold = hold
		y.mu.Unlock()
		p := c.Propose([]byte("a"))
		synctest.Wait() // the machine holds it
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := c.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Close: %v, want the deadline", err)
		}
		if _, _, err := p.Wait(t.Context()); !errors.Is(err, ErrUnknown) || !errors.Is(err, ErrClosed) {
			t.Errorf("proposal that Close gave up on: %v, want ErrUnknown and ErrClosed", err)
		}
		close(hold) // all goroutines end now, or the bubble complains
		<-c.stopped
	})
}
