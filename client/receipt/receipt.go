// Package receipt verifies offline that an event was recorded and has not been altered since.
//
// A [Receipt] is an entry of a log with everything that proves it: leaf, inclusion proof, signed checkpoint and, if its holder may see
// it, the opened body. [Verify] needs a trust policy (which log keys and witnesses count) and nothing else: no ledger, no network, no
// clock. It says "recorded and unaltered", never "true" or "approved", and lists what it did not check.
//
// # Contract
//
// Three outcomes are kept apart, by the [Result] and by the exit codes of ledgerctl: verified, NOT verified, could not tell. Whatever was
// not verified is not shown as a fact. A receipt has one file form, so each flipped bit fails, but for those inside signature lines that
// the policy does not need, where the facts are the same.
//
// # Format
//
// A receipt file is JSON in one fixed layout, see [Receipt.Encode]; docs/format.md specifies every byte.
package receipt

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/checkpoint"
)

// MediaType is the media type of a receipt file.
const MediaType = "application/vnd.provledger.receipt.v1+json"

// MaxFileBytes is the largest receipt file: twice what the largest leaf, body and checkpoint take in base64.
const MaxFileBytes = 4 << 20

// ErrMalformed is the errors.Is target of a file that is no receipt in the canonical form.
var ErrMalformed = errors.New("malformed receipt")

// BodyState says what a receipt has of the body of its entry. No signature covers it.
type BodyState string

// States of a body. An entry without a body is Opened: there is nothing to withhold or erase.
const (
	Opened   BodyState = "opened"   // all parts that the leaf commits to, with their keys
	Withheld BodyState = "withheld" // the holder may not see it, or did not ask
	Erased   BodyState = "erased"   // the ledger has it no more
)

// StateFor returns what a receipt says of the body of an entry where s is what whoever asks may have of it: there is nothing to withhold
// of an entry without a body.
func StateFor(l *lineage.Leaf, s BodyState) BodyState {
	if len(l.Bodies) == 0 {
		return Opened
	}
	return s
}

// Receipt proves that an entry is in a log.
type Receipt struct {
	Leaf      []byte // as recorded, see client/lineage
	BodyState BodyState
	Body      []lineage.BodyPart // opened only, in the order of the leaf's commitments
	Proof     checkpoint.TlogProof
}

// check holds r to the rules that the file layout does not express.
func (r *Receipt) check() error {
	switch {
	case r.BodyState != Opened && r.BodyState != Withheld && r.BodyState != Erased:
		return fmt.Errorf("%w: bodyState %q is not opened, withheld or erased", ErrMalformed, clip(string(r.BodyState)))
	case r.BodyState != Opened && len(r.Body) > 0:
		return fmt.Errorf("%w: a body that is %s has no parts", ErrMalformed, r.BodyState)
	case len(r.Leaf) > lineage.MaxLeafBytes:
		return fmt.Errorf("%w: leaf of %d bytes, at most %d", ErrMalformed, len(r.Leaf), lineage.MaxLeafBytes)
	}
	size := 0
	for i := range r.Body {
		size += len(r.Body[i].Content)
	}
	if size > lineage.MaxBodyBytes {
		return fmt.Errorf("%w: body of %d bytes, at most %d", ErrMalformed, size, lineage.MaxBodyBytes)
	}
	return nil
}

