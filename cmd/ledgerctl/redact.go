package main

import (
	"fmt"
	"net/url"
	"regexp"
	"strings"

	"github.com/provledger/provledger/client/lineage"
)

// redacted stands where a secret stood.
const redacted = "[REDACTED]"

var (
	// Tokens that are known by their own form, wherever they stand.
	secretForms = []*regexp.Regexp{
		regexp.MustCompile(`\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}\b`),                                     // AWS access key ids
		regexp.MustCompile(`\bgh[pousr]_[A-Za-z0-9]{20,}\b`),                                              // GitHub
		regexp.MustCompile(`\bgithub_pat_[A-Za-z0-9_]{22,}\b`),                                            //
		regexp.MustCompile(`\bglpat-[A-Za-z0-9_-]{20,}`),                                                  // GitLab
		regexp.MustCompile(`\bhf_[A-Za-z0-9]{20,}\b`),                                                     // Hugging Face
		regexp.MustCompile(`\bsk-(?:[a-z]+-)*[A-Za-z0-9_-]{20,}`),                                         // OpenAI, Anthropic
		regexp.MustCompile(`\bxox[abeprs]-[A-Za-z0-9-]{10,}`),                                             // Slack
		regexp.MustCompile(`\bAIza[A-Za-z0-9_-]{35}`),                                                     // Google
		regexp.MustCompile(`\bnpm_[A-Za-z0-9]{36}\b`),                                                     //
		regexp.MustCompile(`\bpypi-[A-Za-z0-9_-]{40,}`),                                                   //
		regexp.MustCompile(`\bdapi[0-9a-f]{32}\b`),                                                        // Databricks
		regexp.MustCompile(`\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*`),                   // JSON web tokens
		regexp.MustCompile(`-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*-----|$)`),       // PEM
		regexp.MustCompile(`(?i)\b(?:bearer|basic)\s+[A-Za-z0-9+/_.~-]{6,}=*`),                            // HTTP authorization
		regexp.MustCompile(`(?i)\b(?:x-api-key|x-auth-token|private-token|authorization)\s*:\s*[^\r\n]+`), // HTTP headers
	}

	// Anything that looks like a URL with an authority, alone or inside another argument.
	urlForm = regexp.MustCompile(`[a-zA-Z][a-zA-Z0-9+.-]*://[^\s"'<>]+`)

	// User information without a scheme: //user:password@host.
	bareUser = regexp.MustCompile(`(^|[^:/])//[^\s/@:]+:[^\s/]+@`)

	// Query parameters of presigned URLs that carry the right to read and are not named like it: Google, Azure, CloudFront, S3.
	secretQuery = regexp.MustCompile(`(?i)^(?:awsaccesskeyid|googleaccessid|key-pair-id|policy|code)$`)

	// An argument that is one assignment: --token=X, DB_PASSWORD=X, x.api-key=X, Header: X. All of the rest is its value.
	assignment = regexp.MustCompile(`(?s)^([-/]*([A-Za-z0-9][A-Za-z0-9_.:-]*?)[=:])(.+)$`)
	// The beginning of an assignment inside a text: a shell command, JSON, a connection string, a nested option.
	inside = regexp.MustCompile(`([A-Za-z0-9][A-Za-z0-9_.-]*)\\?["']?[ \t]*[=:][ \t]*`)
	// An option inside a text whose value is the next word.
	insideOption = regexp.MustCompile(`(?:^|[\s"'(])--?([A-Za-z0-9][A-Za-z0-9_.-]*)[ \t]+`)
	// USER:PASSWORD after an option of that meaning, as curl and wget take it; also glued to it.
	userOption = regexp.MustCompile(`((?:^|[\s"'(])(?:-u|-U|--user|--proxy-user)[ \t=]*["']?[^\s:/"'=-][^\s:/"'=]*:)([^\s"'/][^\s"']*)`)
	userValue  = regexp.MustCompile(`^([^\s:/]+:)([^/].*)$`)
	twoNumbers = regexp.MustCompile(`^[0-9]+:[0-9]+$`) // user and group, as docker has them
)

// redactor takes secrets out of what is recorded. What is recorded can never be taken back by the one who recorded it, so it errs on the
// side of removing; it cannot know every secret, which is why --redact and --no-argv exist.
type redactor struct{ extra []*regexp.Regexp }

func newRedactor(patterns []string) (*redactor, error) {
	r := &redactor{}
	for _, p := range patterns {
		re, err := regexp.Compile(p)
		if err != nil {
			return nil, usage("--redact %q: %v", p, err)
		}
		r.extra = append(r.extra, re)
	}
	return r, nil
}

// argv redacts a command line; the arguments stay apart and in place. hidden counts the arguments that changed.
func (r *redactor) argv(argv []string) (clean []string, hidden int) {
	before := ""
	for _, arg := range argv {
		out := arg
		switch {
		case isSecretOption(before) && !strings.HasPrefix(arg, "--"):
			out = redacted
		case isUserOption(before) && !twoNumbers.MatchString(arg) && userValue.MatchString(arg):
			out = userValue.ReplaceAllString(arg, "${1}"+redacted)
		default:
			out = r.text(arg)
		}
		before = arg
		if out != arg {
			hidden++
		}
		clean = append(clean, out)
	}
	return clean, hidden
}

