package main

import (
	"github.com/spf13/cobra"

	"github.com/provledger/provledger/client"
)

// withFreshness gives a verb that reads the flags that say how fresh the answer must be.
func withFreshness(c *cobra.Command) *cobra.Command {
	var k client.Consistency
	c.Flags().BoolVar(&k.Linearizable, "linearizable", false, "an answer with everything that anybody was told of as recorded before; needs a majority of the cluster")
	c.Flags().Uint64Var(&k.MinSize, "min-size", 0, "an answer from a log of at least `N` entries; a node that is behind waits until it has them")
	run := c.RunE
	c.RunE = func(c *cobra.Command, args []string) error {
		c.SetContext(client.WithConsistency(c.Context(), k))
		return run(c, args)
	}
	return c
}
