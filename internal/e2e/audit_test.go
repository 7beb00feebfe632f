package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"
	"google.golang.org/grpc"

	"github.com/provledger/provledger/client/eventpb"
	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/client/receipt"
	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

// auditTimeout bounds one audit.
const auditTimeout = 5 * time.Minute

// tree is RFC 6962 section 2.1 as a stack of perfect subtrees: not the product's code.
type tree struct {
	size  uint64
	stack [][sha256.Size]byte // roots of the perfect subtrees, largest first
}

func (t *tree) append(leaf []byte) {
	h := sha256.Sum256(append([]byte{0}, leaf...))
	for n := t.size; n&1 == 1; n >>= 1 {
		h = pair(t.stack[len(t.stack)-1], h)
		t.stack = t.stack[:len(t.stack)-1]
	}
	t.stack = append(t.stack, h)
	t.size++
}

func (t *tree) root() [sha256.Size]byte {
	if t.size == 0 {
		return sha256.Sum256(nil)
	}
	h := t.stack[len(t.stack)-1]
	for i := len(t.stack) - 2; i >= 0; i-- {
		h = pair(t.stack[i], h)
	}
	return h
}

func pair(l, r [sha256.Size]byte) [sha256.Size]byte {
	return sha256.Sum256(slices.Concat([]byte{1}, l[:], r[:]))
}

// noteOf is the signed checkpoint at the end of a C2SP tlog-proof.
func noteOf(text string) string {
	_, rest, _ := strings.Cut(text, "\n\n")
	return rest
}

// pathOf is the index and the inclusion path of a C2SP tlog-proof.
func pathOf(text string) (index uint64, path [][]byte, err error) {
	head, _, ok := strings.Cut(text, "\n\n")
	lines := strings.Split(head, "\n")
	if !ok || len(lines) < 2 || lines[0] != "c2sp.org/tlog-proof@v1" {
		return 0, nil, fmt.Errorf("not a tlog-proof: %q", text)
	}
	number, ok := strings.CutPrefix(lines[1], "index ")
	if !ok {
		return 0, nil, fmt.Errorf("no index line: %q", lines[1])
	}
	if index, err = strconv.ParseUint(number, 10, 64); err != nil {
		return 0, nil, err
	}
	for _, l := range lines[2:] {
		h, err := base64.StdEncoding.DecodeString(l)
		if err != nil {
			return 0, nil, err
		}
		path = append(path, h)
	}
	return index, path, nil
}

// checkpointOf verifies a signed checkpoint under the pinned key and takes it apart.
func checkpointOf(signed, vkey string) (size uint64, root [sha256.Size]byte, err error) {
	v, err := note.NewVerifier(vkey)
	if err != nil {
		return 0, root, err
	}
	n, err := note.Open([]byte(signed), note.VerifierList(v))
	if err != nil {
		return 0, root, err
	}
	lines := strings.Split(n.Text, "\n")
	if len(lines) != 4 || lines[0] != v.Name() || lines[3] != "" {
		return 0, root, fmt.Errorf("checkpoint text %q", n.Text)
	}
	if size, err = strconv.ParseUint(lines[1], 10, 64); err != nil {
		return 0, root, err
	}
	b, err := base64.StdEncoding.DecodeString(lines[2])
	if err != nil || len(b) != len(root) {
		return 0, root, fmt.Errorf("root %q: %v", lines[2], err)
	}
	return size, [sha256.Size]byte(b), nil
}

// reporter is what the auditor needs of a testing.T; TestAuditorBites listens in.
type reporter interface {
	Helper()
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// auditor holds a ledger against the history of its producers.
type auditor struct {
	t      reporter
	h      *history
	vkey   string // of the log, pinned when the ledger was made
	policy *receipt.Policy
}

// newAuditor pins the key of the log main.
func newAuditor(t testing.TB, h *history, conn *grpc.ClientConn) *auditor {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), auditTimeout)
	defer cancel()
	resp, err := ledgerv1.NewLedgerServiceClient(conn).GetLog(ctx, &ledgerv1.GetLogRequest{Name: "main"})
	if err != nil {
		t.Fatal(err)
	}
	p, err := receipt.ParsePolicy([]byte("log " + resp.Log.Vkey + "\nquorum none\n"))
	if err != nil {
		t.Fatal(err)
	}
	return &auditor{t: t, h: h, vkey: resp.Log.Vkey, policy: p}
}

