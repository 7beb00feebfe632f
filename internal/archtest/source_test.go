package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// fileCeiling is where a file calls for a second look. Generated files do not count.
const fileCeiling = 800

// funcCeiling is the same for a function, body and signature. Tests may tell a long story.
const funcCeiling = 100

var positions = token.NewFileSet()

func parse(t *testing.T, rel string) *ast.File {
	t.Helper()
	f, err := parser.ParseFile(positions, filepath.Join(root, filepath.FromSlash(rel)), nil, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// importName is the name under which a file uses an import, "" when it does not import it.
func importName(f *ast.File, importPath string) string {
	for _, i := range f.Imports {
		if p, _ := strconv.Unquote(i.Path.Value); p == importPath {
			if i.Name != nil {
				return i.Name.Name
			}
			base := path.Base(p)
			if len(base) > 1 && base[0] == 'v' && strings.Trim(base[1:], "0123456789") == "" {
				base = path.Base(path.Dir(p))
			}
			return base
		}
	}
	return ""
}

// uses lists the places where a file mentions one of an import's names.
func uses(f *ast.File, importPath string, names ...string) []token.Position {
	local := importName(f, importPath)
	if local == "" {
		return nil
	}
	var at []token.Position
	ast.Inspect(f, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok {
			if x, ok := s.X.(*ast.Ident); ok && x.Name == local && slices.Contains(names, s.Sel.Name) {
				at = append(at, positions.Position(s.Pos()))
			}
		}
		return true
	})
	return at
}

// A state machine that reads a clock, throws a die or starts a goroutine gives other bytes on another node (H15 of
// docs/reliability.md), and arithmetic that does is not arithmetic.
func TestPureCore(t *testing.T) {
	for _, name := range files(t, ".go") {
		if strings.HasSuffix(name, "_test.go") || !strings.HasPrefix(name, "internal/ledger/") && !strings.HasPrefix(name, "internal/merkle/") {
			continue
		}
		f := parse(t, name)
		for _, bad := range uses(f, "time", "Now", "Since", "Until", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker", "Sleep") {
			t.Errorf("%s: a clock in the pure core: the proposer decides about time, Apply only reads it", bad)
		}
		for _, lib := range []string{"math/rand", "math/rand/v2", "crypto/rand"} {
			if importName(f, lib) != "" {
				t.Errorf("%s imports %s: randomness comes in with the command", name, lib)
			}
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if g, ok := n.(*ast.GoStmt); ok {
				t.Errorf("%s: a go statement in the pure core: whoever calls it owns the goroutines", positions.Position(g.Pos()))
			}
			return true
		})
	}
}

// Exit codes have one owner each. A library that ends the process cannot be tested, and takes the caller's data with it.
func TestExitsOnlyInMain(t *testing.T) {
	for _, name := range files(t, ".go") {
		if ok, _ := path.Match("cmd/*/main.go", name); ok || strings.HasSuffix(name, "_test.go") {
			continue
		}
		f := parse(t, name)
		for _, at := range uses(f, "os", "Exit") {
			t.Errorf("%s: os.Exit outside cmd/*/main.go: return an error, or call the injected die", at)
		}
		for _, at := range uses(f, "log", "Fatal", "Fatalf", "Fatalln", "Panic", "Panicf", "Panicln") {
			t.Errorf("%s: log.Fatal ends the process from a library: return an error", at)
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Name.Name == "init" && fn.Recv == nil && !generated(read(t, name)) {
				t.Errorf("%s: an init function works before anybody asked for it: make it a constructor", positions.Position(fn.Pos()))
			}
		}
	}
}

// The package comment is where a reader begins, so it is where he looks: in PACKAGE.go, doc.go where the contract is long, or
// main.go of a program.
func TestPackageComments(t *testing.T) {
	for path, p := range mustHouse(t) {
		rel, ok := ours(path)
		if !ok || len(p.GoFiles) == 0 {
			continue
		}
		var with []string
		for _, file := range p.GoFiles {
			name := rel + "/" + file
			if f := parse(t, name); f.Doc != nil && !generated(read(t, name)) {
				with = append(with, file)
				first := strings.TrimSpace(f.Doc.Text())
				want := "Package " + p.Name + " "
				if p.Name == "main" {
					want = strings.ToUpper(rel[strings.LastIndex(rel, "/")+1:][:1]) + rel[strings.LastIndex(rel, "/")+1:][1:] + " "
				}
				if !strings.HasPrefix(first, want) {
					t.Errorf("%s: the package comment does not begin with %q", name, want)
				}
			}
		}
		if strings.HasPrefix(rel, "proto/") {
			continue // the .proto file carries it
		}
		home := []string{p.Name + ".go", "doc.go"}
		if p.Name == "main" {
			home = []string{"main.go"}
		}
		if len(with) != 1 || !slices.Contains(home, with[0]) {
			t.Errorf("%s has package comments in %q, want one, in one of %q", rel, with, home)
		}
	}
}

func TestCeilings(t *testing.T) {
	for _, name := range files(t, ".go") {
		src := read(t, name)
		if generated(src) {
			continue
		}
		if n := strings.Count(src, "\n"); n > fileCeiling {
			t.Errorf("%s has %d lines, the ceiling is %d: is it two topics?", name, n, fileCeiling)
		}
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		for _, d := range parse(t, name).Decls {
			if fn, ok := d.(*ast.FuncDecl); ok {
				from, to := positions.Position(fn.Pos()), positions.Position(fn.End())
				if n := to.Line - from.Line + 1; n > funcCeiling {
					t.Errorf("%s: %s has %d lines, the ceiling is %d", from, fn.Name.Name, n, funcCeiling)
				}
			}
		}
	}
}

// A drawer is a package named after nothing: whatever has no home lands there and stays.
func TestNoDrawers(t *testing.T) {
	drawers := []string{"util", "utils", "common", "helper", "helpers", "types", "misc", "base", "shared", "models", "interfaces", "lib"}
	for path := range mustHouse(t) {
		if rel, ok := ours(path); ok {
			for part := range strings.SplitSeq(rel, "/") {
				if slices.Contains(drawers, part) {
					t.Errorf("%s: %q says nothing about what is inside; name the idea", rel, part)
				}
			}
		}
	}
}

// A fuzz target without committed seeds tests nothing under plain `go test`.
func TestFuzzTargetsHaveSeeds(t *testing.T) {
	n := 0
	for _, name := range files(t, "_test.go") {
		for _, d := range parse(t, name).Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Recv != nil || !strings.HasPrefix(fn.Name.Name, "Fuzz") {
				continue
			}
			n++
			seeds := path.Join(path.Dir(name), "testdata/fuzz", fn.Name.Name)
			entries, err := os.ReadDir(filepath.Join(root, filepath.FromSlash(seeds)))
			if err != nil || len(entries) == 0 {
				t.Errorf("%s: %s has no seeds in %s", name, fn.Name.Name, seeds)
			}
		}
	}
	if n == 0 {
		t.Error("found no fuzz target at all: the search is broken")
	}
}
