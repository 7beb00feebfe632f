package checkpoint

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// MaxPolicyBytes is the largest policy file, in bytes: room for hundreds of post-quantum keys and their comments.
const MaxPolicyBytes = 1 << 20

// quorumNone is the predefined name of the quorum that needs no cosignature.
const quorumNone = "none"

// Policy is a C2SP tlog-policy file: which logs are known, and which witnesses must have cosigned. It is immutable.
type Policy struct {
	logs    []*verifier
	members []member       // witnesses and groups, in the order of the file: a group comes after its members
	index   map[string]int // name to place in members
	quorum  int            // place in members, or noMember for "quorum none"
}

const noMember = -1

// member is a witness or a group of the policy.
type member struct {
	name string

	witness *verifier // nil for a group

	threshold int   // how many of the group's members it takes
	members   []int // places in Policy.members, all lower than the group's own
}

// LogKey is a log line of a policy.
type LogKey struct{ Origin, VKey string }

// Verdict says on which grounds a checkpoint was accepted.
type Verdict struct {
	LogKey    string   // verification key of the log that signed
	Witnesses []string // names, as in the policy and in its order, of the witnesses whose cosignatures were verified
	Quorum    string   // name of the quorum that was met, "none" if none was asked for
}

// Logs returns the logs of the policy, in the order of the file.
func (p *Policy) Logs() []LogKey {
	logs := make([]LogKey, len(p.logs))
	for i, v := range p.logs {
		logs[i] = LogKey{Origin: v.name, VKey: v.vkey()}
	}
	return logs
}

// ParsePolicy reads a C2SP tlog-policy file:
//
//	log <vkey> [<url>]
//	witness <name> <vkey> [<url>]
//	group <name> all|any|<k> <member>...
//	quorum <name>|none
//
// Items are separated by spaces and tabs, empty lines and lines that start with # are skipped. A name is defined on an earlier
// line than it is used, and is a member of at most one group. Two logs, or two witnesses, must not have the same public key. There
// is exactly one quorum line. URLs are for whoever talks to the log or witness, and not kept.
//
// Keys of logs may be of type 0x01 or 0x06, those of witnesses of type 0x04 or 0x06; type 0x06 (ML-DSA-44) is accepted but not
// verified, see [Policy.Verify]. Another type is [ErrUnsupportedKey], everything else [ErrMalformed].
func ParsePolicy(text []byte) (*Policy, error) {
	if len(text) > MaxPolicyBytes {
		return nil, fmt.Errorf("%w: policy of %d bytes, limit %d", ErrMalformed, len(text), MaxPolicyBytes)
	}
	if i := bytes.IndexFunc(text, func(r rune) bool { return r < 0x20 && r != '\t' && r != '\n' || r == 0x7f }); i >= 0 {
		return nil, fmt.Errorf("%w: policy has control byte 0x%02x at %d", ErrMalformed, text[i], i)
	}
	lines, ok := strings.CutSuffix(string(text), "\n")
	if !ok {
		// A name that is cut short may still be a name, so a truncated file is not to be trusted.
		return nil, fmt.Errorf("%w: policy does not end with LF", ErrMalformed)
	}
	b := policyBuilder{
		policy:  &Policy{index: make(map[string]int), quorum: noMember},
		known:   make(map[keyName]bool),
		public:  make(map[string]bool),
		grouped: make(map[int]bool),
	}
	number := 0
	for line := range strings.SplitSeq(lines, "\n") {
		number++
		fields := strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == '\t' })
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		if err := b.add(fields[0], fields[1:]); err != nil {
			return nil, fmt.Errorf("policy line %d: %w", number, err)
		}
	}
	if !b.quorum {
		return nil, fmt.Errorf("%w: policy has no quorum line", ErrMalformed)
	}
	return b.policy, nil
}

// policyBuilder holds what is needed only while a policy is read.
type policyBuilder struct {
	policy  *Policy
	known   map[keyName]bool // keys so far: what a signature line says must lead to one key
	public  map[string]bool  // public keys so far, under the word of their line
	grouped map[int]bool     // members that belong to a group
	quorum  bool
}

