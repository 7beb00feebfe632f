package backup

import (
	"fmt"
	"os"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/provledger/provledger/internal/checkpoint"
	"github.com/provledger/provledger/internal/merkle"
	"github.com/provledger/provledger/internal/signer"
)

// Witness says what somebody saw of a log.
type Witness struct {
	From   string // for people: a file, a directory
	Origin string
	Size   uint64
	Root   merkle.Hash
	// Counts says that the witness stands outside of whatever made the backup, so that its silence means something. One that does not count can
	// only object.
	Counts bool
}

// maxNoteBytes is far above a checkpoint with many cosignatures.
const maxNoteBytes = 64 << 10

// CheckpointWitness is the witness of a signed checkpoint in a file. It has to be signed by the key of a log of the backup.
func CheckpointWitness(from, path string) (Witness, error) {
	m, err := load(from)
	if err != nil {
		return Witness{}, err
	}
	note, err := readFile(path, maxNoteBytes)
	if err != nil {
		return Witness{}, err
	}
	origin, _, _ := strings.Cut(string(note), "\n")
	for i := range m.Logs {
		g := &m.Logs[i]
		if g.Origin != origin {
			continue
		}
		v, err := checkpoint.NewVerifier(g.VKey)
		if err != nil {
			return Witness{}, damaged("log %s: its key: %w", g.Name, err)
		}
		cp, err := checkpoint.Open(note, v)
		if err != nil {
			return Witness{}, fmt.Errorf("checkpoint %s: %w", path, err)
		}
		return Witness{From: path, Origin: origin, Size: cp.Size, Root: cp.Root, Counts: true}, nil
	}
	return Witness{}, fmt.Errorf("checkpoint %s is of %q, which the backup does not have", path, origin)
}

// SignerWitnesses are the records of what a node signed, in the signer directory of its old data directory: one for each log of the backup. A
// log without a record was never signed by that node.
func SignerWitnesses(from, dir string) ([]Witness, error) {
	m, err := load(from)
	if err != nil {
		return nil, err
	}
	if info, err := os.Stat(dir); err != nil {
		return nil, err
	} else if !info.IsDir() {
		return nil, fmt.Errorf("%s is no directory; name the signer directory of an old data directory", dir)
	}
	var all []Witness
	for i := range m.Logs {
		g := &m.Logs[i]
		size, root, ok, err := signer.ReadRecord(vfs.Default, dir, g.Origin)
		if err != nil {
			return nil, err
		}
		if !ok {
			size, root = 0, merkle.EmptyRoot()
		}
		all = append(all, Witness{From: dir, Origin: g.Origin, Size: size, Root: root, Counts: true})
	}
	if len(all) > 0 && !anySigned(all) {
		return nil, fmt.Errorf("%s has no record of any log of this backup; it is not the signer directory of a node of this ledger", dir)
	}
	return all, nil
}

func anySigned(all []Witness) bool {
	for _, w := range all {
		if w.Size > 0 {
			return true
		}
	}
	return false
}

// Origins returns the origins of the logs in a backup.
func Origins(dir string) ([]string, error) {
	m, err := load(dir)
	if err != nil {
		return nil, err
	}
	var all []string
	for i := range m.Logs {
		all = append(all, m.Logs[i].Origin)
	}
	return all, nil
}
