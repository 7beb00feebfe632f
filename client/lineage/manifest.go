package lineage

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"
	"unicode/utf8"
)

// ManifestMediaType is the media type of an encoded [Manifest].
const ManifestMediaType = "application/vnd.provledger.manifest.v1+json"

// MaxInlineManifest is how many bytes of manifests one event carries in its body. The rest of the body limit (1 MiB) is for names,
// parameters and the like; a larger manifest is recorded as an artifact of its own, by its digest.
const MaxInlineManifest = 768 << 10

// Member is a file of a directory.
type Member struct {
	Path   string `json:"path"`   // see CheckMemberPath
	SHA256 string `json:"sha256"` // lower-case hex
	Size   int64  `json:"size"`   // bytes; the dirHash does not cover it
}

// Digest returns the member's identity.
func (m Member) Digest() Digest {
	b, _ := hex.DecodeString(m.SHA256)
	return Digest{SHA256, string(b)}
}

// Manifest lists the files of a directory in byte order of their paths. It proves files to be members of a directory whose dirHash is
// recorded: the dirHash is computed from the list, so who trusts the one trusts the other.
type Manifest struct {
	DirHash Digest
	Files   []Member
}

// NewManifest returns the manifest of files, which stand in byte order of their paths, and computes its dirHash: that of in-toto, which is
// Go's dirhash h1 in hex, SHA-256 over one line a file, "<sha256 hex>  <path>\n".
func NewManifest(files []Member) *Manifest {
	h := sha256.New()
	for i := range files {
		fmt.Fprintf(h, "%s  %s\n", files[i].SHA256, files[i].Path)
	}
	return &Manifest{DirHash: Digest{DirHash, string(h.Sum(nil))}, Files: files}
}

// Size returns the bytes of all files.
func (m *Manifest) Size() (n int64) {
	for i := range m.Files {
		n += m.Files[i].Size
	}
	return n
}

// Encode returns the one encoding of m, JSON without white space and with one line feed at the end:
//
//	{"dirHash":"<hex>","files":[{"path":"a/b.csv","sha256":"<hex>","size":12}]}
//
// In a path a quotation mark is written \" and nothing else is escaped: a path has neither a backslash nor a control character.
func (m *Manifest) Encode() []byte {
	b := make([]byte, 0, 128+len(m.Files)*160)
	b = append(b, `{"dirHash":"`...)
	b = hex.AppendEncode(b, []byte(m.DirHash.Value))
	b = append(b, `","files":[`...)
	for i := range m.Files {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `{"path":"`...)
		b = append(b, strings.ReplaceAll(m.Files[i].Path, `"`, `\"`)...)
		b = append(b, `","sha256":"`...)
		b = append(b, m.Files[i].SHA256...)
		b = append(b, `","size":`...)
		b = strconv.AppendInt(b, m.Files[i].Size, 10)
		b = append(b, '}')
	}
	return append(b, "]}\n"...)
}

// ErrManifest means bytes that are no manifest: they may still be some producer's document.
var ErrManifest = errors.New("malformed manifest")

// ParseManifest reads what [Manifest.Encode] writes for at least one file and nothing else: the dirHash is recomputed, the paths are
// distinct and in byte order. Errors wrap ErrManifest.
func ParseManifest(b []byte) (*Manifest, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	var doc struct {
		DirHash string   `json:"dirHash"`
		Files   []Member `json:"files"`
	}
	if err := d.Decode(&doc); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrManifest, err)
	}
	for i := range doc.Files {
		f := &doc.Files[i]
		if err := f.check(); err != nil {
			return nil, fmt.Errorf("%w: files[%d]: %v", ErrManifest, i, err)
		}
		if i > 0 && doc.Files[i-1].Path >= f.Path {
			return nil, fmt.Errorf("%w: files[%d]: %q is not in byte order", ErrManifest, i, clip(f.Path))
		}
	}
	m := NewManifest(doc.Files)
	switch {
	case len(m.Files) == 0:
		return nil, fmt.Errorf("%w: no files", ErrManifest)
	case hex.EncodeToString([]byte(m.DirHash.Value)) != doc.DirHash:
		return nil, fmt.Errorf("%w: its files give %s, it says %q", ErrManifest, m.DirHash, clip(doc.DirHash))
	case !bytes.Equal(m.Encode(), b):
		return nil, fmt.Errorf("%w: not in the one encoding", ErrManifest)
	}
	return m, nil
}

func (m *Member) check() error {
	if err := CheckMemberPath(m.Path); err != nil {
		return err
	}
	if b, err := hex.DecodeString(m.SHA256); err != nil || len(b) != sha256.Size || strings.ToLower(m.SHA256) != m.SHA256 {
		return fmt.Errorf("%q is not a SHA-256 in lower-case hex", clip(m.SHA256))
	}
	if m.Size < 0 {
		return fmt.Errorf("size %d is negative", m.Size)
	}
	return nil
}

// CheckMemberPath refuses what cannot be the path of a file in a directory on every system, or would break the lines of the dirHash: a
// path is names between single slashes, none of them empty, . or .., in UTF-8 without a control character (U+0000 to U+001F, U+007F) or
// backslash.
func CheckMemberPath(p string) error {
	if p == "" || path.IsAbs(p) || path.Clean(p) != p || p == "." || p == ".." || strings.HasPrefix(p, "../") {
		return fmt.Errorf("path %q is not clean and relative", clip(p))
	}
	if !utf8.ValidString(p) {
		return fmt.Errorf("path %q is not UTF-8", clip(p))
	}
	if i := strings.IndexFunc(p, func(r rune) bool { return r < 0x20 || r == 0x7f || r == '\\' }); i >= 0 {
		return fmt.Errorf("path %q has %q", clip(p), p[i])
	}
	return nil
}
