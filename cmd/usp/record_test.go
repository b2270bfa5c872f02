package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/recorder"
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

// quoted is a path as one word of a shell, where it has blanks.
func quoted(path string) string {
	if strings.Contains(path, " ") {
		return "'" + path + "'"
	}
	return path
}

// follow runs a command that usp has named, as a person would in a shell, and returns what it said.
func (w *world) follow(command string) string {
	w.t.Helper()
	words, ok := strings.CutPrefix(command, "usp ")
	if !ok {
		w.t.Fatalf("%q is no command of usp", command)
	}
	cmd := exec.Command("sh", "-c", quoted(w.bin)+" "+words)
	cmd.Dir, cmd.Env = w.dir, w.env
	out, err := cmd.CombinedOutput()
	if err != nil {
		w.t.Errorf("%s: %v\n%s", command, err, out)
	}
	return string(out)
}

// advice is what usp doctor says of the rings that were left.
func (w *world) advice(b *bench) string {
	w.t.Helper()
	cmd := w.command("doctor", "--dir", b.runs())
	cmd.Env = append(cmd.Env, "USP_RING_DIR="+b.rings)
	out, err := cmd.CombinedOutput()
	if err != nil {
		w.t.Errorf("usp doctor: %v\n%s", err, out)
	}
	_, said, ok := strings.Cut(string(out), "store them: ")
	if !ok {
		w.t.Fatalf("usp doctor has no advice\n%s", out)
	}
	said, _, _ = strings.Cut(said, "\n")
	return said
}

// onlyRun is what usp runs says of the one that is there: how it ended, and the command that goes on with it.
func (w *world) onlyRun(b *bench) (status, resume string) {
	w.t.Helper()
	_, out := w.want([]int{0}, "runs", "--dir", b.runs(), "--json")
	var list []struct{ Status, Resume string }
	if err := json.Unmarshal([]byte(out), &list); err != nil || len(list) != 1 {
		w.t.Fatalf("usp runs: %v\n%s", err, out)
	}
	return list[0].Status, list[0].Resume
}

// TestForeignRuns follows the commands that usp names for runs of programs of their own, which usp run cannot go on with or replay.
func TestForeignRuns(t *testing.T) {
	w := newWorld(t)
	var runs []string
	for _, l := range []left{{cost: 1}, {cost: 2}, {cost: 3, state: -1}} {
		_, b := w.newStage(fmt.Sprintf("foreign %.0f", l.cost), 1)
		l.killed = true
		b.leaveRing(t, l)
		advice := w.advice(b)
		if want := "usp record " + quoted(b.ring()) + " --dir " + quoted(b.runs()); advice != want {
			t.Errorf("usp doctor advises %q, want %q", advice, want)
		}
		said := w.follow(advice + " --key-file " + quoted(b.key()))
		dir, err := filepath.Rel(w.dir, b.run())
		if err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintf("run %s, generation 0: crashed\n  recorded   800 emitted, 800 stored, 0 lost; 800 digests, %d snapshots\n  run        %s\nnext: ", stageID, l.states(), dir)
		next, ok := strings.CutPrefix(said, want)
		if commands := strings.Split(strings.TrimSpace(next), "\n"); !ok || len(commands) != 2 {
			t.Errorf("usp record said\n%swant\n%s", said, want)
		} else {
			for _, command := range commands {
				w.follow(strings.TrimSpace(command))
			}
		}
		if status, resume := w.onlyRun(b); status != "crashed" || resume != "" {
			t.Errorf("usp runs: %s, %q", status, resume)
		}
		runs = append(runs, b.run())
	}
	w.compareForeign(runs)
}

// compareForeign: the first two of the runs have snapshots, the third has none.
func (w *world) compareForeign(runs []string) {
	w.t.Helper()
	load := func(run string) string { return "usp snapshot load " + quoted(run) + " --step 301 --to FILE" }
	for _, c := range []struct{ a, b int }{{0, 1}, {0, 2}} {
		_, out := w.want([]int{22}, "compare", runs[c.a], runs[c.b])
		if strings.Contains(out, "usp replay") || !strings.Contains(out, "first divergent step 401,") {
			w.t.Errorf("usp compare said\n%s", out)
		}
		for _, side := range []int{c.a, c.b} {
			if strings.Contains(out, load(runs[side])+"\n") != (side < 2) {
				w.t.Errorf("usp compare said\n%sthe state of run %d: %s", out, side, load(runs[side]))
			}
		}
	}
	w.follow(strings.Replace(load(runs[0]), "FILE", "state", 1))
	if state, err := os.Stat(filepath.Join(w.dir, "state")); err != nil || state.Size() < 5000 {
		w.t.Errorf("the state that was loaded: %v, %v", state, err)
	}
}

