package receipt

import (
	"fmt"
	"time"

	"github.com/provledger/provledger/client/lineage"
)

// Outcome is the answer to "is this verified?". The numbers are the exit codes of ledgerctl verify.
type Outcome int

// Outcomes.
const (
	Verified    Outcome = 0
	NotVerified Outcome = 1 // something contradicts
	Unknown     Outcome = 2 // could not tell: something is missing or not understood
)

func (o Outcome) String() string {
	switch o {
	case Verified:
		return "verified"
	case NotVerified:
		return "NOT verified"
	case Unknown:
		return "could not tell"
	}
	return fmt.Sprintf("outcome(%d)", int(o))
}

// MarshalText gives outcomes the names "verified", "not-verified" and "unknown" in JSON.
func (o Outcome) MarshalText() ([]byte, error) {
	switch o {
	case Verified:
		return []byte("verified"), nil
	case NotVerified:
		return []byte("not-verified"), nil
	case Unknown:
		return []byte("unknown"), nil
	}
	return nil, fmt.Errorf("unknown outcome %d", int(o))
}

// worst ranks a contradiction over a doubt.
func worst(a, b Outcome) Outcome {
	if a == NotVerified || b == NotVerified {
		return NotVerified
	}
	return max(a, b)
}

// Names of checks, in the order in which they are made. CheckSubject stands once a subject, CheckRequire once a requirement.
const (
	CheckReceipt   = "receipt"              // the receipt is well-formed
	CheckLeaf      = "leaf"                 // the leaf is of a known schema and follows it
	CheckOrigin    = "origin"               // the log is one whose leaves mean what this package reads in them
	CheckLogKey    = "log-key"              // the policy has a key of the log
	CheckSignature = "checkpoint-signature" // that key signed the checkpoint
	CheckWitnesses = "witnesses"            // enough witnesses cosigned for the policy's quorum
	CheckInclusion = "inclusion"            // the leaf is in the tree of the checkpoint
	CheckGenesis   = "genesis"              // the first entry, and no other, is the log's genesis, and it agrees with the origin
	CheckBody      = "body"                 // the opened body is the one that the leaf commits to
	CheckSubject   = "subject"              // a file is one of the artifacts of the entry
	CheckRequire   = "require"              // the entry is of the kind that was asked for
)

// Check is one check and how it ended.
type Check struct {
	Name    string  `json:"name"`
	Outcome Outcome `json:"outcome"`
	Detail  string  `json:"detail"`
}

// Result is everything that a verification found. Its Outcome is NotVerified if any check failed, else Unknown if any could not be made. What was not verified is left empty.
type Result struct {
	Outcome Outcome `json:"outcome"` // the worst of Checks
	Checks  []Check `json:"checks"`
	// NotChecked says what the outcome does not rest on, a sentence each.
	NotChecked []string `json:"notChecked"`
	// Claims says what is recorded, unaltered, and no more than the word of whoever said it.
	Claims []string `json:"claims,omitempty"`

	// Set once signature, quorum and inclusion are verified.
	Origin    string   `json:"origin,omitempty"`
	LogKey    string   `json:"logKey,omitempty"`
	Witnesses []string `json:"witnesses,omitempty"` // those that cosigned, as far as the policy knows them
	Quorum    string   `json:"quorum,omitempty"`
	Index     uint64   `json:"index,omitempty"`
	TreeSize  uint64   `json:"treeSize,omitempty"`
	LeafHash  string   `json:"leafHash,omitempty"`

	// Facts is what the entry says; nil unless the entry is verified and understood. A failed subject or requirement does not change it.
	Facts *Facts `json:"facts,omitempty"`
	// Matches says as which artifacts the subjects are recorded.
	Matches []Match `json:"matches,omitempty"`
}

// Facts is what an entry says, readably. "Fact" means that it was recorded so: see Result.Claims.
type Facts struct {
	EventID    string `json:"eventId"`
	Kind       string `json:"kind"`
	Action     string `json:"action"`            // verb, or predicate type of an attestation
	Outcome    string `json:"outcome,omitempty"` // of a run: complete, fail, abort; or start, running, other if it had not ended
	Source     string `json:"source"`
	RecordedAt string `json:"recordedAt"` // RFC 3339, by the ledger's clock
	OccurredAt string `json:"occurredAt,omitempty"`
	Principal  string `json:"principal"`
	Authn      string `json:"authn"`
	Initiator  string `json:"initiator,omitempty"`
	RunID      string `json:"runId,omitempty"`
	ParentRun  string `json:"parentRunId,omitempty"`

	References []ReferenceFacts `json:"references,omitempty"`
	Entries    []uint64         `json:"entries,omitempty"`
	Policy     string           `json:"policy,omitempty"`
	ExpiresAt  string           `json:"expiresAt,omitempty"`

	// From the opened body.
	Job       *NameFacts      `json:"job,omitempty"`
	Target    *NameFacts      `json:"target,omitempty"`
	Documents []DocumentFacts `json:"documents,omitempty"`
}

