// Package devca is a small certificate authority in a directory, for trying a cluster out and for tests.
//
// It has no revocation, no register of what it issued and no protection of its key but the file's mode: an operator's own authority (step,
// cert-manager, openssl) does as well and better. A directory holds ca.pem, which every node trusts, and ca-key.pem, which no node needs.
package devca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/provledger/provledger/client/lineage"
)

// The files of an authority's directory.
const (
	CertificateFile = "ca.pem"
	KeyFile         = "ca-key.pem"
)

const (
	// backdate allows for clocks that are behind the one that issues.
	backdate = time.Hour
	// maxCommonName is X.520's limit; nobody looks at a common name to decide anything.
	maxCommonName = 64
	// urnUUID begins the URI that names a node in its certificate (RFC 9562 section 4).
	urnUUID = "urn:uuid:"
)

// CA is an authority: an ECDSA P-256 key and a certificate that it signed for itself.
type CA struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	certPEM     []byte
}

// New makes an authority that is valid for so long from now. The name is what certificates show as their issuer.
func New(name string, validity time.Duration) (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t, err := template(name, validity)
	if err != nil {
		return nil, err
	}
	t.IsCA, t.BasicConstraintsValid, t.MaxPathLenZero = true, true, true
	t.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return newCA(der, key)
}

func newCA(der []byte, key *ecdsa.PrivateKey) (*CA, error) {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &CA{c, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}, nil
}

// Load reads an authority that Save wrote.
func Load(dir string) (*CA, error) {
	certPath, keyPath := filepath.Join(dir, CertificateFile), filepath.Join(dir, KeyFile)
	pair, err := tls.LoadX509KeyPair(certPath, keyPath)
	if err != nil {
		return nil, fmt.Errorf("certificate authority in %s: %w", dir, err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || !pair.Leaf.IsCA {
		return nil, fmt.Errorf("%s is no certificate authority made here; issue with the tool that made it", dir)
	}
	return newCA(pair.Certificate[0], key)
}

// Save writes an authority into a directory, which it makes if need be. What is there is never replaced (fs.ErrExist): nodes trust it.
func (c *CA) Save(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	key, err := keyPEM(c.key)
	if err != nil {
		return err
	}
	if err := writeNew(filepath.Join(dir, KeyFile), key, 0o600); err != nil {
		return err
	}
	if err := writeNew(filepath.Join(dir, CertificateFile), c.certPEM, 0o644); err != nil {
		return errors.Join(err, os.Remove(filepath.Join(dir, KeyFile))) // the key of nothing
	}
	return nil
}

// PEM is the authority's certificate.
func (c *CA) PEM() []byte { return c.certPEM }

// Certificate is the authority's certificate.
func (c *CA) Certificate() *x509.Certificate { return c.certificate }

// Request says what a certificate is for.
type Request struct {
	Hosts          []string      // DNS names and IP addresses, at least one; no ports
	NodeID         lineage.ID    // bound to this node by the URI urn:uuid:NODE-ID; zero: usable by any node at the hosts
	Validity       time.Duration // from now, never longer than the authority's own; negative, above -1h: one that has expired, for tests
	Server, Client bool          // what it may be used as, at least one; a node is both
}

// Issue makes a key (ECDSA P-256, PKCS #8) and its certificate.
func (c *CA) Issue(r Request) (certPEM, private []byte, err error) {
	if len(r.Hosts) == 0 {
		return nil, nil, errors.New("a certificate needs at least one host")
	}
	if !r.Server && !r.Client {
		return nil, nil, errors.New("a certificate must be for a server, a client or both")
	}
	t, err := template(r.Hosts[0], r.Validity)
	if err != nil {
		return nil, nil, err
	}
	if t.NotAfter.After(c.certificate.NotAfter) {
		t.NotAfter = c.certificate.NotAfter
	}
	for _, h := range r.Hosts {
		if ip := net.ParseIP(h); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else if h != "" && !strings.ContainsAny(h, ":/@ []\t\r\n") {
			t.DNSNames = append(t.DNSNames, h)
		} else {
			return nil, nil, fmt.Errorf("host %q is neither a DNS name nor an IP address; it is written without a port", h)
		}
	}
	if r.NodeID != (lineage.ID{}) {
		u, err := url.Parse(urnUUID + r.NodeID.String())
		if err != nil {
			return nil, nil, err
		}
		t.URIs = []*url.URL{u}
	}
	t.KeyUsage = x509.KeyUsageDigitalSignature
	if r.Server {
		t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	if r.Client {
		t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, t, c.certificate, key.Public(), c.key)
	if err != nil {
		return nil, nil, err
	}
	private, err = keyPEM(key)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), private, nil
}

func template(name string, validity time.Duration) (*x509.Certificate, error) {
	if validity == 0 || validity <= -backdate {
		return nil, fmt.Errorf("a certificate cannot be valid for %v", validity)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)) // positive and within RFC 5280's 20 octets
	if err != nil {
		return nil, err
	}
	now := time.Now()
	t := &x509.Certificate{SerialNumber: serial, NotBefore: now.Add(-backdate), NotAfter: now.Add(validity)}
	if len(name) <= maxCommonName {
		t.Subject = pkix.Name{CommonName: name}
	}
	return t, nil
}

func keyPEM(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// writeNew makes a file that must not be there yet.
func writeNew(path string, content []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}
