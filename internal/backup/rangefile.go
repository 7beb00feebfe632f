package backup

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"path/filepath"

	"github.com/provledger/provledger/client/lineage"
)

const (
	magicLeaves = "PLBKLEAF"
	magicBodies = "PLBKBODY"
	headerBytes = 8 + 4 + 16 + 4 + 8 + 8

	bodyKept   = 0
	bodyErased = 1
)

// header begins a range file.
type header struct {
	magic   string
	cluster lineage.ID
	log     uint32
	first   uint64
	count   uint64
}

func (h *header) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(append(b, h.magic...), formatVersion)
	b = append(b, h.cluster[:]...)
	b = binary.BigEndian.AppendUint32(b, h.log)
	b = binary.BigEndian.AppendUint64(b, h.first)
	return binary.BigEndian.AppendUint64(b, h.count)
}

// records checks the header of a file against what it has to be and returns what follows.
func (h *header) records(file []byte) ([]byte, error) {
	want := h.append(nil)
	if len(file) < headerBytes || !bytes.Equal(file[:headerBytes], want) {
		return nil, fmt.Errorf("its header is not that of %s", h)
	}
	return file[headerBytes:], nil
}

func (h *header) String() string {
	what := "leaves"
	if h.magic == magicBodies {
		what = "bodies"
	}
	return fmt.Sprintf("%s [%d, %d) of log %d", what, h.first, h.first+h.count, h.log)
}

func appendLeaf(b, leaf []byte) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(leaf))), leaf...)
}

func appendBody(b []byte, erased bool, body []byte) []byte {
	state := byte(bodyKept)
	if erased {
		state, body = bodyErased, nil
	}
	return append(binary.BigEndian.AppendUint32(append(b, state), uint32(len(body))), body...)
}

// splitRecords cuts records: each is head bytes, u32 length and content. fn gets head and content.
func splitRecords(b []byte, head int, count uint64, fn func(i uint64, head, content []byte) error) error {
	for i := range count {
		if len(b) < head+4 {
			return fmt.Errorf("it ends within record %d of %d", i, count)
		}
		n := binary.BigEndian.Uint32(b[head:])
		rest := b[head+4:]
		if uint64(n) > uint64(len(rest)) {
			return fmt.Errorf("it ends within record %d of %d", i, count)
		}
		if err := fn(i, b[:head], rest[:n:n]); err != nil {
			return err
		}
		b = rest[n:]
	}
	if len(b) > 0 {
		return fmt.Errorf("%d bytes follow its last record", len(b))
	}
	return nil
}

// parseLeaves returns the leaves of a file; they alias it.
func (h header) parseLeaves(file []byte) ([][]byte, error) {
	h.magic = magicLeaves
	b, err := h.records(file)
	if err != nil {
		return nil, err
	}
	leaves := make([][]byte, 0, min(h.count, rangeEntries))
	return leaves, splitRecords(b, 0, h.count, func(_ uint64, _, leaf []byte) error {
		leaves = append(leaves, leaf)
		return nil
	})
}

// storedBody is a body as a state store keeps it.
type storedBody struct {
	erased bool
	bytes  []byte
}

// parseBodies returns the bodies of a file; they alias it.
func (h header) parseBodies(file []byte) ([]storedBody, error) {
	h.magic = magicBodies
	b, err := h.records(file)
	if err != nil {
		return nil, err
	}
	bodies := make([]storedBody, 0, min(h.count, rangeEntries))
	return bodies, splitRecords(b, 1, h.count, func(i uint64, state, body []byte) error {
		if state[0] > bodyErased || state[0] == bodyErased && len(body) > 0 {
			return fmt.Errorf("record %d has state %d and %d bytes", i, state[0], len(body))
		}
		bodies = append(bodies, storedBody{state[0] == bodyErased, body})
		return nil
	})
}

// paths returns where the files of a range are, relative to the directory of the backup.
func (r Range) paths(log uint32) (leaves, bodies string) {
	base := filepath.Join(logsDir, fmt.Sprint(log), fmt.Sprintf("%016d", r.First))
	return base + ".leaves", base + ".bodies"
}