// resend sends every append of the history again and wants the first answer: same indexes, same leaves, marked as duplicates (S2).
// An append whose outcome was unknown is settled by this: whatever the answer is becomes its acknowledgement.
func (a *auditor) resend(conn *grpc.ClientConn, ops []*op) {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), auditTimeout)
	defer cancel()
	svc := ledgerv1.NewLedgerServiceClient(conn)
	for _, o := range ops {
		if o.outcome == notApplied {
			continue
		}
		req := &ledgerv1.BatchAppendRequest{}
		for _, e := range o.events {
			req.Events = append(req.Events, eventpb.FromEvent(e))
		}
		resp, err := svc.BatchAppend(ctx, req)
		if err != nil {
			a.t.Fatalf("resend of %d events (first answer: %v): %v", len(o.events), o.err, err)
		}
		a.h.sawCheckpoint(resp.Checkpoint)
		if o.outcome == unknown {
			duplicates := 0
			for _, r := range resp.Results {
				o.indexes, o.leaves = append(o.indexes, r.Index), append(o.leaves, r.Leaf)
				if r.Duplicate {
					duplicates++
				}
			}
			if duplicates != 0 && duplicates != len(o.events) {
				a.t.Errorf("S9: of a batch of %d events %d had been recorded", len(o.events), duplicates)
			}
			// Nobody was told before now; and if it was not a duplicate, it happened now.
			if o.returned = a.h.now(); duplicates == 0 {
				o.invoked = o.returned
			}
			o.outcome, o.note, o.size = acknowledged, resp.Checkpoint, resp.TreeSize
			continue
		}
		for i, r := range resp.Results {
			if !r.Duplicate || r.Index != o.indexes[i] || !bytes.Equal(r.Leaf, o.leaves[i]) {
				a.t.Errorf("S2: event %s was acknowledged at index %d; sent again: index %d, duplicate %v, same leaf %v",
					o.events[i].ID, o.indexes[i], r.Index, r.Duplicate, bytes.Equal(r.Leaf, o.leaves[i]))
			}
		}
	}
}

// audit reads the whole log and checks S1 to S4, S6 and S8 to S10.
func (a *auditor) audit(conn *grpc.ClientConn) {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), auditTimeout)
	defer cancel()
	svc := ledgerv1.NewLedgerServiceClient(conn)
	latest, err := svc.GetCheckpoint(ctx, &ledgerv1.GetCheckpointRequest{})
	if err != nil {
		a.t.Fatalf("%v", err)
	}
	a.h.sawCheckpoint(latest.Checkpoint)
	end, _, err := checkpointOf(string(latest.Checkpoint), a.vkey)
	if err != nil {
		a.t.Fatalf("%v", err)
	}
	leaves := a.read(ctx, svc, end)
	roots := a.checkpoints(leaves)
	a.consistency(ctx, svc, roots)
	a.operations(leaves)
	a.realTime()
	a.receipts()
}

