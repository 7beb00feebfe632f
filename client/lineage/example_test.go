package lineage_test

import (
	"crypto/sha256"
	"fmt"

	"github.com/provledger/provledger/client/lineage"
)

// An event becomes a leaf, which is public and names nobody, and a body, which the leaf commits to.
func ExampleComposer_Compose() {
	id, _ := lineage.ParseID("01890a5d-ac96-774b-bcce-b302099a8057")
	run, _ := lineage.ParseID("01890a5d-ac96-774b-bcce-b302099a8058")
	data, _ := lineage.ParseDigest("sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08")
	event := &lineage.Event{
		ID: id, Kind: lineage.KindRun, Action: uint8(lineage.RunComplete), RunID: run, Job: lineage.Name{Namespace: "training", Name: "fraud"},
		References: []lineage.Reference{{Role: lineage.Input, Purpose: lineage.TrainingData, Known: lineage.Computed, Digest: data}},
	}
	referenceKey := lineage.Key{1} // a real one is random, and so is each body key
	c := lineage.Composer{
		HashName: func(n lineage.Name) lineage.Hash { return lineage.HashName(&referenceKey, n) },
		NewKey:   func() lineage.Key { return sha256.Sum256([]byte("random")) },
	}
	leaf, body, err := c.Compose(nil, event, lineage.Stamp{RecordedAt: 1_780_000_000_000_000, Principal: "local:example", Authn: lineage.AuthnOSUser})
	if err != nil {
		fmt.Println(err)
		return
	}
	l, err := lineage.ParseLeaf(leaf)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(len(leaf), "bytes:", l.Kind, lineage.ActionText(l.Kind, l.Action, ""), "with input", l.References[0].Identity)
	fmt.Println("body opens the commitment:", lineage.OpenBody(l, body) == nil)
	names, _ := lineage.ParseIdentifiers(body[0].Content)
	fmt.Println("job", names.Job.Namespace+"/"+names.Job.Name)
	// Output:
	// 194 bytes: run complete with input sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
	// body opens the commitment: true
	// job training/fraud
}
