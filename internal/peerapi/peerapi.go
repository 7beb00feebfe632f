// Package peerapi is how the nodes of a cluster ask each other: the node service over the peer port, its server and its client.
//
// The server answers members only, but for Status and Join, by which a node comes to be one. What catch-up costs the serving node is
// bounded here: so many streams at a time, so many bytes and seconds a call, so many bytes a second if the operator says so. A stream
// that hits a bound ends in good order and the client asks for the rest, so callers take turns and nobody starves. Errors keep their
// class across the wire by one table.
//
// proto/ledgernode/v1/node.proto has the messages.
package peerapi

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/provledger/provledger/client/lineage"
	"github.com/provledger/provledger/internal/ledger"
	"github.com/provledger/provledger/internal/peer"
)

const (
	// pieceBytes is the size of a piece of an export, and of chunks sent together: small beside gRPC's flow-control window growth, large
	// beside the cost of a message. A single chunk may be larger.
	pieceBytes = 256 << 10
	// maxMessageBytes bounds a message: one stored chunk never exceeds the command that brought it, and the framing is small.
	maxMessageBytes = ledger.MaxCommandBytes + 1<<20
	// maxExportBytes bounds an export as received. A log takes some 300 bytes of it, so this is half a million logs.
	maxExportBytes = 256 << 20
	// maxStreams is how many exports and chunk streams a node serves at a time. Each reads the store and holds a snapshot of it; two
	// saturate a disk, and the others hide the network.
	maxStreams = 4
	// maxCallBytes and maxCallTime end a chunk stream in good order, so that streams that wait for a turn get one, and no snapshot of
	// the store is held for long.
	maxCallBytes = 64 << 20
	maxCallTime  = 20 * time.Second
	// streamTimeout bounds a call for a stream at the client, the wait for a turn included: a server that says nothing is left, and one whose
	// client has stopped reading gets its turn back.
	streamTimeout = 2 * time.Minute
	// maxMissingKeys bounds the names of logs without a key in a status; their number is there too.
	maxMissingKeys = 16
	// keepaliveTime and keepaliveTimeout find a peer that is there and answers nothing, as a stopped process, so that its streams end.
	keepaliveTime    = 5 * time.Second
	keepaliveTimeout = 5 * time.Second
)

// Status says who a node is and how it is. What is about a ledger is zero while Fresh.
type Status struct {
	ClusterID, NodeID, BootID lineage.ID
	Address, APIAddress       string // as advertised, HOST:PORT
	Fresh                     bool   // there is no ledger here yet
	State                     string // one of the states below
	Term                      uint64
	Leader                    string // node id, "" unknown
	Applied, Durable          uint64 // raft indexes
	FirstLog, LastLog         uint64 // ends of the raft log
	Configuration             uint64 // raft index of the newest membership that it has
	MinCommand, MaxCommand    uint8  // versions of commands that it applies
	Version                   string // of the program
	Now                       int64  // its clock, microseconds since the Unix epoch
	MissingKeys               []string
	MissingKeyCount           int
	Quarantine, NotReady      string // why, "" if not
	FreeBytes                 uint64
	Full                      bool  // its disk is too full for appends: as leader it would refuse all of them
	CertificateExpires        int64 // of its own certificate, microseconds since the Unix epoch; 0 unknown
}

// States of a node.
const (
	StateServing     = "serving"
	StateCatchingUp  = "catching up"
	StateRepairing   = "repairing"
	StateQuarantined = "quarantined"
	StateJoining     = "joining"
	StateStarting    = "starting"
)

// JoinRequest asks to become a member.
type JoinRequest struct {
	NodeID  lineage.ID
	Address string // HOST:PORT of its peer port
	Voter   bool   // it wants to vote once it has caught up
}

// JoinReply says what became of it.
type JoinReply struct {
	ClusterID lineage.ID
	Leader    string // peer address of the node to ask instead, "" if this one decided or knows of none
	Admitted  bool   // it is in the membership
}

// Backend is the node behind the service. Its methods may be called at any time after [Register], also before there is a ledger.
type Backend interface {
	// Status must be cheap: it is asked for several times a second.
	Status(ctx context.Context) Status
	// Member reports whether a peer is a member of the cluster: whether it may ask for what only members get.
	Member(r peer.Remote) bool
	Term() uint64
	// ReadIndex returns the read fence of a leader; an error wraps [ErrNotLeader] on others.
	ReadIndex(ctx context.Context) (uint64, error)
	// Join decides about a request; an error wraps [ErrRefused] when asking again is of no use.
	Join(ctx context.Context, r peer.Remote, q JoinRequest) (JoinReply, error)
	// Ledger returns the ledger and a function that gives it back: it is not closed before. An error wraps [ErrFresh] while there is none.
	Ledger() (*ledger.Ledger, func(), error)
	// Checkpoint returns the signed checkpoint of a log at a size that it has reached.
	Checkpoint(ctx context.Context, log uint32, size uint64) ([]byte, error)
}

// ServerOptions are what a gRPC server needs for this service, beside credentials.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveTime / 2, PermitWithoutStream: true}),
		grpc.MaxRecvMsgSize(maxMessageBytes),
	}
}
