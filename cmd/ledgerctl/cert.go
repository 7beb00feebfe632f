package main

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/devca"
	"github.com/provledger/provledger/internal/tlsfile"
)

const (
	// The files that cert node writes, by the settings of ledgerd that name them.
	peerCertFile = "peer.pem"     // peer-cert
	peerKeyFile  = "peer-key.pem" // peer-key
	peerCAFile   = "ca.pem"       // peer-ca

	// Days that certificates are valid unless said otherwise: an authority longer than anybody tries something out, a node so long that its
	// renewal is planned and not forgotten.
	caDays, nodeDays = 3650, 365
	maxDays          = 36500

	// maxCertBytes is far above a chain of certificates.
	maxCertBytes = 1 << 20
)

func (a *app) certCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "cert",
		Short: "Make and look at the certificates with which nodes of a cluster know each other",
		Long: `cert makes an authority and certificates for the peer ports of a cluster, for trying out and for small installations. It keeps no list of what
it issued and revokes nothing. Your own authority (step, cert-manager, openssl) does as well; a node's certificate then needs
  - an issuer that is in the file that every node has as peer-ca;
  - the host of the node's peer address (advertise-peer) as DNS or IP subject alternative name;
  - the extended key usages serverAuth and clientAuth: a node calls and is called;
  - optionally the URI urn:uuid:NODE-ID as subject alternative name, which makes it useless for any other node.
A node reads its files again when they change, so a certificate is renewed by replacing them. To change the authority, put both into every
node's peer-ca first, then replace the certificates, then take the old one out.`,
		Example: `  ledgerctl cert ca ca/
  ledgerctl cert node --ca ca/ --host n1.example.org --out n1/
  ledgerctl cert show n1/peer.pem --ca ca/ca.pem`,
		Args: exactly(0, "one of ca, node, show"),
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(a.certCACommand(), a.certNodeCommand(), a.certShowCommand())
	return c
}

func (a *app) certCACommand() *cobra.Command {
	var name string
	var days int
	c := &cobra.Command{
		Use:   "ca DIR",
		Short: "Make an authority",
		Long: `ca makes an authority in DIR: ` + devca.CertificateFile + `, which every node gets, and ` + devca.KeyFile + `, which only you may read and no node needs. Whoever has the
key can pose as any node of the cluster: keep it off the nodes. What is there is not replaced.`,
		Example: "  ledgerctl cert ca ca/",
		Args:    exactly(1, "one directory"),
		RunE: func(_ *cobra.Command, args []string) error {
			validity, err := daysOf(days)
			if err != nil {
				return err
			}
			ca, err := devca.New(name, validity)
			if err != nil {
				return err
			}
			dir := args[0]
			if err := ca.Save(dir); errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("%s has an authority, which is not replaced: nodes trust it; choose another directory", dir)
			} else if err != nil {
				return err
			}
			cert, key := filepath.Join(dir, devca.CertificateFile), filepath.Join(dir, devca.KeyFile)
			until := dateTime(ca.Certificate().NotAfter)
			if a.json() {
				return a.printJSON(map[string]string{"certificateFile": cert, "privateKeyFile": key, "notAfter": until})
			}
			_, err = fmt.Fprintf(a.stdout, `authority    %s, valid until %s
private key  %s

Next: a certificate for each node, then keep the private key off the nodes:
  ledgerctl cert node --ca %s --host HOST --out DIR
`, cert, until, key, dir)
			return err
		},
	}
	c.Flags().StringVar(&name, "name", "Provledger cluster", "`NAME` that certificates show as their issuer")
	c.Flags().IntVar(&days, "days", caDays, "how many days it is valid")
	return c
}

