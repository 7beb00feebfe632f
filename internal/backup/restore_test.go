package backup

import (
	"encoding/base64"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/provledger/provledger/client"
	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/client/receipt"
	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/signer"
)

func decode64(t *testing.T, s string) []byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func dies(t testing.TB) func(string, error) {
	return func(reason string, err error) { t.Errorf("die: %s: %v", reason, err) }
}

func (l *testLedger) secret() *[signer.SecretBytes]byte {
	l.t.Helper()
	b, err := os.ReadFile(filepath.Join(l.dir, "secret"))
	if err != nil || len(b) != signer.SecretBytes {
		l.t.Fatal(len(b), err)
	}
	return (*[signer.SecretBytes]byte)(b)
}

type restoredDir struct {
	*Restored
	dir string
}

func tryRestore(t testing.TB, o RestoreOptions) (*Restored, error) {
	t.Helper()
	o.Logger, o.Die, o.SegmentBytes = slog.New(slog.DiscardHandler), dies(t), 256<<10
	return Restore(t.Context(), o)
}

func mustRestore(t testing.TB, o RestoreOptions) restoredDir {
	t.Helper()
	o.Dir = filepath.Join(t.TempDir(), "restored")
	r, err := tryRestore(t, o)
	if err != nil {
		t.Fatal(err)
	}
	return restoredDir{r, o.Dir}
}

// A restored ledger is the old one: old receipts verify, its checkpoints extend what clients remember, old events are still known under their
// ids, and recording goes on, across restarts.
func TestRestoredLedgerGoesOn(t *testing.T) {
	l := openLedger(t, filepath.Join(t.TempDir(), "ledger"))
	events := l.record("main", 50)
	l.createLog("other")
	l.record("other", 5)
	c := l.client()
	old, _, err := c.Receipt(t.Context(), "main", client.AtIndex(17))
	if err != nil {
		t.Fatal(err)
	}
	info, err := c.Log(t.Context(), "main")
	if err != nil {
		t.Fatal(err)
	}
	remembered := t.TempDir()
	memory := client.New(l.conn, client.Options{StateDir: remembered, Target: "ledger"})
	if _, err := memory.Checkpoint(t.Context(), "main"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(memory.Close(), c.Close()); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "backup")
	l.backup(dir)
	last := l.checkpoint("main")
	secret := l.secret()
	l.close()

	r := mustRestore(t, RestoreOptions{From: dir, Secret: secret, NoWitness: true})
	if r.NodeID == (r.ClusterID) || len(r.Logs) != 3 || r.Logs[1].Root != last.Root.String() || r.Logs[1].Frozen {
		t.Errorf("restored %+v", r.Restored)
	}
	for range 2 { // and once more after a restart
		n := openLedger(t, r.dir)
		c := client.New(n.conn, client.Options{StateDir: remembered, Target: "ledger"})
		again, err := c.AppendBatch(t.Context(), "main", events[3:6])
		if err != nil || !again.Duplicate(0) || again.Index(0) != 4 {
			t.Fatalf("an event that was recorded: %+v, %v", again, err)
		}
		if _, err := c.Append(t.Context(), "main", event("new")); err != nil {
			t.Fatal(err)
		}
		now, err := c.Checkpoint(t.Context(), "main")
		if err != nil || now.Size <= last.Size {
			t.Fatalf("checkpoint %+v, %v", now, err)
		}
		if _, err := c.ConsistencyProof(t.Context(), "main", last.Size, now.Size); err != nil {
			t.Error(err)
		}
		n.createLog("another" + string(rune('a'+now.Size%26)))
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		n.close()
	}
	policy, err := receipt.PolicyFor(info.VKey)
	if err != nil {
		t.Fatal(err)
	}
	if got := receipt.Verify(old, policy, nil, receipt.Require{}); got.Outcome != receipt.Verified {
		t.Errorf("an old receipt: %+v", got)
	}
	// And its own backup is one that extends the old one.
	n := openLedger(t, r.dir)
	n.backup(dir)
	mustVerify(t, dir)
}

