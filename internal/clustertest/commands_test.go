package clustertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/rogpeppe/go-internal/testscript"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/provledger/provledger/client/eventpb"
	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/devca"
	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

type worldKey struct{}

// command is one word of the scripts' language. Its error is what "! command" wants, and goes to the standard error stream of the script.
type command func(w *world, ts *testscript.TestScript, args []string) error

func commands() map[string]func(*testscript.TestScript, bool, []string) {
	out := map[string]func(*testscript.TestScript, bool, []string){}
	for name, f := range map[string]command{
		"setup": setup, "found": found, "start": start, "begin": begin, "await": await,
		"off": each((*machine).off), "crash": each(func(m *machine) error { return m.kill(100) }), "power-cut": each(func(m *machine) error { return m.kill(0) }),
		"isolate": isolate, "disconnect": disconnect, "heal": heal, "skew": skew,
		"wipe": wipe, "lose": lose, "occupy": occupy, "vacate": vacate, "pause": pause, "copy": copyDisk, "flip": flip,
		"append": appendEvents, "append-batch": appendBatch, "read": readAll, "roles": roles,
		"expect-size": expectSize, "expect-leader": expectLeader, "expect-status": expectStatus, "expect-log": expectLog, "expect-version": expectVersion,
		"expect-warning": expectWarning, "expect-died": expectDied, "expect-appends": expectAppends, "expect-refused": expectRefused, "expect-shut-out": expectShutOut, "expect-whole": expectWhole,
		"add": add, "promote": promote, "demote": demote, "remove": remove, "replace": replace, "transfer": transfer,
		"audit": func(w *world, _ *testscript.TestScript, _ []string) error { return w.audit() },
	} {
		out[name] = func(ts *testscript.TestScript, neg bool, args []string) {
			w := ts.Value(worldKey{}).(*world)
			err := f(w, ts, args)
			if err != nil {
				fmt.Fprintln(ts.Stderr(), err)
			}
			switch {
			case neg && err == nil:
				ts.Fatalf("%s %s: did not fail", name, strings.Join(args, " "))
			case !neg && err != nil:
				ts.Fatalf("%v", err)
			case neg:
				ts.Logf("failed as expected: %v", err)
			}
		}
	}
	return out
}

// until repeats f until it is content; saw says what it met instead.
func until(what string, f func() (ok bool, saw string)) error {
	saw := ""
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		var ok bool
		if ok, saw = f(); ok {
			return nil
		}
	}
	return fmt.Errorf("%s: not within %v; last seen: %s", what, patience, saw)
}

func brief() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), impatience)
}

func long() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), patience)
}

