package rpc_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/provledger/provledger/client/eventpb"
	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/merkle"
	"github.com/provledger/provledger/internal/node"
	"github.com/provledger/provledger/internal/rpc"
	"github.com/provledger/provledger/internal/sequencer"
	"github.com/provledger/provledger/internal/signer"
	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

func openNode(t *testing.T) *node.Node {
	t.Helper()
	n, err := node.Open(t.Context(), node.Config{
		Dir: "ledger", FS: vfs.NewMem(), Logger: slog.New(slog.DiscardHandler), SegmentBytes: 8 << 20, MemTableBytes: 1 << 20, BlockCacheBytes: 1 << 20,
		SlowWarn: -1, Die: func(reason string, err error) { panic(fmt.Sprintf("die: %s: %v", reason, err)) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return n
}

func serve(t *testing.T, s *grpc.Server) ledgerv1.LedgerServiceClient {
	t.Helper()
	lis := bufconn.Listen(1 << 20)
	go func() { _ = s.Serve(lis) }()
	t.Cleanup(s.Stop)
	conn, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return lis.Dial() }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return ledgerv1.NewLedgerServiceClient(conn)
}

func event(i int) *ledgerv1.Event {
	return &ledgerv1.Event{
		EventId: lineage.NewID().String(), RunId: lineage.NewID().String(), Action: &ledgerv1.Event_Run{Run: ledgerv1.RunState_RUN_STATE_COMPLETE},
		References: []*ledgerv1.Reference{{
			Role: ledgerv1.Role_ROLE_OUTPUT, Known: ledgerv1.Known_KNOWN_COMPUTED, Digest: fmt.Sprintf("sha256:%064x", i%10), Name: &ledgerv1.Name{Name: fmt.Sprint("n", i%10)},
		}},
	}
}

func fill(t *testing.T, c ledgerv1.LedgerServiceClient, n int) {
	t.Helper()
	req := &ledgerv1.BatchAppendRequest{}
	for i := range n {
		req.Events = append(req.Events, event(i))
	}
	if _, err := c.BatchAppend(t.Context(), req); err != nil {
		t.Fatal(err)
	}
}

// field returns the field that a status blames.
func field(err error) string {
	for _, d := range status.Convert(err).Details() {
		if b, ok := d.(*errdetails.BadRequest); ok {
			return b.FieldViolations[0].Field
		}
	}
	return ""
}

// Every kind of bad request: the code, the field, and that nothing was recorded.
func TestBadRequests(t *testing.T) {
	n := openNode(t)
	c := serve(t, n.NewServer())
	fill(t, c, 20)
	with := func(alter func(*ledgerv1.Event)) *ledgerv1.Event { e := event(1); alter(e); return e }
	app := func(e *ledgerv1.Event) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := c.Append(ctx, &ledgerv1.AppendRequest{Event: e})
			return err
		}
	}
	batch := func(log string, n int, e ...*ledgerv1.Event) func(context.Context) error {
		for i := range n {
			e = append(e, event(i))
		}
		return func(ctx context.Context) error {
			_, err := c.BatchAppend(ctx, &ledgerv1.BatchAppendRequest{Log: log, Events: e})
			return err
		}
	}
	find := func(r *ledgerv1.FindEntriesRequest) func(context.Context) error {
		return func(ctx context.Context) error { _, err := c.FindEntries(ctx, r); return err }
	}
	list := func(r *ledgerv1.ListEntriesRequest) func(context.Context) error {
		return func(ctx context.Context) error { _, err := c.ListEntries(ctx, r); return err }
	}
	get := func(s *ledgerv1.EntrySelector) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := c.GetReceipt(ctx, &ledgerv1.GetReceiptRequest{Entry: s})
			return err
		}
	}
	incl := func(index, size uint64) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := c.GetInclusionProof(ctx, &ledgerv1.GetInclusionProofRequest{TreeSize: size, Entry: &ledgerv1.EntrySelector{By: &ledgerv1.EntrySelector_Index{Index: index}}})
			return err
		}
	}
	cons := func(first, second uint64) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := c.GetConsistencyProof(ctx, &ledgerv1.GetConsistencyProofRequest{FirstSize: first, SecondSize: second})
			return err
		}
	}
	repeat := func(n int) []*ledgerv1.Reference {
		r := make([]*ledgerv1.Reference, n)
		for i := range r {
			r[i] = event(i).References[0]
		}
		return r
	}
	head := func() ledger.Head {
		tree, err := n.Ledger().Tree(ledger.MainLog)
		if err != nil {
			t.Fatal(err)
		}
		return tree.Head()
	}
	before := head()
	for name, x := range map[string]struct {
		do    func(context.Context) error
		code  codes.Code
		field string
	}{
		"no event":              {app(nil), codes.InvalidArgument, "event"},
		"no event id":           {app(with(func(e *ledgerv1.Event) { e.EventId = "" })), codes.InvalidArgument, "event_id"},
		"bad event id":          {app(with(func(e *ledgerv1.Event) { e.EventId = "7" })), codes.InvalidArgument, "event_id"},
		"no run id":             {app(with(func(e *ledgerv1.Event) { e.RunId = "" })), codes.InvalidArgument, "run_id"},
		"no action":             {app(with(func(e *ledgerv1.Event) { e.Action = nil })), codes.InvalidArgument, "action"},
		"unknown algorithm":     {app(with(func(e *ledgerv1.Event) { e.References[0].Digest = "crc32:00" })), codes.InvalidArgument, "references[0].digest"},
		"short digest":          {app(with(func(e *ledgerv1.Event) { e.References[0].Digest = "sha256:00" })), codes.InvalidArgument, "references[0].digest"},
		"control character":     {app(with(func(e *ledgerv1.Event) { e.References[0].Uri = "a\x00b" })), codes.InvalidArgument, "references[0].uri"},
		"too many references":   {app(with(func(e *ledgerv1.Event) { e.References = repeat(1001) })), codes.InvalidArgument, "references"},
		"too large a body":      {app(with(func(e *ledgerv1.Event) { e.Documents = []*ledgerv1.Document{{Content: make([]byte, 1<<20)}} })), codes.InvalidArgument, "documents"},
		"too large a message":   {app(with(func(e *ledgerv1.Event) { e.Documents = []*ledgerv1.Document{{Content: make([]byte, 5<<20)}} })), codes.ResourceExhausted, ""},
		"empty batch":           {batch("", 0), codes.InvalidArgument, "events"},
		"too large a batch":     {batch("", 4097), codes.InvalidArgument, "events"},
		"fault within a batch":  {batch("", 2, event(1), with(func(e *ledgerv1.Event) { e.RunId = "x" })), codes.InvalidArgument, "events[1].run_id"},
		"the system log":        {batch("system", 1), codes.InvalidArgument, "log"},
		"an unknown log":        {batch("nobody", 1), codes.NotFound, ""},
		"no selector":           {get(nil), codes.InvalidArgument, "entry"},
		"short leaf hash":       {get(&ledgerv1.EntrySelector{By: &ledgerv1.EntrySelector_LeafHash{LeafHash: []byte{1}}}), codes.InvalidArgument, "entry.leaf_hash"},
		"unknown leaf hash":     {get(&ledgerv1.EntrySelector{By: &ledgerv1.EntrySelector_LeafHash{LeafHash: make([]byte, 32)}}), codes.NotFound, ""},
		"bad id in a selector":  {get(&ledgerv1.EntrySelector{By: &ledgerv1.EntrySelector_EventId{EventId: "{x}"}}), codes.InvalidArgument, "entry.event_id"},
		"unknown event id":      {get(&ledgerv1.EntrySelector{By: &ledgerv1.EntrySelector_EventId{EventId: lineage.NewID().String()}}), codes.NotFound, ""},
		"index beyond":          {get(&ledgerv1.EntrySelector{By: &ledgerv1.EntrySelector_Index{Index: 21}}), codes.NotFound, ""},
		"index far beyond":      {get(&ledgerv1.EntrySelector{By: &ledgerv1.EntrySelector_Index{Index: math.MaxUint64}}), codes.NotFound, ""},
		"proof beyond the size": {incl(10, 10), codes.NotFound, ""},
		"proof beyond the tree": {incl(1, 22), codes.FailedPrecondition, ""},
		"proof far beyond":      {incl(1, math.MaxUint64), codes.FailedPrecondition, ""},
		"sizes the wrong way":   {cons(9, 8), codes.InvalidArgument, "first_size"},
		"second size beyond":    {cons(9, 22), codes.FailedPrecondition, ""},
		"first size beyond":     {cons(22, 8), codes.FailedPrecondition, ""},
		"negative page":         {list(&ledgerv1.ListEntriesRequest{PageSize: -1}), codes.InvalidArgument, "page_size"},
		"bad token":             {list(&ledgerv1.ListEntriesRequest{PageToken: "x"}), codes.InvalidArgument, "page_token"},
		"nothing to find":       {find(&ledgerv1.FindEntriesRequest{}), codes.InvalidArgument, "digests"},
		"too much to find":      {find(&ledgerv1.FindEntriesRequest{RunIds: make([]string, 1001)}), codes.InvalidArgument, "digests"},
		"bad digest to find":    {find(&ledgerv1.FindEntriesRequest{Digests: []string{"sha256:"}}), codes.InvalidArgument, "digests[0]"},
		"short prefix":          {find(&ledgerv1.FindEntriesRequest{Prefix: true, Digests: []string{"sha256:1234567"}}), codes.InvalidArgument, "digests[0]"},
		"prefix that is no hex": {find(&ledgerv1.FindEntriesRequest{Prefix: true, Digests: []string{"sha256:1234567g"}}), codes.InvalidArgument, "digests[0]"},
		"no name to find":       {find(&ledgerv1.FindEntriesRequest{Names: []*ledgerv1.Name{{Namespace: "n"}}}), codes.InvalidArgument, "names[0]"},
		"long name to find":     {find(&ledgerv1.FindEntriesRequest{Names: []*ledgerv1.Name{{Name: strings.Repeat("n", 1025)}}}), codes.InvalidArgument, "names[0]"},
		"bad run id to find":    {find(&ledgerv1.FindEntriesRequest{RunIds: []string{"x"}}), codes.InvalidArgument, "run_ids[0]"},
		"bad event id to find":  {find(&ledgerv1.FindEntriesRequest{EventIds: []string{lineage.NewID().String(), ""}}), codes.InvalidArgument, "event_ids[1]"},
		"bad name of a log": {func(ctx context.Context) error {
			_, err := c.CreateLog(ctx, &ledgerv1.CreateLogRequest{Name: "A"})
			return err
		}, codes.InvalidArgument, "name"},
		"name of a log taken": {func(ctx context.Context) error {
			_, err := c.CreateLog(ctx, &ledgerv1.CreateLogRequest{Name: "main"})
			return err
		}, codes.AlreadyExists, ""},
		"description of nothing": {func(ctx context.Context) error {
			_, err := c.GetLog(ctx, &ledgerv1.GetLogRequest{Name: "x"})
			return err
		}, codes.NotFound, ""},
	} {
		err := x.do(t.Context())
		if status.Code(err) != x.code || field(err) != x.field {
			t.Errorf("%s: %v, field %q; want %s, %q", name, err, field(err), x.code, x.field)
		}
	}
	if after := head(); after != before {
		t.Errorf("bad requests changed the log from %+v to %+v", before, after)
	}
}

