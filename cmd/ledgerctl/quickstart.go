package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/provledger/provledger/client"
	"github.com/provledger/provledger/client/artifact"
	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/client/receipt"
	"github.com/provledger/provledger/cmd/ledgerctl/wdbc"
)

const quickstartDir = "ledger-quickstart"

// Files that quickstart leaves behind, beside what the pipeline reads and writes.
const (
	quickPolicy   = "ledger.policy"
	quickTrain    = "data/train.csv"
	quickOriginal = "data/train.original.csv"
)

func (a *app) quickstartCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "quickstart [DIRECTORY]",
		Short: "Record a real pipeline, prove its model, and see what a flipped byte does",
		Long: `quickstart makes a new directory (default ./` + quickstartDir + `) with an embedded ledger and a real data set, the Wisconsin diagnostic breast
cancer data (CC BY 4.0; source and licence are written beside it), and runs a pipeline on it: ingest, split, train, evaluate, each stage
a process of its own under ` + "`ledgerctl run`" + `. It shows the lineage of the model, writes receipts and a trust policy, verifies them with the
ledger closed, flips one byte of the training data and shows what verifies then and what does not. No network, no daemon.`,
		Example: "  ledgerctl quickstart\n  ledgerctl quickstart /tmp/try -o json",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usage("quickstart takes at most one directory")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			dir := quickstartDir
			if len(args) == 1 {
				dir = args[0]
			}
			return a.quickstart(c.Context(), dir)
		},
	}
}

// tour is a quickstart at work: it talks to the reader and remembers what it found.
type tour struct {
	*app
	out  io.Writer // what the reader sees
	exe  string
	seen quickResult
}

// quickResult is the summary for -o json.
type quickResult struct {
	Directory string          `json:"directory"`
	Seconds   float64         `json:"seconds"`
	Model     string          `json:"model"` // digest
	Metrics   json.RawMessage `json:"metrics"`
	Entries   int             `json:"entries"` // that the model's lineage rests on
	Before    []quickVerdict  `json:"before"`  // offline verdicts before the byte was flipped
	After     []quickVerdict  `json:"after"`
}

type quickVerdict struct {
	File    string          `json:"file"`
	Receipt string          `json:"receipt"`
	Outcome receipt.Outcome `json:"outcome"`
	Why     string          `json:"why,omitempty"`
}

func (a *app) quickstart(ctx context.Context, dir string) error {
	start := time.Now()
	t := &tour{app: a, out: a.stdout}
	if a.json() {
		t.out = a.stderr
	}
	var err error
	if t.exe, err = os.Executable(); err != nil {
		return err
	}
	if err := t.prepare(dir); err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{t.pipeline, t.lineage, t.prove, t.tamper} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	t.seen.Seconds = time.Since(start).Seconds()
	t.next(dir)
	if a.json() {
		return a.printJSON(t.seen)
	}
	return nil
}

func (t *tour) say(format string, args ...any) { fmt.Fprintf(t.out, format+"\n", args...) }

// prepare makes the directory and goes there, so that everything is recorded under short names.
func (t *tour) prepare(dir string) error {
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return fmt.Errorf("%s is not empty; remove it, or name another: ledgerctl quickstart DIRECTORY", dir)
	}
	// Before anything is made: half a tour is of no use.
	full, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if _, err := t.probe(filepath.Join(full, defaultLedger)); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(dir, "data"), 0o755); err != nil {
		return err
	}
	if err := os.Chdir(dir); err != nil {
		return err
	}
	if t.seen.Directory, err = os.Getwd(); err != nil {
		return err
	}
	if err := os.WriteFile("raw.csv", wdbc.Data, 0o644); err != nil {
		return err
	}
	if err := os.WriteFile("raw.NOTICE", wdbc.Notice, 0o644); err != nil {
		return err
	}
	// Its own ledger, whatever the environment says, and whatever is remembered of an earlier one in this place; its key is trusted on first use.
	t.ledger, t.log, t.trust, t.newLedger = defaultLedger, client.DefaultLog, "", true
	t.say("1. A real data set in %s: Breast Cancer Wisconsin (Diagnostic), 569 rows, CC BY 4.0 (see raw.NOTICE).", t.seen.Directory)
	return nil
}

