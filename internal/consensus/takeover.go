package consensus

import (
	"errors"
	"fmt"
	"slices"

	"github.com/hashicorp/raft"
)

// Takeover is what TakeOver did.
type Takeover struct {
	// Index and Term are those of the configuration entry that was appended.
	Index, Term uint64
	// Kept is the last index of the log, or of the machine if the log was empty, before it.
	Kept uint64
	// Before is the membership that the entry replaces, from index BeforeIndex.
	Before      []Server
	BeforeIndex uint64
}

// SoleVoter returns raft's encoding of the membership with one voter.
func SoleVoter(nodeID, address string) []byte {
	return raft.EncodeConfiguration(raft.Configuration{Servers: []raft.Server{
		{Suffrage: raft.Voter, ID: raft.ServerID(nodeID), Address: raft.ServerAddress(address)},
	}})
}

// Members decodes raft's encoding of a membership.
func Members(configuration []byte) ([]Server, error) {
	c, err := decodeConfiguration(configuration)
	if err != nil {
		return nil, err
	}
	servers := make([]Server, len(c.Servers))
	for i, s := range c.Servers {
		servers[i] = Server{ID: string(s.ID), Address: string(s.Address), Voter: s.Suffrage == raft.Voter}
	}
	return servers, nil
}

// LastMembership returns the newest membership that a stopped node knows of, committed or not, with its index: that of the machine's position d,
// or of a configuration entry in the log above.
func LastMembership(s Store, d Position) (servers []Server, index uint64, err error) {
	first, err := s.FirstIndex()
	if err != nil {
		return nil, 0, fmt.Errorf("consensus: first index of the log: %w", err)
	}
	last, err := s.LastIndex()
	if err != nil {
		return nil, 0, fmt.Errorf("consensus: last index of the log: %w", err)
	}
	configuration, index := d.Configuration, d.ConfigurationIndex
	for i := max(first, d.Index+1); last > 0 && i <= last; i++ {
		var l raft.Log
		if err := s.GetLog(i, &l); err != nil {
			return nil, 0, fmt.Errorf("consensus: log entry %d: %w", i, err)
		}
		if l.Type == raft.LogConfiguration {
			configuration, index = slices.Clone(l.Data), i
		}
	}
	servers, err = Members(configuration)
	if err != nil {
		return nil, 0, fmt.Errorf("%w: configuration of index %d: %w", ErrLogMismatch, index, err)
	}
	return servers, index, nil
}

// Tail calls fn with what the log of a stopped node holds above index for the machine: commands and configurations, committed or not. They are
// valid until fn returns. It returns the last index of the log.
func Tail(s Store, index uint64, fn func(Entry) error) (last uint64, err error) {
	if last, err = s.LastIndex(); err != nil {
		return 0, fmt.Errorf("consensus: last index of the log: %w", err)
	}
	for i := index + 1; i <= last; i++ {
		var l raft.Log
		if err := s.GetLog(i, &l); err != nil {
			return 0, fmt.Errorf("consensus: log entry %d: %w", i, err)
		}
		if l.Type != raft.LogCommand && l.Type != raft.LogConfiguration {
			continue
		}
		if err := fn(Entry{Index: l.Index, Term: l.Term, Configuration: l.Type == raft.LogConfiguration, Data: l.Data}); err != nil {
			return 0, err
		}
	}
	return last, nil
}

// TakeOver makes a stopped node the only voter of its cluster by appending a configuration entry to its log: for the loss of a majority, and
// to begin the log of a restored machine. It forgets nothing: every entry that the log has stays, and is committed by the node
// alone when it starts. The entry has a term above every one that this node has seen, so that it is a part of history like any other. d is the machine's durable position.
//
// raft.RecoverCluster would not do: it takes the membership of the stored snapshot, applies the log to a machine that it expects to be
// restored from that snapshot, and truncates the log. Here a snapshot has no content.
//
// It is safe as long as no majority of the membership before lives on: see docs/backup.md. An error wraps ErrLogMismatch when log and
// machine contradict each other, and ErrNotMember when the node is not in the membership that it would replace. before is told what is about to
// be written, and its error prevents it; it may be nil.
func TakeOver(s Store, d Position, nodeID, address string, before func(Takeover) error) (Takeover, error) {
	if nodeID == "" || address == "" {
		return Takeover{}, errors.New("consensus: a takeover needs node id and address")
	}
	last, err := s.LastIndex()
	if err != nil {
		return Takeover{}, fmt.Errorf("consensus: last index of the log: %w", err)
	}
	if err := checkLog(s, d); err != nil {
		return Takeover{}, err
	}
	t := Takeover{Kept: max(last, d.Index)} // an empty log continues where ResetLog has put it
	if t.Before, t.BeforeIndex, err = LastMembership(s, d); err != nil {
		return Takeover{}, err
	}
	if !slices.ContainsFunc(t.Before, func(m Server) bool { return m.ID == nodeID }) {
		return Takeover{}, fmt.Errorf("%w: %s is not in that of index %d", ErrNotMember, nodeID, t.BeforeIndex)
	}
	if t.Term, err = newestTerm(s, d, last); err != nil {
		return Takeover{}, err
	}
	t.Term++
	t.Index = t.Kept + 1
	if before != nil {
		if err := before(t); err != nil {
			return Takeover{}, err
		}
	}
	// The term first: raft expects no log entry of a term that the node has not reached. A crash in between leaves a higher term, which is
	// harmless.
	if err := s.SetUint64([]byte("CurrentTerm"), t.Term); err != nil {
		return Takeover{}, fmt.Errorf("consensus: write the term: %w", err)
	}
	entry := &raft.Log{Index: t.Index, Term: t.Term, Type: raft.LogConfiguration, Data: SoleVoter(nodeID, address)}
	if err := s.StoreLogs([]*raft.Log{entry}); err != nil {
		return Takeover{}, fmt.Errorf("consensus: write the configuration: %w", err)
	}
	return t, nil
}

// newestTerm returns the highest term that a stopped node knows of.
func newestTerm(s Store, d Position, last uint64) (uint64, error) {
	newest := d.Term
	for _, key := range []string{"CurrentTerm", "LastVoteTerm"} {
		switch term, err := s.GetUint64([]byte(key)); {
		case err == nil:
			newest = max(newest, term)
		case err.Error() != "not found": // the text by which raft recognises a key that was never set
			return 0, fmt.Errorf("consensus: %s: %w", key, err)
		}
	}
	if last > 0 {
		var l raft.Log
		if err := s.GetLog(last, &l); err != nil {
			return 0, fmt.Errorf("consensus: log entry %d: %w", last, err)
		}
		newest = max(newest, l.Term)
	}
	return newest, nil
}
