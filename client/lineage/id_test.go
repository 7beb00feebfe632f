package lineage

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
)

// The usual library is the oracle: same text, same version and variant, same instant.
func TestIDAgainstReference(t *testing.T) {
	for range 1000 {
		before := time.Now().Add(-time.Millisecond)
		id := NewID()
		u := uuid.UUID(id)
		if u.Version() != 7 || u.Variant() != uuid.RFC4122 || u.String() != id.String() {
			t.Fatalf("%s: version %d, variant %d, reference %s", id, u.Version(), u.Variant(), u)
		}
		sec, nsec := u.Time().UnixTime()
		// Ascending ids may run ahead of the clock, by 244 ns for each id made faster than that.
		if at := time.Unix(sec, nsec); at.Before(before.Truncate(time.Millisecond)) || at.After(time.Now().Add(time.Second)) {
			t.Fatalf("%s says %v, it is %v", id, at, time.Now())
		}
		for _, text := range []string{id.String(), strings.ToUpper(id.String())} {
			if back, err := ParseID(text); err != nil || back != id {
				t.Fatalf("%s: %v, %v", text, back, err)
			}
		}
	}
}

func TestIDsAscend(t *testing.T) {
	ids := make(chan []ID)
	for range 4 {
		go func() {
			mine := make([]ID, 10_000)
			for i := range mine {
				mine[i] = NewID()
			}
			ids <- mine
		}()
	}
	seen := map[ID]bool{}
	for range 4 {
		mine := <-ids
		for i, id := range mine {
			if seen[id] || i > 0 && bytes.Compare(mine[i-1][:8], id[:8]) >= 0 {
				t.Fatalf("%s after %s", id, mine[max(i, 1)-1])
			}
			seen[id] = true
		}
	}
}

func FuzzParseID(f *testing.F) {
	for _, s := range []string{"", "01890a5d-ac96-774b-bcce-b302099a8057", "01890A5D-AC96-774B-BCCE-B302099A8057", "{01890a5d-ac96-774b-bcce-b302099a805}", "01890a5dac96-774b-bcce-b302099a80570", "00000000-0000-0000-0000-000000000000", "01890a5d-ac96-774b-bcceXb302099a8057"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseID(s)
		want, werr := uuid.Parse(s)
		ok := werr == nil && len(s) == 36 && strings.Count(s, "-") == 4 && want != uuid.Nil
		if (err == nil) != ok || ok && uuid.UUID(id) != want {
			t.Errorf("%q: %v, %v; reference %v, %v", s, id, err, want, werr)
		}
	})
}

func TestIDInJSON(t *testing.T) {
	type box struct{ ID ID }
	want := box{NewID()}
	b, err := json.Marshal(want)
	var got box
	if err != nil || json.Unmarshal(b, &got) != nil || got != want {
		t.Fatalf("%s: %v, %v", b, got, err)
	}
	if err := json.Unmarshal([]byte(`{"ID":"x"}`), &got); err == nil || got != want {
		t.Errorf("a bad id: %v, %v", got, err)
	}
}
