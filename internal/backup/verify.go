package backup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/client/receipt"
)

// mayHold refuses a directory that holds something else than a backup.
func mayHold(dir string) error {
	names, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, n := range names {
		switch name := n.Name(); {
		case name == manifestName, name == lockName, name == logsDir, strings.HasPrefix(name, "."), strings.HasSuffix(name, newSuffix):
		default:
			return fmt.Errorf("%s is neither empty nor a backup (it holds %q); name another directory", dir, name)
		}
	}
	return nil
}

// Report is what [Verify] found.
type Report struct {
	Manifest *Manifest
	Logs     []LogReport
	// Faults name everything that is damaged; none means that what the backup holds is whole and proven, as far as NotChecked does not say
	// otherwise.
	Faults []Fault
	// NotChecked is what a backup alone cannot show.
	NotChecked []string
	// Pinned is the number of logs whose key is one of the policy, or is in a log of which that is so.
	Pinned int
}

// Restorable reports whether a run was ever completed.
func (r *Report) Restorable() bool {
	if r.Manifest == nil {
		return false
	}
	g := r.Manifest.log(systemNumber)
	return g != nil && g.Checkpoint != ""
}

// LogReport is a log of a verified backup.
type LogReport struct {
	Name     string
	Size     uint64 // that the checkpoint covers, and a restore brings back
	Root     string
	Pending  uint64 // entries beyond, of a run that was interrupted
	KeyKnown string // how the key is known: "pinned", "system" (it is in the system log, whose key is pinned), or "" (the backup's own word)
}

// Fault is one damaged thing. File is relative to the directory of the backup.
type Fault struct{ File, Problem string }

func (f Fault) String() string { return f.File + ": " + f.Problem }

// VerifyOptions of [Verify].
type VerifyOptions struct {
	Dir string
	// Trust pins keys; nil means that those in the backup are believed.
	Trust *receipt.Policy
	// Progress is told of entries as they are read.
	Progress func(log string, have, want uint64)
}

// Verify proves a backup from its files alone. An error means that it could not be told; damage is in the report's faults.
func Verify(ctx context.Context, o VerifyOptions) (*Report, error) {
	if o.Progress == nil {
		o.Progress = func(string, uint64, uint64) {}
	}
	m, err := load(o.Dir)
	if errors.Is(err, ErrDamaged) {
		return &Report{Faults: []Fault{{manifestName, strings.TrimPrefix(err.Error(), ErrDamaged.Error()+": ")}}}, nil
	}
	if err != nil {
		return nil, err
	}
	v := &verification{o: o, m: m, report: &Report{Manifest: m}}
	for i := range m.Logs {
		if err := v.log(ctx, &m.Logs[i]); err != nil {
			return nil, err
		}
	}
	v.registry()
	v.keys()
	if m.Run.FinishedAt == "" {
		v.report.NotChecked = append(v.report.NotChecked, fmt.Sprintf("run %d was interrupted: what it was to bring is not all here; run the backup again", m.Run.Number))
	}
	v.report.NotChecked = append(v.report.NotChecked, "whether the ledger has gone on since: a backup cannot know")
	return v.report, nil
}

// verification is one run of Verify.
type verification struct {
	o          VerifyOptions
	m          *Manifest
	report     *Report
	registered map[uint32]LogInfo // by the system log: number, name, origin, key
	reached    bool               // registered is what a checkpoint covers
}

func (v *verification) fault(file, format string, args ...any) {
	v.report.Faults = append(v.report.Faults, Fault{filepath.ToSlash(file), fmt.Sprintf(format, args...)})
}

