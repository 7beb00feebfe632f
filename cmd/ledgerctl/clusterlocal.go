package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/provledger/provledger/client"
	"github.com/provledger/provledger/internal/localcluster"
)

const (
	// localStart is how long a local cluster may take to elect a leader and to take in all members, on a busy machine.
	localStart = 60 * time.Second
	// localWatch is how often the nodes of a local cluster are looked at while it runs in the foreground.
	localWatch = 250 * time.Millisecond
)

type localFlags struct {
	nodes, basePort int
	ledgerd         string
	detach, stop    bool
	restart         string
}

func (a *app) clusterLocalCommand() *cobra.Command {
	var f localFlags
	c := &cobra.Command{
		Use:   "local DIRECTORY",
		Short: "Run a real cluster on this machine, for trying out",
		Long: `local runs a cluster of real ledgerd processes on the loopback interface, with certificates, a secret and a data directory each, all in
DIRECTORY, and stops them at Ctrl-C. A directory that holds such a cluster goes on where it was; with more --nodes than it has, new ones
join. Kill nodes, pause them, change their settings (DIRECTORY/n1/ledgerd.yaml): a node that ends is reported and left alone, and
--restart starts it again, from another terminal.

All nodes share this machine and its disk: this shows how a cluster behaves and protects nothing. Unix only.`,
		Example: `  ledgerctl cluster local ./try
  ledgerctl cluster local --nodes 5 --detach ./try
  ledgerctl cluster local --restart 2 ./try
  ledgerctl cluster local --stop ./try`,
		Args: exactly(1, "one directory"),
		RunE: func(c *cobra.Command, args []string) error {
			if f.stop && (f.restart != "" || f.detach) || f.restart != "" && f.detach {
				return usage("--detach, --stop and --restart do not go together")
			}
			if f.nodes < 0 || f.nodes > localcluster.MaxNodes {
				return usage("--nodes %d: want 1 to %d", f.nodes, localcluster.MaxNodes)
			}
			err := a.clusterLocal(c.Context(), args[0], f)
			if errors.Is(err, localcluster.ErrUnsupported) {
				return fmt.Errorf("%w; this is %s", err, runtime.GOOS)
			}
			return err
		},
	}
	c.Flags().IntVar(&f.nodes, "nodes", 0, "how many nodes (default: as many as there are, or 3)")
	c.Flags().IntVar(&f.basePort, "base-port", 0, "first port of the first node; the next begins 10 higher (default: any free ports, which are remembered)")
	c.Flags().StringVar(&f.ledgerd, "ledgerd", "", "`PATH` of ledgerd (default: beside ledgerctl, else in PATH)")
	c.Flags().BoolVar(&f.detach, "detach", false, "leave the nodes running in the background")
	c.Flags().BoolVar(&f.stop, "stop", false, "stop the nodes that run in DIRECTORY")
	c.Flags().StringVar(&f.restart, "restart", "", "stop node `N` if it runs, and start it")
	return c
}

func (a *app) clusterLocal(ctx context.Context, dir string, f localFlags) error {
	if f.stop {
		c, err := localcluster.Existing(dir, "")
		if err != nil {
			return err
		}
		return a.stopLocal(ctx, c)
	}
	ledgerd, err := findLedgerd(f.ledgerd)
	if err != nil {
		return err
	}
	if f.restart != "" {
		return a.restartLocal(ctx, dir, ledgerd, f.restart)
	}
	c, err := localcluster.Open(dir, localcluster.Options{Nodes: f.nodes, BasePort: f.basePort, Ledgerd: ledgerd})
	if err != nil {
		return err
	}
	// From before the first process: one that is started is one that is stopped.
	ctx, release := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer release()
	processes, err := a.startLocal(ctx, c)
	if err != nil {
		// Not under ctx, which may be why.
		_, serr := c.Stop(context.WithoutCancel(ctx), started(processes)...)
		return errors.Join(err, serr)
	}
	if err := a.printLocal(c, processes, f.detach); err != nil || f.detach {
		return err
	}
	a.watchLocal(ctx, c, processes)
	release() // a second signal ends us at once; the nodes can be stopped with --stop
	return a.stopLocal(context.WithoutCancel(ctx), c)
}

