package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/provledger/provledger/client"
	"github.com/provledger/provledger/client/lineage"
)

func (a *app) traceCommand() *cobra.Command {
	var depth int
	var manifests []string
	c := &cobra.Command{
		Use:   "trace ARTIFACT...",
		Short: "Show what an artifact was made from",
		Long: `trace shows the upstream lineage of an artifact as a tree: the runs that generated it, what they used, what that was made from, and so on.
It crosses between a file and the directory that it is recorded in. Every entry that the answer rests on is proven to be in the log; that none
is missing is not. Two lines of a tree that are the same artifact are drawn out once.`,
		Example: "  ledgerctl trace ./model.json\n  ledgerctl trace fraud:3 -o json",
		Args:    atLeast(1, "an ARTIFACT"),
		RunE: func(c *cobra.Command, texts []string) error {
			var args []*artifactArg
			for _, text := range texts {
				x, err := a.artifactArg(c.Context(), text)
				if err != nil {
					return err
				}
				args = append(args, x)
			}
			given, err := readManifests(manifests)
			if err != nil {
				return err
			}
			return a.withLedger(c.Context(), false, func(s *session) error {
				var start []client.Ref
				for _, x := range args {
					ref, err := x.resolve(c.Context(), a, s)
					if err != nil {
						return err
					}
					refs, err := a.orDirectory(c.Context(), s, x, ref, given)
					if err != nil {
						return err
					}
					start = append(start, refs...)
				}
				g, err := s.Trace(c.Context(), a.log, start, client.TraceOptions{MaxDepth: depth})
				if err != nil {
					return err
				}
				return a.printTrace(g)
			})
		},
	}
	c.Flags().StringArrayVar(&manifests, "manifest", nil, "`FILE` with the manifest of a directory, if it was too large for the record; repeatable")
	c.Flags().IntVar(&depth, "depth", 0, "how many steps to go back (`N`; 0: all)")
	return c
}

// orDirectory returns the directories of a file, by manifests that the ledger does not have, if it has nothing about the file itself.
func (a *app) orDirectory(ctx context.Context, s *session, x *artifactArg, ref client.Ref, given []*lineage.Manifest) ([]client.Ref, error) {
	if ref.Digest.Algorithm != lineage.SHA256 {
		return []client.Ref{ref}, nil
	}
	lists := a.withMember(ref.Digest, given)
	if len(lists) == 0 {
		return []client.Ref{ref}, nil
	}
	for _, err := range s.Find(ctx, a.log, query(ref)) {
		return []client.Ref{ref}, err // there is something, or it cannot be told
	}
	var refs []client.Ref
	for _, m := range lists {
		a.note("%s is a file of the directory %s, by a manifest that the ledger does not have", x.text, m.DirHash)
		refs = append(refs, client.Ref{Digest: m.DirHash})
	}
	return refs, nil
}

func (a *app) printTrace(g *client.Graph) error {
	unknown := len(g.Entries) == 0 && !slices.ContainsFunc(g.Artifacts, func(x *client.Artifact) bool { return len(x.UsedBy) > 0 })
	if a.json() {
		if err := a.printJSON(g); err != nil {
			return err
		}
	} else if !unknown {
		drawTree(a.stdout, g, lines(a.stdout))
		if len(g.Entries) == 0 {
			fmt.Fprintf(a.stdout, "\nNothing is recorded about where it comes from. It was used by %s.\n", usedBy(g))
		}
		if n := len(g.Entries); n > 0 {
			fmt.Fprintf(a.stdout, "\n%s verified at tree size %d of %s\n", count(n, "entry"), g.TreeSize, plain(g.Origin))
		}
		for _, s := range g.NotProven {
			fmt.Fprintf(a.stdout, "not proven: %s\n", s)
		}
		if g.Truncated {
			fmt.Fprintln(a.stdout, "there is more upstream: --depth or the bound of 10,000 artifacts ended the trace")
		}
	}
	if unknown {
		return fmt.Errorf("nothing is recorded about %s: %w", strings.Join(g.Start, ", "), client.ErrNotFound)
	}
	return nil
}

// maxUsers is how many users of an artifact a trace names.
const maxUsers = 10

