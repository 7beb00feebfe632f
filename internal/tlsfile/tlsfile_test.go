package tlsfile

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/devca"
)

// place is a directory with a certificate, its key and an authority.
type place struct {
	dir           string
	cert, key, ca string
}

func newPlace(t *testing.T) (*place, *devca.CA) {
	t.Helper()
	ca, err := devca.New("tlsfile test", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	p := &place{dir, filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "ca.pem")}
	p.issue(t, ca, time.Hour)
	write(t, p.ca, ca.PEM())
	return p, ca
}

func (p *place) issue(t *testing.T, ca *devca.CA, validity time.Duration) {
	t.Helper()
	cert, key, err := ca.Issue(devca.Request{Hosts: []string{"127.0.0.1"}, Validity: validity, Server: true, Client: true})
	if err != nil {
		t.Fatal(err)
	}
	write(t, p.cert, cert)
	write(t, p.key, key)
}

func write(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*testing.T, *place)
		want   string
	}{
		{"no certificate", func(t *testing.T, p *place) { p.cert += "x" }, "certificate: "},
		{"no key", func(t *testing.T, p *place) { p.key += "x" }, "private key: "},
		{"no authorities", func(t *testing.T, p *place) { p.ca += "x" }, "authorities: "},
		{"rubbish for authorities", func(t *testing.T, p *place) { write(t, p.ca, []byte("rubbish")) }, "holds no certificate"},
		{"key of another", func(t *testing.T, p *place) {
			other, _ := newPlace(t)
			p.key = other.key
		}, "does not match"},
		{"huge", func(t *testing.T, p *place) { write(t, p.ca, make([]byte, maxFileBytes+1)) }, "larger than"},
		{"key for the group", func(t *testing.T, p *place) { chmod(t, p.key, 0o640) }, "chmod 600"},
		{"key for everybody", func(t *testing.T, p *place) { chmod(t, p.key, 0o604) }, "chmod 600"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, _ := newPlace(t)
			if os.Getuid() == 0 { // root's key may be for its group, see below
				if err := os.Chown(p.key, 65534, 65534); err != nil {
					t.Fatal(err)
				}
			}
			tc.change(t, p)
			if _, err := Open(p.cert, p.key, p.ca, nil); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
	p, _ := newPlace(t)
	if os.Getuid() == 0 {
		chmod(t, p.key, 0o640)
		if _, err := Open(p.cert, p.key, p.ca, nil); err != nil {
			t.Errorf("root's key for its group, as Kubernetes mounts it: %v", err)
		}
		chmod(t, p.key, 0o644)
		if _, err := Open(p.cert, p.key, p.ca, nil); err == nil {
			t.Error("root's key for everybody")
		}
	}
	chmod(t, p.key, 0o400)
	f, err := Open(p.cert, p.key, "", nil)
	if err != nil || f.Roots() != nil {
		t.Errorf("a key for its owner to read only, without authorities: %v", err)
	}
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("no modes there")
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// look is what Run does at every tick: it takes what is good and complains once of what is not.
func TestLook(t *testing.T) {
	p, ca := newPlace(t)
	var log bytes.Buffer
	f, err := Open(p.cert, p.key, p.ca, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	f.warned = time.Now() // an hour is soon
	first := f.Certificate()
	f.look()
	if f.Certificate() != first || log.Len() != 0 {
		t.Errorf("unchanged files were read again: %s", &log)
	}
	write(t, p.cert, []byte("half a certificate"))
	for range 3 {
		f.look()
	}
	if f.Certificate() != first || strings.Count(log.String(), "level=ERROR") != 1 {
		t.Errorf("a bad file is to be said once and not used: %s", &log)
	}
	p.issue(t, ca, 30*time.Minute)
	f.look()
	if f.Certificate() == first || !strings.Contains(log.String(), "new certificate in use") {
		t.Errorf("the new certificate is not used: %s", &log)
	}
	if !strings.Contains(log.String(), "ends soon") {
		t.Errorf("a certificate of half an hour is nothing to warn of: %s", &log)
	}
	log.Reset()
	f.look()
	if log.Len() != 0 {
		t.Errorf("warned again at once: %s", &log)
	}
	f.now = func() time.Time { return time.Now().Add(warnEvery) }
	f.look()
	if !strings.Contains(log.String(), "ends soon") {
		t.Error("not warned again the next day")
	}
}

// A handshake uses the files as they are then, on both sides, and trusts whom they say.
func TestConfigsFollowTheFiles(t *testing.T) {
	p, ca := newPlace(t)
	f, err := Open(p.cert, p.key, p.ca, nil)
	if err != nil {
		t.Fatal(err)
	}
	server := f.ServerConfig("h2")
	shake := func() (atServer, atClient *x509.Certificate, err error) {
		a, b := net.Pipe()
		defer a.Close()
		defer b.Close()
		s, c := tls.Server(a, server), tls.Client(b, f.ClientConfig("127.0.0.1", "h2"))
		failed := make(chan error, 1)
		go func() {
			err := s.Handshake()
			if err == nil {
				_, err = s.Write([]byte("x"))
			}
			a.Close()
			failed <- err
		}()
		err = c.Handshake()
		if err == nil {
			_, err = io.ReadFull(c, make([]byte, 1)) // the server's verdict on the client comes after the client's handshake
		}
		b.Close()
		if bad := <-failed; err == nil {
			err = bad
		}
		if err != nil {
			return nil, nil, err
		}
		return s.ConnectionState().PeerCertificates[0], c.ConnectionState().PeerCertificates[0], nil
	}
	check := func() {
		t.Helper()
		s, c, err := shake()
		if err != nil {
			t.Fatal(err)
		}
		if leaf := f.Certificate().Leaf; !s.Equal(leaf) || !c.Equal(leaf) {
			t.Error("not the newest certificate on both sides")
		}
	}
	check()
	p.issue(t, ca, time.Hour)
	if err := f.Reload(); err != nil {
		t.Fatal(err)
	}
	check()
	other, err := devca.New("another", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	write(t, p.ca, other.PEM())
	if err := f.Reload(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := shake(); err == nil {
		t.Error("an authority that is no longer in the file is trusted")
	}
	one := f.ServerConfig("h2")
	a, _ := one.GetConfigForClient(nil)
	b, _ := one.GetConfigForClient(nil)
	if a != b || a.MinVersion != tls.VersionTLS13 || a.ClientAuth != tls.RequireAndVerifyClientCert {
		t.Error("the configuration is made anew at every handshake, or asks for less than it should")
	}
	public, err := Open(p.cert, p.key, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	if c := public.ServerConfig(); c.MinVersion != tls.VersionTLS12 || c.ClientAuth != tls.NoClientCert {
		t.Error("without authorities, clients of anybody's making are to be served")
	}
}

func TestPeerFaults(t *testing.T) {
	ca, err := devca.New("faults", 2*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	issue := func(r devca.Request) *x509.Certificate {
		t.Helper()
		cert, key, err := ca.Issue(r)
		if err != nil {
			t.Fatal(err)
		}
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		return pair.Leaf
	}
	good := issue(devca.Request{Hosts: []string{"n1.example"}, NodeID: lineage.NewID(), Validity: time.Hour, Server: true, Client: true})
	now := time.Now()
	for _, tc := range []struct {
		name string
		c    *x509.Certificate
		now  time.Time
		want []string
	}{
		{"good", good, now, nil},
		{"without any usage", &x509.Certificate{DNSNames: []string{"x"}, NotAfter: now.Add(1)}, now, nil},
		{"ended", good, now.Add(2 * time.Hour), []string{"expired"}},
		{"early", good, now.Add(-2 * time.Hour), []string{"not valid before"}},
		{"an authority", ca.Certificate(), now, []string{"authority", "names no host", "digitalSignature"}},
		{"server only", issue(devca.Request{Hosts: []string{"x"}, Validity: time.Hour, Server: true}), now, []string{"clientAuth"}},
		{"client only", issue(devca.Request{Hosts: []string{"x"}, Validity: time.Hour, Client: true}), now, []string{"serverAuth"}},
	} {
		got := PeerFaults(tc.c, tc.now)
		if len(got) != len(tc.want) {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
			continue
		}
		for i := range got {
			if !strings.Contains(got[i], tc.want[i]) {
				t.Errorf("%s: %q, want %q", tc.name, got[i], tc.want[i])
			}
		}
	}
}
