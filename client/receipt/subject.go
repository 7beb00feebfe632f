package receipt

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"

	"github.com/provledger/provledger/client/lineage"
)

// Subject is a file or directory at hand, by its digests. The more digests, the more references it can be compared with: those by the
// algorithms that [Algorithms] lists decide about all that can be decided.
type Subject struct {
	Digests []lineage.Digest // a directory has one by dirHash, a file has none
	Name    string           // for messages
	Err     error            // why it has no digests, if it could not be read: then nothing can be told about it

	// Manifests are those of directories that the subject may be a file of, where a receipt does not have them. They need no trust: the
	// dirHash that was recorded is computed from the list.
	Manifests []*lineage.Manifest
}

func (s *Subject) isDirectory() bool {
	return slices.ContainsFunc(s.Digests, func(d lineage.Digest) bool { return d.Algorithm == lineage.DirHash })
}

func (s *Subject) has(d lineage.Digest) bool { return slices.Contains(s.Digests, d) }

// differs reports whether s has another digest where d is comparable: by its algorithm and of its size, for those of Git come in two.
func (s *Subject) differs(d lineage.Digest) bool {
	return !s.has(d) && slices.ContainsFunc(s.Digests, func(x lineage.Digest) bool {
		return x.Algorithm == d.Algorithm && len(x.Value) == len(d.Value)
	})
}

// Algorithms returns the algorithms by which a leaf identifies artifacts, by identity or alias, each once. It is empty for what is no leaf.
func Algorithms(leaf []byte) []lineage.Algorithm {
	l, err := lineage.ParseLeaf(leaf)
	if err != nil {
		return nil
	}
	var list []lineage.Algorithm
	add := func(d lineage.Digest) {
		if d.Algorithm != lineage.NameHMAC && !slices.Contains(list, d.Algorithm) {
			list = append(list, d.Algorithm)
		}
	}
	for i := range l.References {
		add(l.References[i].Identity)
		for _, a := range l.References[i].Aliases {
			add(a)
		}
	}
	return list
}

