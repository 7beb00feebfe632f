package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"time"
)

// Exit codes of shells for a command that could not be started.
const (
	exitNotExecutable = 126
	exitNotFound      = 127
)

// execution is what a command did.
type execution struct {
	start, end time.Time
	code       int    // as a shell reports it: 128+n if signal n ended the command
	signal     string // name of that signal
}

// catchSignals keeps signals from ending us while there is something to record that is not in the spool yet.
func catchSignals() (signals chan os.Signal, release func()) {
	signals = make(chan os.Signal, 16)
	for _, s := range forwarded() {
		if !signal.Ignored(s) { // as under nohup: then the command ignores it too
			signal.Notify(signals, s)
		}
	}
	return signals, func() { signal.Stop(signals) }
}

// cutShort returns a context that ends with the next signal: hashing may take long, and whoever is in a hurry gets a shorter record
// instead of none.
func (a *app) cutShort(ctx context.Context, signals <-chan os.Signal) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		select {
		case <-signals:
			a.note("ledgerctl: interrupted: recording the run without what is not hashed yet")
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// execute runs a command to its end with our streams. Signals that we get go to it, so that stopping us stops the work, which is then
// recorded as stopped. An error means that the command never ran.
func (a *app) execute(path string, argv, env []string, signals <-chan os.Signal) (*execution, error) {
	c := exec.Command(path, argv[1:]...)
	c.Args = argv
	c.Env = env
	c.Stdin, c.Stdout, c.Stderr = a.stdin, a.stdout, a.stderr
	if w, ok := a.stdout.(*checkedWriter); ok {
		c.Stdout = w.Writer // the stream itself, not a pipe to us: whether the command can write is its own business
	}
	x := &execution{start: time.Now()}
	if err := c.Start(); err != nil {
		return nil, &exitError{startCode(err), err}
	}
	attended := isTerminal(a.stdin)
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	for {
		select {
		case s := <-signals:
			if !attended || !fromTerminal(s) {
				deliver(c, s)
			}
		case err := <-ended:
			x.end = time.Now()
			if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
				a.note("warning: %v", err) // a stream was not copied to its end; how the command ended still counts
			}
			x.code, x.signal = exitStatus(c.ProcessState)
			for len(signals) > 0 {
				<-signals // it was for the command, as Ctrl-C is
			}
			return x, nil
		}
	}
}

// startCode is what a shell says of a command that does not start.
func startCode(err error) int {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, exec.ErrNotFound) {
		return exitNotFound
	}
	return exitNotExecutable
}
