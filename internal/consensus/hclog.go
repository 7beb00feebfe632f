package consensus

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
)

// logger is an hclog.Logger, which raft wants, that writes to slog.
type logger struct {
	out   *slog.Logger
	name  string
	args  []any
	level *atomic.Int32 // an hclog.Level, shared by all that derive from one logger
	said  *repeats      // likewise
}

// repeatEvery is how often a message about a peer is logged that raft repeats all the time: of a peer that is down it
// says so several times a second, for as long as that lasts.
const repeatEvery = 10 * time.Second

// repeats remembers when what was said of which peer. Messages and peers are few.
type repeats struct {
	mu   sync.Mutex
	last map[string]said
}

type said struct {
	at      time.Time
	omitted int // since then
}

// again says whether to log msg about peer now, and how many of it were left out before.
func (r *repeats) again(msg, peer string) (omitted int, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	key, now := msg+"\x00"+peer, time.Now()
	s := r.last[key]
	if !s.at.IsZero() && now.Sub(s.at) < repeatEvery {
		s.omitted++
		r.last[key] = s
		return 0, false
	}
	r.last[key] = said{at: now}
	return s.omitted, true
}

var _ hclog.Logger = (*logger)(nil)

func newLogger(out *slog.Logger, level hclog.Level) *logger {
	l := &logger{out: out.With("component", "raft"), name: "raft", level: new(atomic.Int32), said: &repeats{last: map[string]said{}}}
	l.level.Store(int32(level))
	return l
}

// slogLevels maps the levels at which something is logged.
var slogLevels = map[hclog.Level]slog.Level{
	hclog.Trace: slog.LevelDebug - 4, hclog.Debug: slog.LevelDebug, hclog.Info: slog.LevelInfo,
	hclog.Warn: slog.LevelWarn, hclog.Error: slog.LevelError,
}

func (l *logger) enabled(level hclog.Level) bool {
	s, ok := slogLevels[level]
	return ok && level >= l.GetLevel() && l.out.Enabled(context.Background(), s)
}

func (l *logger) Log(level hclog.Level, msg string, args ...any) {
	if !l.enabled(level) {
		return
	}
	attrs := make([]any, len(args), len(args)+2)
	for i, a := range args {
		if f, ok := a.(hclog.Format); ok && len(f) > 0 { // hclog's deferred Sprintf
			a = fmt.Sprintf(fmt.Sprint(f[0]), f[1:]...)
		}
		attrs[i] = a
	}
	for i := 0; i+1 < len(attrs); i += 2 {
		if attrs[i] != "peer" {
			continue
		}
		omitted, ok := l.said.again(msg, fmt.Sprint(attrs[i+1]))
		if !ok {
			return
		}
		if omitted > 0 {
			attrs = append(attrs, "omitted", omitted)
		}
		break
	}
	l.out.Log(context.Background(), slogLevels[level], msg, attrs...)
}

func (l *logger) Trace(msg string, args ...any) { l.Log(hclog.Trace, msg, args...) }
func (l *logger) Debug(msg string, args ...any) { l.Log(hclog.Debug, msg, args...) }
func (l *logger) Info(msg string, args ...any)  { l.Log(hclog.Info, msg, args...) }
func (l *logger) Warn(msg string, args ...any)  { l.Log(hclog.Warn, msg, args...) }
func (l *logger) Error(msg string, args ...any) { l.Log(hclog.Error, msg, args...) }

func (l *logger) IsTrace() bool { return l.enabled(hclog.Trace) }
func (l *logger) IsDebug() bool { return l.enabled(hclog.Debug) }
func (l *logger) IsInfo() bool  { return l.enabled(hclog.Info) }
func (l *logger) IsWarn() bool  { return l.enabled(hclog.Warn) }
func (l *logger) IsError() bool { return l.enabled(hclog.Error) }

func (l *logger) ImpliedArgs() []any         { return l.args }
func (l *logger) Name() string               { return l.name }
func (l *logger) SetLevel(level hclog.Level) { l.level.Store(int32(level)) }
func (l *logger) GetLevel() hclog.Level      { return hclog.Level(l.level.Load()) }

func (l *logger) With(args ...any) hclog.Logger {
	return &logger{
		out: l.out.With(args...), name: l.name, level: l.level, said: l.said,
		args: append(l.args[:len(l.args):len(l.args)], args...),
	}
}

func (l *logger) Named(name string) hclog.Logger { return l.ResetNamed(l.name + "." + name) }

func (l *logger) ResetNamed(name string) hclog.Logger {
	n := *l
	n.name = name
	n.out = l.out.With("logger", name)
	return &n
}

func (l *logger) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return slog.NewLogLogger(l.out.Handler(), slog.LevelInfo)
}

func (l *logger) StandardWriter(o *hclog.StandardLoggerOptions) io.Writer {
	return l.StandardLogger(o).Writer()
}
