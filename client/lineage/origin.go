package lineage

import (
	"fmt"
	"strings"
)

// Origin is the name under which a log signs: HOST/CLUSTER/KIND/NAME, for example
// example.org/01890a5d-ac96-774b-bcce-b302099a8057/lineage/main. What the leaves of a log mean hangs on its kind, so a leaf is read as one
// of this package under an origin of kind lineage only.
type Origin struct {
	Host    string  // configured, never the machine's own name: letters, digits, '.', '-' and '_'
	Cluster ID      // written as lowercase UUID text
	Kind    LogKind // "lineage" or "opaque"
	Name    string  // see CheckLogName
}

// String returns the origin line of checkpoints, which is also the name of the log's key.
func (o Origin) String() string {
	return o.Host + "/" + o.Cluster.String() + "/" + o.Kind.String() + "/" + o.Name
}

// MaxOriginBytes is the longest origin: C2SP cosigners accept no longer name.
const MaxOriginBytes = 255

// ParseOrigin reads an origin; only what String writes for a valid Origin is accepted.
func ParseOrigin(s string) (Origin, error) {
	o, err := parseOrigin(s)
	if err != nil {
		return Origin{}, fmt.Errorf("%q is not the origin of a log of this kind of ledger, HOST/CLUSTER/lineage|opaque/NAME: %w", clip(s), err)
	}
	return o, nil
}

func parseOrigin(s string) (o Origin, err error) {
	part := strings.Split(s, "/")
	if len(s) > MaxOriginBytes || len(part) != 4 {
		return o, fmt.Errorf("%d bytes in %d parts", len(s), len(part))
	}
	if o.Host = part[0]; o.Host == "" || strings.IndexFunc(o.Host, isNoHost) >= 0 {
		return o, fmt.Errorf("host %q", clip(o.Host))
	}
	if o.Cluster, err = ParseID(part[1]); err != nil || o.Cluster.String() != part[1] {
		return o, fmt.Errorf("cluster id %q", clip(part[1]))
	}
	kind, err := logKindNames.parse("log kind", part[2])
	if err != nil {
		return o, err
	}
	o.Kind, o.Name = LogKind(kind), part[3]
	return o, CheckLogName(o.Name)
}

func isNoHost(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '.' && r != '-' && r != '_'
}

// MaxLogName is the longest name of a log: a DNS label, and short enough for any origin.
const MaxLogName = 63

// CheckLogName refuses what cannot name a log: lowercase letters, digits, '-', '_' and '.', starting with a letter or digit.
func CheckLogName(s string) error {
	first := s != "" && (s[0] >= 'a' && s[0] <= 'z' || s[0] >= '0' && s[0] <= '9')
	bad := strings.IndexFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '.' && r != '-' && r != '_'
	})
	if !first || bad >= 0 || len(s) > MaxLogName {
		return fmt.Errorf("log name %q: at most %d lowercase letters, digits, '-', '_' and '.', a letter or digit first", clip(s), MaxLogName)
	}
	return nil
}

// FrozenMark stands between a log's name and the first digits of its cluster's id in the name that it goes by, frozen, in the ledger that succeeded its
// own. CheckLogName does not permit it, so no log can be created with it.
const FrozenMark = "@"

// frozenDigits of a cluster's id tell it from the others that one ledger may have been.
const frozenDigits = 8

// FrozenName is what the log of an origin is called in a ledger that succeeded its own: NAME@CLUSTER.
func (o Origin) FrozenName() string { return o.Name + FrozenMark + o.Cluster.String()[:frozenDigits] }

// Named reports whether the log of an origin may go by a name: its own, or the one that it has once it is frozen.
func (o Origin) Named(name string) bool { return name == o.Name || name == o.FrozenName() }
