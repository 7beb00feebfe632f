// Package archtest turns the rules of the house into tests: who may import whom, what the pure core may not call, how large a
// file may grow, and that what the documents point at exists.
//
// It holds tests only. A failure names the rule, the reason for the rule and the remedy. A rule that is in the way is changed
// here and in docs/design.md in the same commit, with the reason; it is never worked around.
package archtest
