package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/provledger/provledger/client"
	"github.com/provledger/provledger/client/lineage"
)

// listDefault is how many entries `entry list` shows if not told: a screen or two.
const listDefault = 50

func (a *app) entryCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "entry",
		Short:   "Show entries of a log",
		Example: "  ledgerctl entry list\n  ledgerctl entry get 7 -o json",
		Args:    exactly(0, "one of get, list"),
		RunE:    func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	get := &cobra.Command{
		Use:   "get INDEX|EVENT-ID|LEAF-HASH",
		Short: "Show one entry with its body",
		Long: `get shows an entry, which is proven to be in the log, and its body, which is proven to be the one recorded. Documents that are JSON or
text are shown as such, others by size (-o json has their bytes in base64).`,
		Example: "  ledgerctl entry get 7\n  ledgerctl entry get 0198c0de-7e1f-7aaa-8000-000000000000 -o json",
		Args:    exactly(1, "an index, an event id or a leaf hash"),
		RunE: func(c *cobra.Command, args []string) error {
			selector, err := parseSelector(args[0])
			if err != nil {
				return err
			}
			return a.withLedger(c.Context(), false, func(s *session) error {
				e, err := s.Entry(c.Context(), a.log, selector)
				if err != nil {
					return err
				}
				return a.printEntry(e)
			})
		},
	}
	var first, end uint64
	var limit int
	list := &cobra.Command{
		Use:     "list",
		Short:   "List entries, the newest last",
		Long:    "list shows entries from index --from to --to (exclusive), by default the last " + strconv.Itoa(listDefault) + ". Each is proven to be in the log.",
		Example: "  ledgerctl entry list\n  ledgerctl entry list --from 100 --to 200 -o json",
		Args:    exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			if limit < 1 {
				return usage("--last %d: must be at least 1", limit)
			}
			if c.Flags().Changed("to") && end > 0 && first >= end {
				return usage("--from %d --to %d: there is nothing between them, --to is the index after the last", first, end)
			}
			return a.withLedger(c.Context(), false, func(s *session) error {
				cp, err := s.Checkpoint(c.Context(), a.log)
				if err != nil {
					return err
				}
				if first >= cp.Size {
					return usage("--from %d: the log has %d entries, the last is %d", first, cp.Size, cp.Size-1)
				}
				if end == 0 || end > cp.Size {
					end = cp.Size
				}
				if !c.Flags().Changed("from") && end > uint64(limit) {
					first = end - uint64(limit)
				}
				return a.listEntries(c, s, first, end)
			})
		},
	}
	list.Flags().Uint64Var(&first, "from", 0, "first `INDEX`")
	list.Flags().Uint64Var(&end, "to", 0, "`INDEX` after the last (0: all)")
	list.Flags().IntVar(&limit, "last", listDefault, "without --from: how many (`N`)")
	c.AddCommand(withFreshness(get), withFreshness(list))
	return c
}

func parseSelector(s string) (client.Selector, error) {
	if n, err := strconv.ParseUint(s, 10, 64); err == nil {
		return client.AtIndex(n), nil
	}
	if id, err := lineage.ParseID(s); err == nil {
		return client.Selector{EventID: id}, nil
	}
	if d, err := lineage.ParseDigest("sha256:" + strings.TrimPrefix(s, "sha256:")); err == nil {
		return client.Selector{LeafHash: []byte(d.Value)}, nil
	}
	return client.Selector{}, usage("%q is no index, event id (UUID) or leaf hash (64 hex digits)", s)
}

// entryView is an entry for people and for jq.
type entryView struct {
	Index       uint64          `json:"index"`
	EventID     string          `json:"eventId"`
	Kind        string          `json:"kind"`
	Action      string          `json:"action"`
	Source      string          `json:"source"`
	RecordedAt  string          `json:"recordedAt"`
	OccurredAt  string          `json:"occurredAt,omitempty"`
	Principal   string          `json:"principal"`
	Authn       string          `json:"authn"`
	Initiator   string          `json:"initiator,omitempty"`
	RunID       string          `json:"runId,omitempty"`
	ParentRunID string          `json:"parentRunId,omitempty"`
	Job         string          `json:"job,omitempty"`
	Target      string          `json:"target,omitempty"`
	References  []referenceView `json:"references,omitempty"`
	Entries     []uint64        `json:"entries,omitempty"`
	Policy      string          `json:"policy,omitempty"`
	ExpiresAt   string          `json:"expiresAt,omitempty"`
	BodyState   string          `json:"bodyState"`
	Documents   []documentView  `json:"documents,omitempty"`
	Leaf        []byte          `json:"leaf,omitempty"`
}

type referenceView struct {
	Role     string   `json:"role"`
	Kind     string   `json:"kind,omitempty"`
	Purpose  string   `json:"purpose,omitempty"`
	Known    string   `json:"known"`
	Identity string   `json:"identity"`
	Aliases  []string `json:"aliases,omitempty"`
	Name     string   `json:"name,omitempty"`
	URI      string   `json:"uri,omitempty"`
	Size     int64    `json:"size,omitempty"`
}

type documentView struct {
	Name      string          `json:"name,omitempty"`
	MediaType string          `json:"mediaType,omitempty"`
	Size      int             `json:"size"`
	JSON      json.RawMessage `json:"json,omitempty"`
	Text      string          `json:"text,omitempty"`
	Content   []byte          `json:"content,omitempty"` // base64, of what is neither
}

