package merkle_test

import (
	"fmt"

	"github.com/provledger/provledger/internal/merkle"
)

// A batch receipt: a run of leaves and what lies beside it. Each leaf's own proof follows from it.
func Example() {
	edge := merkle.NewEdge()
	edge.Append(merkle.LeafHash([]byte("genesis")), nil)

	before := edge.View()
	var batch []merkle.Hash
	for _, leaf := range []string{"ingest", "split", "train"} {
		batch = append(batch, merkle.LeafHash([]byte(leaf)))
		edge.Append(batch[len(batch)-1], nil)
	}

	tree, err := merkle.NewRangeTree(before.Size(), batch, edge.Size(), merkle.RangeProof{Left: before.CompactRange()})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("run proven:", tree.Root() == edge.Root())

	proof, err := tree.Inclusion(2)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("split is leaf 2:", merkle.VerifyInclusion(batch[1], 2, edge.Size(), proof, edge.Root()) == nil)
	fmt.Println("train is leaf 2:", merkle.VerifyInclusion(batch[2], 2, edge.Size(), proof, edge.Root()) == nil)
	// Output:
	// run proven: true
	// split is leaf 2: true
	// train is leaf 2: false
}
