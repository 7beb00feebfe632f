package e2e

import (
	"context"
	"crypto/rand"
	"fmt"
	mrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/provledger/provledger/internal/devca"
	"github.com/provledger/provledger/internal/localcluster"
	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

// patience is how long a cluster may take to come back after a fault has gone: elections take a second, a machine under load takes its
// time. It bounds liveness; no test here asserts how quick something is.
const patience = 45 * time.Second

// member is one node of a cluster under test. Its addresses and its directory stay the same across restarts.
type member struct {
	i          int
	dir        string
	peer       string // where it listens for other nodes
	advertised string // what it tells them
	grpc       string
	cert, key  string
	wrap       []string
	args       []string
	d          *daemon // nil until it was started
	running    bool
	conn       *grpc.ClientConn
}

// cluster is some real ledgerd processes with a fault-prone network between them.
type cluster struct {
	t       testing.TB
	ca      *devca.CA
	dir     string
	members []*member
	links   *links      // nil: spaces
	spaces  *namespaces // nil: links
}

type clusterOptions struct {
	nodes  int
	spaces bool     // packets can be lost, which needs root
	args   []string // of every node
	dirs   []string // data directories; beyond the list, and empty ones: temporary
	only   int      // found with so many members, the others are started by the test; 0: all
}

// newCluster starts a cluster and waits until all its members vote.
func newCluster(t testing.TB, r *mrand.Rand, o clusterOptions) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: t.TempDir()}
	if o.spaces {
		c.spaces = newNamespaces(t, o.nodes)
	} else {
		c.links = newLinks(t, r.Uint64())
	}
	var err error
	if c.ca, err = devca.New("provledger e2e", 365*24*time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := c.ca.Save(filepath.Join(c.dir, "ca")); err != nil {
		t.Fatal(err)
	}
	secret := make([]byte, 32)
	if _, err := rand.Read(secret); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.file("secret"), secret, 0o600); err != nil {
		t.Fatal(err)
	}
	for i := range o.nodes {
		dir := ""
		if i < len(o.dirs) {
			dir = o.dirs[i]
		}
		c.add(dir)
	}
	founders := c.members[:o.nodes]
	if o.only > 0 {
		founders = c.members[:o.only]
	}
	var list []string
	for _, m := range founders {
		list = append(list, m.advertised)
	}
	for _, m := range c.members {
		m.args = append(m.args, o.args...)
	}
	for _, m := range founders {
		m.args = append(m.args, "--members", strings.Join(list, ","))
		c.spawn(m.i)
	}
	for _, m := range founders {
		c.await(m.i)
	}
	c.awaitVoters(len(founders))
	return c
}

func (c *cluster) file(name string) string { return filepath.Join(c.dir, name) }

// add makes a node and does not start it.
func (c *cluster) add(dir string) *member {
	c.t.Helper()
	m := &member{i: len(c.members), dir: dir}
	name := fmt.Sprintf("n%d", m.i+1)
	if m.dir == "" {
		m.dir = c.file(name)
	}
	host := "127.0.0.1"
	if c.spaces != nil {
		host, m.wrap = c.spaces.host(m.i), c.spaces.wrap(m.i)
		m.peer, m.grpc = net.JoinHostPort(host, "7602"), net.JoinHostPort(host, "7600")
		m.advertised = m.peer
		m.args = []string{"--insecure"}
	} else {
		m.peer, m.grpc = freePort(c.t), freePort(c.t)
		m.advertised = c.links.front(m.i, m.peer)
	}
	m.cert, m.key = c.file(name+".pem"), c.file(name+"-key.pem")
	c.certify(m.i, host)
	m.args = append(m.args, "--grpc-address", m.grpc, "--http-address", "off", "--peer-address", m.peer, "--advertise-peer", m.advertised,
		"--peer-cert", m.cert, "--peer-key", m.key, "--peer-ca", filepath.Join(c.dir, "ca", "ca.pem"), "--secret-file", c.file("secret"))
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16 << 20)),
		// A node that was restarted is found soon: what is measured here is the cluster, not gRPC's patience.
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second, Backoff: backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.5, MaxDelay: 200 * time.Millisecond}}),
	}
	if c.spaces != nil {
		options = append(options, grpc.WithContextDialer(c.spaces.dial))
	}
	var err error
	if m.conn, err = grpc.NewClient("passthrough:///"+m.grpc, options...); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { m.conn.Close() })
	c.members = append(c.members, m)
	return m
}

// freePort is a port that was free a moment ago.
func freePort(t testing.TB) string {
	t.Helper()
	ports, err := localcluster.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", ports[0])
}

// certify gives a node a new certificate.
func (c *cluster) certify(i int, host string) {
	c.t.Helper()
	name := fmt.Sprintf("n%d", i+1)
	cert, key, err := c.ca.Issue(devca.Request{Hosts: []string{host}, Validity: 30 * 24 * time.Hour, Server: true, Client: true})
	if err != nil {
		c.t.Fatal(err)
	}
	for path, b := range map[string][]byte{c.file(name + ".pem"): cert, c.file(name + "-key.pem"): key} {
		if err := os.WriteFile(path+".new", b, 0o600); err != nil {
			c.t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			c.t.Fatal(err)
		}
	}
}

