// Package lineage says what a provenance event is and which bytes it becomes.
//
// An [Event] is one statement by a producer. Recording it yields an entry: a leaf, which is hashed into the tree, and a body, which is
// kept beside it. The leaf is a public skeleton (kinds, roles, digests, times, opaque ids); everything with a name in it is in the body.
// The leaf commits to each part of the body with an HMAC under a random key, so that a copy of the tree tells nothing about the
// bodies and a body can be erased while every proof stands.
//
// The package is pure: no network, and no clock or randomness but in [NewID]. Whoever verifies computes the same bytes, so it is public.
// docs/format.md specifies every byte.
package lineage

import (
	"fmt"
	"strings"
)

// Event is one statement by a producer: every kind but control, which the ledger composes itself. Times are microseconds since the Unix epoch; zero values mean "not stated".
type Event struct {
	ID            ID
	Kind          Kind
	Action        uint8  // RunState, LifecycleVerb or AccessVerb, as Kind says; 0 for an attestation
	PredicateType string // attestation only: URI, at most MaxPredicateType bytes
	Source        Source
	OccurredAt    int64  // claim of the producer
	Initiator     string // opaque id on whose behalf the principal acts: a claim
	RunID         ID
	ParentRunID   ID
	Job           Name
	References    []Reference
	Target        Name // environment, endpoint or alias of a lifecycle event
	Entries       []uint64
	Policy        Digest
	ExpiresAt     int64
	Documents     []Document
}

// Name is the full name of a thing known by name. An empty Name.Name means "none".
type Name struct{ Namespace, Name, Version string }

// IsZero reports whether n names nothing.
func (n Name) IsZero() bool { return n == Name{} }

// Reference says what an event touched.
type Reference struct {
	Role    Role
	Kind    ArtifactKind
	Purpose Purpose
	Known   Known
	Digest  Digest // primary identity; zero if known by name only
	Name    Name   // identity if Digest is zero, else an alias under which the artifact can be found
	Aliases []Digest

	// Kept in the body only.
	URI       string
	MediaType string
	Size      int64 // bytes; 0 means not stated
}

// Document is a document of the producer: kept byte for byte, never re-encoded.
type Document struct {
	MediaType string
	Name      string
	Content   []byte
}

// Kind of an event.
type Kind uint8

// Kinds of events.
const (
	KindRun         Kind = 1
	KindAttestation Kind = 2
	KindLifecycle   Kind = 3
	KindAccess      Kind = 4
	KindControl     Kind = 5
)

// RunState is the action of a run event, as in OpenLineage.
type RunState uint8

// States of a run.
const (
	RunStart    RunState = 1
	RunRunning  RunState = 2
	RunComplete RunState = 3
	RunFail     RunState = 4
	RunAbort    RunState = 5
	RunOther    RunState = 6
)

// LifecycleVerb is the action of a lifecycle event.
type LifecycleVerb uint8

// Lifecycle verbs.
const (
	Registered LifecycleVerb = 1
	Approved   LifecycleVerb = 2
	Rejected   LifecycleVerb = 3
	Promoted   LifecycleVerb = 4
	Deployed   LifecycleVerb = 5
	RolledBack LifecycleVerb = 6
	Flagged    LifecycleVerb = 7
	Cleared    LifecycleVerb = 8
	Retired    LifecycleVerb = 9
)

// AccessVerb is the action of an access event.
type AccessVerb uint8

// Access verbs.
const (
	AccessRead       AccessVerb = 1
	AccessDownloaded AccessVerb = 2
	AccessExported   AccessVerb = 3
	AccessDenied     AccessVerb = 4
)

// ControlKind is the action of a control event. All are reserved; this version writes genesis, log and principal.
type ControlKind uint8

