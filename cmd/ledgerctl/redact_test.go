package main

import (
	"slices"
	"strings"
	"testing"
)

func TestRedactArgv(t *testing.T) {
	const x = redacted
	for _, c := range []struct{ in, want []string }{
		// Options with the secret in the same or the next argument.
		{[]string{"--token=abc"}, []string{"--token=" + x}},
		{[]string{"--token", "abc", "file"}, []string{"--token", x, "file"}},
		{[]string{"-password", "abc"}, []string{"-password", x}},
		{[]string{"--db-password=abc=def"}, []string{"--db-password=" + x}},
		{[]string{"--api-key=k", "--api_key=k", "--apikey=k"}, []string{"--api-key=" + x, "--api_key=" + x, "--apikey=" + x}},
		{[]string{"--token", "--verbose"}, []string{"--token", "--verbose"}},
		{[]string{"--PASSWORD", "abc"}, []string{"--PASSWORD", x}},
		// Assignments.
		{[]string{"DB_PASSWORD=abc", "AWS_SECRET_ACCESS_KEY=abc", "password:abc"}, []string{"DB_PASSWORD=" + x, "AWS_SECRET_ACCESS_KEY=" + x, "password:" + x}},
		{[]string{"model.awsSecretAccessKey=abc", "dbPassword=abc"}, []string{"model.awsSecretAccessKey=" + x, "dbPassword=" + x}},
		// Known forms.
		{[]string{"AKIAIOSFODNN7EXAMPLE"}, []string{x}},
		{[]string{"key is AKIAIOSFODNN7EXAMPLE."}, []string{"key is " + x + "."}},
		{[]string{"ghp_" + strings.Repeat("a1", 18), "hf_" + strings.Repeat("Ab", 17), "sk-ant-" + strings.Repeat("c3", 20)}, []string{x, x, x}},
		{[]string{"-H", "Authorization: Bearer abcdefghijkl"}, []string{"-H", "Authorization:" + x}},
		{[]string{"-H", "X-Api-Key: abc"}, []string{"-H", "X-Api-Key:" + x}},
		{[]string{"curl -H 'Authorization: Bearer abcdefghijkl'"}, []string{"curl -H '" + x}},
		{[]string{"--key=abc", "key=abc", "--key", "abc"}, []string{"--key=" + x, "key=" + x, "--key", x}},
		{[]string{"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl"}, []string{x}},
		// Names with the word glued on, and keys of services.
		{[]string{"PGPASSWORD=S", "--pgpassword=S", "MYTOKEN=S", "DBPASS=S", "OPENAI_KEY=S", "--openai-key", "S"},
			[]string{"PGPASSWORD=" + x, "--pgpassword=" + x, "MYTOKEN=" + x, "DBPASS=" + x, "OPENAI_KEY=" + x, "--openai-key", x}},
		// Inside a text: shell commands, nested options, JSON, connection strings.
		{[]string{"sh", "-c", "train --token S --password=S --lr 0.1 && API_KEY=S run 'x=1'"},
			[]string{"sh", "-c", "train --token " + x + " --password=" + x + " --lr 0.1 && API_KEY=" + x + " run 'x=1'"}},
		{[]string{`curl -u me:S https://h -d '{"user":"me","password":"S p","n":1}'`}, []string{`curl -u me:` + x + ` https://h -d '{"user":"me","password":"` + x + `","n":1}'`}},
		{[]string{"--config=db.password=S", `{"password":"S"}`, `{"token": "S", "n": 3}`, `"{\"secret\":\"S\"}"`, "Server=x;Password=S;Port=1"},
			[]string{"--config=db.password=" + x, `{"password":"` + x + `"}`, `{"token": "` + x + `", "n": 3}`, `"{\"secret\":\"` + x + `\"}"`, "Server=x;Password=" + x + ";Port=1"}},
		{[]string{"PASSWORD='a b' run", `run PASSWORD="a b" --n 1`, "password=first\nline"}, []string{"PASSWORD=" + x, `run PASSWORD="` + x + `" --n 1`, "password=" + x}},
		// User and password of an HTTP client; not the user and group of a container, not Python's -u.
		{[]string{"curl", "-u", "me:S", "h"}, []string{"curl", "-u", "me:" + x, "h"}},
		{[]string{"--user=me:S", "-ume:S", "--proxy-user", "me:S"}, []string{"--user=me:" + x, "-ume:" + x, "--proxy-user", "me:" + x}},
		{[]string{"docker", "run", "-u", "1000:1000", "x"}, nil},
		{[]string{"python", "-u", "train.py", "--user", "me", "-u", "https://h/x"}, nil},
		// URLs.
		{[]string{"//me:S@h/x", "rsync //me:S@h/x y"}, []string{"//" + x + "@h/x", "rsync //" + x + "@h/x y"}},
		{[]string{"postgres://me:pw@db.example/x"}, []string{"postgres://" + x + "@db.example/x"}},
		{[]string{"--db=postgres://me:p@w@db.example:5432/x?sslmode=require"}, []string{"--db=postgres://" + x + "@db.example:5432/x?sslmode=require"}},
		{[]string{"https://ghtoken@github.com/o/r.git"}, []string{"https://" + x + "@github.com/o/r.git"}},
		{[]string{"https://b.s3.amazonaws.com/k?X-Amz-Algorithm=A&X-Amz-Credential=AKIA&X-Amz-Signature=ff&versionId=3"},
			[]string{"https://b.s3.amazonaws.com/k?X-Amz-Algorithm=A&X-Amz-Credential=" + x + "&X-Amz-Signature=" + x + "&versionId=3"}},
		{[]string{"https://a.blob.core.windows.net/c/b?sv=2022&sig=abc%3D#top"}, []string{"https://a.blob.core.windows.net/c/b?sv=2022&sig=" + x + "#top"}},
		{[]string{"https://h/x?access_token=abc&page=2"}, []string{"https://h/x?access_token=" + x + "&page=2"}},
		// What must stay: it is the record of what was done.
		{[]string{"python", "train.py", "--tokenizer=bert", "--token-count=5", "--max-tokens", "100", "--lr=0.1", "--seed", "7"}, nil},
		{[]string{"--passes=3", "--author=x", "--keys=a,b", "--sort-key=date", "--design=2", "--signal", "9", "--pinned", "x"}, nil},
		{[]string{"--eos-token", "</s>", "--pad_token=<pad>", "--partition-key=day", "--lowpass=5", "--bypass", "x", "monkey=1", "--key-file=k", "--passenger=2"}, nil},
		{[]string{"sh", "-c", "for x in a b; do python t.py --seed=1 -o out:$x | tee log; done", `{"lr": 0.1, "tokens": 5}`}, nil},
		{[]string{"https://host:8443/path?page=1#x", "s3://bucket/key", "sha256:abcd", "a=b", "--out=C:/token/file", "secrets/file.txt"}, nil},
	} {
		want := c.want
		if want == nil {
			want = c.in
		}
		got, hidden := (&redactor{}).argv(c.in)
		if !slices.Equal(got, want) {
			t.Errorf("%q\n got %q\nwant %q", c.in, got, want)
		}
		if changed := !slices.Equal(c.in, got); changed != (hidden > 0) {
			t.Errorf("%q: %d said to be hidden", c.in, hidden)
		}
	}
}

func TestRedactOwnPattern(t *testing.T) {
	r, err := newRedactor([]string{`patient-\d+`})
	if err != nil {
		t.Fatal(err)
	}
	got, _ := r.argv([]string{"--only", "patient-4711,patient-4712"})
	if want := []string{"--only", redacted + "," + redacted}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if _, err := newRedactor([]string{"("}); err == nil {
		t.Error("a bad pattern was accepted")
	}
}

// Whatever is redacted once stays as it is.
func FuzzRedact(f *testing.F) {
	f.Add("--token=abc")
	f.Add("https://u:p@h/p?sig=x#f")
	f.Add(`sh -c 'x --token S; curl -u me:S -d "{\"password\": \"S\"}" //me:S@h'`)
	f.Fuzz(func(t *testing.T, s string) {
		once := (&redactor{}).text(s)
		if twice := (&redactor{}).text(once); twice != once {
			t.Errorf("%q: once %q, twice %q", s, once, twice)
		}
	})
}