func newEntryView(e *client.Entry, whole bool) (*entryView, error) {
	l := e.Leaf
	x, err := e.Identifiers()
	if err != nil {
		return nil, err
	}
	v := &entryView{
		Index: e.Index, EventID: idText(l.EventID), Kind: l.Kind.String(), Action: lineage.ActionText(l.Kind, l.Action, l.PredicateType),
		Source: l.Source.String(), RecordedAt: timeText(l.RecordedAt), OccurredAt: timeText(l.OccurredAt), Principal: l.Principal, Authn: l.Authn.String(),
		Initiator: l.Initiator, RunID: idText(l.RunID), ParentRunID: idText(l.ParentRunID), Job: fullName(x.Job), Target: fullName(x.Target),
		Entries: l.Entries, Policy: l.Policy.String(), ExpiresAt: timeText(l.ExpiresAt), BodyState: string(e.BodyState),
	}
	for i := range l.References {
		f := &l.References[i]
		r := referenceView{Role: f.Role.String(), Purpose: f.Purpose.String(), Known: f.Known.String(), Identity: f.Identity.String()}
		if f.Kind != 0 {
			r.Kind = f.Kind.String()
		}
		for _, d := range f.Aliases {
			r.Aliases = append(r.Aliases, d.String())
		}
		if i < len(x.References) {
			y := x.References[i]
			r.Name, r.URI, r.Size = fullName(y.Name), y.URI, y.Size
		}
		v.References = append(v.References, r)
	}
	if !whole {
		return v, nil
	}
	docs, err := e.Documents()
	if err != nil {
		return nil, err
	}
	for _, d := range docs {
		y := documentView{Name: d.Name, MediaType: d.MediaType, Size: len(d.Content)}
		switch {
		case json.Valid(d.Content):
			y.JSON = d.Content
		case utf8.Valid(d.Content):
			y.Text = string(d.Content)
		default:
			y.Content = d.Content
		}
		v.Documents = append(v.Documents, y)
	}
	v.Leaf = e.LeafBytes
	return v, nil
}

func idText(id lineage.ID) string {
	if id == (lineage.ID{}) {
		return ""
	}
	return id.String()
}

func fullName(n lineage.Name) string {
	if n.IsZero() {
		return ""
	}
	return client.Ref{Name: n}.String()
}

func (a *app) printEntry(e *client.Entry) error {
	v, err := newEntryView(e, true)
	if err != nil {
		return err
	}
	if a.json() {
		return a.printJSON(v)
	}
	rows := [][]string{{"entry", fmt.Sprint(v.Index)}}
	add := func(name, value string) {
		if value != "" {
			rows = append(rows, []string{name, plain(value)})
		}
	}
	add("event id", v.EventID)
	add("kind", v.Kind+" "+v.Action)
	add("source", v.Source)
	add("job", v.Job)
	add("run", v.RunID)
	add("part of run", v.ParentRunID)
	add("target", v.Target)
	add("principal", v.Principal+" ("+v.Authn+")")
	add("initiator", v.Initiator)
	add("recorded at", v.RecordedAt)
	add("occurred at", v.OccurredAt)
	add("expires at", v.ExpiresAt)
	add("policy", v.Policy)
	for _, i := range v.Entries {
		add("relies on", fmt.Sprintf("entry %d", i))
	}
	for _, r := range v.References {
		add(r.Role, referenceText(&r))
	}
	add("body", v.BodyState)
	if err := table(a.stdout, rows); err != nil {
		return err
	}
	for _, d := range v.Documents {
		fmt.Fprintf(a.stdout, "\ndocument %s (%s, %d bytes)\n", plain(d.Name), plain(d.MediaType), d.Size)
		switch {
		case d.JSON != nil:
			var b bytes.Buffer
			if err := json.Indent(&b, d.JSON, "", "  "); err != nil {
				return err
			}
			a.printText(b.String())
		case d.Text != "":
			a.printText(d.Text)
		}
	}
	return nil
}

func (a *app) printText(s string) {
	for line := range strings.Lines(s) {
		fmt.Fprintln(a.stdout, plain(strings.TrimSuffix(line, "\n")))
	}
}

func referenceText(r *referenceView) string {
	s := r.Identity
	for _, more := range []string{r.Name, r.URI, r.Kind, r.Purpose} {
		if more != "" {
			s += ", " + more
		}
	}
	if r.Known != "computed" {
		s += " (" + r.Known + ")"
	}
	return s
}

func (a *app) listEntries(c *cobra.Command, s *session, first, end uint64) error {
	views := []*entryView{}
	rows := [][]string{{"INDEX", "RECORDED AT", "KIND", "ACTION", "JOB OR TARGET", "REFERENCES"}}
	for e, err := range s.Entries(c.Context(), a.log, first, end, true) {
		if err != nil {
			return err
		}
		v, err := newEntryView(e, false)
		if err != nil {
			return err
		}
		views = append(views, v)
		what := v.Job
		if what == "" {
			what = v.Target
		}
		rows = append(rows, []string{fmt.Sprint(v.Index), v.RecordedAt, v.Kind, plain(v.Action), plain(what), fmt.Sprint(len(v.References))})
	}
	if a.json() {
		return a.printJSON(views)
	}
	return table(a.stdout, rows)
}
