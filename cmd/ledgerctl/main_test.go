package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/provledger/provledger/client"
	"github.com/provledger/provledger/client/lineage"
)

func TestParseTarget(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	for _, d := range []string{"plain", "host:7600", "with:colon"} {
		if err := os.Mkdir(d, 0o755); err != nil && !strings.Contains(d, ":") {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile("file", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		t.Fatal(err)
	}
	for in, want := range map[string]string{ // address, "/" for a directory, "" for an error
		"localhost:7600": "localhost:7600", "127.0.0.1:7600": "127.0.0.1:7600", "[::1]:7600": "[::1]:7600", "ledger.example.org:443": "ledger.example.org:443",
		"a:7600,b:7600": "a:7600,b:7600", "b:7600, a:7600": "b:7600,a:7600", "a:7600,b": "", "a:7600,": "", "a:7600,http://b:1": "",
		"host:7600": "host:7600", // an address, whatever lies around
		"./.ledger": "/", ".ledger": "/", ".": "/", "..": "/", "plain": "/", "./host:7600": "/", "a/b": "/", "/nowhere/x": "/",
		"": "", "localhost": "", "nowhere": "", "host:0": "", "host:99999": "", "host:http": "", "http://host:1": "", "file": "", "./file": "",
	} {
		got, err := parseTarget(in)
		switch {
		case want == "":
			var e *exitError
			if !errors.As(err, &e) || e.code != exitUsage {
				t.Errorf("%q: %v, %v; want wrong usage", in, got, err)
			}
		case err != nil:
			t.Errorf("%q: %v", in, err)
		case want == "/":
			if got.address != "" || !filepath.IsAbs(got.directory) {
				t.Errorf("%q: %+v, want a directory", in, got)
			}
		case got.address != want || got.directory != "":
			t.Errorf("%q: %+v, want %s", in, got, want)
		}
	}
	// One ledger has one name, however it is reached.
	if err := os.Symlink("plain", "link"); err == nil {
		got, err := parseTarget("./link")
		if want := filepath.Join(real, "plain"); err != nil || got.directory != want {
			t.Errorf("link: %v, %v, want %s", got, err, want)
		}
	}
}

func TestParseSpec(t *testing.T) {
	sum := strings.Repeat("ab", 32)
	for in, want := range map[string]spec{
		"a.csv":                  {path: "a.csv"},
		"a,b.csv,purpose=labels": {path: "a,b.csv", purpose: lineage.Labels, kind: lineage.Dataset},
		"a,colour=red":           {path: "a,colour=red"},
		"m,name=n,version=1,kind=model,digest=sha256:" + sum: {path: "m", kind: lineage.Model, name: lineage.Name{Name: "n", Version: "1"},
			digest: lineage.Digest{Algorithm: lineage.SHA256, Value: strings.Repeat("\xab", 32)}},
		"s3://b/k,version=v": {uri: "s3://b/k", name: lineage.Name{Version: "v"}},
		`C:\data\x.csv`:      {path: `C:\data\x.csv`},
	} {
		got, err := parseSpec("--input", in)
		if err != nil || *got != want {
			t.Errorf("%q: %+v, %v; want %+v", in, got, err, want)
		}
	}
	for _, in := range []string{"", ",purpose=labels", "a,purpose=fun", "a,kind=thing", "a,digest=abc", "a,digest=md5:d41d8cd98f00b204e9800998ecf8427e", "a,version=1"} {
		if got, err := parseSpec("--input", in); err == nil {
			t.Errorf("%q: accepted as %+v", in, got)
		}
	}
}

func TestRemote(t *testing.T) {
	x, err := parseSpec("--input", "https://me:pw@example.org:8080/a/b?sig=s,purpose=raw-data,version=7")
	if err != nil {
		t.Fatal(err)
	}
	f := x.remote(lineage.Input)
	want := lineage.Name{Namespace: "https://" + redacted + "@example.org:8080", Name: "a/b?sig=" + redacted, Version: "7"}
	if f.Name != want || f.Known != lineage.NameOnly || strings.Contains(f.URI, "pw") || strings.Contains(f.URI, "=s") {
		t.Errorf("%+v", f)
	}
}

func TestIsPath(t *testing.T) {
	for in, want := range map[string]bool{
		"./a": true, "../a": true, "/a": true, ".": true, "..": true, "a": false, "a/b": false, "org/model:3": false, ".hidden": false, "sha256:00": false,
	} {
		if got := isPath(in); got != want {
			t.Errorf("%q: %v", in, got)
		}
	}
}

func TestPlain(t *testing.T) {
	for in, want := range map[string]string{
		"train.csv": "train.csv", "modèle": "modèle", "\x1b[31mred": "\uFFFD[31mred", "a\rb": "a\uFFFDb", "a\u202eb": "a\uFFFDb", "\u009b2J": "\uFFFD2J",
	} {
		if got := plain(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func entryOf(index uint64, kind lineage.Kind, action uint8, role lineage.Role, d lineage.Digest) *client.Entry {
	return &client.Entry{Index: index, Leaf: &lineage.Leaf{Kind: kind, Action: action, References: []lineage.LeafReference{{Role: role, Identity: d}}}}
}

func TestChoose(t *testing.T) {
	d := lineage.Digest{Algorithm: lineage.SHA256, Value: strings.Repeat("a", 32)}
	other := lineage.Digest{Algorithm: lineage.DirHash, Value: strings.Repeat("b", 32)}
	made := func(i uint64, s lineage.RunState) *client.Entry {
		return entryOf(i, lineage.KindRun, uint8(s), lineage.Output, d)
	}
	used := func(i uint64) *client.Entry {
		return entryOf(i, lineage.KindRun, uint8(lineage.RunComplete), lineage.Input, d)
	}
	registered := func(i uint64) *client.Entry {
		return entryOf(i, lineage.KindLifecycle, uint8(lineage.Registered), lineage.Subject, d)
	}
	approved := entryOf(20, lineage.KindLifecycle, uint8(lineage.Approved), lineage.Subject, d)
	member := entryOf(1, lineage.KindRun, uint8(lineage.RunComplete), lineage.Output, other)
	for _, c := range []struct {
		name    string
		entries []*client.Entry
		want    uint64
	}{
		{"newest registration", []*client.Entry{registered(1), registered(2), made(3, lineage.RunComplete), used(4)}, 2},
		{"newest run that made it", []*client.Entry{made(1, lineage.RunComplete), made(2, lineage.RunComplete), used(3), approved}, 2},
		{"complete before failed", []*client.Entry{made(1, lineage.RunComplete), made(2, lineage.RunFail)}, 1},
		{"failed before used", []*client.Entry{made(1, lineage.RunFail), used(2)}, 1},
		{"by directory before used", []*client.Entry{member, used(2)}, 1},
		{"whatever there is", []*client.Entry{used(1), used(2)}, 2},
	} {
		got, ok := choose(c.entries, func(x lineage.Digest) bool { return x == d })
		if !ok || got.entry.Index != c.want {
			t.Errorf("%s: entry %d (%s), want %d", c.name, got.entry.Index, got.why, c.want)
		}
	}
	if _, ok := choose(nil, nil); ok {
		t.Error("chosen from nothing")
	}
}

// ctl runs the program in this process.
func ctl(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), args, strings.NewReader(""), &out, &errs)
	return code, out.String(), errs.String()
}

func mustCtl(t *testing.T, args ...string) string {
	t.Helper()
	code, stdout, stderr := ctl(t, args...)
	if code != exitOK {
		t.Fatalf("ledgerctl %s: exit code %d\n%s%s", strings.Join(args, " "), code, stdout, stderr)
	}
	return stdout
}

// files lists everything below a directory with sizes and times: what a command that must touch nothing may not change.
func snapshot(t *testing.T, dir string) (list []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		list = append(list, fmt.Sprint(p, info.Size(), info.ModTime()))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// Offline verification opens no connection, no ledger and no state directory, whatever the environment says.
func TestOfflineTouchesNothing(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	t.Setenv("LEDGER", "")
	t.Setenv(stateVariable, filepath.Join(dir, "state"))
	if err := os.WriteFile("model.bin", []byte("weights"), 0o644); err != nil {
		t.Fatal(err)
	}
	mustCtl(t, "record", "--lifecycle", "registered", "./model.bin", "--name", "m", "--receipt", "m.receipt")
	if err := os.WriteFile("p", []byte(mustCtl(t, "key", "show", "--policy")), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{".ledger", "state"} {
		if err := os.RemoveAll(d); err != nil {
			t.Fatal(err)
		}
	}

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var calls atomic.Int64
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			calls.Add(1)
			_ = c.Close()
		}
	}()
	before := snapshot(t, dir)
	for _, ledger := range []string{"", l.Addr().String(), "./.ledger"} {
		t.Setenv("LEDGER", ledger)
		for _, o := range []string{"table", "json"} {
			mustCtl(t, "verify", "model.bin", "--receipt", "m.receipt", "--trust", "p", "-o", o)
		}
		if code, out, _ := ctl(t, "verify", "p", "--receipt", "m.receipt", "--trust", "p"); code != exitNotVerified {
			t.Errorf("another file: exit code %d\n%s", code, out)
		}
	}
	if n := calls.Load(); n != 0 {
		t.Errorf("%d connections", n)
	}
	if after := snapshot(t, dir); !slices.Equal(before, after) {
		t.Errorf("files before:\n%s\nafter:\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
	// That the listener would have noticed.
	if code, _, _ := ctl(t, "verify", "model.bin", "--ledger", l.Addr().String(), "--timeout", "200ms"); code != exitUnknown || calls.Load() == 0 {
		t.Errorf("online: exit code %d, %d connections", code, calls.Load())
	}
}

// What offline verification is made of cannot reach a network or a ledger.
func TestOfflineImports(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "verify.go", nil, parser.ImportsOnly)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range f.Imports {
		path := strings.Trim(i.Path.Value, `"`)
		const client = "github.com/provledger/provledger/client/"
		if strings.Contains(path, "grpc") || path == "net" || strings.HasPrefix(path, "net/") ||
			strings.Contains(path, "provledger") && path != client+"lineage" && path != client+"receipt" {
			t.Errorf("verify.go imports %s", path)
		}
	}
}

// The JSON of verify is read by programs.
func TestVerifyJSON(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	t.Setenv("LEDGER", "")
	t.Setenv(stateVariable, filepath.Join(dir, "state"))
	if err := os.WriteFile("model.bin", []byte("weights"), 0o644); err != nil {
		t.Fatal(err)
	}
	mustCtl(t, "record", "--lifecycle", "registered", "./model.bin", "--kind", "model", "--name", "m", "--receipt", "m.receipt")
	if err := os.WriteFile("p", []byte(mustCtl(t, "key", "show", "--policy")), 0o644); err != nil {
		t.Fatal(err)
	}
	var all struct {
		Outcome string
		Results []json.RawMessage
	}
	var v struct {
		Outcome string
		Checks  []struct{ Name, Outcome, Detail string }
		// NotChecked is never null: an empty list would say that everything was checked.
		NotChecked []string
		Facts      struct{ Kind, Action, Principal, RecordedAt string }
		Matches    []struct {
			Subject   string
			Reference int
		}
	}
	if err := json.Unmarshal([]byte(mustCtl(t, "verify", "model.bin", "--receipt", "m.receipt", "--trust", "p", "-o", "json")), &all); err != nil {
		t.Fatal(err)
	}
	if all.Outcome != "verified" || len(all.Results) != 1 {
		t.Fatalf("%+v", all)
	}
	if err := json.Unmarshal(all.Results[0], &v); err != nil {
		t.Fatal(err)
	}
	if v.Outcome != "verified" || len(v.NotChecked) == 0 || v.Facts.Kind != "lifecycle" || v.Facts.Action != "registered" || len(v.Matches) != 1 {
		t.Errorf("%+v", v)
	}
	var made []string
	for _, c := range v.Checks {
		made = append(made, c.Name)
		if c.Outcome != "verified" || c.Detail == "" {
			t.Errorf("%+v", c)
		}
	}
	for _, want := range []string{"receipt", "leaf", "origin", "log-key", "checkpoint-signature", "inclusion", "body", "subject"} {
		if !slices.Contains(made, want) {
			t.Errorf("no check %s in %v", want, made)
		}
	}
	if at, err := time.Parse(time.RFC3339, v.Facts.RecordedAt); err != nil || time.Since(at) > time.Hour {
		t.Errorf("recorded at %q: %v", v.Facts.RecordedAt, err)
	}
}

// An answer that nobody can read is no success.
func TestOutputThatCannotBeWritten(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	t.Setenv("LEDGER", "")
	t.Setenv(stateVariable, filepath.Join(dir, "state"))
	if err := os.WriteFile("model.bin", []byte("weights"), 0o644); err != nil {
		t.Fatal(err)
	}
	mustCtl(t, "record", "--lifecycle", "registered", "./model.bin", "--name", "m")
	mustCtl(t, "prove", "./model.bin", "--out", "r")
	for _, args := range [][]string{
		{"verify", "model.bin"}, {"verify", "model.bin", "-o", "json"}, {"trace", "./model.bin"}, {"entry", "get", "1"}, {"entry", "list"}, {"log", "list"},
		{"checkpoint"}, {"version"}, {"key", "show"}, {"--help"},
	} {
		var errs bytes.Buffer
		if code := run(t.Context(), args, strings.NewReader(""), fullDisk{}, &errs); code != exitUnknown || !strings.Contains(errs.String(), "no space") {
			t.Errorf("%v: exit code %d, %s", args, code, errs.String())
		}
	}
}

// fullDisk is /dev/full.
type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

// Every verb explains itself with an example, and takes the global flags.
func TestEveryVerbHasAnExample(t *testing.T) {
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Hidden || c.Name() == "help" {
			return
		}
		if c.Short == "" || !strings.Contains(c.Example, "ledgerctl") {
			t.Errorf("%s: short %q, example %q", c.CommandPath(), c.Short, c.Example)
		}
		if c.Args == nil && c.RunE == nil {
			t.Errorf("%s does nothing", c.CommandPath())
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk((&app{}).root())
}

func TestDeliveryCode(t *testing.T) {
	in := func(err error) error { return &undelivered{"spool/x.json", err} }
	for name, c := range map[string]struct {
		err  error
		want int
	}{
		"unreachable":      {in(status.Error(codes.Unavailable, "")), exitSpooled},
		"disk full":        {in(status.Error(codes.ResourceExhausted, "")), exitSpooled},
		"slow":             {in(context.DeadlineExceeded), exitSpooled},
		"busy directory":   {in(busyError{errors.New("x")}), exitSpooled},
		"untrusted":        {in(&client.UntrustedError{Log: "main", Err: client.ErrFork}), exitNotVerified},
		"refused":          {in(status.Error(codes.InvalidArgument, "")), exitUnknown},
		"invalid":          {in(&lineage.FieldError{Path: "x", Reason: "y"}), exitUnknown},
		"taken":            {in(status.Error(codes.AlreadyExists, "")), exitUnknown},
		"not even spooled": {&undelivered{"", status.Error(codes.Unavailable, "")}, exitUnknown},
	} {
		if got := deliveryCode(c.err); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}

// What is being written, or was left by a crash, is not a spool file yet, and is not touched.
func TestSpoolOrder(t *testing.T) {
	s := spool{filepath.Join(t.TempDir(), "spool")}
	to := target{directory: t.TempDir()}
	var ids []lineage.ID
	for range 3 {
		id := lineage.NewID()
		ids = append([]lineage.ID{id}, ids...) // written newest first
	}
	for _, id := range ids {
		if _, err := s.put(to, "main", &lineage.Event{ID: id, Kind: lineage.KindRun, Action: uint8(lineage.RunComplete), RunID: id}); err != nil {
			t.Fatal(err)
		}
	}
	half := filepath.Join(s.dir, temporaryPrefix+"1")
	if err := os.WriteFile(half, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	files, bad, err := s.list()
	if err != nil || len(bad) != 0 || len(files) != 3 {
		t.Fatalf("%d files, %v, %v", len(files), bad, err)
	}
	for i := range files {
		if want := ids[len(ids)-1-i]; files[i].event.ID != want || files[i].to != to || files[i].log != "main" {
			t.Errorf("file %d is %+v, want event %s", i, files[i], want)
		}
	}
	if _, err := os.Stat(half); err != nil {
		t.Error(err)
	}
}

// Whoever interrupts the hashing after the command gets a shorter record, which says what is missing.
func TestCutShort(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	for _, name := range []string{"in", "out"} {
		if err := os.WriteFile(name, []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var stderr bytes.Buffer
	a := &app{stderr: &stderr, noted: map[string]bool{}, ledger: "./.ledger", log: "main", stateDir: filepath.Join(dir, "state")}
	r, err := a.newRun(&runFlags{job: "j", inputs: []string{"in"}, outputs: []string{"out"}, untouched: true}, []string{"cmd"})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.before(t.Context()); err != nil {
		t.Fatal(err)
	}
	signals := make(chan os.Signal, 1)
	ctx, done := a.cutShort(t.Context(), signals)
	defer done()
	signals <- os.Interrupt
	<-ctx.Done()
	now := time.Now()
	r.after(ctx, &execution{start: now, end: now})
	if !r.incomplete || len(r.doc.Unchecked) != 1 || len(r.doc.Missing) != 1 || len(r.doc.Changed) != 0 {
		t.Errorf("%+v\n%s", r.doc, stderr.String())
	}
	if len(r.event.References) != 1 || r.event.References[0].Known != lineage.Computed {
		t.Errorf("%+v", r.event.References)
	}
	if err := fits(r.event); err != nil {
		t.Error(err)
	}
	var e *exitError
	if err := r.exit(nil); !errors.As(err, &e) || e.code != exitUnknown {
		t.Errorf("exit: %v", err)
	}
}

// A run that cannot be recorded is refused before it starts, not after hours of work.
func TestRehearsal(t *testing.T) {
	t.Chdir(t.TempDir())
	a := &app{stderr: &bytes.Buffer{}, noted: map[string]bool{}, ledger: "./.ledger", log: "main"}
	var many []string
	for i := range lineage.MaxReferences + 1 {
		many = append(many, fmt.Sprintf("file%d", i))
	}
	for name, c := range map[string]struct {
		f    runFlags
		argv []string
	}{
		"too many inputs":   {runFlags{job: "j", inputs: many}, []string{"x"}},
		"leaf too large":    {runFlags{job: "j", inputs: withNames(many[:lineage.MaxReferences])}, []string{"x"}},
		"long command line": {runFlags{job: "j"}, []string{"x", strings.Repeat("y", maxSaid)}},
		"bad job":           {runFlags{job: "j\n"}, []string{"x"}},
		"own parent":        {runFlags{job: "j", runID: "01980000-0000-7000-8000-000000000001", parentRunID: "01980000-0000-7000-8000-000000000001"}, []string{"x"}},
	} {
		_, err := a.newRun(&c.f, c.argv)
		var e *exitError
		if !errors.As(err, &e) || e.code != exitUsage {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := a.newRun(&runFlags{job: "j", noArgv: true}, []string{"x", strings.Repeat("y", maxSaid)}); err != nil {
		t.Errorf("long command line, not recorded: %v", err)
	}
}

func withNames(paths []string) (list []string) {
	for _, p := range paths {
		list = append(list, p+",name="+p)
	}
	return list
}

func TestDrawTree(t *testing.T) {
	at := time.Date(2026, 8, 1, 9, 0, 0, 0, time.UTC)
	g := &client.Graph{
		Start: []string{"sha256:aaaaaaaaaaaaaaaaaaaa"},
		Artifacts: []*client.Artifact{
			{ID: "sha256:aaaaaaaaaaaaaaaaaaaa", Names: []string{"m:1"}, Kind: "model"}, {ID: "sha256:bbbbbbbbbbbbbbbbbbbb", URI: "train.csv\x1b[2J"},
			{ID: "name:s3%3A%2F%2Fb/k/", Names: []string{"s3://b/k"}},
		},
		Runs: []*client.Run{{ID: "run:1", RunID: "1", Job: "train", State: "complete", Entries: []uint64{4}}},
		Edges: []client.Edge{
			{From: "sha256:aaaaaaaaaaaaaaaaaaaa", To: "run:1", Kind: client.GeneratedBy, Known: "computed"},
			{From: "run:1", To: "sha256:bbbbbbbbbbbbbbbbbbbb", Kind: client.Used, Purpose: "training-data", Known: "changed"},
			{From: "run:1", To: "name:s3%3A%2F%2Fb/k/", Kind: client.Used, Known: "name-only"},
		},
		Entries: []client.TraceEntry{{Index: 4, RecordedAt: at}},
	}
	var b bytes.Buffer
	drawTree(&b, g, unicodeLines)
	const want = "m:1  sha256:aaaaaaaaaaaa, model\n" +
		"└─ train  run 1, complete, entry 4, 2026-08-01T09:00:00Z\n" +
		"   ├─ train.csv\uFFFD[2J  sha256:bbbbbbbbbbbb, as training-data (changed)\n" +
		"   └─ s3://b/k  known by name only (name-only)\n"
	if b.String() != want {
		t.Errorf("\n%swant\n%s", b.String(), want)
	}
}
