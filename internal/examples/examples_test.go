package examples

import (
	"encoding/csv"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// series parses a shipped CSV without the reader that the program uses.
func series(t *testing.T, s Series) (times []time.Time, values []float64) {
	t.Helper()
	rows, err := csv.NewReader(strings.NewReader(string(s.CSV))).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(rows[0], ","); got != "time,value" {
		t.Fatalf("header %q, want time,value", got)
	}
	for i, row := range rows[1:] {
		at, err := time.Parse(time.DateOnly, row[0])
		if err != nil {
			t.Fatalf("row %d: %v", i+1, err)
		}
		x, err := strconv.ParseFloat(row[1], 64)
		if err != nil {
			t.Fatalf("row %d: %v", i+1, err)
		}
		times, values = append(times, at), append(values, x)
	}
	return times, values
}

// meanError returns the mean absolute and the root mean square error of
// forecasting each value by the one lag steps before it.
func meanError(x []float64, lag int) (mae, rmse float64) {
	n := float64(len(x) - lag)
	for i := lag; i < len(x); i++ {
		e := x[i] - x[i-lag]
		mae += math.Abs(e)
		rmse += e * e
	}
	return mae / n, math.Sqrt(rmse / n)
}

// TestFacts holds the shipped bytes to errors computed from the published
// series by another program.
func TestFacts(t *testing.T) {
	tests := []struct {
		name                   string
		n, season              int
		mae, rmse, seasonalMAE float64
		first, last            string
	}{
		{"sunspots", 309, 11, 18.19967532, 23.9754088, 22.6090604, "1700-01-01", "2008-01-01"},
		{"nile", 100, 0, 133.2525253, 167.3246406, 0, "1871-01-01", "1970-01-01"},
		{"co2", 2284, 52, .3837932545, .4886074778, 1.313802427, "1958-03-29", "2001-12-29"},
		{"unemployment", 203, 4, .2376237624, .3438281864, .7618090452, "1959-01-01", "2009-07-01"},
		{"gdp", 203, 0, .9741443324, 1.171332462, 0, "1959-01-01", "2009-07-01"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, ok := Lookup(tt.name)
			if !ok {
				t.Fatal("not shipped")
			}
			times, x := series(t, s)
			if len(x) != tt.n || s.Season != tt.season {
				t.Errorf("n = %d, season = %d, want %d, %d", len(x), s.Season, tt.n, tt.season)
			}
			near := func(what string, got, want float64) {
				if math.Abs(got-want) > 5e-10*want {
					t.Errorf("%s = %.10g, want %.10g", what, got, want)
				}
			}
			mae, rmse := meanError(x, 1)
			near("naive MAE", mae, tt.mae)
			near("naive RMSE", rmse, tt.rmse)
			if tt.season > 0 {
				mae, _ := meanError(x, tt.season)
				near("seasonal naive MAE", mae, tt.seasonalMAE)
			}
			if !slices.IsSortedFunc(times, time.Time.Compare) {
				t.Error("times are not in order")
			}
			first, last := times[0].Format(time.DateOnly), times[len(times)-1].Format(time.DateOnly)
			if first != tt.first || last != tt.last {
				t.Errorf("from %s to %s, want from %s to %s", first, last, tt.first, tt.last)
			}
		})
	}
}

func TestLookup(t *testing.T) {
	if got := Names(); !slices.Equal(got, []string{"sunspots", "nile", "co2", "unemployment", "gdp"}) {
		t.Errorf("Names() = %q", got)
	}
	if _, ok := Lookup(Default); !ok {
		t.Errorf("the default %q is not shipped", Default)
	}
	for _, name := range []string{"", "copper", "sunspots.csv", Prefix + "nile"} {
		if _, ok := Lookup(name); ok {
			t.Errorf("Lookup(%q) found something", name)
		}
	}
	s, _ := Lookup("nile")
	s.CSV[0] = 'X'
	if again, _ := Lookup("nile"); again.CSV[0] != 't' {
		t.Error("a caller changed the shipped bytes")
	}
}

// TestSources wants every shipped file named in SOURCES.md with its licence.
func TestSources(t *testing.T) {
	text, err := os.ReadFile("SOURCES.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range All() {
		if !strings.Contains(string(text), "`"+s.Name+".csv`") {
			t.Errorf("SOURCES.md does not name %s.csv", s.Name)
		}
		if s.Title == "" || s.Unit == "" || !strings.Contains(s.Source, "public domain") {
			t.Errorf("%s lacks a title, a unit or its licence: %+v", s.Name, s)
		}
	}
	if got := strings.Count(string(text), "public domain.\""); got != 4 {
		t.Errorf("SOURCES.md quotes %d licences, want 4", got)
	}
}
