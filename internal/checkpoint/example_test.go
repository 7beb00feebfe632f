package checkpoint_test

import (
	"errors"
	"fmt"

	"github.com/provledger/provledger/internal/checkpoint"
	"github.com/provledger/provledger/internal/merkle"
)

// A fixed seed serves the example. A real one is 32 random bytes that never leave the node.
var exampleSeed = [32]byte{1, 2, 3}

func ExampleSign() {
	key, err := checkpoint.NewKey("example.com/log", &exampleSeed)
	if err != nil {
		fmt.Println(err)
		return
	}
	signed, err := checkpoint.Sign(checkpoint.Checkpoint{Origin: "example.com/log", Size: 1, Root: merkle.LeafHash([]byte("genesis"))}, key)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("%s", signed)
	// Output:
	// example.com/log
	// 1
	// e16r6xu9SavY5QERWhhn3W6XmyRIOa3ytyegF+RFRQc=
	//
	// — example.com/log KCtHn4PnUpzL/crN3O2raRvs5Wf7S9luIcE/yZ/TW8PU/4FxJWHRB1ICYe7gwe3ldM3qJnVnrWim+CTNxziVTLE8HAI=
}

func ExampleOpen() {
	key, err := checkpoint.NewKey("example.com/log", &exampleSeed)
	if err != nil {
		fmt.Println(err)
		return
	}
	signed, err := checkpoint.Sign(checkpoint.Checkpoint{Origin: "example.com/log", Size: 1, Root: merkle.LeafHash([]byte("genesis"))}, key)
	if err != nil {
		fmt.Println(err)
		return
	}

	// What a verifier has: the text of the key, pinned, and a signed checkpoint from anywhere.
	verifier, err := checkpoint.NewVerifier(key.VKey())
	if err != nil {
		fmt.Println(err)
		return
	}
	c, err := checkpoint.Open(signed, verifier)
	fmt.Println(c.Origin, c.Size, err)

	signed[len("example.com/log\n")] = '2' // the size
	_, err = checkpoint.Open(signed, verifier)
	fmt.Println("NOT verified:", errors.Is(err, checkpoint.ErrBadSignature))
	// Output:
	// example.com/log 1 <nil>
	// NOT verified: true
}
