package merkle

import (
	"errors"
	"math"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

var tilePathVectors = []struct {
	id    TileID
	width int
	path  string
}{
	{TileID{0, 0}, 256, "tile/0/000"},
	{TileID{0, 0}, 1, "tile/0/000.p/1"},
	{TileID{1, 999}, 256, "tile/1/999"},
	{TileID{0, 1000}, 256, "tile/0/x001/000"},
	{TileID{0, 1234}, 17, "tile/0/x001/234.p/17"},
	{TileID{0, 1234067}, 256, "tile/0/x001/x234/067"},
	{TileID{63, 123456789}, 255, "tile/63/x123/x456/789.p/255"},
	{TileID{7, 1<<56 - 1}, 256, "tile/7/x072/x057/x594/x037/x927/935"},
}

// C2SP tlog-tiles, Merkle tree tiles.
func TestTilePaths(t *testing.T) {
	for _, test := range tilePathVectors {
		if got := TilePath(test.id, test.width); got != test.path {
			t.Errorf("TilePath(%v, %d) = %s, want %s", test.id, test.width, got, test.path)
		}
		id, width, entries, err := ParseTilePath(test.path)
		if id != test.id || width != test.width || entries || err != nil {
			t.Errorf("ParseTilePath(%s) = %v, %d, %v, %v", test.path, id, width, entries, err)
		}
		path := EntriesPath(test.id.Index, test.width)
		if _, rest, _ := strings.Cut(strings.TrimPrefix(test.path, "tile/"), "/"); path != "tile/entries/"+rest {
			t.Errorf("EntriesPath(%d, %d) = %s", test.id.Index, test.width, path)
		}
		id, width, entries, err = ParseTilePath(path)
		if id != (TileID{0, test.id.Index}) || width != test.width || !entries || err != nil {
			t.Errorf("ParseTilePath(%s) = %v, %d, %v, %v", path, id, width, entries, err)
		}
	}
}

func TestBadTilePaths(t *testing.T) {
	for _, path := range []string{
		"", "tile", "tile/", "tile/0", "tile/0/", "/tile/0/000", "tile/0/000/", "tile/0/0", "tile/0/00", "tile/0/0000", "tile/0/x000/000",
		"tile/00/000", "tile/-1/000", "tile/+1/000", "tile/64/000", "tile/256/000", "tile/0x1/000", "tile/8/0/000", "tile/data/000",
		"tile/0/001/000", "tile/0/x001", "tile/0/x001/x000", "tile/0/xx01/000", "tile/0/x-01/000", "tile/0/-01", "tile/0/+01", "tile/0/1000",
		"tile/0/000.p", "tile/0/000.p/", "tile/0/000.p/0", "tile/0/000.p/256", "tile/0/000.p/01", "tile/0/000.p/1/", "tile/0/000.p/1.p/1",
		"tile/0/000.p/-1", "tile/0/000.q/1", "tile/entries/0", "tile/Entries/000", "tile/entries/000.p/256", "tile/0/000\n",
		"tile/0/x072/x057/x594/x037/x927/936", "tile/0/x999/x999/x999/x999/x999/x999/x999/999", "tile/0/" + strings.Repeat("x001/", 1000) + "000",
	} {
		if id, width, entries, err := ParseTilePath(path); !errors.Is(err, ErrPath) || id != (TileID{}) || width != 0 || entries {
			t.Errorf("ParseTilePath(%.80q) = %v, %d, %v, %v, want ErrPath", path, id, width, entries, err)
		}
	}
}

func TestTilePathPanics(t *testing.T) {
	for i, f := range []func(){
		func() { TilePath(TileID{}, 0) },
		func() { TilePath(TileID{}, 257) },
		func() { TilePath(TileID{64, 0}, 1) },
		func() { TilePath(TileID{0, 1 << 56}, 1) },
		func() { EntriesPath(math.MaxUint64, 1) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("case %d: a path for a tile that does not exist", i)
				}
			}()
			f()
		}()
	}
}

// C2SP tlog-tiles, partial tiles.
func TestPartialWidths(t *testing.T) {
	for size, want := range map[uint64][4]int{
		0: {}, 1: {1}, 255: {255}, 256: {0, 1}, 257: {1, 1}, 65535: {255, 255}, 65536: {0, 0, 1}, 65537: {1, 0, 1}, 70000: {112, 17, 1},
	} {
		for level, w := range want {
			if got := PartialWidth(uint8(level), size); got != w {
				t.Errorf("PartialWidth(%d, %d) = %d, want %d", level, size, got, w)
			}
		}
	}
	for _, level := range []uint8{8, 63, 255} {
		if got := PartialWidth(level, math.MaxUint64); got != 0 {
			t.Errorf("PartialWidth(%d, 2^64-1) = %d, want 0", level, got)
		}
	}
}

// tilePath is the grammar of C2SP tlog-tiles as a pattern: another way of telling what is a path.
var tilePathPattern = regexp.MustCompile(`^tile/(entries|[0-9]|[1-5][0-9]|6[0-3])/((?:x[0-9]{3}/)*[0-9]{3})(?:\.p/([1-9]|[1-9][0-9]|1[0-9]{2}|2[0-4][0-9]|25[0-5]))?$`)

func FuzzParseTilePath(f *testing.F) {
	for _, test := range tilePathVectors {
		f.Add(test.path)
	}
	f.Fuzz(func(t *testing.T, path string) {
		want := false
		var index uint64
		m := tilePathPattern.FindStringSubmatch(path)
		if m != nil && !strings.HasSuffix(path, "\n") && !strings.HasPrefix(m[2], "x000/") {
			n, err := strconv.ParseUint(strings.NewReplacer("x", "", "/", "").Replace(m[2]), 10, 64)
			want = err == nil && n < 1<<56
			index = n
		}
		id, width, entries, err := ParseTilePath(path)
		if (err == nil) != want {
			t.Fatalf("ParseTilePath(%q): %v, want a path: %v", path, err, want)
		}
		if err != nil {
			if !errors.Is(err, ErrPath) {
				t.Fatalf("ParseTilePath(%q): %v is not ErrPath", path, err)
			}
			return
		}
		if id.Index != index || entries != (m[1] == "entries") {
			t.Fatalf("ParseTilePath(%q) = %v, %v", path, id, entries)
		}
		again := TilePath(id, width)
		if entries {
			again = EntriesPath(id.Index, width)
		}
		if again != path {
			t.Fatalf("ParseTilePath(%q) prints as %q", path, again)
		}
	})
}
