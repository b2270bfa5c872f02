package cli

import (
	"encoding/csv"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/usp-project/usp/predictor"
)

// writeForecasts continues a table behind a step with rows up to another, and returns the last step kept.
func writeForecasts(t *testing.T, name string, after, to uint64) (kept uint64) {
	t.Helper()
	f, err := newForecastWriter(name, io.Discard, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	if after > 0 {
		if err := f.checkColumns(); err != nil {
			t.Fatal(err)
		}
	}
	if kept, err = f.keepThrough(after); err != nil {
		t.Fatal(err)
	}
	for s := after + 1; s <= to; s++ {
		if err := f.write(&predictor.Output{Step: s, Time: int64(s) * 1e9, Prior: float64(s), HasPrior: s > 1}, nil); err != nil {
			t.Fatal(err)
		}
	}
	return kept
}

func readText(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// A resumed output file holds the rows up to the resumed step, then the new ones: the same as without interruption.
func TestForecastsResume(t *testing.T) {
	dir := t.TempDir()
	whole, broken := filepath.Join(dir, "whole.csv"), filepath.Join(dir, "broken.csv")
	writeForecasts(t, whole, 0, 30)
	writeForecasts(t, broken, 0, 23)
	if err := os.Truncate(broken, 450); err != nil { // killed in the middle of a row
		t.Fatal(err)
	}
	if kept := writeForecasts(t, broken, 7, 30); kept != 7 {
		t.Errorf("rows up to %d kept, want 7", kept)
	}
	if a, b := readText(t, whole), readText(t, broken); a != b {
		t.Errorf("resumed output differs:\n%s", b)
	}
	if err := os.Truncate(broken, 450); err != nil {
		t.Fatal(err)
	}
	if kept := writeForecasts(t, broken, 25, 30); kept == 0 || kept >= 25 || strings.Contains(readText(t, broken), "\n25,") {
		t.Errorf("rows up to %d kept of a file that ended before 25", kept)
	}
	writeForecasts(t, whole, 0, 2) // a new run begins anew
	if a := readText(t, whole); strings.Count(a, "\n") != 3 {
		t.Errorf("a new run left %q", a)
	}
}

// TestForecastColumns wants a table to be continued only if it has the columns, and not to be touched otherwise.
func TestForecastColumns(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		ok         bool
	}{
		{"those of now", strings.Join(forecastColumns, ",") + "\n1,1970-01-01T00:00:00Z,,,,,,,,\n", true},
		{"fewer", "step,time,forecast,lower,upper\n1,1970-01-01T00:00:00Z,,,\n", false},
		{"not a table at all", strings.Repeat("text ", 10) + "\n", false},
		{"nothing", "", true},
		{"killed within the header", "step,ti", true},
	} {
		name := filepath.Join(t.TempDir(), "f.csv")
		if err := os.WriteFile(name, []byte(tt.text), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := newForecastWriter(name, io.Discard, nil)
		if err != nil {
			t.Fatal(err)
		}
		err = f.checkColumns()
		f.file.Close()
		if (err == nil) != tt.ok || err != nil && (exitCode(err) != exitUsage || strings.Contains(err.Error(), "\n")) {
			t.Errorf("%s: error %v, want one: %v", tt.name, err, !tt.ok)
		}
		if got := readText(t, name); got != tt.text {
			t.Errorf("%s: the file became %q", tt.name, got)
		}
	}
}

// TestForecastQuantiles predicts long series of known kinds and reads back the table: each quantile must be undercut by
// its share of the values, to 1.5 %, the quantiles in a row must ascend, and each row must have all or, in the warm-up,
// none.
func TestForecastQuantiles(t *testing.T) {
	const n = 12000
	for _, tt := range []struct {
		name string
		next func(rnd *rand.Rand, i int, x float64) float64
	}{
		{"white noise", func(rnd *rand.Rand, _ int, _ float64) float64 { return rnd.NormFloat64() }},
		{"autoregression", func(rnd *rand.Rand, _ int, x float64) float64 { return 0.8*x + rnd.NormFloat64() }},
		{"random walk", func(rnd *rand.Rand, _ int, x float64) float64 { return x + rnd.NormFloat64() }},
		{"season", func(rnd *rand.Rand, i int, _ float64) float64 {
			return 3*math.Sin(float64(i)*math.Pi/6) + rnd.NormFloat64()
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p, err := predictor.New(predictor.Config{KernelWindow: 1})
			if err != nil {
				t.Fatal(err)
			}
			var text strings.Builder
			f, err := newForecastWriter("-", &text, nil)
			if err != nil {
				t.Fatal(err)
			}
			rnd := rand.New(rand.NewPCG(11, 5))
			var values []float64
			var out predictor.Output
			x := 0.0
			for i := range n {
				x = tt.next(rnd, i, x)
				values = append(values, x)
				law, ok := p.Law()
				if err := p.Step(predictor.Observation{Time: int64(i), Value: x}, &out); err != nil {
					t.Fatal(err)
				}
				stood := &law
				if !ok {
					stood = nil
				}
				if err := f.write(&out, stood); err != nil {
					t.Fatal(err)
				}
			}
			judgeQuantiles(t, text.String(), values)
		})
	}
}

func judgeQuantiles(t *testing.T, text string, values []float64) {
	rows, err := csv.NewReader(strings.NewReader(text)).ReadAll()
	if err != nil || len(rows) != len(values) {
		t.Fatalf("%d rows, error %v", len(rows), err)
	}
	var below [len(forecastQuantiles)]float64
	judged, first := 0.0, 0
	for i, row := range rows {
		var q []float64
		for _, text := range row[5:] {
			if x, err := strconv.ParseFloat(text, 64); err == nil {
				q = append(q, x)
			} else if text != "" {
				t.Fatalf("row %d: %q", i+1, row)
			}
		}
		if len(q) == 0 && judged == 0 {
			first = i + 1
			continue
		}
		if len(q) != len(below) || !slices.IsSorted(q) || q[0] == q[len(q)-1] {
			t.Fatalf("row %d: quantiles %v", i+1, q)
		}
		judged++
		for k := range below {
			if values[i] < q[k] {
				below[k]++
			}
		}
	}
	if first > 20 {
		t.Errorf("there are no quantiles before row %d", first+1)
	}
	for k, name := range forecastColumns[5:] {
		percent, err := strconv.Atoi(strings.TrimPrefix(name, "q"))
		if err != nil {
			t.Fatal(err)
		}
		p := float64(percent) / 100
		t.Logf("%g: %.4f below", p, below[k]/judged)
		if share := below[k] / judged; math.Abs(share-p) > 0.015 {
			t.Errorf("%.2f %% of the values are below the %g quantile", 100*share, p)
		}
	}
}
