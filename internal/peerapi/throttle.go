package peerapi

import (
	"context"
	"sync"
	"time"
)

// throttle is a token bucket over bytes: what is sent beyond the rate waits. It holds a second's worth, and a single message may overdraw
// it, so that a large chunk gets through at any rate. nil does not limit.
type throttle struct {
	rate float64 // bytes a second
	now  func() time.Time

	mu     sync.Mutex
	tokens float64 // bytes that may be sent now; negative: overdrawn
	last   time.Time
}

func newThrottle(bytesPerSecond int64, now func() time.Time) *throttle {
	if bytesPerSecond <= 0 {
		return nil
	}
	return &throttle{rate: float64(bytesPerSecond), now: now, tokens: float64(bytesPerSecond), last: now()}
}

// take reserves n bytes and returns how long to wait before they are sent. Whoever comes later waits longer, so the order is kept.
func (t *throttle) take(n int) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	if d := now.Sub(t.last); d > 0 {
		t.tokens = min(t.tokens+d.Seconds()*t.rate, t.rate)
	}
	t.last = now
	t.tokens -= float64(n)
	if t.tokens >= 0 {
		return 0
	}
	return time.Duration(-t.tokens / t.rate * float64(time.Second))
}

// wait returns when n bytes may be sent.
func (t *throttle) wait(ctx context.Context, n int) error {
	if t == nil {
		return ctx.Err()
	}
	d := t.take(n)
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