// spawn starts a node and does not wait for it to serve.
func (c *cluster) spawn(i int) {
	c.t.Helper()
	m := c.members[i]
	m.d = spawn(c.t, m.dir, m.wrap, m.args...)
	m.running = true
	if c.links != nil {
		c.links.process(m.d.cmd.Process.Pid, i)
	}
}

// await waits until a node serves.
func (c *cluster) await(i int) {
	c.t.Helper()
	if m := c.members[i]; !m.d.await() {
		c.t.Fatalf("node %d ended at start: %v\n%s", i, m.d.err, m.d.tail())
	}
}

func (c *cluster) start(i int) {
	c.t.Helper()
	c.spawn(i)
	c.await(i)
}

// kill ends a node without a chance to write another byte.
func (c *cluster) kill(i int) {
	c.members[i].running = false
	c.members[i].d.kill()
}

// stop asks a node to end and wants it to do so cleanly.
func (c *cluster) stop(i int) {
	c.t.Helper()
	c.members[i].running = false
	if code := c.members[i].d.terminate(); code != 0 {
		c.t.Errorf("node %d: exit code %d at SIGTERM\n%s", i, code, c.members[i].d.tail())
	}
}

// pause stops a process where it stands, as a virtual machine is stopped: its clock goes on and it does not know.
func (c *cluster) pause(i int) { c.signal(i, syscall.SIGSTOP) }

func (c *cluster) resume(i int) { c.signal(i, syscall.SIGCONT) }

func (c *cluster) signal(i int, s syscall.Signal) {
	c.t.Helper()
	if err := c.members[i].d.cmd.Process.Signal(s); err != nil {
		c.t.Fatal(err)
	}
}

// isolate cuts a node off from all others, until heal.
func (c *cluster) isolate(i int) {
	c.t.Helper()
	for j := range c.members {
		if j != i {
			c.cut(i, j)
			c.cut(j, i)
		}
	}
}

// cut loses what a node sends to another, until heal.
func (c *cluster) cut(from, to int) {
	c.t.Helper()
	if c.spaces != nil {
		c.spaces.cut(from, to)
	} else {
		c.links.set(from, to, rule{cut: true})
	}
}

func (c *cluster) heal() {
	c.t.Helper()
	if c.spaces != nil {
		c.spaces.mendAll()
	} else {
		c.links.heal()
	}
}

// view asks a node what it sees.
func (c *cluster) view(i int) (*ledgerv1.Cluster, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	resp, err := ledgerv1.NewClusterServiceClient(c.members[i].conn).GetCluster(ctx, &ledgerv1.GetClusterRequest{})
	return resp.GetCluster(), err
}

// lookFor polls until f is content; f says what it saw instead.
func (c *cluster) lookFor(what string, f func() (bool, string)) {
	c.t.Helper()
	saw := ""
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		var ok bool
		if ok, saw = f(); ok {
			return
		}
	}
	c.t.Fatalf("%s: not within %v; last seen: %s", what, patience, saw)
}

// leader waits until one of these nodes (none: of all that run) says of itself that it leads, and returns it.
func (c *cluster) leader(among ...int) (leader int) {
	c.t.Helper()
	if len(among) == 0 {
		for _, m := range c.members {
			if m.running {
				among = append(among, m.i)
			}
		}
	}
	c.lookFor(fmt.Sprintf("a leader among %v", among), func() (bool, string) {
		saw := ""
		for _, i := range among {
			v, err := c.view(i)
			if err == nil && v.LeaderId != "" && v.LeaderId == v.AnsweredBy {
				leader = i
				return true, ""
			}
			saw += fmt.Sprintf("node %d: leader %q, %v; ", i, v.GetLeaderId(), err)
		}
		return false, saw
	})
	return leader
}

// id is a node's id.
func (c *cluster) id(i int) string {
	c.t.Helper()
	var id string
	c.lookFor(fmt.Sprintf("the id of node %d", i), func() (bool, string) {
		v, err := c.view(i)
		id = v.GetAnsweredBy()
		return err == nil && id != "", fmt.Sprint(err)
	})
	return id
}

// awaitVoters waits until the leader sees n voters, all reachable, serving, and with all that it has.
func (c *cluster) awaitVoters(n int) {
	c.t.Helper()
	c.lookFor(fmt.Sprintf("%d voters that serve", n), func() (bool, string) {
		v, err := c.view(c.leader())
		if err != nil {
			return false, err.Error()
		}
		good := 0
		for _, m := range v.Members {
			if m.Voter && m.Reachable && m.State == "serving" && m.LagEntries == 0 {
				good++
			}
		}
		return good == n, fmt.Sprint(v.Members)
	})
}

// others are the nodes that run, but for one.
func (c *cluster) others(but int) (list []int) {
	for _, m := range c.members {
		if m.running && m.i != but {
			list = append(list, m.i)
		}
	}
	return list
}
