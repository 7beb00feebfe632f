package client

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/merkle"
)

const (
	// MaxTraceArtifacts is where a trace stops by default: more than anybody reads, and bounded memory.
	MaxTraceArtifacts = 10_000

	// maxTraceEntries bounds the entries that a trace holds, with their bodies: artifacts can have any number of them.
	maxTraceEntries = 50_000

	// keysPerQuery is how many artifacts or runs one look-up asks for.
	keysPerQuery = 256
)

// Ref names an artifact: by digest, or, if there is none, by name.
type Ref struct {
	Digest lineage.Digest
	Name   lineage.Name
}

// String returns ALGORITHM:HEX or NAMESPACE/NAME:VERSION.
func (r Ref) String() string {
	if !r.Digest.IsZero() {
		return r.Digest.String()
	}
	return nameText(r.Name)
}

func nameText(n lineage.Name) string {
	s := n.Name
	if n.Namespace != "" {
		s = n.Namespace + "/" + s
	}
	if n.Version != "" {
		s += ":" + n.Version
	}
	return s
}

// TraceOptions bound a trace.
type TraceOptions struct {
	MaxArtifacts int // 0 means MaxTraceArtifacts
	MaxDepth     int // steps from an artifact to what it was made from; 0 means without bound
}

// Trace returns the upstream lineage of artifacts: the runs that generated them and the statements about them, what those used, what that
// was made from, and so on. Every entry in the answer is proven at one tree size. That nothing is missing is not proven.
//
// A trace crosses between a file and its directory, by the manifests in recorded bodies, where nothing says directly how the one came to
// be: one stage writes data/, the next reads data/train.csv. It also follows aliases, which are claims and marked as such.
func (c *Client) Trace(ctx context.Context, log string, start []Ref, o TraceOptions) (*Graph, error) {
	if o.MaxArtifacts == 0 {
		o.MaxArtifacts = MaxTraceArtifacts
	}
	st, err := c.log(ctx, log)
	if err != nil {
		return nil, err
	}
	p, err := c.latest(ctx, st)
	if err != nil {
		return nil, err
	}
	if err := c.settle(ctx, st, point{}, p, prefix{0, merkle.EmptyRoot()}); err != nil {
		return nil, err
	}
	t := &tracer{
		c: c, st: st, o: o, artifacts: map[Ref]*Artifact{}, runs: map[lineage.ID]*Run{}, statements: map[uint64]bool{}, edges: map[edgeKey]bool{},
		g: &Graph{
			Log: st.name, Origin: st.origin, TreeSize: p.size, Checkpoint: string(p.note), entries: map[uint64]found{},
			Start: []string{}, Artifacts: []*Artifact{}, Runs: []*Run{}, Statements: []*Statement{}, Edges: []Edge{}, Entries: []TraceEntry{}, // never null in JSON
			NotProven: []string{"completeness: that there are no further entries about these artifacts is the server's word"},
		},
	}
	var level []*Artifact
	for _, r := range start {
		if a, isNew := t.artifact(r, 0); isNew {
			t.g.Start = append(t.g.Start, a.ID)
			level = append(level, a)
		}
	}
	for depth := 1; len(level) > 0; depth++ {
		if o.MaxDepth > 0 && depth > o.MaxDepth {
			t.g.Truncated = true
			break
		}
		if level, err = t.expand(ctx, level, depth); err != nil {
			return nil, err
		}
	}
	t.finish()
	return t.g, nil
}

// tracer is a trace at work.
type tracer struct {
	c  *Client
	st *logState
	o  TraceOptions
	g  *Graph

	artifacts  map[Ref]*Artifact
	runs       map[lineage.ID]*Run
	statements map[uint64]bool
	edges      map[edgeKey]bool
	next       []*Artifact // of the level below
}

type edgeKey struct{ from, to, kind string }