// Control kinds.
const (
	ControlGenesis   ControlKind = 1  // entry 0 of a lineage log
	ControlKey       ControlKind = 2  // key rotation
	ControlSchema    ControlKind = 3  // new leaf schema
	ControlPolicy    ControlKind = 4  // policy change
	ControlErasure   ControlKind = 5  // a body was erased
	ControlRecovery  ControlKind = 6  // recovery from the loss of a majority
	ControlHeartbeat ControlKind = 7  // nothing happened, provably
	ControlIndexRoot ControlKind = 8  // root of a verifiable index
	ControlLog       ControlKind = 9  // a log was created (system log)
	ControlPrincipal ControlKind = 10 // a principal became known (system log)
	ControlAccess    ControlKind = 11 // access bindings changed (system log)
	ControlMember    ControlKind = 12 // membership of the cluster changed (system log)
	ControlVersion   ControlKind = 13 // command version was raised (system log)
)

// Source says how an event came to be.
type Source uint8

// Sources of events.
const (
	Native   Source = 1
	Derived  Source = 2
	Imported Source = 3
)

// Authn says how the principal of an entry is known.
type Authn uint8

// Ways of knowing a principal.
const (
	AuthnNone   Authn = 0
	AuthnOSUser Authn = 1
	AuthnToken  Authn = 2
	AuthnMTLS   Authn = 3
	AuthnOIDC   Authn = 4
	AuthnLedger Authn = 5 // composed by the ledger itself
)

// Role is the part that an artifact plays in an event.
type Role uint8

// Roles.
const (
	Input   Role = 1
	Output  Role = 2
	Subject Role = 3
)

// ArtifactKind says what an artifact is. 0 means not stated.
type ArtifactKind uint8

// Kinds of artifacts.
const (
	Dataset       ArtifactKind = 1
	Model         ArtifactKind = 2
	Code          ArtifactKind = 3
	Container     ArtifactKind = 4
	DocumentKind  ArtifactKind = 5
	OtherArtifact ArtifactKind = 6
)

// Purpose says what an artifact is used for. 0 means not stated.
type Purpose uint8

// Purposes.
const (
	TrainingData    Purpose = 1
	ValidationData  Purpose = 2
	TestData        Purpose = 3
	Labels          Purpose = 4
	BaseModel       Purpose = 5
	Adapter         Purpose = 6
	Tokenizer       Purpose = 7
	ConfigPurpose   Purpose = 8
	Prompt          Purpose = 9
	RetrievalCorpus Purpose = 10
	Report          Purpose = 11
	RawData         Purpose = 12
	SourceCode      Purpose = 13
	OtherPurpose    Purpose = 14
)

// Known says how the identity of an artifact is known.
type Known uint8

// Ways of knowing an identity.
const (
	Computed     Known = 1 // the recording tool hashed the bytes
	Claimed      Known = 2 // the producer stated the digest
	StoreVersion Known = 3 // version of a versioned store
	NameOnly     Known = 4 // no digest at all
	Changed      Known = 5 // computed, and the bytes were other when the run ended
)

// names of the values of a closed set, indexed by value; "" marks a hole.
type names []string

// text is empty for 0, "not stated", in the sets that do not name it.
func (n names) text(v uint8) string {
	if v == 0 && len(n) > 0 {
		return n[0]
	}
	if int(v) < len(n) && n[v] != "" {
		return n[v]
	}
	return fmt.Sprintf("unknown(%d)", v)
}

func (n names) has(v uint8) bool { return int(v) < len(n) && n[v] != "" }

func (n names) parse(what, s string) (uint8, error) {
	for i, t := range n {
		if t != "" && t == s {
			return uint8(i), nil
		}
	}
	var known []string
	for _, t := range n {
		if t != "" {
			known = append(known, t)
		}
	}
	return 0, fmt.Errorf("unknown %s %q; known are %s", what, clip(s), strings.Join(known, ", "))
}

