package ledger

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/provledger/provledger/client/lineage"
)

// Checksums would keep a fuzzer out: the targets get what lies under them and seal it themselves. A decoder accepts exactly what its
// encoder writes.

func FuzzParseCommand(f *testing.F) {
	f.Fuzz(func(t *testing.T, content []byte) {
		b := recrc(append([]byte{firstCommandVersion, 0, 0, 0, 0}, content...))
		c, err := ParseCommand(b)
		if err != nil {
			return
		}
		if again := AppendCommand(nil, c); !bytes.Equal(again, b) {
			t.Errorf("%x is read as %+v and written as %x", b, c, again)
		}
		b[1] ^= 1
		if _, err := ParseCommand(b); err == nil {
			t.Error("a wrong checksum is accepted")
		}
	})
}

// fuzzRecord fuzzes a sealed record: parse returns what encoding the parsed record gives.
func fuzzRecord(f *testing.F, parse func([]byte) ([]byte, error)) {
	f.Fuzz(func(t *testing.T, content []byte) {
		b := seal(append([]byte(nil), content...))
		again, err := parse(b)
		if err != nil {
			return
		}
		if !bytes.Equal(again, b) {
			t.Errorf("%x is written as %x", b, again)
		}
		b[len(b)/2] ^= 1
		if _, err := parse(b); err == nil {
			t.Error("a flipped bit is accepted")
		}
	})
}

func FuzzParseApplied(f *testing.F) {
	fuzzRecord(f, func(b []byte) ([]byte, error) { a, err := parseApplied(b); return a.encode(), err })
}

func FuzzParseHead(f *testing.F) {
	fuzzRecord(f, func(b []byte) ([]byte, error) { h, err := parseHead(b); return h.encode(), err })
}

func FuzzParseLog(f *testing.F) {
	fuzzRecord(f, func(b []byte) ([]byte, error) { g, err := parseLog(b); return g.encode(), err })
}

func FuzzParseLocal(f *testing.F) {
	fuzzRecord(f, func(b []byte) ([]byte, error) { s, err := parseLocal(b); return encodeLocal(s), err })
}

func FuzzParseStaged(f *testing.F) {
	fuzzRecord(f, func(b []byte) ([]byte, error) { n, err := parseStaged(b); return encodeStaged(n), err })
}

func FuzzParseExport(f *testing.F) {
	fuzzRecord(f, func(b []byte) ([]byte, error) {
		e, err := ParseExport(b)
		if err != nil {
			return nil, err
		}
		return e.Encode(), nil
	})
}

// FuzzPut offers any bytes as the next chunk of a log: what is taken is what the log's own entries would be stored as, and nothing else
// changes.
func FuzzPut(f *testing.F) {
	_, ahead, behind := pair(f)
	f.Cleanup(func() { mustClose(f, ahead); mustClose(f, behind) })
	e := mustExport(f, ahead)
	f.Fuzz(func(t *testing.T, log uint32, count int, leaves, bodies []byte) {
		stage := mustStage(t, behind, e)
		before, ok := stage.Head(log)
		err := stage.Put(log, Chunk{before.Size, count, leaves, bodies})
		after, _ := stage.Head(log)
		if err != nil {
			if after != before || !errors.Is(err, ErrChunk) {
				t.Errorf("refused with %v: %+v is %+v", err, before, after)
			}
			return
		}
		if !ok || after.Size != before.Size+uint64(count) {
			t.Errorf("%d entries lead from %+v to %+v", count, before, after)
		}
		kind := stage.logs[log].Kind
		var l, b []byte
		c := cursor{b: leaves}
		for len(c.b) > 0 {
			e := c.storedLeaf(kind)
			l = appendStoredLeaf(l, kind, e.RecordedAt, &CommandEntry{EventID: e.EventID, Principal: e.Principal, Authn: e.Authn, Leaf: e.Leaf})
		}
		c = cursor{b: bodies}
		for len(c.b) > 0 {
			if state, body := c.storedBody(); state == bodyKept {
				b = appendStoredBody(b, body)
			} else {
				b = append(b, bodyErased, 0, 0, 0, 0)
			}
		}
		if !bytes.Equal(l, leaves) || !bytes.Equal(b, bodies) {
			t.Errorf("%x, %x would be stored as %x, %x", leaves, bodies, l, b)
		}
	})
}

// FuzzChunk reads a chunk of leaves and one of bodies; what was read, written again, is the chunk up to where reading ended.
func FuzzChunk(f *testing.F) {
	f.Fuzz(func(t *testing.T, chunk []byte) {
		c := cursor{b: chunk}
		var again []byte
		for len(c.b) > 0 {
			e := c.storedLeaf(lineage.LineageLog)
			if c.bad {
				break
			}
			again = appendStoredLeaf(again, lineage.LineageLog, e.RecordedAt, &CommandEntry{Authn: e.Authn, Principal: e.Principal, Leaf: e.Leaf})
		}
		if !bytes.HasPrefix(chunk, again) || !c.bad && len(again) != len(chunk) {
			t.Errorf("leaves %x are written as %x", chunk, again)
		}
		c, again = cursor{b: chunk}, nil
		for len(c.b) > 0 {
			e := c.storedLeaf(lineage.OpaqueLog)
			if c.bad {
				break
			}
			again = appendStoredLeaf(again, lineage.OpaqueLog, e.RecordedAt, &CommandEntry{EventID: e.EventID, Authn: e.Authn, Principal: e.Principal, Leaf: e.Leaf})
		}
		if !bytes.HasPrefix(chunk, again) || !c.bad && len(again) != len(chunk) {
			t.Errorf("opaque leaves %x are written as %x", chunk, again)
		}
		c, again = cursor{b: chunk}, nil
		for len(c.b) > 0 {
			state, body := c.storedBody()
			if c.bad || state != bodyKept {
				break
			}
			again = appendStoredBody(again, body)
		}
		if !bytes.HasPrefix(chunk, again) {
			t.Errorf("bodies %x are written as %x", chunk, again)
		}
	})
}

