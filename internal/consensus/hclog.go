package consensus

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"
)

// logger is an hclog.Logger, which raft wants, that writes to slog.
type logger struct {
	out   *slog.Logger
	name  string
	args  []any
	level *atomic.Int32 // an hclog.Level, shared by all that derive from one logger
}

var _ hclog.Logger = (*logger)(nil)

func newLogger(out *slog.Logger, level hclog.Level) *logger {
	l := &logger{out: out.With("component", "raft"), name: "raft", level: new(atomic.Int32)}
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
	attrs := make([]any, len(args))
	for i, a := range args {
		if f, ok := a.(hclog.Format); ok && len(f) > 0 { // hclog's deferred Sprintf
			a = fmt.Sprintf(fmt.Sprint(f[0]), f[1:]...)
		}
		attrs[i] = a
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
		out: l.out.With(args...), name: l.name, level: l.level,
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
