package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/provledger/provledger/client/eventpb"
	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/client/receipt"
	"github.com/provledger/provledger/internal/merkle"
	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

const (
	// pageSize is how many entries are asked for at once; the server ends a page at 3 MiB anyway.
	pageSize = 1000

	// parallelProofs is how many proofs of found entries are fetched at a time.
	parallelProofs = 8
)

// Entry is a recorded event as a log has it. The body, if there, opens the leaf's commitments.
type Entry struct {
	Index     uint64
	Leaf      *lineage.Leaf
	LeafBytes []byte
	BodyState receipt.BodyState
	Body      []lineage.BodyPart
}

// Identifiers returns the full names behind the leaf; zero if the body is not there or names nothing.
func (e *Entry) Identifiers() (lineage.Identifiers, error) {
	for i := range e.Body {
		if e.Body[i].Kind == lineage.PartIdentifiers {
			return lineage.ParseIdentifiers(e.Body[i].Content)
		}
	}
	return lineage.Identifiers{}, nil
}

// Documents returns the producer's documents; none if the body is not there.
func (e *Entry) Documents() ([]lineage.Document, error) {
	for i := range e.Body {
		if e.Body[i].Kind == lineage.PartDocuments {
			return lineage.ParseDocuments(e.Body[i].Content)
		}
	}
	return nil, nil
}

// Selector names one entry: by index, else by leaf hash, else by event id. Of several entries the first counts.
type Selector struct {
	Index    *uint64
	LeafHash []byte // 32 bytes
	EventID  lineage.ID
}

// AtIndex selects the entry with the given index.
func AtIndex(index uint64) Selector { return Selector{Index: &index} }

func (s Selector) proto() *ledgerv1.EntrySelector {
	switch {
	case s.Index != nil:
		return &ledgerv1.EntrySelector{By: &ledgerv1.EntrySelector_Index{Index: *s.Index}}
	case s.LeafHash != nil:
		return &ledgerv1.EntrySelector{By: &ledgerv1.EntrySelector_LeafHash{LeafHash: s.LeafHash}}
	}
	return &ledgerv1.EntrySelector{By: &ledgerv1.EntrySelector_EventId{EventId: s.EventID.String()}}
}

// check compares what was asked for with what came. leaf may be nil where the answer has only its hash.
func (s Selector) check(index uint64, hash merkle.Hash, leaf *lineage.Leaf) error {
	switch {
	case s.Index != nil && *s.Index != index:
		return fmt.Errorf("asked for entry %d, got %d", *s.Index, index)
	case s.Index == nil && s.LeafHash != nil && !bytes.Equal(s.LeafHash, hash[:]):
		return fmt.Errorf("asked for leaf hash %x, got %s", s.LeafHash, hash)
	case s.Index == nil && s.LeafHash == nil && leaf != nil && leaf.EventID != s.EventID:
		return fmt.Errorf("asked for event %s, got %s", s.EventID, leaf.EventID)
	}
	return nil
}

// Receipt returns the verified receipt of an entry at the present tree size, body opened if it is there, and the entry's index.
// [ErrNotFound] is the server's word.
func (c *Client) Receipt(ctx context.Context, log string, s Selector) (*receipt.Receipt, uint64, error) {
	r, _, err := c.receipt(ctx, log, s)
	if err != nil {
		return nil, 0, err
	}
	return r, r.Proof.Index, nil
}

func (c *Client) receipt(ctx context.Context, log string, s Selector) (*receipt.Receipt, *lineage.Leaf, error) {
	st, err := c.log(ctx, log)
	if err != nil {
		return nil, nil, err
	}
	before := st.seen()
	resp, err := readLog(ctx, c, st, "get receipt", c.rpc.GetReceipt, &ledgerv1.GetReceiptRequest{Log: st.name, Entry: s.proto(), Consistency: freshness(ctx, st.largest().size)})
	if err != nil {
		return nil, nil, notFound(err)
	}
	r, p, from, err := c.verifyReceipt(st, resp.GetReceipt())
	if err != nil {
		return nil, nil, err
	}
	leaf, err := lineage.ParseLeaf(r.Leaf)
	if err == nil {
		err = s.check(r.Proof.Index, merkle.LeafHash(r.Leaf), leaf)
	}
	if err == nil && (resp.GetIndex() != r.Proof.Index || resp.GetTreeSize() != p.size) {
		err = fmt.Errorf("entry %d of %d, the receipt proves %d of %d", resp.GetIndex(), resp.GetTreeSize(), r.Proof.Index, p.size)
	}
	if err != nil {
		return nil, nil, untrusted(st.name, "receipt: %w", err)
	}
	return r, leaf, c.settle(ctx, st, before, p, from)
}

