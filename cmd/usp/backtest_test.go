package main

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"testing"
)

// TestBacktestFiles compares two long series that are the same: both are scored alike, and into a pipe there is nothing
// but the result.
func TestBacktestFiles(t *testing.T) {
	w := newWorld(t)
	const rows = 8000
	for _, name := range []string{"a.csv", "b.csv"} {
		if err := os.WriteFile(filepath.Join(w.dir, name), disturbed(rows), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	code, out, piped := w.run("backtest", "a.csv", "b.csv", "--json")
	var doc struct {
		Series []struct {
			Series   string
			N        int
			Relative float64
			Events   map[string]int `json:"event_counts"`
		}
		Mean map[string]any `json:"geometric_mean"`
	}
	if err := json.Unmarshal([]byte(out), &doc); err != nil || code != 0 || piped != "" {
		t.Fatalf("exit code %d, %v, standard error %q", code, err, piped)
	}
	mean, _ := doc.Mean["relative"].(float64) // of two equal numbers, but for rounding
	if len(doc.Series) != 2 || doc.Series[1].Series != "b.csv" || doc.Series[0].N != rows || doc.Series[0].Events["outlier"] < 10 || math.Abs(mean-doc.Series[0].Relative) > 1e-14 {
		t.Errorf("result %+v", doc)
	}
}
