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
