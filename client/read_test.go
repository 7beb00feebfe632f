package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/client/receipt"
	"github.com/provledger/provledger/internal/merkle"
	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

// filled returns a ledger with n events, and their events by index.
func filled(t *testing.T, n int) (*testLedger, []*lineage.Event) {
	t.Helper()
	l := newLedger(t)
	events := make([]*lineage.Event, n)
	for i := range events {
		events[i] = event(fmt.Sprint("out", i), fmt.Sprint("in", i%7))
	}
	if _, err := l.dial(Options{}).AppendBatch(t.Context(), "", events); err != nil {
		t.Fatal(err)
	}
	return l, append([]*lineage.Event{nil}, events...)
}

func TestEntries(t *testing.T) {
	l, events := filled(t, 2500)
	c := l.dial(Options{})
	for _, x := range []struct{ first, end, want uint64 }{{0, 0, 2501}, {1, 2, 1}, {255, 258, 3}, {999, 2100, 1101}, {2500, 0, 1}, {2501, 0, 0}, {5, 5, 0}} {
		at := x.first
		for e, err := range c.Entries(t.Context(), "main", x.first, x.end, x.first%2 == 1) {
			if err != nil {
				t.Fatal(err)
			}
			if e.Index != at || at > 0 && e.Leaf.EventID != events[at].ID || (e.BodyState == receipt.Opened) != (x.first%2 == 1) {
				t.Fatalf("entry %d where %d should be, of event %s, body %s", e.Index, at, e.Leaf.EventID, e.BodyState)
			}
			at++
		}
		if at != x.first+x.want {
			t.Errorf("[%d, %d) gave %d entries, want %d", x.first, x.end, at-x.first, x.want)
		}
	}
	if err := drain(c.Entries(t.Context(), "main", 2400, 2600, true)); !errors.Is(err, ErrNotFound) {
		t.Errorf("beyond the end: %v", err)
	}
	mustClose(t, c)
}

func TestEntryBySelector(t *testing.T) {
	l, events := filled(t, 20)
	c := l.dial(Options{})
	r, index, err := c.Receipt(t.Context(), "", Selector{EventID: events[7].ID})
	if err != nil || index != 7 {
		t.Fatalf("by event id: %d, %v", index, err)
	}
	hash := merkle.LeafHash(r.Leaf)
	e, err := c.Entry(t.Context(), "", Selector{LeafHash: hash[:]})
	if err != nil || e.Index != 7 {
		t.Fatalf("by leaf hash: %+v, %v", e, err)
	}
	ids, err := e.Identifiers()
	if err != nil || ids.Job != events[7].Job || ids.References[0].URI != events[7].References[0].URI {
		t.Errorf("identifiers %+v, %v", ids, err)
	}
	docs, err := e.Documents()
	if err != nil || len(docs) != 1 || string(docs[0].Content) != `{"k":1}` {
		t.Errorf("documents %+v, %v", docs, err)
	}
	for name, s := range map[string]Selector{"index": AtIndex(21), "event id": {EventID: lineage.NewID()}, "leaf hash": {LeafHash: make([]byte, 32)}} {
		if _, _, err := c.Receipt(t.Context(), "", s); !errors.Is(err, ErrNotFound) || !isCode(err, codes.NotFound) {
			t.Errorf("unknown %s: %v", name, err)
		}
	}
}

func TestProofs(t *testing.T) {
	l, _ := filled(t, 300)
	c := l.dial(Options{})
	for size := uint64(1); size <= 301; size += 29 {
		for index := uint64(0); index < size; index += 13 {
			p, err := c.InclusionProof(t.Context(), "", AtIndex(index), size)
			if err != nil || p.TreeSize != size || p.Index != index {
				t.Fatalf("leaf %d of %d: %+v, %v", index, size, p, err)
			}
		}
		p, err := c.ConsistencyProof(t.Context(), "", size, 0)
		if err != nil || p.First.Size != size || p.Second.Size != 301 {
			t.Fatalf("consistency from %d: %+v, %v", size, p, err)
		}
	}
	if _, err := c.InclusionProof(t.Context(), "", AtIndex(0), 302); !isCode(err, codes.FailedPrecondition) {
		t.Errorf("size beyond the tree: %v", err)
	}
	if _, err := c.InclusionProof(t.Context(), "", AtIndex(200), 200); !errors.Is(err, ErrNotFound) {
		t.Errorf("leaf beyond the size: %v", err)
	}
	if _, err := c.ConsistencyProof(t.Context(), "", 10, 302); !isCode(err, codes.FailedPrecondition) {
		t.Errorf("second size beyond the tree: %v", err)
	}
	if _, err := c.ConsistencyProof(t.Context(), "", 0, 10); err == nil {
		t.Error("a proof from size 0 says nothing and was given")
	}
	mustClose(t, c)
}

