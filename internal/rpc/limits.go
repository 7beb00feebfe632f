package rpc

import "time"

// Limits of the API, with their reasons.
const (
	// MaxRequestBytes is gRPC's own default: what every client sends without being told.
	MaxRequestBytes = 4 << 20
	// maxPage entries and maxPageBytes end a page: an answer must fit a client's default of 4 MiB too.
	maxPage      = 1_000
	defaultPage  = 100
	maxPageBytes = 3 << 20
	// maxScan bounds the entries that one FindEntries page reads: a second or so.
	maxScan = 500_000
	// maxKeys bounds the alternatives of one FindEntries request.
	maxKeys = 1_000
	// minPrefix is the shortest digest prefix: 32 bits, below which a prefix says little.
	minPrefix = 8
	// maxTokenBytes is far above what a page token has.
	maxTokenBytes = 256

	// maxStreams a connection: enough for a busy pipeline, few enough that one connection cannot take all.
	maxStreams = 128
	// maxHeaderBytes bounds metadata, which nobody needs much of.
	maxHeaderBytes = 16 << 10
	// connectionTimeout bounds the handshake: a silent connection is not worth the default of two minutes.
	connectionTimeout = 5 * time.Second
	// keepalive: peers that vanished are noticed within a minute; clients may ping as often as every ten seconds.
	keepaliveMin     = 10 * time.Second
	keepaliveTime    = 30 * time.Second
	keepaliveTimeout = 10 * time.Second
	// maxConnectionIdle and maxConnectionAge let connections spread over nodes again.
	maxConnectionIdle = 15 * time.Minute
	maxConnectionAge  = 2 * time.Hour
	connectionGrace   = 5 * time.Minute
	// bufferBytes is a connection's read and write buffer: a batch of a thousand events is some 700 KiB each way, and every refill is a
	// call of the system.
	bufferBytes = 128 << 10
	// streamWindow and connectionWindow are what a client may send ahead: a whole batch, and a few of them, without waiting.
	streamWindow     = 1 << 20
	connectionWindow = 4 << 20

	// maxReads and maxWrites at once: reads must not keep writes out, nor the other way round. A write waits for the disk, so many may
	// be on their way; a read costs CPU, so few more than cores make sense, and the rest queue. One that waits for entries or for the
	// leader costs none and is not counted.
	maxReads  = 64
	maxWrites = 4_096
	// maxScans at once: each keeps a core busy, and they must not keep point reads waiting.
	maxScans = 4
	// maxOpenStreams over all connections: watchers cost little while nothing happens.
	maxOpenStreams = 1_024
	// callTimeout is for callers who set no deadline on a unary call.
	callTimeout = 60 * time.Second
)
