package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/usp-project/usp/ring"
)

// bench of a test that runs usp as processes: a directory of its own for runs, rings and key.
type world struct {
	t    testing.TB
	bin  string
	dir  string
	env  []string
	ring string

	recorder string // what a loop starts for one, if not bin
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, bin: uspBinary(t), dir: t.TempDir()}
	// Rings belong into memory: a temporary directory may be on a disk.
	where, _ := ring.DefaultDir()
	if err := ring.PrepareDir(where); err != nil {
		t.Fatal(err)
	}
	var err error
	if w.ring, err = os.MkdirTemp(where, "test-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(w.ring) })
	w.env = append(os.Environ(), "HOME="+w.dir, "XDG_CONFIG_HOME="+filepath.Join(w.dir, ".config"), "USP_RING_DIR="+w.ring, "USP_DIR="+filepath.Join(w.dir, "runs"))
	// These tests are about processes and files: with the smallest kernel window a step takes a third of the time. The scripts have the default.
	w.env = append(w.env, "USP_PREDICTOR_KERNEL_WINDOW=16")
	return w
}

// writeSeries writes a CSV of n rows: a seasonal series with noise, the same for the same seed.
func (w *world) writeSeries(name string, n int, seed uint64) string {
	w.t.Helper()
	rnd := rand.New(rand.NewPCG(seed, 1))
	var b bytes.Buffer
	b.WriteString("time,value\n")
	x := 0.0
	for i := range n {
		x = 0.8*x + rnd.NormFloat64()
		fmt.Fprintf(&b, "%d,%.6f\n", i*1_000_000_000, x+3*float64(i%12))
	}
	path := filepath.Join(w.dir, name)
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return path
}

// long is how many steps a run has that must last for a while. Under the race detector a step takes ten times as long.
func long(steps int) int {
	if raceDetector {
		return steps / 5
	}
	return steps
}

func (w *world) command(args ...string) *exec.Cmd {
	cmd := exec.Command(w.bin, args...)
	cmd.Dir, cmd.Env = w.dir, w.env
	return cmd
}

// run runs usp to its end and returns exit code and output.
func (w *world) run(args ...string) (code int, stdout, stderr string) {
	w.t.Helper()
	cmd := w.command(args...)
	var out, errw bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errw
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		w.t.Fatal(err)
	}
	return code, out.String(), errw.String()
}

// want runs usp and fails the test unless it exits with one of the codes.
func (w *world) want(codes []int, args ...string) (int, string) {
	w.t.Helper()
	code, out, errw := w.run(args...)
	for _, c := range codes {
		if c == code {
			return code, out
		}
	}
	w.t.Fatalf("usp %s: exit code %d, want %v\n%s%s", strings.Join(args, " "), code, codes, out, errw)
	return 0, ""
}

// summary runs usp with --json and decodes the last line.
func (w *world) summary(args ...string) map[string]any {
	w.t.Helper()
	_, out := w.want([]int{0}, append(args, "--json")...)
	doc := map[string]any{}
	if json.Unmarshal([]byte(out), &doc) == nil {
		return doc
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &doc); err != nil {
		w.t.Fatalf("%v in %s", err, out)
	}
	return doc
}

// recorderPID waits until a recorder has attached to the only ring and returns its process, or 0 when the
// producer has ended before.
func (w *world) recorderPID(done <-chan struct{}) int {
	for {
		if pid := w.published().PID; pid != 0 {
			return pid
		}
		select {
		case <-done:
			return 0
		case <-time.After(time.Millisecond):
		}
	}
}

// published is what the recorder of the only ring says there; nothing, if there is no ring, or no recorder yet.
func (w *world) published() ring.ConsumerState {
	paths, err := ring.List(w.ring)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, p := range paths {
		c, err := ring.Open(p)
		if err != nil {
			continue // it was just removed
		}
		said := c.Published()
		c.Close()
		if said.PID != 0 {
			return said
		}
	}
	return ring.ConsumerState{}
}

// idle waits until no process has a ring or a run open any more: a recorder may still be storing the end.
func (w *world) idle() {
	w.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		paths, err := filepath.Glob(filepath.Join(w.ring, "*.ring"))
		if err != nil {
			w.t.Fatal(err)
		}
		if len(paths) == 0 {
			return
		}
		if time.Now().After(deadline) {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// kill is SIGKILL for a process that may be gone.
func kill(pid int) {
	if pid > 0 {
		_ = syscall.Kill(pid, syscall.SIGKILL) // gone already is as good
	}
}
