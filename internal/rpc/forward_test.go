package rpc

import (
	"context"
	"net"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

// answered is the answer to a batch of a thousand events.
func answered() *ledgerv1.BatchAppendResponse {
	m := &ledgerv1.BatchAppendResponse{TreeSize: 1001, Checkpoint: make([]byte, 200), Runs: []*ledgerv1.RunProof{{FirstIndex: 1, Count: 1000}}}
	for i := range 1000 {
		m.Results = append(m.Results, &ledgerv1.AppendResult{Index: uint64(i + 1), Leaf: make([]byte, 310), BodyKeys: [][]byte{make([]byte, 32), make([]byte, 32)}})
	}
	return m
}

// fixed answers batches.
type fixed struct {
	ledgerv1.UnimplementedLedgerServiceServer
	answer *ledgerv1.BatchAppendResponse
}

func (f fixed) BatchAppend(context.Context, *ledgerv1.BatchAppendRequest) (*ledgerv1.BatchAppendResponse, error) {
	return f.answer, nil
}

func fixedServer(t testing.TB) *grpc.ClientConn {
	lis := bufconn.Listen(4 << 20)
	s := grpc.NewServer()
	ledgerv1.RegisterLedgerServiceServer(s, fixed{answer: answered()})
	go func() { _ = s.Serve(lis) }()
	t.Cleanup(s.Stop)
	cc, err := grpc.NewClient("passthrough:x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return lis.Dial() }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	return cc
}

// An answer that is passed on is the same message, whether it is read here or by the client.
func TestPassOn(t *testing.T) {
	got, err := forward[ledgerv1.BatchAppendResponse](t.Context(), fixedServer(t), ledgerv1.LedgerService_BatchAppend_FullMethodName, &ledgerv1.BatchAppendRequest{})
	if err != nil {
		t.Fatal(err)
	}
	wire, err := proto.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	var m ledgerv1.BatchAppendResponse
	if err := proto.Unmarshal(wire, &m); err != nil || !proto.Equal(&m, answered()) || len(m.ProtoReflect().GetUnknown()) > 0 {
		t.Errorf("what the client reads is not what the leader answered: %v", err)
	}
	if got, err = decoded(got); err != nil || !proto.Equal(got, answered()) {
		t.Errorf("what is decoded here is not what the leader answered: %v", err)
	}
	if again, err := decoded(got); err != nil || !proto.Equal(again, answered()) {
		t.Errorf("decoding twice: %v", err)
	}
	if err := (passOn{}).Unmarshal(mem.BufferSlice{}, 7); err == nil {
		t.Error("took what is no message")
	}
}

// What passing on saves of the follower's work on a thousand events: decoding the leader's answer and encoding it for the client.
func BenchmarkPassOn(b *testing.B) {
	wire, err := proto.Marshal(answered())
	if err != nil {
		b.Fatal(err)
	}
	b.Run("undecoded", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			m := &ledgerv1.BatchAppendResponse{}
			if err := (passOn{}).Unmarshal(mem.BufferSlice{mem.SliceBuffer(wire)}, m); err != nil {
				b.Fatal(err)
			}
			if _, err := proto.Marshal(m); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("decoded", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			m := &ledgerv1.BatchAppendResponse{}
			if err := proto.Unmarshal(wire, m); err != nil {
				b.Fatal(err)
			}
			if _, err := proto.Marshal(m); err != nil {
				b.Fatal(err)
			}
		}
	})
}