// read streams the log, hashing nothing yet, and checks that indexes are dense.
func (a *auditor) read(ctx context.Context, svc ledgerv1.LedgerServiceClient, end uint64) [][]byte {
	a.t.Helper()
	stream, err := svc.StreamEntries(ctx, &ledgerv1.StreamEntriesRequest{EndIndex: end})
	if err != nil {
		a.t.Fatalf("%v", err)
	}
	var leaves [][]byte
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			a.t.Fatalf("%v", err)
		}
		for _, e := range m.Entries {
			if e.Index != uint64(len(leaves)) {
				a.t.Fatalf("S9: entry %d comes after %d entries", e.Index, len(leaves))
			}
			l, err := lineage.ParseLeaf(e.Leaf)
			if err != nil {
				a.t.Fatalf("entry %d: %v", e.Index, err)
			}
			parts, err := eventpb.ToParts(e.Body)
			if err != nil {
				a.t.Fatalf("entry %d: %v", e.Index, err)
			}
			if err := lineage.OpenBody(l, parts); err != nil {
				a.t.Errorf("S1: the body of entry %d does not open its leaf: %v", e.Index, err)
			}
			leaves = append(leaves, e.Leaf)
		}
	}
	if uint64(len(leaves)) != end {
		a.t.Fatalf("the checkpoint covers %d entries, the stream has %d", end, len(leaves))
	}
	return leaves
}

// checkpoints verifies every signed checkpoint that anybody ever got: one root a size (S3), and the root is that of the entries that
// are there now, which makes every pair of them consistent (S4).
func (a *auditor) checkpoints(leaves [][]byte) map[uint64][sha256.Size]byte {
	a.t.Helper()
	a.h.mu.Lock()
	notes := slices.Collect(maps.Keys(a.h.notes))
	a.h.mu.Unlock()
	roots := make(map[uint64][sha256.Size]byte)
	for _, n := range notes {
		size, root, err := checkpointOf(n, a.vkey)
		if err != nil {
			a.t.Fatalf("a checkpoint does not verify: %v\n%s", err, n)
		}
		if other, ok := roots[size]; ok && other != root {
			a.t.Fatalf("S3: two roots signed for size %d: %x and %x", size, other, root)
		}
		roots[size] = root
	}
	var t tree
	checked := 0
	for size := uint64(0); ; size++ {
		if root, ok := roots[size]; ok {
			if got := t.root(); got != root {
				a.t.Fatalf("S4: a checkpoint over %d entries has root %x, the entries that are there hash to %x", size, root, got)
			}
			checked++
		}
		if size == uint64(len(leaves)) {
			break
		}
		t.append(leaves[size])
	}
	if checked != len(roots) {
		a.t.Fatalf("S4: %d of %d checkpoints cover more than the %d entries that are there", len(roots)-checked, len(roots), len(leaves))
	}
	return roots
}

// consistency asks the server for proofs between signed sizes and verifies them with transparency-dev/merkle.
func (a *auditor) consistency(ctx context.Context, svc ledgerv1.LedgerServiceClient, roots map[uint64][sha256.Size]byte) {
	a.t.Helper()
	const most = 100 // proofs asked for, spread over the sizes
	sizes := slices.Sorted(maps.Keys(roots))
	step := max(1, len(sizes)/most)
	for i := step; i < len(sizes); i += step {
		first, second := sizes[i-step], sizes[i]
		resp, err := svc.GetConsistencyProof(ctx, &ledgerv1.GetConsistencyProofRequest{FirstSize: first, SecondSize: second})
		if err != nil {
			a.t.Fatalf("%v", err)
		}
		r1, r2 := roots[first], roots[second]
		if err := proof.VerifyConsistency(rfc6962.DefaultHasher, first, second, resp.Hashes, r1[:], r2[:]); err != nil {
			a.t.Errorf("S4: from %d to %d: %v", first, second, err)
		}
	}
}

