package archtest

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"testing"
)

// Names for what others made. A prefix stands for itself and everything below it.
const (
	grpc     = "google.golang.org/grpc"
	protobuf = "google.golang.org/protobuf"
	pebble   = "github.com/cockroachdb/pebble/v2"
	raft     = "github.com/hashicorp/raft"
	network  = "net" // net, net/http, crypto/tls; net/url and net/netip are arithmetic
)

// row is one package's line of the import table in docs/design.md. It applies to non-test files.
type row struct {
	job  string   // the package's one sentence
	may  []string // packages of ours that it may import; a trailing /... takes all below
	not  []string // what none of its own files may import
	deep []string // what may not be anywhere below it either
}

// table is the house. A package without a row is a failure: whoever adds one says here what it is for.
var table = map[string]row{
	"proto/ledger/v1": {
		job: "the public API, generated",
		not: []string{pebble, raft},
	},
	"client/lineage": {
		job:  "says what an event and an artifact are, and which bytes they become; whoever verifies runs it, so it drags nothing in",
		not:  []string{network, "os"},
		deep: []string{grpc, protobuf, pebble, raft},
	},
	"internal/merkle": {
		job:  "is RFC 6962 arithmetic and nothing else, so that it can be checked against oracles",
		not:  []string{network, "os"},
		deep: []string{grpc, protobuf, pebble, raft, network},
	},
	"internal/checkpoint": {
		job:  "turns (origin, size, root) into signed text and back",
		may:  []string{"internal/merkle"},
		not:  []string{network, "os"},
		deep: []string{grpc, protobuf, pebble, raft, network},
	},
	"client/receipt": {
		job:  "decides about a receipt offline; a verifier that links a network or a database cannot be audited",
		may:  []string{"internal/merkle", "internal/checkpoint", "client/lineage"},
		not:  []string{network, "os"},
		deep: []string{grpc, protobuf, pebble, raft},
	},
	"client/artifact": {
		job: "digests files and directories as they lie on a disk",
		may: []string{"client/lineage"},
		not: []string{network, grpc, protobuf, pebble, raft},
	},
	"client/eventpb": {
		job: "converts between protobuf messages and the vocabulary",
		may: []string{"client/lineage", "client/receipt", "internal/merkle", "internal/checkpoint", "proto/ledger/v1"},
		not: []string{grpc, pebble, raft, network},
	},
	"client": {
		job:  "talks to a ledger and believes nothing that it hears; users import it, so it carries no server",
		may:  []string{"client/lineage", "client/receipt", "client/eventpb", "client/artifact", "internal/merkle", "internal/checkpoint", "proto/ledger/v1"},
		deep: []string{pebble, raft},
	},
	"internal/disk": {
		job:  "opens and watches a Pebble store our one way",
		not:  []string{network},
		deep: []string{raft, grpc},
	},
	"internal/ledger": {
		job:  "is the deterministic state machine and its read side: the same commands give the same bytes on every node",
		may:  []string{"internal/merkle", "client/lineage", "internal/disk"},
		not:  []string{network, "os"},
		deep: []string{raft, grpc},
	},
	"internal/catchup": {
		job: "brings a lagging replica forward, verified; peers are an interface, so that lying ones can be tried",
		may: []string{"internal/ledger", "internal/merkle"},
		not: []string{pebble, raft, grpc, protobuf, network, "os"},
	},
	"internal/raftlog": {
		job:  "keeps raft's log and vote on our own segments; of Pebble it knows the file system only",
		not:  []string{pebble, network},
		deep: []string{grpc},
	},
	"internal/consensus": {
		job: "puts opaque commands into one agreed order; it knows no ledger, tree or storage engine",
		may: []string{"internal/raftlog"},
		not: []string{pebble, grpc, protobuf},
	},
	"internal/sequencer": {
		job: "turns many appends into few commands; it proposes through an interface and sees no raft",
		may: []string{"internal/ledger", "internal/merkle", "client/lineage"},
		not: []string{raft, pebble, grpc, protobuf, network},
	},
	"internal/signer": {
		job: "signs what is allowed, never two roots for one size",
		may: []string{"internal/checkpoint", "internal/merkle"},
		not: []string{raft, grpc, protobuf, network},
	},
	"proto/ledgernode/v1": {
		job: "is what nodes ask each other, generated",
		not: []string{pebble, raft},
	},
	"internal/peerapi": {
		job: "is how nodes ask each other, server and client; it decides nothing but who may ask and how much at a time",
		may: []string{"internal/ledger", "internal/merkle", "internal/peer", "client/lineage", "proto/ledgernode/v1"},
		not: []string{pebble, raft, network},
	},
	"internal/cluster": {
		job: "keeps the set of members as the operator wants it; raft and peers are interfaces to it",
		may: []string{"internal/consensus", "internal/ledger", "internal/peer", "internal/peerapi", "internal/sequencer", "client/lineage"},
		not: []string{pebble, raft, grpc, protobuf},
	},
	"internal/rpc": {
		job: "is the only place where domain meets protobuf and status codes",
		may: []string{
			"internal/cluster", "internal/ledger", "internal/sequencer", "internal/signer", "internal/checkpoint", "internal/merkle",
			"client/lineage", "client/receipt", "client/eventpb", "proto/ledger/v1",
		},
		not: []string{pebble, raft},
	},
	"internal/tlsfile": {
		job: "keeps a certificate and its authorities as fresh as their files",
		not: []string{grpc, protobuf, pebble, raft},
	},
	"internal/devca": {
		job: "is a certificate authority in a directory, for trying out and for tests",
		may: []string{"client/lineage"},
		not: []string{grpc, protobuf, pebble, raft},
	},
	"internal/peer": {
		job: "lets nodes talk to each other, each knowing who the other is, and keeps strangers out; of raft it knows its stream layer only",
		may: []string{"internal/tlsfile", "client/lineage"},
		not: []string{pebble, protobuf},
	},
	"internal/httpapi": {
		job: "serves tiles, health and metrics over HTTP",
		not: []string{pebble, raft, grpc, protobuf},
	},
	"internal/recovery": {
		job: "makes a stopped survivor the only voter of a cluster that has lost its majority",
		may: []string{"internal/consensus", "internal/raftlog", "internal/ledger", "internal/merkle", "internal/checkpoint", "internal/signer", "client/lineage"},
		not: []string{raft, pebble, grpc, protobuf, network},
	},
	"internal/backup": {
		job: "turns the history of a ledger into plain files and back; it reads a ledger as any client does",
		may: []string{
			"client", "client/lineage", "client/receipt", "internal/ledger", "internal/merkle", "internal/checkpoint", "internal/signer", "internal/consensus",
			"internal/raftlog", "internal/recovery",
		},
		not: []string{raft, pebble, grpc, protobuf, network},
	},
	"internal/node": {
		job: "assembles a node, and is the only package that knows all",
		may: []string{"internal/...", "client/lineage", "proto/ledger/v1", "proto/ledgernode/v1"},
	},
	"cmd/ledgerd": {
		job: "reads flags, config and signals, and has the exit code; `inspect` looks into a directory offline",
		may: []string{"internal/node", "internal/httpapi", "internal/ledger", "internal/disk", "internal/raftlog", "internal/merkle", "internal/recovery", "internal/signer", "internal/telemetry", "internal/tlsfile", "client/lineage"},
		not: []string{raft, protobuf},
	},
	"cmd/ledgerctl": {
		job: "is one verb a file over the public client; embedded.go, and only it, opens a node in process",
		may: []string{"client/...", "cmd/ledgerctl/...", "proto/ledger/v1", "internal/node", "internal/backup", "internal/devca", "internal/localcluster", "internal/tlsfile"},
		not: []string{raft, pebble},
	},
	"cmd/ledgerctl/wdbc": {
		job: "is the pipeline of quickstart with its data, as a stage would be written by somebody who knows no ledger",
		not: []string{network, grpc, protobuf, pebble, raft},
	},
	"internal/localcluster": {
		job: "runs a real multi-process cluster on loopback; it knows processes and files, and nothing that a node does inside",
		may: []string{"internal/devca"},
		not: []string{grpc, protobuf, pebble, raft},
	},
	"internal/telemetry": {
		job: "sends traces and exports metrics; nothing decides by it, and nobody but the assembly knows it",
		may: []string{"internal/disk", "internal/sequencer"},
		not: []string{pebble, raft, protobuf},
	},
	"internal/archtest":    {job: "holds tests only"},
	"internal/deploytest":  {job: "holds tests only"},
	"internal/clustertest": {job: "holds tests only"},
	"internal/e2e":         {job: "holds tests only"},
}

