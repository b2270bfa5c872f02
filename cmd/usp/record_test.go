package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestRecorderWithoutSettings starts a recorder whose parent dies before it has handed over the settings. It must not
// guess: with the defaults it would record into another directory, and take the ring away from the run.
func TestRecorderWithoutSettings(t *testing.T) {
	w := newWorld(t)
	_, b := w.newStage("orphan", 1)
	b.leaveRing(t, left{})
	for _, settings := range []string{"", `{"runs":"` + b.runs()} {
		cmd := w.command("record", "--options-on-stdin", b.ring())
		cmd.Dir, cmd.Stdin = b.dir, strings.NewReader(settings)
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState.ExitCode() != 2 {
			t.Errorf("settings %q: %v\n%s", settings, err, out)
		}
		if _, err := os.Stat(b.ring()); err != nil {
			t.Fatalf("settings %q: the ring is gone: %v", settings, err)
		}
		made, err := filepath.Glob(filepath.Join(b.dir, "*", "*"))
		if err != nil || len(made) > 0 {
			t.Errorf("settings %q: the recorder made %v (%v)", settings, made, err)
		}
	}
}

// TestProgramWithBinary lets a program that is not its own recorder use the usp binary: its settings are the recorder's.
func TestProgramWithBinary(t *testing.T) {
	w := newWorld(t)
	l := w.startLoop(filepath.Join(w.dir, "elsewhere"), nil)
	l.steps(100, 0)
	e := l.close()
	if e.Error != "" || e.Summary.Stored != 100 {
		t.Errorf("%+v\n%s", e, l.stderr.String())
	}
	if v, err := verify(l.Dir); err != nil || v.Exit != 0 || v.Completeness.Stored != 100 {
		t.Errorf("%v\n%s", err, v.text)
	}
}

// TestForeignRuns follows the commands that usp names for runs of programs of their own, which usp run cannot go on with or replay.
func TestForeignRuns(t *testing.T) {
	w := newWorld(t)
	var runs []string
	for i, cost := range []float64{1, 2} {
		_, b := w.newStage(fmt.Sprintf("foreign-%d", i), 1)
		b.leaveRing(t, left{killed: true, cost: cost})
		cmd := w.command("doctor", "--dir", b.runs())
		cmd.Env = append(cmd.Env, "USP_RING_DIR="+b.rings)
		out, err := cmd.CombinedOutput()
		advice := "store them: usp record " + b.ring() + " --dir " + b.runs() + "\n"
		if err != nil || !strings.Contains(string(out), advice) || strings.Contains(string(out), "--resume") {
			t.Errorf("usp doctor, %v: want %q\n%s", err, advice, out)
		}
		args := []string{"record", b.ring(), "--dir", b.runs(), "--key-file", b.key()}
		if i == 0 {
			_, said := w.want([]int{0}, args...)
			want := fmt.Sprintf("run %s, generation 0: crashed\n  recorded   800 emitted, 800 stored, 0 lost; 800 digests, 4 snapshots\n  run        stage-foreign-0/work/runs/%s\nnext: usp show %s --dir %s\n",
				stageID, stageID, stageID, b.runs())
			if !strings.HasPrefix(said, want) {
				t.Errorf("usp record said\n%swant\n%s", said, want)
			}
		} else if s := w.summary(args...); s["stored"] != 800.0 {
			t.Errorf("usp record --json: %v", s)
		}
		runs = append(runs, b.run())
	}
	_, out := w.want([]int{22}, "compare", runs[0], runs[1])
	if strings.Contains(out, "usp replay") || !strings.Contains(out, "first divergent step 401,") {
		t.Errorf("usp compare said\n%s", out)
	}
	for _, run := range runs {
		command := "usp snapshot load " + run + " --step 301 --to FILE\n"
		if !strings.Contains(out, command) {
			t.Errorf("usp compare said\n%swant %s", out, command)
		}
	}
	w.want([]int{0}, "snapshot", "load", runs[0], "--step", "301", "--to", "state")
	if state, err := os.Stat(filepath.Join(w.dir, "state")); err != nil || state.Size() < 5000 {
		t.Errorf("the state that was loaded: %v, %v", state, err)
	}
}