// artifact returns the node of an artifact, new or not; nil if the graph is full.
func (t *tracer) artifact(r Ref, depth int) (a *Artifact, isNew bool) {
	if !r.Digest.IsZero() {
		r.Name = lineage.Name{}
	}
	if a := t.artifacts[r]; a != nil {
		return a, false
	}
	if len(t.artifacts) >= t.o.MaxArtifacts {
		t.g.Truncated = true
		return nil, false
	}
	a = &Artifact{ID: artifactID(r), Ref: r, Depth: depth}
	t.artifacts[r] = a
	t.g.Artifacts = append(t.g.Artifacts, a)
	return a, true
}

// reach adds an edge to an artifact, which is expanded at the next level if it is new.
func (t *tracer) reach(from string, r Ref, kind EdgeKind, depth int, e Edge) *Artifact {
	a, isNew := t.artifact(r, depth)
	if a == nil || a.ID == from {
		return a
	}
	if isNew {
		t.next = append(t.next, a)
	}
	e.From, e.To, e.Kind = from, a.ID, kind
	t.edge(e)
	return a
}

func (t *tracer) edge(e Edge) {
	if k := (edgeKey{e.From, e.To, string(e.Kind)}); !t.edges[k] {
		t.edges[k] = true
		t.g.Edges = append(t.g.Edges, e)
	}
}

// find looks keys up in portions and keeps each proven entry once.
func (t *tracer) find(ctx context.Context, q Query) ([]*Entry, error) {
	var got []*Entry
	for len(q.Digests)+len(q.Names)+len(q.RunIDs) > 0 {
		part := Query{Members: q.Members}
		part.Digests, q.Digests = cut(q.Digests, keysPerQuery)
		part.Names, q.Names = cut(q.Names, keysPerQuery-len(part.Digests))
		part.RunIDs, q.RunIDs = cut(q.RunIDs, keysPerQuery-len(part.Digests)-len(part.Names))
		for f, err := range t.c.find(ctx, t.st, part, t.g.TreeSize) {
			if err != nil {
				return nil, err
			}
			if _, ok := t.g.entries[f.entry.Index]; !ok {
				if len(t.g.entries) >= maxTraceEntries {
					t.g.Truncated = true
					return got, nil
				}
				t.g.entries[f.entry.Index] = f
			}
			got = append(got, t.g.entries[f.entry.Index].entry)
		}
	}
	return got, nil
}

func cut[T any](s []T, n int) (head, rest []T) {
	n = min(n, len(s))
	return s[:n], s[n:]
}

// expand finds what one level of artifacts was made from, and returns the next level.
func (t *tracer) expand(ctx context.Context, level []*Artifact, depth int) ([]*Artifact, error) {
	t.next = nil
	q := Query{Members: true}
	for _, a := range level {
		if a.Ref.Digest.IsZero() {
			q.Names = append(q.Names, a.Ref.Name)
		} else {
			q.Digests = append(q.Digests, a.Ref.Digest)
		}
	}
	entries, err := t.find(ctx, q)
	if err != nil {
		return nil, err
	}
	inLevel := make(map[Ref]*Artifact, len(level))
	for _, a := range level {
		inLevel[a.Ref] = a
	}
	made := make(map[*Artifact]bool) // something says how it came to be
	var runs []lineage.ID
	for _, e := range entries {
		m, err := readMentions(e)
		if err != nil {
			return nil, t.malformed(e, err)
		}
		for _, f := range m {
			a := inLevel[f.ref]
			if a == nil {
				t.aliases(f, inLevel, depth, e)
				continue
			}
			a.describe(f)
			if f.role == lineage.Input {
				if a.Depth == 0 && !slices.Contains(a.UsedBy, e.Index) {
					a.UsedBy = append(a.UsedBy, e.Index)
				}
				continue
			}
			if e.Leaf.Kind == lineage.KindRun {
				r, isNew := t.run(e.Leaf.RunID)
				if isNew {
					runs = append(runs, e.Leaf.RunID)
				}
				made[a] = made[a] || f.role == lineage.Output
				t.edge(Edge{From: a.ID, To: r.ID, Kind: edgeOf(f.role), Known: f.known.String(), Entry: e.Index})
				continue
			}
			used := t.statement(e, m, depth)
			made[a] = made[a] || used
			t.edge(Edge{From: a.ID, To: statementID(e.Index), Kind: edgeOf(f.role), Known: f.known.String(), Entry: e.Index})
		}
	}
	if err := t.fillRuns(ctx, runs, depth); err != nil {
		return nil, err
	}
	if err := t.cross(ctx, level, made, entries, depth); err != nil {
		return nil, err
	}
	return t.next, nil
}