// log proves one log. It goes on behind a damaged file, so that all of them are named.
func (v *verification) log(ctx context.Context, g *LogInfo) error {
	cp, err := g.checkpoint()
	if err != nil {
		v.fault(manifestName, "log %s: its checkpoint: %v", g.Name, err)
	}
	if g.Number == systemNumber {
		v.registered, v.reached = map[uint32]LogInfo{}, g.Checkpoint != ""
	}
	whole, f := true, frontier{}
	for _, r := range g.Ranges {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		v.o.Progress(g.Name, r.First, g.Size)
		entries, faults, err := readRange(v.o.Dir, v.m.ClusterID, g.Number, r)
		if err != nil {
			return err
		}
		v.report.Faults = append(v.report.Faults, faults...)
		if entries == nil {
			whole = false
			continue
		}
		if !whole {
			continue
		}
		for i := range entries {
			f.append(entries[i].raw)
			v.entry(g, &entries[i], cp.Size, r)
			if f.size == cp.Size && f.root() != cp.Root {
				leaves, _ := r.paths(g.Number)
				v.fault(leaves, "the leaves up to entry %d have root %s, the checkpoint says %s", cp.Size, f.root(), cp.Root)
				whole = false
			}
		}
	}
	if whole && g.Size > 0 && !equalFrontier(&f, g) {
		v.fault(manifestName, "log %s: its frontier is not that of its leaves", g.Name)
	}
	v.report.Logs = append(v.report.Logs, LogReport{Name: g.Name, Size: cp.Size, Root: cp.Root.String(), Pending: g.Size - cp.Size})
	return nil
}

func equalFrontier(f *frontier, g *LogInfo) bool {
	if f.size != g.Size || len(f.hashes) != len(g.Frontier) {
		return false
	}
	for i := range f.hashes {
		if hexHash(f.hashes[i]) != g.Frontier[i] {
			return false
		}
	}
	return true
}

// entry looks at what an entry says of logs.
func (v *verification) entry(g *LogInfo, e *entry, size uint64, r Range) {
	leaves, _ := r.paths(g.Number)
	if (e.index == 0) != e.leaf.IsGenesis() {
		v.fault(leaves, "entry %d: a log begins with its genesis entry and has one", e.index)
		return
	}
	if e.index == 0 {
		if c := e.leaf.Control; c.Origin != g.Origin || c.VKey != g.VKey {
			v.fault(leaves, "entry 0 is of %s with key %s, %s says %s with key %s", c.Origin, c.VKey, manifestName, g.Origin, g.VKey)
		}
	}
	if g.Number != systemNumber || e.leaf.Kind != lineage.KindControl || e.index >= size {
		return
	}
	switch c := e.leaf.Control; lineage.ControlKind(e.leaf.Action) {
	case lineage.ControlGenesis:
		v.registered[systemNumber] = LogInfo{Number: systemNumber, Name: c.LogName, Origin: c.Origin, VKey: c.VKey}
	case lineage.ControlLog:
		v.registered[c.LogNumber] = LogInfo{Number: c.LogNumber, Name: c.LogName, Origin: c.Origin, VKey: c.VKey}
	}
}

// registry compares the logs of the manifest with what the system log says. What it registers must be here, or a restored ledger would have
// a log without entries; what is here and not registered is of an interrupted run.
func (v *verification) registry() {
	if !v.reached {
		v.report.NotChecked = append(v.report.NotChecked, "no run was ever completed: there is nothing to restore")
		return
	}
	if len(v.report.Faults) > 0 {
		return // then what was read of it is of little interest
	}
	for number, want := range v.registered {
		g := v.m.log(number)
		if g == nil || g.Checkpoint == "" {
			v.fault(manifestName, "log %s (number %d) is registered in the system log and not in the backup", want.Name, number)
			continue
		}
		if g.Name != want.Name || g.Origin != want.Origin || g.VKey != want.VKey {
			v.fault(manifestName, "log %d is %s with key %s, the system log says %s with key %s", number, g.Origin, g.VKey, want.Origin, want.VKey)
		}
	}
}

