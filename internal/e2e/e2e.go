// Package e2e tests ledgerd and ledgerctl from outside: real processes, real ports, real signals, a real disk.
//
// The tests believe nothing that the processes say. Producers write down what they sent, what came back, and when; an auditor reads
// the whole log, hashes it with code of its own (and transparency-dev/merkle), and holds it against what was written down: the
// invariants S1 to S10 of docs/reliability.md. Processes are killed with SIGKILL at random moments in between.
//
// Clusters get the same treatment: every node is read as a whole and held against one history, while nodes are killed, paused, restarted
// and cut off from each other. Links fail by proxies with a rule for each direction, which need no privilege, or by lost packets in
// network namespaces, which need root and are skipped without.
//
// Runs are short by default. PROVLEDGER_E2E=full makes them long, PROVLEDGER_E2E_ROUNDS sets the number of kills, and
// PROVLEDGER_E2E_SEED repeats a run that failed, as far as real processes can be repeated.
package e2e
