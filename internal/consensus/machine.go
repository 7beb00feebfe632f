package consensus

import (
	"context"

	"github.com/hashicorp/raft"
)

// Entry is a committed log entry as delivered to a StateMachine.
type Entry struct {
	// Index is the entry's place in the raft log, Term the election term in which it was proposed.
	Index, Term uint64
	// Configuration says that Data is a cluster configuration as raft encodes it (raft.EncodeConfiguration) and not a
	// command. The machine stores it and interprets nothing.
	Configuration bool
	// Data is the command as it was proposed. Read-only, valid during the call.
	Data []byte
}

// Position says how far a StateMachine has come, with what raft needs to go on from there. The zero Position is that of
// a machine that has applied nothing.
type Position struct {
	// Index and Term are those of the last applied entry.
	Index, Term uint64
	// ConfigurationIndex and Configuration are the Index and Data of the last applied configuration entry.
	ConfigurationIndex uint64
	Configuration      []byte
}

// StateMachine is what commands are applied to. Its duties are numbered in the package comment; they are the contract.
type StateMachine interface {
	// Apply applies entries in order and returns one result an entry, in the same order. It is called from one goroutine
	// at a time, never twice at once.
	Apply(entries []Entry) []any
	// Durable returns the position that would survive a power cut now.
	Durable() (Position, error)
	// Flush makes everything up to index durable. nil means Durable().Index >= index.
	Flush(ctx context.Context, index uint64) error
}

// Store keeps the raft log, the term and the vote. Its duties are numbered in the package comment.
type Store interface {
	raft.LogStore
	raft.StableStore
}
