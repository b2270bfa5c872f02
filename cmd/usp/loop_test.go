package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/usp-project/usp"
	"github.com/usp-project/usp/predictor"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/recorder"
	"github.com/usp-project/usp/snapshot"
)

// loopOptions are the command line of the program that loopMain is, as JSON.
type loopOptions struct {
	Recorder recorder.Options
	Ring     string // directory
}

// phase is what a stretch of steps took, in nanoseconds, and how far the recorder had got at its end.
type phase struct {
	Steps            int
	P50, P99, Max    int64
	Position         uint64
	Stored, Lost     uint64
	Synced           uint64
	Snapshots        uint64
	SnapshotsRefused int
}

// ending is how a loop ended.
type ending struct {
	Summary usp.Summary
	Error   string
	Took    time.Duration
}

// loopMain is a step loop in a process of its own. Each line of standard input is an order: a number of steps to take and
// the pause between them in nanoseconds, or 0 0 for the end. It answers each with a line of JSON.
func loopMain() {
	if err := loopRun(); err != nil {
		fmt.Fprintln(os.Stderr, "loop:", err)
		os.Exit(1)
	}
}

func loopRun() error {
	var o loopOptions
	if err := json.Unmarshal([]byte(os.Args[1]), &o); err != nil {
		return err
	}
	schema := predictor.Schema(4)
	run, err := usp.Start(context.Background(), usp.Options{
		Schema: schema, Recorder: o.Recorder, Ring: usp.RingOptions{Dir: o.Ring},
	})
	if err != nil {
		return err
	}
	out := json.NewEncoder(os.Stdout)
	if err := out.Encode(map[string]string{"dir": run.Dir()}); err != nil {
		return err
	}
	l := looper{run: run, values: record.NewValues(schema), state: bytes.Repeat([]byte("state"), 4000)}
	l.calibrate()
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var n int
		var pause time.Duration
		if _, err := fmt.Sscan(in.Text(), &n, &pause); err != nil {
			return err
		}
		if n == 0 {
			began := time.Now()
			sum, err := run.Close()
			e := ending{Summary: sum, Took: time.Since(began)}
			if err != nil {
				e.Error = err.Error()
			}
			return out.Encode(e)
		}
		if err := out.Encode(l.steps(n, pause)); err != nil {
			return err
		}
	}
	return nil
}

type looper struct {
	run    *usp.Run
	values *record.Values
	state  []byte
	turns  int // of work that take 20 µs
	sink   float64
	step   uint64
}

// work is what a step computes.
func (l *looper) work(turns int) {
	x := l.sink + 1
	for range turns {
		x = x*0.999 + 1/x
	}
	l.sink = x
}

// calibrate finds out how much work takes 20 µs when nothing disturbs it.
func (l *looper) calibrate() {
	const turns = 10_000
	best := time.Hour
	for range 20 {
		began := time.Now()
		l.work(turns)
		best = min(best, time.Since(began))
	}
	l.turns = max(1, int(turns*20*time.Microsecond/best))
}

// steps takes n steps and measures each; every 2000th takes a snapshot, which is part of what the step costs.
func (l *looper) steps(n int, pause time.Duration) phase {
	took := make([]int64, n)
	p := phase{Steps: n}
	for i := range took {
		l.step++
		began := time.Now()
		l.work(l.turns)
		l.values.SetFloat64(0, l.sink)
		l.run.Emit(l.step, int64(l.step), l.values)
		if l.step%2000 == 0 && !l.run.Snapshot(l.step, usp.ReasonCadence, usp.Section{Name: "state", Data: l.state}) {
			p.SnapshotsRefused++
		}
		took[i] = int64(time.Since(began))
		if pause > 0 {
			time.Sleep(pause) // a slow loop, so that the disk is not full again at once
		}
	}
	slices.Sort(took)
	c := l.run.Live()
	p.P50, p.P99, p.Max = took[n/2], took[n*99/100], took[n-1]
	p.Position, p.Stored, p.Lost, p.Synced, p.Snapshots = l.run.Emitted(), c.Stored, c.Lost, c.Synced, c.Snapshots
	return p
}

// loop is the test's end of such a process.
type loop struct {
	t      testing.TB
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Scanner
	stderr lockedBuffer
	Dir    string
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// startLoop starts a step loop whose runs lie in dir; as another user, if one is given.
func (w *world) startLoop(dir string, as *syscall.Credential) *loop {
	w.t.Helper()
	bin := filepath.Join(filepath.Dir(w.bin), "loop")
	if err := os.Link(w.bin, bin); err != nil && !os.IsExist(err) {
		w.t.Fatal(err)
	}
	options, err := json.Marshal(loopOptions{Ring: w.ring, Recorder: recorder.Options{
		Runs: dir, KeyFile: filepath.Join(dir, "key"), SegmentSize: 256 << 10, CommitBytes: 32 << 10, CommitInterval: 5 * time.Millisecond,
		HeadInterval: 20 * time.Millisecond, HoldBytes: 4 << 20, Snapshot: recorder.SnapshotOptions{Retention: snapshot.Retention{KeepLast: 2}},
	}})
	if err != nil {
		w.t.Fatal(err)
	}
	l := &loop{t: w.t, cmd: exec.Command(bin, string(options))}
	l.cmd.Dir, l.cmd.Env, l.cmd.Stderr = w.dir, append(slices.Clone(w.env), "USP_BIN="+cmp.Or(w.recorder, w.bin)), &l.stderr
	if as != nil {
		l.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	}
	if l.in, err = l.cmd.StdinPipe(); err != nil {
		w.t.Fatal(err)
	}
	out, err := l.cmd.StdoutPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	l.out = bufio.NewScanner(out)
	if err := l.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		for _, pid := range children(l.cmd.Process.Pid) {
			kill(pid)
		}
		kill(l.cmd.Process.Pid)
		_ = l.cmd.Wait() // it may have ended
	})
	l.answer(l)
	return l
}

func (l *loop) answer(v any) {
	l.t.Helper()
	if !l.out.Scan() {
		l.t.Fatalf("the loop has ended: %v\n%s", l.out.Err(), l.stderr.String())
	}
	if err := json.Unmarshal(l.out.Bytes(), v); err != nil {
		l.t.Fatalf("%v in %s", err, l.out.Text())
	}
}

func (l *loop) order(n int, pause time.Duration, v any) {
	l.t.Helper()
	if _, err := fmt.Fprintln(l.in, n, int64(pause)); err != nil {
		l.t.Fatalf("%v\n%s", err, l.stderr.String())
	}
	l.answer(v)
}

// steps has the loop take n steps.
func (l *loop) steps(n int, pause time.Duration) (p phase) {
	l.t.Helper()
	l.order(n, pause, &p)
	return p
}

// until has the loop take slow steps until done, and says what of.
func (l *loop) until(what string, done func(phase) bool) phase {
	l.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		p := l.steps(20, time.Millisecond)
		if done(p) {
			return p
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("never %s: %+v\n%s", what, p, l.stderr.String())
		}
	}
}

// caughtUp waits for a recorder that has stored or given up all but the last steps.
func (l *loop) caughtUp() phase {
	l.t.Helper()
	return l.until("caught up", func(p phase) bool { return p.Stored+p.Lost+1000 > p.Position })
}

func (l *loop) close() (e ending) {
	l.t.Helper()
	l.order(0, 0, &e)
	return e
}