// Encode returns the receipt file:
//
//	{
//	  "mediaType": "application/vnd.provledger.receipt.v1+json",
//	  "leaf": "<base64>",
//	  "bodyState": "opened",
//	  "body": [
//	    {"part": 1, "key": "<base64>", "content": "<base64>"},
//	    {"part": 2, "key": "<base64>", "content": "<base64>"}
//	  ],
//	  "proof": "<text of a C2SP tlog-proof@v1>"
//	}
//
// It is UTF-8 with LF line ends, one after the last brace too. A body without parts is []. Base64 is RFC 4648 section 4 with padding. In
// the proof a quotation mark is \", a backslash is \\ and a line feed is \n; nothing else is escaped.
func (r *Receipt) Encode() []byte {
	proof := r.Proof.Text()
	n := 256 + base64.StdEncoding.EncodedLen(len(r.Leaf)) + len(proof) + 64 + len(r.Proof.Hashes)
	for i := range r.Body {
		n += 128 + base64.StdEncoding.EncodedLen(len(r.Body[i].Content))
	}
	b := make([]byte, 0, n)
	b = append(b, "{\n  \"mediaType\": \""+MediaType+"\",\n  \"leaf\": \""...)
	b = base64.StdEncoding.AppendEncode(b, r.Leaf)
	b = append(b, "\",\n  \"bodyState\": \""...)
	b = append(b, r.BodyState...)
	b = append(b, "\",\n  \"body\": ["...)
	for i := range r.Body {
		p := &r.Body[i]
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, "\n    {\"part\": "...)
		b = strconv.AppendUint(b, uint64(p.Kind), 10)
		b = append(b, ", \"key\": \""...)
		b = base64.StdEncoding.AppendEncode(b, p.Key[:])
		b = append(b, "\", \"content\": \""...)
		b = base64.StdEncoding.AppendEncode(b, p.Content)
		b = append(b, "\"}"...)
	}
	if len(r.Body) > 0 {
		b = append(b, "\n  "...)
	}
	b = append(b, "],\n  \"proof\": \""...)
	b = append(b, escaper.Replace(proof)...)
	return append(b, "\"\n}\n"...)
}

// A note holds no control character but LF, so these three are all that JSON requires to be escaped.
var escaper = strings.NewReplacer(`"`, `\"`, `\`, `\\`, "\n", `\n`)

// file is the layout of a receipt file for decoding.
type file struct {
	MediaType string `json:"mediaType"`
	Leaf      []byte `json:"leaf"`
	BodyState string `json:"bodyState"`
	Body      []part `json:"body"`
	Proof     string `json:"proof"`
}

type part struct {
	Part    uint8  `json:"part"`
	Key     []byte `json:"key"`
	Content []byte `json:"content"`
}

// Parse reads a receipt file. It accepts what Encode writes and nothing else: it decodes, encodes again and compares, which refuses
// unknown, repeated and misspelt keys, other white space, other escapes and loose base64 in one stroke. Nothing is verified. Errors wrap
// [ErrMalformed].
func Parse(b []byte) (*Receipt, error) {
	if len(b) > MaxFileBytes {
		return nil, fmt.Errorf("%w: file of %d bytes, at most %d", ErrMalformed, len(b), MaxFileBytes)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	var f file
	if err := d.Decode(&f); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrMalformed, err)
	}
	if f.MediaType != MediaType {
		return nil, fmt.Errorf("%w: media type %q, not %s", ErrMalformed, clip(f.MediaType), MediaType)
	}
	r := &Receipt{Leaf: f.Leaf, BodyState: BodyState(f.BodyState)}
	for i, p := range f.Body {
		if len(p.Key) != len(lineage.Key{}) {
			return nil, fmt.Errorf("%w: body[%d].key has %d bytes, not %d", ErrMalformed, i, len(p.Key), len(lineage.Key{}))
		}
		r.Body = append(r.Body, lineage.BodyPart{Kind: lineage.PartKind(p.Part), Key: lineage.Key(p.Key), Content: p.Content})
	}
	if err := r.check(); err != nil {
		return nil, err
	}
	var err error
	if r.Proof, err = checkpoint.ParseTlogProof(f.Proof); err != nil {
		return nil, fmt.Errorf("%w: proof: %w", ErrMalformed, err)
	}
	if again := r.Encode(); !bytes.Equal(again, b) {
		at := 0
		for at < len(again) && at < len(b) && again[at] == b[at] {
			at++
		}
		return nil, fmt.Errorf("%w: byte %d is not as in the one layout of a receipt; was the file reformatted?", ErrMalformed, at)
	}
	return r, nil
}

// clip shortens untrusted text for a message.
func clip(s string) string {
	const most = 80
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}
