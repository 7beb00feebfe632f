package lineage

import (
	"encoding/hex"
	"fmt"
	"strings"
)

// Algorithm is how an identity was computed. The numbers stand in leaves and never change.
type Algorithm uint8

// Algorithms. NameHMAC is the identity of a thing known by name: HMAC-SHA-256 under the log's reference key; it never comes from a
// producer. SHA-1 and MD5 are accepted as aliases only: they find things, they prove nothing.
const (
	NameHMAC  Algorithm = 1
	SHA256    Algorithm = 2
	SHA384    Algorithm = 3
	SHA512    Algorithm = 4
	SHA512256 Algorithm = 5
	SHA3256   Algorithm = 6
	SHA3384   Algorithm = 7
	SHA3512   Algorithm = 8
	BLAKE2b   Algorithm = 9  // 512 bits
	BLAKE3    Algorithm = 10 // 256 bits
	DirHash   Algorithm = 11 // in-toto dirHash: Go dirhash h1
	OMSRoot   Algorithm = 12 // OpenSSF model-signing root digest
	GitCommit Algorithm = 13 // SHA-1 or SHA-256 object id
	GitTree   Algorithm = 14
	GitBlob   Algorithm = 15
	GitTag    Algorithm = 16
	SHA1      Algorithm = 17 // alias only
	MD5       Algorithm = 18 // alias only
)

type algorithmInfo struct {
	name    string
	sizes   [2]int // accepted lengths in bytes; 0 unused
	primary bool   // may be the primary identity of a reference
}

var algorithms = [...]algorithmInfo{
	NameHMAC:  {"name", [2]int{32}, true},
	SHA256:    {"sha256", [2]int{32}, true},
	SHA384:    {"sha384", [2]int{48}, true},
	SHA512:    {"sha512", [2]int{64}, true},
	SHA512256: {"sha512_256", [2]int{32}, true},
	SHA3256:   {"sha3_256", [2]int{32}, true},
	SHA3384:   {"sha3_384", [2]int{48}, true},
	SHA3512:   {"sha3_512", [2]int{64}, true},
	BLAKE2b:   {"blake2b", [2]int{64}, true},
	BLAKE3:    {"blake3", [2]int{32}, true},
	DirHash:   {"dirHash", [2]int{32}, true},
	OMSRoot:   {"omsRoot", [2]int{32}, false}, // ignores file names, so it is no identity
	GitCommit: {"gitCommit", [2]int{20, 32}, true},
	GitTree:   {"gitTree", [2]int{20, 32}, true},
	GitBlob:   {"gitBlob", [2]int{20, 32}, true},
	GitTag:    {"gitTag", [2]int{20, 32}, true},
	SHA1:      {"sha1", [2]int{20}, false},
	MD5:       {"md5", [2]int{16}, false},
}

func (a Algorithm) info() (algorithmInfo, bool) {
	if int(a) >= len(algorithms) || algorithms[a].name == "" {
		return algorithmInfo{}, false
	}
	return algorithms[a], true
}

// String returns the in-toto name of the algorithm.
func (a Algorithm) String() string {
	if i, ok := a.info(); ok {
		return i.name
	}
	return fmt.Sprintf("unknown(%d)", uint8(a))
}

// ParseAlgorithm reads an in-toto digest name; dirHash1 is read as dirHash (the specification's own example spells it so).
func ParseAlgorithm(s string) (Algorithm, error) {
	if s == "dirHash1" {
		return DirHash, nil
	}
	for a, i := range algorithms {
		if i.name == s && s != "" && Algorithm(a) != NameHMAC {
			return Algorithm(a), nil
		}
	}
	return 0, fmt.Errorf("unknown digest algorithm %q; known are sha256, sha384, sha512, sha512_256, sha3_256, sha3_384, sha3_512, blake2b, blake3, dirHash, gitCommit, gitTree, gitBlob, gitTag, and as aliases omsRoot, sha1, md5", clip(s))
}

