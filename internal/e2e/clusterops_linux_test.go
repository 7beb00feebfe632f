package e2e

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/provledger/provledger/internal/devca"
)

// TestClusterCertificates replaces all certificates, then the authority itself, while the cluster records. Connections that are there may
// stay; those that are made anew use what is there now, and what the old authority signed is worth nothing at the end.
func TestClusterCertificates(t *testing.T) {
	t.Parallel()
	r := dice(t)
	c := newCluster(t, r, clusterOptions{nodes: 3})
	h := newHistory()
	w := c.traffic(h, r.Uint64())
	reload := func() {
		t.Helper()
		for _, m := range c.members {
			c.signal(m.i, syscall.SIGHUP)
		}
		time.Sleep(200 * time.Millisecond) // signals are taken when they are taken
		for a := range c.members {
			for b := range a {
				c.links.reset(a, b)
			}
		}
		c.awaitVoters(3)
		c.progress(h, r, r.IntN(3), "with new certificates")
	}
	for _, m := range c.members {
		c.certify(m.i, "127.0.0.1")
	}
	reload()

	old, bundle := c.ca, filepath.Join(c.dir, "ca", "ca.pem")
	next, err := devca.New("provledger e2e, the next one", 365*24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	write := func(roots ...[]byte) {
		t.Helper()
		if err := os.WriteFile(bundle+".new", bytes.Join(roots, nil), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(bundle+".new", bundle); err != nil {
			t.Fatal(err)
		}
	}
	write(old.PEM(), next.PEM()) // both are trusted,
	reload()
	c.ca = next // then everybody shows a new one,
	for _, m := range c.members {
		c.certify(m.i, "127.0.0.1")
	}
	reload()
	write(next.PEM()) // then the old one goes.
	reload()

	// Somebody whose certificate the old authority signed is a stranger now, and says why it gets no further.
	c.ca = old
	late := c.add("")
	c.ca = next
	late.args = append(late.args, "--join", c.members[0].advertised)
	c.spawn(late.i)
	c.lookFor("the late node's log", func() (bool, string) {
		return regexp.MustCompile(`(?i)certificate`).MatchString(late.d.log.String()), late.d.tail()
	})
	c.kill(late.i)
	c.members = c.members[:3]
	c.settle(h, w)
}

// TestClusterStrangers has strangers at the peer port: they scan it, say nonsense, stall in the middle of a handshake and hold what they
// got. The cluster goes on, and each of them costs next to nothing.
func TestClusterStrangers(t *testing.T) {
	t.Parallel()
	r := dice(t)
	c := newCluster(t, r, clusterOptions{nodes: 3})
	h := newHistory()
	w := c.traffic(h, r.Uint64())
	leader := c.leader()
	before := resident(t, c.members[leader].d.cmd.Process.Pid)
	var held []net.Conn
	for i := range 300 {
		conn, err := net.DialTimeout("tcp", c.members[leader].peer, 2*time.Second)
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		t.Cleanup(func() { conn.Close() })
		held = append(held, conn)
		b := make([]byte, 1+r.IntN(4096))
		switch i % 4 {
		case 0: // nothing
			continue
		case 1: // noise
			if _, err := rand.Read(b); err != nil {
				t.Fatal(err)
			}
		case 2: // another protocol
			b = []byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
		case 3: // a handshake that announces 16 KiB and stops
			b = []byte{22, 3, 1, 0x40, 0, 1}
		}
		_, _ = conn.Write(b) // being thrown out already is as good
	}
	for range 10 {
		c.progress(h, r, r.IntN(3), "with strangers at the port")
	}
	if after := resident(t, c.members[leader].d.cmd.Process.Pid); after > before+64<<20 {
		t.Errorf("the process grew from %d to %d MiB over %d strangers", before>>20, after>>20, len(held))
	}
	// All are thrown out; the port is free for a friend.
	for i, conn := range held {
		if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 4096)
		for {
			if _, err := conn.Read(b); err != nil {
				if ne, ok := err.(net.Error); ok && ne.Timeout() {
					t.Errorf("stranger %d is still connected", i)
				}
				break
			}
		}
	}
	c.kill(c.others(leader)[0])
	for _, m := range c.members {
		if !m.running {
			c.spawn(m.i)
		}
	}
	c.awaitVoters(3)
	c.settle(h, w)
}

// resident is the memory of a process (proc_pid_status(5)).
func resident(t *testing.T, pid int) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	var kib int64
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

// TestClusterDiskFull fills the disk of a leader until it refuses appends, then to the last byte while it follows, then that of another leader
// to the last byte, under load. Appends go on under another leader; a process may end when no byte is left; nothing is lost, and with
// space it goes on by itself or by a restart.
func TestClusterDiskFull(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("needs a gigabyte of memory for a file system")
	}
	r := dice(t)
	// Two, because a node that has handed leadership over waits before it does so again. One is full at a time.
	disks := []string{smallDisk(t), smallDisk(t)}
	c := newCluster(t, r, clusterOptions{nodes: 3, dirs: []string{filepath.Join(disks[0], "ledger"), filepath.Join(disks[1], "ledger")}})
	h := newHistory()
	w := c.traffic(h, r.Uint64())
	// goesOn wants another leader than the node that is full, and appends through the nodes of the list.
	goesOn := func(full int, what string, through ...int) {
		t.Helper()
		c.leader(c.others(full)...)
		for _, i := range through {
			c.progress(h, r, i, what)
		}
	}
	empty := func(full int, free func()) {
		t.Helper()
		free()
		time.Sleep(500 * time.Millisecond) // a process that is ending has ended
		if !c.alive(full) {
			t.Logf("the process with the full disk ended: %v", c.members[full].d.err)
			c.spawn(full)
		}
		c.awaitVoters(3)
	}

	if c.leader() != 0 {
		c.transfer(0)
	}
	free := fill(t, disks[0], admissionBytes)
	goesOn(0, "after the leader's disk became nearly full", 0, 1, 2)
	if !c.alive(0) || !strings.Contains(c.members[0].d.log.String(), "its disk is too full to take appends") {
		t.Errorf("it did not hand leadership over:\n%s", c.members[0].d.tail())
	}
	refused, before := h.count(notApplied), h.count(acknowledged)
	time.Sleep(time.Second)
	if n, more := h.count(notApplied)-refused, h.count(acknowledged)-before; n > 0 || more == 0 {
		t.Errorf("%d events refused and %d acknowledged in the second after the hand-over", n, more)
	}
	free()
	free = fill(t, disks[0], 0)
	goesOn(0, "while a follower's disk is full to the last byte", 1, 2)
	time.Sleep(time.Second) // longer than a node takes to notice
	goesOn(0, "with a follower's disk full for a while", 1, 2)
	empty(0, free)

	if c.leader() != 1 {
		c.transfer(1)
	}
	free = fill(t, disks[1], 0)
	goesOn(1, "after the leader's disk became full to the last byte", 0, 2)
	empty(1, free)
	c.settle(h, w)
}

// alive says whether the process of a node runs.
func (c *cluster) alive(i int) bool {
	select {
	case <-c.members[i].d.done:
		return false
	default:
		return true
	}
}
