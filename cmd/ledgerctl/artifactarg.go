package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
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
		if _, bad := os.Stat(x.text); bad == nil {
			return ref, fmt.Errorf("%w; for the file of that name write ./%s", err, filepath.ToSlash(x.text))
		}
	}
	return ref, err
}

// byAlias returns what was last promoted or deployed to an alias under a name.
func (a *app) byAlias(ctx context.Context, s *session, name, alias string) (ref client.Ref, err error) {
	entries, err := a.find(ctx, s, client.Query{Names: []lineage.Name{{Name: name}}})
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
				if f.Name.Name != name || j >= len(e.Leaf.References) {
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

// query finds the entries about an artifact, without their bodies: there may be many.
func query(r client.Ref) client.Query {
	if r.Digest.IsZero() {
		return client.Query{Names: []lineage.Name{r.Name}, SkipBody: true}
	}
	return client.Query{Digests: []lineage.Digest{r.Digest}, Members: r.Digest.Algorithm == lineage.SHA256, SkipBody: true}
}
