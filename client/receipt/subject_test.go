package receipt

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/provledger/provledger/client/lineage"
)

func dig(a lineage.Algorithm, n int, c string) lineage.Digest {
	return lineage.Digest{Algorithm: a, Value: strings.Repeat(c, n)}
}

func TestSubject(t *testing.T) {
	sha := dig(lineage.SHA256, 32, "s")
	ref := func(d lineage.Digest, aliases ...lineage.Digest) lineage.Reference {
		return lineage.Reference{Role: lineage.Input, Known: lineage.Computed, Digest: d, Aliases: aliases}
	}
	big := dig(lineage.SHA512, 64, "s")
	named := func(aliases ...lineage.Digest) lineage.Reference {
		return lineage.Reference{Role: lineage.Input, Known: lineage.NameOnly, Name: lineage.Name{Name: "table"}, Aliases: aliases}
	}
	name := lineage.Reference{Role: lineage.Input, Known: lineage.NameOnly, Name: lineage.Name{Name: "table"}}
	for _, c := range []struct {
		name       string
		references []lineage.Reference
		subject    []lineage.Digest
		want       Outcome
		says       string
	}{
		{"identity", []lineage.Reference{ref(sha)}, []lineage.Digest{sha}, Verified, "references[0] by its identity"},
		{"second reference", []lineage.Reference{ref(dig(lineage.SHA256, 32, "x")), ref(sha)}, []lineage.Digest{sha}, Verified, "references[1] by its identity"},
		{"both references", []lineage.Reference{ref(sha), ref(sha)}, []lineage.Digest{sha}, Verified, "references[0] by its identity " + sha.String() + "; references[1]"},
		{"other bytes", []lineage.Reference{ref(dig(lineage.SHA256, 32, "x")), ref(dig(lineage.SHA256, 32, "y"))}, []lineage.Digest{sha}, NotVerified, "none of the 2 artifacts"},
		{"no reference", nil, []lineage.Digest{sha}, Unknown, "no artifact"},
		{"no digest", []lineage.Reference{ref(sha)}, nil, Unknown, "no digest"},
		// The identity counts first, and nobody has computed it.
		{"alias", []lineage.Reference{ref(dig(lineage.BLAKE3, 32, "b"), dig(lineage.MD5, 16, "m"), sha)}, []lineage.Digest{sha}, Unknown, "its alias " + sha.String() + " is equal, its identity by blake3 was not computed"},
		{"alias of a commit", []lineage.Reference{ref(dig(lineage.GitCommit, 20, "g"), sha)}, []lineage.Digest{sha}, Unknown, "identity by gitCommit was not computed"},
		{"SHA-512 identity", []lineage.Reference{ref(big, sha)}, []lineage.Digest{sha, big}, Verified, "identity sha512"},
		{"other SHA-512 identity, alias", []lineage.Reference{ref(dig(lineage.SHA512, 64, "x"), sha)}, []lineage.Digest{sha, big}, NotVerified, "its identity is another sha512"},
		{"the same, beside the file itself", []lineage.Reference{ref(dig(lineage.SHA512, 64, "x"), sha), ref(sha)}, []lineage.Digest{sha, big}, Verified, "references[1] by its identity"},
		{"weak identity, alias", []lineage.Reference{ref(dig(lineage.GitBlob, 20, "g"), sha)}, []lineage.Digest{sha, dig(lineage.GitBlob, 20, "g")}, Verified, "by its alias"},
		{"identity equal, alias differs", []lineage.Reference{ref(sha, dig(lineage.SHA512, 64, "x"))}, []lineage.Digest{sha, big}, Verified, "by its identity"},
		{"directory with the alias of a file", []lineage.Reference{ref(dig(lineage.DirHash, 32, "d"), sha)}, []lineage.Digest{sha}, NotVerified, "not that of a plain file"},
		{"Git tree with the alias of a file", []lineage.Reference{ref(dig(lineage.GitTree, 32, "d"), sha)}, []lineage.Digest{sha}, NotVerified, "not that of a plain file"},
		{"file with the alias of a directory", []lineage.Reference{ref(sha, dig(lineage.DirHash, 32, "d"))}, []lineage.Digest{dig(lineage.DirHash, 32, "d")}, NotVerified, "not that of a directory"},
		{"Git tree with the alias of a directory", []lineage.Reference{ref(dig(lineage.GitTree, 32, "t"), dig(lineage.DirHash, 32, "d"))}, []lineage.Digest{dig(lineage.DirHash, 32, "d")}, Unknown, "gitTree was not computed"},
		{"Git tree", []lineage.Reference{ref(dig(lineage.GitTree, 32, "t"))}, []lineage.Digest{dig(lineage.DirHash, 32, "d")}, Unknown, "gitTree, which was not computed"},
		{"name, one alias equal and one not", []lineage.Reference{named(sha, dig(lineage.SHA512, 64, "x"))}, []lineage.Digest{sha, big}, NotVerified, "sha512 differs"},
		{"name, other alias", []lineage.Reference{named(dig(lineage.SHA256, 32, "x"))}, []lineage.Digest{sha}, NotVerified, "is of other bytes"},
		{"name, alias not computed", []lineage.Reference{named(dig(lineage.BLAKE3, 32, "x"))}, []lineage.Digest{sha}, Unknown, "alias by blake3 was not computed"},
		{"name, MD5 alias", []lineage.Reference{named(dig(lineage.MD5, 16, "m"))}, []lineage.Digest{sha, dig(lineage.MD5, 16, "m")}, Unknown, "md5 is equal"},
		{"not computed, other alias", []lineage.Reference{ref(dig(lineage.BLAKE3, 32, "b"), dig(lineage.SHA256, 32, "x"))}, []lineage.Digest{sha}, Unknown, "identified by blake3"},
		{"changed", []lineage.Reference{{Role: lineage.Input, Known: lineage.Changed, Digest: sha}}, []lineage.Digest{sha}, Verified, "other bytes when the run ended"},
		{"alias of a name", []lineage.Reference{{Role: lineage.Input, Known: lineage.NameOnly, Name: lineage.Name{Name: "n"}, Aliases: []lineage.Digest{sha}}}, []lineage.Digest{sha}, Verified, "a claim"},
		// The identity says "other bytes", the alias claims "these": what is computed wins.
		{"alias against identity", []lineage.Reference{ref(dig(lineage.SHA256, 32, "x"), dig(lineage.SHA512, 64, "l"))}, []lineage.Digest{sha, dig(lineage.SHA512, 64, "l")}, NotVerified, "other bytes"},
		{"MD5 alias", []lineage.Reference{ref(dig(lineage.BLAKE3, 32, "b"), dig(lineage.MD5, 16, "m"))}, []lineage.Digest{sha, dig(lineage.MD5, 16, "m")}, Unknown, "md5 is equal, which does not prove"},
		{"SHA-1 alias", []lineage.Reference{ref(dig(lineage.BLAKE3, 32, "b"), dig(lineage.SHA1, 20, "m"))}, []lineage.Digest{sha, dig(lineage.SHA1, 20, "m")}, Unknown, "sha1 is equal"},
		{"OMS alias", []lineage.Reference{ref(dig(lineage.DirHash, 32, "d"), dig(lineage.OMSRoot, 32, "o"))}, []lineage.Digest{dig(lineage.DirHash, 32, "x"), dig(lineage.OMSRoot, 32, "o")}, NotVerified, "none of the 1"},
		{"MD5 alias, other SHA-256", []lineage.Reference{ref(dig(lineage.SHA256, 32, "x"), dig(lineage.MD5, 16, "m"))}, []lineage.Digest{sha, dig(lineage.MD5, 16, "m")}, NotVerified, "none of the 1"},
		{"SHA-1 Git blob", []lineage.Reference{ref(dig(lineage.GitBlob, 20, "g"))}, []lineage.Digest{sha, dig(lineage.GitBlob, 20, "g")}, Unknown, "gitBlob is equal"},
		{"SHA-256 Git blob", []lineage.Reference{ref(dig(lineage.GitBlob, 32, "g"))}, []lineage.Digest{sha, dig(lineage.GitBlob, 32, "g")}, Verified, "identity gitBlob"},
		{"algorithm not computed", []lineage.Reference{ref(dig(lineage.BLAKE3, 32, "b"))}, []lineage.Digest{sha}, Unknown, "identified by blake3, which was not computed"},
		{"one differs, one not computed", []lineage.Reference{ref(dig(lineage.SHA256, 32, "x")), ref(dig(lineage.BLAKE3, 32, "b"))}, []lineage.Digest{sha}, Unknown, "references[1]"},
		{"a commit is no file", []lineage.Reference{ref(dig(lineage.SHA256, 32, "x")), ref(dig(lineage.GitCommit, 20, "g"))}, []lineage.Digest{sha}, NotVerified, "none of the 1"},
		{"a name has no bytes", []lineage.Reference{ref(dig(lineage.SHA256, 32, "x")), name}, []lineage.Digest{sha}, NotVerified, "none of the 1"},
		{"names only", []lineage.Reference{name}, []lineage.Digest{sha}, Unknown, "no artifact that it could be compared with"},
		{"directory", []lineage.Reference{ref(dig(lineage.DirHash, 32, "d"))}, []lineage.Digest{dig(lineage.DirHash, 32, "d")}, Verified, "identity dirHash"},
		{"other directory", []lineage.Reference{ref(dig(lineage.DirHash, 32, "d")), ref(sha)}, []lineage.Digest{dig(lineage.DirHash, 32, "x")}, NotVerified, "none of the 1"},
		{"member without manifest", []lineage.Reference{ref(dig(lineage.DirHash, 32, "d"))}, []lineage.Digest{sha}, Unknown, "manifest is not in this receipt"},
	} {
		l := newTestLog(t, testOrigin, 1)
		e := &lineage.Event{ID: lineage.ID{1}, Kind: lineage.KindRun, Action: uint8(lineage.RunComplete), RunID: lineage.ID{1}, References: c.references}
		r := l.receipt(l.add(e), Opened)
		res := Verify(r, l.policy(), []Subject{{Digests: c.subject, Name: "FILE"}}, Require{})
		got := res.last(CheckSubject)
		if got.Outcome != c.want || res.Outcome != c.want || !strings.HasPrefix(got.Detail, "FILE: ") || !strings.Contains(got.Detail, c.says) {
			t.Errorf("%s: want %s, %q, got %s: %s", c.name, c.want, c.says, got.Outcome, got.Detail)
		}
		if res.Facts == nil || (len(res.Matches) > 0) != (c.want == Verified) {
			t.Errorf("%s: facts %v, matches %v", c.name, res.Facts, res.Matches)
		}
	}
}

