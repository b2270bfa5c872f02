package main

import (
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
