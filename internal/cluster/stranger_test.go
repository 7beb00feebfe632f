package cluster

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/consensus"
	"github.com/provledger/provledger/internal/devca"
	"github.com/provledger/provledger/internal/peer"
	"github.com/provledger/provledger/internal/peerapi"
	"github.com/provledger/provledger/internal/tlsfile"
)

// sole is raft of a cluster of one.
type sole struct {
	Raft
	server consensus.Server
}

func (s sole) IsLeader() bool                        { return true }
func (s sole) Servers() ([]consensus.Server, uint64) { return []consensus.Server{s.server}, 1 }

// dialled asks over a real peer port.
type dialled struct{ port *peer.Port }

func (d dialled) Status(ctx context.Context, id, address string) (peerapi.Status, error) {
	cc, err := d.port.Dial(lineage.ID{}, address)
	if err != nil {
		return peerapi.Status{}, err
	}
	defer cc.Close()
	return peerapi.NewClient(cc, address).Status(ctx)
}

// openPort opens a peer port of a node, with a certificate of a cluster's CA.
func openPort(t *testing.T, ca *devca.CA, o peer.Options) *peer.Port {
	t.Helper()
	cert, key, err := ca.Issue(devca.Request{Hosts: []string{"127.0.0.1"}, Validity: time.Hour, Server: true, Client: true})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, b := range map[string][]byte{"cert": cert, "key": key, "ca": ca.PEM()} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	o.Logger = slog.New(slog.DiscardHandler)
	if o.TLS, err = tlsfile.Open(filepath.Join(dir, "cert"), filepath.Join(dir, "key"), filepath.Join(dir, "ca"), o.Logger); err != nil {
		t.Fatal(err)
	}
	p, err := peer.Listen("127.0.0.1:0", o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// A node that the peer port itself turns away is there, and the operator is told so: over real ports, because the reason has a long way.
func TestAddOverThePort(t *testing.T) {
	ca, err := devca.New("cluster test", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	hello := func(cluster lineage.ID) func() peer.Hello {
		h := peer.Hello{ClusterID: cluster, NodeID: lineage.NewID(), BootID: lineage.NewID(), Address: "127.0.0.1:1"}
		return func() peer.Hello { return h }
	}
	ours, theirs := lineage.NewID(), lineage.NewID()
	own := hello(ours)
	c := New(Options{
		ClusterID: ours, NodeID: own().NodeID.String(), Raft: sole{server: consensus.Server{ID: own().NodeID.String(), Voter: true}},
		Peers: dialled{openPort(t, ca, peer.Options{Self: own})}, Logger: slog.New(slog.DiscardHandler),
	})
	add := func(address string) error {
		_, err := c.Add(t.Context(), address, true)
		return err
	}

	strange := openPort(t, ca, peer.Options{Self: hello(theirs)}).Addr().String()
	err = add(strange)
	refusedWith(t, "of another cluster", err, strange, "belongs to another cluster, "+theirs.String(), "only a node with an empty directory can join")
	if strings.Contains(err.Error(), "nobody") {
		t.Error(err)
	}

	p := openPort(t, ca, peer.Options{Self: hello(ours), Admit: func(peer.Lane, peer.Hello, *x509.Certificate) error { return errors.New("it was removed") }})
	p.API()
	refusedWith(t, "that does not want us", add(p.Addr().String()), "refuses this one", "it was removed")

	refusedWith(t, "nobody", add("127.0.0.1:1"), "nobody answers at 127.0.0.1:1", "--join")
}
