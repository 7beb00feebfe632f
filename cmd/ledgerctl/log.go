package main

import (
	"fmt"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/provledger/provledger/client"
)

func (a *app) logCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "log",
		Short:   "Create, list and describe logs",
		Long:    "A ledger has many logs, each a tree with an origin and a key. main is the default; system holds the ledger's own entries.",
		Example: "  ledgerctl log list\n  ledgerctl log create fraud-team",
		Args:    exactly(0, "one of create, list, get"),
		RunE:    func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(&cobra.Command{
		Use:     "create NAME",
		Short:   "Create a lineage log",
		Example: "  ledgerctl log create fraud-team",
		Args:    exactly(1, "one name"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withLedger(c.Context(), true, func(s *session) error {
				l, err := s.CreateLog(c.Context(), args[0])
				switch status.Code(err) {
				case codes.AlreadyExists:
					return hinted(err, fmt.Sprintf("`ledgerctl log get %s` describes it.", args[0]))
				case codes.InvalidArgument:
					return &exitError{exitUsage, err}
				}
				if err != nil {
					return err
				}
				return a.printLogs([]*client.Log{l}, true)
			})
		},
	}, withFreshness(&cobra.Command{
		Use:     "list",
		Short:   "List the logs",
		Example: "  ledgerctl log list -o json",
		Args:    exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.withLedger(c.Context(), false, func(s *session) error {
				var logs []*client.Log
				for l, err := range s.Logs(c.Context()) {
					if err != nil {
						return err
					}
					logs = append(logs, l)
				}
				return a.printLogs(logs, false)
			})
		},
	}), withFreshness(&cobra.Command{
		Use:     "get NAME",
		Short:   "Describe one log",
		Example: "  ledgerctl log get main",
		Args:    exactly(1, "one name"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withLedger(c.Context(), false, func(s *session) error {
				l, err := s.Log(c.Context(), args[0])
				if err != nil {
					return err
				}
				return a.printLogs([]*client.Log{l}, true)
			})
		},
	}))
	return c
}

type logView struct {
	Name     string `json:"name"`
	Number   uint32 `json:"number"`
	Kind     string `json:"kind"`
	Origin   string `json:"origin"`
	VKey     string `json:"vkey"`
	TreeSize uint64 `json:"treeSize"`
}

func (a *app) printLogs(logs []*client.Log, one bool) error {
	views := []logView{}
	rows := [][]string{{"NAME", "KIND", "ENTRIES", "ORIGIN"}}
	for _, l := range logs {
		views = append(views, logView{l.Name, l.Number, l.Kind.String(), l.Origin, l.VKey, l.TreeSize})
		rows = append(rows, []string{plain(l.Name), l.Kind.String(), fmt.Sprint(l.TreeSize), plain(l.Origin)})
	}
	switch {
	case a.json() && one:
		return a.printJSON(views[0])
	case a.json():
		return a.printJSON(views)
	}
	if one { // with all of it, one thing a line: origins and keys are long
		v := views[0]
		rows = [][]string{
			{"name", plain(v.Name)}, {"number", fmt.Sprint(v.Number)}, {"kind", v.Kind}, {"entries", fmt.Sprint(v.TreeSize)}, {"origin", plain(v.Origin)}, {"key", plain(v.VKey)},
		}
	}
	return table(a.stdout, rows)
}
