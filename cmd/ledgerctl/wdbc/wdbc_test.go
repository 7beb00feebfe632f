package wdbc

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var parameters = Parameters{Iterations: 1500, LearningRate: 0.5, L2: 0.001}

// pipeline runs the four stages in a new directory and returns it.
func pipeline(t *testing.T) (dir string, m Metrics) {
	t.Helper()
	dir = t.TempDir()
	p := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(p("raw.csv"), Data, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, stage := range []func() error{
		func() error { return Ingest(p("raw.csv"), p("clean.csv")) },
		func() error { return Split(p("clean.csv"), p("train.csv"), p("test.csv"), 42, 0.2) },
		func() error { return Train(p("train.csv"), p("model.json"), parameters) },
		func() error { return Evaluate(p("model.json"), p("test.csv"), p("metrics.json")) },
	} {
		if err := stage(); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := os.ReadFile(p("metrics.json"))
	if err == nil {
		err = json.Unmarshal(raw, &m)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir, m
}

func TestPipeline(t *testing.T) {
	dir, m := pipeline(t)
	if m.Rows != 113 || m.Accuracy < 0.93 || m.Accuracy > 1 || m.AUC < 0.98 || m.AUC > 1 {
		t.Errorf("metrics %+v", m)
	}
	again, _ := pipeline(t)
	for _, name := range []string{"clean.csv", "train.csv", "test.csv", "model.json", "metrics.json"} {
		a, err1 := os.ReadFile(filepath.Join(dir, name))
		b, err2 := os.ReadFile(filepath.Join(again, name))
		if err1 != nil || err2 != nil || !bytes.Equal(a, b) {
			t.Errorf("%s differs between two runs (%v, %v)", name, err1, err2)
		}
	}
	// The digest is the same on every machine; change it only together with the pipeline.
	raw, err := os.ReadFile(filepath.Join(dir, "model.json"))
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(raw)
	const want = "b83dac255bfacf52e4ffed9bfa721609ecaf897f76727f5fff53cef70b6bb8bc"
	if got := hex.EncodeToString(sum[:]); got != want {
		t.Errorf("model.json is %s, want %s", got, want)
	}
}

// The numbers come from the publication's summary statistics.
func TestData(t *testing.T) {
	d, err := parseTable(Data)
	if err != nil {
		t.Fatal(err)
	}
	malignant := 0.0
	for _, y := range d.y {
		malignant += y
	}
	if len(d.x) != 569 || len(d.features) != 30 || malignant != 212 {
		t.Errorf("%d rows, %d features, %v malignant", len(d.x), len(d.features), malignant)
	}
	area := slices.Index(d.features, "mean_area")
	low, high := math.Inf(1), 0.0
	for _, x := range d.x {
		low, high = min(low, x[area]), max(high, x[area])
	}
	if low != 143.5 || high != 2501 {
		t.Errorf("mean area from %v to %v, published 143.5 to 2501", low, high)
	}
	if !bytes.Contains(Notice, []byte("10.24432/C5DW2B")) {
		t.Error("the notice does not name the source")
	}
}

func TestExp(t *testing.T) {
	for x := -40.0; x <= 40; x += 0.013 {
		if got, want := exp(x), math.Exp(x); math.Abs(got/want-1) > 1e-15 {
			t.Fatalf("exp(%v) = %v, package math has %v", x, got, want)
		}
	}
	for _, x := range []float64{-1e9, 1e9} {
		if p := 1 / (1 + exp(-x)); p != 0 && p != 1 && p > 1e-300 {
			t.Errorf("sigmoid(%v) = %v", x, p)
		}
	}
}

// The area under the curve against its definition: pairs in the right order.
func TestAUC(t *testing.T) {
	m := &Model{Features: []string{"a"}, Mean: []float64{0}, Scale: []float64{1}, Weights: []float64{1}}
	d := &table{features: m.Features}
	for i := range 200 {
		z := uint64(i) * 0x9e3779b97f4a7c15
		d.x = append(d.x, []float64{float64(z>>40%17) / 4}) // few values, many ties
		d.y = append(d.y, float64(z>>20%2))
	}
	pairs, sum := 0.0, 0.0
	for i := range d.x {
		for j := range d.x {
			if d.y[i] == 1 && d.y[j] == 0 {
				pairs++
				switch a, b := d.x[i][0], d.x[j][0]; {
				case a > b:
					sum++
				case a == b:
					sum += 0.5
				}
			}
		}
	}
	if got, want := m.evaluate(d).AUC, sum/pairs; math.Abs(got-want) > 1e-12 {
		t.Errorf("area %v, by pairs %v", got, want)
	}
}

func TestIngestRefuses(t *testing.T) {
	row := strings.Repeat("1,", 30) + "benign\n"
	header := strings.Repeat("f,", 30) + "diagnosis\n"
	for name, raw := range map[string]string{
		"empty": "", "header only": header, "no label": strings.Repeat("f,", 30) + "x\n" + row,
		"negative": header + "-" + row, "not a number": header + strings.Replace(row, "1", "NaN", 1), "text": header + strings.Replace(row, "1", "x", 1),
		"class": header + strings.Replace(row, "benign", "fine", 1), "short row": header + row[2:],
	} {
		if _, err := parseTable([]byte(raw)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	twice := filepath.Join(t.TempDir(), "raw.csv")
	if err := os.WriteFile(twice, []byte(header+row+row), 0o644); err != nil {
		t.Fatal(err)
	}
	clean := twice + ".clean"
	if err := Ingest(twice, clean); err != nil {
		t.Fatal(err)
	}
	if c, err := readTable(clean); err != nil || len(c.x) != 1 {
		t.Errorf("a repeated row stayed: %v", err)
	}
}
