package merkle

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

const (
	maxPathLevel = 63            // C2SP tlog-tiles: L is 0 to 63
	maxTileIndex = 1<<56 - 1     // the hashes of a tile are numbered in 64 bits: 256*index + 255
	maxPathBytes = 64            // longer than any valid path; bounds the work on a hostile one
	entriesLevel = "entries"     // takes the place of the level in the path of an entry bundle
	pathPrefix   = "tile/"       // no prefix of a log's own: that is for the server to strip
	groupDigits  = 3             // digits of the tile index a path element
	groupValue   = 1000          // 10^groupDigits
	maxPartial   = TileWidth - 1 // a path that says .p/256 is invalid
)

// ErrPath is the errors.Is target of a text that is not a tile path.
var ErrPath = errors.New("merkle: not a tile path")

// TilePath returns the C2SP tlog-tiles path of the first width hashes of a tile, such as tile/0/x001/234.p/17. A width of 256
// is the full tile. It panics unless 1 <= width <= 256, Level <= 63 and Index < 2^56: such a tile does not exist.
func TilePath(id TileID, width int) string {
	if id.Level > maxPathLevel {
		panic(fmt.Sprintf("merkle: tile level %d", id.Level))
	}
	return tilePath(strconv.Itoa(int(id.Level)), id.Index, width)
}

// EntriesPath returns the C2SP tlog-tiles path of the first width entries of a bundle, such as tile/entries/000.p/3. The same
// bounds hold as for [TilePath].
func EntriesPath(index uint64, width int) string { return tilePath(entriesLevel, index, width) }

func tilePath(level string, index uint64, width int) string {
	if width < 1 || width > TileWidth || index > maxTileIndex {
		panic(fmt.Sprintf("merkle: tile %d of width %d", index, width))
	}
	groups := fmt.Sprintf("%03d", index%groupValue)
	for index /= groupValue; index > 0; index /= groupValue {
		groups = fmt.Sprintf("x%03d/%s", index%groupValue, groups)
	}
	path := pathPrefix + level + "/" + groups
	if width < TileWidth {
		path += ".p/" + strconv.Itoa(width)
	}
	return path
}

// ParseTilePath is the inverse of [TilePath] and, if entries is true, of [EntriesPath], whose bundles are as tiles of level 0. It
// accepts exactly what those two return; all else is [ErrPath].
func ParseTilePath(path string) (id TileID, width int, entries bool, err error) {
	id, width, entries, ok := parseTilePath(path)
	if ok {
		// Leading zeros, signs, short and superfluous groups all end here: there is one text for each tile.
		canonical := ""
		if entries {
			canonical = EntriesPath(id.Index, width)
		} else {
			canonical = TilePath(id, width)
		}
		ok = canonical == path
	}
	if !ok {
		return TileID{}, 0, false, fmt.Errorf("%w: %.*q", ErrPath, maxPathBytes, path)
	}
	return id, width, entries, nil
}

// parseTilePath reads a path leniently but returns only values that tilePath takes.
func parseTilePath(path string) (id TileID, width int, entries, ok bool) {
	if len(path) > maxPathBytes {
		return id, 0, false, false
	}
	rest, ok := strings.CutPrefix(path, pathPrefix)
	if !ok {
		return id, 0, false, false
	}
	level, rest, ok := strings.Cut(rest, "/")
	if !ok {
		return id, 0, false, false
	}
	if entries = level == entriesLevel; !entries {
		n, err := strconv.ParseUint(level, 10, 8)
		if err != nil || n > maxPathLevel {
			return id, 0, false, false
		}
		id.Level = uint8(n)
	}
	width = TileWidth
	groups, partial, isPartial := strings.Cut(rest, ".p/")
	if isPartial {
		n, err := strconv.ParseUint(partial, 10, 8)
		if err != nil || n < 1 || n > maxPartial {
			return id, 0, false, false
		}
		width = int(n)
	}
	for group := range strings.SplitSeq(groups, "/") {
		n, err := strconv.ParseUint(strings.TrimPrefix(group, "x"), 10, 16)
		if err != nil || n >= groupValue {
			return id, 0, false, false
		}
		id.Index = id.Index*groupValue + n // may wrap round: then it prints as another path
	}
	return id, width, entries, id.Index <= maxTileIndex
}
