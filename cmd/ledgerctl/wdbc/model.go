package wdbc

import (
	"cmp"
	"errors"
	"math"
	"slices"
)

// Parameters of the training.
type Parameters struct {
	Iterations   int
	LearningRate float64
	L2           float64 // strength of the penalty on large weights
}

// Model is a logistic regression on standardised features: it gives the probability that a sample is malignant.
type Model struct {
	Features []string  `json:"features"`
	Mean     []float64 `json:"mean"`
	Scale    []float64 `json:"scale"`
	Weights  []float64 `json:"weights"`
	Bias     float64   `json:"bias"`
}

// Every product below stands in a float64 conversion: it forces a rounding, without which a compiler may fuse product and sum into one
// instruction on some processors and the digits differ.

func fit(t *table, p Parameters) (*Model, error) {
	if p.Iterations < 1 || p.LearningRate <= 0 || p.L2 < 0 {
		return nil, errors.New("iterations and learning rate must be positive, L2 not negative")
	}
	m := standardise(t)
	rows := make([][]float64, len(t.x))
	for i, x := range t.x {
		rows[i] = m.scaled(x)
	}
	n := float64(len(rows))
	gradient := make([]float64, len(m.Weights))
	for range p.Iterations {
		clear(gradient)
		var bias float64
		for i, z := range rows {
			d := m.probability(z) - t.y[i]
			bias += d
			for j, v := range z {
				gradient[j] += float64(d * v)
			}
		}
		for j, g := range gradient {
			m.Weights[j] -= float64(p.LearningRate * (g/n + float64(p.L2*m.Weights[j])))
		}
		m.Bias -= float64(p.LearningRate * bias / n)
	}
	return m, nil
}

// standardise returns a model with zero weights that knows mean and standard deviation of each feature.
func standardise(t *table) *Model {
	k := len(t.features)
	m := &Model{Features: t.features, Mean: make([]float64, k), Scale: make([]float64, k), Weights: make([]float64, k)}
	n := float64(len(t.x))
	for j := range k {
		var sum, squares float64
		for _, x := range t.x {
			sum += x[j]
		}
		m.Mean[j] = sum / n
		for _, x := range t.x {
			d := x[j] - m.Mean[j]
			squares += float64(d * d)
		}
		m.Scale[j] = math.Sqrt(squares / n)
		if m.Scale[j] == 0 {
			m.Scale[j] = 1 // a constant feature says nothing, and stays 0 after the mean is taken off
		}
	}
	return m
}

func (m *Model) scaled(x []float64) []float64 {
	z := make([]float64, len(x))
	for j, v := range x {
		z[j] = (v - m.Mean[j]) / m.Scale[j]
	}
	return z
}

func (m *Model) probability(z []float64) float64 {
	s := m.Bias
	for j, v := range z {
		s += float64(m.Weights[j] * v)
	}
	return 1 / (1 + exp(-s))
}

// exp is e^x within a few units in the last place, by operations whose result IEEE 754 fixes: x = k ln 2 + r, and a Taylor series in r.
func exp(x float64) float64 {
	const (
		ln2High = 6.93147180369123816490e-01 // ln 2 in two parts, so that k*ln2High is exact
		ln2Low  = 1.90821492927058770002e-10
		terms   = 14 // r <= 0.35: the next term is below 1e-18
		most    = 700
	)
	x = max(-most, min(most, x)) // beyond, a probability is 0 or 1 to the last bit
	k := math.Floor(float64(x/math.Ln2) + 0.5)
	r := x - float64(k*ln2High) - float64(k*ln2Low)
	sum := 1.0
	for i := terms; i > 0; i-- {
		sum = 1 + float64(float64(r*sum)/float64(i))
	}
	return math.Ldexp(sum, int(k))
}

func (m *Model) evaluate(t *table) Metrics {
	type scored struct{ p, y float64 }
	rows := make([]scored, len(t.x))
	right, positive := 0, 0
	for i, x := range t.x {
		rows[i] = scored{m.probability(m.scaled(x)), t.y[i]}
		if (rows[i].p >= 0.5) == (t.y[i] == 1) {
			right++
		}
		positive += int(t.y[i])
	}
	slices.SortFunc(rows, func(a, b scored) int { return cmp.Compare(a.p, b.p) })
	// The area is the share of (malignant, benign) pairs in the right order, ties counting half: here in halves, so that it stays whole.
	halves, below := 0, 0
	for i := 0; i < len(rows); {
		j, benign := i, 0
		for ; j < len(rows) && rows[j].p == rows[i].p; j++ {
			benign += 1 - int(rows[j].y)
		}
		halves += (j - i - benign) * (2*below + benign)
		below += benign
		i = j
	}
	r := Metrics{Accuracy: float64(right) / float64(len(rows)), Rows: len(rows), Malignant: positive}
	if pairs := positive * (len(rows) - positive); pairs > 0 {
		r.AUC = float64(halves) / float64(2*pairs)
	}
	return r
}