// Find against the obvious: reading everything.
func TestFind(t *testing.T) {
	l, events := filled(t, 400)
	c := l.dial(Options{})
	for name, x := range map[string]struct {
		q    Query
		want func(i int) bool
	}{
		"input":         {Query{Digests: []lineage.Digest{digest("in3")}}, func(i int) bool { return (i-1)%7 == 3 }},
		"two":           {Query{Digests: []lineage.Digest{digest("out5"), digest("out9")}}, func(i int) bool { return i == 6 || i == 10 }},
		"from an index": {Query{Digests: []lineage.Digest{digest("in3")}, First: 200}, func(i int) bool { return (i-1)%7 == 3 && i >= 200 }},
		"prefix":        {Query{Prefixes: []string{digest("out5").String()[:20]}}, func(i int) bool { return i == 6 }},
		"name":          {Query{Names: []lineage.Name{{Name: "out5"}}}, func(i int) bool { return i == 6 }},
		"run":           {Query{RunIDs: []lineage.ID{events[33].RunID}}, func(i int) bool { return i == 33 }},
		"event":         {Query{EventIDs: []lineage.ID{events[34].ID}, SkipBody: true}, func(i int) bool { return i == 34 }},
		"nothing":       {Query{Digests: []lineage.Digest{digest("never")}}, func(int) bool { return false }},
	} {
		var got, want []uint64
		for e, err := range c.Find(t.Context(), "", x.q) {
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			got = append(got, e.Index)
		}
		for i := 1; i < len(events); i++ {
			if x.want(i) {
				want = append(want, uint64(i))
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
	mustClose(t, c)
}

func TestWatch(t *testing.T) {
	l, _ := filled(t, 1500)
	writer := l.dial(Options{})
	c := l.dial(Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	next := uint64(3)
	for u, err := range c.Watch(ctx, "", next, true) {
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range u.Entries {
			if e.Index != next || e.BodyState != receipt.Opened {
				t.Fatalf("entry %d where %d should be, body %s", e.Index, next, e.BodyState)
			}
			next++
		}
		if u.Checkpoint.Size != next {
			t.Fatalf("checkpoint of size %d after %d entries", u.Checkpoint.Size, next)
		}
		if next >= 1501 && next < 1510 {
			mustAppend(t, writer, event(fmt.Sprint("late", next))) // the watch waits for it
		}
		if next == 1510 {
			break
		}
	}
	if next != 1510 {
		t.Errorf("the watch ended at %d", next)
	}
	mustClose(t, c)
	cancel()
	for _, err := range c.Watch(ctx, "", 0, true) {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("watch after Close: %v", err)
		}
	}
}

type alteredStream struct {
	grpc.ClientStream
	alter func(*ledgerv1.WatchResponse)
}

func (s alteredStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if w, ok := m.(*ledgerv1.WatchResponse); ok && err == nil {
		s.alter(w)
	}
	return err
}

func TestDamagedWatch(t *testing.T) {
	l, _ := filled(t, 10)
	old, err := l.dial(Options{}).InclusionProof(t.Context(), "", AtIndex(1), 5)
	if err != nil {
		t.Fatal(err)
	}
	for name, alter := range map[string]func(*ledgerv1.WatchResponse){
		"an entry left out":        func(m *ledgerv1.WatchResponse) { m.Entries = slices.Delete(m.Entries, 4, 5) },
		"the first entry left out": func(m *ledgerv1.WatchResponse) { m.Entries = m.Entries[1:] },
		"two entries swapped":      func(m *ledgerv1.WatchResponse) { m.Entries[1], m.Entries[2] = m.Entries[2], m.Entries[1] },
		"two leaves swapped": func(m *ledgerv1.WatchResponse) {
			m.Entries[1].Leaf, m.Entries[2].Leaf = m.Entries[2].Leaf, m.Entries[1].Leaf
		},
		"a bit of a leaf flipped":   func(m *ledgerv1.WatchResponse) { m.Entries[1].Leaf[40] ^= 1 },
		"a bit of a body flipped":   func(m *ledgerv1.WatchResponse) { m.Entries[1].Body[0].Content[3] ^= 1 },
		"a body withheld":           func(m *ledgerv1.WatchResponse) { m.Entries[1].Body, m.Entries[1].BodyState = nil, 2 },
		"no entries":                func(m *ledgerv1.WatchResponse) { m.Entries = nil },
		"no checkpoint":             func(m *ledgerv1.WatchResponse) { m.Checkpoint = nil },
		"a checkpoint that is old":  func(m *ledgerv1.WatchResponse) { m.Checkpoint = old.Checkpoint },
		"a bit of a signature lost": func(m *ledgerv1.WatchResponse) { m.Checkpoint[len(m.Checkpoint)-9] ^= 1 },
	} {
		c := l.dial(Options{}, grpc.WithStreamInterceptor(
			func(ctx context.Context, d *grpc.StreamDesc, cc *grpc.ClientConn, method string, next grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
				s, err := next(ctx, d, cc, method, opts...)
				return alteredStream{s, alter}, err
			}))
		for _, err := range c.Watch(t.Context(), "", 1, true) {
			if _, ok := errors.AsType[*UntrustedError](err); !ok {
				t.Errorf("%s: %v", name, err)
			}
			break
		}
	}
}

func TestLogs(t *testing.T) {
	c := newLedger(t).dial(Options{})
	made, err := c.CreateLog(t.Context(), "team-a")
	if err != nil || made.Kind != lineage.LineageLog || made.TreeSize != 1 {
		t.Fatalf("%+v, %v", made, err)
	}
	if _, err := c.CreateLog(t.Context(), "team-a"); !isCode(err, codes.AlreadyExists) {
		t.Errorf("the same log again: %v", err)
	}
	if _, err := c.CreateLog(t.Context(), "Not A Name"); !isCode(err, codes.InvalidArgument) {
		t.Errorf("a bad name: %v", err)
	}
	var names []string
	for l, err := range c.Logs(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, l.Name)
	}
	if !slices.Equal(names, []string{"system", "main", "team-a"}) {
		t.Errorf("logs %v", names)
	}
	if r, err := c.Append(t.Context(), "team-a", event("x")); err != nil || r.Index != 1 {
		t.Errorf("append to the new log: %+v, %v", r, err)
	}
	if _, err := c.Append(t.Context(), "system", event("x")); !isCode(err, codes.InvalidArgument) {
		t.Errorf("append to the system log: %v", err)
	}
	if cp, err := c.Checkpoint(t.Context(), "system"); err != nil || cp.Size < 3 {
		t.Errorf("checkpoint of the system log: %+v, %v", cp, err)
	}
	mustClose(t, c)
}
