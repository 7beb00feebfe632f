package backup

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/provledger/provledger/client"
	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/client/receipt"
	"github.com/provledger/provledger/internal/node"
	"github.com/provledger/provledger/internal/signer"
)

// testLedger is a real node behind a real gRPC server, in process.
type testLedger struct {
	t    testing.TB
	dir  string
	n    *node.Node
	srv  *grpc.Server
	lis  *bufconn.Listener
	conn *grpc.ClientConn
}

func openLedger(t testing.TB, dir string) *testLedger {
	t.Helper()
	n, err := node.Open(t.Context(), node.Config{
		Dir: dir, Logger: slog.New(slog.DiscardHandler), SegmentBytes: 256 << 10, MemTableBytes: 1 << 20, BlockCacheBytes: 1 << 20,
		MinFreeBytes: 1, SlowWarn: -1, Die: func(reason string, err error) { panic(fmt.Sprintf("die: %s: %v", reason, err)) },
	})
	if err != nil {
		t.Fatal(err)
	}
	l := &testLedger{t: t, dir: dir, n: n, lis: bufconn.Listen(1 << 20), srv: n.NewServer()}
	go func() { _ = l.srv.Serve(l.lis) }()
	l.conn, err = grpc.NewClient("passthrough:///ledger", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return l.lis.Dial() }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.close)
	return l
}

func (l *testLedger) close() {
	if l.n == nil {
		return
	}
	l.conn.Close()
	l.srv.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := l.n.Close(ctx); err != nil {
		l.t.Errorf("close the ledger: %v", err)
	}
	l.n = nil
}

// client returns a client that remembers nothing.
func (l *testLedger) client() *client.Client {
	return client.New(l.conn, client.Options{StateDir: "-"})
}

func digest(s string) lineage.Digest {
	sum := sha256.Sum256([]byte(s))
	return lineage.Digest{Algorithm: lineage.SHA256, Value: string(sum[:])}
}

// event has names, a URI and a document, so that leaf and body have all parts.
func event(output string) *lineage.Event {
	return &lineage.Event{
		ID: lineage.NewID(), Kind: lineage.KindRun, Action: uint8(lineage.RunComplete), RunID: lineage.NewID(), OccurredAt: 1_700_000_000_000_000,
		Job:        lineage.Name{Namespace: "test", Name: "job"},
		References: []lineage.Reference{{Role: lineage.Output, Kind: lineage.Model, Known: lineage.Computed, Digest: digest(output), Name: lineage.Name{Name: output}, URI: "out/" + output}},
		Documents:  []lineage.Document{{MediaType: "application/json", Content: []byte(`{"of":"` + output + `"}`)}},
	}
}

// record appends n events to a log, some alone, most in batches.
func (l *testLedger) record(log string, n int) []*lineage.Event {
	l.t.Helper()
	c := l.client()
	defer c.Close()
	var all []*lineage.Event
	for len(all) < n {
		k := min(1+len(all)%7, n-len(all))
		batch := make([]*lineage.Event, k)
		for i := range batch {
			batch[i] = event(fmt.Sprintf("%s-%d", log, len(all)+i))
		}
		if _, err := c.AppendBatch(l.t.Context(), log, batch); err != nil {
			l.t.Fatal(err)
		}
		all = append(all, batch...)
	}
	return all
}

func (l *testLedger) createLog(name string) {
	l.t.Helper()
	c := l.client()
	defer c.Close()
	if _, err := c.CreateLog(l.t.Context(), name); err != nil {
		l.t.Fatal(err)
	}
}

func (l *testLedger) checkpoint(log string) client.Checkpoint {
	l.t.Helper()
	c := l.client()
	defer c.Close()
	cp, err := c.Checkpoint(l.t.Context(), log)
	if err != nil {
		l.t.Fatal(err)
	}
	return cp
}

// backup runs a backup and fails the test if it does not work.
func (l *testLedger) backup(dir string) *Summary {
	l.t.Helper()
	c := l.client()
	defer c.Close()
	s, err := Run(l.t.Context(), RunOptions{Source: c, Dir: dir})
	if err != nil {
		l.t.Fatal(err)
	}
	return s
}

