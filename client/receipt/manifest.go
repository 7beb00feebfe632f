package receipt

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/provledger/provledger/client/lineage"
)

// ManifestMediaType is the media type of a document that lists the files of a directory:
//
//	{"dirHash":"<hex>","files":[{"path":"a/b.csv","sha256":"<hex>","size":12}]}
//
// The dirHash is that of in-toto: SHA-256 over one line "<hex sha256>  <path>" LF a file, in byte order of the paths.
const ManifestMediaType = "application/vnd.provledger.manifest.v1+json"

// manifest proves files to be members of a directory whose dirHash is recorded.
type manifest struct {
	dirHash lineage.Digest
	paths   map[lineage.Digest][]string
}

// parseManifest reads a manifest and recomputes its dirHash: what the document says of itself is not believed. Sizes are not covered by
// the dirHash and not used.
func parseManifest(content []byte) (*manifest, error) {
	var doc struct {
		DirHash string `json:"dirHash"`
		Files   []struct {
			Path   string `json:"path"`
			SHA256 string `json:"sha256"`
			Size   int64  `json:"size"`
		} `json:"files"`
	}
	d := json.NewDecoder(bytes.NewReader(content))
	d.DisallowUnknownFields()
	if err := d.Decode(&doc); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("manifest: bytes after it")
	}
	m := &manifest{paths: make(map[lineage.Digest][]string, len(doc.Files))}
	h := sha256.New()
	for i, f := range doc.Files {
		if strings.ContainsAny(f.Path, "\n\x00") || f.Path == "" {
			return nil, fmt.Errorf("manifest: files[%d]: path %q", i, clip(f.Path))
		}
		if i > 0 && doc.Files[i-1].Path >= f.Path {
			return nil, fmt.Errorf("manifest: files[%d]: %q is not in byte order", i, clip(f.Path))
		}
		sum, err := lineage.ParseDigest("sha256:" + f.SHA256)
		if err != nil {
			return nil, fmt.Errorf("manifest: files[%d]: %w", i, err)
		}
		fmt.Fprintf(h, "%x  %s\n", sum.Value, f.Path)
		m.paths[sum] = append(m.paths[sum], f.Path)
	}
	m.dirHash = lineage.Digest{Algorithm: lineage.DirHash, Value: string(h.Sum(nil))}
	if hex.EncodeToString([]byte(m.dirHash.Value)) != doc.DirHash {
		return nil, fmt.Errorf("manifest: its files give %s, it says %q", m.dirHash, clip(doc.DirHash))
	}
	return m, nil
}