// operations checks that what is there is what was sent: S1, S2, S9, S10.
func (a *auditor) operations(leaves [][]byte) {
	a.t.Helper()
	at := make(map[lineage.ID]uint64, len(leaves))
	for i, leaf := range leaves {
		l, err := lineage.ParseLeaf(leaf)
		if err != nil {
			a.t.Fatalf("%v", err)
		}
		if l.Kind == lineage.KindControl {
			if i != 0 {
				a.t.Errorf("S9: nobody asked for the control entry at %d", i)
			}
			continue
		}
		if other, ok := at[l.EventID]; ok {
			a.t.Errorf("S2: event %s is at %d and at %d", l.EventID, other, i)
		}
		at[l.EventID] = uint64(i)
	}
	sent := make(map[lineage.ID]bool)
	for _, o := range a.h.ops {
		present := 0
		for i, e := range o.events {
			sent[e.ID] = true
			index, ok := at[e.ID]
			if ok {
				present++
			}
			switch {
			case o.outcome == acknowledged && !ok:
				a.t.Errorf("S1: event %s was acknowledged at %d and is gone", e.ID, o.indexes[i])
			case o.outcome == acknowledged && (index != o.indexes[i] || !bytes.Equal(leaves[index], o.leaves[i])):
				a.t.Errorf("S1: event %s was acknowledged at %d; it is at %d, same bytes: %v", e.ID, o.indexes[i], index, bytes.Equal(leaves[index], o.leaves[i]))
			case o.outcome == notApplied && ok:
				a.t.Errorf("S10: event %s was refused (%v) and is at %d", e.ID, o.err, index)
			}
		}
		if present != 0 && present != len(o.events) {
			a.t.Errorf("S9: %d of the %d events of a batch are there", present, len(o.events))
		}
	}
	for id, i := range at {
		if !sent[id] {
			a.t.Errorf("S9: nobody sent the event %s at %d", id, i)
		}
	}
}

// realTime checks S6: what was sent after something else had been acknowledged comes after it.
func (a *auditor) realTime() {
	a.t.Helper()
	byReturn, byInvoke := make([]*op, 0, len(a.h.ops)), make([]*op, 0, len(a.h.ops))
	for _, o := range a.h.ops {
		if o.outcome == acknowledged {
			byReturn, byInvoke = append(byReturn, o), append(byInvoke, o)
		}
	}
	slices.SortFunc(byReturn, func(x, y *op) int { return int(x.returned - y.returned) })
	slices.SortFunc(byInvoke, func(x, y *op) int { return int(x.invoked - y.invoked) })
	next, last, seen := 0, uint64(0), false
	for _, o := range byInvoke {
		for ; next < len(byReturn) && byReturn[next].returned < o.invoked; next++ {
			last, seen = max(last, slices.Max(byReturn[next].indexes)), true
		}
		if first := slices.Min(o.indexes); seen && first <= last {
			a.t.Errorf("S6: an append sent at %v got index %d, when %d had been acknowledged", o.invoked, first, last)
		}
	}
}

// receipts verifies every receipt that was handed out, offline (S8): by the product's verifier, and by transparency-dev/merkle.
func (a *auditor) receipts() {
	a.t.Helper()
	n := 0
	for _, o := range a.h.ops {
		for i, m := range o.receipts {
			n++
			r, err := eventpb.ToReceipt(m)
			if err != nil {
				a.t.Fatalf("%v", err)
			}
			if r, err = receipt.Parse(r.Encode()); err != nil {
				a.t.Fatalf("S8: receipt of %s: %v", o.events[i].ID, err)
			}
			subject := receipt.Subject{Digests: []lineage.Digest{o.events[i].References[1].Digest}}
			if res := receipt.Verify(r, a.policy, []receipt.Subject{subject}, receipt.Require{}); res.Outcome != receipt.Verified {
				a.t.Errorf("S8: receipt of %s: %+v", o.events[i].ID, res)
			}
			size, root, err := checkpointOf(noteOf(m.Proof), a.vkey)
			if err != nil {
				a.t.Fatalf("%v", err)
			}
			index, path, err := pathOf(m.Proof)
			if err != nil {
				a.t.Fatalf("%v", err)
			}
			if index != o.indexes[i] {
				a.t.Errorf("S8: receipt of %s speaks of index %d, the answer of %d", o.events[i].ID, index, o.indexes[i])
			}
			if err := proof.VerifyInclusion(rfc6962.DefaultHasher, index, size, rfc6962.DefaultHasher.HashLeaf(m.Leaf), path, root[:]); err != nil {
				a.t.Errorf("S8: receipt of %s: %v", o.events[i].ID, err)
			}
		}
	}
	if n == 0 {
		a.t.Errorf("there is no receipt to verify: the test tests nothing")
	}
}
