package sequencer

import (
	"context"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/merkle"
)

// IndexFunction is the version of the pure function from leaf bytes to index keys that genesis entries announce.
const IndexFunction = 1

// Bootstrap creates the ledger itself: the system log with the local principal, and the log main. It does nothing if they exist.
func (s *Sequencer) Bootstrap(ctx context.Context) error {
	if len(s.o.Ledger.Logs()) > 0 {
		return nil
	}
	return s.submit(ctx, &pending{control: s.bootstrap, create: ledger.MainName}).err
}

// CreateLog creates a lineage log: an entry in the system log and the genesis entry of the new log, in one command.
func (s *Sequencer) CreateLog(ctx context.Context, name, principal string, authn lineage.Authn) (ledger.Log, error) {
	if err := lineage.CheckLogName(name); err != nil {
		return ledger.Log{}, fmt.Errorf("%w: %w", ledger.ErrInvalid, &lineage.FieldError{Path: "name", Reason: err.Error()})
	}
	if err := checkCaller(principal, authn); err != nil {
		return ledger.Log{}, err
	}
	r := s.submit(ctx, &pending{control: s.createLog, create: name, Request: Request{Principal: principal, Authn: authn}})
	return r.log, r.err
}

// maxControlDocument bounds the document of a control entry. It describes a membership or a recovery: kilobytes.
const maxControlDocument = 64 << 10

// RecordControl writes a control entry into the system log, of a kind that carries nothing but a document: JSON, which the ledger keeps and
// commits to. It returns when that is applied, with an error of the kinds that Append has.
func (s *Sequencer) RecordControl(ctx context.Context, kind lineage.ControlKind, principal string, authn lineage.Authn, document []byte) error {
	if kind != lineage.ControlMember && kind != lineage.ControlRecovery {
		return fmt.Errorf("%w: %s entries are not made of a document", ledger.ErrInvalid, kind)
	}
	if err := checkCaller(principal, authn); err != nil {
		return err
	}
	if len(document) > maxControlDocument || !json.Valid(document) {
		return fmt.Errorf("%w: the document of a %s entry needs to be JSON of at most %d bytes", ledger.ErrInvalid, kind, maxControlDocument)
	}
	compose := func(c *ledger.Command, p *pending) error {
		if c.Version < documentVersion {
			return fmt.Errorf("%w: %s entries need commands of version %d, %d is in use", ErrNotApplied, kind, documentVersion, c.Version)
		}
		return s.document(c, p, kind, document)
	}
	return s.submit(ctx, &pending{control: compose, Request: Request{Principal: principal, Authn: authn, Size: len(document)}}).err
}

// documentVersion is the first version of commands that has control entries made of a document.
const documentVersion = 2

// RaiseVersion has the ledger use the next version of commands, and returns when it does. The caller makes sure that every voter knows that
// version.
func (s *Sequencer) RaiseVersion(ctx context.Context) error {
	next := s.o.Ledger.CommandVersion() + 1
	if next > ledger.MaxCommandVersion {
		return fmt.Errorf("%w: this program knows commands up to version %d", ledger.ErrInvalid, ledger.MaxCommandVersion)
	}
	compose := func(c *ledger.Command, p *pending) error {
		if c.Version >= next {
			return errDone // somebody else was first
		}
		c.Version = next
		return s.document(c, p, lineage.ControlVersion, fmt.Appendf(nil, `{"commandVersion":%d}`, next))
	}
	return s.submit(ctx, &pending{control: compose, Request: Request{Principal: s.o.Ledger.LocalPrincipal(), Authn: lineage.AuthnLedger}}).err
}

// errDone is said by what composes a control command when there is nothing left to do.
var errDone = errors.New("it is so already")

// document makes a control entry of the system log whose body is a document.
func (s *Sequencer) document(c *ledger.Command, p *pending, kind lineage.ControlKind, content []byte) error {
	t, err := s.o.Ledger.Tree(ledger.SystemLog)
	if err != nil {
		return err
	}
	body := lineage.BodyPart{Kind: lineage.PartDocuments, Key: s.keys.next(), Content: lineage.AppendDocuments(nil, []lineage.Document{{
		MediaType: fmt.Sprintf("application/vnd.provledger.%s.v1+json", kind), Name: kind.String() + ".json", Content: content,
	}})}
	x := s.section(ledger.SystemLog, t.Head(), t.Edge(), p)
	x.add(kind, &lineage.Control{}, body)
	c.Sections = []ledger.Section{x.close()}
	return nil
}

// control composes a control command. Nothing is in flight.
func (s *Sequencer) control(p *pending) {
	c := s.newCommand()
	if err := p.control(&c, p); errors.Is(err, errDone) {
		s.answer(p, reply{})
		return
	} else if err != nil {
		s.answer(p, reply{err: err})
		return
	}
	if !p.state.CompareAndSwap(stateQueued, stateTaken) {
		s.release(p)
		return
	}
	for i := range c.Sections {
		s.specs.forget(c.Sections[i].Log) // it does not know of the entries of this command
	}
	s.launch(ledger.AppendCommand(nil, &c), []part{{p: p}}, nil)
}

func (s *Sequencer) bootstrap(c *ledger.Command, p *pending) error {
	if logs := s.o.Ledger.Logs(); len(logs) > 0 {
		return fmt.Errorf("the ledger: %w", ledger.ErrConflict)
	}
	// Ten random bytes: a principal id stands in every leaf, and 80 bits never meet by chance.
	id := make([]byte, 10)
	s.o.Random(id)
	p.Principal = "local:" + strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(id))
	p.Authn = lineage.AuthnLedger
	system, err := s.newLog(ledger.SystemLog, ledger.SystemName)
	if err != nil {
		return err
	}
	main, err := s.newLog(ledger.MainLog, ledger.MainName)
	if err != nil {
		return err
	}
	x := s.section(ledger.SystemLog, ledger.Head{Root: merkle.EmptyRoot()}, merkle.NewEdge(), p)
	x.genesis(system)
	x.control(lineage.ControlPrincipal, &lineage.Control{Principal: p.Principal})
	x.registered(main)
	y := s.section(ledger.MainLog, ledger.Head{Root: merkle.EmptyRoot()}, merkle.NewEdge(), p)
	y.genesis(main)
	c.Sections = []ledger.Section{x.close(), y.close()}
	return nil
}

