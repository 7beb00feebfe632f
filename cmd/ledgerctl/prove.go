package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/provledger/provledger/client"
	"github.com/provledger/provledger/client/lineage"
)

func (a *app) proveCommand() *cobra.Command {
	var (
		index   uint64
		eventID string
		out     string
		force   bool
	)
	c := &cobra.Command{
		Use:   "prove ARTIFACT|--index N|--event-id ID --out F.receipt",
		Short: "Write the receipt of an entry to a file",
		Long: `prove writes a receipt: the entry, the proof that it is in the log, and the log's signature. Whoever has the log's key verifies it offline
(` + "`ledgerctl verify --receipt`" + `). It is verified before it is written.

Of several entries about an ARTIFACT it takes the newest registration, else the newest run that generated it (complete before failed), else
the newest entry that mentions it, and says which.`,
		Example: "  ledgerctl prove ./model.json --out model.receipt\n  ledgerctl prove --index 7 --out 7.receipt",
		RunE: func(c *cobra.Command, args []string) error {
			ways := len(args)
			for _, flag := range []string{"index", "event-id"} {
				if c.Flags().Changed(flag) {
					ways++
				}
			}
			if ways != 1 || out == "" {
				return usage("prove takes one of ARTIFACT, --index and --event-id, and --out FILE; see `%s --help`", c.CommandPath())
			}
			var selector client.Selector
			var arg *artifactArg
			var err error
			switch {
			case len(args) == 1:
				if arg, err = a.artifactArg(c.Context(), args[0]); err != nil {
					return err
				}
			case eventID != "":
				if selector.EventID, err = lineage.ParseID(eventID); err != nil {
					return usage("--event-id: %v", err)
				}
			default:
				selector = client.AtIndex(index)
			}
			return a.withLedger(c.Context(), false, func(s *session) error {
				return a.prove(c.Context(), s, arg, selector, out, force)
			})
		},
	}
	c.Flags().Uint64Var(&index, "index", 0, "index `N` of the entry in the log")
	c.Flags().StringVar(&eventID, "event-id", "", "event id, a `UUID`")
	c.Flags().StringVar(&out, "out", "", "`FILE` for the receipt (required)")
	c.Flags().BoolVar(&force, "force", false, "replace the file if it exists")
	return c
}

func (a *app) prove(ctx context.Context, s *session, arg *artifactArg, selector client.Selector, out string, force bool) error {
	why := ""
	if arg != nil {
		ref, err := arg.resolve(ctx, a, s)
		if err != nil {
			return err
		}
		entries, err := a.find(ctx, s, query(ref))
		if err != nil {
			return err
		}
		chosen, ok := choose(entries, func(d lineage.Digest) bool { return d == ref.Digest })
		if !ok {
			return fmt.Errorf("%s (%s): %w; was it recorded in log %s of this ledger?", arg.text, ref, client.ErrNotFound, a.log)
		}
		selector, why = client.AtIndex(chosen.entry.Index), chosen.why
	}
	r, index, err := s.Receipt(ctx, a.log, selector)
	if err != nil {
		return err
	}
	l, err := lineage.ParseLeaf(r.Leaf)
	if err != nil {
		return err
	}
	if arg != nil && arg.file != nil {
		if err := mayWrite(out, force, arg.text); err != nil {
			return err
		}
	}
	if err := writeNew(out, r.Encode(), force); err != nil {
		return err
	}
	action := lineage.ActionText(l.Kind, l.Action, l.PredicateType)
	if a.json() {
		return a.printJSON(map[string]any{
			"receipt": out, "log": a.log, "index": index, "eventId": l.EventID.String(), "kind": l.Kind.String(), "action": action,
			"recordedAt": timeText(l.RecordedAt), "chosen": why,
		})
	}
	fmt.Fprintf(a.stdout, "wrote %s: entry %d of log %s, %s %s, recorded %s\n", out, index, a.log, l.Kind, plain(action), timeText(l.RecordedAt))
	if why != "" {
		fmt.Fprintf(a.stdout, "  chosen: %s\n", why)
	}
	return nil
}
