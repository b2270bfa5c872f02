package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/usp-project/usp/internal/cli"
)

// kills is how many kill sequences TestKill makes: a slice of what `make torture` does, which sets TORTURE_KILLS.
func kills(t *testing.T, short int) int {
	if s := os.Getenv("TORTURE_KILLS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("TORTURE_KILLS=%s: %v", s, err)
		}
		return n
	}
	return short
}

// aim is what the recorder is doing when it, its producer or both are killed.
type aim string

const (
	anytime    aim = "any moment"
	atSnapshot aim = "a snapshot"
	atRoll     aim = "a roll"
	atPrune    aim = "a prune"
	atResume   aim = "a resume"
)

const series = 3000 // steps of the runs that are killed

// killer makes kill sequences. Each worker has one with directories of its own.
type killer struct {
	*world
	whole string // run directory of the run without interruption
	args  []string
	took  map[bool]time.Duration // of a run without interruption, in memory or on disk (true)

	story []string // of this sequence

	mu    *sync.Mutex
	tally map[string]int // what was hit, and what a hit left behind
}

// TestKill kills the producer, the recorder, or both, again and again: half of the times at a random moment, half of
// the times while the recorder takes a snapshot, rolls to the next segment, prunes, or takes up what is there for a
// resume. At every moment the run must verify as closed or as an unsealed crash tail, a resume must finish it, and in the
// end it must be, step by step, what a run without interruption is, each generation with all its records accounted for.
func TestKill(t *testing.T) {
	w := newWorld(t)
	w.env = append(w.env, recorderSettings...)
	input := w.writeSeries("series.csv", series, 7)
	flags := []string{"--snapshot-interval", "50"}
	took := map[bool]time.Duration{}
	var whole map[string]any
	for _, disk := range []bool{true, false} {
		began := time.Now()
		whole = w.summary(append([]string{"run", input, "--dir", runsDir(w, disk, "whole")}, flags...)...)
		took[disk] = time.Since(began)
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	first := &killer{world: w, whole: whole["run_dir"].(string), args: append([]string{input}, flags...), took: took, mu: new(sync.Mutex), tally: map[string]int{}}
	short := 8
	if raceDetector {
		short = 3
	}
	total := kills(t, short)
	var next atomic.Int64
	var wg sync.WaitGroup
	for worker := range max(2, runtime.GOMAXPROCS(0)) {
		k := first.worker(worker)
		wg.Go(func() {
			for !t.Failed() {
				i := int(next.Add(1))
				if i > total {
					return
				}
				k.story = nil
				if err := k.sequence(i, rand.New(rand.NewPCG(seed, uint64(i)))); err != nil {
					t.Errorf("sequence %d: %v\n%s", i, err, strings.Join(k.story, "\n"))
				}
				if i%50 == 0 {
					t.Logf("%d of %d", i, total)
				}
			}
		})
	}
	wg.Wait()
	for _, what := range slices.Sorted(maps.Keys(first.tally)) {
		t.Logf("%5d %s", first.tally[what], what)
	}
	for _, a := range []aim{atSnapshot, atRoll, atPrune, atResume} {
		if torture() && runtime.GOOS == "linux" && first.tally["killed at "+string(a)] == 0 {
			t.Errorf("never killed at %s", a)
		}
	}
}

// worker is a killer with directories of its own.
func (k *killer) worker(n int) *killer {
	next, w := *k, *k.world
	next.world = &w
	w.ring = filepath.Join(k.ring, strconv.Itoa(n))
	if err := os.Mkdir(w.ring, 0o700); err != nil {
		k.t.Fatal(err)
	}
	w.env = append(slices.Clone(k.env), "USP_RING_DIR="+w.ring)
	return &next
}

func (k *killer) count(what string) {
	k.mu.Lock()
	k.tally[what]++
	k.mu.Unlock()
}

// runsDir is where runs lie: most in memory, where they take less time; on a disk the moments are longer in which
// something is only half done.
func runsDir(w *world, disk bool, name string) string {
	if disk {
		return filepath.Join(w.dir, name)
	}
	return filepath.Join(w.ring, name)
}

// sequence kills a run and its resumes a few times and lets the last resume come to its end.
func (k *killer) sequence(i int, rnd *rand.Rand) error {
	disk := i%4 == 0
	runs := runsDir(k.world, disk, fmt.Sprintf("runs-%d", i))
	args := append([]string{"run", "--dir", runs}, k.args...)
	for tries := 0; ; tries++ {
		hit, err := k.killSome(runs, disk, rnd, args, anytime, atSnapshot, atRoll, atPrune)
		if err != nil {
			return err
		}
		if hit || tries == 5 {
			break
		}
		if err := os.RemoveAll(runs); err != nil { // it was complete before its moment came
			return err
		}
	}
	latest := filepath.Join(runs, "latest")
	resume := []string{"run", "--resume", latest, "--dir", runs, "--snapshot-interval", "50"}
	for range rnd.IntN(3) {
		if _, err := os.Lstat(latest); err != nil {
			break // killed before there was anything
		}
		if hit, err := k.killSome(runs, disk, rnd, resume, anytime, atResume, atSnapshot, atRoll, atPrune); err != nil {
			return err
		} else if !hit {
			break // it is complete
		}
	}
	if _, err := os.Lstat(latest); err != nil { // then begin again, where a recorder that is still about does not matter
		latest = filepath.Join(runs, "again", "latest")
		resume = append([]string{"run", "--dir", filepath.Dir(latest)}, k.args...)
	}
	code, out, err := k.exits(resume...)
	k.story = append(k.story, fmt.Sprintf("%q: exit code %d\n%s", resume[1:], code, out))
	if err != nil || code != 0 {
		return fmt.Errorf("the last one exits with %d, %w", code, err)
	}
	if err := k.whatIsThere(latest, true); err != nil {
		return err
	}
	var diff bytes.Buffer
	if code := cli.Main([]string{"compare", latest, k.whole}, nil, &diff, &diff); code != 0 {
		return fmt.Errorf("compared with the run without interruption: exit code %d\n%s", code, diff.String())
	}
	if err := oneLine(latest, series); err != nil {
		return err
	}
	return os.RemoveAll(runs)
}

// oneLine wants the effective log of a run to hold each step once, in order, though the whole log may not.
func oneLine(run string, n int) error {
	var out, errw bytes.Buffer
	if code := cli.Main([]string{"log", run, "--effective", "--kind", "STEP", "--json"}, nil, &out, &errw); code != 0 {
		return fmt.Errorf("usp log exits with %d\n%s", code, errw.String())
	}
	step := 0
	for line := range strings.Lines(out.String()) {
		var e struct {
			Step       int
			Superseded bool
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil || e.Step != step+1 || e.Superseded {
			return fmt.Errorf("behind step %d of the effective log: %s %w", step, line, err)
		}
		step = e.Step
	}
	if step != n {
		return fmt.Errorf("the effective log ends with step %d, want %d", step, n)
	}
	return nil
}

// exits runs usp to its end.
func (k *killer) exits(args ...string) (int, string, error) {
	out, err := k.command(args...).CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), string(out), nil
	}
	return 0, string(out), err
}

