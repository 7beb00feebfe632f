package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"

	"github.com/provledger/provledger/internal/node"
	"github.com/provledger/provledger/internal/tlsfile"
)

// certificates are what a daemon shows on its ports, reread when their files change.
type certificates struct {
	api   *tlsfile.Files // nil: plain text
	peers *tlsfile.Files // nil: a ledger of one node
}

func openCertificates(c *Config, log *slog.Logger) (*certificates, error) {
	var certs certificates
	var err error
	if c.TLSCert != "" {
		if certs.api, err = tlsfile.Open(c.TLSCert, c.TLSKey, "", log); err != nil {
			return nil, fmt.Errorf("tls-cert, tls-key: %w", err)
		}
	}
	if c.PeerAddress != off {
		if certs.peers, err = tlsfile.Open(c.PeerCert, c.PeerKey, c.PeerCA, log); err != nil {
			return nil, fmt.Errorf("peer-cert, peer-key, peer-ca: %w", err)
		}
	}
	return &certs, nil
}

// server is how the ports for clients speak TLS, nil when they do not.
func (c *certificates) server() *tls.Config {
	if c.api == nil {
		return nil
	}
	// gRPC is HTTP/2 and its clients insist on hearing so (ALPN); the HTTP server speaks both. Clients may be older than TLS 1.3.
	return c.api.ServerConfig("h2", "http/1.1")
}

// peer is the cluster side of the configuration, nil when there is none.
func (c *certificates) peer(o *Config) *node.Peer {
	if c.peers == nil {
		return nil
	}
	return &node.Peer{
		Listen: o.PeerAddress, Advertise: o.advertisedPeer(), TLS: c.peers, Members: o.Members, Join: o.Join, NonVoter: o.JoinAs == "nonvoter",
	}
}

func listen(address string, secure *tls.Config) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if err != nil || secure == nil {
		return l, err
	}
	return tls.NewListener(l, secure), nil
}

// watch has the certificates reread when their files change, and at once on a hang-up signal.
func (c *certificates) watch(ctx context.Context, log *slog.Logger) {
	hangUp := make(chan os.Signal, 1)
	signal.Notify(hangUp, reloadSignals...)
	for _, f := range []*tlsfile.Files{c.api, c.peers} {
		if f != nil {
			go f.Run(ctx)
		}
	}
	go func() {
		defer signal.Stop(hangUp)
		for {
			select {
			case <-ctx.Done():
				return
			case <-hangUp:
			}
			for _, f := range []*tlsfile.Files{c.api, c.peers} {
				if f == nil {
					continue
				}
				if err := f.Reload(); err != nil {
					log.Error("the certificate was not reread", "err", err)
				} else {
					log.Info("certificate reread")
				}
			}
		}
	}()
}