// Pages of any size put together are the whole, and a search stays at the tree in which it began.
func TestPages(t *testing.T) {
	c := serve(t, openNode(t).NewServer())
	fill(t, c, 99)
	for _, size := range []int32{1, 7, 33, 99, 100, 101, 5000} {
		var next uint64
		token := ""
		for {
			r, err := c.ListEntries(t.Context(), &ledgerv1.ListEntriesRequest{PageSize: size, PageToken: token})
			if err != nil {
				t.Fatal(err)
			}
			if len(r.Entries) > int(size) || r.TreeSize != 100 {
				t.Fatalf("page of %d gave %d at size %d", size, len(r.Entries), r.TreeSize)
			}
			for _, e := range r.Entries {
				if e.Index != next {
					t.Fatalf("page of %d: entry %d where %d should be", size, e.Index, next)
				}
				next++
			}
			if token = r.NextPageToken; token == "" {
				break
			}
		}
		if next != 100 {
			t.Errorf("pages of %d end at %d", size, next)
		}
	}
	if r, err := c.ListEntries(t.Context(), &ledgerv1.ListEntriesRequest{FirstIndex: 1 << 60}); err != nil || len(r.Entries) != 0 || r.NextPageToken != "" {
		t.Errorf("beyond the end: %v, %v", r, err)
	}
	req := &ledgerv1.FindEntriesRequest{Digests: []string{fmt.Sprintf("sha256:%064x", 3)}, PageSize: 4}
	found := 0
	for {
		r, err := c.FindEntries(t.Context(), req)
		if err != nil || r.TreeSize != 100 {
			t.Fatalf("%v at size %d", err, r.GetTreeSize())
		}
		found += len(r.Entries)
		fill(t, c, 10) // one more match each time, of a later tree
		if req.PageToken = r.NextPageToken; req.PageToken == "" {
			break
		}
	}
	if found != 10 {
		t.Errorf("found %d in the tree of the first page, want 10", found)
	}
}

