package receipt

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/checkpoint"
	"github.com/provledger/provledger/internal/merkle"
)

// VerifyFile is [Parse] and [Verify] in one: a file that is no receipt is a failed check like any other.
func VerifyFile(file []byte, p *Policy, subjects []Subject, req Require) *Result {
	r, err := Parse(file)
	if err != nil {
		v := verification{}
		v.add(CheckReceipt, NotVerified, "%v", err)
		return &v.Result
	}
	return Verify(r, p, subjects, req)
}

// Verify checks a receipt: that its entry is in a log that p trusts, that an opened body is the one recorded, that each subject is an
// artifact of the entry and that the entry meets req. It is pure and offline.
func Verify(r *Receipt, p *Policy, subjects []Subject, req Require) *Result {
	v := verification{receipt: r}
	if err := r.check(); err != nil {
		v.add(CheckReceipt, NotVerified, "%v", err)
		return &v.Result
	}
	if err := v.readCheckpoint(); err != nil {
		v.add(CheckReceipt, NotVerified, "%v", err)
		return &v.Result
	}
	v.add(CheckReceipt, Verified, "well-formed")
	v.leafCheck()
	v.originCheck()
	// No check waits for another one: a doubt about the log's key must not hide that the entry is not in its tree.
	signed, included := v.checkpointCheck(p), v.inclusionCheck()
	proven := signed && included
	if proven {
		v.Origin, v.LogKey, v.Witnesses, v.Quorum = v.checkpoint.Origin, v.verdict.LogKey, v.verdict.Witnesses, v.verdict.Quorum
		v.Index, v.TreeSize, v.LeafHash = r.Proof.Index, v.checkpoint.Size, merkle.LeafHash(r.Leaf).String()
	}
	if v.leaf != nil {
		v.genesisCheck()
		v.bodyCheck()
	}
	if v.leaf != nil && proven && v.Outcome != NotVerified {
		v.Facts = newFacts(v.leaf)
		if v.body != nil {
			v.Facts.body(v.body)
		}
	}
	v.subjects(subjects)
	v.requirements(req)
	v.limits(len(subjects))
	return &v.Result
}

// verification is a Result in the making.
type verification struct {
	Result

	receipt    *Receipt
	leaf       *lineage.Leaf         // nil if not understood
	body       *body                 // nil unless opened and committed to
	checkpoint checkpoint.Checkpoint // as it stands in the receipt, verified or not
	verdict    checkpoint.Verdict
	matched    [][]int // references that each subject is, so that requirements are asked of them
}

// body is an opened body, taken apart.
type body struct {
	names     lineage.Identifiers
	documents []lineage.Document
}

func (v *verification) add(name string, o Outcome, format string, args ...any) {
	v.Checks = append(v.Checks, Check{name, o, fmt.Sprintf(format, args...)})
	v.Outcome = worst(v.Outcome, o)
}

// readCheckpoint takes the proof apart. A receipt that was parsed passes; others are made by hand.
func (v *verification) readCheckpoint() error {
	p, err := checkpoint.ParseTlogProof(v.receipt.Proof.Text())
	if err != nil {
		return err
	}
	text := p.Checkpoint[:bytes.LastIndex(p.Checkpoint, []byte("\n\n"))+1]
	v.checkpoint, err = checkpoint.Parse(string(text))
	return err
}

func (v *verification) leafCheck() {
	l, err := lineage.ParseLeaf(v.receipt.Leaf)
	switch {
	case errors.Is(err, lineage.ErrUnknownSchema):
		v.add(CheckLeaf, Unknown, "%v", err)
	case err != nil:
		v.add(CheckLeaf, NotVerified, "%v", err)
	default:
		v.leaf = l
		v.add(CheckLeaf, Verified, "schema %d, in the one encoding", lineage.Schema)
	}
}

// originCheck keeps a leaf from being read under a log whose leaves are anything: who may append bytes of their choice to an opaque log
// could otherwise make up an entry.
func (v *verification) originCheck() {
	o, err := lineage.ParseOrigin(v.checkpoint.Origin)
	switch {
	case err != nil:
		v.add(CheckOrigin, NotVerified, "%v", err)
	case o.Kind != lineage.LineageLog:
		v.add(CheckOrigin, NotVerified, "%s is an %s log: its leaves are not entries", v.checkpoint.Origin, o.Kind)
	default:
		v.add(CheckOrigin, Verified, "lineage log %s", v.checkpoint.Origin)
	}
}