func mustVerify(t testing.TB, dir string) *Report {
	t.Helper()
	r, err := Verify(t.Context(), VerifyOptions{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range r.Faults {
		t.Errorf("a sound backup has a fault: %s", f)
	}
	return r
}

// content is the entries of a log as its range files hold them.
func content(t testing.TB, dir string, log uint32) (leaves, bodies []byte) {
	t.Helper()
	m, err := load(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range m.log(log).Ranges {
		entries, faults, err := readRange(dir, m.ClusterID, log, r)
		if err != nil || faults != nil {
			t.Fatal(err, faults)
		}
		for i := range entries {
			leaves = appendLeaf(leaves, entries[i].raw)
			bodies = appendBody(bodies, entries[i].body.erased, entries[i].body.bytes)
		}
	}
	return leaves, bodies
}

// What increments brought is what one run brings, entry by entry, and both verify.
func TestIncrementsEqualFull(t *testing.T) {
	l := openLedger(t, filepath.Join(t.TempDir(), "ledger"))
	steps, full := filepath.Join(t.TempDir(), "a", "steps"), filepath.Join(t.TempDir(), "full")
	l.record("main", 5)
	if s := l.backup(steps); s.Run != 1 || s.Entries != 6+3 {
		t.Errorf("first run: %+v", s)
	}
	l.record("main", 40)
	l.createLog("other")
	l.record("other", 3)
	if s := l.backup(steps); s.Run != 2 || s.Entries != 40+1+4 {
		t.Errorf("second run: %+v", s)
	}
	if s := l.backup(steps); s.Run != 3 || s.Entries != 0 || s.Bytes != 0 {
		t.Errorf("a run without anything new: %+v", s)
	}
	l.record("other", 1)
	l.backup(steps)
	l.backup(full)
	for log := range uint32(3) {
		a, b := content(t, steps, log)
		c, d := content(t, full, log)
		if !bytes.Equal(a, c) || !bytes.Equal(b, d) || len(a) == 0 {
			t.Errorf("log %d differs", log)
		}
	}
	r := mustVerify(t, steps)
	mustVerify(t, full)
	if r.Manifest.Run.Number != 4 || len(r.Logs) != 3 || r.Logs[1].Name != "main" || r.Logs[1].Size != 46 || r.Logs[1].Root != l.checkpoint("main").Root.String() {
		t.Errorf("report: %+v", r)
	}
}

// Every file of a backup is there and no secret is in any of them.
func TestNoSecretInside(t *testing.T) {
	l := openLedger(t, filepath.Join(t.TempDir(), "ledger"))
	l.record("main", 20)
	dir := filepath.Join(t.TempDir(), "backup")
	l.backup(dir)
	secret, err := os.ReadFile(filepath.Join(l.dir, "secret"))
	if err != nil {
		t.Fatal(err)
	}
	m, err := load(dir)
	if err != nil {
		t.Fatal(err)
	}
	needles := [][]byte{secret, fmt.Appendf(nil, "%x", secret)}
	for i := range m.Logs {
		text, err := signer.ExportKey((*[signer.SecretBytes]byte)(secret), m.Logs[i].Origin)
		if err != nil {
			t.Fatal(err)
		}
		part := strings.Split(strings.TrimSpace(string(text)), "+")
		needles = append(needles, []byte(strings.Join(part[4:], "+")), []byte(part[0]+"+"+part[1]), seedOf(t, text))
	}
	files := 0
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		files++
		b, err := os.ReadFile(path)
		for _, n := range needles {
			if bytes.Contains(b, n) {
				t.Errorf("%s holds a key", path)
			}
		}
		if info, e := d.Info(); e != nil || info.Mode().Perm()&0o077 != 0 && d.Name() != lockName {
			t.Errorf("%s can be read by others: %v %v", path, info.Mode(), e)
		}
		return err
	})
	if err != nil || files != 2+2*2 {
		t.Errorf("%d files, %v", files, err)
	}
}

func seedOf(t *testing.T, text []byte) []byte {
	t.Helper()
	part := strings.SplitN(strings.TrimSpace(string(text)), "+", 5)
	raw := decode64(t, part[4])
	if len(raw) != 33 {
		t.Fatalf("a seed of %d bytes", len(raw))
	}
	return raw[1:]
}

// One flipped bit in any file is found, and the file is named.
func TestEveryFlipIsFound(t *testing.T) {
	l := openLedger(t, filepath.Join(t.TempDir(), "ledger"))
	l.record("main", 12)
	dir := filepath.Join(t.TempDir(), "backup")
	l.backup(dir)
	l.record("main", 3)
	l.backup(dir)
	l.close()
	mustVerify(t, dir)
	flips := 0
	forFiles(t, dir, func(path, rel string, b []byte) {
		for bit := 0; bit < 8*len(b); bit += 1 + len(b)/12 { // some hundred of each file, all its regions
			changed := bytes.Clone(b)
			changed[bit/8] ^= 1 << (bit % 8)
			flips++
			expectFault(t, dir, path, rel, changed, fmt.Sprintf("bit %d", bit))
		}
		write(t, path, b)
	})
	if flips < 300 {
		t.Errorf("only %d flips", flips)
	}
	mustVerify(t, dir)
}

func TestEveryCutIsFound(t *testing.T) {
	l := openLedger(t, filepath.Join(t.TempDir(), "ledger"))
	l.record("main", 5)
	dir := filepath.Join(t.TempDir(), "backup")
	l.backup(dir)
	l.close()
	forFiles(t, dir, func(path, rel string, b []byte) {
		for _, n := range []int{0, 1, headerBytes, len(b) / 2, len(b) - 1} {
			expectFault(t, dir, path, rel, b[:n], fmt.Sprintf("cut to %d", n))
		}
		expectFault(t, dir, path, rel, append(bytes.Clone(b), 0), "a byte more")
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		r, err := Verify(t.Context(), VerifyOptions{Dir: dir})
		switch {
		case rel == manifestName:
			if !errors.Is(err, ErrNoBackup) {
				t.Errorf("without its manifest: %v", err)
			}
		case err != nil || len(r.Faults) != 1 || r.Faults[0].File != rel || r.Faults[0].Problem != "it is missing":
			t.Errorf("without %s: %v, %v", rel, r, err)
		}
		write(t, path, b)
	})
	mustVerify(t, dir)
}

func forFiles(t *testing.T, dir string, fn func(path, rel string, b []byte)) {
	t.Helper()
	var paths []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && d.Name() != lockName {
			paths = append(paths, path)
		}
		return err
	})
	if err != nil || len(paths) < 5 {
		t.Fatal(paths, err)
	}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			t.Fatal(err)
		}
		fn(path, filepath.ToSlash(rel), b)
	}
}

