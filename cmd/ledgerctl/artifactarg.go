package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/provledger/provledger/client"
	"github.com/provledger/provledger/client/artifact"
	"github.com/provledger/provledger/client/lineage"
)

// isPath reports whether an ARTIFACT is written as a path. Only what begins like one is: names have slashes too.
func isPath(s string) bool {
	if filepath.IsAbs(s) || s == "." || s == ".." {
		return true
	}
	for _, start := range []string{"./", "../", "/"} {
		if strings.HasPrefix(s, start) || strings.HasPrefix(s, filepath.FromSlash(start)) {
			return true
		}
	}
	return false
}

// artifactArg is an ARTIFACT from the command line. Files are hashed before the ledger is opened, which may take long.
type artifactArg struct {
	text string
	file *artifact.Artifact // nil if it is no path
}

// hexDigits are a digest, or enough of one, without its algorithm.
var hexDigits = regexp.MustCompile(`^[0-9a-fA-F]{8,}$`)

func (a *app) artifactArg(ctx context.Context, text string) (*artifactArg, error) {
	x := &artifactArg{text: text}
	if isPath(text) {
		var err error
		if x.file, err = a.hash(ctx, text); err != nil {
			return nil, err
		}
	}
	return x, nil
}

// resolve says which artifact is meant. Errors: *client.AmbiguousError lists the candidates, client.ErrNotFound.
func (x *artifactArg) resolve(ctx context.Context, a *app, s *session) (client.Ref, error) {
	if x.file != nil {
		return client.Ref{Digest: x.file.Digest}, nil
	}
	name, alias, ok := strings.Cut(x.text, "@")
	if ok && name != "" && alias != "" && !strings.HasPrefix(alias, "sha256:") {
		return a.byAlias(ctx, s, name, alias)
	}
	ref, err := s.Resolve(ctx, a.log, x.text)
	if errors.Is(err, client.ErrNotFound) {
		if hexDigits.MatchString(x.text) {
			return ref, fmt.Errorf("%w; for a digest write sha256:%s", err, x.text)
		}
		if _, bad := os.Stat(x.text); bad == nil {
			return ref, fmt.Errorf("%w; for the file of that name write ./%s", err, filepath.ToSlash(x.text))
		}
	}
	return ref, err
}

// byAlias returns what was last promoted or deployed to an alias under a name.
func (a *app) byAlias(ctx context.Context, s *session, name, alias string) (ref client.Ref, err error) {
	entries, err := a.find(ctx, s, client.Query{Names: nameForms(name)})
	if err != nil {
		return ref, err
	}
	for i := len(entries) - 1; i >= 0; i-- {
		e := entries[i]
		if e.Leaf.Kind != lineage.KindLifecycle {
			continue
		}
		x, err := e.Identifiers()
		if err != nil {
			return ref, err
		}
		if x.Target.Name != alias {
			continue
		}
		switch lineage.LifecycleVerb(e.Leaf.Action) {
		case lineage.Promoted, lineage.Deployed:
			for j, f := range x.References {
				if !isNamed(f.Name, name) || j >= len(e.Leaf.References) {
					continue
				}
				if d := e.Leaf.References[j].Identity; d.Algorithm != lineage.NameHMAC {
					return client.Ref{Digest: d}, nil
				}
				return client.Ref{Name: f.Name}, nil
			}
		case lineage.RolledBack, lineage.Retired:
			return ref, fmt.Errorf("%s@%s: entry %d says %s, and nothing was promoted to it since; name the version or digest", name, alias, e.Index, lineage.LifecycleVerb(e.Leaf.Action))
		}
	}
	return ref, fmt.Errorf("%s@%s: %w", name, alias, client.ErrNotFound)
}

// maxNameForms bounds the places where a text may be cut into namespace and name.
const maxNameForms = 16

// nameForms returns the names that a text without version may stand for: names and namespaces may have slashes.
func nameForms(text string) []lineage.Name {
	names := []lineage.Name{{Name: text}}
	for i := 1; i < len(text)-1 && len(names) < maxNameForms; i++ {
		if text[i] == '/' {
			names = append(names, lineage.Name{Namespace: text[:i], Name: text[i+1:]})
		}
	}
	return names
}

// isNamed reports whether a text, with or without version, is how people write a name.
func isNamed(n lineage.Name, text string) bool {
	if n.IsZero() {
		return false
	}
	bare := n
	bare.Version = ""
	return fullName(n) == text || fullName(bare) == text
}

// recordedName returns the name under which an artifact was recorded, if it is the one that a text says; with NAME@ALIAS it is NAME.
func (a *app) recordedName(ctx context.Context, s *session, ref client.Ref, text string) (lineage.Name, error) {
	if ref.Digest.IsZero() {
		return ref.Name, nil
	}
	text, _, _ = strings.Cut(text, "@")
	q := query(ref)
	q.SkipBody, q.Members = false, false
	entries, err := a.find(ctx, s, q)
	if err != nil {
		return lineage.Name{}, err
	}
	for i := len(entries) - 1; i >= 0; i-- {
		x, err := entries[i].Identifiers()
		if err != nil {
			return lineage.Name{}, err
		}
		for j, f := range x.References {
			if j < len(entries[i].Leaf.References) && entries[i].Leaf.References[j].Identity == ref.Digest && isNamed(f.Name, text) {
				return f.Name, nil
			}
		}
	}
	return lineage.Name{}, nil
}

// query finds the entries about an artifact, without their bodies: there may be many.
func query(r client.Ref) client.Query {
	if r.Digest.IsZero() {
		return client.Query{Names: []lineage.Name{r.Name}, SkipBody: true}
	}
	return client.Query{Digests: []lineage.Digest{r.Digest}, Members: r.Digest.Algorithm == lineage.SHA256, SkipBody: true}
}
