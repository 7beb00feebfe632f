package client

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"testing"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/client/receipt"
)

// manifestOf makes a directory of named files: its digest and its manifest.
func manifestOf(t *testing.T, files ...string) (lineage.Digest, lineage.Document) {
	t.Helper()
	sort.Strings(files)
	var sum strings.Builder
	var list []lineage.Member
	for _, f := range files {
		d := digest(f)
		list = append(list, lineage.Member{Path: f, SHA256: hex.EncodeToString([]byte(d.Value)), Size: 1})
		fmt.Fprintf(&sum, "%x  %s\n", d.Value, f)
	}
	dir := lineage.Digest{Algorithm: lineage.DirHash, Value: digest(sum.String()).Value}
	m := lineage.Manifest{DirHash: dir, Files: list}
	if _, err := lineage.ParseManifest(m.Encode()); err != nil {
		t.Fatal(err)
	}
	return dir, lineage.Document{MediaType: lineage.ManifestMediaType, Name: "manifest", Content: m.Encode()}
}

// run is a run event over references as given.
func run(id lineage.ID, state lineage.RunState, refs ...lineage.Reference) *lineage.Event {
	return &lineage.Event{ID: lineage.NewID(), Kind: lineage.KindRun, Action: uint8(state), RunID: id, References: refs}
}

func ref(role lineage.Role, d lineage.Digest) lineage.Reference {
	return lineage.Reference{Role: role, Known: lineage.Computed, Digest: d}
}

func named(role lineage.Role, n lineage.Name) lineage.Reference {
	return lineage.Reference{Role: role, Known: lineage.NameOnly, Name: n}
}