func expectFault(t *testing.T, dir, path, rel string, changed []byte, what string) {
	t.Helper()
	write(t, path, changed)
	r, err := Verify(t.Context(), VerifyOptions{Dir: dir})
	if rel == manifestName && err != nil {
		return // a manifest of another version, or none
	}
	if err != nil {
		t.Fatalf("%s of %s: %v", what, rel, err)
	}
	for _, f := range r.Faults {
		if f.File == rel {
			return
		}
	}
	t.Errorf("%s of %s is not found: %v", what, rel, r.Faults)
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// A backup whose digests were made to fit again is still held to the checkpoint's signature.
func TestForgedBackup(t *testing.T) {
	l := openLedger(t, filepath.Join(t.TempDir(), "ledger"))
	l.record("main", 5)
	dir := filepath.Join(t.TempDir(), "backup")
	l.backup(dir)
	m, err := load(dir)
	if err != nil {
		t.Fatal(err)
	}
	g := m.log(1)
	entries, _, err := readRange(dir, m.ClusterID, 1, g.Ranges[0])
	if err != nil {
		t.Fatal(err)
	}
	// The leaf of entry 3 gets another initiator: all else is composed anew to fit.
	forged := *entries[3].leaf
	forged.Initiator = "somebody else"
	h := header{magicLeaves, m.ClusterID, 1, 0, g.Size}
	file, f := h.append(nil), frontier{}
	for i := range entries {
		raw := entries[i].raw
		if i == 3 {
			raw = lineage.AppendLeaf(nil, &forged)
		}
		file = appendLeaf(file, raw)
		f.append(raw)
	}
	g.Ranges[0].LeavesBytes, g.Ranges[0].LeavesSHA256 = int64(len(file)), hexSum(file)
	g.setFrontier(&f)
	leaves, _ := g.Ranges[0].paths(1)
	write(t, filepath.Join(dir, leaves), file)
	if err := m.save(dir); err != nil {
		t.Fatal(err)
	}
	r, err := Verify(t.Context(), VerifyOptions{Dir: dir})
	if err != nil || len(r.Faults) != 1 || !strings.Contains(r.Faults[0].Problem, "the checkpoint says") {
		t.Errorf("got %+v, %v", r, err)
	}
	_, err = Restore(t.Context(), RestoreOptions{From: dir, Dir: filepath.Join(t.TempDir(), "new"), NoWitness: true, Logger: slog.New(slog.DiscardHandler), Die: dies(t)})
	if !errors.Is(err, ErrDamaged) {
		t.Errorf("restored: %v", err)
	}
}

func TestPinnedKeys(t *testing.T) {
	l := openLedger(t, filepath.Join(t.TempDir(), "ledger"))
	dir := filepath.Join(t.TempDir(), "backup")
	l.record("main", 5)
	l.backup(dir)
	m, err := load(dir)
	if err != nil {
		t.Fatal(err)
	}
	verify := func(vkeys ...string) *Report {
		t.Helper()
		text := "quorum none\n"
		for _, k := range vkeys {
			text = "log " + k + "\n" + text
		}
		p, err := receipt.ParsePolicy([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		r, err := Verify(t.Context(), VerifyOptions{Dir: dir, Trust: p})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := verify(m.log(0).VKey); r.Faults != nil || r.Pinned != 2 || r.Logs[0].KeyKnown != "pinned" || r.Logs[1].KeyKnown != "system" {
		t.Errorf("system pinned: %+v", r)
	}
	if r := verify(m.log(1).VKey); r.Faults != nil || r.Pinned != 1 || r.Logs[0].KeyKnown != "" {
		t.Errorf("main pinned: %+v", r)
	}
	other, err := signer.DeriveKey(&[signer.SecretBytes]byte{1}, m.log(1).Origin)
	if err != nil {
		t.Fatal(err)
	}
	if r := verify(other.VKey()); len(r.Faults) != 1 {
		t.Errorf("another key pinned: %+v", r)
	}
}

// broken is a source that fails after some entries.
type broken struct {
	Source
	left int
}

var errBroken = errors.New("the line is dead")

func (b *broken) Entries(ctx context.Context, log string, first, end uint64, body bool) iter.Seq2[*client.Entry, error] {
	return func(yield func(*client.Entry, error) bool) {
		for e, err := range b.Source.Entries(ctx, log, first, end, body) {
			if b.left--; b.left < 0 {
				yield(nil, errBroken)
				return
			}
			if !yield(e, err) {
				return
			}
		}
	}
}

// Wherever a run breaks, what the run before brought is there, and the next run goes on.
func TestInterruptedRunResumes(t *testing.T) {
	l := openLedger(t, filepath.Join(t.TempDir(), "ledger"))
	c := l.client()
	defer c.Close()
	l.record("main", 9)
	full := filepath.Join(t.TempDir(), "full")
	l.backup(full)
	total := 10 + 3
	for cut := 0; cut < total; cut++ {
		dir := filepath.Join(t.TempDir(), "backup")
		_, err := Run(t.Context(), RunOptions{Source: &broken{c, cut}, Dir: dir})
		if !errors.Is(err, errBroken) {
			t.Fatalf("cut %d: %v", cut, err)
		}
		r := mustVerify(t, dir)
		if r.Manifest.Run.FinishedAt != "" || len(r.NotChecked) < 2 {
			t.Errorf("cut %d: an interrupted run looks complete: %+v", cut, r)
		}
		if _, err := Restore(t.Context(), RestoreOptions{From: dir, Dir: filepath.Join(t.TempDir(), "new"), NoWitness: true}); err == nil {
			t.Errorf("cut %d: restored from a backup that was never complete", cut)
		}
		l.backup(dir)
		for log := range uint32(2) {
			a, b := content(t, dir, log)
			c, d := content(t, full, log)
			if !bytes.Equal(a, c) || !bytes.Equal(b, d) {
				t.Errorf("cut %d: log %d differs", cut, log)
			}
		}
		mustVerify(t, dir)
	}
}

// A run that breaks after a good one leaves a backup that restores to the good one.
func TestInterruptedIncrementRestores(t *testing.T) {
	l := openLedger(t, filepath.Join(t.TempDir(), "ledger"))
	dir := filepath.Join(t.TempDir(), "backup")
	l.record("main", 9)
	l.backup(dir)
	l.createLog("other") // main and other are copied before system is
	l.record("main", 4)
	c := l.client()
	defer c.Close()
	if _, err := Run(t.Context(), RunOptions{Source: &broken{c, 5}, Dir: dir}); !errors.Is(err, errBroken) {
		t.Fatal(err)
	}
	mustVerify(t, dir)
	got := mustRestore(t, RestoreOptions{From: dir, NoWitness: true, Secret: l.secret()})
	if len(got.Logs) != 2 || got.Logs[1].Size != 14 || len(got.LeftOut) != 1 || got.LeftOut[0] != "other" {
		t.Errorf("restored %+v", got.Restored)
	}
}

func TestRunsAreAlone(t *testing.T) {
	l := openLedger(t, filepath.Join(t.TempDir(), "ledger"))
	dir := filepath.Join(t.TempDir(), "backup")
	l.backup(dir)
	lock, err := lockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	c := l.client()
	defer c.Close()
	if _, err := Run(t.Context(), RunOptions{Source: c, Dir: dir}); !errors.Is(err, ErrBusy) {
		t.Errorf("a second run: %v", err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	l.backup(dir)
}

// Another ledger, a fork and a ledger that was turned back are not written over a backup.
func TestDivergedLedgerIsRefused(t *testing.T) {
	base := t.TempDir()
	l := openLedger(t, filepath.Join(base, "ledger"))
	dir := filepath.Join(base, "backup")
	l.record("main", 3)
	l.close()
	if err := os.CopyFS(filepath.Join(base, "copy"), os.DirFS(filepath.Join(base, "ledger"))); err != nil {
		t.Fatal(err)
	}
	l = openLedger(t, filepath.Join(base, "ledger"))
	l.record("main", 3)
	l.backup(dir)
	before, err := os.ReadFile(filepath.Join(dir, manifestName))
	if err != nil {
		t.Fatal(err)
	}
	refused := func(what string, other *testLedger, want string) {
		t.Helper()
		c := other.client()
		defer c.Close()
		_, err := Run(t.Context(), RunOptions{Source: c, Dir: dir})
		if !errors.Is(err, ErrDiverged) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", what, err)
		}
		mustVerify(t, dir)
	}
	refused("another ledger", openLedger(t, filepath.Join(base, "another")), "name another directory")
	fork := openLedger(t, filepath.Join(base, "copy"))
	refused("turned back", fork, "turned back")
	fork.record("main", 3)
	refused("a fork of the same size", fork, "forked")
	fork.record("main", 3)
	refused("a longer fork", fork, "forked")
	l.backup(dir)
	if got := mustVerify(t, dir).Logs[1]; got.Size != 7 {
		t.Errorf("the backup has %d entries of main", got.Size)
	}
	if after, err := load(dir); err != nil || len(after.log(1).Ranges) != 1 {
		t.Errorf("the fork left ranges behind: %v\n%s", err, before)
	}
}

func TestForeignDirectoryIsRefused(t *testing.T) {
	l := openLedger(t, filepath.Join(t.TempDir(), "ledger"))
	dir := t.TempDir()
	write(t, filepath.Join(dir, "thesis.tex"), []byte("x"))
	c := l.client()
	defer c.Close()
	if _, err := Run(t.Context(), RunOptions{Source: c, Dir: dir}); err == nil || !strings.Contains(err.Error(), "thesis.tex") {
		t.Errorf("got %v", err)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
		t.Errorf("it was written to: %v %v", names, err)
	}
}
