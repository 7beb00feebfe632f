package lineage_test

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"

	"pgregory.net/rapid"

	"github.com/provledger/provledger/client/lineage"
)

// Generators of valid leaves and events. They reach every field, and every length of a CBOR head.

var (
	genText = rapid.StringOfN(rapid.RuneFrom([]rune("abz09:/-. é漢😀")), 0, 80, 250)
	genWord = genText.Filter(func(s string) bool { return s != "" })
	genTime = rapid.Int64Range(1, lineage.MaxTime)
	genID   = rapid.Custom(func(t *rapid.T) lineage.ID {
		return lineage.ID(append([]byte{1}, rapid.SliceOfN(rapid.Byte(), 15, 15).Draw(t, "id")...))
	})
	genHash = rapid.Custom(func(t *rapid.T) lineage.Hash {
		return lineage.Hash(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "hash"))
	})
	genNumber = rapid.OneOf(rapid.Uint64Range(0, 300), rapid.Uint64Range(65_000, 66_000), rapid.Uint64())
)

var sizes = map[lineage.Algorithm][]int{
	lineage.SHA256: {32}, lineage.SHA384: {48}, lineage.SHA512: {64}, lineage.SHA512256: {32}, lineage.SHA3256: {32}, lineage.SHA3384: {48},
	lineage.SHA3512: {64}, lineage.BLAKE2b: {64}, lineage.BLAKE3: {32}, lineage.DirHash: {32}, lineage.GitCommit: {20, 32},
	lineage.GitTree: {20, 32}, lineage.GitBlob: {20, 32}, lineage.GitTag: {20, 32}, lineage.OMSRoot: {32}, lineage.SHA1: {20}, lineage.MD5: {16},
}

func genDigest(alias bool) *rapid.Generator[lineage.Digest] {
	return rapid.Custom(func(t *rapid.T) lineage.Digest {
		a := lineage.Algorithm(rapid.Uint8Range(2, 18).Filter(func(a uint8) bool {
			return alias || a != uint8(lineage.OMSRoot) && a != uint8(lineage.SHA1) && a != uint8(lineage.MD5)
		}).Draw(t, "algorithm"))
		n := rapid.SampledFrom(sizes[a]).Draw(t, "size")
		return lineage.Digest{Algorithm: a, Value: string(rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, "value"))}
	})
}

func maybe[T any](t *rapid.T, g *rapid.Generator[T]) (v T) {
	if rapid.Bool().Draw(t, "set") {
		v = g.Draw(t, "value")
	}
	return v
}

var genName = rapid.Custom(func(t *rapid.T) lineage.Name {
	return lineage.Name{Namespace: maybe(t, genWord), Name: genWord.Draw(t, "name"), Version: maybe(t, genWord)}
})

var genReference = rapid.Custom(func(t *rapid.T) lineage.Reference {
	f := lineage.Reference{
		Role: lineage.Role(rapid.Uint8Range(1, 3).Draw(t, "role")), Kind: lineage.ArtifactKind(rapid.Uint8Range(0, 6).Draw(t, "kind")),
		Purpose: lineage.Purpose(rapid.Uint8Range(0, 14).Draw(t, "purpose")), Known: lineage.NameOnly,
		Aliases: rapid.SliceOfNDistinct(genDigest(true), 0, 3, rapid.ID).Draw(t, "aliases"),
		URI:     maybe(t, genWord), MediaType: maybe(t, genWord), Size: rapid.Int64Range(0, 1<<62).Draw(t, "bytes"),
	}
	if rapid.Bool().Draw(t, "digest") {
		f.Known = rapid.SampledFrom([]lineage.Known{lineage.Computed, lineage.Claimed, lineage.StoreVersion, lineage.Changed}).Draw(t, "known")
		f.Digest = genDigest(false).Filter(func(d lineage.Digest) bool { return !slices.Contains(f.Aliases, d) }).Draw(t, "identity")
		f.Name = maybe(t, genName)
	} else {
		f.Name = genName.Draw(t, "name")
	}
	return f
})

var genEntries = rapid.Custom(func(t *rapid.T) []uint64 {
	e := rapid.SliceOfNDistinct(genNumber, 0, 30, rapid.ID).Draw(t, "entries")
	slices.Sort(e)
	return e
})