// pipeline runs the stages through the same code as `ledgerctl run`.
func (t *tour) pipeline(ctx context.Context) error {
	t.say("\n2. A pipeline of four stages. Each is a process of its own, wrapped so that what it reads and writes is recorded:\n")
	// The stages and what run says about them are shown to the reader.
	a := *t.app
	a.stdin, a.stdout, a.stderr, a.output = strings.NewReader(""), t.out, t.out, "table"
	for i := range pipeline {
		s := &pipeline[i]
		t.say("$ %s", s.text())
		if err := a.wrapped(ctx, s.flags(), t.exe, s.command()); err != nil {
			return fmt.Errorf("stage %s: %w", s.job, err)
		}
	}
	raw, err := os.ReadFile("metrics.json")
	if err != nil {
		return err
	}
	var m wdbc.Metrics
	if err := json.Unmarshal(raw, &m); err != nil {
		return err
	}
	t.seen.Metrics = raw
	t.say("\nThe model is right about %.1f %% of the %d test rows, area under the curve %.3f.", 100*m.Accuracy, m.Rows, m.AUC)
	return nil
}

func (t *tour) lineage(ctx context.Context) error {
	x, err := artifact.Hash(ctx, "model.json", artifact.Options{})
	if err != nil {
		return err
	}
	t.seen.Model = x.Digest.String()
	return t.withLedger(ctx, false, func(s *session) error {
		g, err := s.Trace(ctx, t.log, []client.Ref{{Digest: x.Digest}}, client.TraceOptions{})
		if err != nil {
			return err
		}
		t.seen.Entries = len(g.Entries)
		t.say("\n3. What the model was made from, every line verified:\n\n$ ledgerctl trace ./model.json")
		drawTree(t.out, g, lines(t.out))
		return nil
	})
}

// prove writes receipts and policy, closes the ledger and verifies without it.
func (t *tour) prove(ctx context.Context) error {
	if err := t.withLedger(ctx, false, func(s *session) error { return t.writeProofs(ctx, s) }); err != nil {
		return err
	}
	t.say("\n4. Receipts (model.receipt, metrics.receipt) and the log's key (%s) are written, the ledger is closed. They verify alone:\n", quickPolicy)
	result, err := t.verifyFile("model.json", "model.receipt")
	if err != nil {
		return err
	}
	t.say("$ ledgerctl verify model.json --receipt model.receipt --trust %s --require kind=run,role=output,job=train", quickPolicy)
	result.print(t.out)
	t.seen.Before, err = t.verdicts()
	if err != nil {
		return err
	}
	return t.expect(t.seen.Before, receipt.Verified)
}

func (t *tour) writeProofs(ctx context.Context, s *session) error {
	l, err := t.verifiedLog(ctx, s)
	if err != nil {
		return err
	}
	if err := os.WriteFile(quickPolicy, []byte(policyText(l.VKey)), 0o644); err != nil {
		return err
	}
	for _, name := range []string{"model", "metrics"} {
		arg, err := t.artifactArg(ctx, "./"+name+".json")
		if err != nil {
			return err
		}
		quiet := *t.app
		quiet.stdout, quiet.output = io.Discard, "table"
		if err := quiet.prove(ctx, s, arg, client.Selector{}, name+".receipt", false); err != nil {
			return err
		}
	}
	return nil
}

func (t *tour) verifyFile(file, from string) (*verification, error) {
	x, err := artifact.Hash(context.Background(), file, artifact.Options{})
	if err != nil {
		return nil, err
	}
	raw, err := readReceipt(from)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(quickPolicy)
	if err != nil {
		return nil, err
	}
	p, err := receipt.ParsePolicy(text)
	if err != nil {
		return nil, err
	}
	req := receipt.Require{}
	if file == "model.json" && from == "model.receipt" {
		req = receipt.Require{Kind: "run", Role: "output", Job: "train"}
	}
	r := receipt.VerifyFile(raw, p, []receipt.Subject{{Name: file, Digests: []lineage.Digest{x.Digest}}}, req)
	return &verification{Files: []string{file}, Receipt: from, Result: r}, nil
}

