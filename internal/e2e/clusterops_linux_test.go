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

// TestClusterDiskFull fills the disk of the leader, then of a follower, under load, to the last byte. Appends may be refused meanwhile, and
// a process may end; nothing is lost, and with space it goes on by itself or by a restart.
func TestClusterDiskFull(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("needs a gigabyte of memory for a file system")
	}
	r := dice(t)
	disk := smallDisk(t)
	c := newCluster(t, r, clusterOptions{nodes: 3, dirs: []string{filepath.Join(disk, "ledger")}})
	h := newHistory()
	w := c.traffic(h, r.Uint64())
	for _, lead := range []bool{true, false} {
		if lead != (c.leader() == 0) {
			c.transfer(map[bool]int{true: 0, false: 1}[lead])
		}
		free := fill(t, disk, 0)
		refused := h.count(notApplied)
		c.progress(h, r, 1, fmt.Sprintf("while the disk of one node is full (it leads: %v)", lead))
		time.Sleep(2 * time.Second)
		t.Logf("%d appends refused while the disk was full (the node led: %v)", h.count(notApplied)-refused, lead)
		c.progress(h, r, 2, "with one disk full for a while")
		free()
		time.Sleep(time.Second)
		select {
		case <-c.members[0].d.done:
			t.Logf("the process with the full disk ended: %v", c.members[0].d.err)
			c.spawn(0)
		default:
		}
		c.awaitVoters(3)
	}
	c.settle(h, w)
}