func TestWitnesses(t *testing.T) {
	base := t.TempDir()
	l := openLedger(t, filepath.Join(base, "ledger"))
	dir := filepath.Join(base, "backup")
	l.record("main", 5)
	early := l.checkpoint("main")
	l.backup(dir)
	equal, system := l.checkpoint("main"), l.checkpoint("system")
	l.record("main", 2)
	later := l.checkpoint("main")
	l.close()
	file := func(name string, cp client.Checkpoint) string {
		path := filepath.Join(base, name)
		write(t, path, cp.Note)
		return path
	}
	witness := func(path string) Witness {
		t.Helper()
		w, err := CheckpointWitness(dir, path)
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	sys := witness(file("system", system))
	try := func(o RestoreOptions) error {
		t.Helper()
		o.From, o.Dir = dir, filepath.Join(t.TempDir(), "new")
		_, err := tryRestore(t, o)
		if _, e := os.Stat(o.Dir); (e == nil) != (err == nil) {
			t.Errorf("restore says %v, the directory says %v", err, e)
		}
		if _, e := os.Stat(o.Dir + newSuffix); e == nil {
			t.Error("it left something behind")
		}
		return err
	}
	if err := try(RestoreOptions{}); !errors.Is(err, ErrNoWitness) || !strings.Contains(err.Error(), "main") {
		t.Errorf("without a witness: %v", err)
	}
	if err := try(RestoreOptions{Witnesses: []Witness{sys}}); !errors.Is(err, ErrNoWitness) || strings.Contains(err.Error(), "system") {
		t.Errorf("without a witness of main: %v", err)
	}
	for _, cp := range []client.Checkpoint{early, equal} {
		if err := try(RestoreOptions{Witnesses: []Witness{sys, witness(file("main", cp))}}); err != nil {
			t.Errorf("witness of %d: %v", cp.Size, err)
		}
	}
	silent := witness(file("main", equal))
	silent.Counts = false
	if err := try(RestoreOptions{Witnesses: []Witness{sys, silent}}); !errors.Is(err, ErrNoWitness) {
		t.Errorf("a witness that does not count: %v", err)
	}
	// Nothing outweighs a witness that saw more, or something else.
	more := witness(file("later", later))
	for _, o := range []RestoreOptions{{Witnesses: []Witness{more}, NoWitness: true}, {Witnesses: []Witness{sys, more, witness(file("main", equal))}}} {
		if err := try(o); !errors.Is(err, ErrShorter) {
			t.Errorf("witness of more: %v", err)
		}
	}
	more.Counts = false
	if err := try(RestoreOptions{Witnesses: []Witness{more}, NoWitness: true}); !errors.Is(err, ErrShorter) {
		t.Errorf("a remembered checkpoint over more: %v", err)
	}
	other := witness(file("main", early))
	other.Root[5] ^= 1
	if err := try(RestoreOptions{Witnesses: []Witness{other}, NoWitness: true}); !errors.Is(err, ErrShorter) || !strings.Contains(err.Error(), "another history") {
		t.Errorf("another root: %v", err)
	}
	// The signer's records: they saw what came after the backup.
	all, err := SignerWitnesses(dir, filepath.Join(base, "ledger", "signer"))
	if err != nil || len(all) != 2 || all[1].Size != later.Size {
		t.Fatalf("signer: %+v, %v", all, err)
	}
	if err := try(RestoreOptions{Witnesses: all}); !errors.Is(err, ErrShorter) {
		t.Errorf("the signer saw more: %v", err)
	}
	if _, err := SignerWitnesses(dir, base); err == nil {
		t.Error("a directory without records is a witness")
	}
	// What is no witness.
	bad := []byte(strings.Replace(string(later.Note), "\n8\n", "\n7\n", 1))
	write(t, filepath.Join(base, "bad"), bad)
	if _, err := CheckpointWitness(dir, filepath.Join(base, "bad")); err == nil {
		t.Error("a checkpoint with a wrong signature is a witness")
	}
	write(t, filepath.Join(base, "bad"), []byte("elsewhere\n1\nx\n\n"))
	if _, err := CheckpointWitness(dir, filepath.Join(base, "bad")); err == nil || !strings.Contains(err.Error(), "elsewhere") {
		t.Errorf("a checkpoint of another ledger: %v", err)
	}
}

// A clean stop, then a backup of nothing new: the signer's records allow the restore.
func TestSignerAllows(t *testing.T) {
	l := openLedger(t, filepath.Join(t.TempDir(), "ledger"))
	dir := filepath.Join(t.TempDir(), "backup")
	l.record("main", 5)
	l.backup(dir)
	l.close()
	all, err := SignerWitnesses(dir, filepath.Join(l.dir, "signer"))
	if err != nil {
		t.Fatal(err)
	}
	r := mustRestore(t, RestoreOptions{From: dir, Secret: l.secret(), Witnesses: all})
	if len(r.Logs[1].Witnesses) != 1 {
		t.Errorf("whose word was it? %+v", r.Logs)
	}
}

func TestRestoreRefuses(t *testing.T) {
	l := openLedger(t, filepath.Join(t.TempDir(), "ledger"))
	dir := filepath.Join(t.TempDir(), "backup")
	l.record("main", 5)
	l.backup(dir)
	_, err := tryRestore(t, RestoreOptions{From: dir, Dir: filepath.Join(t.TempDir(), "new"), NoWitness: true, Secret: &[signer.SecretBytes]byte{1}})
	if !errors.Is(err, ErrKey) {
		t.Errorf("another secret: %v", err)
	}
	if _, err := tryRestore(t, RestoreOptions{From: dir, Dir: l.dir, NoWitness: true}); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("over a ledger: %v", err)
	}
	empty := t.TempDir()
	if _, err := tryRestore(t, RestoreOptions{From: dir, Dir: empty, NoWitness: true}); err != nil {
		t.Errorf("into an empty directory: %v", err)
	}
	if _, err := os.Stat(filepath.Join(empty, "secret")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a secret came from nowhere: %v", err)
	}
}

