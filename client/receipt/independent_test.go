package receipt

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/fxamacker/cbor/v2"
)

// A second verifier, from docs/format.md and the standard library, with a general CBOR codec. It shares no code with the package, so that
// a fault has to be made twice to stay unseen. It trusts one log and asks for no witness and no file.

type independent struct {
	origin string
	key    ed25519.PublicKey
	schema []byte // docs/leaf.cddl
}

var partLine = regexp.MustCompile(`^(,?)\n    \{"part": (0|[1-9][0-9]*), "key": "([^"]*)", "content": "([^"]*)"\}`)

type opening struct {
	part         uint64
	key, content []byte
}

func strictBase64(s string) ([]byte, error) {
	if strings.ContainsAny(s, "\r\n") {
		return nil, errors.New("line break in base64")
	}
	return base64.StdEncoding.Strict().DecodeString(s)
}

func (v independent) verify(file []byte) error {
	if !utf8.Valid(file) {
		return errors.New("not UTF-8")
	}
	rest, ok := strings.CutPrefix(string(file), "{\n  \"mediaType\": \"application/vnd.provledger.receipt.v1+json\",\n  \"leaf\": \"")
	encoded, rest, ok2 := strings.Cut(rest, "\",\n  \"bodyState\": \"")
	state, rest, ok3 := strings.Cut(rest, "\",\n  \"body\": [")
	parts, rest, ok4 := strings.Cut(rest, "],\n  \"proof\": \"")
	escaped, ok5 := strings.CutSuffix(rest, "\"\n}\n")
	if !ok || !ok2 || !ok3 || !ok4 || !ok5 || state != "opened" && state != "withheld" && state != "erased" {
		return errors.New("not in the layout")
	}
	leaf, err := strictBase64(encoded)
	if err != nil {
		return err
	}
	if parts != "" {
		if parts, ok = strings.CutSuffix(parts, "\n  "); !ok || parts == "" {
			return errors.New("body not in the layout")
		}
	}
	var body []opening
	for parts != "" {
		p := partLine.FindStringSubmatch(parts)
		if p == nil || (p[1] == ",") != (len(body) > 0) {
			return errors.New("body not in the layout")
		}
		parts = parts[len(p[0]):]
		n, err := strconv.ParseUint(p[2], 10, 8)
		if err != nil {
			return err
		}
		o := opening{part: n}
		if o.key, err = strictBase64(p[3]); err != nil || len(o.key) != 32 {
			return errors.New("body key")
		}
		if o.content, err = strictBase64(p[4]); err != nil {
			return err
		}
		body = append(body, o)
	}
	if state != "opened" && len(body) > 0 {
		return errors.New("parts of a body that is not opened")
	}
	proof, err := unescape(escaped)
	if err != nil {
		return err
	}
	index, err := v.proof(leaf, proof)
	if err != nil {
		return err
	}
	commitments, err := v.leaf(leaf, index)
	if err != nil {
		return err
	}
	if state == "opened" {
		return openings(commitments, body)
	}
	if commitments[uint64(19)] == nil {
		return errors.New("no body to keep back")
	}
	return nil
}

func unescape(s string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"' || c < 0x20 || c == '\\' && i+1 == len(s):
			return "", errors.New("proof not in the layout")
		case c != '\\':
			b.WriteByte(c)
		default:
			i++
			j := strings.IndexByte(`"\n`, s[i])
			if j < 0 {
				return "", errors.New("other escape")
			}
			b.WriteByte("\"\\\n"[j])
		}
	}
	return b.String(), nil
}