// onlyIn says which packages of ours may import a module of others at all, in non-test code, and why not everybody.
var onlyIn = []struct {
	path    string
	in      []string // a trailing /... takes all below; empty: nobody
	because string
}{
	{"github.com/spf13/cobra", []string{"cmd/..."}, "command lines belong to programs"},
	{"github.com/spf13/pflag", []string{"cmd/..."}, "command lines belong to programs"},
	{"github.com/schollz/progressbar/v3", []string{"cmd/..."}, "a library does not draw on terminals"},
	{"golang.org/x/term", []string{"cmd/..."}, "a library does not draw on terminals"},
	{"go.yaml.in/yaml/v3", []string{"cmd/ledgerd"}, "YAML is for the daemon's config file and for nothing that is hashed or stored"},
	{"github.com/hashicorp/go-hclog", []string{"internal/consensus"}, "slog is the logger; hclog is raft's and stays at raft"},
	{raft, []string{"internal/consensus", "internal/raftlog", "internal/peer", "internal/node"}, "raft is an implementation of consensus, not a vocabulary"},
	{"go.opentelemetry.io", []string{"internal/telemetry"}, "the rest of the house knows times and durations, not spans"},
	{"github.com/fxamacker/cbor/v2", nil, "the leaf codec is ours and the reference is an oracle of its tests"},
	{"github.com/transparency-dev/merkle", nil, "an oracle that the product uses is no oracle"},
	{"github.com/google/go-cmp", nil, "a test dependency"},
	{"pgregory.net/rapid", nil, "a test dependency"},
	{"go.uber.org/goleak", nil, "a test dependency"},
	{"github.com/rogpeppe/go-internal", nil, "a test dependency"},
	{"github.com/stretchr/testify", nil, "std testing is enough; a half-migrated assertion style is worse than either"},
	{"math/rand", nil, "math/rand/v2 where a die is meant, crypto/rand where a secret is"},
}

