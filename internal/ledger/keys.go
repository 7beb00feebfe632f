package ledger

import (
	"encoding/binary"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/merkle"
)

// Key tags. All numbers in keys are big endian, so that keys sort as the numbers do. Within a tag every key is written once, but for
// heads, staged records and the applied record.
const (
	tagApplied  = 0x01 // applied record
	tagRegistry = 0x02 // log number -> log
	tagHead     = 0x03 // log number -> head
	tagLocal    = 0x04 // local principal
	tagStaged   = 0x05 // log number -> how far data beyond the head were fetched ahead
	tagLeaves   = 0x10 // log, first index -> chunk of leaves
	tagBodies   = 0x11 // log, first index -> chunk of bodies
	tagTile     = 0x12 // log, level, tile index -> full tile
	tagEventID  = 0x13 // log, event id, principal -> index
)

var (
	appliedKey     = []byte{tagApplied}
	localKey       = []byte{tagLocal}
	registryPrefix = []byte{tagRegistry}
	headPrefix     = []byte{tagHead}
	stagedPrefix   = []byte{tagStaged}
)

// chunkEntries is the number of entries that share a key. A key an entry costs twice the CPU; more than 16 gain nothing (measured).
const chunkEntries = 16

func logKey(tag byte, log uint32) []byte { return appendLogKey(make([]byte, 0, 13), tag, log) }

func appendLogKey(b []byte, tag byte, log uint32) []byte {
	return binary.BigEndian.AppendUint32(append(b, tag), log)
}

func appendChunkKey(b []byte, tag byte, log uint32, first uint64) []byte {
	return binary.BigEndian.AppendUint64(appendLogKey(b, tag, log), first)
}

func chunkFirst(key []byte) (uint64, error) {
	if len(key) != 13 {
		return 0, fmt.Errorf("%w: chunk key of %d bytes", ErrCorrupt, len(key))
	}
	return binary.BigEndian.Uint64(key[5:]), nil
}

func appendTileKey(b []byte, log uint32, id merkle.TileID) []byte {
	b = append(appendLogKey(b, tagTile, log), id.Level)
	return binary.BigEndian.AppendUint64(b, id.Index)
}

func appendEventKey(b []byte, log uint32, id lineage.ID, principal string) []byte {
	b = append(appendLogKey(b, tagEventID, log), id[:]...)
	return append(b, principal...)
}

// after returns the smallest key that is greater than every key with the prefix.
func after(prefix []byte) []byte {
	end := append([]byte(nil), prefix...)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i]++; end[i] != 0 {
			return end[:i+1]
		}
	}
	return nil
}

// get returns a copy of the value of key.
func (l *Ledger) get(key []byte) (value []byte, ok bool, err error) { return get(l.db, key) }

func get(r pebble.Reader, key []byte) (value []byte, ok bool, err error) {
	v, closer, err := r.Get(key)
	if err != nil {
		if isNotFound(err) {
			return nil, false, nil
		}
		return nil, false, storeErr(err)
	}
	value = append([]byte(nil), v...)
	return value, true, closer.Close()
}
