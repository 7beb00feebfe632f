package client

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/provledger/provledger/client/lineage"
	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

// damage walks a message and alters its n-th site: a bit of a byte string or text, a number, an enum. It returns what it altered, or "" if
// the message has no n-th site. Long strings have a site at both ends and at some places between.
func damage(m protoreflect.Message, n *int, path string) (what string) {
	var fields []protoreflect.FieldDescriptor
	m.Range(func(f protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		fields = append(fields, f)
		return true
	})
	slices.SortFunc(fields, func(a, b protoreflect.FieldDescriptor) int { return int(a.Number() - b.Number()) })
	for _, f := range fields {
		at := path + "." + string(f.Name())
		if !f.IsList() {
			if v, what := damageValue(f, m.Get(f), n, at); what != "" {
				m.Set(f, v)
				return what
			}
			continue
		}
		list := m.Mutable(f).List()
		// Of a long list the ends and the middle are enough.
		for _, i := range slices.Compact([]int{0, list.Len() / 2, list.Len() - 1}) {
			if v, what := damageValue(f, list.Get(i), n, fmt.Sprintf("%s[%d]", at, i)); what != "" {
				list.Set(i, v)
				return what
			}
		}
	}
	return ""
}

const sitesPerString = 12

func damageValue(f protoreflect.FieldDescriptor, v protoreflect.Value, n *int, at string) (protoreflect.Value, string) {
	hit := func() bool { *n--; return *n < 0 }
	switch f.Kind() {
	case protoreflect.MessageKind:
		return v, damage(v.Message(), n, at)
	case protoreflect.BytesKind:
		b := slices.Clone(v.Bytes())
		if i := site(len(b), n); i >= 0 {
			b[i] ^= 1 << rand.N(8)
			return protoreflect.ValueOfBytes(b), fmt.Sprintf("%s byte %d", at, i)
		}
	case protoreflect.StringKind:
		b := []byte(v.String())
		if i := site(len(b), n); i >= 0 {
			b[i] ^= 1 << rand.N(7)
			return protoreflect.ValueOfString(string(b)), fmt.Sprintf("%s byte %d", at, i)
		}
	case protoreflect.Uint64Kind:
		if hit() {
			return protoreflect.ValueOfUint64(v.Uint() ^ 1), at + " ^1"
		}
		if hit() {
			return protoreflect.ValueOfUint64(v.Uint() + 1<<40), at + " +2^40"
		}
	case protoreflect.Uint32Kind:
		if hit() {
			return protoreflect.ValueOfUint32(uint32(v.Uint()) ^ 1), at + " ^1"
		}
	case protoreflect.EnumKind:
		if hit() {
			return protoreflect.ValueOfEnum(v.Enum() + 1), at + " +1"
		}
		if hit() {
			return protoreflect.ValueOfEnum(v.Enum() + 2), at + " +2"
		}
	}
	return v, ""
}

func site(length int, n *int) int {
	sites := min(length, sitesPerString)
	if *n >= sites {
		*n -= sites
		return -1
	}
	i := *n * (length - 1) / max(sites-1, 1)
	*n = -1
	return i
}

