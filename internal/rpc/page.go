package rpc

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/provledger/provledger/client/lineage"
)

// What a page token belongs to.
const (
	pageList = 'l'
	pageFind = 'f'
	pageLogs = 'g'
)

// position is where a paged answer goes on. The tree size of the first page is kept, so that all pages are of one answer.
type position struct {
	kind  byte
	log   uint32
	query uint64 // fingerprint of what is looked for
	next  uint64
	size  uint64
}

// token is opaque to clients; it is no secret and grants nothing.
func (p position) token() string {
	return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%c.%d.%d.%d.%d", p.kind, p.log, p.query, p.next, p.size))
}

// parseToken reverses token.
func parseToken(token string) (q position, ok bool) {
	b, err := base64.RawURLEncoding.DecodeString(token)
	if err == nil && len(token) <= maxTokenBytes {
		_, err = fmt.Sscanf(string(b), "%c.%d.%d.%d.%d", &q.kind, &q.log, &q.query, &q.next, &q.size)
	}
	return q, err == nil && q.token() == token
}

// tokenSize returns the tree size that a token was made at; 0 if it names none.
func tokenSize(token string) uint64 {
	if token == "" {
		return 0
	}
	if q, ok := parseToken(token); ok && q.kind != pageLogs {
		return q.size
	}
	return 0
}

// resume takes next and size from a token of the same kind of request on the same log; an empty token changes nothing.
func (p *position) resume(token string, current uint64) error {
	if token == "" {
		return nil
	}
	q, ok := parseToken(token)
	if !ok || q.kind != p.kind || q.log != p.log || q.query != p.query || q.next > q.size || q.kind != pageLogs && q.size > current {
		return invalid("page_token", "is not one that this request got; start again without it")
	}
	*p = q
	return nil
}

// pageSize applies the default and the maximum: larger wishes are cut, as AIP-158 says.
func pageSize(n int32) (int, error) {
	switch {
	case n < 0:
		return 0, invalid("page_size", fmt.Sprintf("%d is negative", n))
	case n == 0:
		return defaultPage, nil
	}
	return min(int(n), maxPage), nil
}

// digestPrefix checks ALGORITHM:HEX where HEX may be cut short.
func digestPrefix(s string) (string, error) {
	name, digits, ok := strings.Cut(s, ":")
	if !ok {
		return "", fmt.Errorf("%q is not ALGORITHM:HEX", s)
	}
	a, err := lineage.ParseAlgorithm(name)
	if err != nil {
		return "", err
	}
	if _, err := hex.DecodeString(digits + strings.Repeat("0", len(digits)%2)); err != nil || len(digits) < minPrefix {
		return "", fmt.Errorf("%q: a prefix has at least %d hex digits", s, minPrefix)
	}
	return a.String() + ":" + strings.ToLower(digits), nil
}
