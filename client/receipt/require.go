package receipt

import (
	"fmt"
	"strings"

	"github.com/provledger/provledger/client/lineage"
)

// Require is what an entry must be, beyond being recorded. Empty fields ask for nothing.
type Require struct {
	Kind      string // of the event: run, attestation, lifecycle, access
	Action    string // verb, run state, or predicate type of an attestation
	Outcome   string // of a run: complete, fail, abort
	Job       string // "NAMESPACE/NAME", or NAME in any namespace; needs the opened body
	Principal string

	// Of one reference: with subjects, of one that the subject is, for each of them.
	Role     string // input, output, subject
	Purpose  string // training-data, base-model, ...
	Artifact string // dataset, model, code, ...
}

// ParseRequire reads KEY=VALUE,KEY=VALUE... with the keys kind, action, outcome, job, principal, role, purpose and artifact. Words that do
// not exist are refused, for a requirement that nothing can meet is a mistake.
func ParseRequire(list string) (Require, error) {
	var r Require
	if list == "" {
		return r, nil
	}
	for item := range strings.SplitSeq(list, ",") {
		key, value, ok := strings.Cut(item, "=")
		if !ok || value == "" {
			return Require{}, fmt.Errorf("requirement %q is not KEY=VALUE", clip(item))
		}
		field, check := r.field(key)
		if field == nil {
			return Require{}, fmt.Errorf("unknown requirement %q; known are kind, action, outcome, job, principal, role, purpose, artifact", clip(key))
		}
		if *field != "" {
			return Require{}, fmt.Errorf("requirement %s is given twice", key)
		}
		if check != nil {
			if err := check(value); err != nil {
				return Require{}, fmt.Errorf("requirement %s: %w", key, err)
			}
		}
		*field = value
	}
	return r, nil
}

func (r *Require) field(key string) (field *string, check func(string) error) {
	switch key {
	case "kind":
		return &r.Kind, func(s string) error {
			_, err := lineage.ParseKind(s)
			if err != nil {
				if _, e := lineage.ParseArtifactKind(s); e == nil {
					return fmt.Errorf("%w; for an artifact say artifact=%s", err, s)
				}
			}
			return err
		}
	case "action":
		return &r.Action, nil
	case "outcome":
		return &r.Outcome, func(s string) error { _, err := lineage.ParseRunState(s); return err }
	case "job":
		return &r.Job, nil
	case "principal":
		return &r.Principal, nil
	case "role":
		return &r.Role, func(s string) error { _, err := lineage.ParseRole(s); return err }
	case "purpose":
		return &r.Purpose, func(s string) error { _, err := lineage.ParsePurpose(s); return err }
	case "artifact":
		return &r.Artifact, func(s string) error { _, err := lineage.ParseArtifactKind(s); return err }
	}
	return nil, nil
}

// requirements holds the entry to req.
func (v *verification) requirements(req Require) {
	if req == (Require{}) {
		return
	}
	f := v.Facts
	if f == nil {
		v.add(CheckRequire, Unknown, "there is no verified entry")
		return
	}
	word := func(key, want, got string) {
		switch {
		case want == "":
		case want == got:
			v.add(CheckRequire, Verified, "%s=%s", key, want)
		default:
			v.add(CheckRequire, NotVerified, "%s=%s: the entry has %q", key, want, got)
		}
	}
	word("kind", req.Kind, f.Kind)
	word("action", req.Action, f.Action)
	word("outcome", req.Outcome, f.Outcome)
	word("principal", req.Principal, f.Principal)
	v.job(req.Job)
	v.artifact(req)
}

func (v *verification) job(want string) {
	job := v.Facts.Job
	switch {
	case want == "":
	case v.leaf.Job == nil:
		v.add(CheckRequire, NotVerified, "job=%s: the entry has no job", want)
	case job == nil:
		v.add(CheckRequire, Unknown, "job=%s: the body, which has the name, is %s", want, v.receipt.BodyState)
	case want == job.Name || want == job.Namespace+"/"+job.Name:
		v.add(CheckRequire, Verified, "job=%s", want)
	default:
		v.add(CheckRequire, NotVerified, "job=%s: the entry has %s/%s", want, job.Namespace, job.Name)
	}
}

// artifact asks role, purpose and artifact kind of one and the same reference: an input beside a model is no input model.
func (v *verification) artifact(req Require) {
	var asked []string
	for _, w := range [...][2]string{{"role", req.Role}, {"purpose", req.Purpose}, {"artifact", req.Artifact}} {
		if w[1] != "" {
			asked = append(asked, w[0]+"="+w[1])
		}
	}
	if len(asked) == 0 {
		return
	}
	text := strings.Join(asked, ",")
	fits := func(i int) bool {
		r := &v.Facts.References[i]
		return (req.Role == "" || req.Role == r.Role) && (req.Purpose == "" || req.Purpose == r.Purpose) && (req.Artifact == "" || req.Artifact == r.Kind)
	}
	candidates := v.matched
	if len(candidates) == 0 { // no subject: any reference will do
		all := make([]int, len(v.Facts.References))
		for i := range all {
			all[i] = i
		}
		candidates = [][]int{all}
	}
	for _, among := range candidates {
		found := -1
		for _, i := range among {
			if fits(i) {
				found = i
				break
			}
		}
		switch {
		case found >= 0:
			v.add(CheckRequire, Verified, "%s: references[%d]", text, found)
		case len(among) == 0 && len(v.matched) > 0:
			v.add(CheckRequire, Unknown, "%s: the subject is no artifact of the entry", text)
		default:
			v.add(CheckRequire, NotVerified, "%s: no reference that counts is so", text)
		}
	}
}
