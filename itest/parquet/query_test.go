package parquet

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/usp-project/usp/predictor"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/sink/sinktest"
)

const (
	runA = "20261122T201833-9f3kq"
	runB = "20261123T090412-b7w2m"
)

// steps gives each step an entropy and flags, and the rest zeros.
func steps(s *record.Schema, entropy func(step uint64) float64, flags func(step uint64) uint64) func(step uint64) []uint64 {
	at := func(name string) int { i, _ := s.Index(name); return s.Offset(i) }
	return func(step uint64) []uint64 {
		words := make([]uint64, s.Words())
		words[0], words[1] = step, step*1_000_000_000
		words[at("entropy")] = record.Canonical(entropy(step))
		words[at("ot_cost")] = record.Canonical(float64(step) / 8)
		if step == 3 {
			words[at("ot_cost")] = record.Canonical(math.NaN())
		}
		words[at("flags")] = flags(step)
		return words
	}
}

// lake has two runs. The first is computed to step 300, with steps 101 to 110 lost, gone on with from 250 to 280, from 270 to
// 290, in which 281 to 285 are lost as the last of their file, and from 265 to 270. The second has 290 steps without
// interruption.
func lake(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	s := predictor.Schema(2)
	entropy := func(step uint64) float64 { return float64(step%10) / 4 }
	flags := func(step uint64) uint64 {
		return map[uint64]uint64{20: predictor.FlagAlarmUp, 260: predictor.FlagAlarmDown}[step]
	}
	a := sinktest.RecordRun(t, runA, s)
	old := func(step uint64) float64 { return entropy(step) + 1 } // of steps that are computed again
	first := func(step uint64) float64 {
		if step > 250 {
			return old(step)
		}
		return entropy(step)
	}
	a.EmitWords(100, steps(s, first, flags))
	a.Lose(10)
	a.Roll()
	a.EmitWords(190, steps(s, first, flags))
	a.Rewind(250)
	a.EmitWords(15, steps(s, entropy, flags))
	a.EmitWords(15, steps(s, old, flags))
	a.Rewind(270)
	a.EmitWords(10, steps(s, old, flags))
	a.Lose(5)
	a.Roll()
	a.EmitWords(5, steps(s, old, flags))
	a.Lose(2)
	a.Roll()
	a.Rewind(265)
	a.EmitWords(5, steps(s, entropy, flags))
	a.Roll()
	b := sinktest.RecordRun(t, runB, s)
	b.EmitWords(290, steps(s, func(step uint64) float64 {
		if step == 40 || step == 41 {
			return entropy(step) + 0.5
		}
		return entropy(step)
	}, func(step uint64) uint64 { return flags(step) &^ predictor.FlagAlarmDown }))
	b.Roll()
	bring(t, a, dir)
	bring(t, b, dir)
	return dir
}

// answers are those of the statements of doc/query.md that are short.
var answers = map[string][][]string{
	"1. Which runs are there": {
		{runA, "340", "3", "1", "300", "1970-01-01 00:00:01+00:00", "1970-01-01 00:05:00+00:00"},
		{runB, "290", "0", "1", "290", "1970-01-01 00:00:01+00:00", "1970-01-01 00:04:50+00:00"},
	},
	"2. The effective timeline": {},
	"3. Account of losses": {
		{runA, "0", "290", "10", "300", "0"}, {runA, "1", "30", "0", "30", "0"}, {runA, "2", "15", "7", "22", "0"}, {runA, "3", "5", "0", "5", "0"}, {runB, "0", "290", "0", "290", "0"},
	},
	"4. Which records were lost, and why": {
		{runA, "0", "100", "109", "10", "overrun"}, {runA, "2", "10", "14", "5", "overrun"}, {runA, "2", "20", "21", "2", "overrun"},
	},
	"5. Two runs, step by step": {
		{"40", "0.0", "0.5", "0.5"}, {"41", "0.25", "0.75", "0.5"}, {"260", "0.0", "0.0", "0.0"},
	},
	"6. Alarms": {
		{runA, "20", "1970-01-01 00:00:20+00:00", "up", "0.0", "0.0", "0.0"}, {runA, "260", "1970-01-01 00:04:20+00:00", "down", "0.0", "0.0", "0.0"},
		{runB, "20", "1970-01-01 00:00:20+00:00", "up", "0.0", "0.0", "0.0"},
	},
	"8. How a field is distributed": {
		{runA, "260", "1", "[0.5, 17.625, 33.5]"}, {runB, "290", "1", "[0.5, 18.25, 36.0]"},
	},
	"9. Where the steps have gaps": {{runA, "101", "110", "10"}},
}

// TestQueries runs the statements of doc/query.md, one after the other, and knows what they have to say.
func TestQueries(t *testing.T) {
	python(t)
	text, err := os.ReadFile(filepath.Join("..", "..", "doc", "query.md"))
	must(t, err)
	var titles, statements []string
	for _, m := range regexp.MustCompile("(?s)\n## ([^\n]+)\n.*?```sql\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
		titles, statements = append(titles, m[1]), append(statements, m[2])
	}
	if len(statements) != 10 || strings.Count(string(text), "```sql") != 10 {
		t.Fatalf("%d statements with a title", len(statements))
	}
	input, err := json.Marshal(statements)
	must(t, err)
	var got [][][]string
	read(t, &got, input, lake(t), "query")
	for i, title := range titles {
		want, short := answers[title]
		switch {
		case short:
			if diff := cmp.Diff(want, got[i]); diff != "" {
				t.Errorf("%s:\n%s", title, diff)
			}
		case strings.HasPrefix(title, "7."):
			checkParts(t, got[i])
		case strings.HasPrefix(title, "10."):
			checkFields(t, got[i])
		default:
			t.Errorf("%s: nobody knows the answer", title)
		}
	}
}

// checkParts looks at the first points of both runs and that all records are in some.
func checkParts(t *testing.T, rows [][]string) {
	t.Helper()
	first := map[string][]string{}
	sum := map[string]int{}
	for _, r := range rows {
		if first[r[0]] == nil {
			first[r[0]] = r[1:]
		}
		var n int
		must(t, json.Unmarshal([]byte(r[6]), &n))
		sum[r[0]] += n
	}
	want := map[string][]string{runA: {"0", "1", "0.25", "0.5", "0.75", "3"}, runB: {"0", "1", "0.25", "0.5", "0.75", "3"}}
	if diff := cmp.Diff(want, first); diff != "" || sum[runA] != 260 || sum[runB] != 290 || len(rows) > 200 {
		t.Errorf("parts: %d rows, %v records:\n%s", len(rows), sum, diff)
	}
}

// checkFields compares the fields with the schema.
func checkFields(t *testing.T, rows [][]string) {
	t.Helper()
	s := predictor.Schema(2)
	got := map[string]string{}
	for _, r := range rows {
		got[r[0]+" "+r[1]] = strings.Join(r[2:], " ")
	}
	want := map[string]string{}
	for _, line := range strings.Split(string(s.Text()), "\n") {
		if rest, ok := strings.CutPrefix(line, "field "); ok {
			name, rest, _ := strings.Cut(rest, " ")
			want[runA+" "+name], want[runB+" "+name] = rest, rest
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
