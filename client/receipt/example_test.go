package receipt_test

import (
	"crypto/sha256"
	"fmt"
	"os"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/client/receipt"
)

// A receipt is verified with the pinned key of its log and nothing else.
func ExampleVerify() {
	policyText, err := os.ReadFile("testdata/example.policy")
	if err != nil {
		fmt.Println(err)
		return
	}
	policy, err := receipt.ParsePolicy(policyText)
	if err != nil {
		fmt.Println(err)
		return
	}
	file, err := os.ReadFile("testdata/example.receipt")
	if err != nil {
		fmt.Println(err)
		return
	}
	r, err := receipt.Parse(file)
	if err != nil {
		fmt.Println(err)
		return
	}
	sum := sha256.Sum256([]byte("model")) // the file at hand
	model := receipt.Subject{Name: "model.bin", Digests: []lineage.Digest{{Algorithm: lineage.SHA256, Value: string(sum[:])}}}
	res := receipt.Verify(r, policy, []receipt.Subject{model}, receipt.Require{Role: "output", Job: "fraud-model", Outcome: "complete"})
	fmt.Println(res.Outcome)
	fmt.Println("entry", res.Index, "of", res.TreeSize, "recorded", res.Facts.RecordedAt, "by", res.Facts.Principal)
	fmt.Println("claim:", res.Claims[2])

	model.Digests[0].Value = string(make([]byte, 32)) // another file
	fmt.Println(receipt.Verify(r, policy, []receipt.Subject{model}, receipt.Require{}).Outcome)
	// Output:
	// verified
	// entry 1 of 3 recorded 2026-05-28T20:26:40.000001Z by local:5f2c9e7a41d8b306
	// claim: occurred_at: the producer's clock
	// NOT verified
}