// TestUnreadSubject: what could not be read is a doubt, and hides no contradiction.
func TestUnreadSubject(t *testing.T) {
	l, at := filled(t)
	unread := Subject{Name: "lost", Err: errors.New("no such file")}
	res := Verify(l.receipt(at, Opened), l.policy(), []Subject{unread, subject("model")}, Require{})
	if res.Outcome != Unknown || res.Facts == nil || len(res.Matches) != 1 || !strings.Contains(res.text(), "subject could not tell: lost: no such file") {
		t.Error(res.text())
	}
	forged := l.receipt(at, Opened)
	forged.Proof.Index--
	if res := Verify(forged, l.policy(), []Subject{unread}, Require{}); res.Outcome != NotVerified {
		t.Error(res.text())
	}
}

func TestAlgorithms(t *testing.T) {
	l := newTestLog(t, testOrigin, 1)
	e := runEvent()
	e.References[0].Aliases = []lineage.Digest{dig(lineage.SHA512, 64, "x"), dig(lineage.MD5, 16, "x")}
	got := Algorithms(l.leaves[l.add(e)])
	if want := []lineage.Algorithm{lineage.SHA256, lineage.SHA512, lineage.MD5}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got := Algorithms([]byte("hello")); got != nil {
		t.Errorf("of no leaf: %v", got)
	}
}