// proof checks a tlog-proof and returns the index that it proves the leaf to have.
func (v independent) proof(leaf []byte, text string) (uint64, error) {
	rest, ok := strings.CutPrefix(text, "c2sp.org/tlog-proof@v1\nindex ")
	if !ok {
		return 0, errors.New("no tlog-proof")
	}
	head, note, ok := strings.Cut(rest, "\n\n")
	if !ok {
		return 0, errors.New("no checkpoint")
	}
	lines := strings.Split(head, "\n")
	index, err := decimal(lines[0])
	if err != nil {
		return 0, err
	}
	var hashes [][]byte
	for _, l := range lines[1:] {
		h, err := strictBase64(l)
		if err != nil || len(h) != 32 {
			return 0, errors.New("hash")
		}
		hashes = append(hashes, h)
	}
	size, root, err := v.checkpoint(note)
	if err != nil {
		return 0, err
	}
	return index, inclusion(leaf, index, size, hashes, root)
}

func decimal(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil || strconv.FormatUint(n, 10) != s {
		return 0, fmt.Errorf("number %q", s)
	}
	return n, nil
}

func (v independent) checkpoint(note string) (size uint64, root []byte, err error) {
	text, signatures, ok := strings.Cut(note, "\n\n")
	lines := strings.Split(text, "\n")
	if !ok || len(lines) != 3 || lines[0] != v.origin || !strings.HasSuffix(signatures, "\n") {
		return 0, nil, errors.New("checkpoint")
	}
	if size, err = decimal(lines[1]); err != nil {
		return 0, nil, err
	}
	if root, err = strictBase64(lines[2]); err != nil || len(root) != 32 {
		return 0, nil, errors.New("root")
	}
	id := sha256.Sum256(append([]byte(v.origin+"\n\x01"), v.key...))
	good := false
	for _, l := range strings.Split(strings.TrimSuffix(signatures, "\n"), "\n") {
		f := strings.Split(l, " ")
		if len(f) != 3 || f[0] != "—" || f[1] == "" || strings.ContainsAny(f[1], "+") || strings.IndexFunc(f[1], isSpace) >= 0 {
			return 0, nil, errors.New("signature line")
		}
		blob, err := strictBase64(f[2])
		if err != nil || len(blob) < 5 {
			return 0, nil, errors.New("signature")
		}
		if f[1] != v.origin || !bytes.Equal(blob[:4], id[:4]) {
			continue
		}
		if !ed25519.Verify(v.key, []byte(text+"\n"), blob[4:]) {
			return 0, nil, errors.New("bad signature")
		}
		good = true
	}
	if !good {
		return 0, nil, errors.New("not signed by the log")
	}
	return size, root, nil
}

func isSpace(r rune) bool {
	return strings.TrimSpace(string(r)) == ""
}

// inclusion is RFC 9162 2.1.3.2.
func inclusion(leaf []byte, index, size uint64, path [][]byte, root []byte) error {
	if index >= size {
		return errors.New("index beyond the tree")
	}
	node := func(a, b []byte) []byte {
		h := sha256.Sum256(append(append([]byte{1}, a...), b...))
		return h[:]
	}
	fn, sn := index, size-1
	h := sha256.Sum256(append([]byte{0}, leaf...))
	r := h[:]
	for _, p := range path {
		if sn == 0 {
			return errors.New("path too long")
		}
		if fn&1 == 1 || fn == sn {
			r = node(p, r)
			for fn&1 == 0 && fn != 0 {
				fn, sn = fn>>1, sn>>1
			}
		} else {
			r = node(r, p)
		}
		fn, sn = fn>>1, sn>>1
	}
	if sn != 0 || !bytes.Equal(r, root) {
		return errors.New("not in the tree")
	}
	return nil
}

// The schema, as docs/leaf.cddl has it.

type shape func(v any) bool

func number(low, high uint64) shape {
	return func(v any) bool { n, ok := v.(uint64); return ok && n >= low && n <= high }
}

func octets(sizes ...int) shape {
	return func(v any) bool {
		b, ok := v.([]byte)
		for _, n := range sizes {
			if ok && len(b) == n {
				return true
			}
		}
		return false
	}
}

