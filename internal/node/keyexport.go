package node

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/signer"
)

// ExportKey returns the private key of a log, as the text of a key file, and its verifier key. It is derived from the secret in the ledger
// directory, which no process may have open; nothing is changed. A log that was created just before an unclean stop is not found before the next
// start.
func ExportKey(path, log string, logger *slog.Logger) (private []byte, vkey string, err error) {
	id, release, err := Identify(path)
	if err != nil {
		return nil, "", err
	}
	defer func() { err = errors.Join(err, release()) }()
	d := &directory{fs: vfs.Default, path: path}
	if err := d.readSecret(); err != nil {
		return nil, "", err
	}
	if d.secret == nil {
		return nil, "", fmt.Errorf("%w: %s has no %s to derive one from", signer.ErrNoKey, path, secretFile)
	}
	l, err := ledger.Open(ledger.Options{
		FS: vfs.Default, Dir: d.join(stateDir), ClusterID: id.ClusterID, ReadOnly: true, MemTableBytes: 1 << 20, BlockCacheBytes: 1 << 20,
		Logger: logger, Die: func(reason string, err error) { panic("node: read-only store: " + reason) },
	})
	if err != nil {
		return nil, "", err
	}
	defer func() { err = errors.Join(err, l.Abandon()) }()
	g, err := l.LogByName(log)
	if err != nil {
		return nil, "", err
	}
	key, err := signer.DeriveKey(d.secret, g.Origin)
	if err != nil {
		return nil, "", err
	}
	if key.VKey() != g.VKey {
		return nil, "", fmt.Errorf("%w: log %s has %s, the secret in %s gives %s", signer.ErrNoKey, g.Name, g.VKey, path, key.VKey())
	}
	private, err = signer.ExportKey(d.secret, g.Origin)
	return private, g.VKey, err
}