// usedBy names the entries that used what the trace starts from.
func usedBy(g *client.Graph) string {
	var users []uint64
	for _, x := range g.Artifacts {
		users = append(users, x.UsedBy...)
	}
	slices.Sort(users)
	users = slices.Compact(users)
	var s []string
	for _, i := range users[:min(len(users), maxUsers)] {
		s = append(s, fmt.Sprint(i))
	}
	if n := len(users) - maxUsers; n > 0 {
		s = append(s, fmt.Sprintf("and %d more", n))
	}
	return "entry " + strings.Join(s, ", ")
}

// branches are the strokes of a tree: last and other branch, and what goes on beside later lines.
type branches struct{ other, last, down, none string }

var (
	unicodeLines = branches{"├─ ", "└─ ", "│  ", "   "}
	asciiLines   = branches{"|- ", "`- ", "|  ", "   "}
)

// lines are drawn in Unicode on a terminal that says it is UTF-8, else in ASCII, so that logs and pipes stay readable anywhere.
func lines(w io.Writer) branches {
	if !isTerminal(w) {
		return asciiLines
	}
	if runtime.GOOS == "windows" {
		return unicodeLines // consoles of every supported Windows draw these
	}
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := os.Getenv(name); v != "" {
			if v = strings.ToUpper(v); strings.Contains(v, "UTF-8") || strings.Contains(v, "UTF8") {
				return unicodeLines
			}
			return asciiLines
		}
	}
	return asciiLines
}

func drawTree(w io.Writer, g *client.Graph, b branches) {
	entries := map[uint64]client.TraceEntry{}
	for _, e := range g.Entries {
		entries[e.Index] = e
	}
	for line := range g.Tree() {
		prefix := ""
		for i, more := range line.More {
			switch last := i == len(line.More)-1; {
			case i == 0: // the top has no stroke
			case last && more:
				prefix += b.other
			case last:
				prefix += b.last
			case more:
				prefix += b.down
			default:
				prefix += b.none
			}
		}
		fmt.Fprintln(w, prefix+plain(lineText(line, entries)))
	}
}

// lineText is one node in a line: what it is called, what it is, and how we know.
func lineText(l client.Line, entries map[uint64]client.TraceEntry) string {
	var s string
	switch {
	case l.Run != nil:
		s = l.Run.Job
		if s == "" {
			s = "run"
		}
		s += fmt.Sprintf("  run %s, %s", l.Run.RunID, l.Run.State)
		if l.Run.ParentRunID != "" {
			s += ", part of run " + l.Run.ParentRunID
		}
		if n := len(l.Run.Entries); n > 0 {
			s += fmt.Sprintf(", entry %d, %s", l.Run.Entries[n-1], entries[l.Run.Entries[n-1]].RecordedAt.Format("2006-01-02T15:04:05Z07:00"))
		}
	case l.Statement != nil:
		e := entries[l.Statement.Entry]
		s = fmt.Sprintf("%s %s  entry %d, %s", e.Kind, e.Action, e.Index, e.RecordedAt.Format("2006-01-02T15:04:05Z07:00"))
	default:
		s = artifactText(l.Artifact)
	}
	if v := l.Via; v != nil {
		switch v.Kind {
		case client.MemberOf:
			s = "in directory " + s
		case client.Contains:
			s = "has " + s
		case client.AliasOf:
			s = "said to be " + s
		}
		if v.Purpose != "" {
			s += ", as " + v.Purpose
		}
		if v.Known != "computed" && l.Artifact != nil {
			s += " (" + v.Known + ")"
		}
	}
	if l.Repeated {
		s += "  (see above)"
	}
	return s
}

// artifactText names an artifact by what people call it, and by enough of its digest to look it up.
func artifactText(a *client.Artifact) string {
	name := a.URI
	if len(a.Names) > 0 {
		name = strings.Join(a.Names, ", ")
	}
	id := a.ID
	if algorithm, digits, ok := strings.Cut(id, ":"); ok && algorithm != "name" && len(digits) > 12 {
		id = algorithm + ":" + digits[:12]
	}
	if name == "" || strings.HasPrefix(a.ID, "name:") && len(a.Names) == 0 {
		name, id = id, ""
	}
	if strings.HasPrefix(a.ID, "name:") {
		id = "known by name only"
	}
	s := name
	if id != "" {
		s += "  " + id
	}
	if a.Kind != "" {
		s += ", " + a.Kind
	}
	return s
}
