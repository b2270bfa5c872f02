package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"
)

// scored are the keys of a summary that say how the forecasts of the whole series did. A resume must not change them.
var scored = []string{
	"steps", "rmse", "rmse_naive", "mae", "mase", "skill", "coverage", "best_expert", "best_expert_rmse", "best_expert_mae", "best_convex_rmse",
	"uniform_rmse", "boa_rmse", "ml_poly_rmse", "crps", "turnover", "alarm_count", "alarms", "event_counts", "events",
	"next_forecast", "next_lower", "next_upper",
}

// disturbed is a series of so many rows with outliers, shifts, rests and louder times.
func disturbed(n int) []byte {
	rnd := rand.New(rand.NewPCG(5, 8))
	b := bytes.NewBufferString("time,value\n")
	x, level, size := 0.0, 0.0, 1.0
	for i := range n {
		e := rnd.NormFloat64()
		switch {
		case i%700 == 500:
			level += 6
		case i%1100 == 900:
			size = 4 - size
		}
		if i%900 < 880 {
			x = 0.5*x + size*e
		}
		value := x + level
		if i%450 == 300 {
			value += 400
		}
		fmt.Fprintf(b, "%d,%.6f\n", i*1_000_000_000, value)
	}
	return b.Bytes()
}

// TestInterruptedScores interrupts a run again and again, politely or with SIGKILL, resumes it each time, and wants the
// scores, alarms and events of a run without interruption, to the bit, and the same table of forecasts.
func TestInterruptedScores(t *testing.T) {
	w := newWorld(t)
	w.env = append(w.env, recorderSettings...) // it commits often, so that a snapshot is seen soon
	input := filepath.Join(w.dir, "series.csv")
	series := disturbed(20_000)
	if err := os.WriteFile(input, series, 0o600); err != nil {
		t.Fatal(err)
	}
	flags := []string{"--snapshot-interval", "150"}
	whole := w.summary(append([]string{"run", input, "--dir", "whole", "--forecasts", "whole.csv"}, flags...)...)
	if whole["alarm_count"].(float64) < 2 || len(whole["event_counts"].(map[string]any)) < 5 {
		t.Fatalf("the series tests little: %v", whole["event_counts"])
	}
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
		t.Run(sig.String(), func(t *testing.T) {
			dir, table := "cut-"+sig.String(), sig.String()+".csv"
			args := append([]string{"run", "-", "--dir", dir, "--forecasts", table}, flags...)
			cut := 0
			var sum map[string]any // of the try that came to the end of the series
			for cut < 4 && sum == nil {
				if sum = interrupt(t, w, dir, sig, args, series); sum == nil {
					cut++
				}
				args = append([]string{"run", "--resume", "latest", "-", "--dir", dir, "--forecasts", table}, flags...)
				w.idle()
			}
			t.Logf("%d interruptions", cut)
			if cut < 2 {
				t.Fatalf("%d interruptions", cut)
			}
			if sum == nil {
				args[3] = input
				sum = w.summary(args...)
			}
			for _, key := range scored {
				if !reflect.DeepEqual(sum[key], whole[key]) {
					t.Errorf("%s is %v, want %v", key, sum[key], whole[key])
				}
			}
			a, errA := os.ReadFile(filepath.Join(w.dir, "whole.csv"))
			b, errB := os.ReadFile(filepath.Join(w.dir, table))
			if errA != nil || errB != nil || string(a) != string(b) {
				t.Errorf("the tables of forecasts differ: %v, %v, %d and %d bytes", errA, errB, len(a), len(b))
			}
			w.want([]int{0}, "compare", dir+"/latest", "whole/latest")
		})
	}
}

// ahead is how many rows a run may be ahead of the snapshot that it is to be interrupted at, however busy the machine.
const ahead = 2000

// held is a series that ends for a reader only when more is closed, but for its first rows.
type held struct {
	rest []byte
	free int // bytes that are given at once
	more <-chan struct{}
}

func (h *held) Read(p []byte) (int, error) {
	if h.free <= 0 {
		<-h.more
	} else {
		p = p[:min(len(p), h.free)]
	}
	n := copy(p, h.rest)
	if n == 0 {
		return 0, io.EOF
	}
	h.rest, h.free = h.rest[n:], h.free-n
	return n, nil
}

