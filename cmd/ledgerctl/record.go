package main

import (
	"context"
	"errors"
	"fmt"
	"mime"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/provledger/provledger/client"
	"github.com/provledger/provledger/client/lineage"
)

// recordFlags are the flags of the verb record.
type recordFlags struct {
	file  string
	spool bool
	list  bool
	drop  string

	lifecycle, attest, access string

	kind, purpose            string
	namespace, name, version string
	target                   string
	documents                []string
	initiator                string
	runID                    string
	entries                  []uint
	policy                   string
	expires, occurred        string
	eventID                  string
	receipt                  string
	force                    bool
}

func (a *app) recordCommand() *cobra.Command {
	var f recordFlags
	c := &cobra.Command{
		Use:   "record -f FILE|- | --spool | (--lifecycle VERB | --attest TYPE | --access VERB) ARTIFACT...",
		Short: "Record events: from a file, from the spool, or about artifacts",
		Long: `record -f reads one event as JSON, or many as JSON Lines (- is the standard input). Many are recorded in batches of at most 1,000, each all or
nothing; run it again after an interruption: an event id that is recorded already is not recorded twice.

record --spool sends what earlier runs could not deliver, each event under its own id to the ledger that it was meant for. A ledger that fails is
left alone until the next time; an event that its ledger refuses stays. --list shows what waits, --drop ID removes an event for good.

record --lifecycle, --attest and --access record one event about the artifacts named; files are hashed. Verbs of a lifecycle: registered,
approved, rejected, promoted, deployed, rolled-back, flagged, cleared, retired. Of an access: read, downloaded, exported, denied. --attest takes
the predicate type, a URI; --document adds the statement or the report.`,
		Example: `  ledgerctl record --lifecycle registered ./model.json --kind model --name fraud --version 3
  ledgerctl record --lifecycle promoted ./model.json --name fraud --target production
  ledgerctl record --attest https://cyclonedx.org/bom --document sbom.cdx.json ./model.json
  ledgerctl record --access downloaded fraud:3 --initiator user:4711
  ledgerctl record -f events.jsonl`,
		RunE: func(c *cobra.Command, args []string) error {
			ways := 0
			for _, set := range []bool{f.file != "", f.spool, f.lifecycle != "", f.attest != "", f.access != ""} {
				if set {
					ways++
				}
			}
			switch {
			case (f.list || f.drop != "") && !f.spool || f.list && f.drop != "":
				return usage("--list and --drop ID say what to do with --spool instead of sending; see `%s --help`", c.CommandPath())
			case ways != 1:
				return usage("record takes one of -f, --spool, --lifecycle, --attest and --access; see `%s --help`", c.CommandPath())
			case f.file != "" || f.spool:
				if len(args) > 0 {
					return usage("record %s takes no ARTIFACT", map[bool]string{true: "--spool", false: "-f"}[f.spool])
				}
				switch {
				case f.drop != "":
					return a.dropSpooled(f.drop)
				case f.list:
					return a.listSpool()
				case f.spool:
					return a.sendSpool(c.Context())
				}
				return a.recordFile(c.Context(), f.file)
			case len(args) == 0:
				return usage("record needs an ARTIFACT that the event is about")
			}
			return a.recordAbout(c.Context(), &f, args)
		},
	}
	l := c.Flags()
	l.StringVarP(&f.file, "file", "f", "", "`FILE` with an event as JSON, or events as JSON Lines; - is the standard input")
	l.BoolVar(&f.spool, "spool", false, "send what is in the spool")
	l.BoolVar(&f.list, "list", false, "with --spool: list what is in it, and send nothing")
	l.StringVar(&f.drop, "drop", "", "with --spool: remove the event with this `ID` unsent")
	l.StringVar(&f.lifecycle, "lifecycle", "", "record a lifecycle `VERB`")
	l.StringVar(&f.attest, "attest", "", "record an attestation with this predicate `TYPE` (a URI)")
	l.StringVar(&f.access, "access", "", "record an access `VERB`")
	l.StringVar(&f.kind, "kind", "", "`KIND` of the artifacts: dataset, model, code, container, document, other")
	l.StringVar(&f.purpose, "purpose", "", "`PURPOSE` of the artifacts: training-data, base-model, ..")
	l.StringVar(&f.namespace, "namespace", "", "`NAMESPACE` of the name")
	l.StringVar(&f.name, "name", "", "`NAME` under which the artifact is to be found (one ARTIFACT only)")
	l.StringVar(&f.version, "version", "", "`VERSION` of the name")
	l.StringVar(&f.target, "target", "", "environment, endpoint or alias of a lifecycle verb (`NAME`)")
	l.StringArrayVar(&f.documents, "document", nil, "`FILE[,type=MEDIATYPE]` to keep in the body, byte for byte; repeatable")
	l.StringVar(&f.initiator, "initiator", "", "opaque `ID` on whose behalf this is said (a claim)")
	l.StringVar(&f.runID, "run-id", "", "`UUID` of the run that this belongs to")
	l.UintSliceVar(&f.entries, "entry", nil, "`INDEX` of an entry that this relies on; repeatable")
	l.StringVar(&f.policy, "policy", "", "`DIGEST` of the policy that was applied")
	l.StringVar(&f.expires, "expires", "", "`TIME` until which the statement holds")
	l.StringVar(&f.occurred, "occurred-at", "", "`TIME` at which it happened")
	l.StringVar(&f.eventID, "event-id", "", "`UUID` of the event (default: a new one); the same id is recorded once")
	l.StringVar(&f.receipt, "receipt", "", "also write the receipt to this `FILE`")
	l.BoolVar(&f.force, "force", false, "replace the file of --receipt if it exists")
	return c
}

