package deploytest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

// deploy is where the files are.
const deploy = "../../deploy"

// ledgerd and ledgerctl are the paths of the programs under test; help is what ledgerd says of its settings.
var ledgerd, ledgerctl, help string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		bin, err := os.MkdirTemp("", "provledger-deploy-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(bin)
		ledgerd, ledgerctl = filepath.Join(bin, "ledgerd"), filepath.Join(bin, "ledgerctl")
		if out, err := exec.Command("go", "build", "-buildvcs=false", "-o", bin+"/", "../../cmd/ledgerd", "../../cmd/ledgerctl").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
			return 1
		}
		out, err := exec.Command(ledgerd, "--help").Output()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		help = string(out)
		return m.Run()
	}())
}

// read returns a file of deploy.
func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(deploy, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// documents decodes a YAML file with one or more documents. A repeated key is an error.
func documents(t *testing.T, name string) []object {
	t.Helper()
	var out []object
	for dec := yaml.NewDecoder(bytes.NewReader(read(t, name))); ; {
		var o map[string]any // maps inside are of this type too
		switch err := dec.Decode(&o); {
		case errors.Is(err, io.EOF):
			return out
		case err != nil:
			t.Fatalf("%s: %v", name, err)
		}
		out = append(out, o)
	}
}

// object is a YAML mapping.
type object map[string]any

// at returns what is under a path of keys and, in lists, numbers or name=VALUE; nil if there is nothing.
func (o object) at(path ...string) any {
	var v any = map[string]any(o)
	for _, step := range path {
		switch x := v.(type) {
		case map[string]any:
			v = x[step]
		case []any:
			v = nil
			for i, e := range x {
				m, _ := e.(map[string]any)
				if key, want, ok := strings.Cut(step, "="); fmt.Sprint(i) == step || ok && m != nil && m[key] == want {
					v = e
					break
				}
			}
		default:
			return nil
		}
	}
	return v
}

func (o object) list(path ...string) []any { l, _ := o.at(path...).([]any); return l }

func (o object) text(path ...string) string {
	if v := o.at(path...); v != nil {
		return fmt.Sprint(v)
	}
	return ""
}

// texts is a list of strings.
func (o object) texts(path ...string) []string {
	var out []string
	for _, v := range o.list(path...) {
		out = append(out, fmt.Sprint(v))
	}
	return out
}

// kind returns the one object of a kind and name.
func kind(t *testing.T, all []object, kind, name string) object {
	t.Helper()
	i := slices.IndexFunc(all, func(o object) bool { return o.text("kind") == kind && o.text("metadata", "name") == name })
	if i < 0 {
		t.Fatalf("there is no %s %s", kind, name)
	}
	return all[i]
}

// pair writes a certificate for names and its key, and returns their paths. It is its own authority.
func pair(t *testing.T, names ...string) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true, IsCA: true,
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	kder, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "tls.pem"), filepath.Join(dir, "tls-key.pem")
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: kder}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// inForce is the configuration that ledgerd makes of variables and arguments.
func inForce(t *testing.T, environ []string, args ...string) object {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c := exec.CommandContext(ctx, ledgerd, append(args, "--print-config")...)
	c.Env = environ
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		t.Fatalf("ledgerd %q with %q: %v\n%s", args, environ, err, &stderr)
	}
	var o map[string]any
	if err := yaml.Unmarshal(out, &o); err != nil {
		t.Fatal(err)
	}
	return o
}

var (
	flagName     = regexp.MustCompile(`(?m)^\s+(?:-\w, )?--([a-z-]+)`)
	variableName = regexp.MustCompile(`\[(LEDGERD_[A-Z_]+)\]`)
)

// known are the flags, with hyphens, and variables that ledgerd's help lists.
func known() map[string]bool {
	out := map[string]bool{}
	for _, m := range flagName.FindAllStringSubmatch(help, -1) {
		out["--"+m[1]] = true
	}
	for _, m := range variableName.FindAllStringSubmatch(help, -1) {
		out[m[1]] = true
	}
	return out
}

// port is the number behind HOST:PORT.
func port(t *testing.T, address string) string {
	t.Helper()
	_, p, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	return p
}
