// Package tlsfile keeps a certificate, its key and the authorities to trust as fresh as the files that hold them.
//
// Certificates end, so whoever issues them replaces the files, and a node must not be restarted for that. A new set of files is taken
// only whole: a certificate whose key has not been written yet, or a file that does not parse, leaves the set that was good. Connections
// that are open stay on what they were made with.
package tlsfile

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// lookEvery is how often the files are looked at: a replaced certificate has days to take effect, a revoked authority has not.
	lookEvery = 10 * time.Second
	// maxFileBytes is far above a bundle of many authorities (the web's, 140 of them, is 220 KB).
	maxFileBytes = 4 << 20
	// warnBefore the end of the certificate, once a warnEvery: what renews certificates by itself does it earlier.
	warnBefore = 7 * 24 * time.Hour
	warnEvery  = 24 * time.Hour
)

// Files is a certificate with its key, and optionally the authorities that the other side's must chain to. Its methods may be called from
// several goroutines.
type Files struct {
	cert, key, ca string
	logger        *slog.Logger
	now           func() time.Time

	mu     sync.Mutex // of reading
	seen   [3]stamp   // what the files looked like when they were last read, well or not
	warned time.Time

	set atomic.Pointer[set]
}

// set is what one reading gave. It is never changed.
type set struct {
	certificate *tls.Certificate
	roots       *x509.CertPool
}

// stamp tells whether a file has been replaced.
type stamp struct {
	modified time.Time
	size     int64
}

// Open reads a certificate chain and its private key, and the authorities of ca unless that is "", all PEM. The key must be for its owner
// alone (0600 or 0400); one that root owns may also be readable by its group, which is how Kubernetes mounts secrets.
func Open(cert, key, ca string, logger *slog.Logger) (*Files, error) {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	f := &Files{cert: cert, key: key, ca: ca, logger: logger, now: time.Now}
	if err := f.Reload(); err != nil {
		return nil, err
	}
	return f, nil
}

// Certificate is the newest good certificate, with Leaf set.
func (f *Files) Certificate() *tls.Certificate { return f.set.Load().certificate }

// Roots are the newest good authorities, nil if Open was given none.
func (f *Files) Roots() *x509.CertPool { return f.set.Load().roots }

// Reload reads the files at once. On an error what was good stays in use.
func (f *Files) Reload() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen = f.stamps()
	return f.read()
}

// Run looks at the files every ten seconds until ctx ends. It logs what it takes, what it cannot take, and that the certificate ends soon.
func (f *Files) Run(ctx context.Context) {
	t := time.NewTicker(lookEvery)
	defer t.Stop()
	for {
		f.look()
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// look rereads the files if any changed since the last reading, so that a bad one is complained of once.
func (f *Files) look() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if seen := f.stamps(); seen != f.seen {
		f.seen = seen
		if err := f.read(); err != nil {
			f.logger.Error("the changed certificate files cannot be used; the ones read before stay in use", "error", err)
		}
	}
	now := f.now()
	if left := f.Certificate().Leaf.NotAfter.Sub(now); left < warnBefore && now.Sub(f.warned) >= warnEvery {
		f.warned = now
		f.logger.Warn("the certificate ends soon; replace its file, it is read again by itself", "file", f.cert,
			"not_after", f.Certificate().Leaf.NotAfter, "left", left.Round(time.Second))
	}
}

func (f *Files) stamps() (s [3]stamp) {
	for i, path := range []string{f.cert, f.key, f.ca} {
		if info, err := os.Stat(path); path != "" && err == nil {
			s[i] = stamp{info.ModTime(), info.Size()}
		}
	}
	return s
}

func (f *Files) read() error {
	certPEM, err := readFile(f.cert, false)
	if err != nil {
		return fmt.Errorf("certificate: %w", err)
	}
	keyPEM, err := readFile(f.key, true)
	if err != nil {
		return fmt.Errorf("private key: %w", err)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return fmt.Errorf("certificate %s and private key %s: %w", f.cert, f.key, err)
	}
	next := &set{certificate: &pair}
	if f.ca != "" {
		caPEM, err := readFile(f.ca, false)
		if err != nil {
			return fmt.Errorf("authorities: %w", err)
		}
		next.roots = x509.NewCertPool()
		if !next.roots.AppendCertsFromPEM(caPEM) {
			return fmt.Errorf("authorities: %s holds no certificate in PEM form", f.ca)
		}
	}
	old := f.set.Swap(next)
	if old != nil && !old.certificate.Leaf.Equal(pair.Leaf) {
		f.warned = time.Time{}
		f.logger.Info("new certificate in use", "file", f.cert, "serial", pair.Leaf.SerialNumber.Text(16), "not_after", pair.Leaf.NotAfter)
	}
	return nil
}

// readFile reads a file of a sane size; a secret one only if nobody else can.
func readFile(path string, secret bool) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if secret {
		info, err := file.Stat()
		if err != nil {
			return nil, err
		}
		if err := Private(path, info); err != nil {
			return nil, err
		}
	}
	b, err := io.ReadAll(io.LimitReader(file, maxFileBytes+1))
	if err == nil && len(b) > maxFileBytes {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxFileBytes)
	}
	return b, err
}

