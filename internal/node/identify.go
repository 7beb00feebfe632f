package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/provledger/provledger/client/lineage"
)

// Directories of the stores inside a ledger directory, for whoever looks into one offline.
const (
	RaftDir  = raftDir
	StateDir = stateDir
	// SignerDir holds the records of what was signed.
	SignerDir = signerDir
)

// Identity is what FORMAT says of a ledger directory.
type Identity struct {
	Format    int
	ClusterID lineage.ID
	NodeID    lineage.ID
}

// Identify locks a ledger directory and reads whose it is. It makes and repairs nothing, and does without the secret. The caller
// releases the lock. An error wraps ErrBusy when another process has the directory and ErrFormat when it is no ledger.
func Identify(path string) (id Identity, release func() error, err error) {
	fs := vfs.Default
	d := &directory{fs: fs, path: path}
	if _, err := fs.Stat(d.join(formatFile)); err != nil { // before locking, which makes a file
		return id, nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	lock, err := fs.Lock(d.join(lockFile))
	if _, ok := errors.AsType[*os.PathError](err); ok {
		return id, nil, err
	} else if err != nil {
		return id, nil, fmt.Errorf("%w: %s: %w", ErrBusy, path, err)
	}
	b, err := d.readFile(formatFile)
	if err == nil {
		err = json.Unmarshal(b, &d.format)
	}
	if err == nil && d.Version != formatVersion {
		err = fmt.Errorf("%w: %s has format %d, this program knows %d", ErrFormat, path, d.Version, formatVersion)
	}
	if err != nil {
		return id, nil, errors.Join(err, lock.Close())
	}
	return Identity{d.Version, d.ClusterID, d.NodeID}, lock.Close, nil
}
