package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/client/receipt"
)

func (a *app) verifyCommand() *cobra.Command {
	var file, require string
	c := &cobra.Command{
		Use:   "verify FILE... [--receipt F.receipt --trust POLICY] [--require KEY=VALUE,...]",
		Short: "Verify files against a receipt (offline) or a ledger (online)",
		Long: `With --receipt, verify works offline: it opens no connection and no ledger. It checks that the receipt is signed by a log that the policy
(--trust) has, that its entry is in that log, that the body is the one recorded, and that each FILE (or directory) is an artifact of the
entry. A file of a recorded directory verifies against the directory's manifest. Without FILE only the receipt is checked.

Without --receipt it looks the digest of each FILE up in the ledger and verifies what it gets in the same way: under --trust, else under the
key that is remembered of the ledger. Of several entries it takes the newest registration, else the run that generated the file.

--require holds the entry to more: kind, action, outcome, job, principal; and, of the reference that FILE is: role, purpose, artifact.

It says VERIFIED (exit code 0), NOT VERIFIED (1) or COULD NOT TELL (2). Verified means recorded and unaltered; it does not mean true or
approved. Files are always read: there is no cache. With -o json, several FILEs that are looked up give a list.`,
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
			subjects := make([]receipt.Subject, len(args))
			for i, path := range args {
				x, err := a.hash(c.Context(), path)
				if err != nil {
					return fmt.Errorf("could not tell: %w", err)
				}
				subjects[i] = receipt.Subject{Name: path, Digests: []lineage.Digest{x.Digest}}
			}
			if file == "" {
				return a.verifyOnline(c.Context(), subjects, req)
			}
			return a.verifyOffline(file, subjects, req)
		},
	}
	c.Flags().StringVar(&file, "receipt", "", "receipt `FILE`; with it nothing is connected to")
	c.Flags().StringVar(&require, "require", "", "what the entry must be, `KEY=VALUE,...`")
	return c
}

// verifyOffline needs the files, the receipt and the policy, and touches nothing else.
func (a *app) verifyOffline(file string, subjects []receipt.Subject, req receipt.Require) error {
	raw, err := readReceipt(file)
	if err != nil {
		return fmt.Errorf("could not tell: %w", err)
	}
	p, err := a.policy()
	if err != nil {
		return err
	}
	result := receipt.VerifyFile(raw, p, subjects, req)
	if err := a.printResults([]verification{{Receipt: file, Files: names(subjects), Result: result}}, true); err != nil {
		return err
	}
	if p == nil {
		a.note("  Give the trusted log keys with --trust POLICY; `ledgerctl key show --policy` prints those of a ledger.")
	}
	return outcomeError(result.Outcome)
}

func names(subjects []receipt.Subject) (list []string) {
	for _, s := range subjects {
		list = append(list, s.Name)
	}
	return list
}

func readReceipt(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, receipt.MaxFileBytes+1)) // one more, so that too large is seen
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