// checkpointCheck reports whether the checkpoint is verified.
func (v *verification) checkpointCheck(p *Policy) bool {
	if p == nil {
		v.add(CheckLogKey, Unknown, "no trust policy was given")
		return false
	}
	c, verdict, err := p.p.Verify(v.receipt.Proof.Checkpoint)
	switch {
	case errors.Is(err, checkpoint.ErrUnknownLog):
		v.add(CheckLogKey, Unknown, "the policy has no log %s", clip(v.checkpoint.Origin))
		return false
	case errors.Is(err, checkpoint.ErrUnsupportedKey):
		v.add(CheckLogKey, Unknown, "%v", err)
		return false
	case errors.Is(err, checkpoint.ErrNoQuorum):
		v.add(CheckLogKey, Verified, "the policy has the log")
		v.add(CheckSignature, Verified, "signed by the log")
		v.add(CheckWitnesses, NotVerified, "%v", err)
		return false
	case errors.Is(err, checkpoint.ErrMalformed):
		v.add(CheckReceipt, NotVerified, "%v", err)
		return false
	case err != nil:
		v.add(CheckSignature, NotVerified, "%v", err)
		return false
	}
	v.add(CheckLogKey, Verified, "%s", verdict.LogKey)
	v.add(CheckSignature, Verified, "tree size %d", c.Size)
	if verdict.Quorum == "none" {
		v.add(CheckWitnesses, Verified, "the policy asks for none")
	} else {
		v.add(CheckWitnesses, Verified, "quorum %s met by %s", verdict.Quorum, strings.Join(verdict.Witnesses, ", "))
	}
	v.verdict = verdict
	return true
}

// inclusionCheck reports whether the leaf is in the tree.
func (v *verification) inclusionCheck() bool {
	proof := &v.receipt.Proof
	if err := merkle.VerifyInclusion(merkle.LeafHash(v.receipt.Leaf), proof.Index, v.checkpoint.Size, proof.Hashes, v.checkpoint.Root); err != nil {
		v.add(CheckInclusion, NotVerified, "%v", err)
		return false
	}
	v.add(CheckInclusion, Verified, "entry %d of %d", proof.Index, v.checkpoint.Size)
	return true
}

func (v *verification) genesisCheck() {
	genesis := v.leaf.IsGenesis()
	switch first := v.receipt.Proof.Index == 0; {
	case !genesis && !first:
	case genesis != first:
		v.add(CheckGenesis, NotVerified, "entry %d is a %s event: the genesis is entry 0, and entry 0 is the genesis", v.receipt.Proof.Index, v.leaf.Kind)
	default:
		if err := genesisOf(v.leaf.Control, v.checkpoint.Origin); err != nil {
			v.add(CheckGenesis, NotVerified, "%v", err)
			return
		}
		v.add(CheckGenesis, Verified, "genesis of the log")
	}
}

// genesisOf holds the genesis to the origin under which it was recorded: what a log says of itself must be what its checkpoints say.
func genesisOf(c *lineage.Control, origin string) error {
	o, err := lineage.ParseOrigin(origin)
	if err != nil {
		return err
	}
	signer, _, _ := strings.Cut(c.VKey, "+") // no origin has a plus sign
	switch {
	case c.Origin != origin:
		return fmt.Errorf("it is the genesis of %q", clip(c.Origin))
	case c.LogKind != o.Kind || c.ClusterID != o.Cluster || c.LogName != o.Name:
		return errors.New("kind, cluster and name are not those of the origin")
	case c.HashAlgorithm != lineage.SHA256:
		return fmt.Errorf("its tree is hashed with %s, not sha256", c.HashAlgorithm)
	case signer != origin:
		return fmt.Errorf("its verifier key is that of %q", clip(signer))
	case c.SchemaDigest.Algorithm != lineage.SHA256:
		return fmt.Errorf("the digest of its schema is by %s, not sha256", c.SchemaDigest.Algorithm)
	case c.SchemaID == lineage.SchemaID && c.SchemaDigest != lineage.SchemaDigest():
		return fmt.Errorf("its schema %s has the digest %s, this version's %s", c.SchemaID, c.SchemaDigest, lineage.SchemaDigest())
	}
	return nil
}

// bodyCheck opens the body. A body that the leaf does not commit to is no doubt but a contradiction, and so is one that does not fit.
func (v *verification) bodyCheck() {
	if v.receipt.BodyState != Opened {
		if len(v.leaf.Bodies) == 0 {
			v.add(CheckBody, NotVerified, "it says %s, and the entry has none", v.receipt.BodyState)
		}
		return
	}
	b, err := openBody(v.leaf, v.receipt.Body)
	if err != nil {
		v.add(CheckBody, NotVerified, "%v", err)
		return
	}
	v.body = b
	switch n := len(v.receipt.Body); n {
	case 0:
		v.add(CheckBody, Verified, "the entry has none")
	default:
		v.add(CheckBody, Verified, "opens %d of %d commitments", n, len(v.leaf.Bodies))
	}
}

