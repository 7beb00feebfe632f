package disk

import (
	"errors"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// orderedFS makes the entry of a new MANIFEST durable before the marker that names it. Pebble creates both and syncs their directory
// once, so a file system that writes directory entries in any order may come up with the marker alone, and a store with such a marker
// cannot be opened any more. Journaling file systems keep the order by themselves, but nothing promises it. Markers move once for each
// MANIFEST, so this costs nothing.
type orderedFS struct{ vfs.FS }

// Create implements vfs.FS.
func (o orderedFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if strings.HasPrefix(o.PathBase(name), "marker.") {
		d, err := o.OpenDir(o.PathDir(name))
		if err != nil {
			return nil, err
		}
		if err := errors.Join(d.Sync(), d.Close()); err != nil {
			return nil, err
		}
	}
	return o.FS.Create(name, category)
}

// Unwrap implements vfs.FS.
func (o orderedFS) Unwrap() vfs.FS { return o.FS }
