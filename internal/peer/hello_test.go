package peer

import (
	"bytes"
	"crypto/x509"
	"errors"
	"io"
	"net/url"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/provledger/provledger/client/lineage"
)

func TestHelloRoundTrip(t *testing.T) {
	h := Hello{ClusterID: lineage.NewID(), NodeID: lineage.NewID(), BootID: lineage.NewID(), Configuration: 1<<63 + 5,
		Address: strings.Repeat("a", 253) + ":65535", APIAddress: "[::1]:7600"}
	for _, refusal := range []string{"", "no", strings.Repeat("x", maxRefusalBytes+100)} {
		b, err := appendHello(nil, h, refusal)
		if err != nil {
			t.Fatal(err)
		}
		r := bytes.NewReader(append(b, "what follows is not the hello's"...))
		got, said, err := readHello(r)
		if err != nil || got != h || said != refusal[:min(len(refusal), maxRefusalBytes)] {
			t.Errorf("%+v %q %v", got, said, err)
		}
		if rest, _ := io.ReadAll(r); string(rest) != "what follows is not the hello's" {
			t.Errorf("the hello took a part of what follows it: %q is left", rest)
		}
		for n := range b {
			if _, _, err := readHello(bytes.NewReader(b[:n])); err == nil || n > 0 && err == io.EOF && n > headBytes {
				t.Errorf("a hello cut after %d bytes: %v", n, err)
			}
		}
	}
	h.Address += "0"
	if _, err := appendHello(nil, h, ""); err == nil {
		t.Error("an address that no peer would read was written")
	}
}

// A hello of a later node, which says more, is read.
func TestLaterHello(t *testing.T) {
	h := Hello{NodeID: lineage.NewID(), BootID: lineage.NewID(), Address: "n1:1"}
	b, err := appendHello(nil, h, "")
	if err != nil {
		t.Fatal(err)
	}
	b = append(b, "more"...)
	b[headBytes-1] += 4
	if got, _, err := readHello(bytes.NewReader(b)); err != nil || got != h {
		t.Errorf("%+v, %v", got, err)
	}
}

func FuzzReadHello(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		h, refusal, err := readHello(r)
		if err != nil {
			return
		}
		used := b[:len(b)-r.Len()]
		again, err := appendHello(nil, h, refusal)
		if err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		// The same bytes, but for what a later version appended, which the length counts.
		if len(again) > len(used) || !bytes.Equal(again[:headBytes-2], used[:headBytes-2]) || !bytes.Equal(again[headBytes:], used[headBytes:len(again)]) {
			t.Errorf("read %x, wrote %x", used, again)
		}
		if h2, refusal2, err := readHello(bytes.NewReader(again)); err != nil || h2 != h || refusal2 != refusal {
			t.Errorf("read again: %+v %q %v", h2, refusal2, err)
		}
	})
}