// below reports whether path is prefix or inside it. `net` means what can open a connection.
func below(path, prefix string) bool {
	if prefix == network {
		return path == "net" || path == "crypto/tls" || path == "net/http" || path == "net/rpc" || path == "net/smtp"
	}
	if prefix == pebble && path == pebble+"/vfs" {
		return false // the file system seam is for everybody who touches a disk
	}
	return path == prefix || strings.HasPrefix(path, prefix+"/")
}

func allowed(pkg string, list []string) bool {
	return slices.ContainsFunc(list, func(a string) bool {
		if up, ok := strings.CutSuffix(a, "/..."); ok {
			return pkg == up || strings.HasPrefix(pkg, up+"/")
		}
		return pkg == a
	})
}

// closure is everything below a package, itself left out. Packages in skip are listed and not entered.
func closure(all map[string]*listed, from string, skip map[string]bool) []string {
	seen := map[string]bool{from: true}
	var out []string
	for todo := []string{from}; len(todo) > 0; {
		p := all[todo[len(todo)-1]]
		todo = todo[:len(todo)-1]
		if p == nil || skip[p.ImportPath] {
			continue
		}
		for _, i := range p.Imports {
			if i != "C" && !seen[i] {
				seen[i] = true
				out = append(out, i)
				todo = append(todo, i)
			}
		}
	}
	sort.Strings(out)
	return out
}

func TestEveryPackageHasARow(t *testing.T) {
	here := make(map[string]bool)
	for path, p := range mustHouse(t) {
		if p.Error != nil {
			t.Errorf("go list %s: %s", path, p.Error.Err)
		}
		if rel, ok := ours(path); ok {
			here[rel] = true
			if _, ok := table[rel]; !ok {
				t.Errorf("%s has no row in the import table.\n\tSay in %s what it is for and what it may import, and in docs/design.md.", rel, "internal/archtest/imports_test.go")
			}
		}
	}
	for rel := range table {
		if !here[rel] {
			t.Errorf("the import table has a row for %s, which does not exist", rel)
		}
	}
}

func TestImportTable(t *testing.T) {
	all := mustHouse(t)
	for path, p := range all {
		rel, ok := ours(path)
		if !ok {
			continue
		}
		r := table[rel]
		for _, i := range p.Imports {
			if dep, ok := ours(i); ok && !allowed(dep, r.may) {
				t.Errorf("%s imports %s.\n\t%s %s.", rel, dep, rel, r.job)
			}
			for _, ban := range r.not {
				if below(i, ban) {
					t.Errorf("%s imports %s.\n\t%s %s.", rel, i, rel, r.job)
				}
			}
		}
		for _, i := range closure(all, path, nil) {
			for _, ban := range r.deep {
				if below(i, ban) {
					t.Errorf("%s has %s below it.\n\t%s %s.\n\t`go list -deps` shows the way to it.", rel, i, rel, r.job)
				}
			}
		}
	}
}

