package node

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/bits"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/devca"
	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/localcluster"
	"github.com/provledger/provledger/internal/merkle"
	"github.com/provledger/provledger/internal/sequencer"
	"github.com/provledger/provledger/internal/tlsfile"
)

// trio is a cluster of real nodes on real ports of this machine.
type trio struct {
	t       *testing.T
	ca      *devca.CA
	dir     string
	secret  string
	address []string
	nodes   []*Node
	edit    func(i int, c *Config)
	said    logs // of all nodes
}

// freeAddress is an address that nobody listens on.
func freeAddress(t *testing.T) string {
	t.Helper()
	ports, err := localcluster.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", ports[0])
}

func newTrio(t *testing.T, n int) *trio {
	t.Helper()
	ca, err := devca.New("test", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	c := &trio{t: t, ca: ca, dir: t.TempDir(), nodes: make([]*Node, n)}
	c.secret = filepath.Join(c.dir, "secret")
	if err := os.WriteFile(c.secret, randomBytes(32), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ca.Save(filepath.Join(c.dir, "ca")); err != nil {
		t.Fatal(err)
	}
	for range n {
		c.address = append(c.address, freeAddress(t))
	}
	t.Cleanup(func() {
		for i := range c.nodes {
			c.stop(i)
		}
	})
	return c
}

// files makes the certificate of a node.
func (c *trio) files(i int) *tlsfile.Files {
	c.t.Helper()
	cert, key, err := c.ca.Issue(devca.Request{Hosts: []string{"127.0.0.1"}, Validity: time.Hour, Server: true, Client: true})
	if err != nil {
		c.t.Fatal(err)
	}
	name := func(s string) string { return filepath.Join(c.dir, fmt.Sprintf("n%d-%s.pem", i, s)) }
	for path, b := range map[string][]byte{name("cert"): cert, name("key"): key} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			c.t.Fatal(err)
		}
	}
	f, err := tlsfile.Open(name("cert"), name("key"), filepath.Join(c.dir, "ca", "ca.pem"), slog.Default())
	if err != nil {
		c.t.Fatal(err)
	}
	return f
}

func (c *trio) config(i int) Config {
	out := &testLog{t: c.t, prefix: fmt.Sprintf("n%d ", i)}
	conf := Config{
		Dir: filepath.Join(c.dir, fmt.Sprintf("n%d", i)), SecretFile: c.secret, SegmentBytes: 1 << 20, MemTableBytes: 1 << 20, MinFreeBytes: 1 << 20,
		Logger: slog.New(slog.NewTextHandler(io.MultiWriter(out, &c.said), &slog.HandlerOptions{Level: slog.LevelInfo})),
		Die:    func(reason string, err error) { c.t.Errorf("n%d died: %s: %v", i, reason, err) },
		Peer:   &Peer{Listen: c.address[i], Advertise: c.address[i], TLS: c.files(i), Members: c.address},
	}
	if c.edit != nil {
		c.edit(i, &conf)
	}
	return conf
}

// start opens nodes at the same time.
func (c *trio) start(which ...int) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 30*time.Second)
	defer cancel()
	errs := make(chan error, len(which))
	for _, i := range which {
		go func() {
			var err error
			c.nodes[i], err = Open(ctx, c.config(i))
			errs <- err
		}()
	}
	for range which {
		if err := <-errs; err != nil {
			c.t.Fatal(err)
		}
	}
}

func (c *trio) stop(i int) {
	c.t.Helper()
	if c.nodes[i] == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := c.nodes[i].Close(ctx); err != nil {
		c.t.Error(err)
	}
	c.nodes[i] = nil
}

// leader waits for a node that leads and serves.
func (c *trio) leader() *Node {
	c.t.Helper()
	var found *Node
	eventually(c.t, "a leader", func() bool {
		for _, n := range c.nodes {
			if n != nil && n.raft().IsLeader() && n.Ready() == nil {
				found = n
			}
		}
		return found != nil
	})
	return found
}

func (c *trio) append(n *Node, count int) {
	c.t.Helper()
	g, err := n.Ledger().LogByName("main")
	if err != nil {
		c.t.Fatal(err)
	}
	for range count {
		_, err := n.Sequencer().Append(c.t.Context(), sequencer.Request{
			Log: g.Number, Events: []*lineage.Event{testEvent(1)}, Principal: n.Ledger().LocalPrincipal(), Authn: lineage.AuthnNone, Size: 400,
		})
		if err != nil {
			c.t.Fatal(err)
		}
	}
}

