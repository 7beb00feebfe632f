package lineage_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/provledger/provledger/client/lineage"
)

// Every target holds a parser to two things: what it accepts is written back to the same bytes, and the reference codec agrees.

func FuzzParseLeaf(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := lineage.ParseLeaf(b)
		if err != nil {
			if errors.Is(err, lineage.ErrLeaf) == errors.Is(err, lineage.ErrUnknownSchema) {
				t.Fatalf("error of no or two classes: %v", err)
			}
			return
		}
		if again := lineage.AppendLeaf(nil, l); !bytes.Equal(again, b) {
			t.Fatalf("%x\nbecame %x", b, again)
		}
		if want := referenceBytes(t, referenceLeaf(l)); !bytes.Equal(b[len(lineage.LeafTag):], want) {
			t.Fatalf("%x\nis %x by the reference", b, want)
		}
		if err := deterministic(b[len(lineage.LeafTag):]); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzParseIdentifiers(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := lineage.ParseIdentifiers(b)
		if err != nil {
			return
		}
		if again := lineage.AppendIdentifiers(nil, x); !bytes.Equal(again, b) {
			t.Fatalf("%x\nbecame %x", b, again)
		}
		if err := deterministic(b); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzParseDocuments(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		docs, err := lineage.ParseDocuments(b)
		if err != nil {
			return
		}
		if again := lineage.AppendDocuments(nil, docs); !bytes.Equal(again, b) {
			t.Fatalf("%x\nbecame %x", b, again)
		}
		if err := deterministic(b); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzParseBody(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		parts, rest, err := lineage.ParseBody(b)
		if err != nil {
			return
		}
		if again := append(lineage.AppendBody(nil, parts), rest...); !bytes.Equal(again, b) {
			t.Fatalf("%x\nbecame %x", b, again)
		}
	})
}

func FuzzParseDigest(f *testing.F) {
	f.Fuzz(func(t *testing.T, s string) {
		d, err := lineage.ParseDigest(s)
		if err != nil {
			if !d.IsZero() {
				t.Fatalf("%q: %v beside an error", s, d)
			}
			return
		}
		again, err := lineage.ParseDigest(d.String())
		if err != nil || again != d || len(d.String()) > len(s) {
			t.Fatalf("%q is %s is %s, %v", s, d, again, err)
		}
	})
}
