package receipt

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/bits"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/checkpoint"
	"github.com/provledger/provledger/internal/merkle"
)

const (
	testCluster = "01890a5d-ac96-774b-bcce-b302099a8057"
	testOrigin  = "ledger.example.org/" + testCluster + "/lineage/main"
)

var testReferenceKey = lineage.Key{0: 9, 31: 9}

// testLog is a log in memory, deterministic in every byte.
type testLog struct {
	t        testing.TB
	key      *checkpoint.Key
	composer lineage.Composer
	leaves   [][]byte
	bodies   [][]lineage.BodyPart
}

// newTestLog returns a log that holds its genesis.
func newTestLog(t testing.TB, origin string, seed byte) *testLog {
	t.Helper()
	key, err := checkpoint.NewKey(origin, &[32]byte{0: seed})
	if err != nil {
		t.Fatal(err)
	}
	keys := uint64(0)
	l := &testLog{t: t, key: key, composer: lineage.Composer{
		HashName: func(n lineage.Name) lineage.Hash { return lineage.HashName(&testReferenceKey, n) },
		NewKey: func() (k lineage.Key) {
			keys++
			binary.BigEndian.PutUint64(k[:], keys)
			return sha256.Sum256(k[:])
		},
	}}
	leaf, body := l.genesis(func(*lineage.Leaf) {})
	l.addLeaf(leaf, body)
	return l
}

// genesis composes the log's genesis, or one that is changed.
func (l *testLog) genesis(change func(g *lineage.Leaf)) ([]byte, []lineage.BodyPart) {
	cluster, err := lineage.ParseID(testCluster)
	if err != nil {
		l.t.Fatal(err)
	}
	origin := l.key.Name()
	part := lineage.BodyPart{Kind: lineage.PartReferenceKey, Key: lineage.Key{0: 8, 31: 8}, Content: testReferenceKey[:]}
	g := &lineage.Leaf{
		EventID: lineage.ID{15: 1}, Kind: lineage.KindControl, Action: uint8(lineage.ControlGenesis), Source: lineage.Native,
		RecordedAt: 1_780_000_000_000_000, Principal: "local:5f2c9e7a41d8b306", Authn: lineage.AuthnLedger,
		Control: &lineage.Control{
			Origin: origin, LogKind: lineage.LineageLog, ClusterID: cluster, HashAlgorithm: lineage.SHA256, CreatedAt: 1_780_000_000_000_000,
			VKey: l.key.VKey(), SchemaID: lineage.SchemaID, SchemaDigest: lineage.SchemaDigest(), IndexFunction: 1, LogName: origin[strings.LastIndex(origin, "/")+1:],
		},
		Bodies: []lineage.Commitment{{Part: part.Kind, MAC: lineage.Commit(part.Kind, &part.Key, part.Content)}},
	}
	change(g)
	return lineage.AppendLeaf(nil, g), []lineage.BodyPart{part}
}

// add records an event and returns its index.
func (l *testLog) add(e *lineage.Event) uint64 {
	l.t.Helper()
	n := len(l.leaves)
	leaf, body, err := l.composer.Compose(nil, e, lineage.Stamp{
		RecordedAt: 1_780_000_000_000_000 + int64(n), Principal: "local:5f2c9e7a41d8b306", Authn: lineage.AuthnOSUser,
	})
	if err != nil {
		l.t.Fatal(err)
	}
	return l.addLeaf(leaf, body)
}

func (l *testLog) addLeaf(leaf []byte, body []lineage.BodyPart) uint64 {
	l.leaves, l.bodies = append(l.leaves, leaf), append(l.bodies, body)
	return uint64(len(l.leaves) - 1)
}

// root and path are RFC 6962 2.1 and 2.1.1, word by word.
func (l *testLog) root(begin, end int) merkle.Hash {
	if end-begin == 1 {
		return sha256.Sum256(append([]byte{0}, l.leaves[begin]...))
	}
	k := begin + 1<<(bits.Len(uint(end-begin-1))-1)
	left, right := l.root(begin, k), l.root(k, end)
	return sha256.Sum256(append(append([]byte{1}, left[:]...), right[:]...))
}