// findLedgerd looks for the daemon that belongs to this ledgerctl.
func findLedgerd(path string) (string, error) {
	if path != "" {
		abs, err := filepath.Abs(path)
		if err != nil {
			return "", err
		}
		if _, err := exec.LookPath(abs); err != nil {
			return "", fmt.Errorf("--ledgerd: %w", err)
		}
		return abs, nil
	}
	if exe, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(exe), "ledgerd")
		if _, err := exec.LookPath(beside); err == nil {
			return beside, nil
		}
	}
	found, err := exec.LookPath("ledgerd")
	if err != nil {
		return "", hinted(errors.New("ledgerd is neither beside ledgerctl nor in PATH"), "Build both (`go build -o bin/ ./cmd/...`), or name it with --ledgerd PATH.")
	}
	return filepath.Abs(found)
}

// startLocal starts all nodes and waits until all are ready. Those that were started are returned with an error too.
func (a *app) startLocal(ctx context.Context, c *localcluster.Cluster) ([]*localcluster.Process, error) {
	var processes []*localcluster.Process
	for _, n := range c.Nodes() {
		p, err := c.Start(n)
		if p != nil {
			processes = append(processes, p)
		}
		if errors.Is(err, localcluster.ErrRunning) {
			err = hinted(err, "`ledgerctl cluster local --stop "+c.Dir()+"` stops all nodes.")
		}
		if err != nil {
			return processes, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, localStart)
	defer cancel()
	if err := c.Await(ctx, processes); err != nil {
		return processes, err
	}
	return processes, awaitMembers(ctx, c)
}

// awaitMembers waits until there is a leader and every node is what it is to become: one that joined votes only after it has kept up for a
// while, and until then its vote is missing when another one ends.
func awaitMembers(ctx context.Context, c *localcluster.Cluster) error {
	for saw := "nothing"; ; {
		for _, n := range c.Nodes() {
			x, err := askLocal(ctx, n)
			switch {
			case err != nil:
				saw = err.Error()
			case x.Leader == "" || x.Leader != x.AnsweredBy: // only the leader knows who is to become what
				saw = n.Name + " does not lead"
			case slices.ContainsFunc(x.Members, func(m client.Member) bool { return m.BecomesVoter && !m.Voter }):
				saw = "a node does not vote yet"
			default:
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the nodes run, and are no cluster yet: %w; last seen: %s", ctx.Err(), saw)
		case <-time.After(localWatch):
		}
	}
}

func askLocal(ctx context.Context, n localcluster.Node) (*client.Cluster, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	k, err := client.Dial(n.GRPC, client.Options{StateDir: "-"})
	if err != nil {
		return nil, err
	}
	defer k.Close()
	return k.Cluster(ctx)
}

func started(processes []*localcluster.Process) (nodes []localcluster.Node) {
	for _, p := range processes {
		nodes = append(nodes, p.Node)
	}
	return nodes
}

func (a *app) restartLocal(ctx context.Context, dir, ledgerd, name string) error {
	c, err := localcluster.Existing(dir, ledgerd)
	if err != nil {
		return err
	}
	n, err := c.Find(name)
	if err != nil {
		return usage("--restart: %v", err)
	}
	if _, err := c.Stop(ctx, n); err != nil {
		return err
	}
	p, err := c.Start(n)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, localStart)
	defer cancel()
	if err := c.Await(ctx, []*localcluster.Process{p}); err != nil {
		return err // it is left running: it may only have to wait for the others
	}
	return a.printLocal(c, []*localcluster.Process{p}, true)
}

func (a *app) stopLocal(ctx context.Context, c *localcluster.Cluster) error {
	names, err := c.Stop(ctx, c.Nodes()...)
	switch {
	case a.json():
		return errors.Join(err, a.printJSON(map[string]any{"stopped": orEmpty(names)}))
	case len(names) == 0:
		fmt.Fprintln(a.stdout, "No node was running.")
	default:
		fmt.Fprintf(a.stdout, "Stopped %s.\n", strings.Join(names, ", "))
	}
	return err
}

type localNodeView struct {
	Name string `json:"name"`
	PID  int    `json:"pid"`
	GRPC string `json:"grpc"`
	HTTP string `json:"http"`
	Peer string `json:"peer"`
	Log  string `json:"log"`
}

// printLocal shows where the nodes are and what to do with them.
func (a *app) printLocal(c *localcluster.Cluster, processes []*localcluster.Process, detached bool) error {
	var views []localNodeView
	rows := [][]string{{"NODE", "PID", "GRPC", "HTTP", "PEER", "LOG"}}
	for _, p := range processes {
		v := localNodeView{p.Node.Name, p.Pid(), p.Node.GRPC, p.Node.HTTP, p.Node.Peer, c.Log(p.Node)}
		views = append(views, v)
		rows = append(rows, []string{v.Name, fmt.Sprint(v.PID), v.GRPC, v.HTTP, v.Peer, v.Log})
	}
	if a.json() {
		return a.printJSON(map[string]any{"directory": c.Dir(), "nodes": views})
	}
	if err := table(a.stdout, rows); err != nil {
		return err
	}
	var addresses []string
	for _, n := range c.Nodes() {
		addresses = append(addresses, n.GRPC)
	}
	last := processes[len(processes)-1]
	fmt.Fprintf(a.stdout, `
Any node takes any call; a client that knows all of them goes on when one is gone. What to try:

  export LEDGER=%[1]s
  ledgerctl cluster status
  ledgerctl run --job hello --output hello.txt -- sh -c 'date > hello.txt'
  kill -9 %[2]d                                    # and record again
  ledgerctl cluster local --restart %[3]s %[4]s
`, strings.Join(addresses, ","), last.Pid(), strings.TrimPrefix(last.Node.Name, "n"), c.Dir())
	if detached {
		fmt.Fprintf(a.stdout, "  ledgerctl cluster local --stop %s\n", c.Dir())
	} else {
		fmt.Fprintln(a.stdout, "\nCtrl-C stops all nodes. Warnings of the nodes follow; everything is in their logs.")
	}
	return nil
}

// watchLocal reports nodes that end or come back, and what they warn of, until ctx ends or none is left.
func (a *app) watchLocal(ctx context.Context, c *localcluster.Cluster, processes []*localcluster.Process) {
	pids, logs := map[string]int{}, map[string]*follower{}
	for _, p := range processes {
		pids[p.Node.Name], logs[p.Node.Name] = p.Pid(), followEnd(c.Log(p.Node))
	}
	say := func(n localcluster.Node, format string, args ...any) {
		a.note("%s | %s", n.Name, plain(fmt.Sprintf(format, args...)))
	}
	ticker := time.NewTicker(localWatch)
	defer ticker.Stop()
	for {
		left := 0
		for _, n := range c.Nodes() {
			for _, line := range logs[n.Name].lines() {
				if strings.Contains(line, "level=WARN") || strings.Contains(line, "level=ERROR") {
					say(n, "%s", line)
				}
			}
			pid, err := c.Running(n)
			if err != nil {
				say(n, "%v", err)
				continue
			}
			if pid != 0 {
				left++
			}
			if before := pids[n.Name]; pid != before {
				pids[n.Name] = pid
				if pid != 0 {
					say(n, "process %d runs", pid)
				} else {
					say(n, "process %d ended%s; start it again: ledgerctl cluster local --restart %s %s", before, howEnded(processes, before), n.Name[1:], c.Dir())
				}
			}
		}
		if left == 0 {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// howEnded is known of processes that are our children.
func howEnded(processes []*localcluster.Process, pid int) string {
	for _, p := range processes {
		if p.Pid() == pid {
			select {
			case <-p.Done():
				return " (" + p.How() + ")"
			case <-time.After(time.Second): // the lock is gone before the process is reaped
			}
		}
	}
	return ""
}

// follower reads what is appended to a file, line by line.
type follower struct {
	path   string
	offset int64
	part   string
}

// followEnd begins at the end of what is there.
func followEnd(path string) *follower {
	f := &follower{path: path}
	if i, err := os.Stat(path); err == nil {
		f.offset = i.Size()
	}
	return f
}

// maxFollow bounds what is read at once: a node that says more than this in a moment is not read by anybody.
const maxFollow = 64 << 10

// lines returns the whole lines that came since the last call. A file that cannot be read has none: this is a convenience.
func (f *follower) lines() []string {
	file, err := os.Open(f.path)
	if err != nil {
		return nil
	}
	defer file.Close()
	b := make([]byte, maxFollow)
	n, err := file.ReadAt(b, f.offset)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil
	}
	f.offset += int64(n)
	all := strings.Split(f.part+string(b[:n]), "\n")
	f.part = all[len(all)-1]
	if len(f.part) > maxFollow {
		f.part = ""
	}
	return all[:len(all)-1]
}
