package checkpoint

import (
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"

	"github.com/provledger/provledger/internal/merkle"
)

const (
	// MaxProofHashes is the largest number of hashes of an inclusion proof in a tree of at most MaxSize leaves.
	MaxProofHashes = 63

	tlogProofHeader = "c2sp.org/tlog-proof@v1"
	indexPrefix     = "index "
)

// MaxTlogProofBytes is the largest text of a tlog-proof, in bytes.
const MaxTlogProofBytes = len(tlogProofHeader+"\n"+indexPrefix+"\n\n") + sizeDigits + MaxProofHashes*hashLine + MaxNoteBytes

// hashLine is the length of a line with the base64 of a hash.
const hashLine = (merkle.HashSize+2)/3*4 + len("\n")

// TlogProof is a C2SP tlog-proof@v1 without extra data: the place of a leaf in the tree of a checkpoint. The leaf is not part of it.
type TlogProof struct {
	Index      uint64
	Hashes     []merkle.Hash // inclusion proof, leaf side first
	Checkpoint []byte        // signed note, verbatim
}

// Text returns the text of the proof:
//
//	c2sp.org/tlog-proof@v1
//	index <decimal>
//	<base64 of a hash>, a line each
//	(empty line)
//	<signed checkpoint>
func (p TlogProof) Text() string {
	b := make([]byte, 0, len(tlogProofHeader+"\n"+indexPrefix+"\n\n")+sizeDigits+len(p.Hashes)*hashLine+len(p.Checkpoint))
	b = append(b, tlogProofHeader+"\n"+indexPrefix...)
	b = strconv.AppendUint(b, p.Index, 10)
	b = append(b, '\n')
	for _, h := range p.Hashes {
		b = base64.StdEncoding.AppendEncode(b, h[:])
		b = append(b, '\n')
	}
	b = append(b, '\n')
	return string(append(b, p.Checkpoint...))
}

// ParseTlogProof is the inverse of [TlogProof.Text]. It accepts what Text returns for an index below [MaxSize], at most
// [MaxProofHashes] hashes and a well-formed signed checkpoint, and nothing else: an extra line, which no signature covers, is
// [ErrMalformed] too. Nothing is verified.
func ParseTlogProof(text string) (TlogProof, error) {
	if len(text) > MaxTlogProofBytes {
		return TlogProof{}, fmt.Errorf("%w: tlog-proof of %d bytes, limit %d", ErrMalformed, len(text), MaxTlogProofBytes)
	}
	rest, ok := strings.CutPrefix(text, tlogProofHeader+"\n")
	if !ok {
		return TlogProof{}, fmt.Errorf("%w: tlog-proof does not start with the line %s", ErrMalformed, tlogProofHeader)
	}
	line, rest, ok := strings.Cut(rest, "\n")
	index, isIndex := strings.CutPrefix(line, indexPrefix)
	if !ok || !isIndex {
		return TlogProof{}, fmt.Errorf("%w: tlog-proof: second line must be the index; an extra line is not accepted", ErrMalformed)
	}
	var p TlogProof
	var err error
	if p.Index, err = parseDecimal(index); err != nil {
		return TlogProof{}, fmt.Errorf("%w: tlog-proof: index: %v", ErrMalformed, err)
	}
	for {
		line, rest, ok = strings.Cut(rest, "\n")
		if !ok {
			return TlogProof{}, fmt.Errorf("%w: tlog-proof ends before its checkpoint", ErrMalformed)
		}
		if line == "" {
			break
		}
		if len(p.Hashes) == MaxProofHashes {
			return TlogProof{}, fmt.Errorf("%w: tlog-proof has more than %d hashes", ErrMalformed, MaxProofHashes)
		}
		h, err := parseHash(line)
		if err != nil {
			return TlogProof{}, fmt.Errorf("%w: tlog-proof: hash %d: %v", ErrMalformed, len(p.Hashes), err)
		}
		p.Hashes = append(p.Hashes, h)
	}
	p.Checkpoint = []byte(rest)
	n, err := parseNote(p.Checkpoint)
	if err != nil {
		return TlogProof{}, fmt.Errorf("tlog-proof: %w", err)
	}
	c, err := Parse(string(n.text))
	if err != nil {
		return TlogProof{}, fmt.Errorf("tlog-proof: %w", err)
	}
	if p.Index >= c.Size {
		return TlogProof{}, fmt.Errorf("%w: tlog-proof: leaf %d of a tree of size %d", ErrMalformed, p.Index, c.Size)
	}
	return p, nil
}
