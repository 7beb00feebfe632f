package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/client/receipt"
)

// verification is a result together with what it is about.
type verification struct {
	Files   []string `json:"files,omitempty"`
	Receipt string   `json:"receipt,omitempty"` // file
	Choice  string   `json:"choice,omitempty"`  // online: why this entry of several
	*receipt.Result
	Later []laterEntry `json:"laterEntries,omitempty"` // online: newer entries about the same bytes
}

type laterEntry struct {
	Index      uint64 `json:"index"`
	Kind       string `json:"kind"`
	Action     string `json:"action"`
	RecordedAt string `json:"recordedAt"`
}

// answer is the JSON of verify: in one form, however many files there are and wherever their receipts come from.
type answer struct {
	Outcome receipt.Outcome `json:"outcome"` // the worst
	Results []verification  `json:"results"`
}

// against reports whether an entry speaks against relying on what it is about.
func (e *laterEntry) against() bool {
	if e.Kind != lineage.KindLifecycle.String() {
		return false
	}
	switch v, err := lineage.ParseLifecycleVerb(e.Action); {
	case err != nil:
		return false
	default:
		return v == lineage.Flagged || v == lineage.Rejected || v == lineage.RolledBack || v == lineage.Retired
	}
}

func (a *app) printResults(results []verification) error {
	if a.json() {
		x := answer{Outcome: receipt.Verified, Results: results}
		for i := range results {
			x.Outcome = worse(x.Outcome, results[i].Outcome)
			results[i].NotChecked = orEmpty(results[i].NotChecked)
		}
		return a.printJSON(x)
	}
	for i := range results {
		if i > 0 {
			fmt.Fprintln(a.stdout)
		}
		results[i].print(a.stdout)
	}
	return nil
}

var headlines = map[receipt.Outcome]string{
	receipt.Verified: "VERIFIED", receipt.NotVerified: "NOT VERIFIED", receipt.Unknown: "COULD NOT TELL",
}

// print says first how it stands, then why not, then what was recorded, then what that does not mean.
func (v *verification) print(w io.Writer) {
	what := strings.Join(v.Files, ", ")
	if what == "" {
		what = v.Receipt
	}
	fmt.Fprintf(w, "%s: %s\n", headlines[v.Outcome], plain(what))
	for _, e := range v.Later {
		if e.against() {
			fmt.Fprintf(w, "  WARNING      entry %d, later, says: %s %s, %s\n", e.Index, e.Kind, plain(e.Action), e.RecordedAt)
		}
	}
	for _, c := range v.Checks {
		if c.Outcome != receipt.Verified {
			fmt.Fprintf(w, "  %-12s %s: %s\n", map[receipt.Outcome]string{receipt.NotVerified: "FAILED", receipt.Unknown: "unclear"}[c.Outcome], c.Name, plain(c.Detail))
		}
	}
	if f := v.Facts; f != nil {
		if v.Outcome == receipt.Verified {
			fmt.Fprintln(w, "Recorded:")
		} else {
			fmt.Fprintln(w, "The entry of this receipt, which is sound in itself, says:")
		}
		v.printFacts(w, f)
	}
	if v.Choice != "" {
		fmt.Fprintf(w, "  %-12s %s\n", "chosen", v.Choice)
	}
	for _, e := range v.Later {
		if e.against() {
			continue // it stands at the top
		}
		fmt.Fprintf(w, "  %-12s entry %d: %s %s, %s\n", "later", e.Index, e.Kind, plain(e.Action), e.RecordedAt)
	}
	if v.Outcome == receipt.Verified {
		var done []string
		for _, c := range v.Checks {
			if !slices.Contains(done, c.Name) {
				done = append(done, c.Name)
			}
		}
		fmt.Fprintf(w, "Checked: %s.\n", strings.Join(done, ", "))
	}
	if len(v.NotChecked) > 0 {
		fmt.Fprintln(w, "Not checked:")
	}
	for _, s := range v.NotChecked {
		fmt.Fprintf(w, "  - %s\n", plain(s))
	}
}

func (v *verification) printFacts(w io.Writer, f *receipt.Facts) {
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "  %-12s %s\n", name, plain(fmt.Sprintf(format, args...)))
	}
	line("kind", "%s", f.Kind)
	if f.Outcome != "" {
		line("outcome", "%s", f.Outcome)
	} else {
		line("action", "%s", f.Action)
	}
	if f.Job != nil {
		line("job", "%s", nameText(f.Job))
	}
	if f.Target != nil {
		line("target", "%s", nameText(f.Target))
	}
	if f.RunID != "" {
		line("run", "%s", f.RunID)
	}
	for _, m := range v.Matches {
		r := f.References[m.Reference]
		line("role", "%s", roleText(&r, &m))
	}
	line("principal", "%s (%s)", f.Principal, f.Authn)
	if f.Initiator != "" {
		line("initiator", "%s (claimed)", f.Initiator)
	}
	line("recorded at", "%s (ledger's clock)", f.RecordedAt)
	if f.OccurredAt != "" {
		line("occurred at", "%s (producer's clock)", f.OccurredAt)
	}
	line("entry", "%d of %d in %s", v.Index, v.TreeSize, v.Origin)
}

func nameText(n *receipt.NameFacts) string {
	s := n.Name
	if n.Namespace != "" {
		s = n.Namespace + "/" + s
	}
	if n.Version != "" {
		s += ":" + n.Version
	}
	return s
}

// maxPaths is how many paths of one file in a directory are shown: an empty file may be there a thousand times.
const maxPaths = 3

// roleText says what a file is in the entry.
func roleText(r *receipt.ReferenceFacts, m *receipt.Match) string {
	s := r.Role
	for _, more := range []string{r.Kind, r.Purpose} {
		if more != "" {
			s += ", " + more
		}
	}
	if r.Name != nil {
		s += ", " + nameText(r.Name)
	}
	if m.Path != "" {
		path := m.Path
		if paths := strings.Split(path, ", "); len(paths) > maxPaths {
			path = fmt.Sprintf("%s and %d more", strings.Join(paths[:maxPaths], ", "), len(paths)-maxPaths)
		}
		s += fmt.Sprintf(", as %s in that directory", path)
	}
	if r.Known != "computed" {
		s += " (" + r.Known + ")"
	}
	return s + ": " + m.Subject
}
