package backup

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"slices"
	"strings"
	"time"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/checkpoint"
	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/signer"
)

// indexFunction is the version of the function from leaf bytes to index keys that genesis entries announce.
const indexFunction = 1

// succeed begins a new ledger in which every log of the backup has a successor, whose genesis entry names it, and lies frozen beside it under
// another name: readable and provable, closed for entries.
func (r *restore) succeed(ctx context.Context) error {
	old, err := r.registered(ctx)
	if err != nil {
		return err
	}
	s, err := r.successor()
	if err != nil {
		return err
	}
	next := uint32(0) // the number of the first frozen log
	for i := range old {
		next = max(next, old[i].Number+1)
	}
	for i := range old {
		if strings.Contains(old[i].Name, lineage.FrozenMark) {
			continue // it was frozen before: its successor is succeeded here
		}
		if err := s.begin(&old[i]); err != nil {
			return err
		}
	}
	for i := range old {
		g := old[i]
		o, err := lineage.ParseOrigin(g.Origin)
		if err != nil {
			return damaged("log %s: %w", g.Name, err)
		}
		g.Name, g.Number = o.FrozenName(), next
		next++
		if err := s.register(&g); err != nil {
			return err
		}
		cp, err := r.copy(ctx, r.m.log(old[i].Number), g.Number)
		if err != nil {
			return err
		}
		r.result.Logs = append(r.result.Logs, RestoredLog{Name: g.Name, Origin: g.Origin, Size: cp.Size, Root: cp.Root.String(), Frozen: true})
	}
	return nil
}

// registered returns the logs that the backup can bring back, by number, as its system log describes them.
func (r *restore) registered(ctx context.Context) ([]ledger.Log, error) {
	system := r.m.log(systemNumber)
	cp, err := system.checkpoint()
	if err != nil {
		return nil, damaged("log %s: %w", system.Name, err)
	}
	var logs []ledger.Log
	for _, part := range system.Ranges {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		entries, faults, err := readRange(r.o.From, r.m.ClusterID, systemNumber, part)
		if err != nil {
			return nil, err
		}
		if len(faults) > 0 {
			return nil, damaged("%s", faults[0])
		}
		for i := range entries {
			e := &entries[i]
			kind := lineage.ControlKind(e.leaf.Action)
			if e.index >= cp.Size || e.leaf.Kind != lineage.KindControl || kind != lineage.ControlLog && kind != lineage.ControlGenesis {
				continue
			}
			c := e.leaf.Control
			logs = append(logs, ledger.Log{Number: c.LogNumber, Name: c.LogName, Origin: c.Origin, Kind: c.LogKind, VKey: c.VKey, CreatedAt: c.CreatedAt})
		}
	}
	for _, g := range logs {
		if held := r.m.log(g.Number); held == nil || held.Checkpoint == "" || held.Origin != g.Origin || held.VKey != g.VKey {
			return nil, damaged("log %s (number %d) is registered in the system log and is not in the backup as such", g.Name, g.Number)
		}
	}
	for i := range r.m.Logs {
		if !slices.ContainsFunc(logs, func(g ledger.Log) bool { return g.Number == r.m.Logs[i].Number }) {
			r.result.LeftOut = append(r.result.LeftOut, r.m.Logs[i].Name)
		}
	}
	slices.SortFunc(logs, func(a, b ledger.Log) int { return int(a.Number) - int(b.Number) })
	return logs, nil
}

// successor composes the control entries of a ledger that succeeds another one.
type successor struct {
	r         *restore
	host      string
	now       int64
	principal string
}

func (r *restore) successor() (*successor, error) {
	if r.o.Secret == nil {
		secret := [signer.SecretBytes]byte(random(signer.SecretBytes))
		r.o.Secret, r.result.NewSecret = &secret, true
	}
	o, err := lineage.ParseOrigin(r.m.log(systemNumber).Origin)
	if err != nil {
		return nil, damaged("%w", err)
	}
	s := &successor{r: r, host: o.Host, now: time.Now().UnixMicro()}
	if r.o.OriginHost != "" {
		s.host = r.o.OriginHost
	}
	s.principal = "local:" + strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(random(10)))
	return s, nil
}