// subjects compares each subject with the references of the entry.
func (v *verification) subjects(subjects []Subject) {
	var manifests []manifest
	if v.Facts != nil && v.body != nil {
		for i, d := range v.body.documents {
			if d.MediaType != lineage.ManifestMediaType {
				continue
			}
			m, err := lineage.ParseManifest(d.Content)
			if err != nil {
				v.NotChecked = append(v.NotChecked, fmt.Sprintf("documents[%d], which calls itself a manifest: %v", i, err))
				continue
			}
			manifests = append(manifests, newManifest(m))
		}
	}
	for i := range subjects {
		s := &subjects[i]
		var matched []int
		switch {
		case s.Err != nil:
			v.add(CheckSubject, Unknown, "%s: %v", s.Name, s.Err)
		case v.Facts == nil:
			v.add(CheckSubject, Unknown, "%s: there is no verified entry to compare it with", s.Name)
		default:
			c := comparison{s: s, manifests: manifests[:len(manifests):len(manifests)]}
			for _, m := range s.Manifests {
				c.manifests = append(c.manifests, newManifest(m))
			}
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

// manifest is a manifest with its paths by digest.
type manifest struct {
	dirHash lineage.Digest
	paths   map[lineage.Digest][]string
}

func newManifest(m *lineage.Manifest) manifest {
	x := manifest{m.DirHash, make(map[lineage.Digest][]string, len(m.Files))}
	for _, f := range m.Files {
		x.paths[f.Digest()] = append(x.paths[f.Digest()], f.Path)
	}
	return x
}

// comparison is that of one subject with all references.
type comparison struct {
	s         *Subject
	manifests []manifest

	matches   []Match
	differ    []string // why references are of other bytes, certainly
	undecided []string // why a reference may or may not be the subject
}

// reference compares the subject with one reference. The identity counts before the aliases, which are claimed to be of the same bytes:
// only where the identity is the hash of a name, which says nothing of bytes, do they stand in for it.
func (c *comparison) reference(i int, r *lineage.LeafReference) {
	s, id := c.s, r.Identity
	switch {
	case len(s.Digests) == 0:
		c.doubt(i, "the subject has no digest")
		return
	case s.has(id) && id.Proves():
		c.match(r, Match{Reference: i, Via: "identity", Digest: id.String(), Claimed: r.Known == lineage.Claimed})
		return
	case s.differs(id):
		c.other(i, "its identity is another %s", id.Algorithm)
		return
	case !s.isDirectory() && id.Algorithm == lineage.DirHash:
		if c.member(i, r) {
			return
		}
	}
	equal, weak, other := c.aliases(r)
	switch {
	case !equal.IsZero() && !other.IsZero():
		c.other(i, "its aliases are claimed to be of the same bytes, and %s differs", other.Algorithm)
	case !equal.IsZero() && c.otherShape(id.Algorithm):
		c.other(i, "its alias %s is equal, its identity by %s is not that of a %s", equal, id.Algorithm, c.shape())
	case !equal.IsZero() && id.Algorithm != lineage.NameHMAC && !s.has(id):
		c.doubt(i, "its alias %s is equal, its identity by %s was not computed and counts first", equal, id.Algorithm)
	case !equal.IsZero():
		c.match(r, Match{Reference: i, Via: "alias", Digest: equal.String(), Claimed: true})
	case s.has(id):
		c.doubt(i, "%s is equal, which does not prove equal bytes", id.Algorithm)
	case id.Algorithm == lineage.NameHMAC && !other.IsZero():
		c.other(i, "it is known by name, its alias by %s is of other bytes", other.Algorithm)
	case id.Algorithm == lineage.DirHash && !s.isDirectory():
		c.notListed(i, r)
	case !weak.IsZero():
		c.doubt(i, "%s is equal, which does not prove equal bytes", weak.Algorithm)
	case c.sameShape(id.Algorithm):
		c.doubt(i, "it is identified by %s, which was not computed", id.Algorithm)
	case id.Algorithm == lineage.NameHMAC:
		for _, a := range r.Aliases {
			if c.sameShape(a.Algorithm) && a.Proves() {
				c.doubt(i, "it is known by name, its alias by %s was not computed", a.Algorithm)
				return
			}
		}
	}
}

// aliases returns the first alias that is equal and proves equal bytes, the first that is equal and does not, and the first that proves
// bytes and differs.
func (c *comparison) aliases(r *lineage.LeafReference) (equal, weak, other lineage.Digest) {
	first := func(to *lineage.Digest, d lineage.Digest) {
		if to.IsZero() {
			*to = d
		}
	}
	for _, a := range r.Aliases {
		switch {
		case c.s.has(a) && a.Proves():
			first(&equal, a)
		case c.s.has(a):
			first(&weak, a)
		case c.s.differs(a) && a.Proves():
			first(&other, a)
		}
	}
	return equal, weak, other
}

func (c *comparison) shape() string {
	if c.s.isDirectory() {
		return "directory"
	}
	return "plain file"
}

// sameShape reports whether an algorithm identifies what the subject is, file or directory; otherShape, whether it identifies the other. A
// commit, a tag and a name identify neither.
func (c *comparison) sameShape(a lineage.Algorithm) bool {
	if c.s.isDirectory() {
		return a.OfDirectory()
	}
	return a.OfContent()
}

func (c *comparison) otherShape(a lineage.Algorithm) bool {
	if c.s.isDirectory() {
		return a.OfContent()
	}
	return a.OfDirectory()
}

// member looks a file up in the manifests of a directory and reports whether it is listed.
func (c *comparison) member(i int, r *lineage.LeafReference) bool {
	for _, m := range c.manifests {
		if m.dirHash != r.Identity {
			continue
		}
		for _, d := range c.s.Digests {
			if paths := m.paths[d]; len(paths) > 0 {
				c.match(r, Match{Reference: i, Via: "member", Digest: d.String(), Path: strings.Join(paths, ", "), Claimed: r.Known == lineage.Claimed})
				return true
			}
		}
	}
	return false
}

// notListed says what it means that no manifest of a directory lists a file.
func (c *comparison) notListed(i int, r *lineage.LeafReference) {
	switch {
	case !slices.ContainsFunc(c.manifests, func(m manifest) bool { return m.dirHash == r.Identity }):
		c.doubt(i, "it is a directory whose manifest is not in this receipt: the file may be a member")
	case !slices.ContainsFunc(c.s.Digests, func(d lineage.Digest) bool { return d.Algorithm == lineage.SHA256 && len(d.Value) == sha256.Size }):
		c.doubt(i, "the members of the directory are identified by sha256, which was not computed")
	default:
		c.other(i, "the file is not in the manifest of the directory")
	}
}

func (c *comparison) match(r *lineage.LeafReference, m Match) {
	m.Subject, m.Changed = c.s.Name, r.Known == lineage.Changed
	c.matches = append(c.matches, m)
}

func (c *comparison) doubt(i int, format string, args ...any) {
	c.undecided = append(c.undecided, fmt.Sprintf("references[%d]: ", i)+fmt.Sprintf(format, args...))
}

func (c *comparison) other(i int, format string, args ...any) {
	c.differ = append(c.differ, fmt.Sprintf("references[%d]: ", i)+fmt.Sprintf(format, args...))
}

// mostReasons bounds how many references a message explains: an event may have a thousand.
const mostReasons = 5

func reasons(list []string) string {
	if n := len(list) - mostReasons; n > 0 {
		return fmt.Sprintf("%s; and %d more", strings.Join(list[:mostReasons], "; "), n)
	}
	return strings.Join(list, "; ")
}

func (c *comparison) outcome() (Outcome, string) {
	switch {
	case len(c.matches) > 0:
		var found []string
		for i := range c.matches {
			found = append(found, c.matches[i].text())
		}
		return Verified, strings.Join(found, "; ")
	case len(c.undecided) > 0:
		return Unknown, reasons(c.undecided)
	case len(c.differ) > 0:
		return NotVerified, fmt.Sprintf("none of the %d artifacts that could be compared: other bytes, or the receipt of another file (%s)", len(c.differ), reasons(c.differ))
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
	if m.Changed {
		s += ", which was other bytes when the run ended"
	}
	return s
}
