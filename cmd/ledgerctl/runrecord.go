package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"time"

	"github.com/provledger/provledger/client/artifact"
	"github.com/provledger/provledger/client/lineage"
)

const (
	// runMediaType names the document that run puts into the body: a JSON object with the members of runDocument.
	runMediaType = "application/vnd.provledger.run.v1+json"
	runDocName   = "run.json"

	// A body of 1 MiB has room for this and for manifests: a metrics file of maxMetricsFile bytes, a run document of maxRunDocument, of
	// which what the user says (arguments, parameters, environment) is maxSaid, so that the rest is there for what the run brings up.
	maxMetricsFile = 128 << 10
	maxRunDocument = 128 << 10
	maxSaid        = 64 << 10

	// maxListed is how many paths the lists of a run document have: the references say it of every input.
	maxListed = 50
)

// runDocument is what the body says of a run: everything with a name, a host or a person in it.
type runDocument struct {
	Tool      string             `json:"tool"`
	Argv      []string           `json:"argv,omitempty"`
	StartedAt string             `json:"startedAt"`
	EndedAt   string             `json:"endedAt"`
	ExitCode  int                `json:"exitCode"`
	Signal    string             `json:"signal,omitempty"`
	Directory string             `json:"directory,omitempty"`
	Host      string             `json:"host,omitempty"`
	User      string             `json:"user,omitempty"`
	Git       *gitState          `json:"git,omitempty"`
	Env       map[string]string  `json:"env,omitempty"`
	Params    map[string]string  `json:"params,omitempty"`
	Metrics   map[string]float64 `json:"metrics,omitempty"`
	Changed   []changedInput     `json:"changedInputs,omitempty"`
	Unchecked []string           `json:"uncheckedInputs,omitempty"` // not read again, because the run was cut short
	Missing   []string           `json:"missingOutputs,omitempty"`
	Untouched []string           `json:"untouchedOutputs,omitempty"`
	Manifests []manifestLink     `json:"manifests,omitempty"`
}

// list adds to a list of the document, as far as there is room.
func list[T any](l *[]T, x T) {
	if len(*l) < maxListed {
		*l = append(*l, x)
	}
}

// changedInput is an input whose bytes were other when the run ended.
type changedInput struct {
	Path   string `json:"path"`
	Before string `json:"before"`
	After  string `json:"after,omitempty"` // empty if it could not be read again
	Reason string `json:"reason,omitempty"`
}

// manifestLink says which artifact holds the manifest of a directory, if it is too large for a body.
type manifestLink struct {
	DirHash string `json:"dirHash"`
	SHA256  string `json:"sha256"`
	Size    int64  `json:"size"`
}

// runRecord is a run on its way into an event.
type runRecord struct {
	app         *app
	to          target
	redact      *redactor
	event       *lineage.Event
	doc         runDocument
	inputs      []*runInput
	outputs     []*runOutput
	metricsFile string
	metricsWas  *standing
	x           *execution

	allowUntouched bool
	incomplete     bool // the command succeeded, the record lacks something that was asked for

	receiptError error // why the receipt of a recorded event was not written
}

// paths are the files and directories that the run is about.
func (r *runRecord) paths() (list []string) {
	for _, in := range r.inputs {
		if in.spec.path != "" {
			list = append(list, in.spec.path)
		}
	}
	for _, out := range r.outputs {
		if out.spec.path != "" {
			list = append(list, out.spec.path)
		}
	}
	if r.metricsFile != "" {
		list = append(list, r.metricsFile)
	}
	return list
}

type runInput struct {
	spec *spec
	was  *artifact.Artifact // nil for a URI
	ref  lineage.Reference
}

type runOutput struct {
	spec *spec
	was  *standing // before the command; nil if it was not there
	is   *artifact.Artifact
}

// before hashes the inputs and looks at the outputs. An error means that the command must not run.
func (r *runRecord) before(ctx context.Context) error {
	for _, in := range r.inputs {
		if in.spec.uri != "" {
			in.ref = in.spec.remote(lineage.Input)
			r.redact.reference(&in.ref)
			continue
		}
		var err error
		if in.was, err = r.app.hash(ctx, in.spec.path); err != nil {
			hint := ""
			if strings.Contains(in.spec.path, ",") && strings.Contains(in.spec.path, "=") {
				hint = "What may stand behind a comma: kind=, purpose=, name=, version=, namespace=, digest="
			}
			return hinted(fmt.Errorf("--input %w", err), hint)
		}
		if in.ref, err = in.spec.local(lineage.Input, in.was); err != nil {
			return err
		}
		r.redact.reference(&in.ref)
	}
	for _, out := range r.outputs {
		if out.spec.path != "" {
			out.was = look(out.spec.path)
		}
	}
	if r.metricsFile != "" {
		r.metricsWas = look(r.metricsFile)
	}
	r.doc.Tool = "ledgerctl " + version()
	dir, _ := os.Getwd()
	host, _ := os.Hostname()
	r.doc.Directory, r.doc.Host = r.redact.own(dir), r.redact.own(host)
	if u, err := user.Current(); err == nil {
		r.doc.User = r.redact.own(u.Username)
	}
	r.doc.Git = r.redact.git(ctx)
	return nil
}

