package devca

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/provledger/provledger/client/lineage"
)

func TestIssue(t *testing.T) {
	made, err := New("test", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "new", "ca")
	if err := made.Save(dir); err != nil {
		t.Fatal(err)
	}
	if err := made.Save(dir); !errors.Is(err, fs.ErrExist) {
		t.Errorf("an authority was replaced: %v", err)
	}
	info, err := os.Stat(filepath.Join(dir, KeyFile))
	if err != nil {
		t.Fatal(err)
	}
	if m := info.Mode().Perm(); m != 0o600 && runtime.GOOS != "windows" {
		t.Errorf("the key has mode %o", m)
	}
	ca, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	id := lineage.NewID()
	cert, key, err := ca.Issue(Request{Hosts: []string{"n1.example", "127.0.0.1", "::1"}, NodeID: id, Validity: 24 * time.Hour, Server: true, Client: true})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf := pair.Leaf
	roots := x509.NewCertPool()
	roots.AddCert(made.Certificate()) // what it issued before it was saved and what after chain to one
	for _, use := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		for _, host := range []string{"n1.example", "127.0.0.1", "::1"} {
			if _, err := leaf.Verify(x509.VerifyOptions{DNSName: host, Roots: roots, KeyUsages: []x509.ExtKeyUsage{use}}); err != nil {
				t.Errorf("%s: %v", host, err)
			}
		}
	}
	if _, err := leaf.Verify(x509.VerifyOptions{DNSName: "n2.example", Roots: roots}); err == nil {
		t.Error("valid for another host")
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != "urn:uuid:"+id.String() {
		t.Errorf("bound to %v", leaf.URIs)
	}
	if leaf.NotAfter.After(ca.Certificate().NotAfter) {
		t.Error("it outlives its authority")
	}
	if leaf.IsCA {
		t.Error("a node is an authority")
	}
	plain, _, err := ca.Issue(Request{Hosts: []string{"x"}, Validity: time.Minute, Server: true})
	if err != nil || len(plain) == 0 {
		t.Fatal(err)
	}
}

func TestIssueRefuses(t *testing.T) {
	ca, err := New("test", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for name, r := range map[string]Request{
		"no host":     {Validity: time.Hour, Server: true},
		"no use":      {Hosts: []string{"x"}, Validity: time.Hour},
		"no validity": {Hosts: []string{"x"}, Server: true},
		"a port":      {Hosts: []string{"n1.example:7601"}, Validity: time.Hour, Server: true},
		"a URL":       {Hosts: []string{"https://n1.example"}, Validity: time.Hour, Server: true},
		"empty host":  {Hosts: []string{"x", ""}, Validity: time.Hour, Server: true},
	} {
		if _, _, err := ca.Issue(r); err == nil {
			t.Errorf("%s: issued", name)
		}
	}
	if _, err := New("x", -time.Hour); err == nil {
		t.Error("an authority without validity")
	}
	dir := t.TempDir()
	if _, err := Load(dir); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("an empty directory: %v", err)
	}
	cert, key, err := ca.Issue(Request{Hosts: []string{"x"}, Validity: time.Hour, Server: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(filepath.Join(dir, CertificateFile), cert, 0o600), os.WriteFile(filepath.Join(dir, KeyFile), key, 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir); err == nil {
		t.Error("a node's certificate was taken for an authority's")
	}
}