// interrupt starts usp and sends it a signal when it has taken one more snapshot. It returns the summary of a run that was
// not cut short: it may end first, and near its end it is let go, for a run whose last row was predicted has nothing to resume.
func interrupt(t *testing.T, w *world, dir string, sig syscall.Signal, args []string, series []byte) map[string]any {
	t.Helper()
	newest := func() string {
		list, _ := filepath.Glob(filepath.Join(w.dir, dir, "latest", "snapshots", "*.snap"))
		return append([]string{""}, list...)[len(list)]
	}
	before := newest()
	var out bytes.Buffer
	cmd := w.command(append(args, "--json")...)
	cmd.Stdout = &out
	var step int
	_, _ = fmt.Sscanf(filepath.Base(before), "%d", &step) // there may be none
	rows := bytes.SplitAfterN(series, []byte("\n"), step+ahead+1)
	more := make(chan struct{})
	cmd.Stdin = &held{series, len(series) - len(rows[len(rows)-1]), more}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var err error
	done := make(chan struct{})
	go func() { err = cmd.Wait(); close(done) }()
	for deadline, running := time.Now().Add(time.Minute), true; running && newest() == before && time.Now().Before(deadline); {
		select {
		case <-done:
			running = false
		case <-time.After(time.Millisecond):
		}
	}
	if filepath.Base(newest()) < "00000000000000012000" {
		_ = cmd.Process.Signal(sig) // it may just have ended
	}
	close(more)
	<-done
	if err != nil {
		return nil
	}
	sum := map[string]any{}
	lines := bytes.Split(bytes.TrimSpace(out.Bytes()), []byte("\n"))
	if err := json.Unmarshal(lines[len(lines)-1], &sum); err != nil {
		t.Fatalf("%v in %s", err, out.Bytes())
	}
	return sum
}

// TestForecastsReachTheirSnapshot kills a run that waits for its input right behind a snapshot: the table must have the rows
// up to it, or the resume could not give them.
func TestForecastsReachTheirSnapshot(t *testing.T) {
	w := newWorld(t)
	lines := bytes.SplitAfter(disturbed(30), []byte("\n"))
	cmd := w.command("run", "-", "--dir", "runs", "--snapshot-interval", "15", "--forecasts", "f.csv")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_, err = in.Write(bytes.Join(lines[:1+17], nil))
	for deadline := time.Now().Add(time.Minute); err == nil; time.Sleep(5 * time.Millisecond) {
		if list, _ := filepath.Glob(filepath.Join(w.dir, "runs", "latest", "snapshots", "*15-*.snap")); len(list) > 0 {
			break
		}
		if time.Now().After(deadline) {
			err = context.DeadlineExceeded
		}
	}
	kill(cmd.Process.Pid)
	_ = cmd.Wait() // it was killed
	if err != nil {
		t.Fatal(err)
	}
	w.idle()
	if err := os.WriteFile(filepath.Join(w.dir, "in.csv"), bytes.Join(lines, nil), 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, said := w.run("run", "--resume", "latest", "--dir", "runs", "--forecasts", "f.csv", "in.csv", "-q")
	w.want([]int{0}, "run", "in.csv", "--dir", "whole", "--forecasts", "whole.csv", "-q")
	a, errA := os.ReadFile(filepath.Join(w.dir, "f.csv"))
	b, errB := os.ReadFile(filepath.Join(w.dir, "whole.csv"))
	if errA != nil || errB != nil || string(a) != string(b) || said != "" {
		t.Errorf("%v %v, standard error %q, the table is\n%s", errA, errB, said, a)
	}
	// What the system lost is said. Here it is half of the table.
	if err := os.WriteFile(filepath.Join(w.dir, "f.csv"), b[:len(b)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	more := fmt.Appendf(bytes.Join(lines, nil), "%d,1\n", int64(1e15))
	if err := os.WriteFile(filepath.Join(w.dir, "in.csv"), more, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, said = w.run("run", "--resume", "latest", "--dir", "runs", "--forecasts", "f.csv", "-q", "in.csv"); !strings.Contains(said, "f.csv lacks the forecasts of steps ") {
		t.Errorf("standard error %q", said)
	}
}