// whatIsThere verifies the run.
func (k *killer) whatIsThere(latest string, closed bool) error {
	v, err := verify(latest)
	if err != nil {
		return err
	}
	if v.Exit != 0 && (closed || v.Exit != 21) || closed && !v.Completeness.Closed {
		return fmt.Errorf("verify exits with %d\n%s", v.Exit, v.text)
	}
	for i, g := range v.Completeness.Generations {
		// A SIGKILL leaves the ring: nothing is lost but the one record that a producer was just writing.
		known := g.EmittedKnown || !closed || g.Stored+g.Lost == 0 // the loop that had no recorder takes its ring with it
		if !known || g.EmittedKnown && g.Stored+g.Lost != g.Emitted || g.Lost > 1 || g.Lost == 1 && g.LostRanges[0].Reason != "torn" {
			return fmt.Errorf("generation %d is %+v\n%s", i, g, v.text)
		}
		if g.Lost == 1 {
			k.count("left: a torn record")
		}
	}
	if closed && v.Completeness.DigestsMissing > 0 {
		return fmt.Errorf("%d digests are missing\n%s", v.Completeness.DigestsMissing, v.text)
	}
	if !closed {
		for _, what := range v.leftBehind() {
			k.count("left: " + what)
		}
	}
	return nil
}