// local is the reference of something that was hashed here.
func (x *spec) local(role lineage.Role, a *artifact.Artifact) (lineage.Reference, error) {
	f := lineage.Reference{
		Role: role, Kind: x.kind, Purpose: x.purpose, Known: lineage.Computed, Digest: a.Digest, Name: x.name, URI: pathURI(x.path), Size: a.Size,
	}
	switch {
	case x.digest.IsZero():
	case x.digest.Algorithm != a.Digest.Algorithm:
		f.Aliases = []lineage.Digest{x.digest}
	case x.digest != a.Digest:
		return f, &exitError{exitNotVerified, fmt.Errorf("%s is %s, not %s as digest= says", x.path, a.Digest, x.digest)}
	}
	return f, nil
}

// after completes the event with what the command did. It reports what is wrong and goes on: what happened is to be recorded.
func (r *runRecord) after(ctx context.Context, x *execution) {
	r.x = x
	d := &r.doc
	d.StartedAt, d.EndedAt = x.start.UTC().Format(time.RFC3339Nano), x.end.UTC().Format(time.RFC3339Nano)
	d.ExitCode, d.Signal = x.code, x.signal
	r.event.OccurredAt = x.end.UnixMicro()
	switch {
	case x.signal != "":
		r.event.Action = uint8(lineage.RunAbort)
	case x.code != 0:
		r.event.Action = uint8(lineage.RunFail)
	}
	for _, in := range r.inputs {
		r.again(ctx, in)
		r.event.References = append(r.event.References, in.ref)
	}
	for _, out := range r.outputs {
		r.output(ctx, out)
	}
	metrics := r.readMetrics()
	manifests := r.manifests(r.room(metrics))
	raw, err := json.Marshal(d)
	if err != nil {
		panic(err) // strings and finite numbers always encode
	}
	r.event.Documents = append([]lineage.Document{{MediaType: runMediaType, Name: runDocName, Content: raw}}, append(metrics, manifests...)...)
}

// again reads an input after the run. Where the same path is an output the run was to change it, and what it became is recorded as that.
func (r *runRecord) again(ctx context.Context, in *runInput) {
	if in.was == nil {
		return
	}
	for _, out := range r.outputs {
		if out.spec.path != "" && filepath.Clean(out.spec.path) == filepath.Clean(in.spec.path) {
			return
		}
	}
	shown := r.redact.own(in.spec.path)
	c := changedInput{Path: shown, Before: in.was.Digest.String()}
	now, err := r.app.hash(ctx, in.spec.path)
	switch {
	case errors.Is(err, context.Canceled):
		list(&r.doc.Unchecked, shown)
		r.incomplete = true
		return
	case err != nil:
		c.Reason = r.redact.own(err.Error())
	case now.Digest == in.was.Digest:
		return
	default:
		c.After = now.Digest.String()
	}
	in.ref.Known = lineage.Changed
	list(&r.doc.Changed, c)
	if err != nil {
		r.app.note("warning: input %s could not be read again: %v", in.spec.path, err)
	} else {
		r.app.note("warning: input %s changed while the command ran: it was %s, it is %s", in.spec.path, c.Before, c.After)
	}
}

// output hashes an output. Of a failed command only what it wrote counts: a file of an earlier run is not its work.
func (r *runRecord) output(ctx context.Context, out *runOutput) {
	s := out.spec
	if s.uri != "" {
		if r.x.code == 0 {
			f := s.remote(lineage.Output)
			r.redact.reference(&f)
			r.event.References = append(r.event.References, f)
		}
		return
	}
	_, err := os.Stat(s.path)
	untouched := err == nil && out.was.untouched(s.path)
	if untouched {
		list(&r.doc.Untouched, r.redact.own(s.path))
	}
	if r.x.code != 0 && (err != nil || untouched) {
		return
	}
	if untouched && !r.allowUntouched {
		r.lacks("output %s was there before and the command did not write it: it is NOT recorded as an output (--allow-untouched records it)", s.path)
		return
	}
	if err == nil {
		out.is, err = r.app.hash(ctx, s.path)
	}
	var f lineage.Reference
	if err == nil {
		f, err = s.local(lineage.Output, out.is)
	}
	if err != nil {
		r.lacks("output %v", err)
		list(&r.doc.Missing, r.redact.own(s.path))
		return
	}
	if untouched {
		r.app.note("warning: output %s was there before and the command did not write it", s.path)
	}
	r.redact.reference(&f)
	r.event.References = append(r.event.References, f)
}

// lacks reports that the record misses something that was asked for.
func (r *runRecord) lacks(format string, args ...any) {
	r.app.note("warning: "+format, args...)
	r.incomplete = true
}

