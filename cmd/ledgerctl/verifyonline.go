package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/provledger/provledger/client"
	"github.com/provledger/provledger/client/artifact"
	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/client/receipt"
)

// checkRecorded is the check that only a ledger can answer: it has an entry about the bytes.
const checkRecorded = "recorded"

// verifyOnline looks each file up and verifies the receipts that it gets as if they had come in a file.
func (a *app) verifyOnline(ctx context.Context, paths []string, given []*lineage.Manifest, req receipt.Require) error {
	var subjects []receipt.Subject // hashed before the ledger is opened, which may take long
	for _, path := range paths {
		subjects = append(subjects, a.atHand(ctx, path))
	}
	var results []verification
	err := a.withLedger(ctx, false, func(s *session) (err error) {
		results, err = a.lookUp(ctx, s, subjects, given, req)
		return err
	})
	if err != nil {
		return fmt.Errorf("could not tell: %w", err)
	}
	if err := a.printResults(results); err != nil {
		return err
	}
	worst := receipt.Verified
	for i := range results {
		worst = worse(worst, results[i].Outcome)
	}
	return outcomeError(worst)
}

func (a *app) lookUp(ctx context.Context, s *session, subjects []receipt.Subject, given []*lineage.Manifest, req receipt.Require) ([]verification, error) {
	p, err := a.policy()
	if err != nil {
		return nil, err
	}
	if p == nil {
		l, err := a.verifiedLog(ctx, s)
		if err != nil {
			return nil, err
		}
		if p, err = receipt.PolicyFor(l.VKey); err != nil {
			return nil, err
		}
	}
	var results []verification
	for _, x := range subjects {
		if x.Err != nil {
			results = append(results, verification{Files: []string{x.Name}, Result: &receipt.Result{
				Outcome: receipt.Unknown, Checks: []receipt.Check{{Name: receipt.CheckSubject, Outcome: receipt.Unknown, Detail: fmt.Sprintf("%s: %v", x.Name, x.Err)}},
				NotChecked: []string{"anything: the file could not be read"},
			}})
			continue
		}
		id := x.Digests[0]
		entries, err := a.find(ctx, s, query(client.Ref{Digest: id}))
		if err != nil {
			return nil, err
		}
		if len(entries) == 0 && id.Algorithm == lineage.SHA256 { // by the manifest of its directory, which the ledger does not have
			if x.Manifests = a.withMember(id, given); len(x.Manifests) > 0 {
				id = x.Manifests[0].DirHash
				if entries, err = a.find(ctx, s, query(client.Ref{Digest: id})); err != nil {
					return nil, err
				}
			}
		}
		v := verification{Files: []string{x.Name}}
		c, ok := choose(identified(entries, id), func(d lineage.Digest) bool { return d == id })
		if !ok {
			if at, may, err := a.mayHoldMembers(ctx, s); err != nil {
				return nil, err
			} else if may && x.Digests[0].Algorithm == lineage.SHA256 {
				v.Result = &receipt.Result{
					Outcome: receipt.Unknown,
					Checks: []receipt.Check{{Name: checkRecorded, Outcome: receipt.Unknown, Detail: fmt.Sprintf(
						"%v (%s), but the manifest of a directory in entry %d is kept elsewhere, and may list them: give it with --manifest FILE", errNoEntry, x.Digests[0], at)}},
					NotChecked: []string{"whether the file is one of a directory whose manifest is not in the ledger"},
				}
				results = append(results, v)
				continue
			}
			v.Result = &receipt.Result{
				Outcome:    receipt.NotVerified,
				Checks:     []receipt.Check{{Name: checkRecorded, Outcome: receipt.NotVerified, Detail: fmt.Sprintf("%v (%s)", errNoEntry, x.Digests[0])}},
				NotChecked: []string{"whether the ledger withholds an entry: absence is the server's word"},
			}
			results = append(results, v)
			continue
		}
		r, _, err := s.Receipt(ctx, a.log, client.AtIndex(c.entry.Index))
		if err != nil {
			return nil, err
		}
		// It was found by one digest; the entry may identify it by others, which count first.
		if also := receipt.Algorithms(r.Leaf); slices.ContainsFunc(also, artifact.Computes) && x.Digests[0].Algorithm == lineage.SHA256 {
			found, lists := x.Digests[0], x.Manifests
			if x = a.atHand(ctx, x.Name, also...); x.Err == nil && x.Digests[0] != found {
				x.Err = artifact.ErrChanged
			}
			x.Manifests = lists
		}
		v.Result, v.Choice = receipt.Verify(r, p, []receipt.Subject{x}, req), c.why
		for _, e := range entries {
			if e.Index > c.entry.Index {
				v.Later = append(v.Later, laterEntry{e.Index, e.Leaf.Kind.String(), lineage.ActionText(e.Leaf.Kind, e.Leaf.Action, e.Leaf.PredicateType), timeText(e.Leaf.RecordedAt)})
			}
		}
		v.NotChecked = online(v.NotChecked)
		results = append(results, v)
	}
	return results, nil
}

// online corrects what a receipt alone says of itself: here the ledger was asked, and its log connected with what is remembered.
func online(notChecked []string) []string {
	list := slices.DeleteFunc(slices.Clone(notChecked), func(s string) bool { return s == receipt.LaterUnchecked || s == receipt.GrowthUnchecked })
	return append(list, "whether the ledger withholds later entries about these bytes: that none is missing is not proven")
}

// identified leaves out the entries that only claim a digest as an alias beside another identity, if there are others: anybody who may record
// could otherwise put an entry of his own before those that identify the bytes.
func identified(entries []*client.Entry, d lineage.Digest) []*client.Entry {
	var list []*client.Entry
	for _, e := range entries {
		claimed, known := false, false
		for _, f := range e.Leaf.References {
			claimed = claimed || slices.Contains(f.Aliases, d)
			known = known || f.Identity == d
		}
		if known || !claimed {
			list = append(list, e)
		}
	}
	if len(list) == 0 {
		return entries
	}
	return list
}

// find collects what the client finds.
func (a *app) find(ctx context.Context, s *session, q client.Query) ([]*client.Entry, error) {
	var entries []*client.Entry
	for e, err := range s.Find(ctx, a.log, q) {
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	return entries, nil
}
