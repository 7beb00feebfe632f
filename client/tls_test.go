package client

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

func certificate(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

// A server that is not the trusted one, or speaks no TLS, is an error at once and not when the time is up; the right one answers.
func TestWrongServerIsNotRetried(t *testing.T) {
	pair, trusted := certificate(t)
	_, stranger := certificate(t)
	l := newLedger(t)
	listen := func(o ...grpc.ServerOption) string {
		port, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := l.n.NewServer(o...)
		go func() { _ = s.Serve(port) }()
		t.Cleanup(s.Stop)
		return port.Addr().String()
	}
	secure, plain := listen(grpc.Creds(credentials.NewServerTLSFromCert(&pair))), listen()
	for _, x := range []struct {
		name, address string
		roots         *x509.CertPool
		want          string
	}{
		{"right", secure, trusted, ""},
		{"unknown authority", secure, stranger, "certificate"},
		{"no TLS", plain, trusted, "TLS"},
	} {
		c, err := Dial(x.address, Options{StateDir: noMemory, TLS: &tls.Config{RootCAs: x.roots}, Timeout: 20 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		_, err = c.CreateLog(t.Context(), "x")
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("%s: %v", x.name, took)
		}
		if x.want == "" && err != nil || x.want != "" && (err == nil || !strings.Contains(err.Error(), x.want) || !errors.Is(err, ErrNotApplied)) {
			t.Errorf("%s: %v", x.name, err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	// Without TLS to a port that has it: the error is what ledgerctl's hint goes by.
	c, err := Dial(secure, Options{StateDir: noMemory, Timeout: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = c.Log(t.Context(), "main")
	t.Log(err)
	if err == nil || !strings.Contains(err.Error(), "server preface") {
		t.Errorf("no TLS to a TLS port: %v", err)
	}
}
