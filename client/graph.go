package client

import (
	"fmt"
	"iter"
	"net/url"
	"slices"
	"time"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/client/receipt"
	"github.com/provledger/provledger/internal/checkpoint"
)

// Graph is verified upstream lineage. Nodes are artifacts, runs and statements; edges point upstream, from what was made to what it was
// made by and from. It marshals to JSON as it is, and [Graph.Tree] lays it out as a tree.
type Graph struct {
	Log        string       `json:"log"`
	Origin     string       `json:"origin"`
	TreeSize   uint64       `json:"treeSize"`   // all entries are proven in the tree of this size
	Checkpoint string       `json:"checkpoint"` // signed note over it
	Start      []string     `json:"start"`      // ids of the artifacts that were asked for
	Artifacts  []*Artifact  `json:"artifacts"`  // in order of distance
	Runs       []*Run       `json:"runs"`
	Statements []*Statement `json:"statements"`
	Edges      []Edge       `json:"edges"`
	Entries    []TraceEntry `json:"entries"`   // what the graph rests on, by index
	Truncated  bool         `json:"truncated"` // a bound was reached: there is more upstream
	NotProven  []string     `json:"notProven"`

	entries map[uint64]found
}

// Artifact is an artifact of a graph.
type Artifact struct {
	ID        string   `json:"id"` // ALGORITHM:HEX, or name: and the parts of the name
	Ref       Ref      `json:"-"`
	Names     []string `json:"names,omitempty"` // as recorded by whoever used or made it
	Kind      string   `json:"kind,omitempty"`
	URI       string   `json:"uri,omitempty"`
	MediaType string   `json:"mediaType,omitempty"`
	Size      int64    `json:"size,omitempty"` // bytes
	Depth     int      `json:"depth"`          // steps from the start

	// UsedBy are the indexes of entries that have it as an input: of what the trace starts from only, so that what nobody made, but
	// somebody used, is not said to be unknown.
	UsedBy []uint64 `json:"usedBy,omitempty"`
}

// Run is a run with all its events.
type Run struct {
	ID          string   `json:"id"`
	RunID       string   `json:"runId"`
	ParentRunID string   `json:"parentRunId,omitempty"`
	Job         string   `json:"job,omitempty"`
	State       string   `json:"state"` // of the last event
	Entries     []uint64 `json:"entries"`
	Outputs     []string `json:"outputs"` // ids of all artifacts that it generated, in the graph or not
}

// Statement is an entry about artifacts that is no run event.
type Statement struct {
	ID    string `json:"id"`
	Entry uint64 `json:"entry"`
}

// TraceEntry is what an entry says, but for its references.
type TraceEntry struct {
	Index      uint64     `json:"index"`
	LeafHash   string     `json:"leafHash"`
	EventID    string     `json:"eventId"`
	Kind       string     `json:"kind"`
	Action     string     `json:"action"`
	Principal  string     `json:"principal"`
	Authn      string     `json:"authn"`
	RecordedAt time.Time  `json:"recordedAt"`
	OccurredAt *time.Time `json:"occurredAt,omitempty"` // claim
}

// EdgeKind says how the node at the start of an edge rests on the one at its end.
type EdgeKind string

// Kinds of edges.
const (
	GeneratedBy EdgeKind = "generated-by" // artifact -> run or statement
	SubjectOf   EdgeKind = "subject-of"   // artifact -> run or statement
	Used        EdgeKind = "used"         // run or statement -> artifact
	MemberOf    EdgeKind = "member-of"    // file -> directory, shown by the directory's manifest
	Contains    EdgeKind = "contains"     // directory -> file, likewise
	AliasOf     EdgeKind = "alias-of"     // artifact -> artifact: somebody claims that they are the same
)

// Edge connects two nodes by their ids.
type Edge struct {
	From    string   `json:"from"`
	To      string   `json:"to"`
	Kind    EdgeKind `json:"kind"`
	Purpose string   `json:"purpose,omitempty"` // of a used artifact
	Path    string   `json:"path,omitempty"`    // of a member
	Known   string   `json:"known"`             // how the identity is known: computed, claimed, ...
	Entry   uint64   `json:"entry"`             // index of the entry that says so
}

// Receipt returns the receipt of an entry that the graph rests on.
func (g *Graph) Receipt(index uint64) (*receipt.Receipt, error) {
	f, ok := g.entries[index]
	if !ok {
		return nil, fmt.Errorf("the graph does not rest on entry %d", index)
	}
	return &receipt.Receipt{
		Leaf: f.entry.LeafBytes, BodyState: receipt.StateFor(f.entry.Leaf, f.entry.BodyState), Body: f.entry.Body,
		Proof: checkpoint.TlogProof{Index: index, Hashes: f.proof.Hashes, Checkpoint: f.proof.Checkpoint},
	}, nil
}