// ServerConfig is a server's configuration with the newest files at every handshake. With authorities it asks for a certificate of the other
// side, which is one of ours then, so nothing below TLS 1.3 is needed; without, clients of anybody's making may come, with TLS 1.2.
func (f *Files) ServerConfig(protocols ...string) *tls.Config {
	type cached struct {
		of     *set
		config *tls.Config
	}
	var last atomic.Pointer[cached] // a configuration holds session ticket keys, so it lives as long as its files
	current := func() *tls.Config {
		s := f.set.Load()
		if c := last.Load(); c != nil && c.of == s {
			return c.config
		}
		c := &tls.Config{Certificates: []tls.Certificate{*s.certificate}, MinVersion: tls.VersionTLS12, NextProtos: protocols}
		if s.roots != nil {
			c.MinVersion = tls.VersionTLS13
			c.ClientAuth = tls.RequireAndVerifyClientCert
			c.ClientCAs = s.roots
			c.SessionTicketsDisabled = true // a resumed session would outlive the authority that vouched for it
		}
		last.Store(&cached{s, c})
		return c
	}
	c := current().Clone()
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return current(), nil }
	return c
}

// ClientConfig is the configuration for one connection to a server, which must show a certificate for host. The own certificate is shown
// to it. It may be nil authorities that Open was given: then those of the system count.
func (f *Files) ClientConfig(host string, protocols ...string) *tls.Config {
	s := f.set.Load()
	return &tls.Config{
		ServerName: host, RootCAs: s.roots, MinVersion: tls.VersionTLS13, NextProtos: protocols,
		// Not Certificates: those are left out silently when the server's list of authorities does not name ours, and the server's
		// complaint would be about a certificate that is missing instead of one that is foreign.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return s.certificate, nil },
	}
}

// errReadable is kept apart so that the advice is the same on every system that has modes.
func errReadable(path string, mode os.FileMode) error {
	return fmt.Errorf("%s can be read by others (mode %04o): chmod 600 it", path, mode.Perm())
}

// PeerFaults lists what keeps a certificate from serving between the nodes of a cluster, as sentences; empty if nothing does. Whether its
// authority is the cluster's is for Verify to say, and for which host it is, for VerifyHostname.
func PeerFaults(c *x509.Certificate, now time.Time) []string {
	var faults []string
	fault := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	if c.IsCA {
		fault("it is the certificate of an authority, which issues certificates for nodes and is not used as one")
	}
	switch {
	case now.Before(c.NotBefore):
		fault("it is not valid before %s", c.NotBefore.UTC().Format(time.RFC3339))
	case now.After(c.NotAfter):
		fault("it expired at %s", c.NotAfter.UTC().Format(time.RFC3339))
	}
	if len(c.DNSNames) == 0 && len(c.IPAddresses) == 0 {
		fault("it names no host: it needs a DNS or IP subject alternative name, the common name does not count")
	}
	if !usable(c, x509.ExtKeyUsageServerAuth) {
		fault("its extended key usage lacks serverAuth, and a node is called by others")
	}
	if !usable(c, x509.ExtKeyUsageClientAuth) {
		fault("its extended key usage lacks clientAuth, and a node calls others")
	}
	if c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		fault("its key usage lacks digitalSignature, which TLS 1.3 needs")
	}
	return faults
}

// usable reports whether an extended key usage allows something. None at all allows everything (RFC 5280 section 4.2.1.12).
func usable(c *x509.Certificate, want x509.ExtKeyUsage) bool {
	if len(c.ExtKeyUsage) == 0 && len(c.UnknownExtKeyUsage) == 0 {
		return true
	}
	for _, u := range c.ExtKeyUsage {
		if u == want || u == x509.ExtKeyUsageAny {
			return true
		}
	}
	return false
}
