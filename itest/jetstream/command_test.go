package jetstream_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// program is usp in a directory of its own, with a stream to mirror its runs to: a command must exit with a code and say something.
func program(t *testing.T, url string, env ...string) (dir string, usp func(code int, says string, args ...string)) {
	t.Helper()
	dir = t.TempDir()
	path := filepath.Join(dir, "usp")
	build := exec.Command("go", "build", "-o", path, "./cmd/usp")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return dir, func(want int, says string, args ...string) {
		t.Helper()
		c := exec.Command(path, args...)
		c.Dir = dir
		c.Env = append(append(os.Environ(), "HOME="+dir, "XDG_CONFIG_HOME="+filepath.Join(dir, "config"), "USP_JETSTREAM_URL="+url), env...)
		out, err := c.CombinedOutput()
		code := 0
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			code = exit.ExitCode()
		} else if err != nil {
			t.Fatal(err)
		}
		if code != want || !strings.Contains(string(out), says) {
			t.Errorf("usp %s exits with %d, want %d and %q:\n%s", strings.Join(args, " "), code, want, says, out)
		}
	}
}

// TestCommand has the program itself mirror a run while it records it, and hold the stream against it: alike, behind, and
// not what it was.
func TestCommand(t *testing.T) {
	s := serve(t, server.Options{})
	dir, usp := program(t, s.ClientURL())
	usp(10, "has no stream usp", "runs", "--fleet", s.ClientURL())
	usp(10, "has no stream usp", "serve", "--listen", "127.0.0.1:0", "--fleet", s.ClientURL())
	usp(0, "ok    stream: jetstream.url: the server answers and has no stream usp yet", "doctor")
	usp(0, "309 stored", "run")
	usp(0, "clean", "runs", "--fleet", s.ClientURL())
	usp(0, "nothing of it is vouched for", "runs", "--fleet", s.ClientURL())
	usp(0, `"stored": 309`, "runs", "--fleet", s.ClientURL(), "--json")
	usp(0, "ok    stream: jetstream.url: stream usp has 1 run", "doctor")
	usp(0, "all 309 frames", "sink", "latest", "--status")
	usp(0, "309 of 309 frames", "verify", "latest", "--stream")

	nc, err := nats.Connect(s.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	id, err := os.Readlink(filepath.Join(dir, "runs", "latest"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := nc.Request("usp.telemetry."+id, []byte("forged"), nats.DefaultTimeout); err != nil {
		t.Fatal(err)
	}
	usp(20, "malformed", "verify", "latest", "--stream")
	usp(0, "unreadable", "runs", "--fleet", s.ClientURL())

	stop(s)
	usp(75, "--stream", "verify", "latest", "--stream")
	usp(75, "is the server running", "runs", "--fleet", s.ClientURL())
}