func TestCheckNames(t *testing.T) {
	id := lineage.NewID()
	uri := func(s string) *url.URL {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	mine, other, foreign := uri("urn:uuid:"+id.String()), uri("urn:uuid:"+lineage.NewID().String()), uri("spiffe://example.org/ledger")
	for _, tc := range []struct {
		name string
		uris []*url.URL
		ok   bool
	}{
		{"unbound", nil, true},
		{"bound", []*url.URL{mine}, true},
		{"bound, in capitals", []*url.URL{uri("URN:UUID:" + strings.ToUpper(id.String()))}, true},
		{"bound to another", []*url.URL{other}, false},
		{"bound to several", []*url.URL{other, mine}, true},
		{"with a name of others", []*url.URL{foreign}, true},
		{"bound to rubbish", []*url.URL{uri("urn:uuid:rubbish")}, false},
	} {
		if err := CheckNode(&x509.Certificate{URIs: tc.uris}, id); (err == nil) != tc.ok {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	c := &x509.Certificate{DNSNames: []string{"n1.example", "*.pods.example"}}
	for address, ok := range map[string]bool{"n1.example:7601": true, "N1.example:1": true, "a.pods.example:7601": true, "n2.example:7601": false,
		"n1.example": false, "": false, "10.0.0.1:7601": false} {
		if err := CheckName(c, address); (err == nil) != ok {
			t.Errorf("%q: %v", address, err)
		}
	}
}

func TestRefusedErrorIsFound(t *testing.T) {
	b := newNode(t, nil) // no raft instance
	_, err := newNode(t, nil).Raft().Dial(b.raftAddress(), patience)
	refused, ok := errors.AsType[*RefusedError](err)
	if !ok || !strings.Contains(refused.Reason, "raft") {
		t.Errorf("%v", err)
	}
}

// What gRPC says of a connection that was refused still has the refusal, with its status as it was; what it says later has it no more.
func TestRefusedErrorIsFoundThroughGRPC(t *testing.T) {
	a, b := newNode(t, nil), newNode(t, func(s *setup) { s.hello.ClusterID = lineage.NewID() })
	server := grpc.NewServer(grpc.Creds(ServerCredentials()))
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(b.API()) }()
	defer func() { server.Stop(); <-done }()
	cc, err := a.Dial(lineage.ID{}, b.self().Address)
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	call := func() (*RefusedError, error) {
		err := cc.Invoke(t.Context(), "/none/None", &emptypb.Empty{}, &emptypb.Empty{})
		refused, _ := errors.AsType[*RefusedError](err)
		return refused, err
	}
	refused, err := call()
	if refused == nil || refused.By.ClusterID != b.self().ClusterID || !strings.Contains(refused.Reason, "belongs to cluster") {
		t.Fatalf("%v, %+v", err, refused)
	}
	if st := status.Convert(err); st.Code() != codes.Unavailable || strings.Contains(st.Message(), "rpc error") || !strings.Contains(st.Message(), refused.Error()) {
		t.Errorf("the status is %v", st)
	}
	b.is(func(h *Hello) { h.ClusterID = a.self().ClusterID })
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		refused, err = call()
		if status.Code(err) == codes.Unimplemented {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("no connection in %v: %v", patience, err)
		}
	}
	if refused != nil {
		t.Errorf("an answer of the server has an old refusal: %v", err)
	}
}

// A node says at its start what its peers would say later.
func TestOwnCertificateIsLookedAt(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*setup)
		want   string
	}{
		"other host": {func(s *setup) { s.request.Hosts = []string{"other.example"} }, "127.0.0.1"},
		"other node": {func(s *setup) { s.request.NodeID = lineage.NewID() }, "urn:uuid:"},
		"expired":    {func(s *setup) { s.request.Validity = -time.Minute }, "expired"},
		"no client":  {func(s *setup) { s.request.Client = false }, "clientAuth"},
		"good":       {nil, ""},
	} {
		n := newNode(t, tc.change)
		n.API()
		n.Raft()
		said := strings.Count(n.log.String(), "will be refused by its peers")
		if tc.want == "" && said != 0 || tc.want != "" && (said != 1 || !strings.Contains(n.log.String(), tc.want)) {
			t.Errorf("%s: %s", name, n.log)
		}
	}
}

// Boot ids that are made up do not fill the memory.
func TestInventedBootIDs(t *testing.T) {
	n := newNode(t, nil)
	id := lineage.NewID()
	n.boots.checks, n.boots.confirmed = map[bootKey]*bootCheck{}, map[lineage.ID]lineage.ID{}
	done := make(chan struct{})
	close(done)
	for range 10 * maxChecks {
		n.boots.checks[bootKey{id, lineage.NewID()}] = &bootCheck{done: done}
	}
	if err := n.checkBoot(t.Context(), Hello{NodeID: id, BootID: lineage.NewID()}, "127.0.0.1:0"); err != nil {
		t.Errorf("nobody could be asked: %v", err)
	}
	if len(n.boots.checks) != 1 {
		t.Errorf("%d answers are remembered", len(n.boots.checks))
	}
}
