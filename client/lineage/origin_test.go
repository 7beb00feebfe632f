package lineage_test

import (
	"strings"
	"testing"

	"github.com/provledger/provledger/client/lineage"
)

func TestOrigin(t *testing.T) {
	const cluster = "01890a5d-ac96-774b-bcce-b302099a8057"
	id, err := lineage.ParseID(cluster)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range []lineage.Origin{
		{Host: "example.org", Cluster: id, Kind: lineage.LineageLog, Name: "main"},
		{Host: "Ledger-1_x.test", Cluster: id, Kind: lineage.OpaqueLog, Name: "0.a-b_c"},
		{Host: "h", Cluster: id, Kind: lineage.LineageLog, Name: strings.Repeat("n", lineage.MaxLogName)},
	} {
		if got, err := lineage.ParseOrigin(o.String()); err != nil || got != o {
			t.Errorf("%s: got %v, %v", o, got, err)
		}
	}
	for _, s := range []string{
		"", "main", "example.org/lineage/main", "example.org/" + cluster + "/lineage/main/", "/" + cluster + "/lineage/main",
		"a/b/" + cluster + "/lineage/main", "exa mple/" + cluster + "/lineage/main", "h+1/" + cluster + "/lineage/main",
		"h/" + strings.ToUpper(cluster) + "/lineage/main", "h/{" + cluster + "}/lineage/main", "h/x/lineage/main",
		"h/" + cluster + "/lineages/main", "h/" + cluster + "//main", "h/" + cluster + "/lineage/", "h/" + cluster + "/lineage/Main",
		"h/" + cluster + "/lineage/-a", "h/" + cluster + "/lineage/ä", "h/" + cluster + "/lineage/" + strings.Repeat("n", lineage.MaxLogName+1),
		strings.Repeat("h", 220) + "/" + cluster + "/lineage/main",
	} {
		if o, err := lineage.ParseOrigin(s); err == nil {
			t.Errorf("%q accepted as %+v", s, o)
		}
	}
}
