package jetstream_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/usp-project/usp/sink/jetstream"
)

// TestResumed has the program resume a run, twice, whose manifests thus name one key three times: what came since is brought
// behind what the stream has, and is found to be what was signed.
func TestResumed(t *testing.T) {
	s := serve(t, server.Options{})
	dir := t.TempDir()
	program := filepath.Join(dir, "usp")
	build := exec.Command("go", "build", "-o", program, "./cmd/usp")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	usp := func(want string, args ...string) {
		t.Helper()
		c := exec.Command(program, args...)
		c.Dir = dir
		c.Env = append(os.Environ(), "HOME="+dir, "XDG_CONFIG_HOME="+filepath.Join(dir, "config"), "USP_JETSTREAM_URL="+s.ClientURL(), "USP_SINKS_PATIENCE=1s")
		if out, err := c.CombinedOutput(); err != nil || !strings.Contains(string(out), want) {
			t.Errorf("usp %s: %v, want %q:\n%s", strings.Join(args, " "), err, want, out)
		}
	}
	input := func(rows int) {
		t.Helper()
		text := "time,value\n"
		for i := range rows {
			text += fmt.Sprintf("%d,%d\n", 1_000_000_000*(i+1), i*i%17)
		}
		if err := os.WriteFile(filepath.Join(dir, "in.csv"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	input(20)
	usp("20 stored", "run", "in.csv")
	for i, rows := range []int{30, 50} {
		input(rows)
		usp("stored", "run", "--resume", "latest")
		usp(fmt.Sprintf("all %d frames", rows), "sink", "latest", "--status")
		usp(fmt.Sprintf("%d of %d frames", rows, rows), "verify", "latest", "--stream")
		usp(fmt.Sprintf("%d signed heads", i+2), "verify", "latest", "--stream")
	}
	runs, err := jetstream.Fleet(t.Context(), connect(t, jetstream.Options{URL: s.ClientURL()}).JS, "usp")
	if err != nil || len(runs) != 1 || runs[0].Records != 50 || runs[0].Generation != 2 || runs[0].Ended != "clean" {
		t.Errorf("the fleet is %+v, %v", runs, err)
	}
}
