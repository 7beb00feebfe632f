// Package localcluster runs a real cluster of ledgerd processes on this machine's loopback, for trying out and for tests.
//
// A cluster is a directory that remembers everything, so that it can be stopped and started again, by another process too:
//
//	cluster.json          names and addresses of the nodes
//	ca/                   a certificate authority for this cluster alone
//	secret                the secret that all nodes derive log keys from
//	n1/ledgerd.yaml       settings of a node; written once, so that they can be changed
//	n1/peer.pem, peer-key.pem   its certificate, made anew at every start
//	n1/ledgerd.pid, ledgerd.log, addresses.json, data/
//
// All nodes share a disk, a secret and a fate: this shows how a cluster behaves and protects nothing.
package localcluster

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/provledger/provledger/internal/devca"
)

const (
	// MaxNodes is more than anybody runs on one machine, and keeps the ports of a base port apart.
	MaxNodes = 9
	// portStride is the distance of two nodes' ports: 7600, 7601, 7602 are a daemon's own defaults, 7610 begins the next.
	portStride = 10
	// secretBytes is the size of a cluster's secret (docs/design.md, Trust).
	secretBytes = 32
	// certificateValidity is far longer than a node runs between two starts, each of which makes a new certificate.
	certificateValidity = 90 * 24 * time.Hour
	// authorityValidity outlives any cluster that is made for trying out.
	authorityValidity = 10 * 365 * 24 * time.Hour
	// layout is the version of cluster.json.
	layout = 1
)

// ErrUnsupported is returned where processes cannot be run as this package needs it.
var ErrUnsupported = errors.New("a local cluster needs a Unix system")

// Node is one member: its name, which is its directory's too, and where it listens.
type Node struct {
	Name string `json:"name"`
	Peer string `json:"peer"` // HOST:PORT, as are the others
	GRPC string `json:"grpc"`
	HTTP string `json:"http"`
	// Joins says that the node came when the cluster was there already.
	Joins bool `json:"joins,omitempty"`
}

// Cluster is the nodes in one directory.
type Cluster struct {
	dir     string // absolute
	ledgerd string
	nodes   []Node
}

// Options of Open. Zero values: as many nodes as there are, or three; any free ports.
type Options struct {
	// Nodes that are wanted. More than there are are added, and join; fewer are refused, for leaving is a decision of the cluster.
	Nodes int
	// BasePort is the first port of the first node, for nodes that are made now.
	BasePort int
	// Ledgerd is the path of the program.
	Ledgerd string
}

