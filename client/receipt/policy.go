package receipt

import "github.com/provledger/provledger/internal/checkpoint"

// Policy says whose word counts: a C2SP tlog-policy file. It is immutable.
type Policy struct{ p *checkpoint.Policy }

// ParsePolicy reads a C2SP tlog-policy file: lines "log <vkey>", "witness <name> <vkey>", "group <name> all|any|<k> <member>..." and one
// "quorum <name>|none".
func ParsePolicy(text []byte) (*Policy, error) {
	p, err := checkpoint.ParsePolicy(text)
	if err != nil {
		return nil, err
	}
	return &Policy{p}, nil
}

// PolicyFor returns the policy that trusts one log by its verifier key and asks for no witness.
func PolicyFor(vkey string) (*Policy, error) {
	return ParsePolicy([]byte("log " + vkey + "\nquorum none\n"))
}

// Log is a log line of a policy.
type Log struct{ Origin, VKey string }

// Logs returns the logs that the policy trusts, in the order of the file.
func (p *Policy) Logs() []Log {
	var logs []Log
	for _, k := range p.p.Logs() {
		logs = append(logs, Log(k))
	}
	return logs
}