func (t *tracer) malformed(e *Entry, err error) error {
	return untrusted(t.st.name, "the body of entry %d: %w", e.Index, err)
}

func edgeOf(r lineage.Role) EdgeKind {
	if r == lineage.Output {
		return GeneratedBy
	}
	return SubjectOf
}

// aliases follows references whose alias is an artifact of the level.
func (t *tracer) aliases(f mention, inLevel map[Ref]*Artifact, depth int, e *Entry) {
	for _, r := range f.aliases {
		if a := inLevel[r]; a != nil {
			if to := t.reach(a.ID, f.ref, AliasOf, depth, Edge{Known: lineage.Claimed.String(), Entry: e.Index}); to != nil {
				to.describe(f)
			}
		}
	}
}

func (t *tracer) run(id lineage.ID) (r *Run, isNew bool) {
	if r := t.runs[id]; r != nil {
		return r, false
	}
	r = &Run{ID: "run:" + id.String(), RunID: id.String()}
	t.runs[id] = r
	t.g.Runs = append(t.g.Runs, r)
	return r, true
}

// statement adds an entry that is no run event, with what it says was used; it reports whether there is any.
func (t *tracer) statement(e *Entry, m []mention, depth int) (used bool) {
	for _, f := range m {
		used = used || f.role == lineage.Input
	}
	if t.statements[e.Index] {
		return used
	}
	t.statements[e.Index] = true
	t.g.Statements = append(t.g.Statements, &Statement{ID: statementID(e.Index), Entry: e.Index})
	t.used(statementID(e.Index), e, m, depth)
	return used
}

func statementID(index uint64) string { return fmt.Sprintf("entry:%d", index) }

// used adds the inputs of an entry.
func (t *tracer) used(from string, e *Entry, m []mention, depth int) {
	for _, f := range m {
		if f.role != lineage.Input {
			continue
		}
		if a := t.reach(from, f.ref, Used, depth, Edge{Purpose: f.purpose.String(), Known: f.known.String(), Entry: e.Index}); a != nil {
			a.describe(f)
		}
	}
}

// fillRuns fetches all events of runs: the start may have the inputs and the end the outputs.
func (t *tracer) fillRuns(ctx context.Context, ids []lineage.ID, depth int) error {
	if len(ids) == 0 {
		return nil
	}
	entries, err := t.find(ctx, Query{RunIDs: ids})
	if err != nil {
		return err
	}
	for _, e := range entries {
		r := t.runs[e.Leaf.RunID]
		if r == nil || e.Leaf.Kind != lineage.KindRun {
			continue // an attestation may carry a run id: it is about the run, not of it
		}
		m, err := readMentions(e)
		if err != nil {
			return t.malformed(e, err)
		}
		if err := r.add(e, m); err != nil {
			return t.malformed(e, err)
		}
		t.used(r.ID, e, m, depth)
	}
	return nil
}

