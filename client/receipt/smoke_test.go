package receipt

import "testing"

func TestSmoke(t *testing.T) {
	l, i := filled(t)
	for _, s := range []BodyState{Opened, Withheld, Erased} {
		f := l.receipt(i, s).Encode()
		res := VerifyFile(f, l.policy(), []Subject{subject("model")}, Require{Role: "output", Artifact: "model"})
		t.Log(res.text(), res.NotChecked, res.Claims, res.Matches)
		if res.Outcome != Verified {
			t.Error(res.text())
		}
	}
}
