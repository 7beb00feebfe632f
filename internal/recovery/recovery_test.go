package recovery_test

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/node"
	"github.com/provledger/provledger/internal/raftlog"
	"github.com/provledger/provledger/internal/recovery"
	"github.com/provledger/provledger/internal/sequencer"
)

func config(t testing.TB, dir string) node.Config {
	return node.Config{
		Dir: dir, Logger: slog.New(slog.DiscardHandler), SegmentBytes: 256 << 10, MemTableBytes: 1 << 20, BlockCacheBytes: 1 << 20, MinFreeBytes: 1,
		SlowWarn: -1, Die: func(reason string, err error) { t.Errorf("die: %s: %v", reason, err) },
	}
}

// during runs f on the open node of a directory.
func during(t testing.TB, dir string, f func(*node.Node)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	n, err := node.Open(ctx, config(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	f(n)
	if err := n.Close(ctx); err != nil {
		t.Fatal(err)
	}
}

func record(t testing.TB, n *node.Node, count int) {
	t.Helper()
	for range count {
		e := &lineage.Event{ID: lineage.NewID(), Kind: lineage.KindRun, Action: uint8(lineage.RunStart), RunID: lineage.NewID()}
		_, err := n.Sequencer().Append(t.Context(), sequencer.Request{Log: 1, Events: []*lineage.Event{e}, Principal: n.Ledger().LocalPrincipal(), Authn: lineage.AuthnNone, Size: 100})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func checkpointOf(t testing.TB, n *node.Node) (note []byte, size uint64) {
	t.Helper()
	tree, err := n.Ledger().Tree(1)
	if err != nil {
		t.Fatal(err)
	}
	g, err := n.Ledger().LogByNumber(1)
	if err != nil {
		t.Fatal(err)
	}
	note, err = n.Signer().Checkpoint(g.Origin, tree.Head().Size, tree.Head().Root)
	if err != nil {
		t.Fatal(err)
	}
	return note, tree.Head().Size
}

func copyDir(t testing.TB, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

// survivor is the directory of one node of three whose two peers are gone. Its state store is older than its raft log, as after a crash.
type survivor struct {
	dir       string
	id        node.Identity
	old, kept []byte // checkpoints: of the state store, and of the whole log
	keptSize  uint64
	lost      []byte // of what only the lost nodes had
}

func newSurvivor(t testing.TB) *survivor {
	t.Helper()
	base := t.TempDir()
	s := &survivor{dir: filepath.Join(base, "node")}
	during(t, s.dir, func(n *node.Node) {
		record(t, n, 3)
		s.old, _ = checkpointOf(t, n)
	})
	copyDir(t, filepath.Join(s.dir, "state"), filepath.Join(base, "state"))
	during(t, s.dir, func(n *node.Node) {
		record(t, n, 4)
		s.kept, s.keptSize = checkpointOf(t, n)
	})
	copyDir(t, s.dir, filepath.Join(base, "other")) // one of the lost ones, that went on
	during(t, filepath.Join(base, "other"), func(n *node.Node) {
		record(t, n, 1)
		s.lost, _ = checkpointOf(t, n)
	})
	if err := os.RemoveAll(filepath.Join(s.dir, "state")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(base, "state"), filepath.Join(s.dir, "state")); err != nil {
		t.Fatal(err)
	}
	var release func() error
	var err error
	if s.id, release, err = node.Identify(s.dir); err == nil {
		err = release()
	}
	if err != nil {
		t.Fatal(err)
	}
	// The membership of three is the newest entry of its log.
	log, err := raftlog.Open(raftlog.Options{Dir: filepath.Join(s.dir, "raft"), SegmentBytes: 256 << 10})
	if err != nil {
		t.Fatal(err)
	}
	last, err := log.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	term, err := log.GetUint64([]byte("CurrentTerm"))
	if err != nil {
		t.Fatal(err)
	}
	three := raft.Configuration{Servers: []raft.Server{{ID: raft.ServerID(s.id.NodeID.String()), Address: "a:1"}, {ID: "second", Address: "b:1"}, {ID: "third", Address: "c:1", Suffrage: raft.Nonvoter}}}
	err = log.StoreLogs([]*raft.Log{{Index: last + 1, Term: term, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(three)}})
	if err = errors.Join(err, log.Close()); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *survivor) options() recovery.Options {
	return recovery.Options{
		Dir: s.dir, ClusterID: s.id.ClusterID, NodeID: s.id.NodeID, StateDir: "state", RaftDir: "raft", SignerDir: "signer",
		Checkpoints: map[string][]byte{}, Reason: "two racks burnt", By: "somebody", Now: time.Now, Logger: slog.New(slog.DiscardHandler),
		Die: func(reason string, err error) { panic(reason) },
	}
}

// tree is the content of all files of a directory but those that opening a raft log may write.
func tree(t testing.TB, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Base(filepath.Dir(path)) == "raft" {
			return err
		}
		b, err := os.ReadFile(path)
		all[path] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestRecover(t *testing.T) {
	s := newSurvivor(t)
	o := s.options()
	o.Checkpoints["main.checkpoint"] = s.kept
	before := tree(t, s.dir)
	dry := o
	dry.DryRun = true
	planned, err := recovery.Run(t.Context(), dry)
	if err != nil {
		t.Fatal(err)
	}
	if after := tree(t, s.dir); !reflect.DeepEqual(before, after) {
		t.Error("a dry run changed something")
	}
	got, err := recovery.Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	planned.Record.At = got.Record.At
	if !reflect.DeepEqual(planned, got) {
		t.Errorf("planned %+v, did %+v", planned, got)
	}
	r := got.Record
	want := []recovery.Member{{"second", "b:1", true}, {"third", "c:1", false}}
	if r.Cause != recovery.MajorityLost || !reflect.DeepEqual(r.Lost, want) || r.Index != r.Kept+1 || r.Reason != "two racks burnt" || len(r.Witnesses) != 1 || got.Replayed < 4 {
		t.Errorf("did %+v", got)
	}
	if got.Logs[1].Size != s.keptSize || got.Logs[1].Witness == "" {
		t.Errorf("logs %+v", got.Logs)
	}
	pending, text, err := recovery.Pending(vfs.Default, s.dir)
	if err != nil || !reflect.DeepEqual(*pending, r) || !json.Valid(text) {
		t.Errorf("pending %+v, %v", pending, err)
	}
	if _, err := recovery.Run(t.Context(), o); !errors.Is(err, recovery.ErrAlone) {
		t.Errorf("once more: %v", err)
	}
	// It starts alone, with everything, and goes on.
	during(t, s.dir, func(n *node.Node) {
		if err := n.Ledger().Check(t.Context()); err != nil {
			t.Error(err)
		}
		_, size := checkpointOf(t, n)
		if size != s.keptSize {
			t.Errorf("main has %d entries, kept were %d", size, s.keptSize)
		}
		record(t, n, 2)
		if words := recorded(t, n); len(words) != 1 || words[0] != string(text) {
			t.Errorf("the system log has %q of the recovery, want %s", words, text)
		}
	})
	if r, _, err := recovery.Pending(vfs.Default, s.dir); r != nil || err != nil {
		t.Errorf("still pending: %+v, %v", r, err)
	}
	during(t, s.dir, func(n *node.Node) {
		if words := recorded(t, n); len(words) != 1 {
			t.Errorf("the next start recorded it again: %q", words)
		}
	})
}

// recorded returns the documents of the recovery entries in the system log.
func recorded(t testing.TB, n *node.Node) (all []string) {
	t.Helper()
	head, err := n.Ledger().Tree(0)
	if err != nil {
		t.Fatal(err)
	}
	err = n.Ledger().Entries(0, 0, head.Head().Size, true, func(e *ledger.Entry) error {
		l, err := lineage.ParseLeaf(e.Leaf)
		if err != nil || lineage.ControlKind(l.Action) != lineage.ControlRecovery {
			return err
		}
		for _, p := range e.Body {
			docs, err := lineage.ParseDocuments(p.Content)
			if err != nil {
				return err
			}
			for i := range docs {
				all = append(all, string(docs[i].Content))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// A recovery that was prepared and broke off before it wrote to the raft log leaves no false record.
func TestPreparedOnly(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "node")
	during(t, dir, func(*node.Node) {})
	r := recovery.Record{Cause: recovery.MajorityLost, Index: 1 << 40}
	if err := r.Save(vfs.Default, dir); err != nil {
		t.Fatal(err)
	}
	during(t, dir, func(n *node.Node) {
		if words := recorded(t, n); len(words) != 0 {
			t.Errorf("recorded %q", words)
		}
	})
	if r, _, err := recovery.Pending(vfs.Default, dir); r != nil || err != nil {
		t.Errorf("still pending: %+v, %v", r, err)
	}
}

func TestRefusals(t *testing.T) {
	s := newSurvivor(t)
	refused := func(what string, want error, change func(*recovery.Options)) {
		t.Helper()
		o := s.options()
		change(&o)
		before := tree(t, s.dir)
		_, err := recovery.Run(t.Context(), o)
		if err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%s: %v", what, err)
		}
		if after := tree(t, s.dir); !reflect.DeepEqual(before, after) {
			t.Errorf("%s: it changed something", what)
		}
	}
	refused("no witness", recovery.ErrNoWitness, func(*recovery.Options) {})
	refused("a checkpoint of what is lost", recovery.ErrShorter, func(o *recovery.Options) { o.Checkpoints["x"] = s.lost })
	refused("even so", recovery.ErrShorter, func(o *recovery.Options) { o.Checkpoints["x"], o.Checkpoints["y"], o.NoWitness = s.lost, s.old, true })
	refused("another signature", nil, func(o *recovery.Options) {
		o.Checkpoints["x"] = []byte(strings.Replace(string(s.kept), "\n8\n", "\n7\n", 1))
	})
	refused("another ledger", nil, func(o *recovery.Options) { o.Checkpoints["x"] = []byte("elsewhere\n1\nx\n\n") })
	refused("another node", nil, func(o *recovery.Options) { o.NodeID, o.NoWitness = lineage.NewID(), true })

	// What the node itself signed counts too: with the end of its log gone, it must not go on.
	dir := filepath.Join(s.dir, "raft")
	log, err := raftlog.Open(raftlog.Options{Dir: dir, SegmentBytes: 256 << 10})
	if err != nil {
		t.Fatal(err)
	}
	last, err := log.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	var three raft.Log
	if err := log.GetLog(last, &three); err != nil {
		t.Fatal(err)
	}
	if err := log.DeleteRange(last-3, last); err != nil {
		t.Fatal(err)
	}
	three.Index = last - 3
	if err := errors.Join(log.StoreLogs([]*raft.Log{&three}), log.Close()); err != nil {
		t.Fatal(err)
	}
	refused("shorter than what it signed", recovery.ErrShorter, func(o *recovery.Options) { o.NoWitness = true })
}

// A damaged state store is not taken over: it is to be restored, or its raft log replayed, first.
func TestDamagedStoreIsRefused(t *testing.T) {
	s := newSurvivor(t)
	tables, err := filepath.Glob(filepath.Join(s.dir, "state", "*.sst"))
	if err != nil || len(tables) == 0 {
		t.Fatal(tables, err)
	}
	b, err := os.ReadFile(tables[0])
	if err != nil {
		t.Fatal(err)
	}
	b[100] ^= 4
	if err := os.WriteFile(tables[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	o := s.options()
	o.NoWitness = true
	if _, err := recovery.Run(t.Context(), o); err == nil {
		t.Error("took over with a damaged store")
	}
	if r, _, err := recovery.Pending(vfs.Default, s.dir); r != nil || err != nil {
		t.Errorf("pending %+v, %v", r, err)
	}
}

func FuzzParseRecord(f *testing.F) {
	f.Add([]byte(`{"cause":"majority lost","at":"","node":"","kept":1,"index":2,"term":3}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := recovery.ParseRecord(b)
		if err != nil {
			return
		}
		again, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		s, err := recovery.ParseRecord(again)
		if err != nil {
			t.Fatal(err)
		}
		if twice, err := json.Marshal(s); err != nil || string(twice) != string(again) {
			t.Errorf("%q became %q, then %q, %v", b, again, twice, err)
		}
	})
}
