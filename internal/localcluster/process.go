package localcluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

const (
	// StopTimeout is longer than ledgerd takes to drain its calls and to flush its store; a node that still runs then is killed.
	StopTimeout = 60 * time.Second
	// poll is how often a file or a port is looked at again.
	poll = 20 * time.Millisecond
)

// ErrRunning is returned when a node is to be started that runs.
var ErrRunning = errors.New("is running already")

// Process is a node that this process started.
type Process struct {
	Node Node
	cmd  *exec.Cmd
	done chan struct{}
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Pid returns the process id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// How says how the process ended, as "exit status 1" or "signal: killed". Only after Done.
func (p *Process) How() string { return p.cmd.ProcessState.String() }

// Start starts a node in a session of its own, so that it goes on when this process ends and no terminal signals it.
//
// The pid file is locked and the lock is handed to the new process, which holds it as long as it lives, whatever it is. So the file never
// speaks of a process that has long ended and whose number another one got.
func (c *Cluster) Start(n Node) (*Process, error) {
	if err := c.prepare(n); err != nil {
		return nil, fmt.Errorf("%s: %w", n.Name, err)
	}
	pid, err := os.OpenFile(c.path(n, pidFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer pid.Close()
	if err := lock(pid); err != nil {
		return nil, fmt.Errorf("%s %w", n.Name, err)
	}
	if err := pid.Truncate(0); err != nil { // before there is another process
		return nil, err
	}
	log, err := os.OpenFile(c.Log(n), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(c.ledgerd, "--config", configFile)
	cmd.Dir = c.path(n, "")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{pid}
	cmd.SysProcAttr = detached()
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "LEDGERD_") { // the environment wins over the file, and is for another ledgerd
			cmd.Env = append(cmd.Env, kv)
		}
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", n.Name, err)
	}
	p := &Process{Node: n, cmd: cmd, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // how it ended is in ProcessState
		close(p.done)
	}()
	_, err = pid.WriteAt([]byte(strconv.Itoa(p.Pid())+"\n"), 0)
	return p, err
}

// lock takes the lock of a pid file. Who only looks holds it for an instant, so it is tried for a while.
func lock(pid *os.File) error {
	for deadline := time.Now().Add(10 * poll); ; time.Sleep(poll / 4) {
		free, err := tryLock(pid, true)
		if err != nil || free {
			return err
		}
		if time.Now().After(deadline) {
			return ErrRunning
		}
	}
}

// Running returns the process id of a node that runs, 0 of one that does not.
func (c *Cluster) Running(n Node) (int, error) {
	f, err := os.OpenFile(c.path(n, pidFile), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	free, err := tryLock(f, false)
	if err != nil || free {
		return 0, err
	}
	for deadline := time.Now().Add(10 * poll); ; time.Sleep(poll / 4) {
		b := make([]byte, 32)
		size, err := f.ReadAt(b, 0)
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(b[:size])))
		if err == nil && pid > 1 {
			return pid, nil
		}
		if time.Now().After(deadline) { // the file is empty only while a process is being started
			return 0, fmt.Errorf("%s: %q is no process id", f.Name(), b[:size])
		}
	}
}

// Stop asks the nodes that run to end and waits until they have. One that has not within StopTimeout is killed, which it survives, and
// the error says so. It returns the names of those that it stopped.
func (c *Cluster) Stop(ctx context.Context, nodes ...Node) (stopped []string, err error) {
	var waiting []Node
	for _, n := range nodes {
		pid, rerr := c.Running(n)
		if rerr != nil {
			err = errors.Join(err, rerr)
			continue
		}
		if pid != 0 {
			if serr := terminate(pid); serr != nil {
				err = errors.Join(err, fmt.Errorf("%s: %w", n.Name, serr))
				continue
			}
			waiting = append(waiting, n)
		}
	}
	deadline := time.Now().Add(StopTimeout)
	for _, n := range waiting {
		killed := false
		for {
			pid, rerr := c.Running(n)
			if rerr != nil {
				err = errors.Join(err, rerr)
				break
			}
			if pid == 0 {
				stopped = append(stopped, n.Name)
				break
			}
			if ctx.Err() != nil {
				return stopped, errors.Join(err, fmt.Errorf("%s still runs: %w", n.Name, ctx.Err()))
			}
			if !killed && time.Now().After(deadline) {
				killed = true
				err = errors.Join(err, fmt.Errorf("%s did not end within %v and was killed", n.Name, StopTimeout), kill(pid))
			}
			time.Sleep(poll)
		}
	}
	return stopped, err
}

// Ready reports whether a node says that it can do its work: it is a member, it knows a leader, and it has caught up.
func (c *Cluster) Ready(ctx context.Context, n Node) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.HTTP+"/readyz", nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// Await waits until all of the processes are ready. The error names the first that ended, with the end of its log, or those that are missing
// when ctx ends.
func (c *Cluster) Await(ctx context.Context, processes []*Process) error {
	ready := make([]bool, len(processes))
	for {
		var missing []string
		for i, p := range processes {
			select {
			case <-p.Done():
				return fmt.Errorf("%s ended: %s\n%s", p.Node.Name, p.How(), c.tail(p.Node))
			default:
			}
			if !ready[i] {
				ready[i] = c.Ready(ctx, p.Node)
			}
			if !ready[i] {
				missing = append(missing, p.Node.Name)
			}
		}
		if len(missing) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s not ready: %w; see %s", strings.Join(missing, ", "), ctx.Err(), c.path(Node{Name: missing[0]}, logFile))
		case <-time.After(poll):
		}
	}
}

// tail is the last lines of a node's log.
func (c *Cluster) tail(n Node) string {
	const lines, most = 5, 8 << 10
	b, err := os.ReadFile(c.Log(n))
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(b[max(0, len(b)-most):])), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
