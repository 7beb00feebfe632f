package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/provledger/provledger/client"
	"github.com/provledger/provledger/client/lineage"
)

func (a *app) clusterCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "cluster",
		Short: "Show and change the cluster that keeps the ledger",
		Long: `A ledger is kept by one node or by a cluster of them. Any node answers; changes are passed to the leader, one at a time. What would cost the
cluster its majority is refused, and the refusal says what to do instead.

A NODE is the id of a member, a unique prefix of it, or its address.`,
		Example: "  ledgerctl cluster status --ledger a:7600,b:7600,c:7600\n  ledgerctl cluster replace 0198c0de d:7700",
		Args:    exactly(0, "a verb"),
		RunE:    func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(a.clusterLocalCommand(), a.clusterStatusCommand(), a.clusterAddCommand(), a.clusterPromoteCommand(), a.clusterDemoteCommand(), a.clusterRemoveCommand(),
		a.clusterReplaceCommand(), a.clusterTransferCommand())
	return c
}

func (a *app) clusterStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show the members, how they are, and what needs attention",
		Long: `status asks one node, which asks all members. The exit code is 0 if all is well, 1 if something needs attention (each such thing is a line of
WARNINGS), and 2 if no node could be asked.`,
		Example: "  ledgerctl cluster status\n  ledgerctl cluster status -o json | jq '.members[] | {nodeId, state, lag}'",
		Args:    exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.withCluster(c.Context(), func(_ *session, x *client.Cluster) error {
				if err := a.printCluster(x); err != nil {
					return err
				}
				if len(x.Warnings) > 0 {
					return &exitError{code: exitNotVerified}
				}
				return nil
			})
		},
	}
}

func (a *app) clusterAddCommand() *cobra.Command {
	var nonVoter bool
	c := &cobra.Command{
		Use:   "add ADDRESS",
		Short: "Add a running node that belongs to no cluster",
		Long: `add makes the node at the peer address ADDRESS a member. It joins as a non-voter, fetches the ledger from the others, and votes once it has
caught up. A node whose settings say join does this by itself.`,
		Example: "  ledgerctl cluster add d:7700\n  ledgerctl cluster add --non-voter mirror:7700",
		Args:    exactly(1, "one peer address"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withLedger(c.Context(), false, func(s *session) error {
				m, err := s.AddMember(c.Context(), args[0], !nonVoter)
				if err != nil {
					return err
				}
				role := "it votes once it has caught up"
				if nonVoter {
					role = "it does not vote"
				}
				return a.changed(map[string]any{"added": viewMember(m)}, "added %s at %s; %s", plain(m.ID), plain(m.Address), role)
			})
		},
	}
	c.Flags().BoolVar(&nonVoter, "non-voter", false, "it is to stay without a vote")
	return c
}

func (a *app) clusterPromoteCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "promote NODE",
		Short:   "Make a non-voter a voter",
		Long:    "promote waits until the node has caught up, as long as --timeout permits.",
		Example: "  ledgerctl cluster promote mirror:7700",
		Args:    exactly(1, "one node"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withNode(c.Context(), args[0], func(s *session, _ *client.Cluster, id string) error {
				if err := s.PromoteMember(c.Context(), id); err != nil {
					return err
				}
				return a.changed(map[string]any{"promoted": id}, "%s votes now", id)
			})
		},
	}
}

const forceHelp = "do it though too few of the other voters answer: what they have not been told is lost if they do not come back"

func (a *app) clusterDemoteCommand() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use:     "demote NODE",
		Short:   "Make a voter a non-voter",
		Example: "  ledgerctl cluster demote 0198c0de",
		Args:    exactly(1, "one node"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withNode(c.Context(), args[0], func(s *session, _ *client.Cluster, id string) error {
				if err := s.DemoteMember(c.Context(), id, force); err != nil {
					return err
				}
				return a.changed(map[string]any{"demoted": id}, "%s does not vote any more", id)
			})
		},
	}
	c.Flags().BoolVar(&force, "force", false, forceHelp)
	return c
}

func (a *app) clusterRemoveCommand() *cobra.Command {
	var force, yes bool
	c := &cobra.Command{
		Use:   "remove NODE",
		Short: "Remove a member for good",
		Long: `remove takes a member out of the cluster. It does not come back under its id: to return, the machine needs an empty directory and joins as a
new node. To exchange a dead node for a new one there is replace.`,
		Example: "  ledgerctl cluster remove 0198c0de --yes",
		Args:    exactly(1, "one node"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withNode(c.Context(), args[0], func(s *session, x *client.Cluster, id string) error {
				if err := a.confirm(yes, "Remove %s from the cluster for good?", describeMember(x, id)); err != nil {
					return err
				}
				if err := s.RemoveMember(c.Context(), id, force); err != nil {
					return err
				}
				return a.changed(map[string]any{"removed": id}, "removed %s", id)
			})
		},
	}
	c.Flags().BoolVar(&force, "force", false, forceHelp)
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return c
}

