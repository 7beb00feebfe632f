package sequencer

import (
	"sync"

	"github.com/provledger/provledger/client/lineage"
)

// maxCachedNames bounds the cache of name hashes of a log: jobs and environments are few and recur with every event.
const maxCachedNames = 4096

// nameCache computes a log's name hashes and remembers them.
type nameCache struct {
	key lineage.Key
	mu  sync.RWMutex
	m   map[lineage.Name]lineage.Hash
}

func (c *nameCache) hash(n lineage.Name) lineage.Hash {
	c.mu.RLock()
	h, ok := c.m[n]
	c.mu.RUnlock()
	if ok {
		return h
	}
	h = lineage.HashName(&c.key, n)
	c.mu.Lock()
	if len(c.m) >= maxCachedNames {
		clear(c.m)
	}
	c.m[n] = h
	c.mu.Unlock()
	return h
}

// maxNameCaches bounds the logs with a cache of name hashes. Beyond it all are dropped: with so many logs a name costs one hash, not a
// gigabyte.
const maxNameCaches = 256

// names is the caches of all logs.
type names struct {
	mu sync.RWMutex
	m  map[uint32]*nameCache
}

func (n *names) get(log uint32) *nameCache {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.m[log]
}

func (n *names) put(log uint32, key lineage.Key) *nameCache {
	n.mu.Lock()
	defer n.mu.Unlock()
	if c := n.m[log]; c != nil {
		return c
	}
	if n.m == nil || len(n.m) >= maxNameCaches {
		n.m = map[uint32]*nameCache{}
	}
	c := &nameCache{key: key, m: map[lineage.Name]lineage.Hash{}}
	n.m[log] = c
	return c
}

// composer returns the composer of a log.
func (s *Sequencer) composer(log uint32) (lineage.Composer, error) {
	c := s.names.get(log)
	if c == nil {
		key, err := s.o.Ledger.ReferenceKey(log)
		if err != nil {
			return lineage.Composer{}, err
		}
		c = s.names.put(log, key)
	}
	return lineage.Composer{HashName: c.hash, NewKey: s.keys.next}, nil
}

// keySource hands out random keys, read in bulk: one call of the system for 128 keys instead of one each.
type keySource struct {
	random func([]byte)
	mu     sync.Mutex
	buf    [4096]byte
	left   int
}

func (k *keySource) next() (key lineage.Key) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.left < len(key) {
		k.random(k.buf[:])
		k.left = len(k.buf)
	}
	p := k.buf[len(k.buf)-k.left:][:len(key)]
	copy(key[:], p)
	clear(p) // a key stands in one place only
	k.left -= len(key)
	return key
}
