package artifact

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/provledger/provledger/client/lineage"
)

// ManifestMediaType is the media type of an encoded [Manifest].
const ManifestMediaType = "application/vnd.provledger.manifest.v1+json"

// MaxInlineManifest is how many bytes of manifests one event carries in its body. The rest of the body limit (1 MiB) is for names,
// parameters and the like; a larger manifest is recorded as an artifact of its own, by its digest.
const MaxInlineManifest = 768 << 10

// Member is a file of a directory.
type Member struct {
	Path   string `json:"path"`   // slash-separated, relative, without . or ..
	SHA256 string `json:"sha256"` // lower-case hex
	Size   int64  `json:"size"`   // bytes
}

// Digest returns the member's identity.
func (m Member) Digest() lineage.Digest {
	b, _ := hex.DecodeString(m.SHA256)
	return lineage.Digest{Algorithm: lineage.SHA256, Value: string(b)}
}

// Manifest lists the files of a directory in byte order of their paths.
type Manifest struct {
	DirHash lineage.Digest
	Files   []Member
}

// newManifest takes members in byte order of their paths.
func newManifest(files []Member) *Manifest {
	return &Manifest{DirHash: dirHash(files), Files: files}
}

// dirHash is the in-toto dirHash, which is Go's dirhash h1 in hex: SHA-256 over one line a file, "<sha256 hex>  <path>\n", in byte
// order of the paths.
func dirHash(files []Member) lineage.Digest {
	h := sha256.New()
	for i := range files {
		fmt.Fprintf(h, "%s  %s\n", files[i].SHA256, files[i].Path)
	}
	return lineage.Digest{Algorithm: lineage.DirHash, Value: string(h.Sum(nil))}
}

// Size returns the bytes of all files.
func (m *Manifest) Size() (n int64) {
	for i := range m.Files {
		n += m.Files[i].Size
	}
	return n
}

// document is the layout of an encoded manifest.
type document struct {
	DirHash string   `json:"dirHash"`
	Files   []Member `json:"files"`
}

// Encode returns the one encoding of m: {"dirHash":HEX,"files":[{"path":..,"sha256":HEX,"size":N},...]} in compact JSON with one line
// feed at the end.
func (m *Manifest) Encode() []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(document{hex.EncodeToString([]byte(m.DirHash.Value)), m.Files}); err != nil {
		panic(err) // strings and integers always encode
	}
	return b.Bytes()
}

// ErrManifest means bytes that are no manifest, or one that contradicts itself.
var ErrManifest = errors.New("malformed manifest")

// ParseManifest reads what [Manifest.Encode] writes and nothing else: the dirHash is recomputed, the paths must be clean, distinct and
// in order. Errors wrap ErrManifest.
func ParseManifest(b []byte) (*Manifest, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	var doc document
	if err := d.Decode(&doc); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrManifest, err)
	}
	for i := range doc.Files {
		f := &doc.Files[i]
		if err := f.check(); err != nil {
			return nil, fmt.Errorf("%w: file %d: %v", ErrManifest, i, err)
		}
		if i > 0 && doc.Files[i-1].Path >= f.Path {
			return nil, fmt.Errorf("%w: file %d: %q is not in order", ErrManifest, i, f.Path)
		}
	}
	m := newManifest(doc.Files)
	switch {
	case len(m.Files) == 0:
		return nil, fmt.Errorf("%w: no files", ErrManifest)
	case hex.EncodeToString([]byte(m.DirHash.Value)) != doc.DirHash:
		return nil, fmt.Errorf("%w: its files give %s, it says %q", ErrManifest, m.DirHash, doc.DirHash)
	case !bytes.Equal(m.Encode(), b):
		return nil, fmt.Errorf("%w: not in the one encoding", ErrManifest)
	}
	return m, nil
}

func (f *Member) check() error {
	if f.Path == "" || path.IsAbs(f.Path) || path.Clean(f.Path) != f.Path || f.Path == "." || f.Path == ".." || strings.HasPrefix(f.Path, "../") {
		return fmt.Errorf("path %q is not a clean relative path", f.Path)
	}
	if err := checkName(f.Path); err != nil {
		return err
	}
	if b, err := hex.DecodeString(f.SHA256); err != nil || len(b) != sha256.Size || strings.ToLower(f.SHA256) != f.SHA256 {
		return fmt.Errorf("%q is not a SHA-256 in lower-case hex", f.SHA256)
	}
	if f.Size < 0 {
		return fmt.Errorf("size %d is negative", f.Size)
	}
	return nil
}