func openBody(l *lineage.Leaf, parts []lineage.BodyPart) (*body, error) {
	if err := lineage.OpenBody(l, parts); err != nil {
		return nil, err
	}
	b := &body{}
	for i := range parts {
		var err error
		switch p := &parts[i]; p.Kind {
		case lineage.PartIdentifiers:
			b.names, err = lineage.ParseIdentifiers(p.Content)
		case lineage.PartDocuments:
			b.documents, err = lineage.ParseDocuments(p.Content)
		case lineage.PartReferenceKey:
			if len(p.Content) != len(lineage.Key{}) {
				err = fmt.Errorf("reference key of %d bytes", len(p.Content))
			}
		}
		if err != nil {
			return nil, err
		}
	}
	return b, b.names.Fits(l)
}

// What no receipt can tell by itself, in [Result.NotChecked]: who also asks the ledger may know.
const (
	LaterUnchecked  = "whether later entries contradict this one (rejected, flagged, rolled back): only the ledger or a copy of it can tell"
	GrowthUnchecked = "whether the log has grown since, and still holds this: only the ledger or a newer checkpoint can tell"
)

// limits says what the outcome does not rest on, and what is no more than somebody's word.
func (v *verification) limits(subjects int) {
	not := func(format string, args ...any) { v.NotChecked = append(v.NotChecked, fmt.Sprintf(format, args...)) }
	not("whether what was said is true or approved: recorded and unaltered is all that a receipt shows")
	v.NotChecked = append(v.NotChecked, LaterUnchecked, GrowthUnchecked)
	if v.verdict.Quorum == "none" {
		not("whether the log shows others a different history: the policy asks for no witness")
	}
	if subjects == 0 {
		not("any file: none was given")
	}
	if v.Facts == nil {
		return // nothing of the leaf is shown that is not verified
	}
	l := v.leaf
	if len(l.Bodies) > 0 && v.body == nil {
		switch v.receipt.BodyState {
		case Withheld:
			not("the body, which is withheld: names, URIs and documents are not in this receipt")
		case Erased:
			not("the body, which is erased: names, URIs and documents are gone; that it is erased and not withheld is unsigned")
		}
	}
	if l.HasNames() {
		not("whether the name hashes of the leaf are those of the names: that takes the log's reference key")
	}
	if len(l.Entries) > 0 {
		not("the %d entries that this one relies on: each has a receipt of its own", len(l.Entries))
	}
	if !l.Policy.IsZero() {
		not("the policy %s: only its digest is recorded", l.Policy)
	}
	if l.ExpiresAt != 0 {
		not("whether the statement still holds: it expires at %s", timeText(l.ExpiresAt))
	}
	v.claims()
}

func (v *verification) claims() {
	l := v.leaf
	claim := func(format string, args ...any) { v.Claims = append(v.Claims, fmt.Sprintf(format, args...)) }
	claim("recorded_at: the ledger's clock")
	switch l.Authn {
	case lineage.AuthnNone:
		claim("principal: not authenticated")
	case lineage.AuthnOSUser:
		claim("principal: the operating system user of an embedded ledger")
	default:
		claim("principal: the ledger authenticated it (%s)", l.Authn)
	}
	if l.OccurredAt != 0 {
		claim("occurred_at: the producer's clock")
	}
	if l.Initiator != "" {
		claim("initiator: named by the principal")
	}
	switch l.Source {
	case lineage.Derived:
		claim("derived from a foreign document, which the body keeps")
	case lineage.Imported:
		claim("imported: history from elsewhere, not witnessed by this ledger")
	}
	for i := range l.References {
		switch r := &l.References[i]; r.Known {
		case lineage.Computed:
			claim("references[%d]: digest computed by the recording tool", i)
		case lineage.Claimed:
			claim("references[%d]: digest stated by the producer, not computed", i)
		case lineage.StoreVersion:
			claim("references[%d]: version of a store, by the producer's word", i)
		case lineage.NameOnly:
			claim("references[%d]: known by name only: no bytes are recorded", i)
		case lineage.Changed:
			claim("references[%d]: the bytes were other when the run ended", i)
		}
		if n := len(l.References[i].Aliases); n > 0 {
			claim("references[%d]: %d aliases, by the producer's word", i, n)
		}
	}
	if v.body != nil && len(v.receipt.Body) > 0 {
		claim("names, URIs, sizes and documents of the body: the producer's word")
	}
}