// each is a command that does one thing to every machine that it names.
func each(f func(*machine) error) command {
	return func(w *world, _ *testscript.TestScript, args []string) error {
		if len(args) == 0 {
			return errors.New("which nodes?")
		}
		for _, name := range args {
			if err := f(w.machine(name)); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		return nil
	}
}

// setup NODE KEY=VALUE... says how nodes are started on a machine from now on:
//
//	members=A,B,C    join=A,B    as=voter|nonvoter    peer=on|off    secret=right|other|none    ca=right|other
//	max-command=N    trailing=N
func setup(w *world, _ *testscript.TestScript, args []string) error {
	m := w.machine(args[0])
	for _, arg := range args[1:] {
		key, value, _ := strings.Cut(arg, "=")
		var err error
		switch key {
		case "members":
			m.members = strings.Split(value, ",")
		case "join":
			m.join = strings.Split(value, ",")
		case "as":
			m.nonVoter = value == "nonvoter"
		case "peer":
			m.noPeer = value == "off"
		case "secret":
			m.secret = map[string]string{"right": filepath.Join(w.dir, "secret"), "other": filepath.Join(w.dir, "other-secret")}[value]
		case "ca":
			m.ca = w.ca
			if value == "other" {
				m.ca, err = devca.New("somebody else", time.Hour)
			}
		case "max-command":
			var n uint64
			n, err = strconv.ParseUint(value, 10, 8)
			m.maxCommand = uint8(n)
		case "trailing":
			m.trailing, err = strconv.ParseUint(value, 10, 64)
		default:
			err = fmt.Errorf("no setting %q", key)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// found NODE... founds a cluster and waits until all of them vote.
func found(w *world, _ *testscript.TestScript, args []string) error {
	for _, name := range args {
		m := w.machine(name)
		m.members = args
		if err := m.start(); err != nil {
			return err
		}
	}
	if err := await(w, nil, args); err != nil {
		return err
	}
	return until("all founders vote", func() (bool, string) {
		c, err := w.view("")
		voters := 0
		for _, m := range c.GetMembers() {
			if m.Voter && m.State == "serving" {
				voters++
			}
		}
		return voters == len(args), fmt.Sprint(c, err)
	})
}

// start NODE... starts nodes and waits until they serve.
func start(w *world, ts *testscript.TestScript, args []string) error {
	if err := begin(w, ts, args); err != nil {
		return err
	}
	return await(w, ts, args)
}

// begin NODE... starts nodes and does not wait.
func begin(w *world, _ *testscript.TestScript, args []string) error {
	for _, name := range args {
		if err := w.machine(name).start(); err != nil {
			return err
		}
	}
	return nil
}

func await(w *world, _ *testscript.TestScript, args []string) error {
	ctx, cancel := long()
	defer cancel()
	for _, name := range args {
		if err := w.machine(name).await(ctx); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func isolate(w *world, _ *testscript.TestScript, args []string) error {
	for _, name := range args {
		w.isolate(name)
	}
	return nil
}

func disconnect(w *world, _ *testscript.TestScript, args []string) error {
	w.disconnect(args[0], args[1])
	return nil
}

func heal(w *world, _ *testscript.TestScript, _ []string) error {
	w.reconnect("")
	return nil
}

// skew NODE DURATION sets how far a machine's clock is ahead.
func skew(w *world, _ *testscript.TestScript, args []string) error {
	d, err := time.ParseDuration(args[1])
	w.machine(args[0]).skew.Store(d.Microseconds())
	return err
}

// wipe NODE gives a machine that is off an empty disk.
func wipe(w *world, _ *testscript.TestScript, args []string) error {
	w.machine(args[0]).disk = vfs.NewCrashableMem()
	return nil
}

// lose NODE PATH removes a file or directory of a node that is off.
func lose(w *world, _ *testscript.TestScript, args []string) error {
	disk := w.machine(args[0]).disk
	path := disk.PathJoin(dataDir, args[1])
	if _, err := disk.Stat(path); err != nil {
		return err
	}
	return disk.RemoveAll(path)
}

// copy FROM TO gives one machine the disk of another.
func copyDisk(w *world, _ *testscript.TestScript, args []string) error {
	from, to := w.machine(args[0]), w.machine(args[1])
	to.disk = from.disk.CrashClone(vfs.CrashCloneCfg{})
	return nil
}

// occupy NODE takes the port of a machine that is off; vacate NODE gives it back.
func occupy(w *world, _ *testscript.TestScript, args []string) (err error) {
	m := w.machine(args[0])
	m.squatter, err = net.Listen("tcp", m.peer)
	return err
}

func vacate(w *world, _ *testscript.TestScript, args []string) error {
	return w.machine(args[0]).squatter.Close()
}

// pause DURATION lets nodes do what they do for so long.
func pause(_ *world, _ *testscript.TestScript, args []string) error {
	d, err := time.ParseDuration(args[0])
	time.Sleep(d)
	return err
}

// flip NODE changes a bit in the middle of the largest table of a node's state store, whether it runs or not.
func flip(w *world, _ *testscript.TestScript, args []string) error {
	disk := w.machine(args[0]).disk
	dir := disk.PathJoin(dataDir, "state")
	names, err := disk.List(dir)
	if err != nil {
		return err
	}
	largest, most := "", int64(0)
	for _, name := range names {
		if info, err := disk.Stat(disk.PathJoin(dir, name)); err == nil && strings.HasSuffix(name, ".sst") && info.Size() > most {
			largest, most = disk.PathJoin(dir, name), info.Size()
		}
	}
	if largest == "" {
		return fmt.Errorf("%s has no table yet", args[0])
	}
	f, err := disk.OpenReadWrite(largest, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, most/2); err != nil {
		return err
	}
	b[0] ^= 0x10
	_, err = f.WriteAt(b, most/2)
	return errors.Join(err, f.Sync(), f.Close())
}

// who returns the machine of a name, or any that runs.
func (w *world) who(name string) (*machine, error) {
	for _, m := range w.running() {
		if name == "" || m.name == name {
			return m, nil
		}
	}
	return nil, fmt.Errorf("no node runs on %q", name)
}

func newEvent() *lineage.Event {
	id := lineage.NewID()
	d, err := lineage.ParseDigest(fmt.Sprintf("sha256:%032x%032x", id[:], id[:]))
	if err != nil {
		panic(err)
	}
	return &lineage.Event{
		ID: id, Kind: lineage.KindRun, Action: uint8(lineage.RunComplete), Source: lineage.Native, OccurredAt: time.Now().UnixMicro(), RunID: lineage.NewID(),
		Job:        lineage.Name{Namespace: "clustertest", Name: "job"},
		References: []lineage.Reference{{Role: lineage.Output, Kind: lineage.Model, Known: lineage.Computed, Digest: d, URI: "model.bin"}},
		Documents:  []lineage.Document{{MediaType: "application/json", Content: []byte(`{"k":1}`)}},
	}
}

// target reads "N [NODE]".
func (w *world) target(args []string) (n int, m *machine, err error) {
	if n, err = strconv.Atoi(args[0]); err != nil {
		return 0, nil, err
	}
	name := ""
	if len(args) > 1 {
		name = args[1]
	}
	m, err = w.who(name)
	return n, m, err
}

// append N [NODE] appends N events, one by one, and wants each acknowledged within a few seconds, elections included.
func appendEvents(w *world, _ *testscript.TestScript, args []string) error {
	n, m, err := w.target(args)
	if err != nil {
		return err
	}
	for range n {
		if err := w.append(m, []*lineage.Event{newEvent()}); err != nil {
			return err
		}
	}
	return nil
}

// append-batch N [NODE] appends N events at once.
func appendBatch(w *world, _ *testscript.TestScript, args []string) error {
	n, m, err := w.target(args)
	if err != nil {
		return err
	}
	events := make([]*lineage.Event, n)
	for i := range events {
		events[i] = newEvent()
	}
	return w.append(m, events)
}

// appendPatience is what one append is given. It is less than patience, so that scripts in which appends must fail are not slow.
const appendPatience = 4 * time.Second

func (w *world) append(m *machine, events []*lineage.Event) error {
	ctx, cancel := context.WithTimeout(context.Background(), appendPatience)
	defer cancel()
	req := &ledgerv1.BatchAppendRequest{}
	for _, e := range events {
		req.Events = append(req.Events, eventpb.FromEvent(e))
	}
	resp, err := ledgerv1.NewLedgerServiceClient(m.conn).BatchAppend(ctx, req)
	if err != nil {
		return fmt.Errorf("append by %s: %w", m.name, err)
	}
	for i, r := range resp.Results {
		w.acked = append(w.acked, acked{events[i].ID, r.Index, r.Leaf})
	}
	return nil
}

// read NODE reads all entries of a node, bodies too.
func readAll(w *world, _ *testscript.TestScript, args []string) error {
	m, err := w.who(args[0])
	if err != nil {
		return err
	}
	_, err = m.leaves()
	return err
}

// leaves returns all leaves that a node has.
func (m *machine) leaves() ([][]byte, error) {
	ctx, cancel := long()
	defer cancel()
	stream, err := ledgerv1.NewLedgerServiceClient(m.conn).StreamEntries(ctx, &ledgerv1.StreamEntriesRequest{})
	if err != nil {
		return nil, err
	}
	var leaves [][]byte
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return leaves, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", m.name, err)
		}
		for _, e := range r.Entries {
			leaves = append(leaves, e.Leaf)
		}
	}
}

// audit holds all nodes that run against each other, and against what was acknowledged (S1, S5, S9).
func (w *world) audit() error {
	if len(w.running()) == 0 {
		return errors.New("no node runs: there is nothing to audit")
	}
	var want [][]byte
	roots := map[string]string{}
	for _, m := range w.running() {
		var got [][]byte
		err := until("all that was acknowledged at "+m.name, func() (bool, string) {
			var err error
			got, err = m.leaves()
			most := uint64(0)
			for _, a := range w.acked {
				most = max(most, a.index+1)
			}
			return err == nil && uint64(len(got)) >= most, fmt.Sprint(len(got), err)
		})
		if err != nil {
			return err
		}
		for _, a := range w.acked {
			if !bytes.Equal(got[a.index], a.leaf) {
				return fmt.Errorf("S1: event %s was acknowledged at %d; %s has another leaf there", a.id, a.index, m.name)
			}
		}
		for i := range min(len(got), len(want)) {
			if !bytes.Equal(got[i], want[i]) {
				return fmt.Errorf("S5: %s has another entry %d than the others", m.name, i)
			}
		}
		if len(got) > len(want) {
			want = got
		}
		ctx, cancel := brief()
		resp, err := ledgerv1.NewLedgerServiceClient(m.conn).GetCheckpoint(ctx, &ledgerv1.GetCheckpointRequest{})
		cancel()
		if status.Code(err) == codes.FailedPrecondition && m.secret == "" {
			continue // without the key nothing is signed
		}
		if err != nil {
			return fmt.Errorf("checkpoint of %s: %w", m.name, err)
		}
		lines := strings.SplitN(string(resp.Checkpoint), "\n", 4) // origin, size, root, rest
		if other, ok := roots[lines[1]]; ok && other != lines[2] {
			return fmt.Errorf("S5: two roots for size %s: %s and %s", lines[1], other, lines[2])
		}
		roots[lines[1]] = lines[2]
	}
	return nil
}

// view is the cluster as a node sees it; "" asks nodes until one knows a leader.
func (w *world) view(name string) (*ledgerv1.Cluster, error) {
	err := fmt.Errorf("no node runs on %q", name)
	var last *ledgerv1.Cluster
	for _, m := range w.running() {
		if name != "" && m.name != name {
			continue
		}
		ctx, cancel := brief()
		resp, e := ledgerv1.NewClusterServiceClient(m.conn).GetCluster(ctx, &ledgerv1.GetClusterRequest{})
		cancel()
		if err = e; e == nil {
			if last = resp.Cluster; last.LeaderId != "" && (name != "" || last.LeaderId == last.AnsweredBy) {
				break
			}
		}
	}
	return last, err
}

// nameOf is the machine that a member's address belongs to.
func (w *world) nameOf(address string) string {
	for _, m := range w.machines {
		if m.peer == address {
			return m.name
		}
	}
	return address
}

// idOf is the node id that a machine has in the membership.
func (w *world) idOf(name string) (string, error) {
	c, err := w.view("")
	if err != nil {
		return "", err
	}
	for _, m := range c.Members {
		if w.nameOf(m.Address) == name {
			return m.NodeId, nil
		}
	}
	return "", fmt.Errorf("%s is no member", name)
}

// leader is the machine whose node says of itself that it leads; "" none.
func (w *world) leader() string {
	for _, m := range w.running() {
		if c, err := w.view(m.name); err == nil && c.LeaderId != "" && c.LeaderId == c.AnsweredBy {
			return m.name
		}
	}
	return ""
}

// roles waits for a leader and names it $LEADER, and the other nodes that run $F1, $F2, ...
func roles(w *world, ts *testscript.TestScript, _ []string) error {
	name := ""
	err := until("a leader", func() (bool, string) {
		name = w.leader()
		return name != "", "none"
	})
	ts.Setenv("LEADER", name)
	i := 0
	for _, m := range w.running() {
		if m.name != name {
			i++
			ts.Setenv(fmt.Sprintf("F%d", i), m.name)
		}
	}
	return err
}

// expect-leader NODE... waits until one of these leads.
func expectLeader(w *world, _ *testscript.TestScript, args []string) error {
	return until(fmt.Sprintf("a leader among %v", args), func() (bool, string) {
		for _, m := range w.running() {
			if c, err := w.view(m.name); slices.Contains(args, m.name) && err == nil && c.LeaderId != "" && c.LeaderId == c.AnsweredBy {
				return true, ""
			}
		}
		return false, w.leader()
	})
}

// expect-size N NODE... waits until these nodes, all if none is named, have N entries in main and answer so.
func expectSize(w *world, _ *testscript.TestScript, args []string) error {
	want, err := strconv.ParseUint(args[0], 10, 64)
	if err != nil {
		return err
	}
	names := args[1:]
	if len(names) == 0 {
		for _, m := range w.running() {
			names = append(names, m.name)
		}
	}
	for _, name := range names {
		m, err := w.who(name)
		if err != nil {
			return err
		}
		err = until(fmt.Sprintf("%d entries at %s", want, name), func() (bool, string) {
			ctx, cancel := brief()
			defer cancel()
			resp, err := ledgerv1.NewLedgerServiceClient(m.conn).ListEntries(ctx, &ledgerv1.ListEntriesRequest{PageSize: 1, SkipBody: true})
			return err == nil && resp.TreeSize == want, fmt.Sprint(resp.GetTreeSize(), err)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// expect-status FILE [NODE] waits until the membership, as the leader or a node sees it, reads like the file: a line a member with its
// name, voter or nonvoter, and its state, sorted.
func expectStatus(w *world, ts *testscript.TestScript, args []string) error {
	want, from := ts.ReadFile(args[0]), ""
	if len(args) > 1 {
		from = args[1]
	}
	return until("the status of "+args[0], func() (bool, string) {
		c, err := w.view(from)
		if err != nil {
			return false, err.Error()
		}
		var lines []string
		for _, m := range c.Members {
			kind, state := "nonvoter", m.State
			if m.Voter {
				kind = "voter"
			}
			if !m.Reachable {
				state = "unreachable"
			}
			lines = append(lines, fmt.Sprintf("%s %s %s\n", w.nameOf(m.Address), kind, state))
		}
		slices.Sort(lines)
		got := strings.Join(lines, "")
		return got == want, "\n" + got
	})
}

// expect-log NODE PATTERN waits until a node has logged something like it.
func expectLog(w *world, _ *testscript.TestScript, args []string) error {
	p, err := regexp.Compile(args[1])
	if err != nil {
		return err
	}
	m := w.machine(args[0])
	return until(fmt.Sprintf("%s logs %q", args[0], args[1]), func() (bool, string) { return m.log.has(p), "nothing like it" })
}

// expect-warning PATTERN waits until the leader's view of the cluster has a warning like it.
func expectWarning(w *world, _ *testscript.TestScript, args []string) error {
	p, err := regexp.Compile(args[0])
	if err != nil {
		return err
	}
	return until(fmt.Sprintf("a warning like %q", args[0]), func() (bool, string) {
		c, err := w.view("")
		return slices.ContainsFunc(c.GetWarnings(), p.MatchString), fmt.Sprint(c.GetWarnings(), err)
	})
}

// expect-version N [NODE] waits until commands of that version are in use.
func expectVersion(w *world, _ *testscript.TestScript, args []string) error {
	return until("command version "+args[0], func() (bool, string) {
		c, err := w.view(strings.Join(args[1:], ""))
		return err == nil && fmt.Sprint(c.CommandVersion) == args[0], fmt.Sprint(c.GetCommandVersion(), err)
	})
}

// expect-died NODE PATTERN waits until a node has ended itself for a reason like it.
func expectDied(w *world, _ *testscript.TestScript, args []string) error {
	p, err := regexp.Compile(args[1])
	if err != nil {
		return err
	}
	m := w.machine(args[0])
	return until(args[0]+" ends itself", func() (bool, string) {
		why := m.died.Load()
		return why != nil && p.MatchString(*why), fmt.Sprint(why)
	})
}

// expect-appends NODE waits until an append by a node is acknowledged.
func expectAppends(w *world, _ *testscript.TestScript, args []string) error {
	return until("an append by "+args[0], func() (bool, string) {
		m, err := w.who(args[0])
		if err == nil {
			err = w.append(m, []*lineage.Event{newEvent()})
		}
		return err == nil, fmt.Sprint(err)
	})
}

// expect-whole NODE waits until a node reads all its entries, repairing itself on the way if need be.
func expectWhole(w *world, _ *testscript.TestScript, args []string) error {
	return until(args[0]+" reads all", func() (bool, string) {
		m, err := w.who(args[0])
		if err == nil {
			_, err = m.leaves()
		}
		return err == nil, fmt.Sprint(err)
	})
}

// expect-shut-out NODE starts a node that was removed. If it has heard of its removal it refuses to start; else it runs, and the cluster does
// not take it back. It is off afterwards.
func expectShutOut(w *world, ts *testscript.TestScript, args []string) error {
	m := w.machine(args[0])
	if err := start(w, ts, args); err != nil {
		if !strings.Contains(err.Error(), "removed") {
			return err
		}
		return nil
	}
	if err := add(w, ts, args); err == nil || !strings.Contains(err.Error(), "was removed") {
		return fmt.Errorf("%s was removed, and adding it again: %v", m.name, err)
	}
	return m.off()
}

// expect-refused NODE PATTERN waits until an append by a node fails for a reason like it.
func expectRefused(w *world, _ *testscript.TestScript, args []string) error {
	p, err := regexp.Compile(args[1])
	if err != nil {
		return err
	}
	return until(fmt.Sprintf("an append by %s fails with %q", args[0], args[1]), func() (bool, string) {
		m, err := w.who(args[0])
		if err == nil {
			err = w.append(m, []*lineage.Event{newEvent()})
		}
		return err != nil && p.MatchString(err.Error()), fmt.Sprint(err)
	})
}

// control gives fn a client of any node's ClusterService, and the ids of the nodes that args name.
func (w *world) control(args []string, fn func(ctx context.Context, c ledgerv1.ClusterServiceClient, ids []string) error) error {
	m, err := w.who(w.leader())
	if err != nil {
		return err
	}
	var ids []string
	for _, name := range args {
		id, err := w.idOf(name)
		if err != nil {
			return err
		}
		ids = append(ids, id)
	}
	ctx, cancel := long()
	defer cancel()
	return fn(ctx, ledgerv1.NewClusterServiceClient(m.conn), ids)
}

// add NODE [nonvoter]
func add(w *world, _ *testscript.TestScript, args []string) error {
	return w.control(nil, func(ctx context.Context, c ledgerv1.ClusterServiceClient, _ []string) error {
		_, err := c.AddMember(ctx, &ledgerv1.AddMemberRequest{Address: w.machine(args[0]).peer, NonVoter: len(args) > 1 && args[1] == "nonvoter"})
		return err
	})
}

func promote(w *world, _ *testscript.TestScript, args []string) error {
	return w.control(args, func(ctx context.Context, c ledgerv1.ClusterServiceClient, ids []string) error {
		_, err := c.PromoteMember(ctx, &ledgerv1.PromoteMemberRequest{NodeId: ids[0]})
		return err
	})
}

func demote(w *world, _ *testscript.TestScript, args []string) error {
	return w.control(args, func(ctx context.Context, c ledgerv1.ClusterServiceClient, ids []string) error {
		_, err := c.DemoteMember(ctx, &ledgerv1.DemoteMemberRequest{NodeId: ids[0]})
		return err
	})
}

// remove NODE [force]
func remove(w *world, _ *testscript.TestScript, args []string) error {
	return w.control(args[:1], func(ctx context.Context, c ledgerv1.ClusterServiceClient, ids []string) error {
		_, err := c.RemoveMember(ctx, &ledgerv1.RemoveMemberRequest{NodeId: ids[0], Force: slices.Contains(args, "force")})
		return err
	})
}

// replace OLD NEW prints the progress that the leader tells, with names of machines for ids and addresses.
func replace(w *world, ts *testscript.TestScript, args []string) error {
	return w.control(args[:1], func(ctx context.Context, c ledgerv1.ClusterServiceClient, ids []string) error {
		stream, err := c.ReplaceMember(ctx, &ledgerv1.ReplaceMemberRequest{NodeId: ids[0], Address: w.machine(args[1]).peer})
		if err != nil {
			return err
		}
		for done := false; ; {
			r, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				if !done {
					return errors.New("the stream ended before the replacement")
				}
				return nil
			}
			if err != nil {
				return err
			}
			fmt.Fprintln(ts.Stdout(), r.Progress)
			done = r.Done
		}
	})
}

func transfer(w *world, _ *testscript.TestScript, args []string) error {
	return w.control(args, func(ctx context.Context, c ledgerv1.ClusterServiceClient, ids []string) error {
		_, err := c.TransferLeadership(ctx, &ledgerv1.TransferLeadershipRequest{NodeId: ids[0]})
		return err
	})
}
