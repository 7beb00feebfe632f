package backup

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/checkpoint"
	"github.com/provledger/provledger/internal/merkle"
)

// formatVersion is the version of manifest and range files. Another one is refused, not guessed at.
const formatVersion = 1

// Manifest says what a backup holds. Its file has one form: what does not encode to the same bytes again is damaged.
type Manifest struct {
	Format    int        `json:"format"`
	ClusterID lineage.ID `json:"clusterId"`
	Run       RunInfo    `json:"run"`
	Logs      []LogInfo  `json:"logs"` // by number
	SHA256    string     `json:"sha256"`
}

// RunInfo is the newest run. FinishedAt is empty while it is under way, and if it was interrupted. Times are RFC 3339 in UTC.
type RunInfo struct {
	Number     uint64 `json:"number"`
	StartedAt  string `json:"startedAt"`
	FinishedAt string `json:"finishedAt"`
	Previous   string `json:"previous"` // SHA256 of the manifest that the run before left
}

// LogInfo is one log.
type LogInfo struct {
	Number   uint32    `json:"number"`
	Name     string    `json:"name"`
	Origin   string    `json:"origin"`
	VKey     string    `json:"vkey"`
	Size     uint64    `json:"size"`     // entries in the ranges
	Frontier []hexHash `json:"frontier"` // of the tree of that size
	// Checkpoint is a signed note over at most Size entries; empty until a run has reached one. What lies beyond it is of a run that was
	// interrupted.
	Checkpoint string  `json:"checkpoint"`
	Ranges     []Range `json:"ranges"`
}

// Range is a pair of files.
type Range struct {
	First        uint64 `json:"first"`
	Count        uint64 `json:"count"`
	LeavesBytes  int64  `json:"leavesBytes"`
	LeavesSHA256 string `json:"leavesSha256"`
	BodiesBytes  int64  `json:"bodiesBytes"`
	BodiesSHA256 string `json:"bodiesSha256"`
}

// hexHash is a hash that is hex in JSON.
type hexHash merkle.Hash

// MarshalText implements encoding.TextMarshaler.
func (h hexHash) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h[:]), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *hexHash) UnmarshalText(b []byte) error {
	if len(b) != 2*merkle.HashSize {
		return fmt.Errorf("a hash of %d digits", len(b))
	}
	_, err := hex.Decode(h[:], b)
	return err
}

// encode returns the one form of a manifest, with its digest filled in.
func (m Manifest) encode() ([]byte, error) {
	m.SHA256 = ""
	b, err := marshal(&m)
	if err != nil {
		return nil, err
	}
	m.SHA256 = hexSum(b)
	return marshal(&m)
}

func marshal(m *Manifest) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err := e.Encode(m)
	return b.Bytes(), err
}

// ParseManifest reads a manifest. The error wraps ErrDamaged.
func ParseManifest(b []byte) (*Manifest, error) {
	m := &Manifest{}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(m); err != nil {
		return nil, damaged("%s: %w", manifestName, err)
	}
	if m.Format != formatVersion {
		return nil, fmt.Errorf("%s has format %d, this program knows %d; upgrade it", manifestName, m.Format, formatVersion)
	}
	switch want, err := m.encode(); {
	case err != nil:
		return nil, damaged("%s: %w", manifestName, err)
	case !bytes.Equal(b, want):
		return nil, damaged("%s does not have the digest that it states, or is not as this program wrote it", manifestName)
	}
	return m, m.check()
}

// check holds a manifest to what the form does not express.
func (m *Manifest) check() error {
	for i := range m.Logs {
		g := &m.Logs[i]
		if i > 0 && m.Logs[i-1].Number >= g.Number {
			return damaged("%s: the logs are not in order", manifestName)
		}
		if err := g.check(); err != nil {
			return damaged("%s: log %d: %w", manifestName, g.Number, err)
		}
		cp, err := g.checkpoint()
		if err != nil {
			return damaged("%s: log %s: its checkpoint: %w", manifestName, g.Name, err)
		}
		if cp.Size > g.Size {
			return damaged("%s: log %s: %d entries, its checkpoint covers %d", manifestName, g.Name, g.Size, cp.Size)
		}
	}
	return nil
}