func TestSeveralSubjects(t *testing.T) {
	l, at := filled(t)
	r := l.receipt(at, Withheld)
	res := Verify(r, l.policy(), []Subject{subject("data"), subject("model")}, Require{})
	if res.Outcome != Verified || len(res.Matches) != 2 || res.Matches[0].Subject != "data" || res.Matches[1].Reference != 1 {
		t.Error(res.text(), res.Matches)
	}
	res = Verify(r, l.policy(), []Subject{subject("data"), subject("datA")}, Require{})
	if res.Outcome != NotVerified || len(res.Matches) != 1 {
		t.Error(res.text(), res.Matches)
	}
}

// hexDirHash is the in-toto dirHash of files in the order given.
func hexDirHash(files [][2]string) string {
	h := sha256.New()
	for _, f := range files {
		fmt.Fprintf(h, "%x  %s\n", sha256.Sum256([]byte(f[1])), f[0])
	}
	return hex.EncodeToString(h.Sum(nil))
}

func manifestJSON(hash string, files [][2]string) string {
	var list []string
	for _, f := range files {
		list = append(list, fmt.Sprintf(`{"path":%q,"sha256":"%x","size":%d}`, f[0], sha256.Sum256([]byte(f[1])), len(f[1])))
	}
	return fmt.Sprintf(`{"dirHash":"%s","files":[%s]}`+"\n", hash, strings.Join(list, ","))
}