func (a *app) clusterReplaceCommand() *cobra.Command {
	var force, yes bool
	c := &cobra.Command{
		Use:   "replace NODE ADDRESS",
		Short: "Put a new node in the place of a dead one",
		Long: `replace adds the running node at the peer address ADDRESS, waits until it has caught up, removes NODE and gives the new one its vote. It takes
as long as fetching the ledger takes. If it is interrupted, what was done stays, and the same command goes on.`,
		Example: "  ledgerctl cluster replace 0198c0de d:7700",
		Args:    exactly(2, "the dead node and the peer address of the new one"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withNode(c.Context(), args[0], func(s *session, x *client.Cluster, id string) error {
				if err := a.confirm(yes, "Replace %s by the node at %s, and remove it for good?", describeMember(x, id), plain(args[1])); err != nil {
					return err
				}
				steps := []string{}
				err := s.ReplaceMember(c.Context(), id, args[1], force, func(text string) {
					steps = append(steps, text)
					if !a.json() {
						fmt.Fprintln(a.stdout, plain(text))
					}
				})
				if err != nil {
					return err
				}
				if a.json() {
					return a.printJSON(map[string]any{"replaced": id, "address": args[1], "steps": steps})
				}
				return nil
			})
		},
	}
	c.Flags().BoolVar(&force, "force", false, "replace a node though it answers")
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return c
}

func (a *app) clusterTransferCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "transfer [NODE]",
		Short: "Hand leadership to another voter",
		Long: `transfer hands leadership to NODE, or to the voter that is furthest along. Appends wait meanwhile, some milliseconds. Do it before the leader's
machine is taken down.`,
		Example: "  ledgerctl cluster transfer\n  ledgerctl cluster transfer b:7700",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usage("transfer takes one node at most; see `%s --help`", c.CommandPath())
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			to := func(s *session, id string) error {
				if err := s.TransferLeadership(c.Context(), id); err != nil {
					return err
				}
				if id == "" {
					return a.changed(map[string]any{"transferred": true}, "leadership was handed over")
				}
				return a.changed(map[string]any{"transferred": true, "leader": id}, "%s leads now", id)
			}
			if len(args) == 0 {
				return a.withLedger(c.Context(), false, func(s *session) error { return to(s, "") })
			}
			return a.withNode(c.Context(), args[0], func(s *session, _ *client.Cluster, id string) error { return to(s, id) })
		},
	}
}

// changed says what was done.
func (a *app) changed(view map[string]any, format string, args ...any) error {
	if a.json() {
		return a.printJSON(view)
	}
	_, err := fmt.Fprintf(a.stdout, format+"\n", args...)
	return err
}

func (a *app) withCluster(ctx context.Context, f func(*session, *client.Cluster) error) error {
	return a.withLedger(ctx, false, func(s *session) error {
		x, err := s.Cluster(ctx)
		if err != nil {
			return err
		}
		return f(s, x)
	})
}

// withNode finds the member that a text names.
func (a *app) withNode(ctx context.Context, text string, f func(s *session, x *client.Cluster, id string) error) error {
	return a.withCluster(ctx, func(s *session, x *client.Cluster) error {
		id, err := memberID(x, text)
		if err != nil {
			return err
		}
		return f(s, x, id)
	})
}

// minIDPrefix is how many digits of an id name a member: with fewer a slip of the hand would, and some changes ask nobody.
const minIDPrefix = 4

// memberID is the id of the member that a text names: an id, a unique prefix of one, or an address. A whole id need not be a member's: the
// leader knows whether it was one.
func memberID(x *client.Cluster, text string) (string, error) {
	if id, err := lineage.ParseID(text); err == nil {
		return id.String(), nil
	}
	var found []client.Member
	for _, m := range x.Members {
		if len(text) >= minIDPrefix && strings.HasPrefix(m.ID, strings.ToLower(text)) || text != "" && (m.Address == text || m.APIAddress == text) {
			found = append(found, m)
		}
	}
	if len(found) == 1 {
		return found[0].ID, nil
	}
	what, code, list := "is no member; members are", exitUsage, x.Members
	if len(found) > 1 {
		what, code, list = "may be", exitUnknown, found
	}
	var b strings.Builder
	for _, m := range list {
		fmt.Fprintf(&b, "\n%s at %s", m.ID, m.Address)
	}
	return "", &exitError{code, fmt.Errorf("%q %s%s", text, what, b.String())}
}

func describeMember(x *client.Cluster, id string) string {
	for _, m := range x.Members {
		if m.ID == id {
			return fmt.Sprintf("%s at %s (%s, %s)", plain(m.ID), plain(m.Address), role(&m), plain(state(&m)))
		}
	}
	return id
}

// confirm asks a person, and wants --yes of everybody else.
func (a *app) confirm(yes bool, format string, args ...any) error {
	if yes {
		return nil
	}
	question := fmt.Sprintf(format, args...)
	if !isTerminal(a.stdin) {
		return usage("%s Nobody can be asked: confirm with --yes", question)
	}
	fmt.Fprintf(a.stderr, "%s Type yes: ", question)
	line, err := bufio.NewReader(io.LimitReader(a.stdin, 100)).ReadString('\n')
	if strings.TrimSpace(line) != "yes" {
		return &exitError{exitUnknown, fmt.Errorf("not confirmed, nothing was done")}
	}
	if err == io.EOF {
		err = nil
	}
	return err
}