func text(least, most int) shape {
	return func(v any) bool {
		s, ok := v.(string)
		return ok && len(s) >= least && len(s) <= most && strings.IndexFunc(s, func(r rune) bool { return r < 0x20 || r >= 0x7f && r < 0xa0 }) < 0
	}
}

func identifier(v any) bool {
	return octets(16)(v) && !bytes.Equal(v.([]byte), make([]byte, 16))
}

func list(least, most int, of shape) shape {
	return func(v any) bool {
		l, ok := v.([]any)
		if !ok || len(l) < least || len(l) > most {
			return false
		}
		for _, x := range l {
			if !of(x) {
				return false
			}
		}
		return true
	}
}

func tuple(of ...shape) shape {
	return func(v any) bool {
		l, ok := v.([]any)
		if !ok || len(l) != len(of) {
			return false
		}
		for i := range l {
			if !of[i](l[i]) {
				return false
			}
		}
		return true
	}
}

var digestSizes = map[uint64][]int{
	1: {32}, 2: {32}, 3: {48}, 4: {64}, 5: {32}, 6: {32}, 7: {48}, 8: {64}, 9: {64}, 10: {32}, 11: {32}, 12: {32},
	13: {20, 32}, 14: {20, 32}, 15: {20, 32}, 16: {20, 32}, 17: {20}, 18: {16},
}

func digest(v any) bool {
	if !tuple(number(1, 18), func(any) bool { return true })(v) {
		return false
	}
	l := v.([]any)
	return octets(digestSizes[l[0].(uint64)]...)(l[1])
}

func reference(v any) bool {
	l, ok := v.([]any)
	if !ok || len(l) != 6 && len(l) != 7 || !tuple(number(1, 3), number(0, 255), number(0, 255), number(1, 5))(l[:4]) || !digest(l[4:6]) {
		return false
	}
	known, algorithm := l[3].(uint64), l[4].(uint64)
	if algorithm == 12 || algorithm >= 17 || known == 4 && algorithm != 1 || algorithm == 1 && known != 3 && known != 4 {
		return false
	}
	if len(l) == 6 {
		return true
	}
	if !list(1, 9, digest)(l[6]) {
		return false
	}
	aliases := l[6].([]any)
	seen := map[string]bool{fmt.Sprint(l[4:6]): true}
	for i, a := range aliases {
		if seen[fmt.Sprint(a)] {
			return false
		}
		seen[fmt.Sprint(a)] = true
		if a.([]any)[0].(uint64) == 1 && (algorithm == 1 || i != len(aliases)-1) {
			return false
		}
	}
	return true
}

func fields(required map[uint64]shape, optional map[uint64]shape) shape {
	return func(v any) bool {
		m, ok := v.(map[any]any)
		if !ok {
			return false
		}
		seen := 0
		for k, x := range m {
			n, ok := k.(uint64)
			s := required[n]
			if s != nil {
				seen++
			} else {
				s = optional[n]
			}
			if !ok || s == nil || !s(x) {
				return false
			}
		}
		return seen == len(required)
	}
}

// some asks for at least one field.
func some(s shape) shape {
	return func(v any) bool { return s(v) && len(v.(map[any]any)) > 0 }
}

func ascending(v any) bool {
	if !list(1, 256, number(0, 1<<64-1))(v) {
		return false
	}
	l := v.([]any)
	for i := 1; i < len(l); i++ {
		if l[i-1].(uint64) >= l[i].(uint64) {
			return false
		}
	}
	return true
}

func policy(v any) bool {
	if !digest(v) {
		return false
	}
	a := v.([]any)[0].(uint64)
	return a != 1 && a != 12 && a < 17
}

const maxTime = 253402300799999999