func TestMembers(t *testing.T) {
	files := [][2]string{{"a.csv", "alpha"}, {"b/c.csv", "gamma"}, {"b/d.csv", "alpha"}}
	good := hexDirHash(files)
	for _, c := range []struct {
		name, document string
		subject        Subject
		want           Outcome
		says           string
	}{
		{"member", manifestJSON(good, files), subject("gamma"), Verified, "file b/c.csv of the directory references[0]"},
		{"member twice", manifestJSON(good, files), subject("alpha"), Verified, "file a.csv, b/d.csv of"},
		{"not a member", manifestJSON(good, files), subject("beta"), NotVerified, "none of the 1"},
		{"no SHA-256", manifestJSON(good, files), Subject{Digests: []lineage.Digest{dig(lineage.SHA512, 64, "x")}}, Unknown, "sha256, which was not computed"},
		{"manifest of another directory", manifestJSON(hexDirHash(files[:2]), files[:2]), subject("alpha"), Unknown, "manifest is not in this receipt"},
		{"manifest that lies about its hash", manifestJSON(good, [][2]string{{"a.csv", "evil"}}), subject("evil"), Unknown, "manifest is not in this receipt"},
		{"order", manifestJSON(hexDirHash([][2]string{files[1], files[0]}), [][2]string{files[1], files[0]}), subject("alpha"), Unknown, ""},
		{"unknown field", strings.Replace(manifestJSON(good, files), `"size"`, `"length"`, 1), subject("alpha"), Unknown, ""},
		{"not JSON", "dirHash", subject("alpha"), Unknown, ""},
		{"no last line feed", strings.TrimSuffix(manifestJSON(good, files), "\n"), subject("alpha"), Unknown, ""},
		{"two values", manifestJSON(good, files) + "{}", subject("alpha"), Unknown, ""},
		{"bad digest", strings.Replace(manifestJSON(good, files), `"sha256":"`, `"sha256":"z`, 1), subject("alpha"), Unknown, ""},
		{"line feed in a path", manifestJSON(hexDirHash([][2]string{{"a\nb", "alpha"}}), [][2]string{{"a\nb", "alpha"}}), subject("alpha"), Unknown, ""},
	} {
		l := newTestLog(t, testOrigin, 1)
		d, err := lineage.ParseDigest("dirHash:" + good)
		if err != nil {
			t.Fatal(err)
		}
		at := l.add(&lineage.Event{
			ID: lineage.ID{1}, Kind: lineage.KindRun, Action: uint8(lineage.RunComplete), RunID: lineage.ID{1},
			References: []lineage.Reference{{Role: lineage.Input, Known: lineage.Computed, Digest: d}},
			Documents:  []lineage.Document{{MediaType: "text/plain", Content: []byte("x")}, {MediaType: lineage.ManifestMediaType, Name: "data", Content: []byte(c.document)}},
		})
		res := Verify(l.receipt(at, Opened), l.policy(), []Subject{c.subject}, Require{})
		if got := res.last(CheckSubject); got.Outcome != c.want || !strings.Contains(got.Detail, c.says) {
			t.Errorf("%s: want %s, %q, got %s: %s", c.name, c.want, c.says, got.Outcome, got.Detail)
		}
		if c.want == Verified && (len(res.Matches) != 1 || res.Matches[0].Via != "member" || res.Matches[0].Path == "") {
			t.Errorf("%s: %v", c.name, res.Matches)
		}
		said := strings.Contains(strings.Join(res.NotChecked, "\n"), "documents[1], which calls itself a manifest")
		if malformed := c.says == "" || c.name == "manifest that lies about its hash"; malformed != said {
			t.Errorf("%s: not checked: %q", c.name, res.NotChecked)
		}
		// Without the body it cannot be told.
		if res := Verify(l.receipt(at, Withheld), l.policy(), []Subject{c.subject}, Require{}); res.Outcome != Unknown {
			t.Errorf("%s, withheld: %s", c.name, res.text())
		}
	}
}