func notFound(err error) error {
	if isCode(err, codes.NotFound) {
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	return err
}

// Entry returns one entry, verified like its receipt.
func (c *Client) Entry(ctx context.Context, log string, s Selector) (*Entry, error) {
	r, leaf, err := c.receipt(ctx, log, s)
	if err != nil {
		return nil, err
	}
	return &Entry{Index: r.Proof.Index, Leaf: leaf, LeafBytes: r.Leaf, BodyState: r.BodyState, Body: r.Body}, nil
}

// Entries yields the entries [first, end) in index order, each page proven to be that part of the log. An end of 0 means the tree size
// when the iteration begins. The iteration ends after an error.
func (c *Client) Entries(ctx context.Context, log string, first, end uint64, body bool) iter.Seq2[*Entry, error] {
	return func(yield func(*Entry, error) bool) {
		st, err := c.log(ctx, log)
		if err == nil && end == 0 {
			var p point
			before := st.seen()
			if p, err = c.latest(ctx, st); err == nil {
				end = p.size
				err = c.settle(ctx, st, before, p, prefix{0, merkle.EmptyRoot()})
			}
		}
		for at := first; err == nil && at < end; {
			var page []*Entry
			if page, err = c.page(ctx, st, at, end, body); err != nil {
				break
			}
			for _, e := range page {
				if !yield(e, nil) {
					return
				}
			}
			at += uint64(len(page))
		}
		if err != nil {
			yield(nil, err)
		}
	}
}

// page returns the verified entries from index at on, at least one.
func (c *Client) page(ctx context.Context, st *logState, at, end uint64, body bool) ([]*Entry, error) {
	resp, err := readLog(ctx, c, st, "list entries", c.rpc.ListEntries, &ledgerv1.ListEntriesRequest{
		Log: st.name, FirstIndex: at, PageSize: int32(min(pageSize, end-at)), SkipBody: !body,
		Consistency: freshness(ctx, st.largest().size),
	})
	if err != nil {
		return nil, notFound(err)
	}
	got := resp.GetEntries()
	if len(got) == 0 {
		return nil, fmt.Errorf("%w: the log ends before entry %d", ErrNotFound, at)
	}
	if uint64(len(got)) > end-at {
		return nil, untrusted(st.name, "list entries: %d entries, asked for %d", len(got), end-at)
	}
	entries, _, err := c.verifyRun(ctx, st, at, got, !body)
	return entries, err
}

// verifyRun proves that entries are the leaves from index first on: the tree that ends with the last of them is signed, and consists of
// the leaves before first, which the proof of first shows, and these.
func (c *Client) verifyRun(ctx context.Context, st *logState, first uint64, list []*ledgerv1.Entry, skipBody bool) ([]*Entry, point, error) {
	entries := make([]*Entry, len(list))
	hashes := make([]merkle.Hash, len(list))
	for i, m := range list {
		e, err := toEntry(m, skipBody)
		if err == nil && e.Index != first+uint64(i) {
			err = fmt.Errorf("entry %d where %d should be", e.Index, first+uint64(i))
		}
		if err != nil {
			return nil, point{}, untrusted(st.name, "entries: %w", err)
		}
		entries[i], hashes[i] = e, merkle.LeafHash(e.LeafBytes)
	}
	end := first + uint64(len(list))
	proof, p, err := c.inclusion(ctx, st, AtIndex(first), end)
	if err != nil {
		return nil, point{}, err
	}
	left := leftSiblings(first, end, proof.Hashes)
	tree, err := merkle.NewRangeTree(first, hashes, end, merkle.RangeProof{Left: left})
	if err == nil && tree.Root() != p.root {
		err = fmt.Errorf("%w: they lead to the root %s, the checkpoint has %s", merkle.ErrProof, tree.Root(), p.root)
	}
	if err != nil {
		return nil, point{}, untrusted(st.name, "entries [%d, %d): %w", first, end, err)
	}
	return entries, p, c.settle(ctx, st, point{}, p, prefixOf(first, left))
}

// toEntry decodes an entry and checks its body against its leaf.
func toEntry(m *ledgerv1.Entry, skipBody bool) (*Entry, error) {
	e := &Entry{Index: m.GetIndex(), LeafBytes: m.GetLeaf(), BodyState: receipt.Withheld}
	var err error
	if e.Body, err = eventpb.ToParts(m.GetBody()); err != nil {
		return nil, fmt.Errorf("entry %d: %w", e.Index, err)
	}
	switch m.GetBodyState() {
	case ledgerv1.BodyState_BODY_STATE_OPENED:
		e.BodyState = receipt.Opened
	case ledgerv1.BodyState_BODY_STATE_ERASED:
		e.BodyState = receipt.Erased
	case ledgerv1.BodyState_BODY_STATE_WITHHELD:
		if !skipBody {
			return nil, fmt.Errorf("entry %d: its body was withheld", e.Index)
		}
	default:
		return nil, fmt.Errorf("entry %d: unknown body state %d", e.Index, m.GetBodyState())
	}
	if e.Leaf, err = openBody(e.LeafBytes, e.BodyState, e.Body); err != nil {
		return nil, fmt.Errorf("entry %d: %w", e.Index, err)
	}
	return e, nil
}

// Query says what to find; all keys are alternatives.
type Query struct {
	Digests  []lineage.Digest
	Prefixes []string       // "ALGORITHM:HEX", at least 8 hex digits
	Names    []lineage.Name // an empty version matches any version
	RunIDs   []lineage.ID
	EventIDs []lineage.ID
	Members  bool // also entries that reference a directory whose manifest lists one of the digests

	First    uint64 // first index to look at
	SkipBody bool
}

func (q Query) proto(log string) *ledgerv1.FindEntriesRequest {
	m := &ledgerv1.FindEntriesRequest{
		Log: log, Prefix: len(q.Prefixes) > 0, Members: q.Members, FirstIndex: q.First, SkipBody: q.SkipBody, PageSize: pageSize,
		Digests: slices.Clone(q.Prefixes),
	}
	for _, d := range q.Digests {
		m.Digests = append(m.Digests, d.String())
	}
	for _, n := range q.Names {
		m.Names = append(m.Names, &ledgerv1.Name{Namespace: n.Namespace, Name: n.Name, Version: n.Version})
	}
	for _, id := range q.RunIDs {
		m.RunIds = append(m.RunIds, id.String())
	}
	for _, id := range q.EventIDs {
		m.EventIds = append(m.EventIds, id.String())
	}
	return m
}

// Find yields the entries that match, in index order, each proven to be in the log. That none is missing is not proven. The iteration
// ends after an error.
func (c *Client) Find(ctx context.Context, log string, q Query) iter.Seq2[*Entry, error] {
	return func(yield func(*Entry, error) bool) {
		st, err := c.log(ctx, log)
		if err != nil {
			yield(nil, err)
			return
		}
		for f, err := range c.find(ctx, st, q, 0) {
			if err != nil {
				yield(nil, err)
				return
			}
			if !yield(f.entry, nil) {
				return
			}
		}
	}
}

// found is an entry with its proof.
type found struct {
	entry *Entry
	proof *InclusionProof
}

// find yields matches below the tree size (0: that of the first answer), each with its proof in the tree of that size.
func (c *Client) find(ctx context.Context, st *logState, q Query, size uint64) iter.Seq2[found, error] {
	return func(yield func(found, error) bool) {
		req := q.proto(st.name)
		req.Consistency = freshness(ctx, st.largest().size, size)
		for next := q.First; ; {
			resp, err := readLog(ctx, c, st, "find entries", c.rpc.FindEntries, req)
			if err != nil {
				yield(found{}, err)
				return
			}
			if size == 0 {
				size = resp.GetTreeSize()
			}
			var page []found
			for _, m := range resp.GetEntries() {
				e, err := toEntry(m, q.SkipBody)
				switch {
				case err != nil:
				case e.Index < next:
					err = fmt.Errorf("entry %d where %d or more should be: not in index order", e.Index, next)
				case e.Index >= resp.GetTreeSize():
					err = fmt.Errorf("entry %d in a tree of size %d", e.Index, resp.GetTreeSize())
				}
				if err != nil {
					yield(found{}, untrusted(st.name, "find entries: %w", err))
					return
				}
				if next = e.Index + 1; e.Index < size {
					page = append(page, found{entry: e})
				}
			}
			if err := c.proveFound(ctx, st, page, size); err != nil {
				yield(found{}, err)
				return
			}
			for _, f := range page {
				if !yield(f, nil) {
					return
				}
			}
			if req.PageToken = resp.GetNextPageToken(); req.PageToken == "" || next >= size {
				return
			}
		}
	}
}

// proveFound fetches the proof of every entry, several at a time.
func (c *Client) proveFound(ctx context.Context, st *logState, page []found, size uint64) error {
	var wg sync.WaitGroup
	errs := make([]error, min(parallelProofs, len(page)))
	for w := range errs {
		wg.Go(func() {
			for i := w; i < len(page) && errs[w] == nil; i += len(errs) {
				f := &page[i]
				var p point
				if f.proof, p, errs[w] = c.inclusion(ctx, st, AtIndex(f.entry.Index), size); errs[w] != nil {
					return
				}
				if got := merkle.LeafHash(f.entry.LeafBytes); got != f.proof.LeafHash {
					errs[w] = untrusted(st.name, "find entries: entry %d has leaf hash %s, the proof is of %x", f.entry.Index, got, f.proof.LeafHash)
					return
				}
				errs[w] = c.settle(ctx, st, point{}, p, prefixOf(f.entry.Index, leftSiblings(f.entry.Index, size, f.proof.Hashes)))
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// InclusionProof proves that a leaf is in the tree of a signed checkpoint.
type InclusionProof struct {
	Index      uint64
	TreeSize   uint64
	LeafHash   merkle.Hash
	Root       merkle.Hash
	Hashes     []merkle.Hash // leaf side first
	Checkpoint []byte        // signed note over TreeSize
}

// InclusionProof returns a verified proof at any tree size up to the present one, which 0 means.
func (c *Client) InclusionProof(ctx context.Context, log string, s Selector, size uint64) (*InclusionProof, error) {
	st, err := c.log(ctx, log)
	if err != nil {
		return nil, err
	}
	proof, p, err := c.inclusion(ctx, st, s, size)
	if err != nil {
		return nil, err
	}
	return proof, c.settle(ctx, st, point{}, p, prefixOf(proof.Index, leftSiblings(proof.Index, p.size, proof.Hashes)))
}

func (c *Client) inclusion(ctx context.Context, st *logState, s Selector, size uint64) (*InclusionProof, point, error) {
	resp, err := readLog(ctx, c, st, "get inclusion proof", c.rpc.GetInclusionProof,
		&ledgerv1.GetInclusionProofRequest{Log: st.name, Entry: s.proto(), TreeSize: size, Consistency: freshness(ctx, st.largest().size, size)})
	if err != nil {
		return nil, point{}, notFound(err)
	}
	p, err := c.open(st, resp.GetCheckpoint())
	if err != nil {
		return nil, point{}, err
	}
	proof := &InclusionProof{Index: resp.GetIndex(), TreeSize: p.size, Root: p.root, Checkpoint: p.note}
	proof.Hashes, err = toHashes(resp.GetHashes())
	switch {
	case err != nil:
	case len(resp.GetLeafHash()) != merkle.HashSize:
		err = fmt.Errorf("leaf hash of %d bytes", len(resp.GetLeafHash()))
	case resp.GetTreeSize() != p.size || size != 0 && size != p.size:
		err = fmt.Errorf("asked for tree size %d, got %d with a checkpoint over %d", size, resp.GetTreeSize(), p.size)
	case !bytes.Equal(resp.GetRootHash(), p.root[:]):
		err = fmt.Errorf("root %x, the checkpoint has %s", resp.GetRootHash(), p.root)
	default:
		proof.LeafHash = merkle.Hash(resp.GetLeafHash())
		if err = s.check(proof.Index, proof.LeafHash, nil); err == nil {
			err = merkle.VerifyInclusion(proof.LeafHash, proof.Index, p.size, proof.Hashes, p.root)
		}
	}
	if err != nil {
		return nil, point{}, untrusted(st.name, "inclusion proof: %w", err)
	}
	return proof, p, nil
}

// ConsistencyProof proves that the tree of one signed checkpoint extends that of another.
type ConsistencyProof struct {
	First, Second Checkpoint
	Hashes        []merkle.Hash
}

// ConsistencyProof returns a verified proof between two tree sizes, 1 <= first <= second; a second of 0 means the present size.
func (c *Client) ConsistencyProof(ctx context.Context, log string, first, second uint64) (*ConsistencyProof, error) {
	if first == 0 {
		return nil, errors.New("consistency proof: every tree extends the empty one; first must be at least 1")
	}
	st, err := c.log(ctx, log)
	if err != nil {
		return nil, err
	}
	resp, err := readLog(ctx, c, st, "get consistency proof", c.rpc.GetConsistencyProof,
		&ledgerv1.GetConsistencyProofRequest{
			Log: st.name, FirstSize: first, SecondSize: second, Consistency: freshness(ctx, st.largest().size, first, second),
		})
	if err != nil {
		return nil, err
	}
	b, err := c.open(st, resp.GetCheckpoint())
	if err != nil {
		return nil, err
	}
	if resp.GetFirstSize() != first || resp.GetSecondSize() != b.size || second != 0 && second != b.size {
		return nil, untrusted(st.name, "consistency proof: asked for %d to %d, got %d to %d with a checkpoint over %d",
			first, second, resp.GetFirstSize(), resp.GetSecondSize(), b.size)
	}
	// The signed checkpoint over the older tree comes with the proof of its last leaf.
	_, a, err := c.inclusion(ctx, st, AtIndex(first-1), first)
	if err != nil {
		return nil, err
	}
	if err := c.verifyExtends(ctx, st, a, b, resp.GetHashes()); err != nil {
		return nil, err
	}
	hashes, err := toHashes(resp.GetHashes())
	if err != nil {
		return nil, err
	}
	return &ConsistencyProof{First: toCheckpoint(st, a), Second: toCheckpoint(st, b), Hashes: hashes},
		c.settle(ctx, st, point{}, b, prefix{a.size, a.root})
}

// Update is what a watch yields: new entries and the checkpoint whose tree ends with the last of them.
type Update struct {
	Entries    []*Entry
	Checkpoint Checkpoint
}

// Watch yields the entries from index first on, and new ones as they come, each update verified. It goes on after a lost connection and
// ends with the context or an error.
func (c *Client) Watch(ctx context.Context, log string, first uint64, body bool) iter.Seq2[*Update, error] {
	return func(yield func(*Update, error) bool) {
		st, err := c.log(ctx, log)
		for n := 0; err == nil; n++ {
			var next uint64
			if next, err = c.watch(ctx, st, first, body, yield); err == errStopped {
				return
			}
			if next > first {
				first, n = next, 0 // it worked: begin with short pauses again
			}
			if v := judge(err); ctx.Err() == nil && (v.retry || c.pool.size() > 1 && elsewhere(err)) {
				pause := max(v.pause, min(firstPause<<min(n, 10), maxPause))
				c.logger.DebugContext(ctx, "watch goes on", "log", st.name, "first", first, "pause", pause, "err", err)
				select {
				case <-ctx.Done():
				case <-time.After(pause):
					err = nil
				}
			}
		}
		yield(nil, err)
	}
}

var errStopped = errors.New("the caller has seen enough")

// watch runs one stream. It returns the index after the last entry that was yielded, and why it ended.
func (c *Client) watch(ctx context.Context, st *logState, first uint64, body bool, yield func(*Update, error) bool) (uint64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.rpc.Watch(ctx, &ledgerv1.WatchRequest{Log: st.name, FirstIndex: first, SkipBody: !body, Consistency: freshness(ctx, st.largest().size)}, grpc.MaxCallRecvMsgSize(MaxMessageBytes))
	if err != nil {
		return first, fmt.Errorf("watch: %w", err)
	}
	for {
		resp, err := stream.Recv()
		if err != nil {
			if reason, _ := reasonOf(err); reason == reasonBehind {
				err = c.shorter(ctx, st, st.largest(), err)
			}
			return first, fmt.Errorf("watch: %w", err)
		}
		if len(resp.GetEntries()) == 0 {
			return first, untrusted(st.name, "watch: an update without entries")
		}
		entries, p, err := c.verifyRun(ctx, st, first, resp.GetEntries(), !body)
		if err != nil {
			return first, err
		}
		// The server's own checkpoint may be of a larger tree, when it catches up; it is connected like every other.
		q, err := c.openSized(st, resp.GetCheckpoint(), resp.GetTreeSize())
		if err == nil && q.size < p.size {
			err = untrusted(st.name, "watch: the checkpoint has %d entries, the update goes to %d", q.size, p.size)
		}
		if err == nil {
			err = c.settle(ctx, st, point{}, q, prefix{0, merkle.EmptyRoot()})
		}
		if err != nil {
			return first, err
		}
		first = p.size
		if !yield(&Update{entries, toCheckpoint(st, p)}, nil) {
			return first, errStopped
		}
	}
}
