package client

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/node"
)

// testLedger is a real node behind a real gRPC server, in process.
type testLedger struct {
	t   testing.TB
	n   *node.Node
	lis *bufconn.Listener
	srv *grpc.Server
}

func openLedger(t testing.TB, fs vfs.FS, dir string) *testLedger {
	t.Helper()
	n, err := node.Open(t.Context(), node.Config{
		Dir: dir, FS: fs, Logger: slog.New(slog.DiscardHandler), SegmentBytes: 256 << 10, MemTableBytes: 1 << 20, BlockCacheBytes: 1 << 20,
		SlowWarn: -1, Die: func(reason string, err error) { panic(fmt.Sprintf("die: %s: %v", reason, err)) },
	})
	if err != nil {
		t.Fatal(err)
	}
	l := &testLedger{t: t, n: n, lis: bufconn.Listen(1 << 20), srv: n.NewServer()}
	go func() { _ = l.srv.Serve(l.lis) }()
	t.Cleanup(l.close)
	return l
}

func newLedger(t testing.TB) *testLedger { return openLedger(t, vfs.NewMem(), "ledger") }

func (l *testLedger) close() {
	if l.n == nil {
		return
	}
	l.srv.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := l.n.Close(ctx); err != nil {
		l.t.Errorf("close the ledger: %v", err)
	}
	l.n = nil
}

// dial returns a client that remembers nothing unless o says where.
func (l *testLedger) dial(o Options, opts ...grpc.DialOption) *Client {
	l.t.Helper()
	if o.StateDir == "" {
		o.StateDir = noMemory
	}
	opts = append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return l.lis.Dial() }),
	}, opts...)
	conn, err := grpc.NewClient("passthrough:///ledger", opts...)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { conn.Close() })
	return New(conn, o)
}

func digest(s string) lineage.Digest {
	sum := sha256.Sum256([]byte(s))
	return lineage.Digest{Algorithm: lineage.SHA256, Value: string(sum[:])}
}

// event is a completed run that made one artifact from others, with names, a URI and a document, so that leaf and body have all parts.
func event(output string, inputs ...string) *lineage.Event {
	e := &lineage.Event{
		ID: lineage.NewID(), Kind: lineage.KindRun, Action: uint8(lineage.RunComplete), RunID: lineage.NewID(), OccurredAt: 1_700_000_000_000_000,
		Job:        lineage.Name{Namespace: "test", Name: "job"},
		References: []lineage.Reference{{Role: lineage.Output, Kind: lineage.Model, Known: lineage.Computed, Digest: digest(output), Name: lineage.Name{Name: output}, URI: "out/" + output}},
		Documents:  []lineage.Document{{MediaType: "application/json", Content: []byte(`{"k":1}`)}},
	}
	for _, in := range inputs {
		e.References = append(e.References, lineage.Reference{
			Role: lineage.Input, Kind: lineage.Dataset, Purpose: lineage.TrainingData, Known: lineage.Computed, Digest: digest(in), Name: lineage.Name{Name: in}, Size: 7,
		})
	}
	return e
}

func mustAppend(t testing.TB, c *Client, events ...*lineage.Event) *Recorded {
	t.Helper()
	var r *Recorded
	for _, e := range events {
		var err error
		if r, err = c.Append(t.Context(), "", e); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// mangle is a man in the middle: it sees every reply before the client does.
func mangle(f func(method string, reply any)) grpc.DialOption {
	return grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, next grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		err := next(ctx, method, req, reply, cc, opts...)
		if err == nil {
			f(method[len("/ledger.v1.LedgerService/"):], reply)
		}
		return err
	})
}
