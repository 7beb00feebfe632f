package ledger

import (
	"bytes"
	"strings"
	"testing"

	"github.com/provledger/provledger/client/lineage"
)

// TestMembers: only a manifest, in its one encoding, of a directory that the entry is about lists members.
func TestMembers(t *testing.T) {
	file := lineage.Member{Path: "a.csv", SHA256: strings.Repeat("0a", 32), Size: 1}
	manifest := lineage.NewManifest([]lineage.Member{file})
	other := lineage.NewManifest([]lineage.Member{{Path: "b.csv", SHA256: strings.Repeat("0b", 32)}})
	for name, c := range map[string]struct {
		identity  lineage.Digest
		mediaType string
		document  []byte
		members   bool
		want      bool
	}{
		"member":               {manifest.DirHash, lineage.ManifestMediaType, manifest.Encode(), true, true},
		"not asked for":        {manifest.DirHash, lineage.ManifestMediaType, manifest.Encode(), false, false},
		"another directory":    {other.DirHash, lineage.ManifestMediaType, manifest.Encode(), true, false},
		"not listed":           {other.DirHash, lineage.ManifestMediaType, other.Encode(), true, false},
		"another media type":   {manifest.DirHash, "application/json", manifest.Encode(), true, false},
		"other white space":    {manifest.DirHash, lineage.ManifestMediaType, bytes.Replace(manifest.Encode(), []byte(":"), []byte(": "), 1), true, false},
		"no last line feed":    {manifest.DirHash, lineage.ManifestMediaType, bytes.TrimSuffix(manifest.Encode(), []byte("\n")), true, false},
		"lies about its files": {other.DirHash, lineage.ManifestMediaType, bytes.Replace(manifest.Encode(), []byte(hexOf(manifest.DirHash)), []byte(hexOf(other.DirHash)), 1), true, false},
	} {
		e := &lineage.Event{
			ID: lineage.ID{1}, Kind: lineage.KindRun, Action: uint8(lineage.RunComplete), RunID: lineage.ID{1},
			References: []lineage.Reference{{Role: lineage.Input, Known: lineage.Computed, Digest: c.identity}},
			Documents:  []lineage.Document{{MediaType: c.mediaType, Content: c.document}},
		}
		leaf, body, err := lineage.Composer{NewKey: func() lineage.Key { return lineage.Key{} }}.Compose(nil, e, lineage.Stamp{RecordedAt: 1, Principal: "p"})
		if err != nil {
			t.Fatal(err)
		}
		m := &matcher{q: Query{Members: c.members}, digests: map[lineage.Digest]bool{file.Digest(): true}}
		if got, err := m.match(&Entry{Leaf: leaf, Body: body}); err != nil || got != c.want {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func hexOf(d lineage.Digest) string { return strings.TrimPrefix(d.String(), "dirHash:") }