// verdicts verifies what the two receipts speak of.
func (t *tour) verdicts() ([]quickVerdict, error) {
	var list []quickVerdict
	for _, x := range [][2]string{
		{quickTrain, "model.receipt"}, {"model.json", "model.receipt"}, {"model.json", "metrics.receipt"}, {"data/test.csv", "metrics.receipt"},
		{"metrics.json", "metrics.receipt"},
	} {
		v, err := t.verifyFile(x[0], x[1])
		if err != nil {
			return nil, err
		}
		q := quickVerdict{File: x[0], Receipt: x[1], Outcome: v.Outcome}
		for _, c := range v.Checks {
			if c.Outcome != receipt.Verified {
				q.Why = c.Detail
			}
		}
		list = append(list, q)
	}
	return list, nil
}

// expect keeps the tour honest: it ends with an error if the training data do not get the verdict, or anything else is not verified.
func (t *tour) expect(list []quickVerdict, training receipt.Outcome) error {
	for _, v := range list {
		want := receipt.Verified
		if v.File == quickTrain {
			want = training
		}
		if v.Outcome != want {
			return &exitError{exitNotVerified, fmt.Errorf("%s with %s: %s, expected: %s (%s)", v.File, v.Receipt, v.Outcome, want, v.Why)}
		}
	}
	return nil
}

// tamper changes the last digit of one measurement in the training data.
func (t *tour) tamper(context.Context) error {
	raw, err := os.ReadFile(quickTrain)
	if err != nil {
		return err
	}
	if err := os.WriteFile(quickOriginal, raw, 0o644); err != nil {
		return err
	}
	row := bytes.IndexByte(raw, '\n') + 1
	comma := row + bytes.IndexByte(raw[row:], ',')
	if row == 0 || comma <= row {
		return errors.New("the training data have no rows")
	}
	before := string(raw[row:comma])
	raw[comma-1] ^= 1 // a digit stays a digit
	if err := os.WriteFile(quickTrain, raw, 0o644); err != nil {
		return err
	}
	t.say("\n5. Somebody improves the training data: one byte of %s, byte %d, is flipped (%s becomes %s; the original is %s).\n",
		quickTrain, comma-1, before, raw[row:comma], quickOriginal)
	if t.seen.After, err = t.verdicts(); err != nil {
		return err
	}
	rows := [][]string{{"FILE", "RECEIPT", "NOW"}}
	for _, v := range t.seen.After {
		now := headlines[v.Outcome]
		if v.Why != "" {
			now += " (" + v.Why + ")"
		}
		rows = append(rows, []string{v.File, v.Receipt, now})
	}
	if err := table(t.out, rows); err != nil {
		return err
	}
	t.say(`
The file is not what the model was trained on, and the receipt shows it. The model, its metrics, the test data and what the ledger says
about them are untouched.`)
	return t.expect(t.seen.After, receipt.NotVerified)
}

func (t *tour) next(dir string) {
	t.say(`
Done in %.1f s. What to do next:

  cd %s
  ledgerctl verify data/train.csv --receipt model.receipt --trust %s    # exit code 1
  mv %s %s                                    # and it verifies again
  ledgerctl entry list                  # what was recorded
  ledgerctl entry get 3                 # with parameters, git commit, host, times
  ledgerctl trace ./metrics.json -o json
  ledgerctl checkpoint --verify         # the ledger extends what was remembered of it

For your own pipeline, put it in front of a command:

  ledgerctl run --job train --input train.csv,purpose=training-data --output model.bin,kind=model -- python train.py

(Not installed? go install ./cmd/ledgerctl, or write go run ./cmd/ledgerctl for ledgerctl.)`, t.seen.Seconds, dir, quickPolicy, quickOriginal, quickTrain)
}
