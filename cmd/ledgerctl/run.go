package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/provledger/provledger/client"
	"github.com/provledger/provledger/client/lineage"
)

// runVariable carries the id of the enclosing run to what the command starts, so that a nested `ledgerctl run` names its parent.
const runVariable = "LEDGER_RUN_ID"

// runFlags are the flags of the verb run.
type runFlags struct {
	job, namespace     string
	inputs, outputs    []string
	params, metrics    []string
	metricsFile        string
	runID, parentRunID string
	env                []string
	redact             []string
	noArgv             bool
	untouched          bool
	initiator          string
	receipt            string
	force              bool
}

func (a *app) runCommand() *cobra.Command {
	var f runFlags
	c := &cobra.Command{
		Use:   "run --job NAME [--input PATH|URI]... [--output PATH]... [flags] -- CMD ARG...",
		Short: "Run a command and record what it read and wrote",
		Long: `run executes CMD and records one event about it: digests of the inputs (taken before) and outputs (taken after), arguments, exit code,
times, git commit, host and user. Inputs are read again afterwards; one that changed meanwhile is recorded as changed, and reported.

--input and --output take PATH|URI[,purpose=..][,kind=..][,name=..][,version=..][,namespace=..][,digest=..]. A path is hashed; with
digest= it must have that digest. An output that was there before and that CMD did not write (same file, size and time; for a directory: of all files
in it) is not CMD's work and not recorded as such, unless --allow-untouched says so. A URI (SCHEME://..) is never fetched: with digest= the digest is recorded as your claim, else it is
recorded by name only. An ETag is not a digest.

The exit code is CMD's (128+n if signal n ended it, 126/127 if it could not be started, in which case nothing is recorded). If CMD succeeded but
something else did not, it is 75 when the event could not be delivered and waits in the spool (` + "`ledgerctl record --spool`" + `), 1 when
the ledger's answer does not verify, and 2 when an output is missing, was not written by CMD, or the receipt could not be written. Signals go to
CMD. What would keep the record from being made is found before CMD runs, as far as it can be: then nothing runs.

The ledger is open only while the event is being recorded, so runs may run side by side and inside each other: CMD finds its run id in
LEDGER_RUN_ID, and the ledger in LEDGER.

Arguments that look like secrets, user information in URLs and the credentials of presigned URLs are left out of the record; --redact
names more, in names and paths too; --no-argv leaves out all. Of the environment, only what --env names is recorded. The summary goes to the standard error
stream (-o json: one line of JSON), for the standard output is CMD's.`,
		Example: `  ledgerctl run --job train --input data/train.csv,purpose=training-data --output model.json,kind=model \
      --param lr=0.1 --metrics-file metrics.json -- python train.py
  ledgerctl run --job fetch --input s3://bucket/raw.csv,version=3sL4k --output raw.csv -- aws s3 cp s3://bucket/raw.csv raw.csv`,
		Args: atLeast(1, "a command after --"),
		RunE: func(c *cobra.Command, args []string) error { return a.wrapped(c.Context(), &f, "", args) },
	}
	// What comes after CMD is CMD's, even if -- was forgotten.
	c.Flags().SetInterspersed(false)
	l := c.Flags()
	l.StringVar(&f.job, "job", "", "`NAME` of the recurring activity (required)")
	l.StringVar(&f.namespace, "namespace", "", "`NAMESPACE` of the job")
	l.StringArrayVar(&f.inputs, "input", nil, "what the command reads: `PATH|URI[,key=value]...`; repeatable")
	l.StringArrayVar(&f.outputs, "output", nil, "what the command writes: `PATH|URI[,key=value]...`; repeatable")
	l.StringArrayVar(&f.params, "param", nil, "a parameter, `NAME=VALUE`; repeatable")
	l.StringArrayVar(&f.metrics, "metric", nil, "a metric, `NAME=NUMBER`; repeatable")
	l.StringVar(&f.metricsFile, "metrics-file", "", "JSON `FILE` with metrics that the command writes; kept as it is")
	l.StringVar(&f.runID, "run-id", "", "`UUID` of the run (default: a new one)")
	l.StringVar(&f.parentRunID, "parent-run", os.Getenv(runVariable), "`UUID` of the run that this one is part of; env "+runVariable)
	l.StringArrayVar(&f.env, "env", nil, "`NAME` of an environment variable to record; repeatable")
	l.StringArrayVar(&f.redact, "redact", nil, "regular expression `PATTERN` of more to leave out of the record: arguments, values, names, paths and URIs; repeatable")
	l.BoolVar(&f.untouched, "allow-untouched", false, "take an output or metrics file that CMD did not write for its work")
	l.BoolVar(&f.noArgv, "no-argv", false, "do not record the command line")
	l.StringVar(&f.initiator, "initiator", "", "opaque `ID` on whose behalf this runs (a claim)")
	l.StringVar(&f.receipt, "receipt", "", "also write the receipt to this `FILE`")
	l.BoolVar(&f.force, "force", false, "replace the file of --receipt if it exists")
	return c
}

