package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/client/receipt"
)

func (a *app) verifyCommand() *cobra.Command {
	var file, require string
	var manifests []string
	c := &cobra.Command{
		Use:   "verify FILE... [--receipt F.receipt --trust POLICY] [--require KEY=VALUE,...]",
		Short: "Verify files against a receipt (offline) or a ledger (online)",
		Long: `With --receipt, verify works offline: it opens no connection and no ledger. It checks that the receipt is signed by a log that the policy
(--trust) has, that its entry is in that log, that the body is the one recorded, and that each FILE (or directory) is an artifact of the
entry. A file of a recorded directory verifies against the directory's manifest, which is in the receipt or, if it was too large, in a file that
--manifest names (` + "`ledgerctl run`" + ` says where it keeps one; without --receipt it is found there by itself). Without FILE only the receipt is
checked.

Without --receipt it looks the digest of each FILE up in the ledger and verifies what it gets in the same way: under --trust, else under the
key that is remembered of the ledger. Of several entries it takes the newest registration, else the run that generated the file.

--require holds the entry to more: kind, action, outcome, job, principal; and, of the reference that FILE is: role, purpose, artifact.

It says VERIFIED (exit code 0), NOT VERIFIED (1) or COULD NOT TELL (2): not verified if any check failed, else could not tell if any could
not be made. A FILE or POLICY that cannot be read leaves the other checks to be made, and is one that could not be; without the receipt
itself nothing can be told, but a file that is no receipt, or too large for one, is not verified. Verified means recorded and unaltered; it
does not mean true or approved.

A FILE is hashed by every algorithm that the receipt identifies artifacts by, as far as it can be computed: sha256, sha384, sha512,
sha512_256, sha3_256, sha3_384, sha3_512; a directory by dirHash. Files are always read: there is no cache. With -o json the
answer has the worst outcome and the results, one a receipt.`,
		Example: `  ledgerctl verify model.json --receipt model.receipt --trust ledger.policy --require kind=run,role=output,job=train
  ledgerctl verify data/ model.json -o json`,
		RunE: func(c *cobra.Command, args []string) error {
			req, err := receipt.ParseRequire(require)
			if err != nil {
				return usage("--require: %v", err)
			}
			if file == "" && len(args) == 0 {
				return usage("verify needs a FILE, or --receipt, or both; see `%s --help`", c.CommandPath())
			}
			given, err := readManifests(manifests)
			if err != nil {
				return err
			}
			if file == "" {
				return a.verifyOnline(c.Context(), args, given, req)
			}
			return a.verifyOffline(c.Context(), file, args, given, req)
		},
	}
	c.Flags().StringVar(&file, "receipt", "", "receipt `FILE`; with it nothing is connected to")
	c.Flags().StringArrayVar(&manifests, "manifest", nil, "`FILE` with the manifest of a directory, if it was too large for the record; repeatable")
	c.Flags().StringVar(&require, "require", "", "what the entry must be, `KEY=VALUE,...`")
	return c
}

// verifyOffline needs the files, the receipt and the policy, and touches nothing else. What is missing takes no check away but its own: a
// forged receipt must show even beside a path that is wrong.
func (a *app) verifyOffline(ctx context.Context, file string, paths []string, given []*lineage.Manifest, req receipt.Require) error {
	raw, err := readReceipt(file)
	if err != nil {
		return fmt.Errorf("could not tell: %w", err)
	}
	p, policyErr := a.policy()
	var algorithms []lineage.Algorithm
	if r, err := receipt.Parse(raw); err == nil { // VerifyFile says what is wrong with it
		algorithms = receipt.Algorithms(r.Leaf)
	}
	var subjects []receipt.Subject
	for _, path := range paths {
		x := a.atHand(ctx, path, algorithms...)
		x.Manifests = given
		subjects = append(subjects, x)
	}
	result := receipt.VerifyFile(raw, p, subjects, req)
	if err := a.printResults([]verification{{Receipt: file, Files: paths, Result: result}}); err != nil {
		return err
	}
	switch {
	case policyErr != nil:
		a.note("ledgerctl: the trusted log keys could not be read: %s", plain(policyErr.Error()))
	case p == nil:
		a.note("  Give the trusted log keys with --trust POLICY; `ledgerctl key show --policy` prints those of a ledger.")
	}
	return outcomeError(result.Outcome)
}

// atHand reads a file or directory, by SHA-256 or dirHash and what else is asked for.
func (a *app) atHand(ctx context.Context, path string, also ...lineage.Algorithm) receipt.Subject {
	x, err := a.hash(ctx, path, also...)
	if err != nil {
		return receipt.Subject{Name: path, Err: err}
	}
	return receipt.Subject{Name: path, Digests: x.Digests}
}

func readReceipt(path string) ([]byte, error) {
	return readRegular(path, receipt.MaxFileBytes) // one byte more is read, so that too large is seen
}

// outcomeError turns an outcome into an exit code; everything has been said.
func outcomeError(o receipt.Outcome) error {
	if o == receipt.Verified {
		return nil
	}
	return &exitError{code: int(o)}
}

// worse ranks a contradiction over a doubt.
func worse(a, b receipt.Outcome) receipt.Outcome {
	if a == receipt.NotVerified || b == receipt.NotVerified {
		return receipt.NotVerified
	}
	return max(a, b)
}

var errNoEntry = errors.New("the ledger has no entry about these bytes")
