// Package consensus owns the raft instance of a node: it puts opaque commands into one agreed order and hands them to a
// state machine that replays after a crash. It knows nothing of ledgers, trees or storage engines; it is built on
// hashicorp/raft, which it wraps and does not fork.
//
// # What is durable
//
// The raft log is the only thing that is fsynced before a command is acknowledged. The state machine may lose its newest
// applied commands in a power cut; raft delivers them again. That is safe only as long as the log keeps every entry that
// the machine has not made durable, so nothing in this package ever trusts the applied index: each decision about the log
// reads [StateMachine.Durable] at that moment.
//
//   - A raft snapshot writes no byte. Taking one means: ask the machine to flush, check that its durable index reached
//     the last entry that was delivered to it, and only then let raft compact the log (hole H1 of docs/reliability.md).
//   - The metadata of that snapshot is composed from the machine's durable position each time that raft asks (H2), and it
//     carries the cluster configuration that the machine stores beside its data (H3).
//   - Before raft starts, the log is compared with the durable position: a log that ends before it, begins behind it, or
//     has another term at it belongs to another history, and [Open] refuses (H9 i, H10). One that is empty is accepted only if
//     [ResetLog] left it so, for just this position.
//
// # Other nodes
//
// A message is raft's own, over raft's network transport, but between raft and that stands a transport of this package:
//
//   - A leader whose log begins after the end of a follower sends raft's snapshot message. It is answered before raft sees it:
//     with no, and [Config].Behind is told, while the node goes on to vote; or with yes, when the node has what the message
//     names. The owner closes this package, brings the machine forward, calls [ResetLog], and opens it again; a raft instance
//     is never continued across that (H8).
//   - Entries of a leader that goes back further than the log of such a node does are cut down to what follows the machine's
//     durable position, where that is provably the same history.
//   - Reads are made linearizable by a question for the terms of the voters, [Consensus.ReadIndex], never by raft.VerifyLeader,
//     which takes answers to older questions and answers of non-voters.
//
// # Duties of a StateMachine
//
// A machine that breaks one of these loses or forks data; nothing here can detect all of them.
//
//  1. Deterministic. Results and state depend on the entries and on the state before them, on nothing else: no clock, no
//     randomness, no map order, no local configuration, no error of a local disk.
//  2. A local failure inside Apply (an I/O error, a corrupt block) ends the process. It is never a result: other replicas
//     succeeded. A result whose type is error is an ordinary, replicated outcome ("refused"), equal on every replica.
//  3. Apply skips every entry whose index is not above the last one that it applied, and still returns a result in its
//     place. Indexes rise but are not consecutive: raft keeps its no-ops and barriers to itself.
//  4. Apply gets commands and configuration entries ([Entry].Configuration). Both advance the position; of a
//     configuration entry the machine keeps Index and Data, verbatim, as ConfigurationIndex and Configuration.
//  5. Everything that one Apply call changes, the position included, becomes durable together or not at all, and in the
//     order of the calls: what survives a power cut is the state after some prefix of the Apply calls.
//  6. Durable reports what a power cut now would leave, not what is visible. Reporting too little is harmless, reporting
//     too much loses acknowledged commands. It may be called from any goroutine while Apply runs.
//  7. Flush returns nil only when Durable().Index has reached the given index; it gives up with an error when its context
//     ends. It may be called from any goroutine while Apply runs.
//  8. Apply waits for nobody: no network, no lock that is held across I/O of others, no call back into this package.
//     While it waits, the node neither commits nor answers, yet its heartbeats go on.
//  9. Entry.Data belongs to the log. The machine neither changes it nor keeps it beyond the call without a copy.
//
// # Duties of a Store
//
//  1. StoreLogs, Set and SetUint64 return after the data is on stable storage.
//  2. An error or a hang in them ends the process (H6, H7): raft would carry on with a store of unknown content.
//  3. DeleteRange of the head removes nothing above the machine's durable index, whatever it is asked for, and returns
//     nil (H1 b). raft counts its own barriers and no-ops into a snapshot's index, the machine never sees them; without
//     this clamp trailing barriers could push the head of the log past the durable index.
//
// internal/raftlog's guarded store does all three.
package consensus
