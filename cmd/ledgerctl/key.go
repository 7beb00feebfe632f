package main

import (
	"context"
	"crypto/rand"
	"fmt"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"

	"github.com/provledger/provledger/client"
)

func (a *app) keyCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "key",
		Short:   "Show the key of a log, or make a key",
		Long:    "Keys are Ed25519 keys in the text form of signed notes (C2SP signed-note): NAME+HASH+BASE64.",
		Example: "  ledgerctl key show --policy > ledger.policy",
		Args:    exactly(0, "one of export, generate, show"),
		RunE:    func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	var file string
	generate := &cobra.Command{
		Use:   "generate NAME --out FILE",
		Short: "Make a key pair",
		Long: `generate writes a new private key to FILE, which only you may read, and prints the verifier key, which everybody may have. NAME is the
name in signatures: of a witness, a signer, or the origin of a log.`,
		Example: "  ledgerctl key generate witness.example/w1 --out w1.key",
		Args:    exactly(1, "one name"),
		RunE: func(_ *cobra.Command, args []string) error {
			if file == "" {
				return usage("key generate needs --out FILE for the private key")
			}
			secret, vkey, err := note.GenerateKey(rand.Reader, args[0])
			if err == nil {
				_, err = note.NewVerifier(vkey) // which refuses names that no signature line can carry
			}
			if err != nil {
				return usage("key name %q: %v; it must be UTF-8 without spaces and plus signs", args[0], err)
			}
			// A key is never replaced: what it signed could not be continued.
			if err := writeNewMode(file, []byte(secret+"\n"), 0o600); err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(map[string]string{"name": args[0], "vkey": vkey, "privateKeyFile": file})
			}
			_, err = fmt.Fprintln(a.stdout, vkey)
			return err
		},
	}
	generate.Flags().StringVar(&file, "out", "", "`FILE` for the private key")
	var asPolicy bool
	show := &cobra.Command{
		Use:   "show",
		Short: "Print the verifier key of a log",
		Long: `show prints the key with which the log (--log) signs. It is the one that the present checkpoint verifies under, and that is remembered or pinned.

--policy prints it as a trust policy (C2SP tlog-policy) for --trust. On first use the ledger itself says what its key is: compare it over
another way before you rely on it against the ledger's operator.`,
		Example: "  ledgerctl key show\n  ledgerctl key show --policy > ledger.policy",
		Args:    exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.withLedger(c.Context(), false, func(s *session) error {
				l, err := a.verifiedLog(c.Context(), s)
				if err != nil {
					return err
				}
				switch {
				case a.json():
					return a.printJSON(map[string]string{"log": l.Name, "origin": l.Origin, "vkey": l.VKey, "policy": policyText(l.VKey)})
				case asPolicy:
					_, err = fmt.Fprint(a.stdout, policyText(l.VKey))
				default:
					_, err = fmt.Fprintln(a.stdout, l.VKey)
				}
				return err
			})
		},
	}
	show.Flags().BoolVar(&asPolicy, "policy", false, "print a trust policy file for --trust")
	c.AddCommand(generate, show, a.keyExportCommand())
	return c
}

func (a *app) keyExportCommand() *cobra.Command {
	var data, out string
	export := &cobra.Command{
		Use:   "export --data DIR --out FILE",
		Short: "Write the private key of a log to a key file",
		Long: `export writes the private key of the log (--log), which is derived from the secret in a ledger directory, to FILE, which only you may read: for
the key-dir of a node that is to sign that log and no other, or for safe keeping. No process may have the directory open. Whoever holds the file can sign as
the log.`,
		Example: "  ledgerctl --log main key export --data /var/lib/provledger --out main.key",
		Args:    exactly(0, "no arguments"),
		RunE: func(*cobra.Command, []string) error {
			if data == "" || out == "" {
				return usage("key export needs --data DIR and --out FILE")
			}
			private, vkey, err := a.exportKey(data)
			if err != nil {
				return err
			}
			if err := writeNewMode(out, private, 0o600); err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(map[string]string{"log": a.log, "vkey": vkey, "privateKeyFile": out})
			}
			_, err = fmt.Fprintln(a.stdout, vkey)
			return err
		},
	}
	export.Flags().StringVar(&data, "data", "", "ledger `DIRECTORY` with the secret")
	export.Flags().StringVar(&out, "out", "", "`FILE` for the private key; it must not exist")
	return export
}

// policyText is the trust policy for one log without witnesses.
func policyText(vkey string) string {
	return "# Trust policy (C2SP tlog-policy) for receipts of this log; no witness has to cosign.\nlog " + vkey + "\nquorum none\n"
}

// verifiedLog describes the log and checks that its key is the one under which the client verified the present checkpoint.
func (a *app) verifiedLog(ctx context.Context, s *session) (*client.Log, error) {
	l, err := s.Log(ctx, a.log)
	if err != nil {
		return nil, err
	}
	cp, err := s.Checkpoint(ctx, a.log)
	if err != nil {
		return nil, err
	}
	v, err := note.NewVerifier(l.VKey)
	if err == nil {
		_, err = note.Open(cp.Note, note.VerifierList(v))
	}
	if err != nil || cp.Origin != l.Origin {
		return nil, &exitError{exitNotVerified, fmt.Errorf("the ledger shows the key %q, its checkpoints are not signed by that (%v)", plain(l.VKey), err)}
	}
	return l, nil
}
