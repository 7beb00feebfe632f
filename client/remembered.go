package client

// RememberedAt returns what is remembered of the ledger at a target without asking it: the origins of its logs by name; none if nothing is
// remembered. stateDir and target are as in [Options].
func RememberedAt(stateDir, target string) (map[string]string, error) {
	m := newMemory(stateDir)
	if on, err := m.on(); !on || err != nil {
		return nil, err
	}
	p, err := m.pin(target)
	if err != nil {
		return nil, err
	}
	return p.Logs, nil
}

// RememberedOf returns the checkpoint that is remembered of a log, by its origin, without asking anybody; ok is false if none is. stateDir is as
// in [Options].
func RememberedOf(stateDir, origin string) (cp Checkpoint, ok bool, err error) {
	m := newMemory(stateDir)
	if on, err := m.on(); !on || err != nil {
		return Checkpoint{}, false, err
	}
	r, err := m.record(origin)
	if err != nil || r == nil {
		return Checkpoint{}, false, err
	}
	cp, err = m.checkpoint(r)
	return cp, err == nil, err
}