// killSome starts usp and kills producer, recorder or both at one of the moments.
func (k *killer) killSome(runs string, disk bool, rnd *rand.Rand, args []string, aims ...aim) (hit bool, err error) {
	goal := anytime
	if rnd.IntN(2) == 0 {
		goal = aims[1+rnd.IntN(len(aims)-1)]
	}
	var moments chan aim // of nil nothing ever comes
	if w, err := watch(runs); err == nil {
		moments = w.moments
		defer w.close()
	} else if runtime.GOOS == "linux" {
		return false, err
	} else {
		goal = anytime
	}
	var out bytes.Buffer
	cmd := k.command(args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return false, err
	}
	done := make(chan struct{})
	go func() { cmd.Wait(); close(done) }()
	hit = await(rnd, goal, moments, k.took[disk], done)
	var targets []int
	who := [...]string{"the producer", "the recorder", "both"}[rnd.IntN(3)]
	if who != "the producer" {
		targets = k.recorders(cmd.Process.Pid)
	}
	if who != "the recorder" || len(targets) == 0 { // then there is only the one
		targets = append(targets, cmd.Process.Pid)
	}
	for _, pid := range targets {
		kill(pid)
	}
	<-done
	k.story = append(k.story, fmt.Sprintf("%q: %s killed at %s (%v): %v\n%s", args[1:], who, goal, hit, cmd.ProcessState, out.String()))
	switch {
	case cmd.ProcessState.ExitCode() < 0: // the producer was killed
	case cmd.ProcessState.ExitCode() == 0: // it came to its end with another recorder, or before the kill
	case who == "the recorder" && strings.Contains(out.String(), "the recorder ended: signal: killed"): // before it was ready
		k.count("killed before the loop could begin")
	default:
		return hit, fmt.Errorf("%q exits with %d\n%s", strings.Join(args, " "), cmd.ProcessState.ExitCode(), out.String())
	}
	if !hit {
		k.count("ended before the kill")
	} else {
		k.count("killed at " + string(goal))
		k.count("killed " + who)
	}
	latest := filepath.Join(runs, "latest")
	if _, err := os.Lstat(latest); err != nil {
		return hit, nil // killed before there was anything
	}
	if err := k.whatIsThere(latest, false); err != nil {
		return hit, fmt.Errorf("%s killed at %s: %w", who, goal, err)
	}
	return hit, nil
}

// recorders are the children of usp run, and where these are not known the one that its ring names.
func (k *killer) recorders(producer int) []int {
	if runtime.GOOS == "linux" {
		return children(producer)
	}
	over := make(chan struct{})
	close(over)
	if pid := k.recorderPID(over); pid != 0 {
		return []int{pid}
	}
	return nil
}

// await returns when the moment has come, with true, or when the process has ended without it.
func await(rnd *rand.Rand, goal aim, moments chan aim, took time.Duration, done chan struct{}) bool {
	if goal == anytime {
		select {
		case <-done:
			return false
		case <-time.After(time.Duration(rnd.Int64N(int64(took) + int64(20*time.Millisecond)))):
			return true
		}
	}
	for nth := 1 + rnd.IntN(6); ; {
		select {
		case <-done:
			return false
		case a, ok := <-moments:
			if !ok {
				return false
			}
			if a != goal {
				continue
			}
			if nth--; nth > 0 {
				continue
			}
			// At once, or a few system calls later.
			for until := time.Now().Add(time.Duration(rnd.IntN(2)*rnd.IntN(400)) * time.Microsecond); time.Now().Before(until); {
				runtime.Gosched()
			}
			return true
		}
	}
}
