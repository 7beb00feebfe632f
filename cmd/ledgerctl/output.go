package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// checkedWriter remembers that a write failed: an answer that nobody got is no success, whichever line of it was lost.
type checkedWriter struct {
	io.Writer
	err error
}

func (w *checkedWriter) Write(b []byte) (int, error) {
	n, err := w.Writer.Write(b)
	if err != nil && w.err == nil {
		w.err = err
	}
	return n, err
}

// printJSON writes v as indented JSON to the standard output.
func (a *app) printJSON(v any) error {
	e := json.NewEncoder(a.stdout)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// orEmpty is a list as JSON has it: never null.
func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

// table writes rows in columns; the first row is the header.
func table(w io.Writer, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(t, strings.Join(row, "\t"))
	}
	return t.Flush()
}

// note tells the user something on the standard error stream, where it does not get into data.
func (a *app) note(format string, args ...any) { fmt.Fprintf(a.stderr, format+"\n", args...) }

// noteOnce is note for what need not be said again: an input is hashed before and after a run.
func (a *app) noteOnce(format string, args ...any) {
	if s := fmt.Sprintf(format, args...); !a.noted[s] {
		a.noted[s] = true
		a.note("%s", s)
	}
}

// timeText writes microseconds since the epoch as RFC 3339 in UTC; "" if not stated.
func timeText(us int64) string {
	if us == 0 {
		return ""
	}
	return time.UnixMicro(us).UTC().Format("2006-01-02T15:04:05.000000Z07:00")
}

// parseTime reads an RFC 3339 time with offset, or a bare date, which is UTC; microseconds since the epoch.
func parseTime(s string) (int64, error) {
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t.UnixMicro(), nil
	}
	if t, err := time.Parse(time.DateOnly, s); err == nil {
		return t.UnixMicro(), nil
	}
	return 0, usage("time %q is neither RFC 3339 (2026-08-01T09:30:00+02:00) nor a date (2026-08-01)", s)
}

// plain makes text from a ledger safe for a terminal: a recorded name must not move the cursor or colour the screen.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7f && r < 0xa0 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
			return '\uFFFD'
		}
		return r
	}, s)
}

// count writes "1 input" and "2 inputs".
func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	if strings.HasSuffix(what, "y") {
		what = strings.TrimSuffix(what, "y") + "ie"
	}
	return fmt.Sprintf("%d %ss", n, what)
}
