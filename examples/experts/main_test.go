package main

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/usp-project/usp/internal/examples"
)

func TestForecasts(t *testing.T) {
	series, ok := examples.Lookup("sunspots")
	if !ok {
		t.Fatal("no series sunspots")
	}
	table, err := forecasts(strings.NewReader(string(series.CSV)), series.Season)
	if err != nil {
		t.Fatal(err)
	}
	n := len(table.Experts)
	if len(table.Value) != 309 || len(table.Forecast) != 309 || n == 0 || len(table.Belief) != n {
		t.Fatalf("%d values, %d forecasts, %d experts, %d beliefs", len(table.Value), len(table.Forecast), n, len(table.Belief))
	}
	sum := 0.0
	for _, b := range table.Belief {
		sum += b
	}
	if math.Abs(sum-1) > 0x1p-50 {
		t.Errorf("beliefs sum to %v", sum)
	}
	for i, y := range table.Value {
		if row := table.Forecast[i]; len(row) != n || row[0] != y {
			t.Fatalf("step %d: %s forecasts %v after %v", i+1, table.Experts[0], row[0], y)
		}
	}
	if table.Value[0] != 5 || table.Value[308] != 2.9 {
		t.Errorf("values from %v to %v", table.Value[0], table.Value[308])
	}
}

// A series that the predictor puts in quarantine has no table, and so has none that is not a series.
func TestForecastsRefuses(t *testing.T) {
	var b strings.Builder
	b.WriteString("time,value\n")
	for i := range 60 {
		fmt.Fprintf(&b, "%d,%d\n", i, i*i%7)
	}
	steady := b.String()
	for name, c := range map[string]struct{ csv, want string }{
		"outlier":     {steady + "60,1e6\n", "line 62: the predictor put the value in quarantine"},
		"empty":       {"time,value\n", "no rows below the header"},
		"not numbers": {"time,value\n1,x\n", "line 2:"},
	} {
		if _, err := forecasts(strings.NewReader(c.csv), 1); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
