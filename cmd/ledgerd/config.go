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

	"github.com/provledger/provledger/internal/telemetry"
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

	// PEM file with the certificate chain of both ports. Reread when it changes. Default none.
	TLSCert string `yaml:"tls-cert"`

	// PEM file with the private key of tls-cert. Default none.
	TLSKey string `yaml:"tls-key"`

	// Listen without TLS on addresses that other machines can reach. Danger: whoever reaches the port reads all bodies and
	// records events, for there is no access control yet, and whoever is in between reads along. For a port inside a pod or
	// behind a proxy that does both. Default false.
	Insecure bool `yaml:"insecure"`

	// Address of the port on which the nodes of a cluster talk to each other (raft, catch-up, calls that are passed on), HOST:PORT, or
	// "off" for a ledger of one node. Always mutual TLS: needs peer-cert, peer-key and peer-ca. Default off.
	PeerAddress string `yaml:"peer-address"`

	// Address under which the other nodes reach peer-address, HOST:PORT, when they cannot use that as it stands (0.0.0.0, port 0,
	// a container's port). The membership knows this node by it, and peer-cert has to be valid for HOST. Empty means peer-address.
	// Default none.
	AdvertisePeer string `yaml:"advertise-peer"`

	// Address under which clients reach grpc-address, HOST:PORT; other nodes tell it to clients that look for the leader. Empty means
	// grpc-address, if that names a host. Default none.
	AdvertiseGRPC string `yaml:"advertise-grpc"`

	// PEM file with this node's certificate chain for the peer port. It serves as server and as client certificate. Reread when it
	// changes. Default none.
	PeerCert string `yaml:"peer-cert"`

	// PEM file with the private key of peer-cert, readable by its owner only. Default none.
	PeerKey string `yaml:"peer-key"`

	// PEM file with the certificates of the CA that the other nodes' certificates must come from: whoever holds a certificate of it may
	// ask to join, so use a CA that signs for nothing else. Default none.
	PeerCA string `yaml:"peer-ca"`

	// Peer addresses of the members that found a cluster, the same list on each, HOST:PORT. The first founds the cluster when all others
	// have answered that they are new too; the others join it. Only used while the data directory is new. A list in the file; as flag
	// or variable separated by commas. Default none.
	Members []string `yaml:"members"`

	// Peer addresses of members of a running cluster that this node, while its data directory is new, asks to be added to, HOST:PORT. A
	// list in the file; as flag or variable separated by commas. Default none.
	Join []string `yaml:"join"`

	// What this node becomes when it joins: voter or nonvoter. A non-voter holds everything and serves reads; its loss does not count.
	// Default voter.
	JoinAs string `yaml:"join-as"`

	// File with the cluster's secret, 32 bytes, readable by its owner only, from which log keys are derived. Copied into a data directory
	// that has none. All nodes that are to lead need the same one. Without it a ledger's first node makes one, and a node that joins has none.
	// Default none.
	SecretFile string `yaml:"secret-file"`

	// Directory with private keys of single logs, one signed-note key a file, readable by its owner only; they win over the secret.
	// Default none.
	KeyDir string `yaml:"key-dir"`

	// How long a node hears nothing of the leader before it campaigns for one to two times this long. Shorter means quicker failover and
	// more elections for nothing on a slow network or a busy machine. Unit: Go duration. Default 250ms.
	HeartbeatTimeout time.Duration `yaml:"heartbeat-timeout"`

	// Address of an OpenTelemetry collector (OTLP over gRPC) that gets traces, HOST:PORT, or a URL: http://HOST:PORT speaks plain text,
	// https://HOST:PORT and HOST:PORT speak TLS. Without it there are no traces, at no cost. Default none.
	OTLPEndpoint string `yaml:"otlp-endpoint"`

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
		Data:             "./ledger-data",
		GRPCAddress:      "127.0.0.1:7600",
		HTTPAddress:      "127.0.0.1:7601",
		PeerAddress:      off,
		JoinAs:           "voter",
		HeartbeatTimeout: 250 * time.Millisecond,
		OriginHost:       "provledger.localhost",
		ShutdownTimeout:  10 * time.Second,
		LogFormat:        "text",
		LogLevel:         "info",
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
	c.validatePeers(fault)
	if c.OTLPEndpoint != "" {
		if err := telemetry.CheckEndpoint(c.OTLPEndpoint); err != nil {
			fault("otlp-endpoint", "%v", err)
		}
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

// minHeartbeatTimeout leaves room for a round trip and a slow fsync between two heartbeats.
const minHeartbeatTimeout = 50 * time.Millisecond

// validatePeers looks at what makes a node a member of a cluster.
func (c *Config) validatePeers(fault func(key, format string, args ...any)) {
	if c.HeartbeatTimeout < minHeartbeatTimeout {
		fault("heartbeat-timeout", "%v is below %v", c.HeartbeatTimeout, minHeartbeatTimeout)
	}
	if !slices.Contains([]string{"voter", "nonvoter"}, c.JoinAs) {
		fault("join-as", "%q is not voter or nonvoter", c.JoinAs)
	}
	lists := map[string][]string{"members": c.Members, "join": c.Join}
	for _, key := range []string{"members", "join"} {
		for i, addr := range lists[key] {
			if err := checkPeerAddress(addr); err != nil {
				fault(key, "%v", err)
			} else if slices.Contains(lists[key][:i], addr) {
				fault(key, "%s stands there twice", addr)
			}
		}
	}
	if c.PeerAddress == off {
		for _, p := range []struct {
			key string
			set bool
		}{
			{"advertise-peer", c.AdvertisePeer != ""}, {"peer-cert", c.PeerCert != ""}, {"peer-key", c.PeerKey != ""},
			{"peer-ca", c.PeerCA != ""}, {"members", len(c.Members) > 0}, {"join", len(c.Join) > 0},
		} {
			if p.set {
				fault(p.key, "means nothing while peer-address is off")
			}
		}
		return
	}
	if _, port, err := net.SplitHostPort(c.PeerAddress); err != nil {
		fault("peer-address", "%q is not HOST:PORT", c.PeerAddress)
	} else if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		fault("peer-address", "port %q is not a number from 0 to 65535", port)
	} else if err := checkPeerAddress(c.advertisedPeer()); err != nil {
		fault("advertise-peer", "other nodes need an address that they can reach: %v", err)
	}
	if c.PeerCert == "" || c.PeerKey == "" || c.PeerCA == "" {
		fault("peer-cert", "peer-key and peer-ca are all needed for peer-address; ledgerctl cert makes a set for trying out")
	}
	if len(c.Members) > 0 && len(c.Join) > 0 {
		fault("join", "and members do not go together: a founding member lists the members, any later one joins")
	}
	if len(c.Members) > 0 && !slices.Contains(c.Members, c.advertisedPeer()) {
		fault("members", "%v does not contain this node's own address, %s", c.Members, c.advertisedPeer())
	}
}

// advertisedPeer is the peer address that the membership knows this node by.
func (c *Config) advertisedPeer() string {
	if c.AdvertisePeer != "" {
		return c.AdvertisePeer
	}
	return c.PeerAddress
}

// advertisedGRPC is what clients are told; empty when nothing that they could use is known.
func (c *Config) advertisedGRPC(bound string) string {
	if c.AdvertiseGRPC != "" {
		return c.AdvertiseGRPC
	}
	if checkPeerAddress(bound) != nil {
		return ""
	}
	return bound
}

// checkPeerAddress wants an address that another machine can dial.
func checkPeerAddress(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("%q is not HOST:PORT", addr)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("port %q of %s is not a number from 1 to 65535", port, addr)
	}
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		return fmt.Errorf("%s names no host", addr)
	}
	return nil
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
