package lineage_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/provledger/provledger/client/lineage"
)

// TestSeeds keeps the committed seeds of the fuzz targets valid: a corpus that no longer parses explores nothing.
func TestSeeds(t *testing.T) {
	seeds := map[string]map[string]any{
		"FuzzParseLeaf": {}, "FuzzParseIdentifiers": {}, "FuzzParseDocuments": {}, "FuzzParseBody": {}, "FuzzParseManifest": sampleManifests(), "FuzzParseDigest": {"sha256": typicalEvent().References[0].Digest.String()},
	}
	for name, s := range samples(t) {
		leaf, body := s.leaf, s.body
		seeds["FuzzParseLeaf"][name] = leaf
		if len(body) == 0 {
			continue
		}
		seeds["FuzzParseBody"][name] = lineage.AppendBody(nil, body)
		for _, p := range body {
			switch p.Kind {
			case lineage.PartIdentifiers:
				seeds["FuzzParseIdentifiers"][name] = p.Content
			case lineage.PartDocuments:
				seeds["FuzzParseDocuments"][name] = p.Content
			}
		}
	}
	for target, files := range seeds {
		for name, seed := range files {
			path := filepath.Join("testdata", "fuzz", target, strings.ReplaceAll(name, " ", "-"))
			typ := "string"
			if _, ok := seed.([]byte); ok {
				typ = "[]byte"
			}
			want := fmt.Sprintf("go test fuzz v1\n%s(%q)\n", typ, seed)
			if *update {
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if got, err := os.ReadFile(path); err != nil || string(got) != want {
				t.Errorf("%s is not the seed that today's code gives: %v", path, err)
			}
		}
	}
}