// A new origin: the old logs are there, frozen, under the names of their past, and the new ones name them.
func TestNewOrigin(t *testing.T) {
	l := openLedger(t, filepath.Join(t.TempDir(), "ledger"))
	dir := filepath.Join(t.TempDir(), "backup")
	l.record("main", 20)
	l.createLog("other")
	l.record("other", 2)
	l.backup(dir)
	old := l.checkpoint("main")
	l.record("main", 3) // seen by others: the origin is lost
	secret := l.secret()
	l.close()

	r := mustRestore(t, RestoreOptions{From: dir, Secret: secret, NewOrigin: true, OriginHost: "new.example"})
	mark := lineage.FrozenMark + l.clusterID(t)[:8]
	var names []string
	for _, g := range r.Logs {
		names = append(names, g.Name)
	}
	want := "system main other system" + mark + " main" + mark + " other" + mark
	if got := strings.Join(names, " "); got != want {
		t.Fatalf("logs %q, want %q", got, want)
	}
	if r.Logs[1].Predecessor != old.Origin || !strings.HasPrefix(r.Logs[1].Origin, "new.example/"+r.ClusterID.String()) || !r.Logs[4].Frozen || r.Logs[4].Root != old.Root.String() {
		t.Errorf("restored %+v", r.Logs)
	}
	n := openLedger(t, r.dir)
	if err := n.n.Ledger().Check(t.Context()); err != nil {
		t.Error(err)
	}
	n.record("main", 4)
	c := n.client()
	genesis, err := c.Entry(t.Context(), "main", client.AtIndex(0))
	if err != nil {
		t.Fatal(err)
	}
	p := genesis.Leaf.Control.Predecessor
	if p == nil || p.Origin != old.Origin || p.Size != old.Size || [32]byte(p.Root) != [32]byte(old.Root) {
		t.Errorf("the genesis entry names %+v", p)
	}
	frozen, err := n.n.Ledger().LogByName("main" + mark)
	if err != nil || !n.n.Ledger().Frozen(frozen) || frozen.Origin != old.Origin {
		t.Errorf("frozen log %+v, %v", frozen, err)
	}
	main, err := n.n.Ledger().LogByName(ledger.MainName)
	if err != nil || n.n.Ledger().Frozen(main) {
		t.Errorf("main is frozen: %v", err)
	}
	// Receipts of the past still come, under the old key, and nothing can be added to it.
	remembering := client.New(n.conn, client.Options{StateDir: t.TempDir(), Target: "ledger"})
	for _, name := range []string{"main", "main" + mark, "main"} {
		if _, _, err := remembering.Receipt(t.Context(), name, client.AtIndex(1)); err != nil {
			t.Errorf("receipt of %s: %v", name, err)
		}
	}
	if _, err := remembering.Append(t.Context(), "main"+mark, event("late")); status.Code(err) != codes.InvalidArgument {
		t.Errorf("an event for a frozen log: %v", err)
	}
	if err := errors.Join(c.Close(), remembering.Close()); err != nil {
		t.Error(err)
	}
	// Such a ledger can be backed up, restored and succeeded like any other.
	second := filepath.Join(t.TempDir(), "second")
	n.backup(second)
	mustVerify(t, second)
	n.close()
	again := mustRestore(t, RestoreOptions{From: second, Secret: secret, NoWitness: true})
	if len(again.Logs) != 6 || !again.Logs[4].Frozen || again.Logs[1].Frozen {
		t.Errorf("restored %+v", again.Logs)
	}
	third := mustRestore(t, RestoreOptions{From: second, Secret: secret, NewOrigin: true})
	if len(third.Logs) != 3+6 {
		t.Errorf("succeeded %+v", third.Logs)
	}
}

func (l *testLedger) clusterID(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(l.dir, "FORMAT"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), `"clusterId":"`)
	id, _, _ := strings.Cut(rest, `"`)
	return id
}
