// Package checkpoint makes and checks the signed statements of a log about its tree.
//
// # Contract
//
// There is one text for each statement. Every parser of this package refuses what its printer would not have written: a leading
// zero, a base64 text with stray trailing bits, an extension line, a byte too many. So whoever verified a text may compare,
// hash and store it, and no bit of it can be flipped unnoticed, but for signature lines by keys that the verifier does not know.
//
// Errors tell three outcomes apart. NOT verified: [ErrMalformed], [ErrBadSignature], [ErrNoQuorum]. Could not tell:
// [ErrUnknownLog], [ErrUnsupportedKey]. Verified: nil. Nothing that was not verified is ever returned beside an error.
//
// # Format
//
// A checkpoint (C2SP tlog-checkpoint) is three lines, each ended by LF:
//
//	origin               name of the log, not empty
//	size                 number of leaves, decimal, no leading zero
//	root                 base64 (RFC 4648 section 4) of the 32-byte root
//
// A signed checkpoint (C2SP signed-note) is that text, an empty line, and one or more signature lines:
//
//	— name base64(4-byte key id || signature)
//
// The dash is U+2014. A log signs with Ed25519 (type 0x01) over the three lines. A witness cosigns (type 0x04, C2SP
// tlog-cosignature) with an 8-byte big-endian time in front of the signature, over
//
//	cosignature/v1
//	time <decimal seconds>
//	<the three lines>
//
// A verification key is written as name+hex(key id)+base64(type || public key), the key id being the first four bytes of
// SHA-256(name || LF || type || public key).
package checkpoint

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/provledger/provledger/internal/merkle"
)

// MaxSize is the largest tree size, in leaves. A size thus fits the signed 64-bit integers of other programs, takes at most 19
// digits, and no proof is longer than the 63 hashes that C2SP carries.
const MaxSize = 1<<63 - 1

// MaxNameBytes is the largest origin or key name, in bytes: C2SP tlog-cosignature cannot cosign a longer one.
const MaxNameBytes = 255

var (
	// ErrMalformed is the errors.Is target of everything that is not in the one canonical form.
	ErrMalformed = errors.New("checkpoint: malformed")

	// ErrBadSignature says that a known key's signature is wrong, or that a required key did not sign.
	ErrBadSignature = errors.New("checkpoint: signature not valid")

	// ErrNoQuorum says that the log's signature is good but too few witnesses cosigned for the policy.
	ErrNoQuorum = errors.New("checkpoint: too few cosignatures")

	// ErrUnknownLog says that the policy has no log of this origin, so that it cannot be told whether the checkpoint is good.
	ErrUnknownLog = errors.New("checkpoint: log not in the policy")

	// ErrUnsupportedKey says that the outcome rests on a type of key that this program cannot verify, so that it cannot be told
	// whether the checkpoint is good.
	ErrUnsupportedKey = errors.New("checkpoint: unsupported type of key")
)

// Checkpoint is a log's statement that its first Size leaves have the given Merkle root.
type Checkpoint struct {
	Origin string
	Size   uint64
	Root   merkle.Hash
}

// Text returns the body of the checkpoint (C2SP tlog-checkpoint), without extension lines.
func (c Checkpoint) Text() string {
	return string(c.appendText(make([]byte, 0, c.textBytes())))
}

// sizeDigits is the length of MaxSize in decimal.
const sizeDigits = 19

// textBytes returns an upper bound of the length of Text.
func (c Checkpoint) textBytes() int {
	return len(c.Origin) + sizeDigits + base64Len(merkle.HashSize) + len("\n\n\n")
}

func base64Len(n int) int { return base64.StdEncoding.EncodedLen(n) }

func (c Checkpoint) appendText(b []byte) []byte {
	b = append(b, c.Origin...)
	b = append(b, '\n')
	b = strconv.AppendUint(b, c.Size, 10)
	b = append(b, '\n')
	b = base64.StdEncoding.AppendEncode(b, c.Root[:])
	return append(b, '\n')
}

// validate checks what every checkpoint that is read or signed must satisfy.
func (c Checkpoint) validate() error {
	if err := checkOrigin(c.Origin); err != nil {
		return err
	}
	if c.Size > MaxSize {
		return fmt.Errorf("%w: size %d, limit %d", ErrMalformed, c.Size, uint64(MaxSize))
	}
	if c.Size == 0 && c.Root != merkle.EmptyRoot() {
		return fmt.Errorf("%w: size 0 with root %s, want %s", ErrMalformed, c.Root, merkle.EmptyRoot())
	}
	return nil
}

func checkOrigin(origin string) error {
	if origin == "" || len(origin) > MaxNameBytes {
		return fmt.Errorf("%w: origin of %d bytes, want 1 to %d", ErrMalformed, len(origin), MaxNameBytes)
	}
	if !utf8.ValidString(origin) || strings.ContainsFunc(origin, isControl) {
		return fmt.Errorf("%w: origin is not UTF-8 or has a control character", ErrMalformed)
	}
	return nil
}

// isControl reports whether a signed note must not contain the character (C2SP signed-note), LF apart.
func isControl(r rune) bool { return r < 0x20 }

// Parse is the inverse of [Checkpoint.Text]: it accepts exactly the texts that Text returns for a size up to [MaxSize] and, at
// size 0, the root of the empty tree. All else is [ErrMalformed].
func Parse(text string) (Checkpoint, error) {
	origin, rest, _ := strings.Cut(text, "\n")
	size, rest, _ := strings.Cut(rest, "\n")
	root, rest, ok := strings.Cut(rest, "\n")
	if !ok {
		return Checkpoint{}, fmt.Errorf("%w: checkpoint must have three lines, each ended by LF", ErrMalformed)
	}
	if rest != "" {
		return Checkpoint{}, fmt.Errorf("%w: checkpoint has extension lines, which are not accepted", ErrMalformed)
	}
	c := Checkpoint{Origin: origin}
	var err error
	if c.Size, err = parseDecimal(size); err != nil {
		return Checkpoint{}, fmt.Errorf("%w: size: %v", ErrMalformed, err)
	}
	if c.Root, err = parseHash(root); err != nil {
		return Checkpoint{}, fmt.Errorf("%w: root: %v", ErrMalformed, err)
	}
	if err := c.validate(); err != nil {
		return Checkpoint{}, err
	}
	return c, nil
}

// parseDecimal reads a number up to MaxSize that has no sign and no leading zero.
func parseDecimal(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil || strconv.FormatUint(n, 10) != s {
		return 0, fmt.Errorf("%.*q is not a decimal number from 0 to %d without leading zero", 2*sizeDigits, s, uint64(MaxSize))
	}
	return n, nil
}

// parseHash reads the canonical base64 of 32 bytes.
func parseHash(s string) (merkle.Hash, error) {
	var h merkle.Hash
	b, err := decodeBase64(s)
	if err != nil {
		return h, err
	}
	if len(b) != len(h) {
		return h, fmt.Errorf("got %d bytes, want %d", len(b), len(h))
	}
	return merkle.Hash(b), nil
}

// decodeBase64 reads standard base64 with padding. Each byte string has one text: stray trailing bits are refused by Strict, and
// line breaks, which the standard library skips, here.
func decodeBase64(s string) ([]byte, error) {
	if strings.ContainsAny(s, "\r\n") {
		return nil, errors.New("line break in base64")
	}
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil {
		return nil, errors.New("not canonical base64 (RFC 4648 section 4)")
	}
	return b, nil
}