var update = flag.Bool("update", false, "write the seeds of the fuzz targets")

// TestSeeds keeps the committed seeds valid: a corpus that no longer parses explores nothing.
func TestSeeds(t *testing.T) {
	s := newScript(1)
	s.bootstrap()
	s.membership()
	s.add(s.good(3).encoded())
	unseal := func(b []byte) []byte { return b[:len(b)-4] }
	g, h := testLog(MainLog, MainName), s.m.head(MainLog)
	a := appliedRecord{index: 7, term: 2, digest: s.m.digest, cluster: testCluster, bindings: 1, configIndex: 3, config: []byte("members")}
	var leaves, bodies []byte
	for _, e := range s.events(MainLog, 3) {
		leaves, bodies = appendStoredLeaf(leaves, lineage.LineageLog, 5, &e), appendStoredBody(bodies, e.Body)
	}
	v2 := a
	v2.version = 2
	x := Export{
		ClusterID: testCluster, Position: Position{9, 2, 8, []byte("members")}, Digest: s.m.digest, CommandVersion: 2, Local: "local:a",
		Logs: []LogState{{testLog(SystemLog, SystemName), s.m.head(SystemLog)}, {g, h}, {testOpaque(7, "o"), emptyHead()}},
	}
	seeds := map[string]map[string][]byte{
		"FuzzParseCommand": {
			"bootstrap": s.entries[0].Data[commandHead:], "events": s.entries[2].Data[commandHead:],
			"nothing": (&Command{ClusterID: testCluster}).encoded()[commandHead:],
		},
		"FuzzParseApplied": {"members": unseal(a.encode()), "new": unseal((&appliedRecord{}).encode()), "version-2": unseal(v2.encode())},
		"FuzzParseStaged":  {"staged": unseal(encodeStaged(721))},
		"FuzzParseExport":  {"three-logs": unseal(x.Encode()), "nothing": unseal((&Export{}).Encode())},
		"FuzzParseHead":    {"head": unseal(h.encode())},
		"FuzzParseLog":     {"main": unseal(g.encode())},
		"FuzzParseLocal":   {"local": unseal(encodeLocal("local:a"))},
		"FuzzChunk":        {"leaves": leaves, "bodies": bodies, "opaque": appendStoredLeaf(nil, lineage.OpaqueLog, 5, &s.opaque(1)[0]), "empty-leaf": appendStoredLeaf(nil, lineage.LineageLog, 0, &CommandEntry{})},
	}
	parse := map[string]func([]byte) error{
		"FuzzParseCommand": func(b []byte) error {
			_, err := ParseCommand(recrc(append([]byte{firstCommandVersion, 0, 0, 0, 0}, b...)))
			return err
		},
		"FuzzParseApplied": func(b []byte) error { _, err := parseApplied(seal(b)); return err },
		"FuzzParseHead":    func(b []byte) error { _, err := parseHead(seal(b)); return err },
		"FuzzParseLog":     func(b []byte) error { _, err := parseLog(seal(b)); return err },
		"FuzzParseLocal":   func(b []byte) error { _, err := parseLocal(seal(b)); return err },
		"FuzzParseStaged":  func(b []byte) error { _, err := parseStaged(seal(b)); return err },
		"FuzzParseExport":  func(b []byte) error { _, err := ParseExport(seal(b)); return err },
		"FuzzChunk":        func([]byte) error { return nil },
	}
	for target, files := range seeds {
		for name, seed := range files {
			path := filepath.Join("testdata", "fuzz", target, name)
			if *update {
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, fmt.Appendf(nil, "go test fuzz v1\n[]byte(%q)\n", seed), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			// The script is deterministic, so a seed that differs is of another format.
			want := fmt.Appendf(nil, "go test fuzz v1\n[]byte(%q)\n", seed)
			if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: stale or missing (%v); run go test ./internal/ledger -run TestSeeds -update", path, err)
			}
			if err := parse[target](append([]byte(nil), seed...)); err != nil {
				t.Errorf("%s: %v", path, err)
			}
		}
	}
	_, ahead, behind := pair(t)
	defer mustClose(t, ahead)
	defer mustClose(t, behind)
	for log, first := range map[uint32]uint64{SystemLog: 3, MainLog: 21, 3: 0} {
		c := chunksOf(t, ahead, log, first, first+1)[0]
		path := filepath.Join("testdata", "fuzz", "FuzzPut", fmt.Sprint("log-", log))
		want := fmt.Appendf(nil, "go test fuzz v1\nuint32(%d)\nint(%d)\n[]byte(%q)\n[]byte(%q)\n", log, c.Count, c.Leaves, c.Bodies)
		if *update {
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, want, 0o644)); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: stale or missing (%v)", path, err)
		}
		if err := mustStage(t, behind, mustExport(t, ahead)).Put(log, c); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	// And the other way round: every event of a command opens its body.
	for _, e := range s.events(MainLog, 5) {
		leaf, err := lineage.ParseLeaf(e.Leaf)
		if err != nil {
			t.Fatal(err)
		}
		parts, rest, err := lineage.ParseBody(e.Body)
		if err != nil || len(rest) > 0 {
			t.Fatal(err)
		}
		if err := lineage.OpenBody(leaf, parts); err != nil {
			t.Error(err)
		}
	}
}
