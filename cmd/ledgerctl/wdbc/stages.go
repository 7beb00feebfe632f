package wdbc

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
)

// Ingest checks every value of the raw table, drops repeated rows and writes all as numbers, in their shortest form.
func Ingest(raw, clean string) error {
	t, err := readTable(raw)
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	var rows []int
	for i := range t.x {
		if key := fmt.Sprint(t.x[i], t.y[i]); !seen[key] {
			seen[key] = true
			rows = append(rows, i)
		}
	}
	return t.pick(rows).write(clean)
}

// Split deals the rows into a training and a test table at random; the seed decides. testShare is the part that goes to the test table.
func Split(clean, train, test string, seed uint64, testShare float64) error {
	t, err := readTable(clean)
	if err != nil {
		return err
	}
	if testShare <= 0 || testShare >= 1 {
		return fmt.Errorf("test share %v is not between 0 and 1", testShare)
	}
	order := shuffled(len(t.x), seed)
	n := int(float64(len(order)) * testShare)
	if n == 0 || n == len(order) {
		return fmt.Errorf("%d rows are too few to split", len(order))
	}
	if err := t.pick(order[n:]).write(train); err != nil {
		return err
	}
	return t.pick(order[:n]).write(test)
}

// shuffled returns 0..n-1 in an order that the seed decides, now and with every later version of Go: Fisher-Yates over SplitMix64.
func shuffled(n int, seed uint64) []int {
	order := make([]int, n)
	for i := range order {
		order[i] = i
	}
	for i := n - 1; i > 0; i-- {
		seed += 0x9e3779b97f4a7c15
		z := seed
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		z ^= z >> 31
		j := int(z % uint64(i+1))
		order[i], order[j] = order[j], order[i]
	}
	return order
}

// Train fits a model to a table and writes it as JSON.
func Train(train, model string, p Parameters) error {
	t, err := readTable(train)
	if err != nil {
		return err
	}
	m, err := fit(t, p)
	if err != nil {
		return fmt.Errorf("%s: %w", train, err)
	}
	return writeJSON(model, m)
}

// Metrics are what Evaluate finds.
type Metrics struct {
	Accuracy  float64 `json:"accuracy"`
	AUC       float64 `json:"auc"` // area under the receiver operating characteristic
	Rows      int     `json:"rows"`
	Malignant int     `json:"malignant"`
}

// Evaluate applies a model to a table and writes the metrics as JSON.
func Evaluate(model, test, metrics string) error {
	raw, err := os.ReadFile(model)
	if err != nil {
		return err
	}
	var m Model
	if err := json.Unmarshal(raw, &m); err != nil {
		return fmt.Errorf("%s: %w", model, err)
	}
	t, err := readTable(test)
	if err != nil {
		return err
	}
	if !slices.Equal(m.Features, t.features) || len(m.Weights) != len(m.Features) || len(m.Mean) != len(m.Features) || len(m.Scale) != len(m.Features) {
		return errors.New("model and table have different features")
	}
	return writeJSON(metrics, m.evaluate(t))
}

func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}
