package backup

import (
	"bytes"
	"testing"

	"github.com/provledger/provledger/client/lineage"
)

// What is taken for a manifest is one, byte for byte.
func FuzzParseManifest(f *testing.F) {
	empty := Manifest{Format: formatVersion, Logs: []LogInfo{}}
	b, err := empty.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ParseManifest(b)
		if err != nil {
			return
		}
		again, err := m.encode()
		if err != nil || !bytes.Equal(b, again) {
			t.Errorf("%q became %q, %v", b, again, err)
		}
	})
}

// What is taken for a range file holds its records and nothing else.
func FuzzRangeFile(f *testing.F) {
	h := header{cluster: lineage.ID{1}, log: 2, first: 3, count: 2}
	leaves, bodies := h, h
	leaves.magic, bodies.magic = magicLeaves, magicBodies
	f.Add(appendLeaf(appendLeaf(leaves.append(nil), []byte("a")), nil), uint8(2))
	f.Add(appendBody(appendBody(bodies.append(nil), true, nil), false, []byte("b")), uint8(2))
	f.Fuzz(func(t *testing.T, b []byte, count uint8) {
		h := h
		h.count = uint64(count)
		if got, err := h.parseLeaves(b); err == nil {
			h := h
			h.magic = magicLeaves
			again := h.append(nil)
			for _, leaf := range got {
				again = appendLeaf(again, leaf)
			}
			if !bytes.Equal(b, again) || len(got) != int(count) {
				t.Errorf("%x is %d leaves and becomes %x", b, len(got), again)
			}
		}
		if got, err := h.parseBodies(b); err == nil {
			h := h
			h.magic = magicBodies
			again := h.append(nil)
			for _, body := range got {
				again = appendBody(again, body.erased, body.bytes)
			}
			if !bytes.Equal(b, again) || len(got) != int(count) {
				t.Errorf("%x is %d bodies and becomes %x", b, len(got), again)
			}
		}
	})
}
