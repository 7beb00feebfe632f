package main

import (
	"context"
	"os/exec"
	"strings"
	"time"
)

// gitTimeout bounds what a look at the repository may cost: a huge work tree must not hold up a run.
const gitTimeout = 10 * time.Second

// gitState is the commit of the directory in which a command runs, and whether tracked files differ from it.
type gitState struct {
	Commit string `json:"commit"`
	Dirty  bool   `json:"dirty"`
	Remote string `json:"remote,omitempty"`
}

// git looks at the current directory; nil if it is in no repository, or git does not answer. It never fails a run.
func (r *redactor) git(ctx context.Context) *gitState {
	ctx, cancel := context.WithTimeout(ctx, gitTimeout)
	defer cancel()
	ask := func(args ...string) (string, bool) {
		// No optional locks: we must not disturb a git that the user runs at the same time.
		out, err := exec.CommandContext(ctx, "git", append([]string{"--no-optional-locks"}, args...)...).Output()
		return strings.TrimSpace(string(out)), err == nil
	}
	commit, ok := ask("rev-parse", "--verify", "HEAD")
	if !ok {
		return nil
	}
	s := &gitState{Commit: commit}
	status, ok := ask("status", "--porcelain", "--untracked-files=no")
	s.Dirty = !ok || status != "" // what cannot be told is not called clean
	if remote, ok := ask("config", "--get", "remote.origin.url"); ok {
		s.Remote = r.text(remote)
	}
	return s
}