// begin makes the successor of a log, with the same name and number.
func (s *successor) begin(old *ledger.Log) error {
	held := s.r.m.log(old.Number)
	cp, err := held.checkpoint()
	if err != nil {
		return damaged("log %s: %w", old.Name, err)
	}
	g := ledger.Log{
		Number: old.Number, Name: old.Name, Kind: lineage.LineageLog, CreatedAt: s.now,
		Origin: lineage.Origin{Host: s.host, Cluster: s.r.cluster, Kind: lineage.LineageLog, Name: old.Name}.String(),
	}
	if _, err := lineage.ParseOrigin(g.Origin); err != nil {
		return err
	}
	key, err := signer.DeriveKey(s.r.o.Secret, g.Origin)
	if err != nil {
		return err
	}
	g.VKey = key.VKey()
	genesis := s.genesis(&g, old, cp)
	b := s.r.b
	if g.Number == systemNumber {
		known := s.control(lineage.ControlPrincipal, &lineage.Control{Principal: s.principal})
		err = b.command(b.section(systemNumber, s.now, []ledger.CommandEntry{genesis, known}))
	} else {
		err = b.command(b.section(systemNumber, s.now, []ledger.CommandEntry{s.registration(&g)}), b.section(g.Number, s.now, []ledger.CommandEntry{genesis}))
	}
	s.r.result.Logs = append(s.r.result.Logs, RestoredLog{Name: g.Name, Origin: g.Origin, Size: b.heads[g.Number].size, Root: b.heads[g.Number].root().String(), Predecessor: old.Origin})
	return err
}

// register makes a frozen log known; its entries follow as they are.
func (s *successor) register(g *ledger.Log) error {
	b := s.r.b
	return b.command(b.section(systemNumber, s.now, []ledger.CommandEntry{s.registration(g)}))
}

func (s *successor) registration(g *ledger.Log) ledger.CommandEntry {
	return s.control(lineage.ControlLog, &lineage.Control{
		Origin: g.Origin, LogKind: g.Kind, CreatedAt: g.CreatedAt, VKey: g.VKey, LogNumber: g.Number, LogName: g.Name,
	})
}

func (s *successor) genesis(g, old *ledger.Log, cp checkpoint.Checkpoint) ledger.CommandEntry {
	reference := lineage.BodyPart{Kind: lineage.PartReferenceKey, Key: lineage.Key(random(32)), Content: random(32)}
	return s.control(lineage.ControlGenesis, &lineage.Control{
		Origin: g.Origin, LogKind: g.Kind, ClusterID: s.r.cluster, HashAlgorithm: lineage.SHA256, CreatedAt: g.CreatedAt, VKey: g.VKey,
		SchemaID: lineage.SchemaID, SchemaDigest: lineage.SchemaDigest(), IndexFunction: indexFunction, LogName: g.Name,
		Predecessor: &lineage.Predecessor{Origin: old.Origin, Size: cp.Size, Root: lineage.Hash(cp.Root), VKey: old.VKey},
	}, reference)
}

func (s *successor) control(kind lineage.ControlKind, c *lineage.Control, body ...lineage.BodyPart) ledger.CommandEntry {
	l := &lineage.Leaf{
		EventID: lineage.NewID(), Kind: lineage.KindControl, Action: uint8(kind), Source: lineage.Native, RecordedAt: s.now,
		Principal: s.principal, Authn: lineage.AuthnLedger, Control: c,
	}
	for i := range body {
		l.Bodies = append(l.Bodies, lineage.Commitment{Part: body[i].Kind, MAC: lineage.Commit(body[i].Kind, &body[i].Key, body[i].Content)})
	}
	return ledger.CommandEntry{
		EventID: l.EventID, Principal: l.Principal, Authn: l.Authn, Control: true, Leaf: lineage.AppendLeaf(nil, l), Body: lineage.AppendBody(nil, body),
	}
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails (crypto/rand)
	return b
}