// Digest is one identity. Value holds the raw bytes as a string, so that a Digest is comparable and usable as a map key.
type Digest struct {
	Algorithm Algorithm
	Value     string
}

// IsZero reports whether d identifies nothing.
func (d Digest) IsZero() bool { return d == Digest{} }

// String returns ALGORITHM:HEX, lowercase.
func (d Digest) String() string {
	if d.IsZero() {
		return ""
	}
	return d.Algorithm.String() + ":" + hex.EncodeToString([]byte(d.Value))
}

// Proves reports whether equal digests prove equal bytes. Alias-only algorithms and the 20-byte ids of Git find things: who can make SHA-1
// or MD5 collide makes two files of one digest, and an OMS root ignores file names. The hash of a name says nothing of bytes.
func (d Digest) Proves() bool {
	info, ok := d.Algorithm.info()
	return ok && info.primary && d.Algorithm != NameHMAC && len(d.Value) >= 32
}

// ParseDigest reads ALGORITHM:HEX. Hex digits may be in either case; String prints them in lower case.
func ParseDigest(s string) (Digest, error) {
	name, digits, ok := strings.Cut(s, ":")
	if !ok {
		return Digest{}, fmt.Errorf("digest %q is not ALGORITHM:HEX", clip(s))
	}
	a, err := ParseAlgorithm(name)
	if err != nil {
		return Digest{}, err
	}
	var buf [64]byte
	n := len(digits) / 2
	if n > len(buf) || 2*n != len(digits) {
		return Digest{}, fmt.Errorf("digest %q: %d hex digits do not fit %s", clip(s), len(digits), a)
	}
	for i := range n {
		hi, lo := nibbles[digits[2*i]], nibbles[digits[2*i+1]]
		if hi|lo > 0xf {
			return Digest{}, fmt.Errorf("digest %q: has a character that is no hex digit", clip(s))
		}
		buf[i] = hi<<4 | lo
	}
	d := Digest{a, string(buf[:n])}
	if err := d.check(); err != nil {
		return Digest{}, fmt.Errorf("digest %q: %w", clip(s), err)
	}
	return d, nil
}

// nibbles maps a hex digit to its value and every other byte to 0xff. A table, for a digest is read three times an event.
var nibbles = func() (t [256]byte) {
	for i := range t {
		t[i] = 0xff
	}
	for i := range 16 {
		t["0123456789abcdef"[i]], t["0123456789ABCDEF"[i]] = byte(i), byte(i)
	}
	return t
}()

func (d Digest) check() error {
	i, ok := d.Algorithm.info()
	if !ok {
		return fmt.Errorf("unknown algorithm %d", uint8(d.Algorithm))
	}
	switch n := len(d.Value); {
	case n == i.sizes[0], i.sizes[1] != 0 && n == i.sizes[1]:
		return nil
	case i.sizes[1] != 0:
		return fmt.Errorf("%s has %d or %d hex digits, not %d", i.name, 2*i.sizes[0], 2*i.sizes[1], 2*n)
	default:
		return fmt.Errorf("%s has %d hex digits, not %d", i.name, 2*i.sizes[0], 2*n)
	}
}

// checkIdentity holds d to what an identity by digest must be: neither alias only nor the hash of a name.
func (d Digest) checkIdentity() error {
	if err := d.check(); err != nil {
		return err
	}
	if info, _ := d.Algorithm.info(); !info.primary || d.Algorithm == NameHMAC {
		return fmt.Errorf("%s may be an alias only", d.Algorithm)
	}
	return nil
}

// OfContent reports whether the algorithm hashes the plain bytes of a file, or those behind a Git blob header.
func (a Algorithm) OfContent() bool {
	return a >= SHA256 && a <= BLAKE3 || a == GitBlob || a == SHA1 || a == MD5
}

// OfDirectory reports whether the algorithm hashes the files of a directory.
func (a Algorithm) OfDirectory() bool {
	return a == DirHash || a == OMSRoot || a == GitTree
}