// maxPasses bounds how often a text is gone over: what one pass leaves may look like a secret to the next, and what is redacted stays so.
const maxPasses = 8

// text redacts one argument or value.
func (r *redactor) text(s string) string {
	for range maxPasses {
		next := r.pass(s)
		if next == s {
			break
		}
		s = next
	}
	return s
}

func (r *redactor) pass(s string) string {
	if m := assignment.FindStringSubmatch(s); m != nil && secretName(m[2]) && !strings.HasPrefix(m[3], "//") {
		return r.own(m[1] + redacted)
	}
	s = urlForm.ReplaceAllStringFunc(s, redactURL)
	s = bareUser.ReplaceAllString(s, "${1}//"+redacted+"@")
	for _, re := range secretForms {
		s = re.ReplaceAllString(s, redacted)
	}
	s = redactInside(s, inside)
	s = redactInside(s, insideOption)
	s = userOption.ReplaceAllStringFunc(s, func(m string) string {
		parts := userOption.FindStringSubmatch(m)
		if fields := strings.Fields(m); twoNumbers.MatchString(fields[len(fields)-1]) {
			return m
		}
		return parts[1] + redacted
	})
	return r.own(s)
}

// redactInside takes the values out that follow a secret name, wherever in a text. begin matches what stands before a value and captures the
// name; where the name is none of a secret the search goes on behind it, for the value may be an assignment itself.
func redactInside(s string, begin *regexp.Regexp) string {
	var b strings.Builder
	for {
		m := begin.FindStringSubmatchIndex(s)
		if m == nil {
			return b.String() + s
		}
		rest := s[m[1]:]
		if !secretName(s[m[2]:m[3]]) || strings.HasPrefix(rest, "//") || begin == insideOption && strings.HasPrefix(rest, "-") {
			// Not behind the white space: it may be what the next option begins with.
			b.WriteString(s[:m[3]])
			s = s[m[3]:]
			continue
		}
		b.WriteString(s[:m[1]])
		open, n := valueLength(rest)
		if n > open {
			b.WriteString(rest[:open] + redacted)
		}
		s = rest[n:]
	}
}

// valueLength returns where a value begins, behind an opening quotation mark, and where it ends: at the closing one, else at white space or
// at what separates values in shells, JSON, queries and connection strings.
func valueLength(s string) (open, end int) {
	if strings.HasPrefix(s, redacted) {
		return 0, len(redacted) // of a URL, where more may follow
	}
	for _, q := range []string{`\"`, `\'`, `"`, `'`} {
		if strings.HasPrefix(s, q) {
			open = len(q)
			if i := strings.Index(s[open:], q); i >= 0 {
				return open, open + i
			}
			return open, len(s)
		}
	}
	if i := strings.IndexAny(s, " \t\r\n\"';&|)}\\"); i >= 0 {
		return 0, i
	}
	return 0, len(s)
}

// reference takes what --redact names out of the names and the URI of an artifact. Its digest says the same as before.
func (r *redactor) reference(f *lineage.Reference) {
	f.URI = r.own(f.URI)
	if u, err := url.PathUnescape(f.URI); err == nil && r.own(u) != u {
		f.URI = r.own(u) // it matches only without the escapes
	}
	r.name(&f.Name)
}

func (r *redactor) name(n *lineage.Name) {
	n.Namespace, n.Name, n.Version = r.own(n.Namespace), r.own(n.Name), r.own(n.Version)
}

func (r *redactor) own(s string) string {
	for _, re := range r.extra {
		s = re.ReplaceAllString(s, redacted)
	}
	return s
}

// redactURL takes user information and credentials in the query out of a URL, and leaves the rest as it was written.
func redactURL(s string) string {
	scheme, rest, _ := strings.Cut(s, "://")
	authority, tail := rest, ""
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		authority, tail = rest[:i], rest[i:]
	}
	if i := strings.LastIndexByte(authority, '@'); i >= 0 {
		authority = redacted + authority[i:]
	}
	path, query, has := strings.Cut(tail, "?")
	if !has {
		return scheme + "://" + authority + path
	}
	query, fragment, hasFragment := strings.Cut(query, "#")
	parts := strings.FieldsFunc(query, func(c rune) bool { return c == '&' || c == ';' })
	for i, p := range parts {
		name, _, ok := strings.Cut(p, "=")
		plain, err := url.QueryUnescape(name)
		if err != nil {
			plain = name
		}
		if ok && (secretName(plain) || secretQuery.MatchString(plain)) {
			parts[i] = name + "=" + redacted
		}
	}
	s = fmt.Sprintf("%s://%s%s?%s", scheme, authority, path, strings.Join(parts, "&"))
	if hasFragment {
		s += "#" + fragment
	}
	return s
}
