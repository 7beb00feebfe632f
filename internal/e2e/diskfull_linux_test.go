package e2e

import (
	"errors"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// admissionBytes is what is left free so that appends are refused and nothing else fails.
	admissionBytes = 300 << 20
	// settle is longer than the daemon takes to look at the disk again.
	settle = 10 * time.Second
)

// smallDisk mounts a file system of 1 GiB for the test's ledger: above what admission wants free (256 MiB and four memtables of
// 64 MiB), with room for two segments of the raft log.
func smallDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("provledger-e2e", dir, "tmpfs", 0, "size=1g,mode=0700"); err != nil {
		t.Skipf("cannot mount a small file system here: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

// fill takes space until only leave bytes are free, and returns how to give it back.
func fill(t *testing.T, disk string, leave int64) (free func()) {
	t.Helper()
	f, err := os.Create(filepath.Join(disk, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size := int64(0)
	for chunk := int64(64 << 20); chunk >= 4096; {
		var s unix.Statfs_t
		if err := unix.Statfs(disk, &s); err != nil {
			t.Fatal(err)
		}
		if avail := int64(s.Bavail) * s.Bsize; avail-chunk < leave {
			chunk /= 2
			continue
		}
		if err := unix.Fallocate(int(f.Fd()), 0, size, chunk); errors.Is(err, unix.ENOSPC) {
			chunk /= 2
		} else if err != nil {
			t.Fatal(err)
		} else {
			size += chunk
		}
	}
	return func() {
		if err := os.Remove(f.Name()); err != nil {
			t.Error(err)
		}
	}
}

// until appends until the outcome is as wanted.
func until(t *testing.T, h *history, conn *grpc.ClientConn, r *rand.Rand, what string, want func(error) bool) {
	t.Helper()
	var last error
	for deadline := time.Now().Add(settle); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		o := h.appendRaw(t.Context(), conn, newEvent(r))
		if last = o.err; want(last) {
			return
		}
	}
	t.Fatalf("appends did not become %s within %v; the last one: %v", what, settle, last)
}

// TestDiskFull fills the disk: appends are refused with a clear status, reading goes on, and appends work again when space is back.
func TestDiskFull(t *testing.T) {
	r := dice(t)
	disk := smallDisk(t)
	d := start(t, filepath.Join(disk, "ledger"), "")
	conn := d.dial()
	h := newHistory()
	a := newAuditor(t, h, conn)
	for range 50 {
		if o := h.appendRaw(t.Context(), conn, newEvent(r)); o.err != nil {
			t.Fatal(o.err)
		}
	}
	free := fill(t, disk, admissionBytes)
	until(t, h, conn, r, "refused", func(err error) bool { return status.Code(err) == codes.ResourceExhausted })
	if o := h.appendRaw(t.Context(), conn, newEvent(r)); o.outcome != notApplied {
		t.Errorf("a refused append is not said to be not applied: %v", o.err)
	}
	resp, err := http.Get("http://" + d.http + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("/readyz of a full disk: %s", resp.Status)
	}
	a.audit(conn)
	free()
	until(t, h, conn, r, "accepted", func(err error) bool { return err == nil })
	a.audit(conn)
	if code := d.terminate(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// TestDiskFullUnderneath leaves no byte free at all, under load, and stops and starts the process in that state. It may end, or refuse;
// it may not lose.
func TestDiskFullUnderneath(t *testing.T) {
	r := dice(t)
	disk := smallDisk(t)
	dir := filepath.Join(disk, "ledger")
	d := start(t, dir, "")
	conn := d.dial()
	h := newHistory()
	a := newAuditor(t, h, conn)
	for range 500 {
		if o := h.appendRaw(t.Context(), conn, newEvent(r)); o.err != nil {
			t.Fatal(o.err)
		}
	}
	free := fill(t, disk, 0)
	for range 50 {
		h.appendRaw(t.Context(), conn, newEvent(r))
	}
	select {
	case <-d.done:
		t.Logf("the process ended by itself: %v", d.err)
	default:
		t.Logf("SIGTERM on a full disk: exit code %d", d.terminate())
	}
	// On the full disk a start serves what is there or ends; both is right.
	if d := spawn(t, dir, nil, "--grpc-address", "127.0.0.1:0", "--http-address", "off"); d.await() {
		t.Log("started on the full disk")
		a.audit(d.dial())
		if o := h.appendRaw(t.Context(), d.dial(), newEvent(r)); o.err == nil {
			t.Error("an append was accepted with no byte free")
		}
		d.terminate()
	} else {
		if code := d.exitCode(); code != 1 && code != 70 {
			t.Errorf("the start on the full disk ended with %d, want 1 or 70:\n%s", code, d.tail())
		}
	}
	free()
	d = start(t, dir, "")
	conn = d.dial()
	a.resend(conn, h.ops)
	a.audit(conn)
	until(t, h, conn, r, "accepted", func(err error) bool { return err == nil })
}
