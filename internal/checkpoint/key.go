package checkpoint

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/mod/sumdb/note"
)

// Signature types of C2SP signed-note.
const (
	typeEd25519     = 0x01 // a log's signature
	typeCosignature = 0x04 // timestamped Ed25519 cosignature
	typeMLDSA44     = 0x06 // timestamped ML-DSA-44 cosignature: known, not verified yet
)

// mldsa44PublicBytes is the length of an ML-DSA-44 public key (FIPS 204).
const mldsa44PublicBytes = 1312

const keyIDBytes = 4

// Key is the Ed25519 key of a log. It implements [note.Signer] and is safe for concurrent use.
type Key struct {
	name    string
	id      uint32
	private ed25519.PrivateKey
}

var _ note.Signer = (*Key)(nil)

// NewKey returns the key that an Ed25519 seed (RFC 8032 private key) gives, under a name that is the origin of its log: 1 to 255
// bytes of UTF-8 without space, control character or '+'.
func NewKey(name string, seed *[ed25519.SeedSize]byte) (*Key, error) {
	if err := checkKeyName(name); err != nil {
		return nil, err
	}
	private := ed25519.NewKeyFromSeed(seed[:])
	return &Key{name: name, id: keyID(name, typeEd25519, private[ed25519.SeedSize:]), private: private}, nil
}

// Name returns the name of the key.
func (k *Key) Name() string { return k.name }

// KeyHash returns the key id.
func (k *Key) KeyHash() uint32 { return k.id }

// Sign returns the 64-byte Ed25519 signature of msg, without the key id. It never fails.
func (k *Key) Sign(msg []byte) ([]byte, error) { return ed25519.Sign(k.private, msg), nil }

// VKey returns the text of the verification key, name+hex(id)+base64(0x01 || public key).
func (k *Key) VKey() string {
	return formatVKey(k.name, k.id, typeEd25519, k.private[ed25519.SeedSize:])
}

// String returns the verification key, so that no print statement shows the private one.
func (k *Key) String() string { return k.VKey() }

// GoString does for %#v what String does for the other verbs.
func (k *Key) GoString() string { return strconv.Quote(k.VKey()) }

// checkKeyName checks a key name as C2SP signed-note defines it, with the limit of C2SP tlog-cosignature.
func checkKeyName(name string) error {
	if name == "" || len(name) > MaxNameBytes {
		return fmt.Errorf("%w: key name of %d bytes, want 1 to %d", ErrMalformed, len(name), MaxNameBytes)
	}
	bad := func(r rune) bool { return isControl(r) || unicode.IsSpace(r) || r == '+' }
	if !utf8.ValidString(name) || strings.ContainsFunc(name, bad) {
		return fmt.Errorf("%w: key name %q is not UTF-8 or has a space, a control character or '+'", ErrMalformed, name)
	}
	return nil
}

func keyID(name string, typ byte, public []byte) uint32 {
	b := make([]byte, 0, len(name)+len("\n")+1+len(public))
	b = append(b, name...)
	b = append(b, '\n', typ)
	b = append(b, public...)
	sum := sha256.Sum256(b)
	return binary.BigEndian.Uint32(sum[:keyIDBytes])
}

func formatVKey(name string, id uint32, typ byte, public []byte) string {
	return fmt.Sprintf("%s+%08x+%s", name, id, base64.StdEncoding.EncodeToString(append([]byte{typ}, public...)))
}

// verifier is the public half of a key, of one of the three types above. It implements [note.Verifier].
type verifier struct {
	name   string
	id     uint32
	typ    byte
	public []byte
}

// NewVerifier returns the verifier of an Ed25519 log key (type 0x01) from its canonical text, as [Key.VKey] gives it. A key of
// another type is [ErrUnsupportedKey], everything else [ErrMalformed].
func NewVerifier(vkey string) (note.Verifier, error) {
	v, err := parseVKey(vkey)
	if err != nil {
		return nil, err
	}
	if v.typ != typeEd25519 {
		return nil, fmt.Errorf("%w: %s has type 0x%02x, want 0x%02x (Ed25519 log key)", ErrUnsupportedKey, v.name, v.typ, typeEd25519)
	}
	return v, nil
}

func parseVKey(vkey string) (*verifier, error) {
	name, rest, _ := strings.Cut(vkey, "+")
	idHex, encoded, ok := strings.Cut(rest, "+")
	if !ok {
		return nil, fmt.Errorf("%w: verification key must be name+id+key", ErrMalformed)
	}
	if err := checkKeyName(name); err != nil {
		return nil, err
	}
	key, err := decodeBase64(encoded)
	if err != nil {
		return nil, fmt.Errorf("%w: verification key of %s: %v", ErrMalformed, name, err)
	}
	if len(key) == 0 {
		return nil, fmt.Errorf("%w: verification key of %s is empty", ErrMalformed, name)
	}
	v := &verifier{name: name, typ: key[0], public: key[1:]}
	want := ed25519.PublicKeySize
	switch v.typ {
	case typeEd25519, typeCosignature:
	case typeMLDSA44:
		want = mldsa44PublicBytes
	default:
		return nil, fmt.Errorf("%w: %s has type 0x%02x", ErrUnsupportedKey, name, v.typ)
	}
	if len(v.public) != want {
		return nil, fmt.Errorf("%w: verification key of %s: got %d bytes, want %d", ErrMalformed, name, len(v.public), want)
	}
	v.id = keyID(name, v.typ, v.public)
	if got := fmt.Sprintf("%08x", v.id); got != idHex {
		return nil, fmt.Errorf("%w: verification key of %s: id %.*q, want %s", ErrMalformed, name, 2*len(got), idHex, got)
	}
	return v, nil
}

func (v *verifier) Name() string    { return v.name }
func (v *verifier) KeyHash() uint32 { return v.id }

// Verify reports whether sig, without its key id, is good for msg, the text of a note. It is false for a key that is not
// supported.
func (v *verifier) Verify(msg, sig []byte) bool {
	switch v.typ {
	case typeEd25519:
		return ed25519.Verify(v.public, msg, sig)
	case typeCosignature:
		return verifyCosignature(v.public, msg, sig)
	default:
		return false
	}
}

// supported reports whether Verify can tell a good signature from a bad one.
func (v *verifier) supported() bool { return v.typ != typeMLDSA44 }

func (v *verifier) vkey() string { return formatVKey(v.name, v.id, v.typ, v.public) }
