package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func (a *app) checkpointCommand() *cobra.Command {
	var verify bool
	c := &cobra.Command{
		Use:   "checkpoint",
		Short: "Print the signed checkpoint of a log",
		Long: `checkpoint prints the log's present checkpoint as a C2SP signed note: origin, size, root, signature.

It is always verified: signed by the log's key, and an extension of the checkpoint that is remembered in --state-dir. --verify says so, and
says "could not tell" (exit code 2) when nothing was remembered to compare it with. A ledger that was forked, rolled back or replaced is NOT
VERIFIED (exit code 1).`,
		Example: "  ledgerctl checkpoint > main.checkpoint\n  ledgerctl checkpoint --verify --trust ledger.policy",
		Args:    exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.withLedger(c.Context(), false, func(s *session) error {
				before, known, err := s.Extended(c.Context(), a.log)
				if err != nil {
					return err
				}
				now, err := s.Checkpoint(c.Context(), a.log)
				if err != nil {
					return err
				}
				outcome := "verified"
				if !known {
					outcome = "unknown"
				}
				switch {
				case a.json():
					view := map[string]any{"origin": now.Origin, "size": now.Size, "root": now.Root.String(), "note": string(now.Note)}
					if verify {
						view["outcome"] = outcome
						if known {
							view["rememberedSize"], view["rememberedRoot"] = before.Size, before.Root.String()
						}
					}
					err = a.printJSON(view)
				case verify && known:
					_, err = fmt.Fprintf(a.stdout, "VERIFIED: %s\n  size %d extends the remembered size %d\n  root %s\n", now.Origin, now.Size, before.Size, now.Root)
				case verify:
					_, err = fmt.Fprintf(a.stdout, "COULD NOT TELL: %s\n  size %d is signed by the log's key, and nothing was remembered to compare it with; it is remembered now\n", now.Origin, now.Size)
				default:
					_, err = a.stdout.Write(now.Note)
				}
				if err == nil && verify && !known {
					err = &exitError{code: exitUnknown}
				}
				return err
			})
		},
	}
	c.Flags().BoolVar(&verify, "verify", false, "compare with the remembered checkpoint and say how it stands")
	return c
}
