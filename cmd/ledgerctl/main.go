// Ledgerctl records what pipelines do, proves it, and verifies what others proved.
//
// It is one verb a file over the public client packages; embedded.go, and only it, opens a ledger in process. Exit codes are part of
// the contract: 0 verified or done, 1 NOT verified, 2 could not tell or could not do, 64 wrong usage, 75 recorded in the spool only.
package main

import (
	"context"
	"os"
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
