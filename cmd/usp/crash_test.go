package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// crashes is how many random kills TestKill makes: a slice of what `make torture` does, which sets TORTURE_KILLS.
func crashes(t *testing.T, short int) int {
	if s := os.Getenv("TORTURE_KILLS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("TORTURE_KILLS=%s: %v", s, err)
		}
		return n
	}
	return short
}

// TestKill kills the producer, the recorder, or both, at random moments, several times in a row. At every moment the run
// must verify as closed or as an unsealed crash tail, a resume must finish it, nothing may be unaccounted for, and in the
// end it must be, step by step, what a run without interruption is.
func TestKill(t *testing.T) {
	w := newWorld(t)
	input := w.writeSeries("series.csv", 30_000, 7)
	flags := []string{"--snapshot-interval", "500"}
	whole := w.summary(append([]string{"run", input, "--dir", "whole"}, flags...)...)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 2))
	took := time.Duration(whole["seconds"].(float64) * float64(time.Second))
	for i := range crashes(t, 8) {
		dir := fmt.Sprintf("runs-%d", i)
		w.killSome(rnd, took, append([]string{"run", input, "--dir", dir}, flags...))
		if _, err := os.Lstat(filepath.Join(w.dir, dir, "latest")); err != nil {
			continue // killed before there was anything
		}
		for again := range rnd.IntN(3) {
			w.want([]int{0, 21}, "verify", "latest", "--dir", dir)
			w.killSome(rnd, took/time.Duration(again+1), append([]string{"run", "--resume", "latest", "--dir", dir}, flags...))
		}
		w.want([]int{0, 21}, "verify", "latest", "--dir", dir)
		w.want([]int{0}, "run", "--resume", "latest", "--dir", dir, "--json")
		w.want([]int{0}, "verify", "latest", "--dir", dir)
		w.want([]int{0}, "compare", filepath.Join(dir, "latest"), filepath.Join("whole", "latest"))
		w.wantOneLine(filepath.Join(dir, "latest"), 30_000)
		if err := os.RemoveAll(filepath.Join(w.dir, dir)); err != nil {
			t.Fatal(err)
		}
	}
}

// wantOneLine wants the effective log of a run to hold each step once, in order, though the whole log may not.
func (w *world) wantOneLine(run string, n int) {
	w.t.Helper()
	_, out := w.want([]int{0}, "log", run, "--effective", "--kind", "STEP", "--json")
	step := 0
	for line := range strings.Lines(out) {
		var e struct {
			Step       int
			Superseded bool
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil || e.Step != step+1 || e.Superseded {
			w.t.Fatalf("%s: behind step %d: %s %v", run, step, line, err)
		}
		step = e.Step
	}
	if step != n {
		w.t.Fatalf("%s: the effective log ends with step %d, want %d", run, step, n)
	}
}

// killSome starts usp and kills producer, recorder or both some time into the run.
func (w *world) killSome(rnd *rand.Rand, took time.Duration, args []string) {
	w.t.Helper()
	cmd := w.command(args...)
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { cmd.Wait(); close(done) }()
	moment := time.Duration(rnd.Int64N(int64(took) + int64(20*time.Millisecond)))
	recorder := w.recorderPID(done)
	select {
	case <-done:
	case <-time.After(moment):
	}
	switch rnd.IntN(3) {
	case 0:
		kill(cmd.Process.Pid)
	case 1:
		kill(recorder) // usp run starts another one and goes on
	default:
		kill(recorder)
		kill(cmd.Process.Pid)
	}
	<-done
}

// TestRecorderKilledOften kills every recorder that comes up while one producer goes on: nothing that the ring still
// holds may be lost, and the count must be exact.
func TestRecorderKilledOften(t *testing.T) {
	w := newWorld(t)
	input := w.writeSeries("series.csv", 60_000, 9)
	cmd := w.command("run", input, "--json", "--dir", "runs")
	out, err := os.Create(filepath.Join(w.dir, "out.json"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout = out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { cmd.Wait(); close(done) }()
	killed, last := 0, 0
	for killed < 4 {
		pid := w.recorderPID(done)
		if pid == 0 {
			break
		}
		if pid != last {
			time.Sleep(20 * time.Millisecond) // let it do something: this is the moment of the kill, not a wait for a result
			kill(pid)
			killed, last = killed+1, pid
		}
		select {
		case <-done:
			pid = 0
		case <-time.After(time.Millisecond):
		}
		if pid == 0 {
			break
		}
	}
	<-done
	if killed < 2 {
		t.Errorf("only %d recorders were killed", killed)
	}
	w.idle()
	report := w.summary("verify", "latest", "--dir", "runs")
	c := report["completeness"].(map[string]any)
	if got := c["stored"].(float64) + c["lost"].(float64); got != 60_000 {
		t.Errorf("stored %v + lost %v = %v, want 60000", c["stored"], c["lost"], got)
	}
	t.Logf("killed %d recorders: stored %v, lost %v", killed, c["stored"], c["lost"])
}
