package httpapi_test

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/provledger/provledger/internal/httpapi"
)

func TestHandler(t *testing.T) {
	reg := prometheus.NewRegistry()
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: "test_total", Help: "A counter."})
	reg.MustRegister(c)
	c.Add(7)
	var ready error
	s := httptest.NewServer(httpapi.Handler(reg, func() error { return ready }))
	defer s.Close()
	get := func(method, path string) (int, string, http.Header) {
		req, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return r.StatusCode, string(b), r.Header
	}
	expect := func(method, path string, code int, text string) {
		t.Helper()
		if got, body, _ := get(method, path); got != code || !strings.Contains(body, text) {
			t.Errorf("%s %s: %d %q, want %d with %q", method, path, got, body, code, text)
		}
	}
	expect("GET", "/metrics", 200, "test_total 7")
	expect("GET", "/healthz", 200, "ok")
	expect("GET", "/readyz", 200, "ok")
	ready = errors.New("there is no leader")
	expect("GET", "/readyz", 503, "there is no leader")
	expect("GET", "/healthz", 200, "ok") // alive all the same: a restart would not help
	ready = nil
	expect("GET", "/readyz", 200, "ok") // and back, nothing is kept
	expect("POST", "/readyz", 405, "")
	expect("GET", "/", 404, "")
	if _, _, h := get("GET", "/readyz"); h.Get("Cache-Control") != "no-store" {
		t.Error("readiness may be cached")
	}
}

// A server without these limits is held open by any client that sends a byte a minute.
func TestServerHasLimits(t *testing.T) {
	s := httpapi.Server(http.NotFoundHandler())
	if s.ReadHeaderTimeout <= 0 || s.ReadTimeout <= 0 || s.WriteTimeout <= 0 || s.IdleTimeout <= 0 || s.MaxHeaderBytes <= 0 {
		t.Errorf("a limit is missing: %+v", s)
	}
}
