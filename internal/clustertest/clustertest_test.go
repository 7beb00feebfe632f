package clustertest

import (
	"flag"
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	flag.Parse()
	// Scripts wait far more than they compute: for elections, promotions and deadlines.
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		if err := f.Value.Set("8"); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}

// TestScenarios plays the scripts. Nodes say a lot; what the last of it was is printed when a script fails.
func TestScenarios(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Cmds:                commands(),
		Setup: func(env *testscript.Env) error {
			t := env.T().(testing.TB)
			w, err := newWorld(t.TempDir())
			if err != nil {
				return err
			}
			env.Values[worldKey{}] = w
			env.Defer(func() { w.close(t) })
			return nil
		},
	})
}
