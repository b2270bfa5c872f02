package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// TestArrivals runs an input that is late for a while, frozen, and has an outlier. The summary must say so by step, the
// same from a file, from a pipe and interrupted anywhere; a replay must come to the same digests; and without a column of
// arrivals nothing may depend on when the rows were read.
func TestArrivals(t *testing.T) {
	w := newWorld(t)
	rnd := rand.New(rand.NewPCG(7, 3))
	const second = 1_000_000_000
	rows := make([]string, 300)
	x := 0.0
	for i := range rows {
		late := map[bool]int{true: 50, false: 0}[i >= 150 && i < 160] // periods
		switch i {
		case 160:
			late = 9 // not yet below 0.8 of the limit
		case 161:
			late = 7
		}
		if i <= 200 || i > 210 {
			x += rnd.NormFloat64()
		}
		value := x
		if i == 250 {
			value += 300
		}
		rows[i] = fmt.Sprintf("%d,%.4f,%d\n", i*second, value, (i+late)*second)
	}
	text := func(n int) []byte { return []byte("time,value,seen\n" + strings.Join(rows[:n], "")) }
	write := func(n int) {
		if err := os.WriteFile(filepath.Join(w.dir, "in.csv"), text(n), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pipe := func(args ...string) map[string]any {
		t.Helper()
		cmd := w.command(append(args, "--json")...)
		cmd.Stdin = bytes.NewReader(text(len(rows)))
		out, err := cmd.Output()
		doc := map[string]any{}
		if err = cmp.Or(err, json.Unmarshal(out, &doc)); err != nil {
			t.Fatal(err)
		}
		return doc
	}
	events := func(sum map[string]any) (list []string) {
		for _, e := range sum["events"].([]any) {
			e := e.(map[string]any)
			phase, _ := e["phase"].(string)
			if name := e["name"].(string); !strings.HasPrefix(name, "alarm") {
				list = append(list, strings.TrimSpace(fmt.Sprintf("%v %s %s", e["step"], name, phase)))
				if want := (e["step"].(float64) - 1) * second; e["time"] != want {
					t.Errorf("%v: want time %v", e, want)
				}
			}
		}
		return list
	}
	write(len(rows))
	want := []string{
		"151 degraded begin", "151 stale begin", "162 degraded end", "162 stale end",
		"205 frozen begin", "205 degraded begin", "213 frozen end", "213 degraded end",
		"251 outlier", "251 degraded begin", "252 dropped", "252 degraded end",
	}
	whole := w.summary("run", "in.csv", "--arrival-column", "seen", "--dir", "whole")
	if got := events(whole); !reflect.DeepEqual(got, want) {
		t.Errorf("events %q, want %q", got, want)
	}
	if _, out := w.want([]int{0}, "run", "in.csv", "--arrival-column", "seen", "--dir", "text"); !strings.Contains(out, "1 × stale: step 151 (1970-01-01T00:02:30Z) to 161\n") {
		t.Errorf("the summary does not tell when the input was stale:\n%s", out)
	}
	piped := pipe("run", "-", "--arrival-column", "seen", "--dir", "pipe")
	if got := events(piped); !reflect.DeepEqual(got, want) {
		t.Errorf("from a pipe: events %q, want %q", got, want)
	}
	for _, cut := range []int{151, 155, 161, 251} {
		dir := fmt.Sprint("cut-", cut)
		write(cut)
		w.summary("run", "in.csv", "--arrival-column", "seen", "--dir", dir)
		write(len(rows))
		sum := w.summary("run", "--resume", "latest", "--dir", dir)
		if got := events(sum); !reflect.DeepEqual(got, want) {
			t.Errorf("interrupted after %d: events %q, want %q", cut, got, want)
		}
		w.want([]int{0}, "compare", filepath.Join(dir, "latest"), "whole/latest")
		w.want([]int{0}, "verify", "latest", "--dir", dir, "--deep")
		w.want([]int{0}, "replay", "latest", "--dir", dir)
		w.want([]int{0}, "replay", "latest", "--dir", dir, "--from", "156")
	}
	w.want([]int{0}, "compare", "pipe/latest", "whole/latest")

	// Without the column rows arrive at their times, whenever they are read.
	fresh := pipe("run", "-", "--dir", "fresh")
	if got := events(fresh); !reflect.DeepEqual(got, want[4:]) {
		t.Errorf("without arrivals: events %q, want %q", got, want[4:])
	}
	w.summary("run", "in.csv", "--dir", "file")
	w.want([]int{0}, "compare", "fresh/latest", "file/latest")
	if _, out := w.want([]int{22}, "compare", "file/latest", "whole/latest"); !strings.Contains(out, `times of arrival from no column in A and column "seen" in B`) {
		t.Errorf("compare does not say why:\n%s", out)
	}
}
