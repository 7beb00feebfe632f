// Package wdbc is the pipeline behind `ledgerctl quickstart`: it turns a real data set into a tested model in four stages that
// read and write files.
//
// The data are the 569 samples of "Breast Cancer Wisconsin (Diagnostic)" (see NOTICE for source and licence), embedded in the binary so that
// the first run needs no network. The model is a logistic regression. The same input gives the same model, byte for byte, on every
// machine: sums run in one order, no product is fused into an addition, and exp is our own (that of package math is written in assembly
// for some processors and differs in the last bit).
package wdbc

import (
	"bytes"
	_ "embed" // the data set
	"encoding/csv"
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
)

// Data is the data set as CSV: a header, 30 features and the column "diagnosis" (malignant or benign).
//
//go:embed wdbc.csv
var Data []byte

// Notice names source, licence and changes of the data set.
//
//go:embed NOTICE
var Notice []byte

// The last column has the class: in the raw table as a word, in the tables that Ingest and Split write as a number.
const (
	rawLabel   = "diagnosis" // malignant, benign
	cleanLabel = "malignant" // 1, 0
)

var classes = map[string]map[string]float64{
	rawLabel:   {"malignant": 1, "benign": 0},
	cleanLabel: {"1": 1, "0": 0},
}

// table is a data set in memory. A row's class is 1 for malignant: what the model looks for.
type table struct {
	features []string
	x        [][]float64
	y        []float64
}

func readTable(path string) (*table, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	t, err := parseTable(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return t, nil
}

func parseTable(raw []byte) (*table, error) {
	records, err := csv.NewReader(bytes.NewReader(raw)).ReadAll()
	if err != nil {
		return nil, err
	}
	if len(records) < 2 {
		return nil, errors.New("no rows")
	}
	last := len(records[0]) - 1
	label := records[0][max(last, 0)]
	if last < 1 || classes[label] == nil {
		return nil, fmt.Errorf("the last column must be %q or %q", rawLabel, cleanLabel)
	}
	t := &table{features: records[0][:last]}
	for i, record := range records[1:] {
		row := make([]float64, last)
		for j := range row {
			v, err := strconv.ParseFloat(record[j], 64)
			if err != nil || math.IsInf(v, 0) || math.IsNaN(v) || v < 0 {
				return nil, fmt.Errorf("row %d: %s is %q, not a measurement", i+1, t.features[j], record[j])
			}
			row[j] = v
		}
		class, ok := classes[label][record[last]]
		if !ok {
			return nil, fmt.Errorf("row %d: %q is no %s", i+1, record[last], label)
		}
		t.x, t.y = append(t.x, row), append(t.y, class)
	}
	return t, nil
}

func (t *table) write(path string) error {
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	record := append(append([]string(nil), t.features...), cleanLabel)
	if err := w.Write(record); err != nil {
		return err
	}
	for i, row := range t.x {
		for j, v := range row {
			record[j] = strconv.FormatFloat(v, 'g', -1, 64)
		}
		record[len(row)] = strconv.FormatFloat(t.y[i], 'g', -1, 64)
		if err := w.Write(record); err != nil {
			return err
		}
	}
	w.Flush()
	return os.WriteFile(path, b.Bytes(), 0o644)
}

// pick returns the rows with the given numbers.
func (t *table) pick(rows []int) *table {
	p := &table{features: t.features}
	for _, i := range rows {
		p.x, p.y = append(p.x, t.x[i]), append(p.y, t.y[i])
	}
	return p
}
