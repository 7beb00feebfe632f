package lineage

// Limits of schema 1. They are part of the format: raising one needs a new schema, for verifiers enforce them too.
const (
	// MaxLeafBytes is the largest leaf: C2SP tile entry bundles frame an entry with a 16-bit length.
	MaxLeafBytes = 65_535
	// MaxReferences an event: beyond that the producer makes a manifest artifact of its own.
	MaxReferences = 1_000
	// MaxAliases a reference: digests of the same bytes; more kinds than this do not exist in practice.
	MaxAliases = 8
	// MaxEntryLinks is the number of entries that one event may rely on.
	MaxEntryLinks = 256
	// MaxBodyBytes is the largest body of an event, all parts: 1 MiB keeps a request of a few events under gRPC's 4 MiB.
	MaxBodyBytes = 1 << 20
	// MaxDocuments an event.
	MaxDocuments = 64
	// MaxPrincipal is the longest principal or initiator id: also the longest name that C2SP cosigners accept.
	MaxPrincipal = 255
	// MaxPredicateType is the longest predicate type URI; it stands in the leaf.
	MaxPredicateType = 255
	// MaxNameBytes is the longest namespace, name, version or media type.
	MaxNameBytes = 1_024
	// MaxURIBytes is the longest URI; presigned URLs run to 2 KiB.
	MaxURIBytes = 4_096
	// MaxTime bounds every time: the year 9999, the last that RFC 3339 can write.
	MaxTime int64 = 253_402_300_799_999_999
	// MaxEntryBytes bounds the stored size of an entry: leaf and body with their framing.
	MaxEntryBytes = MaxLeafBytes + MaxBodyBytes + maxParts*64 + 255
)