// keyName is what a signature line says of its key.
type keyName struct {
	name string
	id   uint32
}

func (b *policyBuilder) add(word string, args []string) error {
	switch word {
	case "log":
		if len(args) < 1 || len(args) > 2 {
			return fmt.Errorf("%w: want: log <vkey> [<url>]", ErrMalformed)
		}
		v, err := b.key(word, args[0], typeEd25519)
		if err != nil {
			return err
		}
		b.policy.logs = append(b.policy.logs, v)
		return nil
	case "witness":
		if len(args) < 2 || len(args) > 3 {
			return fmt.Errorf("%w: want: witness <name> <vkey> [<url>]", ErrMalformed)
		}
		v, err := b.key(word, args[1], typeCosignature)
		if err != nil {
			return err
		}
		return b.define(member{name: args[0], witness: v})
	case "group":
		if len(args) < 3 {
			return fmt.Errorf("%w: want: group <name> all|any|<k> <member> [<member>...]", ErrMalformed)
		}
		return b.group(args[0], args[1], args[2:])
	case "quorum":
		if len(args) != 1 {
			return fmt.Errorf("%w: want: quorum <name>|none", ErrMalformed)
		}
		if b.quorum {
			return fmt.Errorf("%w: second quorum line", ErrMalformed)
		}
		b.quorum = true
		if args[0] == quorumNone {
			return nil
		}
		i, ok := b.policy.index[args[0]]
		if !ok {
			return fmt.Errorf("%w: quorum %q is not defined above", ErrMalformed, args[0])
		}
		b.policy.quorum = i
		return nil
	default:
		return fmt.Errorf("%w: %q is none of log, witness, group, quorum", ErrMalformed, word)
	}
}

// key reads a key of the given type, or of the type that both logs and witnesses may use.
func (b *policyBuilder) key(word, vkey string, typ byte) (*verifier, error) {
	v, err := parseVKey(vkey)
	if err != nil {
		return nil, err
	}
	if v.typ != typ && v.typ != typeMLDSA44 {
		return nil, fmt.Errorf("%w: %s key has type 0x%02x, want 0x%02x or 0x%02x", ErrUnsupportedKey, word, v.typ, typ, typeMLDSA44)
	}
	public := word + " " + string(v.public)
	if b.public[public] {
		return nil, fmt.Errorf("%w: second %s with the public key of %s", ErrMalformed, word, v.name)
	}
	if b.known[keyName{v.name, v.id}] {
		return nil, fmt.Errorf("%w: second key %s+%08x", ErrMalformed, v.name, v.id)
	}
	b.public[public] = true
	b.known[keyName{v.name, v.id}] = true
	return v, nil
}

func (b *policyBuilder) define(m member) error {
	if _, ok := b.policy.index[m.name]; ok || m.name == quorumNone {
		return fmt.Errorf("%w: name %q is taken", ErrMalformed, m.name)
	}
	b.policy.index[m.name] = len(b.policy.members)
	b.policy.members = append(b.policy.members, m)
	return nil
}

func (b *policyBuilder) group(name, threshold string, names []string) error {
	g := member{name: name}
	for _, n := range names {
		i, ok := b.policy.index[n]
		if !ok {
			return fmt.Errorf("%w: member %q is not defined above", ErrMalformed, n)
		}
		if b.grouped[i] {
			return fmt.Errorf("%w: %q is a member of a group already", ErrMalformed, n)
		}
		b.grouped[i] = true
		g.members = append(g.members, i)
	}
	switch threshold {
	case "all":
		g.threshold = len(names)
	case "any":
		g.threshold = 1
	default:
		k, err := parseDecimal(threshold)
		if err != nil || k < 1 || k > uint64(len(names)) {
			return fmt.Errorf("%w: threshold %q, want all, any or 1 to %s", ErrMalformed, threshold, strconv.Itoa(len(names)))
		}
		g.threshold = int(k)
	}
	return b.define(g)
}