// lines renders a tree for comparison. Names of files stand for their digests.
func lines(g *Graph, names map[string]string) string {
	var b strings.Builder
	for l := range g.Tree() {
		b.WriteString(strings.Repeat("  ", len(l.More)-1))
		if l.Via != nil {
			b.WriteString(string(l.Via.Kind) + " ")
		}
		switch {
		case l.Artifact != nil:
			name := l.Artifact.ID
			if n, ok := names[name]; ok {
				name = n
			}
			b.WriteString(name)
		case l.Run != nil:
			fmt.Fprintf(&b, "run of %d events, %s", len(l.Run.Entries), l.Run.State)
		case l.Statement != nil:
			b.WriteString("statement")
		}
		if l.Repeated {
			b.WriteString(" (above)")
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func digests(names ...string) map[string]string {
	m := make(map[string]string)
	for _, n := range names {
		m[digest(n).String()] = n
	}
	return m
}

// checkGraph verifies offline every entry that a graph rests on.
func checkGraph(t *testing.T, c *Client, g *Graph) {
	t.Helper()
	info, err := c.Log(t.Context(), g.Log)
	if err != nil {
		t.Fatal(err)
	}
	policy, err := receipt.PolicyFor(info.VKey)
	if err != nil {
		t.Fatal(err)
	}
	cited := make(map[uint64]bool)
	for _, e := range g.Entries {
		cited[e.Index] = true
		r, err := g.Receipt(e.Index)
		if err != nil {
			t.Fatal(err)
		}
		if v := receipt.Verify(r, policy, nil, receipt.Require{}); v.Outcome == receipt.NotVerified || v.TreeSize != g.TreeSize {
			t.Errorf("entry %d: %+v", e.Index, v)
		}
	}
	for _, e := range g.Edges {
		if !cited[e.Entry] {
			t.Errorf("edge %+v rests on an entry that the graph does not list", e)
		}
	}
	if len(g.NotProven) == 0 || !strings.Contains(g.NotProven[0], "completeness") {
		t.Errorf("the graph claims to be complete: %q", g.NotProven)
	}
	if _, err := json.Marshal(g); err != nil {
		t.Error(err)
	}
}

// A run in two events, a diamond, an approval, a cycle.
func TestTrace(t *testing.T) {
	c := newLedger(t).dial(Options{})
	split, train := lineage.NewID(), lineage.NewID()
	mustAppend(t, c,
		run(lineage.NewID(), lineage.RunComplete, ref(lineage.Output, digest("raw"))),
		run(split, lineage.RunStart, ref(lineage.Input, digest("raw"))),
		run(split, lineage.RunComplete, ref(lineage.Output, digest("trainset")), ref(lineage.Output, digest("testset"))),
		run(train, lineage.RunComplete, ref(lineage.Input, digest("trainset")), ref(lineage.Input, digest("testset")), ref(lineage.Output, digest("model"))),
		&lineage.Event{ID: lineage.NewID(), Kind: lineage.KindLifecycle, Action: uint8(lineage.Approved), References: []lineage.Reference{ref(lineage.Subject, digest("model"))}},
		run(lineage.NewID(), lineage.RunComplete, ref(lineage.Input, digest("model")), ref(lineage.Output, digest("raw"))), // the cycle
		event("unrelated", "elsewhere"),
	)
	g, err := c.Trace(t.Context(), "", []Ref{{Digest: digest("model")}}, TraceOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want := `model
  generated-by run of 1 events, complete
    used trainset
      generated-by run of 2 events, complete
        used raw
          generated-by run of 1 events, complete
          generated-by run of 1 events, complete
            used model (above)
    used testset
      generated-by run of 2 events, complete (above)
  subject-of statement
`
	if got := lines(g, digests("raw", "trainset", "testset", "model")); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	checkGraph(t, c, g)
	for _, e := range g.Entries {
		if e.Index == 7 {
			t.Error("an unrelated entry is in the graph")
		}
	}

	short, err := c.Trace(t.Context(), "", []Ref{{Digest: digest("model")}}, TraceOptions{MaxDepth: 1})
	if err != nil || !short.Truncated || len(short.Artifacts) != 3 {
		t.Errorf("one step: %d artifacts, truncated %v, %v", len(short.Artifacts), short.Truncated, err)
	}
	small, err := c.Trace(t.Context(), "", []Ref{{Digest: digest("model")}}, TraceOptions{MaxArtifacts: 2})
	if err != nil || !small.Truncated || len(small.Artifacts) != 2 {
		t.Errorf("two artifacts: %d, truncated %v, %v", len(small.Artifacts), small.Truncated, err)
	}
	if g.Truncated {
		t.Error("a whole graph says that it is truncated")
	}
	nothing, err := c.Trace(t.Context(), "", []Ref{{Digest: digest("never")}}, TraceOptions{})
	if err != nil || len(nothing.Artifacts) != 1 || len(nothing.Edges) != 0 {
		t.Errorf("an artifact that nobody mentions: %+v, %v", nothing, err)
	}
	mustClose(t, c)
}

// One stage writes data/, the next reads data/train.csv; and the other way round.
func TestTraceCrossesDirectories(t *testing.T) {
	c := newLedger(t).dial(Options{})
	data, manifest := manifestOf(t, "data/train.csv", "data/test.csv")
	writeDir := run(lineage.NewID(), lineage.RunComplete, ref(lineage.Input, digest("raw")), ref(lineage.Output, data))
	writeDir.Documents = []lineage.Document{manifest}
	mustAppend(t, c, writeDir, run(lineage.NewID(), lineage.RunComplete, ref(lineage.Input, digest("data/train.csv")), ref(lineage.Output, digest("model"))))
	names := digests("raw", "data/train.csv", "data/test.csv", "model", "a", "b", "c", "source", "report")
	names[data.String()] = "data/"
	g, err := c.Trace(t.Context(), "", []Ref{{Digest: digest("model")}}, TraceOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want := `model
  generated-by run of 1 events, complete
    used data/train.csv
      member-of data/
        generated-by run of 1 events, complete
          used raw
`
	if got := lines(g, names); got != want {
		t.Errorf("file to directory: got\n%s\nwant\n%s", got, want)
	}
	checkGraph(t, c, g)

	dir, manifest := manifestOf(t, "a", "b", "c")
	readDir := run(lineage.NewID(), lineage.RunComplete, ref(lineage.Input, dir), ref(lineage.Output, digest("report")))
	readDir.Documents = []lineage.Document{manifest}
	mustAppend(t, c, event("a", "source"), readDir)
	names[dir.String()] = "dir/"
	if g, err = c.Trace(t.Context(), "", []Ref{{Digest: digest("report")}}, TraceOptions{}); err != nil {
		t.Fatal(err)
	}
	want = `report
  generated-by run of 1 events, complete
    used dir/
      contains a
        generated-by run of 1 events, complete
          used source
`
	if got := lines(g, names); got != want {
		t.Errorf("directory to file: got\n%s\nwant\n%s", got, want)
	}
	checkGraph(t, c, g)
}

// What was made directly needs no directory to explain it.
func TestTraceDoesNotCrossWithoutNeed(t *testing.T) {
	c := newLedger(t).dial(Options{})
	dir, manifest := manifestOf(t, "a", "b")
	copied := run(lineage.NewID(), lineage.RunComplete, ref(lineage.Input, digest("later")), ref(lineage.Output, dir))
	copied.Documents = []lineage.Document{manifest}
	mustAppend(t, c, event("a", "source"), copied)
	g, err := c.Trace(t.Context(), "", []Ref{{Digest: digest("a")}}, TraceOptions{})
	if err != nil || len(g.Artifacts) != 2 || len(g.Runs) != 1 {
		t.Errorf("%s, %v", lines(g, digests("a", "source", "later")), err)
	}
}

// A manifest that does not give the digest that it claims proves no membership.
func TestTraceDoesNotBelieveManifests(t *testing.T) {
	c := newLedger(t).dial(Options{})
	dir, _ := manifestOf(t, "a", "b")
	_, other := manifestOf(t, "a", "c")
	forged := bytes.Replace(other.Content, other.Content[12:76], []byte(hex.EncodeToString([]byte(dir.Value))), 1)
	e := run(lineage.NewID(), lineage.RunComplete, ref(lineage.Output, dir))
	e.Documents = []lineage.Document{{MediaType: lineage.ManifestMediaType, Content: forged}}
	mustAppend(t, c, e)
	g, err := c.Trace(t.Context(), "", []Ref{{Digest: digest("c")}}, TraceOptions{})
	if err != nil || len(g.Edges) != 0 {
		t.Errorf("%+v, %v", g.Edges, err)
	}
}

func TestTraceNamesAndAliases(t *testing.T) {
	c := newLedger(t).dial(Options{})
	table := lineage.Name{Namespace: "postgres://db:5432", Name: "public.users", Version: "3"}
	twin := lineage.Digest{Algorithm: lineage.SHA512, Value: strings.Repeat("x", 64)}
	out := ref(lineage.Output, digest("features"))
	out.Aliases = []lineage.Digest{twin}
	mustAppend(t, c,
		run(lineage.NewID(), lineage.RunComplete, ref(lineage.Input, digest("dump")), named(lineage.Output, table)),
		run(lineage.NewID(), lineage.RunComplete, named(lineage.Input, table), out),
		run(lineage.NewID(), lineage.RunComplete, named(lineage.Input, lineage.Name{Namespace: table.Namespace, Name: table.Name, Version: "4"}), ref(lineage.Output, digest("later"))),
	)
	names := digests("dump", "features")
	names[artifactID(Ref{Name: table})] = "users:3"
	names[twin.String()] = "sha512 of features"
	g, err := c.Trace(t.Context(), "", []Ref{{Digest: twin}}, TraceOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want := `sha512 of features
  alias-of features
    generated-by run of 1 events, complete
      used users:3
        generated-by run of 1 events, complete
          used dump
`
	if got := lines(g, names); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	for _, e := range g.Edges {
		if e.Kind == AliasOf && e.Known != lineage.Claimed.String() {
			t.Errorf("an alias is shown as %s", e.Known)
		}
	}
	checkGraph(t, c, g)
	if g, err = c.Trace(t.Context(), "", []Ref{{Name: table}}, TraceOptions{}); err != nil || len(g.Runs) != 1 {
		t.Errorf("from the name: %+v, %v", g, err)
	}
}

func TestResolve(t *testing.T) {
	c := newLedger(t).dial(Options{})
	model := func(content, name, version string) *lineage.Event {
		e := event(content)
		e.References[0].Name = lineage.Name{Name: name, Version: version}
		return e
	}
	table := lineage.Name{Namespace: "postgres://db", Name: "users"}
	mustAppend(t, c, model("m1", "fraud", "1"), model("m2", "fraud", "2"), model("m3", "churn", ""), run(lineage.NewID(), lineage.RunComplete, named(lineage.Output, table)))
	for text, want := range map[string]Ref{
		digest("m1").String():                                    {Digest: digest("m1")},
		digest("never").String():                                 {Digest: digest("never")}, // a full digest is not looked up
		digest("m2").String()[:15]:                               {Digest: digest("m2")},
		"sha256:" + strings.ToUpper(digest("m2").String()[7:20]): {Digest: digest("m2")},
		"fraud:1":             {Digest: digest("m1")},
		"fraud:2":             {Digest: digest("m2")},
		"churn":               {Digest: digest("m3")},
		"postgres://db/users": {Name: table},
	} {
		if got, err := c.Resolve(t.Context(), "", text); err != nil || got != want {
			t.Errorf("%s: %v, %v; want %v", text, got, err, want)
		}
	}
	_, err := c.Resolve(t.Context(), "", "fraud")
	if a, ok := errors.AsType[*AmbiguousError](err); !ok || len(a.Candidates) != 2 || a.More ||
		!slices.ContainsFunc(a.Candidates, func(x Candidate) bool { return x.Ref.Digest == digest("m1") && x.Names[0] == "fraud:1" }) {
		t.Errorf("fraud: %v", err)
	}
	for _, text := range []string{"nobody", "fraud:3", "sha256:00000000"} {
		if _, err := c.Resolve(t.Context(), "", text); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %v", text, err)
		}
	}
	if _, err := c.Resolve(t.Context(), "", "sha256:1234567"); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("seven digits: %v", err)
	}
}