func TestRequire(t *testing.T) {
	l := newTestLog(t, testOrigin, 1)
	run := l.add(runEvent())
	attestation := l.add(&lineage.Event{ID: lineage.ID{3}, Kind: lineage.KindAttestation, PredicateType: "https://slsa.dev/provenance/v1",
		References: []lineage.Reference{{Role: lineage.Subject, Known: lineage.Claimed, Digest: sha256Of("model")}}})
	for _, c := range []struct {
		require  string
		index    uint64
		state    BodyState
		subjects []Subject
		want     Outcome
	}{
		{"", run, Opened, nil, Verified},
		{"kind=run,action=complete,outcome=complete,principal=local:5f2c9e7a41d8b306,role=output,artifact=model,job=fraud-model", run, Opened, []Subject{subject("model")}, Verified},
		{"kind=attestation", run, Opened, nil, NotVerified},
		{"action=fail", run, Opened, nil, NotVerified},
		{"outcome=fail", run, Opened, nil, NotVerified},
		{"principal=local:other", run, Opened, nil, NotVerified},
		{"job=training/fraud-model", run, Opened, nil, Verified},
		{"job=fraud-model", run, Opened, nil, Verified},
		{"job=other/fraud-model", run, Opened, nil, NotVerified},
		{"job=fraud", run, Opened, nil, NotVerified},
		{"job=fraud-model", run, Withheld, nil, Unknown},
		{"job=fraud-model", run, Erased, nil, Unknown},
		{"job=fraud-model", attestation, Opened, nil, NotVerified},
		{"role=input", run, Withheld, nil, Verified},
		{"role=subject", run, Withheld, nil, NotVerified},
		{"role=input,artifact=model", run, Withheld, nil, NotVerified}, // an input, and a model, and not the same thing
		{"role=input,purpose=training-data,artifact=dataset", run, Withheld, nil, Verified},
		{"role=input", run, Withheld, []Subject{subject("data")}, Verified},
		{"role=input", run, Withheld, []Subject{subject("model")}, NotVerified},
		{"role=input", run, Withheld, []Subject{subject("data"), subject("model")}, NotVerified},
		{"purpose=test-data", run, Withheld, []Subject{subject("data")}, NotVerified},
		{"action=https://slsa.dev/provenance/v1,kind=attestation,role=subject", attestation, Opened, []Subject{subject("model")}, Verified},
		{"outcome=complete", attestation, Opened, nil, NotVerified},
	} {
		req, err := ParseRequire(c.require)
		if err != nil {
			t.Fatal(err)
		}
		res := Verify(l.receipt(c.index, c.state), l.policy(), c.subjects, req)
		if res.Outcome != c.want || res.Facts == nil {
			t.Errorf("%s: want %s, got %s", c.require, c.want, res.text())
		}
	}
	// With a file that is no artifact of the entry, nothing can be required of it.
	res := Verify(l.receipt(run, Opened), l.policy(), []Subject{subject("other")}, Require{Role: "input"})
	if res.Outcome != NotVerified || res.last(CheckRequire).Outcome != Unknown {
		t.Error(res.text())
	}
}

func TestParseRequireRefuses(t *testing.T) {
	for list, says := range map[string]string{
		"role": "not KEY=VALUE", "role=": "not KEY=VALUE", "=x": "unknown requirement", "role=output,": "not KEY=VALUE", "rolle=output": "unknown requirement",
		"role=outputs": "known are input, output, subject", "kind=model": "artifact=model", "kind=runs": "unknown event kind", "outcome=ok": "unknown run state",
		"purpose=training": "unknown purpose", "artifact=run": "unknown artifact kind", "role=input,role=output": "given twice",
	} {
		if r, err := ParseRequire(list); err == nil || !strings.Contains(err.Error(), says) || r != (Require{}) {
			t.Errorf("%s: %+v, %v", list, r, err)
		}
	}
}
