package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/client/receipt"
	"github.com/provledger/provledger/internal/checkpoint"
	"github.com/provledger/provledger/internal/merkle"
	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

const (
	// keptNotes is how many verified notes a log keeps: appends that were committed together and proofs at one tree size share theirs,
	// and a signature costs 50 us to verify.
	keptNotes = 8

	// maxRaces bounds how often remembering starts again because another process was faster.
	maxRaces = 10
)

// logState is what this process knows of one log.
type logState struct {
	name string

	// turn is held (by sending) during the first contact and during checks. A channel, so that waiting ends with the context.
	turn chan struct{}

	// What the memory holds as far as this process knows, and the size of its tree; guarded by turn.
	known     *record
	knownSize uint64

	// Fixed by the first contact. met is what was remembered then, nil if nothing was.
	origin string
	policy *receipt.Policy
	met    *record

	mu        sync.Mutex
	ready     bool
	broken    error // the *UntrustedError that ended all trust
	history   history
	checkedAt time.Time
	notes     []point // verified, most recent first
	newest    point   // the largest of all that were verified
	vkey      string
}

// seen returns the newest tree that is connected with what is remembered.
func (st *logState) seen() point {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.history.seen
}

// fail ends all trust in the log.
func (st *logState) fail(err error) error {
	u, ok := errors.AsType[*UntrustedError](err)
	if !ok {
		u = &UntrustedError{Log: st.name, Err: err}
	}
	if f, ok := errors.AsType[*forkError](err); ok {
		u.Evidence = [][]byte{f.a.note, f.b.note}
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.broken == nil {
		st.broken = u
	}
	return u
}

// log returns the state of a log, after the first contact. Its present checkpoint is then known to extend the remembered one.
func (c *Client) log(ctx context.Context, name string) (*logState, error) {
	if name == "" {
		name = DefaultLog
	}
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, ErrClosed
	}
	st := c.logs[name]
	if st == nil {
		st = &logState{name: name, turn: make(chan struct{}, 1)}
		c.logs[name] = st
	}
	c.mu.Unlock()

	if ready, err := st.state(); ready || err != nil {
		return st, err
	}
	ctx, cancel := c.withTimeout(ctx)
	defer cancel()
	select {
	case st.turn <- struct{}{}:
		defer func() { <-st.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if ready, err := st.state(); ready || err != nil {
		return st, err
	}
	if err := c.contact(ctx, st); err != nil {
		return nil, err
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	st.ready, st.checkedAt = true, time.Now()
	return st, nil
}

func (st *logState) state() (ready bool, err error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.ready, st.broken
}

// contact finds out which log this is, whether it is the remembered one, and that its checkpoint extends the remembered one.
func (c *Client) contact(ctx context.Context, st *logState) error {
	remembers, err := c.memory.on()
	if err != nil {
		return err
	}
	places := &pin{}
	var known *record
	if remembers && c.o.Target != "" {
		if places, err = c.memory.pin(c.o.Target); err != nil {
			return err
		}
		if origin := places.Logs[st.name]; origin != "" {
			if known, err = c.memory.record(origin); err != nil {
				return err
			}
		}
	}
	vkey := ""
	if known != nil && !c.o.AcceptNew {
		st.origin, vkey = known.Origin, known.VKey
	} else {
		info, err := c.introduce(ctx, st.name, places)
		if err != nil {
			return err
		}
		st.origin, vkey = info.Origin, info.VKey
		if known = nil; remembers { // it may be known from another address
			if known, err = c.memory.record(info.Origin); err != nil {
				return err
			}
		}
		if known != nil && known.VKey != vkey && c.o.Trust == nil {
			return &UntrustedError{Log: st.name, Err: fmt.Errorf("%w: %s, remembered is %s; if the key was changed on purpose, delete %s",
				ErrOtherKey, vkey, known.VKey, c.memory.recordPath(st.origin))}
		}
	}
	if st.policy = c.o.Trust; st.policy == nil {
		if st.policy, err = receipt.PolicyFor(vkey); err != nil {
			return untrusted(st.name, "its key: %w", err)
		}
	}
	first, err := c.firstCheckpoint(ctx, st, known)
	if err != nil {
		return err
	}
	st.met = known
	st.history, st.known = newHistory(first), known // knownSize stays 0: first is no smaller
	if !remembers {
		return nil
	}
	// What is remembered for the first time is written now, so that a directory that cannot be written is an error before anything
	// was recorded. An update can wait for the first check.
	if known == nil {
		if err := c.remember(ctx, st); err != nil {
			return err
		}
	}
	if c.o.Target != "" && places.Logs[st.name] != st.origin {
		return c.memory.setPin(c.o.Target, st.name, st.origin)
	}
	return nil
}

// introduce asks a log for its origin and key, and refuses another ledger than the one known to live at the target.
func (c *Client) introduce(ctx context.Context, name string, places *pin) (*Log, error) {
	resp, err := read(ctx, c, "get log", c.rpc.GetLog, &ledgerv1.GetLogRequest{Name: name, Consistency: freshness(ctx)})
	if isCode(err, codes.NotFound) {
		// Another node may have created it a moment ago.
		sure := WithConsistency(ctx, Consistency{Linearizable: true})
		resp, err = read(ctx, c, "get log", c.rpc.GetLog, &ledgerv1.GetLogRequest{Name: name, Consistency: freshness(sure)})
	}
	if err != nil {
		return nil, err
	}
	l := toLog(resp.GetLog())
	if l.Name != name {
		return nil, untrusted(name, "asked for log %q, got %q", name, l.Name)
	}
	// An origin holds the name of its log, so that no log can pass for another one of the same ledger.
	o, err := lineage.ParseOrigin(l.Origin)
	if err != nil {
		return nil, untrusted(name, "its origin: %w", err)
	}
	if !o.Named(name) || o.Kind != lineage.LineageLog {
		return nil, untrusted(name, "its origin %q is that of another log", l.Origin)
	}
	if c.o.AcceptNew {
		return l, nil
	}
	for n, origin := range places.Logs {
		if origin != l.Origin && (n == name || !isFrozen(n) && !isFrozen(name) && ledgerOf(origin) != ledgerOf(l.Origin)) {
			return nil, c.otherLedger(name, l.Origin, origin)
		}
	}
	return l, nil
}

func (c *Client) otherLedger(name, got, want string) error {
	advice := ""
	if c.memory.dir != "" && c.o.Target != "" {
		advice = fmt.Sprintf("; if the ledger at %s was replaced on purpose, delete %s and try again", c.o.Target, c.memory.pinPath(c.o.Target))
	}
	return &UntrustedError{Log: name, Err: fmt.Errorf("%w: it is %q, it was %q%s", ErrOtherLedger, got, want, advice)}
}

// isFrozen reports whether a name is that of a log which the ledger has from its past: its origin names another cluster, rightly.
func isFrozen(name string) bool { return strings.Contains(name, lineage.FrozenMark) }

// ledgerOf returns what all origins of a ledger have in common.
func ledgerOf(origin string) string {
	o, err := lineage.ParseOrigin(origin)
	if err != nil {
		return origin
	}
	return o.Host + "/" + o.Cluster.String()
}

// firstCheckpoint returns the log's present tree, proven to extend the remembered one.
func (c *Client) firstCheckpoint(ctx context.Context, st *logState, known *record) (point, error) {
	if known == nil {
		return c.latest(ctx, st)
	}
	base, err := c.open(st, []byte(known.Checkpoint))
	if err != nil {
		return point{}, damaged(c.memory.recordPath(known.Origin), err)
	}
	resp, err := read(ctx, c, "prove that the log extends what is remembered", c.rpc.GetConsistencyProof,
		&ledgerv1.GetConsistencyProofRequest{Log: st.name, FirstSize: base.size, Consistency: freshness(ctx, base.size)})
	if err != nil {
		return point{}, c.shorter(ctx, st, base, err)
	}
	now, err := c.open(st, resp.GetCheckpoint())
	if err != nil {
		return point{}, err
	}
	if now.size < base.size {
		return point{}, rollback(st, base, now)
	}
	return now, c.verifyExtends(ctx, st, base, now, resp.GetHashes())
}

// latest returns the log's present tree: on whichever node, no smaller one than this process has seen.
func (c *Client) latest(ctx context.Context, st *logState) (point, error) {
	resp, err := readLog(ctx, c, st, "get checkpoint", c.rpc.GetCheckpoint,
		&ledgerv1.GetCheckpointRequest{Log: st.name, Consistency: freshness(ctx, st.largest().size)})
	if err != nil {
		return point{}, err
	}
	return c.openSized(st, resp.GetCheckpoint(), resp.GetTreeSize())
}

// openSized is open for a checkpoint that came with its size.
func (c *Client) openSized(st *logState, signed []byte, size uint64) (point, error) {
	p, err := c.open(st, signed)
	if err == nil && p.size != size {
		err = untrusted(st.name, "tree size %d, the checkpoint has %d", size, p.size)
	}
	return p, err
}

// shorter explains why a tree that is known was refused: if the log is smaller in an answer that has everything that was acknowledged, it
// lost entries. A node that is only behind does not give such an answer.
func (c *Client) shorter(ctx context.Context, st *logState, known point, refused error) error {
	if !isCode(refused, codes.FailedPrecondition) && !isCode(refused, codes.InvalidArgument) {
		return refused
	}
	resp, err := read(ctx, c, "get checkpoint", c.rpc.GetCheckpoint,
		&ledgerv1.GetCheckpointRequest{Log: st.name, Consistency: &ledgerv1.ReadConsistency{Linearizable: true}})
	if err != nil {
		return refused
	}
	now, err := c.openSized(st, resp.GetCheckpoint(), resp.GetTreeSize())
	if _, ok := errors.AsType[*UntrustedError](err); ok {
		return err
	}
	if err == nil && now.size < known.size {
		return rollback(st, known, now)
	}
	return refused
}

func rollback(st *logState, known, now point) error {
	return &UntrustedError{
		Log: st.name, Evidence: [][]byte{known.note, now.note},
		Err: fmt.Errorf("%w: it has %d, this client verified a tree of %d; the ledger is an old copy, or entries were removed", ErrRollback, now.size, known.size),
	}
}

// verifyExtends checks a consistency proof between two signed trees. If it fails, the log is asked for its own tree of the older size: if
// that is another one, two signed checkpoints prove the fork.
func (c *Client) verifyExtends(ctx context.Context, st *logState, older, newer point, hashes [][]byte) error {
	proof, err := toHashes(hashes)
	if err == nil {
		err = merkle.VerifyConsistency(older.size, newer.size, older.root, newer.root, proof)
	}
	if err == nil {
		return nil
	}
	if older.size > 0 {
		if _, p, e := c.inclusion(ctx, st, AtIndex(older.size-1), older.size); e == nil && p.root != older.root {
			return st.fail(fork(older, p))
		}
	}
	return untrusted(st.name, "the proof that its tree of size %d extends that of size %d: %w", newer.size, older.size, err)
}

// open verifies a signed checkpoint of the log.
func (c *Client) open(st *logState, signed []byte) (point, error) {
	st.mu.Lock()
	for _, p := range st.notes {
		if bytes.Equal(p.note, signed) {
			st.mu.Unlock()
			return p, nil
		}
	}
	st.mu.Unlock()

	cp, verdict, err := st.policy.VerifyCheckpoint(signed)
	if origin, _, _ := strings.Cut(string(signed[:min(len(signed), checkpoint.MaxNameBytes+1)]), "\n"); origin != st.origin && origin != "" {
		return point{}, c.otherLedger(st.name, origin, st.origin)
	}
	if err != nil {
		return point{}, untrusted(st.name, "its checkpoint: %w", err)
	}
	p := point{cp.Size, cp.Root, signed}
	st.mu.Lock()
	defer st.mu.Unlock()
	st.vkey = verdict.LogKey
	if p.size > st.newest.size {
		st.newest = p
	}
	st.notes = append([]point{p}, st.notes[:min(len(st.notes), keptNotes-1)]...)
	return p, nil
}

// settle takes a verified answer into account: a tree and what its proof showed of an older one. before is what seen was when the
// request was sent: no answer may be of a smaller tree.
func (c *Client) settle(ctx context.Context, st *logState, before point, p point, from prefix) error {
	if p.size < before.size {
		return st.fail(rollback(st, before, p))
	}
	st.mu.Lock()
	if st.broken != nil {
		defer st.mu.Unlock()
		return st.broken
	}
	err := st.history.add(p, from)
	full := len(st.history.open) >= maxWaiting
	due := full || time.Since(st.checkedAt) >= c.o.CheckInterval
	st.mu.Unlock()
	if err != nil {
		return st.fail(err)
	}
	if !due {
		return nil
	}
	select {
	case st.turn <- struct{}{}:
		defer func() { <-st.turn }()
	default:
		return nil // somebody is at it
	}
	err = c.check(ctx, st)
	if _, ok := errors.AsType[*UntrustedError](err); ok || full {
		return err
	}
	if err != nil {
		c.logger.DebugContext(ctx, "check deferred", "log", st.name, "err", err)
	}
	return nil
}

// check connects what waits with the verified trees, and remembers the newest. The caller holds the turn.
func (c *Client) check(ctx context.Context, st *logState) error {
	st.mu.Lock()
	st.checkedAt = time.Now()
	base, sample := st.history.seen, st.history.sample()
	waited := make([]uint64, 0, len(st.history.open))
	for size := range st.history.open {
		waited = append(waited, size)
	}
	st.mu.Unlock()
	newest := base
	for _, p := range sample {
		older, newer := p, newest
		if p.size > newest.size {
			older, newer = newest, p
		}
		if err := c.prove(ctx, st, older, newer); err != nil {
			return err
		}
		newest = newer
	}
	st.mu.Lock()
	st.history.checked(base, newest, waited)
	st.mu.Unlock()
	return c.remember(ctx, st)
}

// prove fetches and verifies the proof that one signed tree extends another.
func (c *Client) prove(ctx context.Context, st *logState, older, newer point) error {
	if older.size == newer.size {
		if older.root != newer.root {
			return st.fail(fork(older, newer))
		}
		return nil
	}
	resp, err := read(ctx, c, "prove that the log only grew", c.rpc.GetConsistencyProof,
		&ledgerv1.GetConsistencyProofRequest{Log: st.name, FirstSize: older.size, SecondSize: newer.size, Consistency: freshness(ctx, newer.size)})
	if err != nil {
		return c.shorter(ctx, st, newer, err)
	}
	return c.verifyExtends(ctx, st, older, newer, resp.GetHashes())
}

// remember writes the newest verified tree into the memory. If another process has been there, its tree must be connected with ours, and
// the larger one stays. The caller holds the turn.
func (c *Client) remember(ctx context.Context, st *logState) error {
	if on, err := c.memory.on(); !on || err != nil {
		return err
	}
	for range maxRaces {
		st.mu.Lock()
		seen := st.history.seen
		next := record{st.origin, st.vkey, string(seen.note)}
		st.mu.Unlock()
		if st.known != nil && (*st.known == next || st.knownSize > seen.size) {
			return nil // a larger one that this process has yet to reach waits for the next check
		}
		done, err := c.memory.update(st.known, next)
		if err != nil {
			return err
		}
		if done {
			st.known, st.knownSize = &next, seen.size
			return nil
		}
		if st.known, err = c.memory.record(st.origin); err != nil {
			return err
		}
		if st.known == nil {
			continue
		}
		theirs, err := c.open(st, []byte(st.known.Checkpoint))
		if err != nil {
			return err
		}
		st.knownSize = theirs.size
		older, newer := theirs, seen
		if theirs.size > seen.size {
			older, newer = seen, theirs
		}
		if err := c.prove(ctx, st, older, newer); err != nil {
			return err
		}
		if theirs.size >= seen.size {
			st.mu.Lock()
			st.history.checked(seen, theirs, nil)
			st.mu.Unlock()
			return nil
		}
	}
	return fmt.Errorf("cannot remember the checkpoint of %s: other processes change it all the time", st.name)
}

// finish completes the checks of a log for Close.
func (c *Client) finish(ctx context.Context, st *logState) error {
	if ready, err := st.state(); !ready || err != nil {
		return nil // nothing was handed out, or the caller was told already
	}
	select {
	case st.turn <- struct{}{}:
		defer func() { <-st.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := c.check(ctx, st); err != nil {
		return fmt.Errorf("close: %w", err)
	}
	return nil
}
