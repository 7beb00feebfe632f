package peer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/provledger/provledger/client/lineage"
)

// Hello is what a node says of itself at the begin of every connection.
type Hello struct {
	ClusterID     lineage.ID // zero: a node that belongs to no cluster yet
	NodeID        lineage.ID
	BootID        lineage.ID // random at every start of the process
	Configuration uint64     // raft index of the newest membership that the sender holds
	Address       string     // peer address that it advertises, HOST:PORT
	APIAddress    string     // gRPC address that it advertises to clients, "" if it does not
}

// A hello on the wire, all integers big-endian:
//
//	"plhello"           7 bytes
//	version             1 byte, 1
//	length              2 bytes, of what follows
//	cluster, node, boot 16 bytes each
//	configuration       8 bytes
//	address             2 bytes length, then text
//	API address         likewise
//	refusal             likewise; "" unless it is the answer to a peer that is not wanted
//
// What follows the refusal within the length is ignored: a later node may say more to those who know it.
const (
	helloMagic   = "plhello"
	helloVersion = 1
	headBytes    = len(helloMagic) + 1 + 2
	fixedBytes   = 3*16 + 8

	// maxAddressBytes is the longest DNS name (253) with colon and port.
	maxAddressBytes = 253 + 1 + 5
	// maxRefusalBytes is for a sentence or two; longer ones are cut.
	maxRefusalBytes = 512
	// maxHelloBytes is twice what this version sends, the rest for later ones.
	maxHelloBytes = 2 * (fixedBytes + 3*2 + 2*maxAddressBytes + maxRefusalBytes)
)

// appendHello encodes a hello with its refusal.
func appendHello(b []byte, h Hello, refusal string) ([]byte, error) {
	if max(len(h.Address), len(h.APIAddress)) > maxAddressBytes {
		return nil, fmt.Errorf("an address longer than %d bytes cannot be advertised", maxAddressBytes)
	}
	refusal = refusal[:min(len(refusal), maxRefusalBytes)]
	b = append(b, helloMagic...)
	b = append(b, helloVersion)
	b = binary.BigEndian.AppendUint16(b, uint16(fixedBytes+3*2+len(h.Address)+len(h.APIAddress)+len(refusal)))
	b = append(b, h.ClusterID[:]...)
	b = append(b, h.NodeID[:]...)
	b = append(b, h.BootID[:]...)
	b = binary.BigEndian.AppendUint64(b, h.Configuration)
	for _, s := range []string{h.Address, h.APIAddress, refusal} {
		b = binary.BigEndian.AppendUint16(b, uint16(len(s)))
		b = append(b, s...)
	}
	return b, nil
}

// readHello reads one hello and not a byte more.
func readHello(r io.Reader) (h Hello, refusal string, err error) {
	var head [headBytes]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return Hello{}, "", err
	}
	if string(head[:len(helloMagic)]) != helloMagic {
		return Hello{}, "", errors.New("what came instead of a hello is none")
	}
	if v := head[len(helloMagic)]; v != helloVersion {
		return Hello{}, "", fmt.Errorf("a hello of version %d, and this node knows version %d", v, helloVersion)
	}
	n := int(binary.BigEndian.Uint16(head[headBytes-2:]))
	if n > maxHelloBytes {
		return Hello{}, "", fmt.Errorf("a hello of %d bytes, and %d are the most", n, maxHelloBytes)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return Hello{}, "", noEOF(err)
	}
	return parseHello(b)
}

func parseHello(b []byte) (h Hello, refusal string, err error) {
	if len(b) < fixedBytes {
		return Hello{}, "", errShortHello
	}
	copy(h.ClusterID[:], b)
	copy(h.NodeID[:], b[16:])
	copy(h.BootID[:], b[32:])
	h.Configuration = binary.BigEndian.Uint64(b[48:])
	b = b[fixedBytes:]
	for _, f := range []struct {
		to  *string
		max int
	}{{&h.Address, maxAddressBytes}, {&h.APIAddress, maxAddressBytes}, {&refusal, maxRefusalBytes}} {
		if len(b) < 2 {
			return Hello{}, "", errShortHello
		}
		n := int(binary.BigEndian.Uint16(b))
		b = b[2:]
		if n > f.max {
			return Hello{}, "", fmt.Errorf("a hello with a text of %d bytes where %d are the most", n, f.max)
		}
		if len(b) < n {
			return Hello{}, "", errShortHello
		}
		*f.to = string(b[:n])
		b = b[n:]
	}
	if h.NodeID == (lineage.ID{}) || h.BootID == (lineage.ID{}) {
		return Hello{}, "", errors.New("a hello without node id or boot id")
	}
	return h, refusal, nil
}

var errShortHello = errors.New("a hello that ends within a field")

// noEOF says that the end came too early.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