// Pages and messages are cut by bytes, so that they fit what clients accept without being told.
func TestPagesAreCutByBytes(t *testing.T) {
	c := serve(t, openNode(t).NewServer()) // a client with gRPC's default of 4 MiB
	for i := range 8 {
		e := event(i)
		e.Documents = []*ledgerv1.Document{{MediaType: "x/y", Content: bytes.Repeat([]byte{byte(i)}, 900<<10)}}
		if _, err := c.Append(t.Context(), &ledgerv1.AppendRequest{Event: e}); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	for token := ""; ; {
		r, err := c.ListEntries(t.Context(), &ledgerv1.ListEntriesRequest{PageSize: 1000, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		n += len(r.Entries)
		if token = r.NextPageToken; token == "" {
			break
		}
	}
	if n != 9 {
		t.Errorf("%d entries, want 9", n)
	}
	if r, err := c.ListEntries(t.Context(), &ledgerv1.ListEntriesRequest{PageSize: 1000, SkipBody: true}); err != nil || len(r.Entries) != 9 {
		t.Errorf("without bodies: %d entries, %v", len(r.GetEntries()), err)
	}
}

func TestStreams(t *testing.T) {
	c := serve(t, openNode(t).NewServer())
	fill(t, c, 2500)
	for _, x := range []struct{ first, end, last uint64 }{{0, 0, 2501}, {7, 1800, 1800}, {2500, 2501, 2501}, {5, 5, 5}} {
		s, err := c.StreamEntries(t.Context(), &ledgerv1.StreamEntriesRequest{FirstIndex: x.first, EndIndex: x.end})
		if err != nil {
			t.Fatal(err)
		}
		next := x.first
		for {
			m, err := s.Recv()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range m.Entries {
				if e.Index != next {
					t.Fatalf("entry %d where %d should be", e.Index, next)
				}
				next++
			}
		}
		if next != x.last {
			t.Errorf("[%d, %d) ended at %d", x.first, x.end, next)
		}
	}
	s, err := c.StreamEntries(t.Context(), &ledgerv1.StreamEntriesRequest{EndIndex: 2502})
	if err == nil {
		_, err = s.Recv()
	}
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("beyond the end: %v", err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	w, err := c.Watch(ctx, &ledgerv1.WatchRequest{FirstIndex: 2501})
	if err != nil {
		t.Fatal(err)
	}
	go c.Append(ctx, &ledgerv1.AppendRequest{Event: event(1)}) // if it fails the watch gets nothing
	m, err := w.Recv()
	if err != nil || len(m.Entries) != 1 || m.Entries[0].Index != 2501 || !strings.Contains(string(m.Checkpoint), "\n2502\n") {
		t.Fatalf("%v, %v", m, err)
	}
	cancel()
	if _, err := w.Recv(); status.Code(err) != codes.Canceled {
		t.Errorf("a cancelled watch: %v", err)
	}
}

// refusing is a signer that will not sign.
type refusing struct{ err error }

func (r refusing) Checkpoint(string, uint64, merkle.Hash) ([]byte, error) { return nil, r.err }

// custom serves a node's ledger with parts of it replaced.
func custom(t *testing.T, n *node.Node, alter func(*rpc.Options)) (ledgerv1.LedgerServiceClient, *prometheus.Registry) {
	t.Helper()
	o := rpc.Options{
		Backend: &rpc.Backend{Ledger: n.Ledger(), Appender: n.Sequencer(), Checkpoints: n.Signer(), Finder: n.Ledger()},
		Logger:  slog.New(slog.DiscardHandler),
		Identify: func(context.Context) (string, lineage.Authn, error) {
			return n.Ledger().LocalPrincipal(), lineage.AuthnNone, nil
		},
	}
	alter(&o)
	r := prometheus.NewRegistry()
	s := grpc.NewServer(rpc.ServerOptions(o.Logger, rpc.NewMetrics(r))...)
	rpc.New(o).Register(s)
	return serve(t, s), r
}

// No receipt, proof or checkpoint leaves without a signature.
func TestNothingUnsignedLeaves(t *testing.T) {
	n := openNode(t)
	fill(t, serve(t, n.NewServer()), 5)
	c, _ := custom(t, n, func(o *rpc.Options) { o.Backend.Checkpoints = refusing{signer.ErrFork} })
	first := &ledgerv1.EntrySelector{By: &ledgerv1.EntrySelector_Index{}}
	for name, do := range map[string]func() (any, error){
		"Append": func() (any, error) { return c.Append(t.Context(), &ledgerv1.AppendRequest{Event: event(1)}) },
		"BatchAppend": func() (any, error) {
			return c.BatchAppend(t.Context(), &ledgerv1.BatchAppendRequest{Events: []*ledgerv1.Event{event(1)}})
		},
		"GetReceipt": func() (any, error) { return c.GetReceipt(t.Context(), &ledgerv1.GetReceiptRequest{Entry: first}) },
		"GetInclusionProof": func() (any, error) {
			return c.GetInclusionProof(t.Context(), &ledgerv1.GetInclusionProofRequest{Entry: first})
		},
		"GetConsistencyProof": func() (any, error) {
			return c.GetConsistencyProof(t.Context(), &ledgerv1.GetConsistencyProofRequest{FirstSize: 1})
		},
		"GetCheckpoint": func() (any, error) { return c.GetCheckpoint(t.Context(), &ledgerv1.GetCheckpointRequest{}) },
		"Watch": func() (any, error) {
			s, err := c.Watch(t.Context(), &ledgerv1.WatchRequest{})
			if err != nil {
				return nil, err
			}
			return s.Recv()
		},
	} {
		// An append is recorded by then, and its caller has to be told that it may be.
		want := codes.FailedPrecondition
		if strings.HasSuffix(name, "Append") {
			want = codes.Unavailable
		}
		m, err := do()
		if status.Code(err) != want {
			t.Errorf("%s: %v, %v", name, m, err)
		}
		if unknown := slices.ContainsFunc(status.Convert(err).Details(), func(d any) bool {
			i, ok := d.(*errdetails.ErrorInfo)
			return ok && i.Reason == "UNKNOWN_OUTCOME"
		}); unknown != (want == codes.Unavailable) {
			t.Errorf("%s: unknown outcome %v: %v", name, unknown, err)
		}
	}
}

type appender struct {
	rpc.Appender
	do func(context.Context, sequencer.Request) (*sequencer.Result, error)
}

func (a appender) Append(ctx context.Context, r sequencer.Request) (*sequencer.Result, error) {
	return a.do(ctx, r)
}

// A panic ends its call and no other, and tells the caller nothing of the inside.
func TestPanic(t *testing.T) {
	n := openNode(t)
	c, reg := custom(t, n, func(o *rpc.Options) {
		o.Backend.Appender = appender{do: func(context.Context, sequencer.Request) (*sequencer.Result, error) { panic("inside") }}
	})
	_, err := c.Append(t.Context(), &ledgerv1.AppendRequest{Event: event(1)})
	if status.Code(err) != codes.Internal || strings.Contains(err.Error(), "inside") {
		t.Errorf("got %v", err)
	}
	if _, err := c.GetCheckpoint(t.Context(), &ledgerv1.GetCheckpointRequest{}); err != nil {
		t.Errorf("after a panic: %v", err)
	}
	counted := map[string]float64{}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.Metric {
			if f.GetName() == "provledger_rpc_calls_total" {
				key := ""
				for _, l := range m.Label {
					key += l.GetValue() + " "
				}
				counted[key] = m.Counter.GetValue()
			}
		}
	}
	if len(counted) != 2 || counted["Internal Append "]+counted["OK GetCheckpoint "] != 2 {
		t.Errorf("counted %v", counted)
	}
}

// A call without a deadline gets one, and what the service passes on is what came in.
func TestAppendRequest(t *testing.T) {
	n := openNode(t)
	var got sequencer.Request
	c, _ := custom(t, n, func(o *rpc.Options) {
		o.Identify = func(context.Context) (string, lineage.Authn, error) { return "test:someone", lineage.AuthnMTLS, nil }
		o.Backend.Appender = appender{do: func(ctx context.Context, r sequencer.Request) (*sequencer.Result, error) {
			if d, ok := ctx.Deadline(); !ok || time.Until(d) > 2*time.Minute {
				t.Error("an append has no deadline")
			}
			got = r
			return nil, ledger.ErrOverloaded
		}}
	})
	e := event(1)
	if _, err := c.Append(t.Context(), &ledgerv1.AppendRequest{Event: e}); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("got %v", err)
	}
	want, err := eventpb.ToEvent(e)
	if err != nil {
		t.Fatal(err)
	}
	if got.Principal != "test:someone" || got.Authn != lineage.AuthnMTLS || got.Log != ledger.MainLog || len(got.Events) != 1 || got.Events[0].ID != want.ID || got.Size < 100 {
		t.Errorf("passed on: %+v", got)
	}
}

type blockingFinder struct {
	rpc.Finder
	entered chan struct{}
}

func (f blockingFinder) Find(ctx context.Context, _ uint32, _ ledger.Query, _, _ uint64, _ func(*ledger.Entry) error) error {
	f.entered <- struct{}{}
	<-ctx.Done()
	return ctx.Err()
}

// A server that drains ends its watches, so that a graceful stop does not wait for clients that wait for it.
func TestDrainEndsWatches(t *testing.T) {
	n := openNode(t)
	c := serve(t, n.NewServer())
	w, err := c.Watch(t.Context(), &ledgerv1.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := w.Recv(); err != nil || len(m.Entries) == 0 {
		t.Fatalf("the genesis entry: %v, %v", m, err)
	}
	n.Drain()
	n.Drain()
	if _, err := w.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("after Drain: %v", err)
	}
	if _, err := c.GetCheckpoint(t.Context(), &ledgerv1.GetCheckpointRequest{}); err != nil {
		t.Errorf("a unary call while draining: %v", err)
	}
}

// Scans that hang keep no write out, and no point read.
func TestReadsDoNotStarveWrites(t *testing.T) {
	n := openNode(t)
	f := blockingFinder{entered: make(chan struct{}, 1000)}
	c, _ := custom(t, n, func(o *rpc.Options) { o.Backend.Finder = f })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range 100 {
		go c.FindEntries(ctx, &ledgerv1.FindEntriesRequest{RunIds: []string{lineage.NewID().String()}})
	}
	for range 4 {
		<-f.entered
	}
	limited, stop := context.WithTimeout(t.Context(), 10*time.Second)
	defer stop()
	if _, err := c.Append(limited, &ledgerv1.AppendRequest{Event: event(1)}); err != nil {
		t.Errorf("an append beside scans that hang: %v", err)
	}
	if _, err := c.GetCheckpoint(limited, &ledgerv1.GetCheckpointRequest{}); err != nil {
		t.Errorf("a point read beside scans that hang: %v", err)
	}
	select {
	case <-f.entered:
		t.Error("more scans run at once than the limit says")
	default:
	}
}
