package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/sequencer"
)

// alone applies every command at once: a cluster of one.
type alone struct {
	l     *ledger.Ledger
	index uint64
}

type done struct{ result any }

func (d done) Wait(context.Context) (any, error) { return d.result, nil }

func (a *alone) Propose(command []byte) sequencer.Proposal {
	a.index++
	return done{a.l.Apply([]ledger.LogEntry{{Index: a.index, Term: 1, Data: command}})[0]}
}

func (*alone) Barrier(context.Context) error { return nil }
func (*alone) Term() uint64                  { return 1 }
func (*alone) StepDown() error               { return errors.New("the only voter") }

// What a controller records through the sequencer is what it reads from the ledger, the newest first, whatever lies between.
func TestLedgerHistory(t *testing.T) {
	cluster := lineage.NewID()
	l, err := ledger.Open(ledger.Options{
		FS: vfs.NewMem(), Dir: "state", ClusterID: cluster, Logger: slog.New(slog.DiscardHandler), MemTableBytes: 1 << 20, BlockCacheBytes: 1 << 20,
		Die: func(reason string, err error) { panic(fmt.Sprintf("die: %s: %v", reason, err)) },
	})
	if err != nil {
		t.Fatal(err)
	}
	h := LedgerHistory{func() *ledger.Ledger { return l }}
	if err := h.Records(func(Record) bool { t.Error("a record in an empty ledger"); return true }); err != nil {
		t.Fatal(err)
	}
	seq := sequencer.New(sequencer.Options{
		Ledger: l, Proposer: &alone{l: l}, Now: func() int64 { return 1_700_000_000_000_000 }, Logger: slog.New(slog.DiscardHandler), OriginHost: "example.org",
		Random: func(b []byte) { copy(b, fmt.Sprint(lineage.NewID())) }, Admit: func() error { return nil },
		VKey: func(origin string) (string, error) { return "vkey of " + origin, nil },
	})
	defer func() {
		seq.Close()
		if err := errors.Join(l.Check(context.Background()), l.Close(context.Background())); err != nil {
			t.Error(err)
		}
	}()
	if err := seq.Bootstrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := seq.RaiseVersion(t.Context()); err != nil || h.CommandVersion() != 2 {
		t.Fatal(err)
	}
	var want []string
	record := func(i int) {
		document := fmt.Appendf(nil, `{"action":"added","nodeId":"n%d","voter":true,"configurationIndex":%d,"members":[{"nodeId":"n%[1]d","address":"a","voter":true}],"later":1}`, i, i)
		if err := seq.RecordControl(t.Context(), lineage.ControlMember, h.Principal(), lineage.AuthnLedger, document); err != nil {
			t.Fatal(err)
		}
		want = append(want, fmt.Sprint("n", i))
	}
	record(1)
	for i := range scanEntries + 10 { // more than one block of others
		if _, err := seq.CreateLog(t.Context(), fmt.Sprint("log-", i), h.Principal(), lineage.AuthnLedger); err != nil {
			t.Fatal(err)
		}
	}
	record(2)
	record(3)
	// Documents of a later program are passed over.
	if err := seq.RecordControl(t.Context(), lineage.ControlMember, h.Principal(), lineage.AuthnLedger, []byte(`{"action":7}`)); err != nil {
		t.Fatal(err)
	}
	var got []string
	err = h.Records(func(r Record) bool {
		if len(r.Members) != 1 || r.Members[0].NodeID != r.NodeID || !r.Voter || r.ConfigurationIndex == 0 {
			t.Errorf("%+v", r)
		}
		got = append(got, r.NodeID)
		return true
	})
	slices.Reverse(want)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("read %q, want %q, %v", got, want, err)
	}
	n := 0
	if err := h.Records(func(Record) bool { n++; return false }); err != nil || n != 1 {
		t.Errorf("read on after it was told to stop: %d, %v", n, err)
	}
}