// settled waits until all running nodes have applied the same, and compares all trees.
func (c *trio) settled() {
	c.t.Helper()
	var first *Node
	for _, n := range c.nodes {
		if n == nil {
			continue
		}
		if first == nil {
			first = n
			continue
		}
		eventually(c.t, "equal state", func() bool { return n.Ledger().Applied() == first.Ledger().Applied() })
		for _, g := range first.Ledger().Logs() {
			a, err := first.Ledger().Tree(g.Number)
			if err != nil {
				c.t.Fatal(err)
			}
			b, err := n.Ledger().Tree(g.Number)
			if err != nil {
				c.t.Fatal(err)
			}
			if a.Head() != b.Head() {
				c.t.Errorf("log %s: %v and %v", g.Name, a.Head(), b.Head())
			}
		}
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("no %s in 30 s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// testLog sends what a node says to the test's output.
type testLog struct {
	t      *testing.T
	prefix string
}

func (l *testLog) Write(p []byte) (int, error) {
	if l.t.Context().Err() == nil {
		l.t.Log(l.prefix + string(p))
	}
	return len(p), nil
}

func voters(n *Node) (count int) {
	for _, s := range n.members() {
		if s.Voter {
			count++
		}
	}
	return count
}

// TestCluster: three fresh nodes found a cluster, replicate, lose their leader, and take it back.
func TestCluster(t *testing.T) {
	c := newTrio(t, 3)
	c.start(0, 1, 2)
	eventually(t, "three voters", func() bool { return voters(c.nodes[0]) == 3 })
	c.append(c.leader(), 20)
	c.settled()
	old := c.leader()
	for i, n := range c.nodes {
		if n == old {
			c.stop(i)
			c.append(c.leader(), 20)
			c.start(i)
		}
	}
	c.settled()
}

// TestClusterCatchUp: a node that was away while the log was cut fetches what it lacks, and a node whose state store is gone all of it.
func TestClusterCatchUp(t *testing.T) {
	c := newTrio(t, 3)
	c.edit = func(_ int, conf *Config) {
		conf.TrailingLogs, conf.SnapshotBytes, conf.SnapshotEvery = 4, 1, time.Second
	}
	c.start(0, 1, 2)
	eventually(t, "three voters", func() bool { return voters(c.nodes[0]) == 3 })
	c.append(c.leader(), 50)
	c.settled()
	var away int
	for i, n := range c.nodes {
		if n != c.leader() {
			away = i
		}
	}
	last := c.nodes[away].raft().Stats().Last
	c.stop(away)
	c.append(c.leader(), 100)
	eventually(t, "a log that was cut", func() bool {
		c.append(c.leader(), 5)
		return c.leader().raft().Stats().First > last+1
	})
	c.start(away)
	c.settled()
	caughtUp := func(least float64) {
		t.Helper()
		eventually(t, "end of the catch-up", func() bool { return scrape(t, c.nodes[away])["catchup_running"] == 0 })
		m := scrape(t, c.nodes[away])
		if m["catchup_runs_total"] < 1 || m["catchup_entries_total"] < least || m["catchup_bytes_total"] < 100*least || m["catchup_missing_entries"] != 0 {
			t.Errorf("%v catch-ups fetched %v entries, %v bytes, and %v are missing; %v were at least", m["catchup_runs_total"], m["catchup_entries_total"],
				m["catchup_bytes_total"], m["catchup_missing_entries"], least)
		}
	}
	caughtUp(100)
	c.stop(away)
	if err := os.RemoveAll(filepath.Join(c.dir, fmt.Sprintf("n%d", away), stateDir)); err != nil {
		t.Fatal(err)
	}
	c.start(away)
	c.settled()
	caughtUp(150)
	c.append(c.leader(), 10)
	c.settled()
	if err := c.nodes[away].Ledger().Check(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestTwoNodesAfterGrowth: a node that has just taken in a second one loses its power together with it, before either has flushed anything. What
// the two need to find each other is in their raft logs.
func TestTwoNodesAfterGrowth(t *testing.T) {
	for _, percent := range []int{0, 50, 100} {
		t.Run(fmt.Sprint(percent), func(t *testing.T) {
			t.Parallel()
			disks := []*vfs.MemFS{vfs.NewCrashableMem(), vfs.NewCrashableMem()}
			c := newTrio(t, 2)
			c.edit = func(i int, conf *Config) { conf.FS = disks[i] }
			c.start(0, 1)
			eventually(t, "two voters", func() bool { return voters(c.nodes[0]) == 2 })
			c.append(c.leader(), 5)
			var clones []*vfs.MemFS
			for i := range disks {
				clones = append(clones, disks[i].CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rand.New(rand.NewPCG(1, uint64(i)))}))
			}
			size := mainSize(t, c.leader())
			c.stop(0)
			c.stop(1)
			disks = clones
			c.start(0, 1)
			c.append(c.leader(), 5)
			c.settled()
			if got := mainSize(t, c.leader()); got != size+5 {
				t.Errorf("%d entries, want %d", got, size+5)
			}
		})
	}
}

func mainSize(t *testing.T, n *Node) uint64 {
	t.Helper()
	tree, err := n.Ledger().Tree(ledger.MainLog)
	if err != nil {
		t.Fatal(err)
	}
	return tree.Head().Size
}

// TestRemovedNodeNotices: a node that was removed says so, whether or not the entry that removed it has reached it.
func TestRemovedNodeNotices(t *testing.T) {
	c := newTrio(t, 3)
	c.start(0, 1, 2)
	eventually(t, "three voters", func() bool { return voters(c.nodes[0]) == 3 })
	c.append(c.leader(), 1)
	c.settled()
	var gone *Node
	for _, n := range c.nodes {
		if n != c.leader() {
			gone = n
		}
	}
	if err := c.leader().control.Remove(t.Context(), gone.ID(), false); err != nil {
		t.Fatal(err)
	}
	eventually(t, "word of the removal", func() bool {
		err := gone.Ready()
		return err != nil && strings.Contains(err.Error(), "removed from th")
	})
	c.append(c.leader(), 1)
}

// flip changes one bit of what a node holds in memory of the right edge of a log.
func flip(n *Node, log uint32) {
	edges := reflect.ValueOf(n.Ledger()).Elem().FieldByName("edges")
	m := *(*map[uint32]*merkle.Edge)(unsafe.Pointer(edges.UnsafeAddr()))
	peaks := reflect.ValueOf(m[log]).Elem().FieldByName("peaks")
	size := m[log].Size()
	p := (*[64]merkle.Hash)(unsafe.Pointer(peaks.UnsafeAddr()))
	p[bits.TrailingZeros64(size)][5] ^= 4
}

// TestFlippedBitInMemory: a bit that flips in the memory of the leader or of a follower costs nothing: what does not fit is read again from what is
// stored, no other root is signed by anybody, and the replicas stay equal.
func TestFlippedBitInMemory(t *testing.T) {
	c := newTrio(t, 3)
	c.start(0, 1, 2)
	eventually(t, "three voters", func() bool { return voters(c.nodes[0]) == 3 })
	c.append(c.leader(), 21)
	c.settled()
	for round := range 6 {
		victim := c.leader()
		if round%2 == 1 {
			for _, n := range c.nodes {
				if n != c.leader() {
					victim = n
				}
			}
		}
		before := mainSize(t, c.leader())
		flip(victim, ledger.MainLog) // nothing is applied at the moment
		c.append(c.leader(), 3)
		c.settled()
		for i, n := range c.nodes {
			if err := n.Ledger().Quarantined(); err != nil {
				t.Errorf("n%d: %v", i, err)
			}
			tree, err := n.Ledger().Tree(ledger.MainLog)
			if err != nil {
				t.Fatal(err)
			}
			g, err := n.Ledger().LogByNumber(ledger.MainLog)
			if err != nil {
				t.Fatal(err)
			}
			note, err := n.Signer().Checkpoint(g.Origin, tree.Head().Size, tree.Head().Root)
			if err != nil {
				t.Fatal(err)
			}
			if err := (issuedNote{g.VKey, note}).holds(c.leader().Ledger()); err != nil {
				t.Error(err)
			}
			if err := n.Ledger().Check(t.Context()); err != nil {
				t.Errorf("n%d: %v", i, err)
			}
		}
		if got := mainSize(t, c.leader()); got != before+3 {
			t.Errorf("%d entries, want %d", got, before+3)
		}
		if got := strings.Count(c.said.text(), "the edge was read again from the store"); got <= round {
			t.Errorf("round %d: noticed %d times: this test tests nothing", round, got)
		}
	}
}