// recordAbout records one event that flags describe.
func (a *app) recordAbout(ctx context.Context, f *recordFlags, artifacts []string) error {
	to, err := parseTarget(a.ledger)
	if err != nil {
		return err
	}
	e, err := f.event()
	if err != nil {
		return err
	}
	for _, text := range artifacts {
		r, err := a.subject(ctx, f, text)
		if err != nil {
			return err
		}
		e.References = append(e.References, r)
	}
	if (f.name != "" || f.version != "") && len(artifacts) > 1 {
		return usage("--name names one ARTIFACT, not %d", len(artifacts))
	}
	if err := fits(e); err != nil {
		return usage("%v", err)
	}
	if f.receipt != "" {
		if err := mayWrite(f.receipt, f.force, slices.DeleteFunc(slices.Clone(artifacts), func(s string) bool { return !isPath(s) })...); err != nil {
			return fmt.Errorf("nothing was recorded: %w", err)
		}
	}
	r, err := a.deliver(ctx, to, a.log, e, func() {})
	if err != nil {
		a.sayUndelivered(err)
		return &exitError{code: deliveryCode(err)}
	}
	err = a.printRecorded(e, r)
	if f.receipt != "" {
		if bad := writeNew(f.receipt, r.Receipt.Encode(), f.force); bad != nil {
			a.sayNoReceipt(r.Index, bad)
			err = errors.Join(err, &exitError{code: exitUnknown})
		}
	}
	return err
}

// event fills in all but the references.
func (f *recordFlags) event() (*lineage.Event, error) {
	e := &lineage.Event{ID: lineage.NewID(), Initiator: f.initiator, PredicateType: f.attest}
	var err error
	switch {
	case f.lifecycle != "":
		var v lineage.LifecycleVerb
		v, err = lineage.ParseLifecycleVerb(f.lifecycle)
		e.Kind, e.Action = lineage.KindLifecycle, uint8(v)
	case f.access != "":
		var v lineage.AccessVerb
		v, err = lineage.ParseAccessVerb(f.access)
		e.Kind, e.Action = lineage.KindAccess, uint8(v)
	default:
		e.Kind = lineage.KindAttestation
	}
	if err != nil {
		return nil, usage("%v", err)
	}
	switch v := lineage.LifecycleVerb(e.Action); {
	case f.attest != "":
		if u, err := url.Parse(f.attest); err != nil || !u.IsAbs() {
			return nil, usage("--attest %q: a predicate type is a URI, such as https://cyclonedx.org/bom", f.attest)
		}
	case f.lifecycle != "" && f.target == "" && (v == lineage.Promoted || v == lineage.Deployed):
		return nil, usage("--lifecycle %s needs --target: the environment, endpoint or alias", v)
	}
	if f.target != "" {
		e.Target = lineage.Name{Name: f.target}
	}
	for _, x := range []struct {
		flag, text string
		id         *lineage.ID
	}{{"--event-id", f.eventID, &e.ID}, {"--run-id", f.runID, &e.RunID}} {
		if x.text != "" {
			if *x.id, err = lineage.ParseID(x.text); err != nil {
				return nil, usage("%s: %v", x.flag, err)
			}
		}
	}
	if f.policy != "" {
		if e.Policy, err = lineage.ParseDigest(f.policy); err != nil {
			return nil, usage("--policy: %v", err)
		}
	}
	for _, x := range []struct {
		text string
		us   *int64
	}{{f.expires, &e.ExpiresAt}, {f.occurred, &e.OccurredAt}} {
		if x.text != "" {
			if *x.us, err = parseTime(x.text); err != nil {
				return nil, err
			}
		}
	}
	for _, i := range f.entries {
		e.Entries = append(e.Entries, uint64(i))
	}
	for _, s := range f.documents {
		d, err := readDocument(s)
		if err != nil {
			return nil, err
		}
		e.Documents = append(e.Documents, d)
	}
	return e, nil
}

