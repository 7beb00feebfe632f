package lineage_test

import (
	"crypto/sha256"
	"os"
	"testing"

	"github.com/provledger/provledger/client/lineage"
)

// TestSchemaCopy: the schema that genesis entries name is the one that is published.
func TestSchemaCopy(t *testing.T) {
	published, err := os.ReadFile("../../docs/leaf.cddl")
	if err != nil {
		t.Fatal(err)
	}
	if string(published) != lineage.SchemaCDDL() {
		t.Error("docs/leaf.cddl and client/lineage/leaf.cddl differ")
	}
	if want := sha256.Sum256(published); lineage.SchemaDigest().Value != string(want[:]) {
		t.Errorf("SchemaDigest is %s", lineage.SchemaDigest())
	}
}
