package ledger

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/merkle"
)

// Query says what to look for. All its keys are alternatives.
type Query struct {
	Digests        []lineage.Digest
	DigestPrefixes []string       // "sha256:9f86d081"
	Names          []lineage.Name // an empty version matches any, as long as the body is there
	RunIDs         []lineage.ID
	EventIDs       []lineage.ID
	// Members also matches entries that reference a directory whose manifest, in the body, lists one of Digests.
	Members bool
}

// scanStride is how many entries are looked at between two looks at the context.
const scanStride = 1024

// Find calls fn for the entries in [first, end) that match q, in index order, by reading every leaf. It is what a derived index will do
// without reading: the answer is the same.
func (l *Ledger) Find(ctx context.Context, log uint32, q Query, first, end uint64, fn func(*Entry) error) error {
	m, err := l.matcher(log, q)
	if err != nil {
		return err
	}
	n := 0
	return l.Entries(log, first, end, true, func(e *Entry) error {
		if n++; n%scanStride == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		ok, err := m.match(e)
		if err != nil || !ok {
			return err
		}
		return fn(e)
	})
}

// ByLeafHash returns the first index with a leaf hash, by reading the tiles of level 0. The error wraps ErrNotFound.
func (l *Ledger) ByLeafHash(ctx context.Context, log uint32, h merkle.Hash) (uint64, error) {
	t, err := l.Tree(log)
	if err != nil {
		return 0, err
	}
	for first := uint64(0); first < t.head.Size; first += merkle.TileWidth {
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		width := int(min(merkle.TileWidth, t.head.Size-first))
		tile, err := t.ReadTile(merkle.TileID{Index: first / merkle.TileWidth}, width)
		if err != nil {
			return 0, err
		}
		for i, got := range tile[:width] {
			if got == h {
				return first + uint64(i), nil
			}
		}
	}
	return 0, fmt.Errorf("leaf hash %s: %w", h, ErrNotFound)
}

type matcher struct {
	q       Query
	digests map[lineage.Digest]bool // with the hashes of the fully named ones
	names   []lineage.Name          // those that match any version
	runs    map[lineage.ID]bool
	events  map[lineage.ID]bool
}

func (l *Ledger) matcher(log uint32, q Query) (*matcher, error) {
	m := &matcher{q: q, digests: map[lineage.Digest]bool{}, runs: map[lineage.ID]bool{}, events: map[lineage.ID]bool{}}
	for _, d := range q.Digests {
		m.digests[d] = true
	}
	for _, id := range q.RunIDs {
		m.runs[id] = true
	}
	for _, id := range q.EventIDs {
		m.events[id] = true
	}
	if len(q.Names) == 0 {
		return m, nil
	}
	key, err := l.ReferenceKey(log)
	if err != nil {
		return nil, err
	}
	for _, n := range q.Names {
		h := lineage.HashName(&key, n)
		m.digests[lineage.Digest{Algorithm: lineage.NameHMAC, Value: string(h[:])}] = true
		if n.Version == "" {
			m.names = append(m.names, n)
		}
	}
	return m, nil
}

func (m *matcher) match(e *Entry) (bool, error) {
	leaf, err := lineage.ParseLeaf(e.Leaf)
	if err != nil {
		return false, fmt.Errorf("%w: entry %d: %w", ErrCorrupt, e.Index, err)
	}
	if m.events[leaf.EventID] || leaf.RunID != (lineage.ID{}) && m.runs[leaf.RunID] {
		return true, nil
	}
	var directories []lineage.Digest
	for i := range leaf.References {
		f := &leaf.References[i]
		if m.identity(f.Identity) {
			return true, nil
		}
		if f.Identity.Algorithm == lineage.DirHash {
			directories = append(directories, f.Identity)
		}
		for _, a := range f.Aliases {
			if m.identity(a) {
				return true, nil
			}
		}
	}
	if len(m.names) > 0 && m.named(e) {
		return true, nil
	}
	return len(directories) > 0 && m.q.Members && m.member(e, directories), nil
}

func (m *matcher) identity(d lineage.Digest) bool {
	if m.digests[d] {
		return true
	}
	for _, p := range m.q.DigestPrefixes {
		if d.Algorithm != lineage.NameHMAC && strings.HasPrefix(d.String(), p) {
			return true
		}
	}
	return false
}

// named reports whether the identifiers part has one of the names, in any version. A body that does not parse has no names to offer:
// it was checked against its leaf when it came in, and readers check it again.
func (m *matcher) named(e *Entry) bool {
	for _, p := range e.Body {
		if p.Kind != lineage.PartIdentifiers {
			continue
		}
		x, err := lineage.ParseIdentifiers(p.Content)
		if err != nil {
			return false
		}
		for i := range x.References {
			for _, n := range m.names {
				if got := x.References[i].Name; got.Name == n.Name && got.Namespace == n.Namespace {
					return true
				}
			}
		}
	}
	return false
}

// member reports whether a manifest of one of the directories, in the body, lists a file that is looked for. What is no manifest lists
// nothing: documents are the producer's own.
func (m *matcher) member(e *Entry, directories []lineage.Digest) bool {
	for _, p := range e.Body {
		if p.Kind != lineage.PartDocuments {
			continue
		}
		docs, err := lineage.ParseDocuments(p.Content)
		if err != nil {
			return false
		}
		for i := range docs {
			if docs[i].MediaType != lineage.ManifestMediaType {
				continue
			}
			list, err := lineage.ParseManifest(docs[i].Content)
			if err != nil || !slices.Contains(directories, list.DirHash) {
				continue
			}
			if slices.ContainsFunc(list.Files, func(f lineage.Member) bool { return m.identity(f.Digest()) }) {
				return true
			}
		}
	}
	return false
}
