package receipt

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"

	"github.com/provledger/provledger/client/lineage"
)

// Subject is a file or directory at hand, by its digests. The more digests, the more recorded identities it can be compared with: SHA-256
// for a file and dirHash for a directory are what ledgerctl records.
type Subject struct {
	Digests []lineage.Digest
	Name    string // for messages
}

func (s *Subject) isDirectory() bool {
	return slices.ContainsFunc(s.Digests, func(d lineage.Digest) bool { return d.Algorithm == lineage.DirHash })
}

// has reports whether s has a digest by an algorithm, of a size in bytes: those of Git come in two.
func (s *Subject) has(a lineage.Algorithm, size int) bool {
	return slices.ContainsFunc(s.Digests, func(d lineage.Digest) bool { return d.Algorithm == a && len(d.Value) == size })
}

// subjects compares each subject with the references of the entry.
func (v *verification) subjects(subjects []Subject) {
	var manifests []*manifest
	if v.Facts != nil && v.body != nil {
		for i, d := range v.body.documents {
			if d.MediaType != ManifestMediaType {
				continue
			}
			m, err := parseManifest(d.Content)
			if err != nil {
				v.NotChecked = append(v.NotChecked, fmt.Sprintf("documents[%d], which calls itself a manifest: %v", i, err))
				continue
			}
			manifests = append(manifests, m)
		}
	}
	for i := range subjects {
		s := &subjects[i]
		var matched []int
		if v.Facts == nil {
			v.add(CheckSubject, Unknown, "%s: there is no verified entry to compare it with", s.Name)
		} else {
			c := comparison{s: s, manifests: manifests}
			for j := range v.leaf.References {
				c.reference(j, &v.leaf.References[j])
			}
			o, detail := c.outcome()
			v.add(CheckSubject, o, "%s: %s", s.Name, detail)
			for _, m := range c.matches {
				matched = append(matched, m.Reference)
			}
			v.Matches = append(v.Matches, c.matches...)
		}
		v.matched = append(v.matched, matched)
	}
}

// comparison is that of one subject with all references.
type comparison struct {
	s         *Subject
	manifests []*manifest

	matches   []Match
	differ    int      // references whose identity is of other bytes, certainly
	undecided []string // why a reference may or may not be the subject
}

// reference compares the subject with one reference. An identity that differs decides, whatever the aliases claim: they are said to be of
// the same bytes. Equal digests that do not prove equal bytes (SHA-1, MD5) decide nothing.
func (c *comparison) reference(i int, r *lineage.LeafReference) {
	s, id := c.s, r.Identity
	switch {
	case len(s.Digests) == 0:
		c.doubt(i, "the subject has no digest")
		return
	case slices.Contains(s.Digests, id) && id.Proves():
		c.match(Match{Reference: i, Via: "identity", Digest: id.String(), Claimed: r.Known == lineage.Claimed})
		return
	case s.has(id.Algorithm, len(id.Value)) && !slices.Contains(s.Digests, id):
		c.differ++
		return
	}
	for _, a := range r.Aliases {
		if slices.Contains(s.Digests, a) && a.Proves() {
			c.match(Match{Reference: i, Via: "alias", Digest: a.String(), Claimed: true})
			return
		}
	}
	for _, d := range append([]lineage.Digest{id}, r.Aliases...) {
		if slices.Contains(s.Digests, d) {
			c.doubt(i, "%s is equal, which does not prove equal bytes", d.Algorithm)
			return
		}
	}
	switch {
	case !s.isDirectory() && id.Algorithm == lineage.DirHash:
		c.member(i, r)
	case id.Algorithm.OfContent() && !s.isDirectory():
		c.doubt(i, "it is identified by %s, which was not computed", id.Algorithm)
	}
}

// member looks a file up in the manifest of a directory.
func (c *comparison) member(i int, r *lineage.LeafReference) {
	for _, m := range c.manifests {
		if m.dirHash != r.Identity {
			continue
		}
		for _, d := range c.s.Digests {
			if paths := m.paths[d]; len(paths) > 0 {
				c.match(Match{Reference: i, Via: "member", Digest: d.String(), Path: strings.Join(paths, ", "), Claimed: r.Known == lineage.Claimed})
				return
			}
		}
		if !c.s.has(lineage.SHA256, sha256.Size) {
			c.doubt(i, "the members of the directory are identified by sha256, which was not computed")
			return
		}
		c.differ++
		return
	}
	c.doubt(i, "it is a directory whose manifest is not in this receipt: the file may be a member")
}

func (c *comparison) match(m Match) {
	m.Subject = c.s.Name
	c.matches = append(c.matches, m)
}

func (c *comparison) doubt(i int, format string, args ...any) {
	c.undecided = append(c.undecided, fmt.Sprintf("references[%d]: ", i)+fmt.Sprintf(format, args...))
}

func (c *comparison) outcome() (Outcome, string) {
	switch {
	case len(c.matches) > 0:
		var found []string
		for _, m := range c.matches {
			found = append(found, m.text())
		}
		return Verified, strings.Join(found, "; ")
	case len(c.undecided) > 0:
		return Unknown, strings.Join(c.undecided, "; ")
	case c.differ > 0:
		return NotVerified, fmt.Sprintf("none of the %d artifacts that could be compared: other bytes, or the receipt of another file", c.differ)
	}
	return Unknown, "the entry has no artifact that it could be compared with"
}

func (m *Match) text() string {
	var s string
	switch m.Via {
	case "member":
		s = fmt.Sprintf("file %s of the directory references[%d]", m.Path, m.Reference)
	default:
		s = fmt.Sprintf("references[%d] by its %s %s", m.Reference, m.Via, m.Digest)
	}
	if m.Claimed {
		s += ", a claim of the principal"
	}
	return s
}