func (l *testLog) path(m, begin, end int) []merkle.Hash {
	if end-begin == 1 {
		return nil
	}
	k := begin + 1<<(bits.Len(uint(end-begin-1))-1)
	if m < k {
		return append(l.path(m, begin, k), l.root(k, end))
	}
	return append(l.path(m, k, end), l.root(begin, k))
}

func (l *testLog) checkpoint() []byte {
	l.t.Helper()
	c, err := checkpoint.Sign(checkpoint.Checkpoint{Origin: l.key.Name(), Size: uint64(len(l.leaves)), Root: l.root(0, len(l.leaves))}, l.key)
	if err != nil {
		l.t.Fatal(err)
	}
	return c
}

func (l *testLog) receipt(index uint64, state BodyState) *Receipt {
	l.t.Helper()
	r := &Receipt{Leaf: l.leaves[index], BodyState: state, Proof: checkpoint.TlogProof{
		Index: index, Hashes: l.path(int(index), 0, len(l.leaves)), Checkpoint: l.checkpoint(),
	}}
	if state == Opened {
		r.Body = l.bodies[index]
	}
	return r
}

func (l *testLog) policy() *Policy {
	l.t.Helper()
	return mustPolicy(l.t, "log "+l.key.VKey()+"\nquorum none\n")
}

func mustPolicy(t testing.TB, text string) *Policy {
	t.Helper()
	p, err := ParsePolicy([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func sha256Of(s string) lineage.Digest {
	h := sha256.Sum256([]byte(s))
	return lineage.Digest{Algorithm: lineage.SHA256, Value: string(h[:])}
}

// runEvent is a training run: a data set in, a model out.
func runEvent() *lineage.Event {
	return &lineage.Event{
		ID: lineage.ID{0: 1, 15: 2}, Kind: lineage.KindRun, Action: uint8(lineage.RunComplete), OccurredAt: 1_779_999_999_000_000,
		Initiator: "ci:1834", RunID: lineage.ID{0: 2, 15: 3}, Job: lineage.Name{Namespace: "training", Name: "fraud-model"},
		References: []lineage.Reference{
			{Role: lineage.Input, Kind: lineage.Dataset, Purpose: lineage.TrainingData, Known: lineage.Computed, Digest: sha256Of("data"), URI: "file:data.csv", Size: 4},
			{Role: lineage.Output, Kind: lineage.Model, Known: lineage.Claimed, Digest: sha256Of("model"), Name: lineage.Name{Name: "fraud", Version: "3"}},
		},
		Documents: []lineage.Document{{MediaType: "application/json", Name: "parameters", Content: []byte(`{"rate":0.1}`)}},
	}
}

// filled returns a log of size 7 and the index of runEvent in it.
func filled(t testing.TB) (*testLog, uint64) {
	l := newTestLog(t, testOrigin, 1)
	var at uint64
	for i := range 6 {
		e := runEvent()
		if i != 3 {
			e.ID[1] = byte(i + 1)
		}
		if n := l.add(e); i == 3 {
			at = n
		}
	}
	return l, at
}

func subject(s string) Subject { return Subject{Digests: []lineage.Digest{sha256Of(s)}, Name: s} }

func (r *Result) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", r.Outcome)
	for _, c := range r.Checks {
		fmt.Fprintf(&b, "  %s %s: %s\n", c.Name, c.Outcome, c.Detail)
	}
	return b.String()
}

// cosign adds the signature of a witness to a signed note.
func addSignature(t testing.TB, signed []byte, s note.Signer) []byte {
	t.Helper()
	n, err := note.Open(signed, note.VerifierList())
	if u, ok := err.(*note.UnverifiedNoteError); ok {
		n = u.Note
	} else if err != nil {
		t.Fatal(err)
	}
	extra, err := note.Sign(&note.Note{Text: n.Text}, s)
	if err != nil {
		t.Fatal(err)
	}
	return append(append([]byte{}, signed...), extra[len(n.Text)+1:]...)
}