// genEvent generates events that a producer may send.
var genEvent = rapid.Custom(func(t *rapid.T) *lineage.Event {
	e := &lineage.Event{
		ID: genID.Draw(t, "id"), Kind: lineage.Kind(rapid.Uint8Range(1, 4).Draw(t, "kind")), Source: lineage.Source(rapid.Uint8Range(0, 3).Draw(t, "source")),
		OccurredAt: maybe(t, genTime), Initiator: maybe(t, genWord), RunID: maybe(t, genID), ParentRunID: maybe(t, genID), Job: maybe(t, genName),
		References: rapid.SliceOfN(genReference, 0, 30).Draw(t, "references"), Target: maybe(t, genName),
		Entries: genEntries.Draw(t, "entries"), Policy: maybe(t, genDigest(false)), ExpiresAt: maybe(t, genTime),
		Documents: rapid.SliceOfN(rapid.Custom(func(t *rapid.T) lineage.Document {
			return lineage.Document{MediaType: maybe(t, genWord), Name: maybe(t, genWord), Content: rapid.SliceOfN(rapid.Byte(), 0, 700).Draw(t, "content")}
		}), 0, 3).Draw(t, "documents"),
	}
	switch e.Kind {
	case lineage.KindRun:
		e.Action, e.RunID = rapid.Uint8Range(1, 6).Draw(t, "state"), genID.Draw(t, "run")
	case lineage.KindAttestation:
		e.PredicateType = genWord.Draw(t, "predicate type")
	case lineage.KindLifecycle:
		e.References = append(e.References, genReference.Draw(t, "subject"))
		e.Action = rapid.Uint8Range(1, 9).Draw(t, "verb")
	case lineage.KindAccess:
		e.References = append(e.References, genReference.Draw(t, "subject"))
		e.Action = rapid.Uint8Range(1, 4).Draw(t, "verb")
	}
	return e
})

var genStamp = rapid.Custom(func(t *rapid.T) lineage.Stamp {
	return lineage.Stamp{RecordedAt: genTime.Draw(t, "recorded"), Principal: genWord.Draw(t, "principal"), Authn: lineage.Authn(rapid.Byte().Draw(t, "authn"))}
})

// only keeps what belongs to a control kind.
func only(k lineage.ControlKind, c *lineage.Control) *lineage.Control {
	switch k {
	case lineage.ControlGenesis:
		c.LogNumber, c.Principal, c.Owner = 0, "", ""
		return c
	case lineage.ControlLog:
		return &lineage.Control{Origin: c.Origin, LogKind: c.LogKind, CreatedAt: c.CreatedAt, VKey: c.VKey, LogNumber: max(c.LogNumber, 1), LogName: c.LogName}
	case lineage.ControlPrincipal:
		return &lineage.Control{Principal: c.Principal + "p", Owner: c.Owner}
	}
	return &lineage.Control{}
}

var genControl = rapid.Custom(func(t *rapid.T) *lineage.Control {
	c := &lineage.Control{
		Origin: genWord.Draw(t, "origin"), LogKind: lineage.LogKind(rapid.Uint8Range(1, 2).Draw(t, "log kind")), ClusterID: genID.Draw(t, "cluster"),
		HashAlgorithm: lineage.Algorithm(rapid.Uint8Range(1, 18).Draw(t, "hash")), CreatedAt: genTime.Draw(t, "created"), VKey: genWord.Draw(t, "vkey"),
		SchemaID: genWord.Draw(t, "schema"), SchemaDigest: genDigest(true).Draw(t, "digest"), IndexFunction: maybe(t, genNumber), LogNumber: maybe(t, rapid.Uint32()),
		LogName: genWord.Draw(t, "log name"), Principal: maybe(t, genWord), Owner: maybe(t, genWord),
	}
	if rapid.Bool().Draw(t, "predecessor") {
		c.Predecessor = &lineage.Predecessor{Origin: genText.Draw(t, "origin"), Size: genNumber.Draw(t, "size"), Root: genHash.Draw(t, "root"), VKey: genText.Draw(t, "vkey")}
	}
	return c
})

// genLeaf generates leaves by composing events, and control leaves, which no producer sends.
var genLeaf = rapid.Custom(func(t *rapid.T) *lineage.Leaf {
	leaf, _, err := countingComposer().Compose(nil, genEvent.Draw(t, "event"), genStamp.Draw(t, "stamp"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := lineage.ParseLeaf(leaf)
	if err != nil {
		t.Fatal(err)
	}
	if rapid.Bool().Draw(t, "control") {
		k := lineage.ControlKind(rapid.Uint8Range(1, 13).Draw(t, "action"))
		l.Kind, l.Action, l.PredicateType = lineage.KindControl, uint8(k), ""
		l.Control = only(k, genControl.Draw(t, "control"))
		if k == lineage.ControlGenesis {
			l.Bodies = append(l.Bodies, lineage.Commitment{Part: lineage.PartReferenceKey, MAC: genHash.Draw(t, "mac")})
		}
	}
	return l
})

var testReferenceKey = lineage.Key{0: 7, 31: 7}

func testHashName(n lineage.Name) lineage.Hash { return lineage.HashName(&testReferenceKey, n) }

// countingComposer draws its keys from a counter, so that the same events give the same bytes.
func countingComposer() lineage.Composer {
	n := uint64(0)
	return lineage.Composer{HashName: testHashName, NewKey: func() lineage.Key {
		n++
		var b [8]byte
		binary.BigEndian.PutUint64(b[:], n)
		return sha256.Sum256(b[:])
	}}
}

func keysOf(body []lineage.BodyPart) (keys []lineage.Key) {
	for i := range body {
		keys = append(keys, body[i].Key)
	}
	return keys
}