func (a *app) certNodeCommand() *cobra.Command {
	var ca, out, node string
	var hosts []string
	var days int
	c := &cobra.Command{
		Use:   "node --ca DIR --host HOST[,HOST..] --out DIR",
		Short: "Make a node's certificate",
		Long: `node writes a new key and certificate into --out, and a copy of the authority's certificate, under the names that the settings below
say. HOST is a DNS name or IP address, without port; one must be the host of the node's advertise-peer. --node-id binds the certificate to
one node, which must exist to have an id. What is there is not replaced: to renew, write into a new directory and move the files.`,
		Example: `  ledgerctl cert node --ca ca/ --host n1.example.org,10.0.0.1 --out n1/`,
		Args:    exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			validity, err := daysOf(days)
			switch {
			case err != nil:
				return err
			case ca == "" || out == "" || len(hosts) == 0:
				return usage("cert node needs --ca DIR, --host HOST and --out DIR; see `%s --help`", c.CommandPath())
			}
			r := devca.Request{Hosts: hosts, Validity: validity, Server: true, Client: true}
			if node != "" {
				if r.NodeID, err = lineage.ParseID(node); err != nil {
					return usage("--node-id: %v", err)
				}
			}
			return a.issueNode(ca, out, r)
		},
	}
	c.Flags().StringVar(&ca, "ca", "", "`DIR` of the authority, as cert ca made it")
	c.Flags().StringSliceVar(&hosts, "host", nil, "`HOST` of the node's peer address; several separated by commas")
	c.Flags().StringVar(&node, "node-id", "", "`ID` of the only node that may use it")
	c.Flags().StringVar(&out, "out", "", "`DIR` for the files, made if need be")
	c.Flags().IntVar(&days, "days", nodeDays, "how many days it is valid, at most as long as the authority")
	return c
}

