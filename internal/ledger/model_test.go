package ledger

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/merkle"
)

// mth is MTH of RFC 6962 section 2.1, word for word.
func mth(d [][]byte) merkle.Hash {
	switch len(d) {
	case 0:
		return sha256.Sum256(nil)
	case 1:
		return sha256.Sum256(append([]byte{0}, d[0]...))
	}
	k := 1
	for 2*k < len(d) {
		k *= 2
	}
	l, r := mth(d[:k]), mth(d[k:])
	return sha256.Sum256(slicesConcat([]byte{1}, l[:], r[:]))
}

func slicesConcat(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// model is the state machine written down slowly: slices and the recursion of the RFC.
type model struct {
	cluster     lineage.ID
	index, term uint64
	digest      merkle.Hash
	bindings    uint64
	version     uint8 // of commands, in use
	logs        map[uint32]*modelLog
	registry    map[uint32]Log
	local       string
}

type modelLog struct {
	leaves [][]byte
	at     int64
	ids    []string
}

func (g *modelLog) clone() *modelLog {
	return &modelLog{g.leaves[:len(g.leaves):len(g.leaves)], g.at, g.ids[:len(g.ids):len(g.ids)]}
}

func newModel(cluster lineage.ID) *model {
	return &model{cluster: cluster, version: 1, logs: map[uint32]*modelLog{}, registry: map[uint32]Log{}}
}

func (m *model) head(log uint32) Head {
	g := m.logs[log]
	if g == nil {
		return Head{Root: sha256.Sum256(nil)}
	}
	return Head{uint64(len(g.leaves)), mth(g.leaves), g.at}
}

// at is when the newest entry of a log was recorded.
func (m *model) at(log uint32) int64 {
	if g := m.logs[log]; g != nil {
		return g.at
	}
	return 0
}

// apply decides on a command as docs/design.md 4.4 says, on copies, and keeps them if it is accepted.
func (m *model) apply(index, term uint64, data []byte) Decision {
	c, err := ParseCommand(data)
	if err != nil {
		panic(err)
	}
	logs, registry, local, version := maps.Clone(m.logs), maps.Clone(m.registry), m.local, m.version
	d := func() Decision {
		if c.Version > m.version {
			// Only the raise to the next version may come in a command of it, and it comes alone.
			if c.Version != m.version+1 || len(c.Sections) != 1 || len(c.Sections[0].Entries) != 1 || c.Sections[0].Log != SystemLog {
				return RefusedVersion
			}
			e := c.Sections[0].Entries[0]
			leaf, err := lineage.ParseLeaf(e.Leaf)
			if !e.Control || err != nil || leaf.Kind != lineage.KindControl || lineage.ControlKind(leaf.Action) != lineage.ControlVersion {
				return RefusedVersion
			}
			version = c.Version
		}
		if c.Bindings < m.bindings {
			return RefusedBindings
		}
		touched := map[uint32]bool{}
		for i := range c.Sections {
			s := &c.Sections[i]
			if touched[s.Log] {
				return RefusedMalformed
			}
			touched[s.Log] = true
			for j := range s.Entries {
				if s.Entries[j].Control && !modelControl(s, j, registry, &local, c.Version, m.version) {
					return RefusedMalformed
				}
			}
			if _, ok := registry[s.Log]; !ok {
				return RefusedBefore
			}
			before := m.head(s.Log)
			g := &modelLog{}
			if old := logs[s.Log]; old != nil {
				g = old.clone()
			}
			if s.Before.Size != before.Size || s.Before.Root != before.Root {
				return RefusedBefore
			}
			if s.After.RecordedAt < before.RecordedAt {
				return RefusedTime
			}
			for j := range s.Entries {
				g.leaves = append(g.leaves, s.Entries[j].Leaf)
				g.ids = append(g.ids, string(s.Entries[j].EventID[:])+s.Entries[j].Principal)
			}
			if g.at = s.After.RecordedAt; mth(g.leaves) != s.After.Root {
				return RefusedAfter
			}
			logs[s.Log] = g
		}
		return Accepted
	}()
	if d == Accepted {
		m.logs, m.registry, m.local, m.version = logs, registry, local, version
	}
	// The chain digest, spelled out.
	var b bytes.Buffer
	for _, v := range []any{m.digest, index, term, c.CRC, uint8(d)} {
		_ = binary.Write(&b, binary.BigEndian, v)
	}
	for i := range c.Sections {
		s := &c.Sections[i]
		for _, v := range []any{s.Log, s.Before.Size + uint64(len(s.Entries)), s.After.Root} {
			_ = binary.Write(&b, binary.BigEndian, v)
		}
	}
	m.index, m.term, m.digest = index, term, sha256.Sum256(b.Bytes())
	return d
}

func modelControl(s *Section, j int, registry map[uint32]Log, local *string, version, inUse uint8) bool {
	leaf, err := lineage.ParseLeaf(s.Entries[j].Leaf)
	if err != nil || leaf.Kind != lineage.KindControl {
		return false
	}
	c := leaf.Control
	add := func(n uint32) bool {
		for _, g := range registry {
			if g.Number == n || g.Name == c.LogName || g.Origin == c.Origin {
				return false
			}
		}
		registry[n] = Log{n, c.LogName, c.Origin, c.LogKind, c.VKey, c.CreatedAt}
		return true
	}
	switch lineage.ControlKind(leaf.Action) {
	case lineage.ControlGenesis:
		return s.Before.Size == 0 && j == 0 && (s.Log != SystemLog || add(SystemLog))
	case lineage.ControlLog:
		return s.Log == SystemLog && c.LogNumber != SystemLog && add(c.LogNumber)
	case lineage.ControlPrincipal:
		if s.Log == SystemLog && *local == "" {
			*local = c.Principal
		}
		return s.Log == SystemLog
	case lineage.ControlMember, lineage.ControlRecovery:
		return s.Log == SystemLog && version >= 2
	case lineage.ControlVersion:
		return s.Log == SystemLog && version == inUse+1
	}
	return false
}

// script composes commands on the state of a model.
type script struct {
	m       *model
	rng     *rand.Rand
	now     int64
	keys    map[uint32]lineage.Key // reference keys
	entries []LogEntry             // all so far
	want    []Decision             // what the model decided, 0 for memberships
	digests map[uint64]merkle.Hash // by index
	nextLog uint32
}

func newScript(seed uint64) *script {
	s := &script{rng: rand.New(rand.NewPCG(seed, 1)), now: 1_700_000_000_000_000, keys: map[uint32]lineage.Key{}, digests: map[uint64]merkle.Hash{}, nextLog: 1}
	s.m = newModel(testCluster)
	return s
}

var testCluster = lineage.ID{0xc1, 0x15, 7: 0x70, 8: 0x80, 15: 1}

func (s *script) random(b []byte) {
	for i := range b {
		b[i] = byte(s.rng.Uint32())
	}
}

func (s *script) id() (id lineage.ID) {
	s.random(id[:])
	binary.BigEndian.PutUint64(id[:], uint64(s.now)<<16|uint64(s.rng.Uint32()&0xffff))
	return id
}

func (s *script) key() (k lineage.Key) { s.random(k[:]); return k }

// add gives a command the next index and lets the model decide.
func (s *script) add(data []byte) Decision {
	index := s.m.index + 1 + uint64(s.rng.IntN(3)) // raft keeps some for itself
	term := s.m.term
	if term == 0 || s.rng.IntN(10) == 0 {
		term++
	}
	d := s.m.apply(index, term, data)
	s.entries, s.want = append(s.entries, LogEntry{Index: index, Term: term, Data: data}), append(s.want, d)
	s.digests[index] = s.m.digest
	return d
}

func (s *script) membership() {
	s.m.index++
	s.m.term = max(s.m.term, 1)
	data := fmt.Appendf(nil, "members at %d", s.m.index)
	s.entries, s.want = append(s.entries, LogEntry{Index: s.m.index, Term: s.m.term, Configuration: true, Data: data}), append(s.want, 0)
	s.digests[s.m.index] = s.m.digest
}

// command is a command on the model's state; edit may spoil it before it is encoded.
func (s *script) command(sections ...Section) *Command {
	return &Command{Version: s.m.version, ClusterID: testCluster, Bindings: s.m.bindings, Base: Applied{s.m.index, s.m.term, s.m.digest}, Sections: sections}
}

func (c *Command) encoded() []byte { return AppendCommand(nil, c) }

// section appends entries to a log.
func (s *script) section(log uint32, entries ...CommandEntry) Section {
	x := Section{Log: log, Before: s.m.head(log), Entries: entries}
	x.After = x.Before
	x.After.RecordedAt = max(s.now, x.Before.RecordedAt)
	s.root(&x)
	return x
}

// root sets what a section leads to.
func (s *script) root(x *Section) {
	var leaves [][]byte
	if g := s.m.logs[x.Log]; g != nil {
		leaves = append(leaves, g.leaves...)
	}
	for i := range x.Entries {
		leaves = append(leaves, x.Entries[i].Leaf)
	}
	x.After.Size, x.After.Root = uint64(len(leaves)), mth(leaves)
}

// events makes n lineage entries for a log. Call tick before, for a new time.
func (s *script) events(log uint32, n int) (entries []CommandEntry) {
	key := s.keys[log]
	c := lineage.Composer{HashName: func(n lineage.Name) lineage.Hash { return lineage.HashName(&key, n) }, NewKey: s.key}
	at := max(s.now, s.m.head(log).RecordedAt)
	for range n {
		d, _ := lineage.ParseDigest("sha256:" + strings.Repeat("ab", 32))
		e := &lineage.Event{
			ID: s.id(), Kind: lineage.KindRun, Action: uint8(lineage.RunComplete), RunID: s.id(), Job: lineage.Name{Namespace: "n", Name: "job"},
			References: []lineage.Reference{
				{Role: lineage.Output, Kind: lineage.Model, Known: lineage.Computed, Digest: d, Name: lineage.Name{Namespace: "n", Name: "m"}},
				{Role: lineage.Input, Kind: lineage.Dataset, Known: lineage.NameOnly, Name: lineage.Name{Namespace: "n", Name: "d", Version: "1"}},
			},
			Documents: []lineage.Document{{MediaType: "application/json", Content: []byte(`{"k":1}`)}},
		}
		if s.rng.IntN(4) == 0 {
			e.Job, e.References, e.Documents = lineage.Name{}, nil, nil // nothing in the body
		}
		principal := []string{"local:a", "local:bb"}[s.rng.IntN(2)]
		leaf, body, err := c.Compose(nil, e, lineage.Stamp{RecordedAt: at, Principal: principal, Authn: lineage.AuthnOSUser})
		if err != nil {
			panic(err)
		}
		entries = append(entries, CommandEntry{EventID: e.ID, Principal: principal, Authn: lineage.AuthnOSUser, Leaf: leaf, Body: lineage.AppendBody(nil, body)})
	}
	return entries
}

// opaque makes n entries for an opaque log.
func (s *script) opaque(n int) (entries []CommandEntry) {
	for range n {
		leaf := make([]byte, s.rng.IntN(100))
		s.random(leaf)
		entries = append(entries, CommandEntry{EventID: s.id(), Principal: "local:a", Authn: lineage.AuthnToken, Leaf: leaf, Body: lineage.AppendBody(nil, nil)})
	}
	return entries
}

// some makes n entries of the kind of a log.
func (s *script) some(log uint32, n int) []CommandEntry {
	if s.m.registry[log].Kind == lineage.OpaqueLog {
		return s.opaque(n)
	}
	return s.events(log, n)
}

// raise makes the command that raises the command version.
func (s *script) raise() *Command {
	c := s.command(s.section(SystemLog, s.control(SystemLog, lineage.ControlVersion, &lineage.Control{})))
	c.Version++
	return c
}

// member makes the command that records a change of the membership.
func (s *script) member() *Command {
	document := lineage.AppendDocuments(nil, []lineage.Document{{MediaType: "application/json", Content: []byte(`{"added":"x"}`)}})
	return s.command(s.section(SystemLog, s.control(SystemLog, lineage.ControlMember, &lineage.Control{}, lineage.BodyPart{Kind: lineage.PartDocuments, Key: s.key(), Content: document})))
}

func (s *script) tick() { s.now += int64(s.rng.IntN(1000)) }

// control makes one control entry.
func (s *script) control(log uint32, kind lineage.ControlKind, c *lineage.Control, body ...lineage.BodyPart) CommandEntry {
	l := &lineage.Leaf{
		EventID: s.id(), Kind: lineage.KindControl, Action: uint8(kind), Source: lineage.Native,
		RecordedAt: max(s.now, s.m.at(log)), Principal: "local:a", Authn: lineage.AuthnLedger, Control: c,
	}
	for i := range body {
		l.Bodies = append(l.Bodies, lineage.Commitment{Part: body[i].Kind, MAC: lineage.Commit(body[i].Kind, &body[i].Key, body[i].Content)})
	}
	return CommandEntry{EventID: l.EventID, Principal: l.Principal, Authn: l.Authn, Control: true, Leaf: lineage.AppendLeaf(nil, l), Body: lineage.AppendBody(nil, body)}
}

func testOpaque(n uint32, name string) Log {
	g := testLog(n, name)
	g.Kind, g.Origin = lineage.OpaqueLog, strings.Replace(g.Origin, "/lineage/", "/opaque/", 1)
	return g
}

func testLog(n uint32, name string) Log {
	o := lineage.Origin{Host: "example.org", Cluster: testCluster, Kind: lineage.LineageLog, Name: name}
	return Log{Number: n, Name: name, Origin: o.String(), Kind: lineage.LineageLog, VKey: "vkey of " + name, CreatedAt: 1_700_000_000_000_000}
}

func (s *script) genesis(g Log) CommandEntry {
	reference := s.key()
	s.keys[g.Number] = reference
	return s.control(g.Number, lineage.ControlGenesis, &lineage.Control{
		Origin: g.Origin, LogKind: g.Kind, ClusterID: testCluster, HashAlgorithm: lineage.SHA256, CreatedAt: g.CreatedAt, VKey: g.VKey,
		SchemaID: lineage.SchemaID, SchemaDigest: lineage.SchemaDigest(), IndexFunction: 1, LogName: g.Name,
	}, lineage.BodyPart{Kind: lineage.PartReferenceKey, Key: s.key(), Content: reference[:]})
}

func (s *script) registered(g Log) CommandEntry {
	return s.control(SystemLog, lineage.ControlLog, &lineage.Control{Origin: g.Origin, LogKind: g.Kind, CreatedAt: g.CreatedAt, VKey: g.VKey, LogNumber: g.Number, LogName: g.Name})
}

// bootstrap adds the command that creates the ledger.
func (s *script) bootstrap() {
	principal := s.control(SystemLog, lineage.ControlPrincipal, &lineage.Control{Principal: "local:a"})
	main := testLog(MainLog, MainName)
	s.nextLog = 2
	s.add(s.command(
		s.section(SystemLog, s.genesis(testLog(SystemLog, SystemName)), principal, s.registered(main)),
		s.section(MainLog, s.genesis(main)),
	).encoded())
}

// createLog makes the command that creates a log.
func (s *script) createLog(g Log) *Command {
	if g.Kind == lineage.OpaqueLog { // it starts empty
		return s.command(s.section(SystemLog, s.registered(g)))
	}
	return s.command(s.section(SystemLog, s.registered(g)), s.section(g.Number, s.genesis(g)))
}
