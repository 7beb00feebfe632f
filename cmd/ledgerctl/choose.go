package main

import (
	"fmt"

	"github.com/provledger/provledger/client"
	"github.com/provledger/provledger/client/lineage"
)

// choice is the entry that stands for an artifact.
type choice struct {
	entry *client.Entry
	why   string
}

// choose picks the entry that says most about where an artifact comes from: its newest registration, else the newest run that generated it
// and completed, else any run that generated it, else whatever mentions it last. entries are in index order and all mention the artifact,
// some perhaps only as a member of a directory; is tells its identities. ok is false without entries.
func choose(entries []*client.Entry, is func(lineage.Digest) bool) (c choice, ok bool) {
	if len(entries) == 0 {
		return choice{}, false
	}
	const registered, completed, generated, member, mentioned = 4, 3, 2, 1, 0
	best := -1
	for _, e := range entries {
		rank := mentioned
		direct := roles(e, is)
		l := e.Leaf
		switch {
		case l.Kind == lineage.KindLifecycle && lineage.LifecycleVerb(l.Action) == lineage.Registered && direct[lineage.Subject]:
			rank = registered
		case l.Kind == lineage.KindRun && direct[lineage.Output] && lineage.RunState(l.Action) == lineage.RunComplete:
			rank = completed
		case l.Kind == lineage.KindRun && direct[lineage.Output]:
			rank = generated
		case l.Kind == lineage.KindRun && len(direct) == 0 && lineage.RunState(l.Action) == lineage.RunComplete && hasOutput(l):
			rank = member
		}
		if rank >= best {
			best, c.entry = rank, e
		}
	}
	c.why = [...]string{"the newest entry that mentions it", "the newest run that generated a directory with it", "the newest run that generated it, which did not complete",
		"the newest run that generated it", "its newest registration"}[best]
	if n := len(entries); n > 1 {
		c.why += fmt.Sprintf(" (of %d entries about it)", n)
	}
	return c, true
}

// roles returns the roles that an artifact has in an entry under an identity of its own.
func roles(e *client.Entry, is func(lineage.Digest) bool) map[lineage.Role]bool {
	found := map[lineage.Role]bool{}
	for i := range e.Leaf.References {
		f := &e.Leaf.References[i]
		if is(f.Identity) {
			found[f.Role] = true
			continue
		}
		for _, a := range f.Aliases {
			if is(a) {
				found[f.Role] = true
			}
		}
	}
	return found
}

func hasOutput(l *lineage.Leaf) bool {
	for i := range l.References {
		if l.References[i].Role == lineage.Output {
			return true
		}
	}
	return false
}