// outcome of a key, a witness or a group. The order matters: a group's outcome is one of its members', from the best down.
type outcome int

const (
	absent  outcome = iota // did not sign
	unclear                // there is a signature, of a type that is not supported
	good                   // did sign
)

// Verify checks a signed checkpoint against the policy: a log of the policy whose name is the origin signed it, and enough
// witnesses for the quorum cosigned. Signatures by keys that are not in the policy are ignored. A bad one by a key that is in the
// policy fails, whatever the others say.
//
// NOT verified: [ErrMalformed], [ErrBadSignature], [ErrNoQuorum]. Could not tell: [ErrUnknownLog], if the policy has no log of
// this origin; [ErrUnsupportedKey], if it would be verified were all signatures by keys of unsupported type good, but not without.
func (p *Policy) Verify(signed []byte) (Checkpoint, Verdict, error) {
	c, verdict, err := p.verify(signed)
	if err != nil {
		return Checkpoint{}, Verdict{}, err
	}
	return c, verdict, nil
}

func (p *Policy) verify(signed []byte) (c Checkpoint, verdict Verdict, err error) {
	n, err := parseNote(signed)
	if err != nil {
		return c, verdict, err
	}
	if c, err = Parse(string(n.text)); err != nil {
		return c, verdict, err
	}

	known := false
	logged := absent
	for _, v := range p.logs {
		o, err := n.outcome(v)
		if err != nil {
			return c, verdict, err
		}
		if v.name != c.Origin {
			continue // its signature must be good, but it does not speak for this log
		}
		known = true
		if o > logged {
			logged = o
			verdict.LogKey = v.vkey()
		}
	}
	outcomes := make([]outcome, len(p.members))
	for i, m := range p.members {
		if m.witness == nil {
			outcomes[i] = m.outcome(outcomes)
			continue
		}
		if outcomes[i], err = n.outcome(m.witness); err != nil {
			return c, verdict, err
		}
		if outcomes[i] == good {
			verdict.Witnesses = append(verdict.Witnesses, m.name)
		}
	}

	if !known {
		return c, verdict, fmt.Errorf("%w: origin %q", ErrUnknownLog, c.Origin)
	}
	verdict.Quorum = quorumNone
	quorum := good
	if p.quorum != noMember {
		verdict.Quorum = p.members[p.quorum].name
		quorum = outcomes[p.quorum]
	}
	switch {
	case logged == absent:
		return c, verdict, fmt.Errorf("%w: none by a key of log %q that the policy has", ErrBadSignature, c.Origin)
	case quorum == absent:
		return c, verdict, fmt.Errorf("%w: quorum %q is not met by %d good cosignatures", ErrNoQuorum, verdict.Quorum, len(verdict.Witnesses))
	case logged == unclear:
		return c, verdict, fmt.Errorf("%w: only ML-DSA-44 keys of log %q signed", ErrUnsupportedKey, c.Origin)
	case quorum == unclear:
		return c, verdict, fmt.Errorf("%w: quorum %q rests on ML-DSA-44 cosignatures", ErrUnsupportedKey, verdict.Quorum)
	}
	return c, verdict, nil
}

// outcome returns whether a key signed the note. Every signature line of the key must be good.
func (n *signedNote) outcome(v *verifier) (outcome, error) {
	o := absent
	for _, s := range n.signatures {
		switch {
		case s.name != v.name || s.id != v.id:
		case !v.supported():
			o = unclear
		case v.Verify(n.text, s.blob):
			o = good
		default:
			return absent, fmt.Errorf("%w: by %s+%08x", ErrBadSignature, s.name, s.id)
		}
	}
	return o, nil
}

// outcome returns that of a group from those of its members: the worst of the best that are enough for the threshold.
func (m member) outcome(all []outcome) outcome {
	own := make([]outcome, len(m.members))
	for i, j := range m.members {
		own[i] = all[j]
	}
	slices.Sort(own)
	return own[len(own)-m.threshold]
}