// Whatever a server, or somebody between, alters in an answer, the client refuses it, and does not ask again.
func TestDamagedAnswers(t *testing.T) {
	l := newLedger(t)
	honest := l.dial(Options{})
	var known []*lineage.Event
	for i := range 300 { // past the first full tile
		known = append(known, event(fmt.Sprint(i)))
	}
	if _, err := honest.AppendBatch(t.Context(), "", known); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		method string
		claims []string // fields that are the server's word and documented as such
		do     func(*Client) error
	}{
		{"Append", nil, func(c *Client) error { _, err := c.Append(t.Context(), "", event("new")); return err }},
		{"BatchAppend", nil, func(c *Client) error {
			_, err := c.AppendBatch(t.Context(), "", []*lineage.Event{event("a"), known[5], event("b"), known[290]})
			return err
		}},
		{"GetReceipt", nil, func(c *Client) error { _, _, err := c.Receipt(t.Context(), "", AtIndex(17)); return err }},
		{"GetReceipt", nil, func(c *Client) error {
			_, err := c.Entry(t.Context(), "", Selector{EventID: known[3].ID})
			return err
		}},
		{"GetInclusionProof", nil, func(c *Client) error { _, err := c.InclusionProof(t.Context(), "", AtIndex(17), 257); return err }},
		{"GetConsistencyProof", nil, func(c *Client) error { _, err := c.ConsistencyProof(t.Context(), "", 200, 290); return err }},
		{"GetCheckpoint", nil, func(c *Client) error { _, err := c.Checkpoint(t.Context(), ""); return err }},
		{"ListEntries", []string{".tree_size", ".next_page_token"}, func(c *Client) error { return drain(c.Entries(t.Context(), "", 250, 262, true)) }},
		{"GetInclusionProof", nil, func(c *Client) error { return drain(c.Entries(t.Context(), "", 250, 262, false)) }},
		{"FindEntries", []string{".tree_size"}, func(c *Client) error {
			return drain(c.Find(t.Context(), "", Query{Digests: []lineage.Digest{digest("9"), digest("270")}}))
		}},
		{"GetLog", []string{".log.number", ".log.tree_size", ".log.kind"}, func(c *Client) error { return drain(c.Entries(t.Context(), "", 1, 2, true)) }},
	} {
		sites := 0
		for {
			what, calls := "", 0
			c := l.dial(Options{}, mangle(func(method string, reply any) {
				if method != x.method {
					return
				}
				calls++
				if n := sites; what == "" {
					what = damage(reply.(proto.Message).ProtoReflect(), &n, "")
				}
			}))
			err := x.do(c)
			if what == "" {
				break
			}
			sites++
			if slices.ContainsFunc(x.claims, func(s string) bool { return strings.HasPrefix(what, s) }) {
				continue
			}
			if _, ok := errors.AsType[*UntrustedError](err); !ok {
				t.Errorf("%s with %s altered: %v", x.method, what, err)
			}
			if x.method == "Append" && calls != 1 {
				t.Errorf("%s with %s altered was called %d times", x.method, what, calls)
			}
		}
		if sites < 10 {
			t.Errorf("%s: only %d sites were altered: the harness is broken", x.method, sites)
		}
		t.Logf("%s: %d alterations", x.method, sites)
	}
}

func drain[T any](seq func(func(T, error) bool)) (err error) {
	n := 0
	for _, err := range seq {
		if err != nil {
			return err
		}
		n++
	}
	if n == 0 {
		return errors.New("nothing came")
	}
	return nil
}

// Answers that verify by themselves but are not the answer to the question.
func TestOtherAnswers(t *testing.T) {
	l := newLedger(t)
	honest := l.dial(Options{})
	if _, err := honest.CreateLog(t.Context(), "other"); err != nil {
		t.Fatal(err)
	}
	capture := func(log string, e *lineage.Event) *ledgerv1.AppendResponse {
		var got *ledgerv1.AppendResponse
		c := l.dial(Options{}, mangle(func(_ string, reply any) {
			if r, ok := reply.(*ledgerv1.AppendResponse); ok {
				got = proto.CloneOf(r)
			}
		}))
		if _, err := c.Append(t.Context(), log, e); err != nil {
			t.Fatal(err)
		}
		return got
	}
	e, another := event("model"), event("another")
	twin := *e
	twin.ID = lineage.NewID() // all the same but the id
	stale := capture("", e)
	mustAppend(t, honest, event("filler"), event("filler"))
	for name, reply := range map[string]*ledgerv1.AppendResponse{
		"receipt of another event":             capture("", another),
		"receipt of an event that differs":     capture("", &twin),
		"receipt of the event in another log":  capture("other", e),
		"receipt in a tree that is behind":     stale,
		"another event, marked as a duplicate": func() *ledgerv1.AppendResponse { r := capture("", another); r.Duplicate = true; return r }(),
		"nothing":                              {},
		"no receipt":                           func() *ledgerv1.AppendResponse { r := capture("", e); r.Receipt = nil; return r }(),
	} {
		c := l.dial(Options{}, mangle(func(_ string, got any) {
			if m, ok := got.(*ledgerv1.AppendResponse); ok {
				proto.Reset(m)
				proto.Merge(m, reply)
			}
		}))
		_, err := c.Append(t.Context(), "", e)
		if _, ok := errors.AsType[*UntrustedError](err); !ok {
			t.Errorf("%s: %v", name, err)
		}
		if name == "receipt in a tree that is behind" && !errors.Is(err, ErrRollback) {
			t.Errorf("%s: %v, want a rollback", name, err)
		}
	}
}

