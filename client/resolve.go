package client

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/provledger/provledger/client/lineage"
)

const (
	// MinPrefixDigits is the shortest prefix of a digest that is looked up: 32 bits, below which chance alone makes it ambiguous.
	MinPrefixDigits = 8

	// maxCandidates is how many candidates an ambiguous text lists.
	maxCandidates = 20

	// maxNameSplits bounds the places where a text may be cut into namespace and name.
	maxNameSplits = 16
)

// Candidate is an artifact that a text may mean.
type Candidate struct {
	Ref        Ref
	Names      []string // as recorded, at least the one that matched
	Kind       lineage.ArtifactKind
	Index      uint64    // newest entry that mentions it
	RecordedAt time.Time // of that entry
}

func (c Candidate) String() string {
	s := c.Ref.String()
	if len(c.Names) > 0 && !c.Ref.Digest.IsZero() {
		s += " " + strings.Join(c.Names, ", ")
	}
	if c.Kind != 0 {
		s += " (" + c.Kind.String() + ")"
	}
	return fmt.Sprintf("%s, last in entry %d of %s", s, c.Index, c.RecordedAt.Format(time.RFC3339))
}

// Resolve finds the artifact that a text means: ALGORITHM:HEX, of which a unique prefix of at least [MinPrefixDigits] digits will do, or
// NAME[:VERSION] with or without NAMESPACE/ before it. A full digest is not looked up. Errors: *[AmbiguousError], [ErrNotFound].
func (c *Client) Resolve(ctx context.Context, log, text string) (Ref, error) {
	if d, err := lineage.ParseDigest(text); err == nil {
		return Ref{Digest: d}, nil
	}
	if name, digits, ok := strings.Cut(text, ":"); ok {
		if a, err := lineage.ParseAlgorithm(name); err == nil && isHex(digits) {
			if len(digits) < MinPrefixDigits {
				return Ref{}, fmt.Errorf("%q: a digest prefix has at least %d hex digits", text, MinPrefixDigits)
			}
			prefix := a.String() + ":" + strings.ToLower(digits)
			return c.choose(ctx, log, text, Query{Prefixes: []string{prefix}}, func(m mention, r Ref) bool {
				return strings.HasPrefix(r.Digest.String(), prefix)
			})
		}
	}
	names := spellings(text)
	return c.choose(ctx, log, text, Query{Names: names}, func(m mention, r Ref) bool {
		if r != m.ref || m.ids.Name.IsZero() {
			return false // an artifact that has a digest is found by it, not by its name
		}
		for _, n := range names {
			got := m.ids.Name
			if n.Version == "" {
				got.Version = ""
			}
			if got == n {
				return true
			}
		}
		return false
	})
}

func isHex(s string) bool {
	return s != "" && strings.Trim(strings.ToLower(s), "0123456789abcdef") == ""
}

// spellings returns the names that a text may stand for: where namespace, name and version part is not written in it.
func spellings(text string) []lineage.Name {
	names := []lineage.Name{{Name: text}}
	add := func(text, version string) {
		splits := 0
		for i := 1; i < len(text)-1 && splits < maxNameSplits; i++ {
			if text[i] == '/' {
				names = append(names, lineage.Name{Namespace: text[:i], Name: text[i+1:], Version: version})
				splits++
			}
		}
	}
	add(text, "")
	if i := strings.LastIndexByte(text, ':'); i > 0 && i < len(text)-1 {
		names = append(names, lineage.Name{Name: text[:i], Version: text[i+1:]})
		add(text[:i], text[i+1:])
	}
	return names
}

// choose returns the one artifact among all that the matching references and their aliases name.
func (c *Client) choose(ctx context.Context, log, text string, q Query, match func(mention, Ref) bool) (Ref, error) {
	var list []*Candidate
	byRef := make(map[Ref]*Candidate)
	more := false
	for e, err := range c.Find(ctx, log, q) {
		if err != nil {
			return Ref{}, err
		}
		mentions, err := readMentions(e)
		if err != nil {
			return Ref{}, untrusted(log, "the body of entry %d: %w", e.Index, err)
		}
		for _, m := range mentions {
			for _, r := range append([]Ref{m.ref}, m.aliases...) {
				if !match(m, r) {
					continue
				}
				x := byRef[r]
				if x == nil {
					if len(list) == maxCandidates {
						more = true
						continue
					}
					x = &Candidate{Ref: r}
					byRef[r], list = x, append(list, x)
				}
				x.Index, x.RecordedAt = e.Index, when(e.Leaf.RecordedAt)
				if m.kind != 0 {
					x.Kind = m.kind
				}
				a := Artifact{Names: x.Names}
				a.describe(m)
				x.Names = a.Names
			}
		}
		if more {
			break
		}
	}
	switch len(list) {
	case 0:
		return Ref{}, fmt.Errorf("%q: %w", text, ErrNotFound)
	case 1:
		return list[0].Ref, nil
	}
	err := &AmbiguousError{Text: text, More: more}
	for _, x := range list {
		err.Candidates = append(err.Candidates, *x)
	}
	return Ref{}, err
}