// ReferenceFacts is what an entry says of one artifact.
type ReferenceFacts struct {
	Role     string   `json:"role"`
	Kind     string   `json:"kind,omitempty"`
	Purpose  string   `json:"purpose,omitempty"`
	Known    string   `json:"known"`
	Identity string   `json:"identity"` // ALGORITHM:HEX; "name:HEX" is a keyed hash of a name
	Aliases  []string `json:"aliases,omitempty"`

	// From the opened body.
	Name      *NameFacts `json:"name,omitempty"`
	URI       string     `json:"uri,omitempty"`
	MediaType string     `json:"mediaType,omitempty"`
	Size      int64      `json:"size,omitempty"`
}

// NameFacts is a full name.
type NameFacts struct {
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	Version   string `json:"version,omitempty"`
}

// DocumentFacts describes a document of the body.
type DocumentFacts struct {
	MediaType string `json:"mediaType,omitempty"`
	Name      string `json:"name,omitempty"`
	Size      int    `json:"size"`
	Content   []byte `json:"-"`
}

// Match says that a subject is an artifact of the entry.
type Match struct {
	Subject   string `json:"subject"`        // its name
	Reference int    `json:"reference"`      // index into Facts.References
	Via       string `json:"via"`            // identity, alias, or member of a directory
	Digest    string `json:"digest"`         // the one that is equal
	Path      string `json:"path,omitempty"` // of a member
	Claimed   bool   `json:"claimed"`        // the equal digest is the producer's claim
	// Changed says that the bytes were these when the recording tool read them, and others when the run ended.
	Changed bool `json:"changed,omitempty"`
}

// newFacts reads the leaf; body fills in the rest.
func newFacts(l *lineage.Leaf) *Facts {
	f := &Facts{
		EventID: l.EventID.String(), Kind: l.Kind.String(), Action: lineage.ActionText(l.Kind, l.Action, l.PredicateType),
		Source: l.Source.String(), RecordedAt: timeText(l.RecordedAt), OccurredAt: timeText(l.OccurredAt),
		Principal: l.Principal, Authn: l.Authn.String(), Initiator: l.Initiator, RunID: idText(l.RunID), ParentRun: idText(l.ParentRunID),
		Entries: l.Entries, Policy: l.Policy.String(), ExpiresAt: timeText(l.ExpiresAt),
	}
	if l.Kind == lineage.KindRun {
		f.Outcome = f.Action
	}
	for i := range l.References {
		r := &l.References[i]
		g := ReferenceFacts{
			Role: r.Role.String(), Kind: r.Kind.String(), Purpose: r.Purpose.String(), Known: r.Known.String(), Identity: r.Identity.String(),
		}
		for _, a := range r.Aliases {
			g.Aliases = append(g.Aliases, a.String())
		}
		f.References = append(f.References, g)
	}
	return f
}

// body adds what the opened body says.
func (f *Facts) body(b *body) {
	f.Job, f.Target = newName(b.names.Job), newName(b.names.Target)
	for i, x := range b.names.References {
		r := &f.References[i]
		r.Name, r.URI, r.MediaType, r.Size = newName(x.Name), x.URI, x.MediaType, x.Size
	}
	for _, d := range b.documents {
		f.Documents = append(f.Documents, DocumentFacts{d.MediaType, d.Name, len(d.Content), d.Content})
	}
}

func newName(n lineage.Name) *NameFacts {
	if n.IsZero() {
		return nil
	}
	return (*NameFacts)(&n)
}

func idText(id lineage.ID) string {
	if id == (lineage.ID{}) {
		return ""
	}
	return id.String()
}

func timeText(us int64) string {
	if us == 0 {
		return ""
	}
	return time.UnixMicro(us).UTC().Format("2006-01-02T15:04:05.000000Z07:00")
}