func (g *LogInfo) check() error {
	next := uint64(0)
	for _, r := range g.Ranges {
		if r.First != next || r.Count == 0 || r.Count > rangeEntries {
			return fmt.Errorf("a range of %d entries at %d where %d is next", r.Count, r.First, next)
		}
		next += r.Count
	}
	if next != g.Size {
		return fmt.Errorf("its ranges have %d entries, it says %d", next, g.Size)
	}
	if f := (frontier{size: g.Size, hashes: g.hashes()}); !f.fits() {
		return fmt.Errorf("a frontier of %d hashes at %d entries", len(f.hashes), f.size)
	}
	return nil
}

func (g *LogInfo) hashes() []merkle.Hash {
	hashes := make([]merkle.Hash, len(g.Frontier))
	for i, h := range g.Frontier {
		hashes[i] = merkle.Hash(h)
	}
	return hashes
}

func (g *LogInfo) setFrontier(f *frontier) {
	g.Size, g.Frontier = f.size, make([]hexHash, len(f.hashes))
	for i, h := range f.hashes {
		g.Frontier[i] = hexHash(h)
	}
}

// checkpoint returns the log's checkpoint, signed by the key that the manifest names; the zero value if there is none yet.
func (g *LogInfo) checkpoint() (checkpoint.Checkpoint, error) {
	if g.Checkpoint == "" {
		return checkpoint.Checkpoint{}, nil
	}
	v, err := checkpoint.NewVerifier(g.VKey)
	if err != nil {
		return checkpoint.Checkpoint{}, err
	}
	cp, err := checkpoint.Open([]byte(g.Checkpoint), v)
	if err == nil && cp.Origin != g.Origin {
		err = fmt.Errorf("it is of %s", cp.Origin)
	}
	return cp, err
}

// log returns a log by number; nil if there is none.
func (m *Manifest) log(number uint32) *LogInfo {
	for i := range m.Logs {
		if m.Logs[i].Number == number {
			return &m.Logs[i]
		}
	}
	return nil
}

// load reads the manifest of a directory. The error wraps ErrNoBackup when there is none.
func load(dir string) (*Manifest, error) {
	b, err := readFile(filepath.Join(dir, manifestName), maxManifestBytes)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s has no %s", ErrNoBackup, dir, manifestName)
	}
	if err != nil {
		return nil, err
	}
	return ParseManifest(b)
}

func (m *Manifest) save(dir string) error {
	b, err := m.encode()
	if err != nil {
		return err
	}
	m.SHA256 = ""
	if err := writeFile(filepath.Join(dir, manifestName), b); err != nil {
		return fmt.Errorf("write %s: %w", manifestName, err)
	}
	return nil
}

func timeText(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// frontier is the tree of a log without its inside: the roots of its maximal perfect subtrees, left to right (RFC 9162, 2.1.2). It grows by leaves
// and gives the root, and needs no tiles, unlike merkle.Edge.
type frontier struct {
	size   uint64
	hashes []merkle.Hash
}

func (f *frontier) append(leaf []byte) {
	h := merkle.LeafHash(leaf)
	for n := f.size; n&1 == 1; n >>= 1 {
		last := len(f.hashes) - 1
		h = merkle.NodeHash(f.hashes[last], h)
		f.hashes = f.hashes[:last]
	}
	f.hashes = append(f.hashes, h)
	f.size++
}

func (f *frontier) root() merkle.Hash {
	if f.size == 0 {
		return merkle.EmptyRoot()
	}
	last := len(f.hashes) - 1
	root := f.hashes[last]
	for i := last - 1; i >= 0; i-- {
		root = merkle.NodeHash(f.hashes[i], root)
	}
	return root
}

// fits reports whether there is a hash for each bit of the size.
func (f *frontier) fits() bool {
	n := 0
	for s := f.size; s > 0; s &= s - 1 {
		n++
	}
	return n == len(f.hashes)
}
