package rpc

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// What is counted of a change: attempts elsewhere, attempts beyond the first, and how it ended when it ran out of time.
func TestChangesAreCounted(t *testing.T) {
	r := prometheus.NewRegistry()
	m := NewMetrics(r)
	m.attempted(0, true)
	m.attempted(1, false)
	m.attempted(2, false)
	m.ended(true)
	m.ended(false)
	m.ended(false)
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		got[f.GetName()] = f.Metric[0].Counter.GetValue()
	}
	for name, want := range map[string]float64{
		"provledger_forwarded_calls_total": 2, "provledger_forward_retries_total": 2, "provledger_calls_unknown_total": 1, "provledger_calls_not_applied_total": 2,
	} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
	var none *Metrics // a service without metrics
	none.attempted(1, false)
	none.ended(true)
}
