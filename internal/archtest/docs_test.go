package archtest

import (
	"go/ast"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	fence    = regexp.MustCompile("(?ms)^```.*?^```$")
	link     = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading  = regexp.MustCompile(`(?m)^#{1,6} +(.+?) *$`)
	mention  = regexp.MustCompile(`\bdocs/[A-Za-z0-9_./-]+\.(?:md|cddl|svg)\b`)
	codeOnly = regexp.MustCompile("[^a-z0-9 _-]")
)

// anchor is the id that a heading gets where Markdown is shown.
func anchor(h string) string {
	h = codeOnly.ReplaceAllString(strings.ToLower(h), "")
	return strings.ReplaceAll(h, " ", "-")
}

func TestLinksResolve(t *testing.T) {
	for _, name := range files(t, ".md") {
		if strings.Contains(name, "/testdata/") {
			continue
		}
		text := fence.ReplaceAllString(read(t, name), "")
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			to := m[1]
			if strings.Contains(to, "://") || strings.HasPrefix(to, "mailto:") {
				continue
			}
			file, frag, _ := strings.Cut(to, "#")
			target := name
			if file != "" {
				target = path.Join(path.Dir(name), file)
			}
			if _, err := os.Stat(filepath.Join(root, filepath.FromSlash(target))); err != nil {
				t.Errorf("%s: link to %s: there is no %s", name, to, target)
				continue
			}
			if frag == "" || !strings.HasSuffix(target, ".md") {
				continue
			}
			found := false
			for _, h := range heading.FindAllStringSubmatch(fence.ReplaceAllString(read(t, target), ""), -1) {
				found = found || anchor(h[1]) == frag
			}
			if !found {
				t.Errorf("%s: link to %s: %s has no heading with that anchor", name, to, target)
			}
		}
	}
}

// Comments send the reader to documents. A document that is not there sends him nowhere.
func TestMentionedDocumentsExist(t *testing.T) {
	for _, suffix := range []string{".go", ".md", ".proto", ".cddl"} {
		for _, name := range files(t, suffix) {
			for _, doc := range mention.FindAllString(read(t, name), -1) {
				if strings.HasPrefix(name, "internal/archtest/") && strings.Contains(doc, "NNNN") {
					continue
				}
				if _, err := os.Stat(filepath.Join(root, filepath.FromSlash(doc))); err != nil {
					t.Errorf("%s points at %s, which does not exist", name, doc)
				}
			}
		}
	}
}

// What README tells a newcomer to type is run by .ci/run, so it cannot rot unnoticed. In README a block of commands is fenced
// as `sh`; what a reader is to adapt first (another machine, a file of his) is fenced as `console` with a prompt.
func TestReadmeCommandsRunInCI(t *testing.T) {
	ci := read(t, ".ci/run")
	block := regexp.MustCompile("(?ms)^```sh\n(.*?)^```$")
	n := 0
	for _, m := range block.FindAllStringSubmatch(read(t, "README.md"), -1) {
		for line := range strings.Lines(m[1]) {
			line, _, _ = strings.Cut(strings.TrimSpace(line), "  #")
			line = strings.TrimSpace(line)
			if line == "" || strings.HasPrefix(line, "#") {
				continue
			}
			n++
			if !strings.Contains(ci, line) {
				t.Errorf("README says `%s`, and .ci/run does not run it", line)
			}
		}
	}
	if n < 2 {
		t.Errorf("found %d commands in README, want at least quickstart and the tests", n)
	}
}

// docs/reliability.md names, for each hole, the test that fails without its guard. A test that is renamed or deleted is missed.
func TestNamedTestsExist(t *testing.T) {
	have := make(map[string]bool)
	for _, name := range files(t, "_test.go") {
		for _, d := range parse(t, name).Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil {
				have[path.Base(path.Dir(name))+"."+fn.Name.Name] = true
			}
		}
	}
	named := regexp.MustCompile("`([a-z0-9]+\\.(?:Test|Fuzz)[A-Za-z0-9_]+)`")
	n := 0
	for _, doc := range files(t, ".md") {
		for _, m := range named.FindAllStringSubmatch(read(t, doc), -1) {
			n++
			if !have[m[1]] {
				t.Errorf("%s names the test %s, which does not exist", doc, m[1])
			}
		}
	}
	if n < 20 {
		t.Errorf("found %d names of tests in the documents: the search is broken", n)
	}
}
