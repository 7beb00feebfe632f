package main

import (
	"crypto/tls"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Config is everything that can be set, and the comment of each field is its manual: `ledgerd --print-config` prints it. A field
// has one name, in the YAML file as the tag says, as flag with two hyphens in front, and in the environment in capitals with
// LEDGERD_ in front and underscores inside (LEDGERD_GRPC_ADDRESS). A flag wins over the environment, which wins over the file,
// which wins over the default. The file is named by --config or LEDGERD_CONFIG. There are no secrets in it, only paths to them.
type Config struct {
	// Directory that holds the ledger. Created, with a new ledger in it, when it does not exist or is empty. One process at a
	// time; a ledger made by ledgerctl in a directory is taken over as it is. Danger: two copies of one directory that both run
	// sign different histories under one key, which clients detect and do not forgive. Default ./ledger-data.
	Data string `yaml:"data"`

	// Address of the gRPC API, HOST:PORT. Port 0 takes any free one. An address that other machines can reach needs tls-cert and
	// tls-key, or insecure. Default 127.0.0.1:7600.
	GRPCAddress string `yaml:"grpc-address"`

	// Address of HTTP (/metrics, /healthz, /readyz), HOST:PORT, or "off". Rules as for grpc-address; the same certificate.
	// Default 127.0.0.1:7601.
	HTTPAddress string `yaml:"http-address"`

	// PEM file with the certificate chain of both ports. Read once, at start. Default none.
	TLSCert string `yaml:"tls-cert"`

	// PEM file with the private key of tls-cert. Default none.
	TLSKey string `yaml:"tls-key"`

	// Listen without TLS on addresses that other machines can reach. Danger: whoever reaches the port reads all bodies and
	// records events, for there is no access control yet, and whoever is in between reads along. For a port inside a pod or
	// behind a proxy that does both. Default false.
	Insecure bool `yaml:"insecure"`

	// First part of the origin of logs created from now on: HOST/CLUSTER/lineage/NAME. A DNS name that is yours, for origins are
	// published with every checkpoint and never change; never the name of a machine. Used when a ledger or a log is created,
	// else ignored. Default provledger.localhost.
	OriginHost string `yaml:"origin-host"`

	// How long to wait for another process to let go of the data directory. 0 refuses at once. Unit: Go duration (30s, 1m).
	// Default 0s.
	LockTimeout time.Duration `yaml:"lock-timeout"`

	// How long running calls may take to finish after SIGTERM or SIGINT before they are cut off. What was acknowledged is safe
	// either way; a call that is cut off has an unknown outcome, and its client asks again with the same event id. Keep it below
	// the supervisor's own patience (systemd 90s, Kubernetes 30s). Unit: Go duration. Default 10s.
	ShutdownTimeout time.Duration `yaml:"shutdown-timeout"`

	// Form of the log on standard error: text or json. Default text.
	LogFormat string `yaml:"log-format"`

	// Least level that is logged: debug, info, warn or error. Default info.
	LogLevel string `yaml:"log-level"`

	// File that gets the real addresses once the ledger serves, as JSON {"grpc":"HOST:PORT","http":"HOST:PORT"}, and is removed at
	// a clean stop. For scripts that use port 0. Default none.
	AddressFile string `yaml:"address-file"`
}

// configSource is this file: the manual is printed from the comments above, so that there is no second one.
//
//go:embed config.go
var configSource []byte

// off is the address of a port that is not opened.
const off = "off"

// Defaults returns the configuration of `ledgerd` without anything: one node on this machine, reachable from this machine.
func Defaults() Config {
	return Config{
		Data:            "./ledger-data",
		GRPCAddress:     "127.0.0.1:7600",
		HTTPAddress:     "127.0.0.1:7601",
		OriginHost:      "provledger.localhost",
		ShutdownTimeout: 10 * time.Second,
		LogFormat:       "text",
		LogLevel:        "info",
	}
}

// Validate returns every fault of the configuration, joined, or nil. It changes nothing.
func (c *Config) Validate() error {
	var faults []error
	fault := func(key, format string, args ...any) {
		faults = append(faults, fmt.Errorf(key+": "+format, args...))
	}
	if c.Data == "" {
		fault("data", "is empty; name a directory")
	}
	c.validateAddresses(fault)
	switch {
	case (c.TLSCert == "") != (c.TLSKey == ""):
		fault("tls-cert", "and tls-key go together; one of them is empty")
	case c.TLSCert != "":
		if _, err := tls.LoadX509KeyPair(c.TLSCert, c.TLSKey); err != nil {
			fault("tls-cert", "and tls-key cannot be used: %v", err)
		}
	}
	if err := checkOriginHost(c.OriginHost); err != nil {
		fault("origin-host", "%v", err)
	}
	if c.LockTimeout < 0 {
		fault("lock-timeout", "%v is negative", c.LockTimeout)
	}
	if c.ShutdownTimeout <= 0 {
		fault("shutdown-timeout", "%v is not above zero", c.ShutdownTimeout)
	}
	if !slices.Contains([]string{"text", "json"}, c.LogFormat) {
		fault("log-format", "%q is not text or json", c.LogFormat)
	}
	if _, err := parseLevel(c.LogLevel); err != nil {
		fault("log-level", "%v", err)
	}
	return errors.Join(faults...)
}

func (c *Config) validateAddresses(fault func(key, format string, args ...any)) {
	type port struct{ key, addr string }
	var open []port
	for _, p := range []port{{"grpc-address", c.GRPCAddress}, {"http-address", c.HTTPAddress}} {
		if p.key == "http-address" && p.addr == off {
			continue
		}
		host, number, err := net.SplitHostPort(p.addr)
		if err != nil {
			fault(p.key, "%q is not HOST:PORT", p.addr)
			continue
		}
		if n, err := strconv.ParseUint(number, 10, 16); err != nil {
			fault(p.key, "port %q is not a number from 0 to 65535", number)
		} else if n != 0 {
			open = append(open, p)
		}
		if !loopback(host) && c.TLSCert == "" && !c.Insecure {
			fault(p.key, "%s can be reached by other machines, and would be served without TLS; set tls-cert and tls-key, "+
				"or insecure if something in front protects it", p.addr)
		}
	}
	if len(open) == 2 && open[0].addr == open[1].addr {
		fault("http-address", "%s is also grpc-address", c.HTTPAddress)
	}
}

// loopback reports whether a listener on host is out of reach for other machines. A name is not looked up: what it means today
// is no promise, "localhost" excepted (RFC 6761 section 6.3).
func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

// maxOriginHost leaves room for the rest of an origin line, which has 255 bytes.
const maxOriginHost = 100

// checkOriginHost wants a DNS name as it is written (RFC 1123 section 2.1), in lower case, because an origin is compared byte by
// byte.
func checkOriginHost(host string) error {
	if host == "" || len(host) > maxOriginHost {
		return fmt.Errorf("%q has %d bytes, want 1 to %d", host, len(host), maxOriginHost)
	}
	for label := range strings.SplitSeq(host, ".") {
		if label == "" || label[0] == '-' || label[len(label)-1] == '-' || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return fmt.Errorf("%q is not a DNS name in lower case", host)
		}
	}
	return nil
}

func parseLevel(s string) (slog.Level, error) {
	switch s {
	case "debug":
		return slog.LevelDebug, nil
	case "info":
		return slog.LevelInfo, nil
	case "warn":
		return slog.LevelWarn, nil
	case "error":
		return slog.LevelError, nil
	}
	return 0, fmt.Errorf("%q is not debug, info, warn or error", s)
}