// Open reads the cluster in dir, or makes one there when dir is empty or does not exist.
func Open(dir string, o Options) (*Cluster, error) {
	if !supported {
		return nil, ErrUnsupported
	}
	if o.Nodes < 0 || o.Nodes > MaxNodes {
		return nil, fmt.Errorf("%d nodes: want 1 to %d", o.Nodes, MaxNodes)
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	c := &Cluster{dir: abs, ledgerd: o.Ledgerd}
	found, err := c.load()
	if err != nil {
		return nil, err
	}
	if !found {
		if entries, err := os.ReadDir(abs); err == nil && len(entries) > 0 {
			return nil, fmt.Errorf("%s is not empty and holds no cluster (there is no %s)", dir, clusterFile)
		}
	}
	want := o.Nodes
	switch {
	case want == 0 && found:
		want = len(c.nodes)
	case want == 0:
		want = 3
	}
	if want < len(c.nodes) {
		return nil, fmt.Errorf("there are %d nodes in %s, not %d; `ledgerctl cluster remove` takes members out of a cluster", len(c.nodes), dir, want)
	}
	if err := os.MkdirAll(abs, 0o700); err != nil {
		return nil, err
	}
	if err := c.grow(want, o.BasePort, found); err != nil {
		return nil, err
	}
	return c, c.credentials(found)
}

// Existing reads the cluster in dir and makes nothing.
func Existing(dir string, ledgerd string) (*Cluster, error) {
	if !supported {
		return nil, ErrUnsupported
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	c := &Cluster{dir: abs, ledgerd: ledgerd}
	found, err := c.load()
	if err == nil && !found {
		err = fmt.Errorf("there is no cluster in %s (no %s)", dir, clusterFile)
	}
	return c, err
}

// Nodes returns the members in order.
func (c *Cluster) Nodes() []Node { return slices.Clone(c.nodes) }

// Dir returns the absolute path of the cluster's directory.
func (c *Cluster) Dir() string { return c.dir }

// Log returns the path of a node's log file.
func (c *Cluster) Log(n Node) string { return c.path(n, logFile) }

// Find returns the node of that name or number: n2 and 2 are the same.
func (c *Cluster) Find(name string) (Node, error) {
	for i, n := range c.nodes {
		if n.Name == name || strconv.Itoa(i+1) == name {
			return n, nil
		}
	}
	return Node{}, fmt.Errorf("there is no node %q: nodes are 1 to %d", name, len(c.nodes))
}

// Names of files.
const (
	clusterFile = "cluster.json"
	caDir       = "ca"
	secretFile  = "secret"
	configFile  = "ledgerd.yaml"
	certFile    = "peer.pem"
	keyFile     = "peer-key.pem"
	pidFile     = "ledgerd.pid"
	logFile     = "ledgerd.log"
	dataDir     = "data"
)

func (c *Cluster) path(n Node, name string) string { return filepath.Join(c.dir, n.Name, name) }

type clusterJSON struct {
	Version int    `json:"version"`
	Nodes   []Node `json:"nodes"`
}

func (c *Cluster) load() (bool, error) {
	b, err := os.ReadFile(filepath.Join(c.dir, clusterFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var v clusterJSON
	if err := json.Unmarshal(b, &v); err != nil {
		return false, fmt.Errorf("%s: %w", filepath.Join(c.dir, clusterFile), err)
	}
	if v.Version != layout || len(v.Nodes) == 0 || len(v.Nodes) > MaxNodes {
		return false, fmt.Errorf("%s: version %d with %d nodes: not what this program wrote", filepath.Join(c.dir, clusterFile), v.Version, len(v.Nodes))
	}
	for _, n := range v.Nodes {
		if n.Name != filepath.Base(n.Name) || !strings.HasPrefix(n.Name, "n") {
			return false, fmt.Errorf("%s: a node is named %q", filepath.Join(c.dir, clusterFile), n.Name)
		}
	}
	c.nodes = v.Nodes
	return true, nil
}

// grow adds nodes until there are want, and remembers them.
func (c *Cluster) grow(want, basePort int, joins bool) error {
	missing := want - len(c.nodes)
	if missing == 0 {
		return nil
	}
	ports, err := choosePorts(len(c.nodes), missing, basePort)
	if err != nil {
		return err
	}
	for i := range missing {
		at := func(k int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[3*i+k])) }
		c.nodes = append(c.nodes, Node{Name: "n" + strconv.Itoa(len(c.nodes)+1), GRPC: at(0), HTTP: at(1), Peer: at(2), Joins: joins})
	}
	b, err := json.MarshalIndent(clusterJSON{Version: layout, Nodes: c.nodes}, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(c.dir, clusterFile), append(b, '\n'), 0o600)
}

// choosePorts returns three ports a node. Free ones are held until all are known, so that no two are the same; whether they stay free
// nobody can promise, and ledgerd says so when one is taken.
func choosePorts(first, nodes, base int) ([]int, error) {
	var ports []int
	if base != 0 {
		if last := base + (MaxNodes-1)*portStride + 2; base < 1024 || last > 65535 {
			return nil, fmt.Errorf("base port %d: want 1024 to %d", base, 65535-(MaxNodes-1)*portStride-2)
		}
		for i := range nodes {
			p := base + (first+i)*portStride
			ports = append(ports, p, p+1, p+2)
		}
		return ports, nil
	}
	return FreePorts(3 * nodes)
}

// credentials makes the authority and the secret, unless they are there. A cluster that exists and lost its secret is not given another
// one: nobody could verify what it would sign.
func (c *Cluster) credentials(existing bool) error {
	ca := filepath.Join(c.dir, caDir)
	if _, err := os.Stat(ca); errors.Is(err, fs.ErrNotExist) {
		authority, err := devca.New("provledger local cluster", authorityValidity)
		if err != nil {
			return err
		}
		if err := authority.Save(ca); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	secret := filepath.Join(c.dir, secretFile)
	_, err := os.Stat(secret)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if existing {
		for _, n := range c.nodes {
			if _, err := os.Stat(c.path(n, dataDir)); err == nil {
				return fmt.Errorf("%s is gone, and %s was made with it; put it back (each node has a copy: %s)",
					secret, c.path(n, dataDir), filepath.Join(c.path(n, dataDir), secretFile))
			}
		}
	}
	b := make([]byte, secretBytes)
	if _, err := rand.Read(b); err != nil {
		return err
	}
	return writeFile(secret, b, 0o600)
}

// prepare makes a node's directory ready for a start.
func (c *Cluster) prepare(n Node) error {
	if err := os.MkdirAll(filepath.Join(c.dir, n.Name), 0o700); err != nil {
		return err
	}
	ca, err := devca.Load(filepath.Join(c.dir, caDir))
	if err != nil {
		return err
	}
	cert, key, err := ca.Issue(devca.Request{Hosts: []string{"127.0.0.1", "localhost"}, Validity: certificateValidity, Server: true, Client: true})
	if err != nil {
		return err
	}
	if err := writeFile(c.path(n, keyFile), key, 0o600); err != nil {
		return err
	}
	if err := writeFile(c.path(n, certFile), cert, 0o644); err != nil {
		return err
	}
	if _, err := os.Stat(c.path(n, configFile)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return writeFile(c.path(n, configFile), []byte(c.config(n)), 0o600)
}

// config is a node's settings. Paths are relative, so that the cluster's directory can be moved.
func (c *Cluster) config(n Node) string {
	var founders []string
	for _, m := range c.nodes {
		if !m.Joins {
			founders = append(founders, m.Peer)
		}
	}
	list := "members"
	if n.Joins {
		list = "join"
	}
	return fmt.Sprintf(`# Node %s of a cluster for trying out. Written once by ledgerctl cluster local: changes stay.
# ledgerd --print-config is the manual of all settings. Paths are relative to this directory.
data: ./%s
grpc-address: %s
http-address: %s
peer-address: %s
peer-cert: ./%s
peer-key: ./%s
peer-ca: ../%s/ca.pem
secret-file: ../%s
%s: [%s]
`, n.Name, dataDir, quoted(n.GRPC), quoted(n.HTTP), quoted(n.Peer), certFile, keyFile, caDir, secretFile, list, strings.Join(quotedAll(founders), ", "))
}

func quoted(address string) string { return `"` + address + `"` }

func quotedAll(addresses []string) []string {
	var out []string
	for _, a := range addresses {
		out = append(out, quoted(a))
	}
	return out
}

// writeFile replaces a file as a whole, so that a process that reads it meanwhile, or a crash, never meets half of it.
func writeFile(path string, b []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