// Batches whose parts are all genuine but do not fit together.
func TestOtherBatches(t *testing.T) {
	l := newLedger(t)
	for name, alter := range map[string]func(*ledgerv1.BatchAppendResponse){
		"two results swapped":     func(m *ledgerv1.BatchAppendResponse) { m.Results[0], m.Results[1] = m.Results[1], m.Results[0] },
		"a result left out":       func(m *ledgerv1.BatchAppendResponse) { m.Results = m.Results[1:] },
		"a result too many":       func(m *ledgerv1.BatchAppendResponse) { m.Results = append(m.Results, m.Results[0]) },
		"no run":                  func(m *ledgerv1.BatchAppendResponse) { m.Runs = nil },
		"a run twice":             func(m *ledgerv1.BatchAppendResponse) { m.Runs = append(m.Runs, m.Runs[0]) },
		"a run with more leaves":  func(m *ledgerv1.BatchAppendResponse) { m.Runs[0].Count++ },
		"a run with fewer leaves": func(m *ledgerv1.BatchAppendResponse) { m.Runs[0].Count-- },
		"a huge run":              func(m *ledgerv1.BatchAppendResponse) { m.Runs[0].Count = 1 << 62 },
		"a run that wraps around": func(m *ledgerv1.BatchAppendResponse) { m.Runs[0].FirstIndex = ^uint64(0) - 1 },
		"hashes left and right": func(m *ledgerv1.BatchAppendResponse) {
			m.Runs[0].Left, m.Runs[0].Right = m.Runs[0].Right, m.Runs[0].Left
		},
		"a short hash":             func(m *ledgerv1.BatchAppendResponse) { m.Runs[0].Left[0] = m.Runs[0].Left[0][1:] },
		"keys of another event":    func(m *ledgerv1.BatchAppendResponse) { m.Results[0].BodyKeys = m.Results[1].BodyKeys },
		"a key left out":           func(m *ledgerv1.BatchAppendResponse) { m.Results[0].BodyKeys = m.Results[0].BodyKeys[1:] },
		"one leaf for two events":  func(m *ledgerv1.BatchAppendResponse) { m.Results[1] = m.Results[0] },
		"nothing":                  func(m *ledgerv1.BatchAppendResponse) { proto.Reset(m) },
		"the checkpoint of a twin": func(m *ledgerv1.BatchAppendResponse) { m.Checkpoint = m.Checkpoint[:len(m.Checkpoint)-1] },
	} {
		c := l.dial(Options{}, mangle(func(_ string, got any) {
			if m, ok := got.(*ledgerv1.BatchAppendResponse); ok {
				alter(m)
			}
		}))
		_, err := c.AppendBatch(t.Context(), "", []*lineage.Event{event("a"), event("b"), event("c")})
		if _, ok := errors.AsType[*UntrustedError](err); !ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A server that passes one log of a ledger off as another: all proofs are genuine, of the wrong log.
func TestOneLogForAnother(t *testing.T) {
	l := newLedger(t)
	if _, err := l.dial(Options{}).CreateLog(t.Context(), "other"); err != nil {
		t.Fatal(err)
	}
	c := l.dial(Options{}, grpc.WithUnaryInterceptor(
		func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, next grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			m := req.(proto.Message).ProtoReflect()
			for _, name := range []protoreflect.Name{"log", "name"} {
				if f := m.Descriptor().Fields().ByName(name); f != nil && f.Kind() == protoreflect.StringKind {
					m.Set(f, protoreflect.ValueOfString("other"))
				}
			}
			err := next(ctx, method, req, reply, cc, opts...)
			if r, ok := reply.(*ledgerv1.GetLogResponse); ok {
				r.Log.Name = "main"
			}
			return err
		}))
	_, err := c.Append(t.Context(), "main", event("x"))
	if _, ok := errors.AsType[*UntrustedError](err); !ok {
		t.Errorf("got %v", err)
	}
}