// readDocument reads FILE[,type=MEDIATYPE].
func readDocument(s string) (lineage.Document, error) {
	path, mediaType, _ := strings.Cut(s, ",type=")
	info, err := os.Stat(path)
	if err != nil {
		return lineage.Document{}, fmt.Errorf("--document: %w", err)
	}
	if info.Size() > lineage.MaxBodyBytes {
		return lineage.Document{}, fmt.Errorf("--document %s: %d bytes, a body has at most %d; record it as an artifact of its own (by digest)", path, info.Size(), lineage.MaxBodyBytes)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return lineage.Document{}, fmt.Errorf("--document: %w", err)
	}
	if mediaType == "" {
		mediaType, _, _ = strings.Cut(mime.TypeByExtension(filepath.Ext(path)), ";")
	}
	return lineage.Document{MediaType: mediaType, Name: filepath.Base(path), Content: content}, nil
}

// subject is the reference to an ARTIFACT that an event is about. Files are hashed; what is named by digest is claimed.
func (a *app) subject(ctx context.Context, f *recordFlags, text string) (r lineage.Reference, err error) {
	r = lineage.Reference{Role: lineage.Subject, Name: lineage.Name{Namespace: f.namespace, Name: f.name, Version: f.version}}
	if f.kind != "" {
		if r.Kind, err = lineage.ParseArtifactKind(f.kind); err != nil {
			return r, usage("--kind: %v", err)
		}
	}
	if f.purpose != "" {
		if r.Purpose, err = lineage.ParsePurpose(f.purpose); err != nil {
			return r, usage("--purpose: %v", err)
		}
	}
	if isPath(text) {
		x, err := a.hash(ctx, text)
		if err != nil {
			return r, err
		}
		r.Digest, r.Known, r.URI, r.Size = x.Digest, lineage.Computed, pathURI(text), x.Size
		return r, nil
	}
	if d, err := lineage.ParseDigest(text); err == nil {
		r.Digest, r.Known = d, lineage.Claimed
		return r, nil
	}
	return a.known(ctx, r, text)
}

// known looks an artifact up that is named by a prefix or a name. What the ledger knows by digest is referred to by that, as a claim: the
// bytes were not seen here.
func (a *app) known(ctx context.Context, r lineage.Reference, text string) (lineage.Reference, error) {
	var ref client.Ref
	err := a.withLedger(ctx, false, func(s *session) (err error) {
		ref, err = (&artifactArg{text: text}).resolve(ctx, a, s)
		if err == nil && r.Name.IsZero() {
			// Said about a name, it is to be found under the name.
			r.Name, err = a.recordedName(ctx, s, ref, text)
		}
		return err
	})
	if err != nil {
		return r, err
	}
	if ref.Digest.IsZero() {
		r.Known = lineage.NameOnly
		return r, nil
	}
	r.Digest, r.Known = ref.Digest, lineage.Claimed
	return r, nil
}

func (a *app) printRecorded(e *lineage.Event, r *client.Recorded) error {
	action := lineage.ActionText(e.Kind, e.Action, e.PredicateType)
	if a.json() {
		return a.printJSON(map[string]any{
			"log": a.log, "index": r.Index, "eventId": e.ID.String(), "kind": e.Kind.String(), "action": action, "treeSize": r.TreeSize, "duplicate": r.Duplicate,
			"leafHash": fmt.Sprintf("%x", r.LeafHash),
		})
	}
	again := ""
	if r.Duplicate {
		again = ", recorded before"
	}
	_, err := fmt.Fprintf(a.stdout, "recorded: %s %d, %s %s, event %s%s\n", a.log, r.Index, e.Kind, action, e.ID, again)
	return err
}
