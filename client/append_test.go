package client

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/client/receipt"
)

// checkOffline holds a receipt to the offline verifier, which shares no code with the client's checks but the arithmetic.
func checkOffline(t *testing.T, c *Client, r *receipt.Receipt, e *lineage.Event) {
	t.Helper()
	info, err := c.Log(t.Context(), "main")
	if err != nil {
		t.Fatal(err)
	}
	policy, err := receipt.PolicyFor(info.VKey)
	if err != nil {
		t.Fatal(err)
	}
	again, err := receipt.Parse(r.Encode())
	if err != nil {
		t.Fatal(err)
	}
	subject := receipt.Subject{Digests: []lineage.Digest{e.References[0].Digest}}
	if v := receipt.Verify(again, policy, []receipt.Subject{subject}, receipt.Require{}); v.Outcome != receipt.Verified {
		t.Fatalf("offline: %+v", v)
	}
}

func TestAppend(t *testing.T) {
	c := newLedger(t).dial(Options{})
	e := event("model", "data")
	r := mustAppend(t, c, e)
	if r.Index != 1 || r.TreeSize != 2 || r.Duplicate {
		t.Fatalf("first event: %+v", r)
	}
	checkOffline(t, c, r.Receipt, e)

	again := mustAppend(t, c, event("other"), e)
	if again.Index != r.Index || !again.Duplicate || again.TreeSize != 3 || again.LeafHash != r.LeafHash {
		t.Fatalf("sent again: %+v, was %+v", again, r)
	}
	changed := *e
	changed.OccurredAt++
	if _, err := c.Append(t.Context(), "", &changed); !isCode(err, codes.AlreadyExists) || errors.Is(err, ErrUnknown) || errors.Is(err, ErrNotApplied) {
		t.Fatalf("same id, other content: %v", err)
	}
	bad := event("x")
	bad.ID = lineage.ID{}
	if _, err := c.Append(t.Context(), "", bad); err == nil {
		t.Fatal("an event without id was recorded")
	} else if f, ok := errors.AsType[*lineage.FieldError](err); !ok || f.Path != "event_id" {
		t.Fatalf("event without id: %v", err)
	}
	if _, err := c.Append(t.Context(), "no-such-log", event("x")); !isCode(err, codes.NotFound) || !errors.Is(err, ErrNotApplied) {
		t.Fatalf("unknown log: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Append(t.Context(), "", event("x")); !errors.Is(err, ErrClosed) {
		t.Fatalf("after Close: %v", err)
	}
}

// A resent batch mixes old events, at scattered indexes, with new ones: several runs in one proof.
func TestAppendBatch(t *testing.T) {
	c := newLedger(t).dial(Options{})
	var old []*lineage.Event
	for i := range 9 {
		e := event(fmt.Sprint("old", i))
		mustAppend(t, c, e)
		old = append(old, e)
	}
	var events []*lineage.Event
	for i := range 400 {
		events = append(events, event(fmt.Sprint("new", i), "data"))
	}
	events[3], events[200], events[399] = old[7], old[0], old[1]
	b, err := c.AppendBatch(t.Context(), "main", events)
	if err != nil {
		t.Fatal(err)
	}
	if b.Len() != 400 || b.TreeSize != 1+9+397 {
		t.Fatalf("%d results at size %d", b.Len(), b.TreeSize)
	}
	for i, want := range map[int]uint64{0: 10, 3: 8, 200: 1, 399: 2, 398: 1 + 9 + 396} {
		if b.Index(i) != want || b.Duplicate(i) != (want < 10) {
			t.Errorf("event %d: index %d, duplicate %v, want %d", i, b.Index(i), b.Duplicate(i), want)
		}
	}
	for i := range events {
		r, err := b.Recorded(i)
		if err != nil {
			t.Fatal(err)
		}
		if i%50 == 0 || i == 3 || i == 399 {
			checkOffline(t, c, r.Receipt, events[i])
			// The server's own receipt, asked for one by one, is the same file.
			s, index, err := c.Receipt(t.Context(), "", AtIndex(r.Index))
			if err != nil || index != r.Index || !bytes.Equal(s.Encode(), r.Receipt.Encode()) {
				t.Fatalf("event %d: derived and served receipt differ (%v)", i, err)
			}
		}
	}
	events[0].Documents[0].Content = []byte("changed")
	if _, err := b.Receipt(0); err == nil {
		t.Error("a receipt was made for an event that was changed after it was sent")
	}
	if _, err := c.AppendBatch(t.Context(), "", nil); !isCode(err, codes.InvalidArgument) {
		t.Errorf("empty batch: %v", err)
	}
	twice := event("twice")
	if _, err := c.AppendBatch(t.Context(), "", []*lineage.Event{twice, twice}); !isCode(err, codes.InvalidArgument) {
		t.Errorf("one id twice in a batch: %v", err)
	}
}

// Many goroutines of one client: the answers arrive out of order, and everything is still connected.
func TestAppendConcurrently(t *testing.T) {
	l := newLedger(t)
	c := l.dial(Options{})
	var wg sync.WaitGroup
	var mu sync.Mutex
	taken := make(map[uint64]bool)
	for w := range 8 {
		wg.Go(func() {
			for i := range 40 {
				r, err := c.Append(t.Context(), "", event(fmt.Sprint(w, "/", i)))
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if taken[r.Index] {
					t.Errorf("index %d was given twice", r.Index)
				}
				taken[r.Index] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	h := c.logs["main"].history
	c.mu.Unlock()
	if h.seen.size != 321 || len(h.open) != 0 {
		t.Errorf("after Close seen is %d with %d waiting, want 321 and 0", h.seen.size, len(h.open))
	}
}
