package sequencer

import (
	"bytes"
	"slices"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/ledger"
)

// maxRemembered bounds the ids that a log keeps in memory. At 60 bytes each that is 16 MiB, and minutes of traffic at any rate.
const maxRemembered = 256 << 10

// maxLoaded bounds the ids that are read when a log is first used. Ids that sort by time are greater than all of them, so a few are enough,
// and the first append after a start does not wait for a quarter of a million reads. fewLoaded is the bound once many logs are in use: then a
// first use is no exception, and most logs are small.
const (
	maxLoaded = 4 << 10
	fewLoaded = 128
)

// eventKey is the identity of an event within a log. Principals are numbered to keep it small.
type eventKey struct {
	id        lineage.ID
	principal uint32
}

// dedup knows every recorded id above floor, and everything in flight whatever its id; other ids are looked up in the store. Ids that
// sort by time therefore never cost a read, and no clock decides anything.
type dedup struct {
	floor      lineage.ID // zero, which is no event's id: all ids are known
	most       int        // ids to remember
	known      map[eventKey]uint64
	principals map[string]uint32
}

// loadDedup reads the newest ids of a log from the store: at most load, and half of most, so that there is room.
func loadDedup(x *ledger.EventIDs, most, load int) (*dedup, error) {
	d := &dedup{most: most, known: map[eventKey]uint64{}, principals: map[string]uint32{}}
	var lowest lineage.ID
	more, err := x.Newest(min(most/2, load), func(id lineage.ID, principal string, index uint64) {
		d.known[d.key(id, principal)] = index
		lowest = id
	})
	if err != nil {
		return nil, err
	}
	if more {
		// Another principal may have used the lowest id too, so only what is above it is known to be complete.
		d.floor = lowest
	}
	return d, nil
}

func (d *dedup) key(id lineage.ID, principal string) eventKey {
	n, ok := d.principals[principal]
	if !ok {
		n = uint32(len(d.principals))
		d.principals[principal] = n
	}
	return eventKey{id, n}
}

// add remembers an id that is about to be recorded.
func (d *dedup) add(id lineage.ID, principal string, index uint64) {
	d.known[d.key(id, principal)] = index
}

// trim raises the floor when there are too many ids. Only what the store has, below size, is forgotten: what is in flight stays, whatever its
// id.
func (d *dedup) trim(size uint64) {
	if len(d.known) < d.most {
		return
	}
	ids := make([]lineage.ID, 0, len(d.known))
	for k := range d.known {
		ids = append(ids, k.id)
	}
	slices.SortFunc(ids, func(a, b lineage.ID) int { return bytes.Compare(a[:], b[:]) })
	if middle := ids[len(ids)/2]; bytes.Compare(middle[:], d.floor[:]) > 0 {
		d.floor = middle
	}
	for k, index := range d.known {
		if index < size && bytes.Compare(k.id[:], d.floor[:]) <= 0 {
			delete(d.known, k)
		}
	}
}

// lookup finds duplicates for one command: in memory, and for other ids through one iterator, opened only if it is needed.
type lookup struct {
	d     *dedup
	l     *ledger.Ledger
	log   uint32
	store *ledger.EventIDs
}

func (x *lookup) find(id lineage.ID, principal string) (index uint64, ok bool, err error) {
	if index, ok := x.d.known[x.d.key(id, principal)]; ok {
		return index, true, nil
	}
	if bytes.Compare(id[:], x.d.floor[:]) > 0 {
		return 0, false, nil
	}
	if x.store == nil {
		if x.store, err = x.l.EventIDs(x.log); err != nil {
			return 0, false, err
		}
	}
	return x.store.Lookup(id, principal)
}

func (x *lookup) close() error {
	if x.store == nil {
		return nil
	}
	return x.store.Close()
}