var (
	kindNames      = names{"", "run", "attestation", "lifecycle", "access", "control"}
	runNames       = names{"", "start", "running", "complete", "fail", "abort", "other"}
	lifecycleNames = names{"", "registered", "approved", "rejected", "promoted", "deployed", "rolled-back", "flagged", "cleared", "retired"}
	accessNames    = names{"", "read", "downloaded", "exported", "denied"}
	controlNames   = names{"", "genesis", "key", "schema", "policy", "erasure", "recovery", "heartbeat", "index-root", "log", "principal", "access", "member", "version"}
	sourceNames    = names{"", "native", "derived", "imported"}
	authnNames     = names{"none", "os-user", "token", "mtls", "oidc", "ledger"}
	roleNames      = names{"", "input", "output", "subject"}
	artifactNames  = names{"", "dataset", "model", "code", "container", "document", "other"}
	purposeNames   = names{"", "training-data", "validation-data", "test-data", "labels", "base-model", "adapter", "tokenizer", "config", "prompt", "retrieval-corpus", "report", "raw-data", "source-code", "other"}
	knownNames     = names{"", "computed", "claimed", "store-version", "name-only", "changed"}
)

func (k Kind) String() string          { return kindNames.text(uint8(k)) }
func (s RunState) String() string      { return runNames.text(uint8(s)) }
func (v LifecycleVerb) String() string { return lifecycleNames.text(uint8(v)) }
func (v AccessVerb) String() string    { return accessNames.text(uint8(v)) }
func (k ControlKind) String() string   { return controlNames.text(uint8(k)) }
func (s Source) String() string        { return sourceNames.text(uint8(s)) }
func (a Authn) String() string         { return authnNames.text(uint8(a)) }
func (r Role) String() string          { return roleNames.text(uint8(r)) }
func (k Known) String() string         { return knownNames.text(uint8(k)) }
func (k ArtifactKind) String() string  { return artifactNames.text(uint8(k)) }
func (p Purpose) String() string       { return purposeNames.text(uint8(p)) }

// ParseRunState, ParseLifecycleVerb, ParseAccessVerb, ParseRole, ParseArtifactKind and ParsePurpose read the words that String prints.
// Their errors list the words that exist.
func ParseRunState(s string) (RunState, error) {
	v, err := runNames.parse("run state", s)
	return RunState(v), err
}

// ParseLifecycleVerb reads a lifecycle verb.
func ParseLifecycleVerb(s string) (LifecycleVerb, error) {
	v, err := lifecycleNames.parse("lifecycle verb", s)
	return LifecycleVerb(v), err
}

// ParseAccessVerb reads an access verb.
func ParseAccessVerb(s string) (AccessVerb, error) {
	v, err := accessNames.parse("access verb", s)
	return AccessVerb(v), err
}

// ParseRole reads a role.
func ParseRole(s string) (Role, error) { v, err := roleNames.parse("role", s); return Role(v), err }

// ParseArtifactKind reads the kind of an artifact.
func ParseArtifactKind(s string) (ArtifactKind, error) {
	v, err := artifactNames.parse("artifact kind", s)
	return ArtifactKind(v), err
}

// ParsePurpose reads a purpose.
func ParsePurpose(s string) (Purpose, error) {
	v, err := purposeNames.parse("purpose", s)
	return Purpose(v), err
}

// ParseKind reads the kind of an event.
func ParseKind(s string) (Kind, error) {
	v, err := kindNames.parse("event kind", s)
	return Kind(v), err
}

// actionNames returns the closed set of actions of a kind; nil for attestations, whose action is a predicate type.
func actionNames(k Kind) names {
	switch k {
	case KindRun:
		return runNames
	case KindLifecycle:
		return lifecycleNames
	case KindAccess:
		return accessNames
	case KindControl:
		return controlNames
	}
	return nil
}

// ActionText names the action of an event or leaf: the verb, or the predicate type of an attestation.
func ActionText(k Kind, action uint8, predicateType string) string {
	if k == KindAttestation {
		return predicateType
	}
	return actionNames(k).text(action)
}

// clip shortens untrusted text for an error message.
func clip(s string) string {
	const most = 80
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}