// Line is a line of a tree: one node, exactly one of Artifact, Run and Statement.
type Line struct {
	More      []bool // for each level from the top down to this line's: another line follows at that level. len(More)-1 is the depth
	Via       *Edge  // from the line above; nil at the top
	Artifact  *Artifact
	Run       *Run
	Statement *Statement
	Repeated  bool // shown with its branches before
}

// Tree yields the graph as a tree, depth first from the artifacts that were asked for. Every node's branches are shown once.
func (g *Graph) Tree() iter.Seq[Line] {
	return func(yield func(Line) bool) {
		w := treeWalk{yield: yield, nodes: make(map[string]Line), out: make(map[string][]*Edge), shown: make(map[string]bool)}
		for _, a := range g.Artifacts {
			w.nodes[a.ID] = Line{Artifact: a}
		}
		for _, r := range g.Runs {
			w.nodes[r.ID] = Line{Run: r}
		}
		for _, s := range g.Statements {
			w.nodes[s.ID] = Line{Statement: s}
		}
		for i := range g.Edges {
			w.out[g.Edges[i].From] = append(w.out[g.Edges[i].From], &g.Edges[i])
		}
		for i, id := range g.Start {
			if !w.walk(id, nil, []bool{i < len(g.Start)-1}) {
				return
			}
		}
	}
}

type treeWalk struct {
	yield func(Line) bool
	nodes map[string]Line
	out   map[string][]*Edge
	shown map[string]bool
}

func (w *treeWalk) walk(id string, via *Edge, more []bool) bool {
	line := w.nodes[id]
	edges := w.out[id]
	line.Via, line.More = via, more
	line.Repeated = w.shown[id] && len(edges) > 0
	w.shown[id] = true
	if !w.yield(line) {
		return false
	}
	if line.Repeated {
		return true
	}
	for i, e := range edges {
		if !w.walk(e.To, e, append(slices.Clone(more), i < len(edges)-1)) {
			return false
		}
	}
	return true
}

// artifactID is unique: names are escaped, so that their parts cannot run into each other.
func artifactID(r Ref) string {
	if !r.Digest.IsZero() {
		return r.Digest.String()
	}
	return "name:" + url.PathEscape(r.Name.Namespace) + "/" + url.PathEscape(r.Name.Name) + "/" + url.PathEscape(r.Name.Version)
}

// mention is a reference with what the body says of it.
type mention struct {
	role    lineage.Role
	kind    lineage.ArtifactKind
	purpose lineage.Purpose
	known   lineage.Known
	ref     Ref
	aliases []Ref
	ids     lineage.ReferenceIdentifiers
}

// readMentions joins the references of the leaf with the identifiers of the body.
func readMentions(e *Entry) ([]mention, error) {
	x, err := e.Identifiers()
	if err != nil {
		return nil, err
	}
	list := make([]mention, len(e.Leaf.References))
	for i := range list {
		f, m := &e.Leaf.References[i], &list[i]
		*m = mention{role: f.Role, kind: f.Kind, purpose: f.Purpose, known: f.Known}
		if i < len(x.References) {
			m.ids = x.References[i]
		}
		if f.Identity.Algorithm == lineage.NameHMAC && !m.ids.Name.IsZero() {
			m.ref = Ref{Name: m.ids.Name}
		} else {
			m.ref = Ref{Digest: f.Identity} // of an erased name only the hash is left
		}
		for _, a := range f.Aliases {
			if a.Algorithm == lineage.NameHMAC && !m.ids.Name.IsZero() {
				m.aliases = append(m.aliases, Ref{Name: m.ids.Name})
			} else {
				m.aliases = append(m.aliases, Ref{Digest: a})
			}
		}
	}
	return list, nil
}

// describe adds what a reference says about an artifact: the first word counts, names are collected.
func (a *Artifact) describe(m mention) {
	if n := m.ids.Name; !n.IsZero() && !slices.Contains(a.Names, nameText(n)) {
		a.Names = append(a.Names, nameText(n))
	}
	if a.Kind == "" && m.kind != 0 {
		a.Kind = m.kind.String()
	}
	if a.URI == "" {
		a.URI = m.ids.URI
	}
	if a.MediaType == "" {
		a.MediaType = m.ids.MediaType
	}
	if a.Size == 0 {
		a.Size = m.ids.Size
	}
}

// add takes in an event of the run. Events come in index order.
func (r *Run) add(e *Entry, m []mention) error {
	if slices.Contains(r.Entries, e.Index) {
		return nil
	}
	r.Entries = append(r.Entries, e.Index)
	r.State = lineage.RunState(e.Leaf.Action).String()
	if e.Leaf.ParentRunID != (lineage.ID{}) {
		r.ParentRunID = e.Leaf.ParentRunID.String()
	}
	x, err := e.Identifiers()
	if err != nil {
		return err
	}
	if !x.Job.IsZero() {
		r.Job = nameText(x.Job)
	}
	for _, f := range m {
		if id := artifactID(f.ref); f.role == lineage.Output && !slices.Contains(r.Outputs, id) {
			r.Outputs = append(r.Outputs, id)
		}
	}
	return nil
}