// keys says how the key of each log is known.
func (v *verification) keys() {
	pinned := map[string]string{}
	if v.o.Trust != nil {
		for _, l := range v.o.Trust.Logs() {
			pinned[l.Origin] = l.VKey
		}
	}
	system := false
	for i := range v.m.Logs {
		g, r := &v.m.Logs[i], &v.report.Logs[i]
		if _, ok := pinned[g.Origin]; !ok || g.Checkpoint == "" {
			continue
		}
		if _, _, err := v.o.Trust.VerifyCheckpoint([]byte(g.Checkpoint)); err != nil {
			v.fault(manifestName, "log %s: its checkpoint is not one that the policy trusts: %v", g.Name, err)
			continue
		}
		r.KeyKnown = "pinned"
		system = system || g.Number == systemNumber
	}
	own := 0
	for i := range v.report.Logs {
		r := &v.report.Logs[i]
		if _, registered := v.registered[v.m.Logs[i].Number]; r.KeyKnown == "" && system && registered {
			r.KeyKnown = systemName
		}
		if r.KeyKnown == "" {
			own++
		} else {
			v.report.Pinned++
		}
	}
	if own > 0 {
		v.report.NotChecked = append(v.report.NotChecked, fmt.Sprintf("the keys of %d logs: they are the backup's own word; pin one of the system log with --trust", own))
	}
}

// entry is an entry of a backup, proven as far as it goes alone.
type entry struct {
	index uint64
	raw   []byte
	leaf  *lineage.Leaf
	body  storedBody
}

// readRange reads the two files of a range and proves what can be proven of them alone. Faults are what is damaged, and then there are no
// entries; an error means that it could not be told.
func readRange(dir string, cluster lineage.ID, log uint32, r Range) ([]entry, []Fault, error) {
	var faults []Fault
	leavesPath, bodiesPath := r.paths(log)
	fault := func(path, format string, args ...any) {
		faults = append(faults, Fault{filepath.ToSlash(path), fmt.Sprintf(format, args...)})
	}
	read := func(path string, size int64, sum string) ([]byte, error) {
		b, err := readFile(filepath.Join(dir, path), maxRangeFileBytes)
		switch {
		case errors.Is(err, os.ErrNotExist):
			fault(path, "it is missing")
			return nil, nil
		case errors.Is(err, ErrDamaged):
			fault(path, "it is too large")
			return nil, nil
		case err != nil:
			return nil, err
		}
		if int64(len(b)) != size {
			fault(path, "it has %d bytes, not %d", len(b), size)
		} else if got := hexSum(b); got != sum {
			fault(path, "its SHA-256 is %s, not %s", got, sum)
		}
		return b, nil
	}
	leafFile, err := read(leavesPath, r.LeavesBytes, r.LeavesSHA256)
	if err != nil {
		return nil, nil, err
	}
	bodyFile, err := read(bodiesPath, r.BodiesBytes, r.BodiesSHA256)
	if err != nil || leafFile == nil || bodyFile == nil {
		return nil, faults, err
	}
	h := header{cluster: cluster, log: log, first: r.First, count: r.Count}
	leaves, err := h.parseLeaves(leafFile)
	if err != nil {
		fault(leavesPath, "%v", err)
	}
	bodies, err := h.parseBodies(bodyFile)
	if err != nil {
		fault(bodiesPath, "%v", err)
	}
	if len(leaves) != len(bodies) || uint64(len(leaves)) != r.Count {
		return nil, faults, nil // said above
	}
	entries := make([]entry, len(leaves))
	for i := range entries {
		e := &entries[i]
		*e = entry{index: r.First + uint64(i), raw: leaves[i], body: bodies[i]}
		if e.leaf, err = lineage.ParseLeaf(e.raw); err != nil {
			fault(leavesPath, "entry %d: %v", e.index, err)
			continue
		}
		if err := e.open(); err != nil {
			fault(bodiesPath, "entry %d: %v", e.index, err)
		}
	}
	if len(faults) > 0 {
		return nil, faults, nil
	}
	return entries, nil, nil
}

// open checks that the body opens the leaf's commitments.
func (e *entry) open() error {
	if e.body.erased {
		return nil
	}
	parts, rest, err := lineage.ParseBody(e.body.bytes)
	if err == nil && len(rest) > 0 {
		err = fmt.Errorf("%d bytes follow its body", len(rest))
	}
	if err == nil {
		err = lineage.OpenBody(e.leaf, parts)
	}
	return err
}