func TestThirdPartyBans(t *testing.T) {
	for path, p := range mustHouse(t) {
		rel, ok := ours(path)
		if !ok {
			continue
		}
		for _, i := range p.Imports {
			for _, ban := range onlyIn {
				if (i == ban.path || strings.HasPrefix(i, ban.path+"/") && ban.path != "math/rand") && !allowed(rel, ban.in) {
					t.Errorf("%s imports %s: %s", rel, i, ban.because)
				}
			}
		}
	}
}

// doors are the files of ledgerctl that may import from internal/, and what.
var doors = map[string][]string{
	"cmd/ledgerctl/embedded.go":     {"internal/node"},
	"cmd/ledgerctl/cert.go":         {"internal/devca", "internal/tlsfile"},
	"cmd/ledgerctl/clusterlocal.go": {"internal/localcluster"},
	"cmd/ledgerctl/backup.go":       {"internal/backup"},
	"cmd/ledgerctl/restore.go":      {"internal/backup"},
}

// ledgerctl is a client: the one door to a node in process is embedded.go, so that a build without it is a remote-only tool.
func TestLedgerctlOpensANodeInOneFile(t *testing.T) {
	for _, name := range files(t, ".go") {
		if !strings.HasPrefix(name, "cmd/ledgerctl/") || strings.HasSuffix(name, "_test.go") {
			continue
		}
		for _, i := range parse(t, name).Imports {
			dep, ok := ours(strings.Trim(i.Path.Value, `"`))
			if !ok || !strings.HasPrefix(dep, "internal/") {
				continue
			}
			if !slices.Contains(doors[name], dep) {
				t.Errorf("%s imports %s.\n\tledgerctl stands on the public client; what else a file of it may import is in doors.", name, dep)
			}
		}
	}
}

var update = flag.Bool("update", false, "rewrite golden files")

// The full list of what an offline verifier links is reviewed as a diff: it is what an auditor has to trust.
func TestReceiptDependencies(t *testing.T) {
	var list []string
	all := mustHouse(t)
	for _, dep := range closure(all, module+"/client/receipt", nil) {
		p := all[dep]
		if p != nil && p.Standard && (strings.Contains(dep, "internal/") || strings.HasPrefix(dep, "vendor/") || strings.HasPrefix(dep, "runtime/") || dep == "unsafe") {
			continue // the standard library's own insides change with every Go release
		}
		list = append(list, dep)
	}
	got := strings.Join(list, "\n") + "\n"
	golden := filepath.Join("testdata", "receipt-deps.txt")
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("client/receipt links other packages than %s says.\nIf that is meant: go test ./internal/archtest -run ReceiptDependencies -update\n--- got\n%s--- want\n%s", golden, got, want)
	}
}

// Rules that let everything pass would pass too.
func TestRulesBite(t *testing.T) {
	for _, tc := range []struct {
		path, ban string
		want      bool
	}{
		{"google.golang.org/grpc/codes", grpc, true},
		{"google.golang.org/grpcfoo", grpc, false},
		{"net", network, true},
		{"net/http", network, true},
		{"net/netip", network, false},
		{"github.com/cockroachdb/pebble/v2/vfs", pebble, false},
		{"github.com/cockroachdb/pebble/v2/sstable", pebble, true},
	} {
		if got := below(tc.path, tc.ban); got != tc.want {
			t.Errorf("below(%s, %s) = %v", tc.path, tc.ban, got)
		}
	}
	if !allowed("internal/ledger", []string{"internal/..."}) || allowed("internalx", []string{"internal/..."}) || allowed("a", nil) {
		t.Error("allowed: wildcards are wrong")
	}
	all := mustHouse(t)
	if deps := closure(all, module+"/internal/ledger", nil); !slices.Contains(deps, pebble) || !slices.Contains(deps, module+"/internal/merkle") {
		t.Errorf("the closure of internal/ledger has no Pebble or no merkle: %q", deps)
	}
	if slices.Contains(closure(all, module+"/internal/ledger", map[string]bool{module + "/internal/disk": true, module + "/internal/ledger": true}), pebble) {
		t.Error("closure enters what it is to skip")
	}
}