var (
	any64    = number(0, 1<<64-1)
	controls = map[uint64]shape{ // by action
		1: fields(map[uint64]shape{
			1: text(1, 255), 2: number(1, 2), 3: identifier, 4: number(1, 18), 5: number(1, maxTime), 6: text(1, 1024), 7: text(1, 1024), 8: digest, 12: text(1, 1024),
		}, map[uint64]shape{9: number(1, 1<<64-1), 10: tuple(text(0, 255), any64, octets(32), text(0, 1024))}),
		9: some(fields(nil, map[uint64]shape{
			1: text(1, 255), 2: number(1, 2), 5: number(1, maxTime), 6: text(1, 1024), 11: number(1, 1<<32-1), 12: text(1, 1024),
		})),
		10: some(fields(nil, map[uint64]shape{13: text(1, 255), 14: text(1, 255)})),
	}
	leafMap = fields(map[uint64]shape{
		1: number(1, 1), 2: identifier, 3: number(1, 5), 4: func(any) bool { return true }, 5: number(1, 3), 6: number(1, maxTime), 8: text(1, 255), 9: number(0, 255),
	}, map[uint64]shape{
		7: number(1, maxTime), 10: text(1, 255), 11: identifier, 12: identifier, 13: octets(32), 14: list(1, 1000, reference), 15: octets(32),
		16: ascending, 17: policy, 18: number(1, maxTime), 19: list(1, 3, tuple(number(1, 3), octets(32))), 20: func(v any) bool { _, ok := v.(map[any]any); return ok },
	})
	actions = map[uint64]shape{1: number(1, 6), 2: text(1, 255), 3: number(1, 9), 4: number(1, 4), 5: number(1, 13)}
)

// decode reads one deterministic CBOR item.
func decode(b []byte) (any, error) {
	dec, err := cbor.DecOptions{DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsForbidden}.DecMode()
	if err != nil {
		return nil, err
	}
	enc, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		return nil, err
	}
	var v any
	if err := dec.Unmarshal(b, &v); err != nil {
		return nil, err
	}
	if again, err := enc.Marshal(v); err != nil || !bytes.Equal(again, b) {
		return nil, errors.New("not deterministic")
	}
	return v, nil
}

func (v independent) leaf(leaf []byte, index uint64) (map[any]any, error) {
	rest, ok := bytes.CutPrefix(leaf, []byte("pvleaf\x00"))
	if !ok || len(leaf) > 65535 {
		return nil, errors.New("no leaf")
	}
	item, err := decode(rest)
	if err != nil {
		return nil, err
	}
	if !leafMap(item) {
		return nil, errors.New("leaf is not of the schema")
	}
	m := item.(map[any]any)
	kind := m[uint64(3)].(uint64)
	_, run := m[uint64(11)]
	control, isControl := m[uint64(20)]
	if !actions[kind](m[uint64(4)]) || kind == 1 && !run || (kind == 5) != isControl {
		return nil, errors.New("leaf contradicts its kind")
	}
	if isControl {
		payload := controls[m[uint64(4)].(uint64)]
		if payload == nil {
			payload = fields(nil, nil)
		}
		if !payload(control) {
			return nil, errors.New("control payload of another action")
		}
	}
	last := uint64(0)
	bodies, _ := m[uint64(19)].([]any)
	for _, c := range bodies {
		part := c.([]any)[0].(uint64)
		if part <= last {
			return nil, errors.New("parts out of order")
		}
		last = part
	}
	genesis := kind == 5 && m[uint64(4)].(uint64) == 1
	if (last == 3) != genesis {
		return nil, errors.New("reference key elsewhere than in the genesis")
	}
	if genesis != (index == 0) {
		return nil, errors.New("genesis is not entry 0")
	}
	if !genesis {
		return m, nil
	}
	c, part := control.(map[any]any), strings.Split(v.origin, "/")
	schema := sha256.Sum256(v.schema)
	cluster, err := hex.DecodeString(strings.ReplaceAll(part[1], "-", ""))
	if err != nil || c[uint64(1)] != v.origin || c[uint64(2)] != uint64(1) || !bytes.Equal(c[uint64(3)].([]byte), cluster) || c[uint64(12)] != part[3] {
		return nil, errors.New("genesis of another log")
	}
	signer, _, _ := strings.Cut(c[uint64(6)].(string), "+")
	d := c[uint64(8)].([]any)
	if c[uint64(4)] != uint64(2) || signer != v.origin || d[0] != uint64(2) || c[uint64(7)] == "provledger/leaf/1" && !bytes.Equal(d[1].([]byte), schema[:]) {
		return nil, errors.New("genesis of another format")
	}
	return m, nil
}

