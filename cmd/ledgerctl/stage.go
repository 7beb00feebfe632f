package main

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/provledger/provledger/cmd/ledgerctl/wdbc"
)

// stageVerb is the hidden verb under which quickstart runs the stages of its pipeline, each as a process of its own.
const stageVerb = "quickstart-stage"

func (a *app) stageCommand() *cobra.Command {
	c := &cobra.Command{Use: stageVerb, Short: "Stages of the quickstart pipeline", Hidden: true, Args: exactly(0, "a stage"),
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	var seed uint64
	var share float64
	split := &cobra.Command{Use: "split CLEAN TRAIN TEST", Args: exactly(3, "three files"), RunE: func(_ *cobra.Command, f []string) error {
		return wdbc.Split(f[0], f[1], f[2], seed, share)
	}}
	split.Flags().Uint64Var(&seed, "seed", 0, "seed of the shuffle")
	split.Flags().Float64Var(&share, "test-share", 0.2, "part of the rows that is kept for the test")
	var p wdbc.Parameters
	train := &cobra.Command{Use: "train TRAIN MODEL", Args: exactly(2, "two files"), RunE: func(_ *cobra.Command, f []string) error {
		return wdbc.Train(f[0], f[1], p)
	}}
	train.Flags().IntVar(&p.Iterations, "iterations", 1000, "steps of the gradient descent")
	train.Flags().Float64Var(&p.LearningRate, "learning-rate", 0.5, "length of a step")
	train.Flags().Float64Var(&p.L2, "l2", 0, "penalty on large weights")
	c.AddCommand(
		&cobra.Command{Use: "ingest RAW CLEAN", Args: exactly(2, "two files"), RunE: func(_ *cobra.Command, f []string) error {
			return wdbc.Ingest(f[0], f[1])
		}},
		split, train,
		&cobra.Command{Use: "evaluate MODEL TEST METRICS", Args: exactly(3, "three files"), RunE: func(_ *cobra.Command, f []string) error {
			return wdbc.Evaluate(f[0], f[1], f[2])
		}},
	)
	return c
}

// stage is one stage of the pipeline, as `ledgerctl run` would be given it.
type stage struct {
	job             string
	inputs, outputs []string
	params          map[string]string // also the flags of the command
	metricsFile     string
	args            []string
}

var pipeline = []stage{
	{
		job: "ingest", inputs: []string{"raw.csv,purpose=raw-data,name=wdbc-raw,version=10.24432/C5DW2B"}, outputs: []string{"data/clean.csv,kind=dataset"},
		args: []string{"raw.csv", "data/clean.csv"},
	},
	{
		job: "split", inputs: []string{"data/clean.csv,kind=dataset"},
		outputs: []string{"data/train.csv,purpose=training-data", "data/test.csv,purpose=test-data"},
		params:  map[string]string{"seed": "42", "test-share": "0.2"}, args: []string{"data/clean.csv", "data/train.csv", "data/test.csv"},
	},
	{
		job: "train", inputs: []string{"data/train.csv,purpose=training-data"}, outputs: []string{"model.json,kind=model,name=wdbc-logreg,version=1"},
		params: map[string]string{"iterations": "1500", "learning-rate": "0.5", "l2": "0.001"}, args: []string{"data/train.csv", "model.json"},
	},
	{
		job: "evaluate", inputs: []string{"model.json,kind=model", "data/test.csv,purpose=test-data"}, outputs: []string{"metrics.json,purpose=report"},
		metricsFile: "metrics.json", args: []string{"model.json", "data/test.csv", "metrics.json"},
	},
}

// command is the command line of a stage.
func (s *stage) command() []string {
	argv := []string{"ledgerctl", stageVerb, s.job}
	for _, name := range sortedKeys(s.params) {
		argv = append(argv, "--"+name, s.params[name])
	}
	return append(argv, s.args...)
}

// flags are the flags of run for a stage.
func (s *stage) flags() *runFlags {
	f := &runFlags{job: s.job, inputs: s.inputs, outputs: s.outputs, metricsFile: s.metricsFile}
	for _, name := range sortedKeys(s.params) {
		f.params = append(f.params, name+"="+s.params[name])
	}
	return f
}

// text is the stage as a user would type it.
func (s *stage) text() string {
	t := "ledgerctl run --job " + s.job
	for _, x := range s.inputs {
		t += " --input " + x
	}
	for _, x := range s.outputs {
		t += " --output " + x
	}
	for _, name := range sortedKeys(s.params) {
		t += fmt.Sprintf(" --param %s=%s", name, s.params[name])
	}
	if s.metricsFile != "" {
		t += " --metrics-file " + s.metricsFile
	}
	for i, arg := range append([]string{"--"}, s.command()...) {
		if i > 0 && needsQuotes(arg) {
			arg = strconv.Quote(arg)
		}
		t += " " + arg
	}
	return t
}

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }

func needsQuotes(s string) bool { return s == "" || strings.ContainsAny(s, " \t\"'$&|;<>()*?[]#~`\\") }