// wrapped runs a command and records it. executable overrides where the command is found; quickstart uses it for its own stages.
func (a *app) wrapped(ctx context.Context, f *runFlags, executable string, argv []string) error {
	r, err := a.newRun(f, argv)
	if err != nil {
		return err
	}
	if executable == "" {
		if executable, err = exec.LookPath(argv[0]); err != nil {
			return &exitError{startCode(err), fmt.Errorf("nothing was run or recorded: %w", err)}
		}
	}
	err = a.canRecord(ctx, r.to)
	if err == nil && f.receipt != "" {
		err = mayWrite(f.receipt, f.force, r.paths()...)
	}
	if err == nil {
		err = r.before(ctx)
	}
	if err != nil {
		return fmt.Errorf("nothing was run or recorded: %w", err)
	}
	signals, release := catchSignals()
	defer release()
	x, err := a.execute(executable, argv, r.environment(), signals)
	if err != nil {
		return &exitError{startCode(err), fmt.Errorf("nothing was recorded: %w", err)}
	}
	hashing, done := a.cutShort(ctx, signals)
	r.after(hashing, x)
	done()
	recorded, err := a.deliver(ctx, r.to, a.log, r.event, release)
	if err != nil {
		a.sayUndelivered(err)
		return r.exit(err)
	}
	if f.receipt != "" {
		if r.receiptError = writeNew(f.receipt, recorded.Receipt.Encode(), f.force); r.receiptError != nil {
			r.incomplete = true
		}
	}
	r.say(recorded)
	return r.exit(nil)
}

// exit decides the exit code: the command's own goes before ours.
func (r *runRecord) exit(delivery error) error {
	switch {
	case r.x.code != 0:
		return &exitError{code: r.x.code}
	case delivery != nil:
		return &exitError{code: deliveryCode(delivery)}
	case r.incomplete:
		return &exitError{code: exitUnknown}
	}
	return nil
}

// newRun reads the flags. Everything that can be wrong is found here, before hours of work.
func (a *app) newRun(f *runFlags, argv []string) (*runRecord, error) {
	if f.job == "" {
		return nil, usage("run needs --job NAME: what the recurring activity is called")
	}
	to, err := parseTarget(a.ledger)
	if err != nil {
		return nil, err
	}
	r := &runRecord{app: a, to: to, metricsFile: f.metricsFile, allowUntouched: f.untouched}
	if r.redact, err = newRedactor(f.redact); err != nil {
		return nil, err
	}
	r.event = &lineage.Event{
		ID: lineage.NewID(), Kind: lineage.KindRun, Action: uint8(lineage.RunComplete), RunID: lineage.NewID(),
		Job: lineage.Name{Namespace: f.namespace, Name: f.job}, Initiator: f.initiator,
	}
	r.redact.name(&r.event.Job)
	for _, x := range []struct {
		flag, text string
		id         *lineage.ID
	}{{"--run-id", f.runID, &r.event.RunID}, {"--parent-run", f.parentRunID, &r.event.ParentRunID}} {
		if x.text != "" {
			if *x.id, err = lineage.ParseID(x.text); err != nil {
				return nil, usage("%s: %v", x.flag, err)
			}
		}
	}
	if r.event.RunID == r.event.ParentRunID {
		return nil, usage("run %s cannot be its own parent", r.event.RunID)
	}
	for _, s := range f.inputs {
		x, err := parseSpec("--input", s)
		if err != nil {
			return nil, err
		}
		r.inputs = append(r.inputs, &runInput{spec: x})
	}
	for _, s := range f.outputs {
		x, err := parseSpec("--output", s)
		if err != nil {
			return nil, err
		}
		r.outputs = append(r.outputs, &runOutput{spec: x})
	}
	if err := r.describe(f, argv); err != nil {
		return nil, err
	}
	return r, r.rehearse()
}

// describe fills in what the body says of the run before it begins.
func (r *runRecord) describe(f *runFlags, argv []string) (err error) {
	d := &r.doc
	params, err := pairs("--param", f.params)
	if err != nil {
		return err
	}
	for name, v := range params {
		if both := r.redact.text(name + "=" + v); both != name+"="+v {
			v = redacted
		}
		if d.Params == nil {
			d.Params = map[string]string{}
		}
		d.Params[r.redact.own(name)] = v
	}
	metrics, err := pairs("--metric", f.metrics)
	if err != nil {
		return err
	}
	for name, v := range metrics {
		n, err := strconv.ParseFloat(v, 64)
		if err != nil {
			return usage("--metric %s=%s: not a number", name, v)
		}
		r.setMetric(name, n)
	}
	for _, name := range f.env {
		v, ok := os.LookupEnv(name)
		if !ok {
			continue
		}
		if both := r.redact.text(name + "=" + v); both != name+"="+v {
			v = redacted
		}
		if d.Env == nil {
			d.Env = map[string]string{}
		}
		d.Env[name] = v
	}
	if f.noArgv {
		return nil
	}
	var hidden int
	if d.Argv, hidden = r.redact.argv(argv); hidden > 0 {
		r.app.note("%s left out of the record because they may hold secrets", count(hidden, "argument"))
	}
	return nil
}

