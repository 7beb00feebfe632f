package raftlog

import "time"

// Segments returns the number of live segments.
func (s *Store) Segments() int {
	s.view.RLock()
	defer s.view.RUnlock()
	return len(s.segs)
}

// now is the time, if anybody wants to know how long writes take.
func (s *Store) now() time.Time {
	if s.observe == nil {
		return time.Time{}
	}
	return time.Now()
}

// took tells how long a write took.
func (s *Store) took(start time.Time) {
	if s.observe != nil {
		s.observe(time.Since(start))
	}
}
