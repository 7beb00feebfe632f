package lineage_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/provledger/provledger/client/lineage"
)

// TestCommitIsHMAC holds the spelt-out HMAC to crypto/hmac, for every length around its block and buffer bounds.
func TestCommitIsHMAC(t *testing.T) {
	content := make([]byte, 5_000)
	for i := range content {
		content[i] = byte(i * 7)
	}
	for n := 0; n <= len(content); n++ {
		if n > 1_200 && n%97 != 0 {
			continue
		}
		key := lineage.Key(sha256.Sum256(content[:n]))
		h := hmac.New(sha256.New, key[:])
		h.Write([]byte("provledger/body/v1\x00\x00\x02"))
		h.Write(content[:n])
		if got := lineage.Commit(lineage.PartDocuments, &key, content[:n]); !bytes.Equal(got[:], h.Sum(nil)) {
			t.Fatalf("%d bytes: %x", n, got)
		}
	}
}

func TestHashNameIsHMAC(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := lineage.Name{Namespace: genText.Draw(t, "namespace"), Name: genText.Draw(t, "name"), Version: genText.Draw(t, "version")}
		key := lineage.Key(genHash.Draw(t, "key"))
		h := hmac.New(sha256.New, key[:])
		h.Write([]byte("provledger/ref/v1\x00"))
		for _, s := range []string{n.Namespace, n.Name, n.Version} {
			h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(s))))
			h.Write([]byte(s))
		}
		if got := lineage.HashName(&key, n); !bytes.Equal(got[:], h.Sum(nil)) {
			t.Fatalf("%q: %x", n, got)
		}
	})
	// What stands before and after a border makes another name.
	key := lineage.Key{}
	seen := map[lineage.Hash]lineage.Name{}
	for _, n := range []lineage.Name{{Namespace: "a", Name: "b"}, {Name: "ab"}, {Name: "a", Version: "b"}, {Namespace: "ab"}, {Version: "ab"}} {
		h := lineage.HashName(&key, n)
		if other, ok := seen[h]; ok {
			t.Errorf("%q and %q have one hash", n, other)
		}
		seen[h] = n
	}
}