func pairs(flag string, list []string) (map[string]string, error) {
	var m map[string]string
	for _, s := range list {
		name, v, ok := strings.Cut(s, "=")
		if !ok || name == "" {
			return nil, usage("%s %q is not NAME=VALUE", flag, s)
		}
		if _, ok := m[name]; ok {
			return nil, usage("%s %s is given twice", flag, name)
		}
		if m == nil {
			m = map[string]string{}
		}
		m[name] = v
	}
	return m, nil
}

// rehearse validates the event as far as it is known, with stand-ins for the digests to come.
func (r *runRecord) rehearse() error {
	e := *r.event
	for _, in := range r.inputs {
		e.References = append(e.References, in.spec.rehearsal(lineage.Input))
	}
	for _, out := range r.outputs {
		e.References = append(e.References, out.spec.rehearsal(lineage.Output))
	}
	raw, err := json.Marshal(r.doc)
	if err != nil {
		return err
	}
	if len(raw) > maxSaid {
		return usage("command line, parameters, metrics and environment have %d bytes, at most %d are recorded; leave the command line out with --no-argv", len(raw), maxSaid)
	}
	e.Documents = []lineage.Document{{Content: make([]byte, maxRunDocument+maxMetricsFile)}}
	if err := fits(&e); err != nil {
		return usage("%v", err)
	}
	return nil
}

// fits reports why the ledger would refuse an event; nil if it would not.
func fits(e *lineage.Event) error {
	c := lineage.Composer{HashName: func(lineage.Name) lineage.Hash { return lineage.Hash{} }, NewKey: func() lineage.Key { return lineage.Key{} }}
	_, err := c.Prepare(e)
	return err
}

func (x *spec) rehearsal(role lineage.Role) lineage.Reference {
	if x.uri != "" {
		return x.remote(role)
	}
	f := lineage.Reference{Role: role, Kind: x.kind, Purpose: x.purpose, Name: x.name, Known: lineage.Computed, URI: pathURI(x.path)}
	f.Digest = lineage.Digest{Algorithm: lineage.SHA256, Value: strings.Repeat("\x00", 32)}
	return f
}

// environment is that of the command: it says which run it is in and where nested runs record, wherever they change directory to.
func (r *runRecord) environment() []string {
	set := map[string]string{runVariable: r.event.RunID.String(), "LEDGER": r.to.String(), "LEDGER_LOG": r.app.log}
	for name, path := range map[string]string{stateVariable: r.app.stateDir, "LEDGER_TRUST": r.app.trust, "LEDGER_TLS_CA": r.app.tlsCA} {
		if path == "" {
			continue
		}
		if full, err := filepath.Abs(path); err == nil && path != noMemory && path != systemRoots {
			path = full
		}
		set[name] = path
	}
	env := slices.DeleteFunc(os.Environ(), func(s string) bool {
		name, _, _ := strings.Cut(s, "=")
		_, ok := set[name]
		return ok
	})
	for name, v := range set {
		env = append(env, name+"="+v)
	}
	return env
}

// say tells what was recorded.
func (r *runRecord) say(x *client.Recorded) {
	in, out := 0, 0
	for i := range r.event.References {
		switch f := &r.event.References[i]; {
		case f.MediaType == lineage.ManifestMediaType: // ours, not the command's
		case f.Role == lineage.Input:
			in++
		default:
			out++
		}
	}
	if r.app.json() {
		r.app.noteJSON(map[string]any{
			"runId": r.event.RunID.String(), "eventId": r.event.ID.String(), "log": r.app.log, "index": x.Index, "treeSize": x.TreeSize,
			"state": lineage.RunState(r.event.Action).String(), "exitCode": r.x.code, "signal": r.x.signal, "inputs": in, "outputs": out,
			"changedInputs": r.changed(), "missingOutputs": orEmpty(r.doc.Missing), "untouchedOutputs": orEmpty(r.doc.Untouched), "receiptError": errorText(r.receiptError),
		})
		return
	}
	r.app.note("recorded: %s %d, job %s, run %s, %s, %s, %s", r.app.log, x.Index, r.event.Job.Name, r.event.RunID,
		lineage.RunState(r.event.Action), count(in, "input"), count(out, "output"))
	r.app.sayNoReceipt(x.Index, r.receiptError)
}
