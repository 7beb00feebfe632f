package main

import (
	"fmt"
	"net/url"
	"regexp"
	"strings"
)

// redacted stands where a secret stood.
const redacted = "[REDACTED]"

// secretWord matches names whose values are secrets, as part of an option, a variable or a query parameter.
const secretWord = `(?:pass(?:word|wd|phrase)?|pwd|secret|token|credentials?|api[-_]?key|access[-_]?key(?:[-_]?id)?|private[-_]?key|secret[-_]?key|account[-_]?key|shared[-_]?key|client[-_]?secret|auth|authorization|bearer|cookie|session[-_]?id|signature|sig|sas|otp|pin)`

var (
	// An option or variable that takes a secret: --token=X, DB_PASSWORD=X, x.api-key=X. The name must end in the word, so that --tokenizer and
	// --token-count=5 stay readable.
	secretAssignment = regexp.MustCompile(`(?i)^([-/]*(?:(?:[a-z0-9]+[-_.:])*` + secretWord + `|key))([=:])(.+)$`)
	// Camel case, as configuration keys have it: awsSecretAccessKey=X, dbPassword=X.
	secretCamel = regexp.MustCompile(`^([-/]*[a-zA-Z0-9_.-]*(?:Password|Passwd|Secret|Token|ApiKey|APIKey|AccessKey|PrivateKey|AccountKey|Credential|Credentials))([=:])(.+)$`)
	// An option whose secret is the next argument: --token X, -p X is too short to tell.
	secretOption = regexp.MustCompile(`(?i)^--?(?:(?:[a-z0-9]+[-_.])*` + secretWord + `|key)$`)

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

	// Query parameters that carry the right to read: presigned URLs of S3, Google, Azure, CloudFront, and plain tokens.
	secretQuery = regexp.MustCompile(`(?i)^(?:x-amz-(?:signature|credential|security-token)|x-goog-(?:signature|credential)|awsaccesskeyid|googleaccessid|key-pair-id|policy|key|code|se?cret|.*` + secretWord + `)$`)
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
	next := false
	for _, arg := range argv {
		out := arg
		switch {
		case next && !strings.HasPrefix(arg, "--"):
			out = redacted
		default:
			out = r.text(arg)
		}
		next = secretOption.MatchString(arg)
		if out != arg {
			hidden++
		}
		clean = append(clean, out)
	}
	return clean, hidden
}

// text redacts one argument or value.
func (r *redactor) text(s string) string {
	for _, re := range []*regexp.Regexp{secretAssignment, secretCamel} {
		if m := re.FindStringSubmatch(s); m != nil && !strings.HasPrefix(m[3], "//") {
			return r.own(m[1] + m[2] + redacted)
		}
	}
	s = urlForm.ReplaceAllStringFunc(s, redactURL)
	for _, re := range secretForms {
		s = re.ReplaceAllString(s, redacted)
	}
	return r.own(s)
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
		if ok && secretQuery.MatchString(plain) {
			parts[i] = name + "=" + redacted
		}
	}
	s = fmt.Sprintf("%s://%s%s?%s", scheme, authority, path, strings.Join(parts, "&"))
	if hasFragment {
		s += "#" + fragment
	}
	return s
}
