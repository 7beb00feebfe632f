package main

import (
	"net/url"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/provledger/provledger/client/lineage"
)

// spec is what --input and --output say: PATH|URI[,key=value...].
type spec struct {
	path    string // set for a file or directory
	uri     string // set for anything else; never fetched
	kind    lineage.ArtifactKind
	purpose lineage.Purpose
	name    lineage.Name
	digest  lineage.Digest
}

var (
	uriForm = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9+.-]+://`) // two letters at least: C:// is a drive
	keyForm = regexp.MustCompile(`^(kind|purpose|namespace|name|version|digest)=(.*)$`)
)

// parseSpec reads the value of --input or --output. Only commas before a known key=value separate, so that paths may have commas.
func parseSpec(flag, s string) (*spec, error) {
	x := &spec{}
	what := s
	for {
		i := strings.LastIndexByte(what, ',')
		if i < 0 {
			break
		}
		m := keyForm.FindStringSubmatch(what[i+1:])
		if m == nil {
			break
		}
		var err error
		switch v := m[2]; m[1] {
		case "kind":
			x.kind, err = lineage.ParseArtifactKind(v)
		case "purpose":
			x.purpose, err = lineage.ParsePurpose(v)
		case "namespace":
			x.name.Namespace = v
		case "name":
			x.name.Name = v
		case "version":
			x.name.Version = v
		case "digest":
			x.digest, err = lineage.ParseDigest(v)
			if err == nil && (x.digest.Algorithm == lineage.MD5 || x.digest.Algorithm == lineage.SHA1 || x.digest.Algorithm == lineage.OMSRoot) {
				return nil, usage("%s %s: %s does not identify bytes (and an ETag is never a digest); give a sha256, or no digest", flag, s, x.digest.Algorithm)
			}
		}
		if err != nil {
			return nil, usage("%s %s: %v", flag, s, err)
		}
		what = what[:i]
	}
	switch {
	case what == "":
		return nil, usage("%s %q names no path and no URI", flag, s)
	case uriForm.MatchString(what):
		x.uri = what
	default:
		x.path = what
	}
	if x.path != "" && x.name.Name == "" && x.name != (lineage.Name{}) {
		return nil, usage("%s %s: a namespace or version needs a name", flag, s)
	}
	if x.kind == 0 {
		x.kind = kindOf(x.purpose)
	}
	return x, nil
}

// kindOf is what a thing is that is used for a purpose, where that leaves no doubt.
func kindOf(p lineage.Purpose) lineage.ArtifactKind {
	switch p {
	case lineage.TrainingData, lineage.ValidationData, lineage.TestData, lineage.Labels, lineage.RawData, lineage.RetrievalCorpus:
		return lineage.Dataset
	case lineage.BaseModel, lineage.Adapter:
		return lineage.Model
	case lineage.SourceCode:
		return lineage.Code
	case lineage.Report:
		return lineage.DocumentKind
	}
	return 0
}

// remote returns the reference of something behind a URI: with the digest that the user claims, else by name.
func (x *spec) remote(role lineage.Role) lineage.Reference {
	clean := redactURL(x.uri)
	f := lineage.Reference{Role: role, Kind: x.kind, Purpose: x.purpose, Digest: x.digest, Name: x.name, URI: clean, Known: lineage.Claimed}
	if x.digest.IsZero() {
		f.Known = lineage.NameOnly
	}
	if f.Name.Name == "" && (f.Digest.IsZero() || f.Name != lineage.Name{}) {
		// As OpenLineage names data sets: the store is the namespace, the place in it the name.
		scheme, rest, _ := strings.Cut(clean, "://")
		authority, path, _ := strings.Cut(rest, "/")
		if f.Name.Name = path; path == "" {
			f.Name.Name = "/"
		}
		if f.Name.Namespace == "" {
			f.Name.Namespace = scheme + "://" + authority
		}
	}
	return f
}

// pathURI is a path as the body keeps it: a relative reference, or a file URI if it was given in full.
func pathURI(path string) string {
	p := filepath.ToSlash(path)
	u := url.URL{Path: p}
	if filepath.IsAbs(path) {
		u.Scheme = "file"
		if !strings.HasPrefix(p, "/") {
			u.Path = "/" + p // C:/x
		}
	}
	return u.String()
}
