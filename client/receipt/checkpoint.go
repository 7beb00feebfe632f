package receipt

import "github.com/provledger/provledger/internal/checkpoint"

// VerifyCheckpoint decides about a signed checkpoint on its own, as whoever talks to a log must before there is a receipt. Errors are those
// of checkpoint.Policy.Verify.
func (p *Policy) VerifyCheckpoint(signed []byte) (checkpoint.Checkpoint, checkpoint.Verdict, error) {
	return p.p.Verify(signed)
}