func (a *app) issueNode(caDir, out string, r devca.Request) error {
	ca, err := devca.Load(caDir)
	if err != nil {
		return err
	}
	cert, key, err := ca.Issue(r)
	if err != nil {
		return usage("%v", err)
	}
	leaf, err := parseCertificate(cert)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o700); err != nil {
		return err
	}
	certPath, keyPath, caPath := filepath.Join(out, peerCertFile), filepath.Join(out, peerKeyFile), filepath.Join(out, peerCAFile)
	for _, path := range []string{certPath, keyPath} { // before anything is written, so that no half of a pair is left
		if _, err := os.Lstat(path); err == nil {
			return fmt.Errorf("%s exists and is not replaced; choose another --out", path)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if there, err := os.ReadFile(caPath); err == nil && !bytes.Equal(there, ca.PEM()) {
		return fmt.Errorf("%s is of another authority and is not replaced; choose another --out", caPath)
	} else if errors.Is(err, fs.ErrNotExist) {
		err = writeNewMode(caPath, ca.PEM(), 0o644)
		if err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	if err := writeNewMode(keyPath, key, 0o600); err != nil {
		return err
	}
	if err := writeNewMode(certPath, cert, 0o644); err != nil {
		return err
	}
	until := dateTime(leaf.NotAfter)
	if a.json() {
		return a.printJSON(map[string]any{"certificateFile": certPath, "privateKeyFile": keyPath, "authorityFile": caPath,
			"names": names(leaf), "notAfter": until})
	}
	_, err = fmt.Fprintf(a.stdout, `certificate  %s, for %s, valid until %s

Next: copy %s to the node, readable by ledgerd alone, and set there
  peer-cert: %s
  peer-key: %s
  peer-ca: %s
`, certPath, strings.Join(names(leaf), ", "), until, out, peerCertFile, peerKeyFile, peerCAFile)
	return err
}

// certificateView is what cert show says of a certificate.
type certificateView struct {
	File      string   `json:"file"`
	Subject   string   `json:"subject"`
	Issuer    string   `json:"issuer"`
	Names     []string `json:"names"`
	NotBefore string   `json:"notBefore"`
	NotAfter  string   `json:"notAfter"`
	Faults    []string `json:"faults"`
}

func (a *app) certShowCommand() *cobra.Command {
	var ca, host string
	c := &cobra.Command{
		Use:   "show FILE [--ca FILE] [--host HOST]",
		Short: "Show a certificate, and what keeps it from serving between nodes",
		Long: `show prints whom the first certificate in FILE is for, until when, and what is wrong with it for the peer port of a node: nothing (exit code 0)
or what is listed (1). With --ca it must also chain to an authority in that file, with --host be valid for that host.`,
		Example: "  ledgerctl cert show n1/peer.pem --ca ca/ca.pem --host n1.example.org",
		Args:    exactly(1, "one file"),
		RunE: func(_ *cobra.Command, args []string) error {
			raw, err := readRegular(args[0], maxCertBytes)
			if err != nil {
				return err
			}
			leaf, err := parseCertificate(raw)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			v := certificateView{File: args[0], Subject: leaf.Subject.String(), Issuer: leaf.Issuer.String(), Names: orEmpty(names(leaf)),
				NotBefore: dateTime(leaf.NotBefore), NotAfter: dateTime(leaf.NotAfter), Faults: orEmpty(tlsfile.PeerFaults(leaf, time.Now()))}
			if ca != "" {
				fault, err := chainFault(raw, leaf, ca)
				if err != nil {
					return err
				}
				v.Faults = append(v.Faults, fault...)
			}
			if host != "" {
				if err := leaf.VerifyHostname(host); err != nil {
					v.Faults = append(v.Faults, err.Error())
				}
			}
			return a.printCertificate(&v)
		},
	}
	c.Flags().StringVar(&ca, "ca", "", "`FILE` with the authorities of the cluster (peer-ca)")
	c.Flags().StringVar(&host, "host", "", "`HOST` of the node's peer address")
	return c
}

func (a *app) printCertificate(v *certificateView) error {
	var err error
	if a.json() {
		err = a.printJSON(v)
	} else {
		fmt.Fprintf(a.stdout, "subject      %s\nissuer       %s\nfor          %s\nvalid from   %s\nvalid until  %s\n",
			plain(v.Subject), plain(v.Issuer), plain(strings.Join(v.Names, ", ")), v.NotBefore, v.NotAfter)
		for _, f := range v.Faults {
			fmt.Fprintf(a.stdout, "WRONG        %s\n", plain(f))
		}
		if len(v.Faults) == 0 {
			_, err = fmt.Fprintln(a.stdout, "Nothing keeps it from serving between nodes.")
		}
	}
	if err == nil && len(v.Faults) > 0 {
		return &exitError{code: exitNotVerified}
	}
	return err
}

// chainFault says why a certificate does not chain to the authorities in a file, if so. Time is not its business: PeerFaults says that.
func chainFault(raw []byte, leaf *x509.Certificate, caFile string) (faults []string, err error) {
	caPEM, err := readRegular(caFile, maxCertBytes)
	if err != nil {
		return nil, fmt.Errorf("--ca: %w", err)
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	if !roots.AppendCertsFromPEM(caPEM) {
		return nil, fmt.Errorf("--ca: %s holds no certificate in PEM form", caFile)
	}
	between.AppendCertsFromPEM(raw)
	_, bad := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: leaf.NotBefore.Add(time.Second), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if bad != nil {
		faults = append(faults, fmt.Sprintf("it does not chain to %s: %v", caFile, bad))
	}
	return faults, nil
}

// parseCertificate reads the first certificate of a PEM file.
func parseCertificate(raw []byte) (*x509.Certificate, error) {
	for block, rest := pem.Decode(raw); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			return x509.ParseCertificate(block.Bytes)
		}
	}
	return nil, errors.New("there is no certificate in PEM form in it")
}

// names are the subject alternative names that count between nodes.
func names(c *x509.Certificate) []string {
	list := append([]string(nil), c.DNSNames...)
	for _, ip := range c.IPAddresses {
		list = append(list, ip.String())
	}
	for _, u := range c.URIs {
		list = append(list, u.String())
	}
	return list
}

func daysOf(n int) (time.Duration, error) {
	if n < 1 || n > maxDays {
		return 0, usage("--days %d: 1 to %d", n, maxDays)
	}
	return time.Duration(n) * 24 * time.Hour, nil
}

func dateTime(t time.Time) string { return t.UTC().Format(time.RFC3339) }
