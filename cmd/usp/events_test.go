package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestEventSnapshots interrupts a run with outliers and shifts in it at many places, in degraded mode too: it must take
// its snapshots for events at the same steps as a run without interruption.
func TestEventSnapshots(t *testing.T) {
	w := newWorld(t)
	w.env = append(w.env, "USP_RING_STAGING_AREAS=16", "USP_SNAPSHOT_KEEP_LAST=0", "USP_SNAPSHOT_EVENT_SPACING=7", "USP_SNAPSHOT_INTERVAL=100")
	rnd := rand.New(rand.NewPCG(4, 2))
	rows := make([]string, 300)
	level := 0.0
	for i := range rows {
		x := level + rnd.NormFloat64()
		switch {
		case i > 100 && i%40 == 0:
			x += 60 // alone
		case i == 225:
			level = 25 // for good
		}
		rows[i] = fmt.Sprintf("%d,%.4f\n", i*1_000_000_000, x)
	}
	input := func(n int) string {
		text := bytes.NewBufferString("time,value\n")
		for _, r := range rows[:n] {
			text.WriteString(r)
		}
		if err := os.WriteFile(filepath.Join(w.dir, "in.csv"), text.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		return "in.csv"
	}
	events := func(dir string) (steps []int) {
		_, out := w.want([]int{0}, "snapshot", "ls", "latest", "--dir", dir, "--json")
		var list []struct {
			Step   int
			Reason string
		}
		if err := json.Unmarshal([]byte(out), &list); err != nil {
			t.Fatal(err)
		}
		seen := map[int]bool{}
		for _, s := range list {
			if s.Reason == "event" {
				steps = append(steps, s.Step)
			} else if s.Reason == "cadence" && s.Step%100 != 0 || seen[s.Step] {
				t.Errorf("in %s: %+v", dir, s)
			}
			seen[s.Step] = true
		}
		return steps
	}
	if sum := w.summary("run", input(len(rows)), "--dir", "whole"); sum["snapshots_dropped"].(float64) != 0 {
		t.Fatalf("snapshots were dropped, so nothing can be compared: %v", sum)
	}
	want := events("whole")
	if len(want) < 6 || !slices.Contains(want, 121) {
		t.Fatalf("events at %v: the series does not test much", want)
	}
	for _, cuts := range [][]int{{want[1]}, {want[1] + 1}, {want[1] + 2, want[2] + 1}, {want[3] - 1, want[3], want[4] + 1}} {
		dir := fmt.Sprint("cut-", cuts)
		args := []string{"run", "in.csv", "--dir", dir}
		for _, n := range append(cuts, len(rows)) {
			input(n)
			w.summary(args...)
			args = []string{"run", "--resume", "latest", "--dir", dir}
		}
		if got := events(dir); !slices.Equal(got, want) {
			t.Errorf("interrupted after %v: snapshots for events at %v, want %v", cuts, got, want)
		}
		w.want([]int{0}, "compare", filepath.Join(dir, "latest"), "whole/latest")
		w.want([]int{0}, "verify", "latest", "--dir", dir, "--deep")
	}
	w.env = append(w.env, "USP_SNAPSHOT_ON_EVENTS=false")
	w.summary("run", input(len(rows)), "--dir", "off")
	if got := events("off"); len(got) != 0 {
		t.Errorf("switched off, snapshots for events at %v", got)
	}
}
