package checkpoint

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strings"
	"unicode/utf8"

	"golang.org/x/mod/sumdb/note"
)

const (
	// MaxSignatures is the largest number of signature lines of a note. C2SP signed-note wants at least 16, and a policy may well
	// have 32 witnesses. Each line by a known key costs a verification, about 50 us.
	MaxSignatures = 64

	// MaxNoteBytes is the largest signed checkpoint, in bytes: room for MaxSignatures lines of 3.5 kB, the size of a post-quantum
	// cosignature under the longest name. It bounds what is parsed before anything is verified.
	MaxNoteBytes = 256 << 10
)

const (
	signaturePrefix = "— " // U+2014 and a space
	timeBytes       = 8
	cosignatureHead = "cosignature/v1\ntime "
)

// Sign returns the signed note over c: the same bytes as [note.Sign] with one signer gives, with few allocations, since each
// command that is committed waits for it. The origin must be the name of the key. What could never be verified, such as a size
// over [MaxSize], is not signed but [ErrMalformed].
func Sign(c Checkpoint, k *Key) ([]byte, error) {
	if c.Origin != k.name {
		return nil, fmt.Errorf("%w: origin %q is not the name of the key, %q", ErrMalformed, c.Origin, k.name)
	}
	if err := c.validate(); err != nil {
		return nil, err
	}
	const blobBytes = keyIDBytes + ed25519.SignatureSize
	b := make([]byte, 0, c.textBytes()+len("\n"+signaturePrefix)+len(k.name)+len(" \n")+base64.StdEncoding.EncodedLen(blobBytes))
	b = c.appendText(b)
	var blob [blobBytes]byte
	binary.BigEndian.PutUint32(blob[:], k.id)
	copy(blob[keyIDBytes:], ed25519.Sign(k.private, b))
	b = append(b, "\n"+signaturePrefix...)
	b = append(b, k.name...)
	b = append(b, ' ')
	b = base64.StdEncoding.AppendEncode(b, blob[:])
	return append(b, '\n'), nil
}

// signedNote is a note that has been taken apart, of which nothing has been verified.
type signedNote struct {
	text       []byte // with its final LF: what is signed
	signatures []signature
}

// signature is a signature line.
type signature struct {
	name string
	id   uint32
	blob []byte // what follows the key id
}

// parseNote takes a signed note apart. It does here what note.Open does, because that has no limit on size, accepts stray
// trailing bits in base64, and never looks at the second signature of a key: each a byte that could be changed unnoticed.
func parseNote(signed []byte) (*signedNote, error) {
	if len(signed) > MaxNoteBytes {
		return nil, fmt.Errorf("%w: signed note of %d bytes, limit %d", ErrMalformed, len(signed), MaxNoteBytes)
	}
	if !utf8.Valid(signed) {
		return nil, fmt.Errorf("%w: signed note is not UTF-8", ErrMalformed)
	}
	if i := bytes.IndexFunc(signed, func(r rune) bool { return isControl(r) && r != '\n' }); i >= 0 {
		return nil, fmt.Errorf("%w: signed note has control byte 0x%02x at %d", ErrMalformed, signed[i], i)
	}
	split := bytes.LastIndex(signed, []byte("\n\n"))
	if split < 0 {
		return nil, fmt.Errorf("%w: signed note has no empty line before its signatures", ErrMalformed)
	}
	n := &signedNote{text: signed[:split+1]}
	lines, ok := strings.CutSuffix(string(signed[split+2:]), "\n")
	if !ok {
		return nil, fmt.Errorf("%w: signed note does not end with a signature line and LF", ErrMalformed)
	}
	for line := range strings.SplitSeq(lines, "\n") {
		if len(n.signatures) == MaxSignatures {
			return nil, fmt.Errorf("%w: signed note has more than %d signatures", ErrMalformed, MaxSignatures)
		}
		s, err := parseSignature(line)
		if err != nil {
			return nil, fmt.Errorf("%w: signature line %d: %v", ErrMalformed, len(n.signatures)+1, err)
		}
		n.signatures = append(n.signatures, s)
	}
	return n, nil
}

func parseSignature(line string) (signature, error) {
	line, ok := strings.CutPrefix(line, signaturePrefix)
	if !ok {
		return signature{}, fmt.Errorf("does not start with U+2014 and a space")
	}
	name, encoded, ok := strings.Cut(line, " ")
	if !ok {
		return signature{}, fmt.Errorf("has no space after the key name")
	}
	if err := checkKeyName(name); err != nil {
		return signature{}, err
	}
	blob, err := decodeBase64(encoded)
	if err != nil {
		return signature{}, err
	}
	if len(blob) <= keyIDBytes {
		return signature{}, fmt.Errorf("got %d bytes, want a %d-byte key id and a signature", len(blob), keyIDBytes)
	}
	return signature{name: name, id: binary.BigEndian.Uint32(blob), blob: blob[keyIDBytes:]}, nil
}

// Open returns the checkpoint of a signed note if v signed it and its origin is the name of v. Signatures by other keys are not
// looked at; every one by v must be good. Fails with [ErrMalformed] or [ErrBadSignature].
func Open(signed []byte, v note.Verifier) (Checkpoint, error) {
	n, err := parseNote(signed)
	if err != nil {
		return Checkpoint{}, err
	}
	found := false
	for _, s := range n.signatures {
		if s.name != v.Name() || s.id != v.KeyHash() {
			continue
		}
		if !v.Verify(n.text, s.blob) {
			return Checkpoint{}, fmt.Errorf("%w: by %s+%08x", ErrBadSignature, s.name, s.id)
		}
		found = true
	}
	if !found {
		return Checkpoint{}, fmt.Errorf("%w: none by %s+%08x", ErrBadSignature, v.Name(), v.KeyHash())
	}
	c, err := Parse(string(n.text))
	if err != nil {
		return Checkpoint{}, err
	}
	if c.Origin != v.Name() {
		return Checkpoint{}, fmt.Errorf("%w: key %s signed for the origin %q of another log", ErrBadSignature, v.Name(), c.Origin)
	}
	return c, nil
}

// verifyCosignature checks a timestamped Ed25519 cosignature (C2SP tlog-cosignature) over the text of a checkpoint. The time is
// covered by the signature; whether it is recent is not for an offline verifier to say.
func verifyCosignature(public ed25519.PublicKey, text, blob []byte) bool {
	if len(blob) != timeBytes+ed25519.SignatureSize {
		return false
	}
	seconds := binary.BigEndian.Uint64(blob)
	if seconds > MaxSize { // C2SP: a time must not exceed 2^63-1
		return false
	}
	return ed25519.Verify(public, cosignedMessage(seconds, text), blob[timeBytes:])
}

// cosignedMessage returns what an Ed25519 cosignature signs: two header lines and the whole text of the checkpoint.
func cosignedMessage(seconds uint64, text []byte) []byte {
	return fmt.Appendf(nil, "%s%d\n%s", cosignatureHead, seconds, text)
}