func TestOpenBody(t *testing.T) {
	leaf, body := composeSample(t, sampleEvents()["full run"])
	l, err := lineage.ParseLeaf(leaf)
	if err != nil {
		t.Fatal(err)
	}
	if err := lineage.OpenBody(l, body); err != nil {
		t.Fatal(err)
	}
	change := func(f func(b []lineage.BodyPart) []lineage.BodyPart) []lineage.BodyPart {
		b := make([]lineage.BodyPart, len(body))
		for i := range body {
			b[i] = body[i]
			b[i].Content = bytes.Clone(body[i].Content)
		}
		return f(b)
	}
	for name, b := range map[string][]lineage.BodyPart{
		"none":         nil,
		"one missing":  change(func(b []lineage.BodyPart) []lineage.BodyPart { return b[:1] }),
		"one too many": change(func(b []lineage.BodyPart) []lineage.BodyPart { return append(b, b[0]) }),
		"swapped":      change(func(b []lineage.BodyPart) []lineage.BodyPart { return []lineage.BodyPart{b[1], b[0]} }),
		"other kind":   change(func(b []lineage.BodyPart) []lineage.BodyPart { b[1].Kind = lineage.PartReferenceKey; return b }),
		"other key":    change(func(b []lineage.BodyPart) []lineage.BodyPart { b[0].Key[31] ^= 1; return b }),
		"content":      change(func(b []lineage.BodyPart) []lineage.BodyPart { b[1].Content[3] ^= 1; return b }),
		"longer":       change(func(b []lineage.BodyPart) []lineage.BodyPart { b[1].Content = append(b[1].Content, 0); return b }),
		"shorter":      change(func(b []lineage.BodyPart) []lineage.BodyPart { b[1].Content = b[1].Content[:9]; return b }),
	} {
		if err := lineage.OpenBody(l, b); !errors.Is(err, lineage.ErrCommitment) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestPartsAgainstReference holds both encodings of parts to the reference codec.
func TestPartsAgainstReference(t *testing.T) {
	name := func(n lineage.Name) any {
		if n.IsZero() {
			return nil
		}
		return []any{n.Namespace, n.Name, n.Version}
	}
	rapid.Check(t, func(t *rapid.T) {
		e := genEvent.Draw(t, "event")
		_, body, err := countingComposer().Compose(nil, e, typicalStamp)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range body {
			var want any
			switch p.Kind {
			case lineage.PartIdentifiers:
				x, err := lineage.ParseIdentifiers(p.Content)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(lineage.AppendIdentifiers(nil, x), p.Content) {
					t.Fatal("identifiers do not round trip")
				}
				references := []any{}
				for i, f := range e.References {
					if i == len(x.References) {
						break
					}
					if f.Name.IsZero() && f.URI == "" && f.MediaType == "" && f.Size == 0 {
						references = append(references, nil)
						continue
					}
					references = append(references, []any{name(f.Name), f.URI, f.MediaType, f.Size})
				}
				for _, f := range e.References[len(x.References):] {
					if !f.Name.IsZero() || f.URI != "" || f.MediaType != "" || f.Size != 0 {
						t.Fatal("a reference was left out")
					}
				}
				want = []any{name(e.Job), name(e.Target), references}
			case lineage.PartDocuments:
				docs, err := lineage.ParseDocuments(p.Content)
				if diff := cmp.Diff(e.Documents, docs); err != nil || diff != "" {
					t.Fatalf("%v\n%s", err, diff)
				}
				list := []any{}
				for _, d := range e.Documents {
					list = append(list, []any{d.MediaType, d.Name, d.Content})
				}
				want = list
			}
			if b := referenceBytes(t, want); !bytes.Equal(b, p.Content) {
				t.Fatalf("%s:\ngot  %x\nwant %x", p.Kind, p.Content, b)
			}
		}
	})
}

func TestParsePartsRefuse(t *testing.T) {
	for name, b := range map[string]string{
		"empty": "", "not an array": "\xa0", "two elements": "\x82\xf6\xf6", "four elements": "\x84\xf6\xf6\x80\x80", "trailing byte": "\x83\xf6\xf6\x80\x00",
		"says nothing": "\x83\xf6\xf6\x80", "empty name": "\x83\x83\x60\x60\x60\xf6\x80", "trailing null": "\x83\xf6\xf6\x81\xf6", "empty reference": "\x83\xf6\xf6\x81\x84\xf6\x60\x60\x00",
		"long length": "\x83\xf6\xf6\x98\x00", "control character": "\x83\x83\x60\x61\x0a\x60\xf6\x80", "negative size": "\x83\xf6\xf6\x81\x84\xf6\x61a\x60\x20",
		"size of 64 bits": "\x83\xf6\xf6\x81\x84\xf6\x60\x60\x1b\x80\x00\x00\x00\x00\x00\x00\x00", "undefined for null": "\x83\xf7\xf6\x80",
	} {
		if x, err := lineage.ParseIdentifiers([]byte(b)); err == nil {
			t.Errorf("identifiers, %s: %+v", name, x)
		}
	}
	for name, b := range map[string]string{
		"empty": "", "two elements": "\x81\x82\x60\x60", "text content": "\x81\x83\x60\x60\x60", "cut": "\x81\x83\x60\x60\x41", "trailing byte": "\x80\x00",
		"no documents": "\x80", "long length": "\x81\x83\x60\x60\x58\x00", "too many": "\x98\x41", "control character": "\x81\x83\x61\x7f\x60\x40",
	} {
		if d, err := lineage.ParseDocuments([]byte(b)); err == nil {
			t.Errorf("documents, %s: %+v", name, d)
		}
	}
}

func TestFits(t *testing.T) {
	e := sampleEvents()["full run"]
	leaf, body := composeSample(t, e)
	l, err := lineage.ParseLeaf(leaf)
	if err != nil {
		t.Fatal(err)
	}
	parse := func() lineage.Identifiers {
		x, err := lineage.ParseIdentifiers(body[0].Content)
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
	if x := parse(); x.Fits(l) != nil {
		t.Fatal(x.Fits(l))
	}
	for name, change := range map[string]func(x *lineage.Identifiers){
		"no job":                  func(x *lineage.Identifiers) { x.Job = lineage.Name{} },
		"no target":               func(x *lineage.Identifiers) { x.Target = lineage.Name{} },
		"reference without name":  func(x *lineage.Identifiers) { x.References[0].Name = lineage.Name{} },
		"reference with a name":   func(x *lineage.Identifiers) { x.References[1].Name = lineage.Name{Name: "n"} },
		"last reference left out": func(x *lineage.Identifiers) { x.References = x.References[:3] },
		"one reference too many": func(x *lineage.Identifiers) {
			x.References = append(x.References, lineage.ReferenceIdentifiers{URI: "u"})
		},
	} {
		x := parse()
		if change(&x); x.Fits(l) == nil {
			t.Errorf("%s: fits", name)
		}
	}
}

func TestStoredBody(t *testing.T) {
	_, body := composeSample(t, sampleEvents()["full run"])
	for _, parts := range [][]lineage.BodyPart{nil, body[:1], body} {
		stored := lineage.AppendBody(nil, parts)
		got, rest, err := lineage.ParseBody(append(stored, "rest"...))
		if diff := cmp.Diff(parts, got); err != nil || diff != "" || string(rest) != "rest" {
			t.Errorf("%v, rest %q\n%s", err, rest, diff)
		}
		for n := range stored {
			if _, _, err := lineage.ParseBody(stored[:n]); err == nil {
				t.Fatalf("cut to %d of %d bytes: accepted", n, len(stored))
			}
		}
	}
}
