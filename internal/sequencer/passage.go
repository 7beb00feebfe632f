package sequencer

import "time"

// Passage says when a request passed the stations of its way, for traces. A zero time: it did not get there, or its caller left
// before that was known.
type Passage struct {
	Log      uint32
	Events   int
	Attempts int       // commands that it was composed into
	Queued   time.Time // admitted
	Composed time.Time // into its last command, which is proposed now
	Decided  time.Time // the state machine has answered that command
	Done     time.Time // the caller has its answer
	Err      error     // that answer
}