// cross goes from files to the directories that they are members of, and from directories to their members, where nothing was made
// directly.
func (t *tracer) cross(ctx context.Context, level []*Artifact, made map[*Artifact]bool, entries []*Entry, depth int) error {
	files := make(map[lineage.Digest]*Artifact)
	directories := make(map[lineage.Digest]*Artifact)
	for _, a := range level {
		switch {
		case made[a]:
		case a.Ref.Digest.Algorithm == lineage.SHA256:
			files[a.Ref.Digest] = a
		case a.Ref.Digest.Algorithm == lineage.DirHash:
			directories[a.Ref.Digest] = a
		}
	}
	if len(files)+len(directories) == 0 {
		return nil
	}
	members := make(map[lineage.Digest][]*Artifact) // to the directories that want them
	for _, e := range entries {
		docs, err := e.Documents()
		if err != nil {
			return t.malformed(e, err)
		}
		for i := range docs {
			if docs[i].MediaType != lineage.ManifestMediaType {
				continue
			}
			// Parsing recomputes the directory's digest, so membership is proven by the digest itself. What does not parse is some
			// producer's own document.
			m, err := lineage.ParseManifest(docs[i].Content)
			if err != nil {
				continue
			}
			t.crossUp(m, e, files, depth)
			if d := directories[m.DirHash]; d != nil {
				delete(directories, m.DirHash) // one manifest is enough: all with this digest are the same
				for _, f := range m.Files {
					members[f.Digest()] = append(members[f.Digest()], d)
				}
			}
		}
	}
	return t.crossDown(ctx, members, depth)
}

// crossUp goes from files to a directory that lists them, if the entry says that the directory was made or describes it.
func (t *tracer) crossUp(m *lineage.Manifest, e *Entry, files map[lineage.Digest]*Artifact, depth int) {
	if !slices.ContainsFunc(e.Leaf.References, func(f lineage.LeafReference) bool { return f.Identity == m.DirHash && f.Role != lineage.Input }) {
		return
	}
	for _, f := range m.Files {
		if a := files[f.Digest()]; a != nil {
			t.reach(a.ID, Ref{Digest: m.DirHash}, MemberOf, depth, Edge{Path: f.Path, Known: lineage.Computed.String(), Entry: e.Index})
		}
	}
}

// crossDown goes from directories to those of their members that something is recorded about: the others would only crowd the graph.
func (t *tracer) crossDown(ctx context.Context, members map[lineage.Digest][]*Artifact, depth int) error {
	if len(members) == 0 {
		return nil
	}
	q := Query{}
	for d := range members {
		q.Digests = append(q.Digests, d)
	}
	slices.SortFunc(q.Digests, func(a, b lineage.Digest) int { return cmp.Compare(a.Value, b.Value) })
	entries, err := t.find(ctx, q)
	if err != nil {
		return err
	}
	for _, e := range entries {
		for _, f := range e.Leaf.References {
			if f.Role == lineage.Input {
				continue
			}
			for _, d := range members[f.Identity] {
				t.reach(d.ID, Ref{Digest: f.Identity}, Contains, depth, Edge{Known: lineage.Computed.String(), Entry: e.Index})
			}
		}
	}
	return nil
}

// finish orders the graph and lists the entries that it rests on.
func (t *tracer) finish() {
	cited := make(map[uint64]bool)
	for _, e := range t.g.Edges {
		cited[e.Entry] = true
	}
	for _, r := range t.g.Runs {
		for _, i := range r.Entries {
			cited[i] = true
		}
	}
	for _, s := range t.g.Statements {
		cited[s.Entry] = true
	}
	for i := range t.g.entries {
		if !cited[i] {
			delete(t.g.entries, i)
		}
	}
	for i, f := range t.g.entries {
		l := f.entry.Leaf
		x := TraceEntry{
			Index: i, LeafHash: f.proof.LeafHash.String(), EventID: l.EventID.String(), Kind: l.Kind.String(),
			Action: lineage.ActionText(l.Kind, l.Action, l.PredicateType), Principal: l.Principal, Authn: l.Authn.String(), RecordedAt: when(l.RecordedAt),
		}
		if l.OccurredAt != 0 {
			at := when(l.OccurredAt)
			x.OccurredAt = &at
		}
		t.g.Entries = append(t.g.Entries, x)
	}
	slices.SortFunc(t.g.Entries, func(a, b TraceEntry) int { return cmp.Compare(a.Index, b.Index) })
}

func when(us int64) time.Time { return time.UnixMicro(us).UTC() }