// openings checks the parts of an opened body against the leaf.
func openings(leaf map[any]any, body []opening) error {
	commitments, _ := leaf[uint64(19)].([]any)
	if len(commitments) != len(body) {
		return errors.New("other number of parts")
	}
	size := 0
	names := []any{nil, nil, []any{}}
	for i, o := range body {
		c := commitments[i].([]any)
		mac := hmac.New(sha256.New, o.key)
		mac.Write([]byte("provledger/body/v1\x00"))
		mac.Write(binary.BigEndian.AppendUint16(nil, uint16(o.part)))
		mac.Write(o.content)
		if c[0] != o.part || !bytes.Equal(c[1].([]byte), mac.Sum(nil)) {
			return errors.New("commitment")
		}
		size += len(o.content)
		switch o.part {
		case 1:
			v, err := decode(o.content)
			if err != nil {
				return err
			}
			if !identifiersShape(v) {
				return errors.New("identifiers")
			}
			names = v.([]any)
		case 2:
			v, err := decode(o.content)
			if err != nil {
				return err
			}
			if !list(1, 64, tuple(text(0, 1024), text(0, 1024), func(v any) bool { _, ok := v.([]byte); return ok }))(v) {
				return errors.New("documents")
			}
		case 3:
			if len(o.content) != 32 {
				return errors.New("reference key")
			}
		}
	}
	if size > 1<<20 {
		return errors.New("body too large")
	}
	return fits(leaf, names)
}

func nameShape(v any) bool {
	if v == nil {
		return true
	}
	if !tuple(text(0, 1024), text(0, 1024), text(0, 1024))(v) {
		return false
	}
	l := v.([]any)
	return l[0] != "" || l[1] != "" || l[2] != ""
}

func identifiersShape(v any) bool {
	reference := func(v any) bool {
		if v == nil {
			return true
		}
		if !tuple(nameShape, text(0, 4096), text(0, 1024), number(0, 1<<63-1))(v) {
			return false
		}
		l := v.([]any)
		return l[0] != nil || l[1] != "" || l[2] != "" || l[3] != uint64(0)
	}
	if !tuple(nameShape, nameShape, list(0, 1000, reference))(v) {
		return false
	}
	references := v.([]any)[2].([]any)
	if len(references) == 0 {
		return v.([]any)[0] != nil || v.([]any)[1] != nil
	}
	return references[len(references)-1] != nil
}

// fits compares where the leaf has hashes of names with where the body has names.
func fits(leaf map[any]any, names []any) error {
	_, job := leaf[uint64(13)]
	_, target := leaf[uint64(15)]
	in, _ := leaf[uint64(14)].([]any)
	out := names[2].([]any)
	if job != (names[0] != nil) || target != (names[1] != nil) || len(out) > len(in) {
		return errors.New("names do not fit the leaf")
	}
	for i, r := range in {
		l := r.([]any)
		hashed := l[4].(uint64) == 1
		if len(l) == 7 {
			aliases := l[6].([]any)
			hashed = hashed || aliases[len(aliases)-1].([]any)[0].(uint64) == 1
		}
		if named := i < len(out) && out[i] != nil && out[i].([]any)[0] != nil; named != hashed {
			return errors.New("names do not fit the leaf")
		}
	}
	return nil
}
