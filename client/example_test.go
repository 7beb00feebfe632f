package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"

	"github.com/provledger/provledger/client"
	"github.com/provledger/provledger/client/lineage"
)

func Example() {
	c, err := client.Dial("127.0.0.1:7600", client.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer func() {
		if err := c.Close(); err != nil { // the last checks are made here
			log.Print(err)
		}
	}()
	model, err := lineage.ParseDigest("sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08")
	if err != nil {
		log.Fatal(err)
	}
	r, err := c.Append(context.Background(), client.DefaultLog, &lineage.Event{
		ID: lineage.NewID(), Kind: lineage.KindRun, Action: uint8(lineage.RunComplete), RunID: lineage.NewID(),
		References: []lineage.Reference{{Role: lineage.Output, Kind: lineage.Model, Known: lineage.Computed, Digest: model}},
	})
	switch {
	case errors.Is(err, client.ErrFork):
		log.Fatal("keep the evidence: ", err)
	case err != nil:
		log.Fatal(err)
	}
	fmt.Println("recorded at", r.Index)
	if err := os.WriteFile("model.receipt", r.Receipt.Encode(), 0o600); err != nil {
		log.Fatal(err)
	}
}