// readMetrics keeps the metrics file byte for byte, and lists its numbers.
func (r *runRecord) readMetrics() []lineage.Document {
	if r.metricsFile == "" {
		return nil
	}
	if r.metricsWas.untouched(r.metricsFile) && !r.allowUntouched {
		if r.x.code == 0 {
			r.lacks("metrics: %s was there before and the command did not write it: it is left out (--allow-untouched keeps it)", r.metricsFile)
		}
		return nil
	}
	raw, err := os.ReadFile(r.metricsFile)
	if errors.Is(err, fs.ErrNotExist) && r.x.code != 0 {
		return nil
	}
	if err == nil && len(raw) > maxMetricsFile {
		err = fmt.Errorf("%s has %d bytes, at most %d are kept; make it an --output", r.metricsFile, len(raw), maxMetricsFile)
	}
	var members map[string]any
	if err == nil {
		if err = json.Unmarshal(raw, &members); err != nil {
			err = fmt.Errorf("%s is not a JSON object: %w", r.metricsFile, err)
		}
	}
	if err != nil {
		r.lacks("metrics: %v", err)
		return nil
	}
	for name, v := range members {
		if n, ok := v.(float64); ok {
			if _, ok := r.doc.Metrics[name]; !ok { // --metric goes first
				r.setMetric(name, n)
			}
		}
	}
	if r.redacts(raw) {
		r.app.note("warning: --redact matches in %s: its numbers are recorded, the file is not", r.metricsFile)
		return nil
	}
	return []lineage.Document{{MediaType: "application/json", Name: r.redact.own(filepath.Base(r.metricsFile)), Content: bytes.Clone(raw)}}
}

// setMetric keeps a metric; what JSON cannot write as a number is left to the metrics file.
func (r *runRecord) setMetric(name string, n float64) {
	if math.IsNaN(n) || math.IsInf(n, 0) {
		r.app.note("warning: metric %s is %v and is left out: JSON has no such number", name, n)
		return
	}
	if r.doc.Metrics == nil {
		r.doc.Metrics = map[string]float64{}
	}
	r.doc.Metrics[r.redact.own(name)] = n
}

// redacts reports whether --redact names something in a document, which is kept byte for byte or not at all.
func (r *runRecord) redacts(raw []byte) bool { return r.redact.own(string(raw)) != string(raw) }

// room is how many bytes the body has left for manifests.
func (r *runRecord) room(metrics []lineage.Document) int {
	const framing = 64 // of a reference or document, generously
	left := lineage.MaxBodyBytes - maxRunDocument - framing*(8+len(r.event.References))
	for _, d := range metrics {
		left -= len(d.Content)
	}
	for i := range r.event.References {
		f := &r.event.References[i]
		left -= len(f.URI) + len(f.MediaType) + len(f.Name.Namespace) + len(f.Name.Name) + len(f.Name.Version)
	}
	return min(left, lineage.MaxInlineManifest)
}

// manifests returns the manifests of directories as documents, as far as the body has room. A larger one becomes an artifact: it is kept
// in the state directory, and the event refers to it by digest.
func (r *runRecord) manifests(room int) (docs []lineage.Document) {
	seen := map[lineage.Digest]bool{}
	keep := func(role lineage.Role, x *artifact.Artifact) {
		if x == nil || x.Manifest == nil || seen[x.Digest] {
			return
		}
		seen[x.Digest] = true
		raw := x.Manifest.Encode()
		if r.redacts(raw) {
			r.app.note("warning: --redact matches in names of files in %s: its digest is recorded, its manifest is not, so no single file of it will verify", x.Path)
			return
		}
		const framing = 4096 // path and media type
		if len(raw)+framing <= room && len(docs) < lineage.MaxDocuments-2 {
			room -= len(raw) + framing
			docs = append(docs, lineage.Document{MediaType: lineage.ManifestMediaType, Name: r.redact.own(x.Path), Content: raw})
			return
		}
		f, path, err := r.app.keepManifest(role, raw)
		if err != nil {
			r.lacks("the manifest of %s is too large for the record and could not be kept: %v", x.Path, err)
			return
		}
		r.app.note("the manifest of %s (%d files) is too large for the record; it refers to %s", x.Path, len(x.Manifest.Files), path)
		list(&r.doc.Manifests, manifestLink{hex.EncodeToString([]byte(x.Digest.Value)), hex.EncodeToString([]byte(f.Digest.Value)), f.Size})
		if len(r.event.References) < lineage.MaxReferences {
			r.event.References = append(r.event.References, f)
		}
	}
	for _, in := range r.inputs {
		keep(lineage.Input, in.was)
	}
	for _, out := range r.outputs {
		keep(lineage.Output, out.is)
	}
	return docs
}

func (r *runRecord) changed() []string {
	paths := []string{}
	for _, c := range r.doc.Changed {
		paths = append(paths, c.Path)
	}
	return paths
}