// TestForeignRunLeftOpen: the recorder of another program's run was killed. What prune and verify name stores the rest, as
// long as the ring is there.
func TestForeignRunLeftOpen(t *testing.T) {
	needStrace(t)
	w := newWorld(t)
	_, b := w.newStage("left open", 1)
	b.leaveRing(t, left{killed: true})
	b.killRecorder(w)
	said := func(want int, args ...string) string {
		cmd := w.command(args...)
		cmd.Env = append(cmd.Env, "USP_RING_DIR="+b.rings)
		out, _ := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != want {
			t.Errorf("usp %s: exit code %d, want %d", strings.Join(args, " "), code, want)
		}
		return string(out)
	}
	rel, err := filepath.Rel(w.dir, b.runs())
	if err != nil {
		t.Fatal(err)
	}
	named := "usp verify " + quoted(filepath.Join(rel, stageID)) + " "
	if out := said(1, "snapshot", "prune", stageID, "--dir", b.runs()); !strings.Contains(out, "has not ended: its recorder prunes; if it has none, "+named) {
		t.Errorf("usp snapshot prune said %s", out)
	}
	record := "usp record " + quoted(b.ring()) + " --dir " + quoted(rel)
	verifies := func(next string) {
		t.Helper()
		if out := said(21, "verify", b.run()); !strings.Contains(out, "next: "+next) {
			t.Errorf("usp verify said\n%swant next: %s", out, next)
		}
	}
	verifies(record + "\n")
	w.verifiesElsewhere(b)
	producer, err := os.Open(b.ring())
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(producer.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	verifies("look again: the program that made it is at work")
	producer.Close()
	ring := b.ring() + ".away"
	if err := os.Rename(b.ring(), ring); err != nil {
		t.Fatal(err)
	}
	verifies("start the program that made it again")
	if err := os.Rename(ring, b.ring()); err != nil {
		t.Fatal(err)
	}
	w.follow(record + " --key-file " + quoted(b.key()))
	if v, err := verify(b.run()); err != nil || v.Exit != 0 || v.Completeness.Stored != stageRecords {
		t.Errorf("%v\n%s", err, v.text)
	}
}

// verifiesElsewhere: in the directory of the runs the command is for that, and none is named for a copy of the run.
func (w *world) verifiesElsewhere(b *bench) {
	w.t.Helper()
	backup := filepath.Join(w.dir, "backup")
	if err := os.Mkdir(backup, 0o700); err != nil {
		w.t.Fatal(err)
	}
	again, copied := filepath.Join(backup, stageID), filepath.Join(backup, "again")
	copyTree(again, b.run())
	copyTree(copied, b.run())
	none := "start the program that made it again"
	for _, c := range []struct{ run, want string }{{stageID, "usp record " + quoted(b.ring()) + " --dir .\n"}, {again, none}, {copied, none}} {
		cmd := w.command("verify", c.run, "--dir", ".")
		cmd.Dir, cmd.Env = b.runs(), append(cmd.Env, "USP_RING_DIR="+b.rings)
		if out, _ := cmd.CombinedOutput(); !strings.Contains(string(out), "next: "+c.want) {
			w.t.Errorf("usp verify %s in the directory of the runs: want %s in\n%s", c.run, c.want, out)
		}
	}
}

// TestLeftByUspRun: what usp run left behind usp run goes on with, from standard input if that was its input.
func TestLeftByUspRun(t *testing.T) {
	w := newWorld(t)
	for kind, input := range map[string]string{"file": "", "stdin": " -"} {
		_, b := w.newStage("left by "+kind, 1)
		b.leaveRing(t, left{killed: true, producer: map[string]any{"program": "usp run", "input": map[string]any{"kind": kind}}})
		resume := "usp run --resume " + stageID + " --dir " + quoted(b.runs()) + input
		if got, want := w.advice(b), resume+", or usp record "+quoted(b.ring())+" --dir "+quoted(b.runs()); got != want {
			t.Errorf("usp doctor advises %q, want %q", got, want)
		}
		w.want([]int{0}, "record", b.ring(), "--dir", b.runs(), "--key-file", b.key())
		if status, got := w.onlyRun(b); status != "crashed" || got != resume {
			t.Errorf("usp runs: %s, %q, want %q", status, got, resume)
		}
	}
}

// TestSeveralRingsWait: usp record names those that it could take, each with a command that takes it.
func TestSeveralRingsWait(t *testing.T) {
	w := newWorld(t)
	_, b := w.newStage("two rings", 1)
	b.leaveRing(t, left{killed: true})
	second := filepath.Join(b.rings, rundir.RingName("20260102T000000-abcde"))
	copyTree(second, b.ring())
	cmd := w.command("record", "--dir", b.runs())
	cmd.Env = append(cmd.Env, "USP_RING_DIR="+b.rings)
	out, err := cmd.CombinedOutput()
	for _, path := range []string{b.ring(), second} {
		if command := "\n  usp record " + quoted(path) + " --dir " + quoted(b.runs()) + "\n"; cmd.ProcessState.ExitCode() != 2 || !strings.Contains(string(out), command) {
			t.Errorf("usp record, %v: want %q in\n%s", err, command, out)
		}
	}
}

// TestSummaryForAProgram: a recorder that a program has started for itself says to it what it recorded, in JSON.
func TestSummaryForAProgram(t *testing.T) {
	w := newWorld(t)
	_, b := w.newStage("started", 1)
	b.leaveRing(t, left{})
	cmd := w.command("record", b.ring(), "--dir", b.runs(), "--key-file", b.key())
	cmd.Env = append(cmd.Env, "USP_RECORDER_CHILD=1")
	out, err := cmd.Output()
	var s recorder.Summary
	if jerr := json.Unmarshal(out, &s); err != nil || jerr != nil || s.Stored != stageRecords {
		t.Errorf("usp record: %v, %v, %s", err, jerr, out)
	}
}