func (s *Sequencer) createLog(c *ledger.Command, p *pending) error {
	if old, err := s.o.Ledger.LogByName(p.create); err == nil {
		return fmt.Errorf("log %q, number %d: %w", old.Name, old.Number, ledger.ErrConflict)
	} else if !errors.Is(err, ledger.ErrNotFound) {
		return err
	}
	logs := s.o.Ledger.Logs()
	g, err := s.newLog(logs[len(logs)-1].Number+1, p.create)
	if err != nil {
		return err
	}
	t, err := s.o.Ledger.Tree(ledger.SystemLog)
	if err != nil {
		return err
	}
	x := s.section(ledger.SystemLog, t.Head(), t.Edge(), p)
	x.registered(g)
	y := s.section(g.Number, ledger.Head{Root: merkle.EmptyRoot()}, merkle.NewEdge(), p)
	y.genesis(g)
	c.Sections = []ledger.Section{x.close(), y.close()}
	return nil
}

func (s *Sequencer) newLog(number uint32, name string) (ledger.Log, error) {
	g := ledger.Log{
		Number: number, Name: name, Kind: lineage.LineageLog, CreatedAt: s.recordingTime(ledger.Head{}),
		Origin: lineage.Origin{Host: s.o.OriginHost, Cluster: s.o.Ledger.ClusterID(), Kind: lineage.LineageLog, Name: name}.String(),
	}
	if _, err := lineage.ParseOrigin(g.Origin); err != nil {
		return g, fmt.Errorf("%w: %w", ledger.ErrInvalid, err)
	}
	var err error
	g.VKey, err = s.vkey(g.Origin)
	return g, err
}

// vkey returns the verifier key of an origin. The error wraps ErrNotApplied and ErrKey.
func (s *Sequencer) vkey(origin string) (string, error) {
	vkey, err := s.o.VKey(origin)
	if err != nil {
		return "", fmt.Errorf("%w: %w: %w", ErrNotApplied, ErrKey, err)
	}
	return vkey, nil
}

// newCommand begins a command on the applied state.
func (s *Sequencer) newCommand() ledger.Command {
	l := s.o.Ledger
	return ledger.Command{Version: l.CommandVersion(), ClusterID: l.ClusterID(), Base: l.Applied()}
}

// controlSection composes the control entries of one log.
type controlSection struct {
	s    *Sequencer
	p    *pending
	edge *merkle.Edge
	sec  ledger.Section
}

func (s *Sequencer) section(log uint32, before ledger.Head, edge *merkle.Edge, p *pending) *controlSection {
	x := &controlSection{s: s, p: p, edge: edge, sec: ledger.Section{Log: log, Before: before, After: before}}
	x.sec.After.RecordedAt = s.recordingTime(before)
	return x
}

// genesis makes entry 0: the log explains itself. The key of its name hashes is a part of the body.
func (x *controlSection) genesis(g ledger.Log) {
	key := lineage.BodyPart{Kind: lineage.PartReferenceKey, Key: x.s.keys.next()}
	reference := x.s.keys.next()
	key.Content = reference[:]
	x.add(lineage.ControlGenesis, &lineage.Control{
		Origin: g.Origin, LogKind: g.Kind, ClusterID: x.s.o.Ledger.ClusterID(), HashAlgorithm: lineage.SHA256, CreatedAt: g.CreatedAt, VKey: g.VKey,
		SchemaID: lineage.SchemaID, SchemaDigest: lineage.SchemaDigest(), IndexFunction: IndexFunction, LogName: g.Name,
	}, key)
}

// registered makes the entry of the system log by which a log exists.
func (x *controlSection) registered(g ledger.Log) {
	x.control(lineage.ControlLog, &lineage.Control{
		Origin: g.Origin, LogKind: g.Kind, CreatedAt: g.CreatedAt, VKey: g.VKey, LogNumber: g.Number, LogName: g.Name,
	})
}

func (x *controlSection) control(kind lineage.ControlKind, c *lineage.Control) { x.add(kind, c) }

func (x *controlSection) add(kind lineage.ControlKind, c *lineage.Control, body ...lineage.BodyPart) {
	l := &lineage.Leaf{
		EventID: lineage.NewID(), Kind: lineage.KindControl, Action: uint8(kind), Source: lineage.Native,
		RecordedAt: x.sec.After.RecordedAt, Principal: x.p.Principal, Authn: x.p.Authn, Control: c,
	}
	for i := range body {
		l.Bodies = append(l.Bodies, lineage.Commitment{Part: body[i].Kind, MAC: lineage.Commit(body[i].Kind, &body[i].Key, body[i].Content)})
	}
	leaf := lineage.AppendLeaf(nil, l)
	x.edge.Append(merkle.LeafHash(leaf), nil)
	x.sec.Entries = append(x.sec.Entries, ledger.CommandEntry{
		EventID: l.EventID, Principal: l.Principal, Authn: l.Authn, Control: true, Leaf: leaf, Body: lineage.AppendBody(nil, body),
	})
}

func (x *controlSection) close() ledger.Section {
	x.sec.After.Size, x.sec.After.Root = x.edge.Size(), x.edge.Root()
	return x.sec
}
