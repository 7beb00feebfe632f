package sequencer

import (
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/ledger"
)

// controls returns the documents of the control entries of a kind in the system log, in order.
func (r *rig) controls(kind lineage.ControlKind) (documents []string) {
	r.t.Helper()
	t, err := r.l.Tree(ledger.SystemLog)
	if err != nil {
		r.t.Fatal(err)
	}
	err = r.l.Entries(ledger.SystemLog, 0, t.Head().Size, true, func(e *ledger.Entry) error {
		leaf, err := lineage.ParseLeaf(e.Leaf)
		if err != nil || leaf.Kind != lineage.KindControl || lineage.ControlKind(leaf.Action) != kind {
			return err
		}
		if len(e.Body) != 1 || len(leaf.Bodies) != 1 || e.Body[0].Kind != lineage.PartDocuments ||
			lineage.Commit(lineage.PartDocuments, &e.Body[0].Key, e.Body[0].Content) != leaf.Bodies[0].MAC {
			return fmt.Errorf("entry %d: the body does not open the leaf's commitment", e.Index)
		}
		docs, err := lineage.ParseDocuments(e.Body[0].Content)
		if err != nil || len(docs) != 1 || docs[0].MediaType != fmt.Sprintf("application/vnd.provledger.%s.v1+json", kind) {
			return fmt.Errorf("entry %d: documents %v, %v", e.Index, docs, err)
		}
		documents = append(documents, string(docs[0].Content))
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return documents
}

func TestRecordControl(t *testing.T) {
	r := newRig(t)
	record := func(kind lineage.ControlKind, document string) error {
		return r.RecordControl(t.Context(), kind, testPrincipal, lineage.AuthnOSUser, []byte(document))
	}
	if err := record(lineage.ControlMember, `{"a":1}`); !errors.Is(err, ErrNotApplied) {
		t.Errorf("before version 2: %v", err)
	}
	commands := len(r.raft.proposed())
	if err := r.RaiseVersion(t.Context()); err != nil {
		t.Fatal(err)
	}
	if v := r.l.CommandVersion(); v != 2 {
		t.Fatalf("version %d is in use", v)
	}
	if c := r.raft.proposed()[commands:]; len(c) != 1 || c[0].Version != 2 {
		t.Errorf("raised by %d commands", len(c))
	}
	if err := r.RaiseVersion(t.Context()); !errors.Is(err, ledger.ErrInvalid) {
		t.Errorf("beyond what this program knows: %v", err)
	}
	// Under load, with refusals.
	r.raft.mu.Lock()
	r.raft.fate = func(n int) fate {
		if n%3 == 0 {
			return refuseBefore
		}
		return accept
	}
	r.raft.delay = overtake
	r.raft.mu.Unlock()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if err := record(lineage.ControlMember, fmt.Sprintf(`{"n":%d}`, i)); err != nil {
				t.Error(err)
			}
		})
	}
	r.account(r.load(4, 10))
	wg.Wait()
	seen := map[int]bool{}
	for _, d := range r.controls(lineage.ControlMember) {
		var x struct{ N int }
		if err := json.Unmarshal([]byte(d), &x); err != nil || seen[x.N] {
			t.Errorf("%s: %v, seen before: %v", d, err, seen[x.N])
		}
		seen[x.N] = true
	}
	if len(seen) != 8 {
		t.Errorf("%d of 8 records are there", len(seen))
	}
	if got := r.controls(lineage.ControlVersion); len(got) != 1 || got[0] != `{"commandVersion":2}` {
		t.Errorf("version entries %q", got)
	}
	for name, err := range map[string]error{
		"a kind of its own":  record(lineage.ControlGenesis, `{}`),
		"no JSON":            record(lineage.ControlMember, `{`),
		"too long":           record(lineage.ControlRecovery, `"`+string(make([]byte, maxControlDocument))+`"`),
		"without principal ": r.RecordControl(t.Context(), lineage.ControlMember, "", 0, []byte(`{}`)),
	} {
		if !errors.Is(err, ledger.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, c := range r.raft.proposed()[commands+1:] {
		if c.Version != 2 {
			t.Fatalf("a command of version %d after the raise", c.Version)
		}
	}
}

// Two who raise the version at once raise it once.
func TestRaiseVersionOnce(t *testing.T) {
	r := newRig(t)
	release := r.raft.stop()
	errs := make(chan error, 3)
	for range 3 {
		go func() { errs <- r.RaiseVersion(t.Context()) }()
	}
	n := len(r.raft.proposed())
	r.wait("a command", func() bool { return len(r.raft.proposed()) > n })
	release()
	for range 3 {
		if err := <-errs; err != nil && !errors.Is(err, ledger.ErrInvalid) { // invalid: it asked after the raise
			t.Error(err)
		}
	}
	if got := r.controls(lineage.ControlVersion); len(got) != 1 {
		t.Errorf("version entries %q", got)
	}
}

// More logs than are kept in memory: the least recently used leave, nothing is forgotten, and what is in flight stays.
func TestIdleLogsLeaveMemory(t *testing.T) {
	const logs, most = 24, 8
	r := newRig(t)
	r.specs.most = most // nothing runs yet that reads it
	var sent []Request
	for i := range logs {
		g, err := r.CreateLog(t.Context(), fmt.Sprint("log-", i), testPrincipal, lineage.AuthnOSUser)
		if err != nil {
			t.Fatal(err)
		}
		q := request(event())
		q.Log = g.Number
		sent = append(sent, q)
	}
	r.raft.mu.Lock()
	r.raft.delay = overtake
	r.raft.mu.Unlock()
	for round := range 3 {
		var wg sync.WaitGroup
		for _, q := range sent {
			wg.Go(func() {
				if out, err := r.Append(t.Context(), q); err != nil || r.verify(q, out) != nil || out.Recorded[0].Index != 1 || out.Recorded[0].Duplicate != (round > 0) {
					t.Errorf("round %d, log %d: %+v, %v", round, q.Log, out, err)
				}
			})
		}
		wg.Wait()
	}
	for _, q := range sent { // one by one, so that there is room to leave
		fresh := request(event())
		fresh.Log = q.Log
		if out, err := r.Append(t.Context(), fresh); err != nil || out.Recorded[0].Index != 2 {
			t.Fatalf("log %d: %+v, %v", q.Log, out, err)
		}
	}
	r.Close()
	if n := r.specs.len(); n > most || n == 0 {
		t.Errorf("%d logs are in memory, %d may be", n, most)
	}
	r.Sequencer = start(r.o, r.remember) // for the rig to close
}

func TestSpecsKeepWhatIsInFlight(t *testing.T) {
	s := newSpecs(4, 1000)
	for i := range uint32(10) {
		x := &spec{log: ledger.Log{Number: i}, dedup: &dedup{known: map[eventKey]uint64{}}}
		if i < 2 {
			x.flying = 1
		}
		s.put(x)
	}
	s.get(5)
	s.trim()
	for i := range uint32(10) {
		// The two in flight are the oldest; of the others the newest stay, 5 among them for it was used.
		if want := i < 2 || i == 5; (s.logs[i] != nil) != want {
			t.Errorf("log %d: in memory %v, want %v", i, s.logs[i] != nil, want)
		}
	}
	s.logs[5].dedup.known = make(map[eventKey]uint64, 1001)
	for i := range 1001 {
		s.logs[5].dedup.known[eventKey{principal: uint32(i)}] = 0
	}
	for range countEvery {
		s.get(0)
	}
	if s.trim(); s.logs[5] != nil {
		t.Error("a log with more ids than all together may keep stays")
	}
}
