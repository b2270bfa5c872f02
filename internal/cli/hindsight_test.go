package cli

import (
	"math"
	"slices"
	"testing"

	"github.com/usp-project/usp/internal/score"
)

// What is said of forecasts that are no better than the naive one, or hardly.
func TestHonestTexts(t *testing.T) {
	const nothing = "nothing beat the naive forecast here"
	for _, tt := range []struct {
		ours, naive, best float64
		expert            string
		skill, hindsight  string
	}{
		{.8, 1, .7, "kernel", "20.0 % better", ""},
		{1.004, 1, 1, "naive", "not better: 0.4 % worse", nothing},
		{1.004, 1, 1 - 1e-15, "naive", "not better: 0.4 % worse", nothing},
		{1.004, 1, 1 - 1e-15, "ses.9", "not better: 0.4 % worse", nothing},
		{1.004, 1, .999, "drift", "not better: 0.4 % worse", "the forecasts did not beat the naive forecast here, drift alone would have, by 0.1 %"},
		{1.0004, 1, 1, "naive", "as good as naive", nothing},
		{.9996, 1, .9996, "naive", "as good as naive", ""},
		{1, 1, 1, "naive", "as good as naive", nothing},
		{0, 0, 0, "naive", "as good as naive", nothing},
		{1, 0, 0, "naive", "not better: naive makes no error", nothing},
	} {
		r := runSummary{RMSE: tt.ours, RMSENaive: tt.naive, Skill: undefined(1 - tt.ours/tt.naive), hindsight: hindsight{BestRMSE: tt.best, BestExpert: tt.expert}}
		if got := skillText(r); got != tt.skill {
			t.Errorf("%+v: %q", tt, got)
		}
		if tt.hindsight != "" {
			if got := nothingBetter(r); got != tt.hindsight {
				t.Errorf("%+v: %q", tt, got)
			}
		}
	}
	if crpsText(undefined(math.NaN())) != "" || crpsText(2) != "; CRPS 2" {
		t.Errorf("%q, %q", crpsText(undefined(math.NaN())), crpsText(2))
	}
}

func TestEventTexts(t *testing.T) {
	h := &hindsight{
		EventCounts: map[string]uint64{"alarm+": 1, "stale": 2, "outlier": 5},
		Events: []score.Event{
			{Step: 3, Name: "alarm+", Chart: score.ChartErrors},
			{Step: 4, Time: 1e9, Name: "stale", Phase: score.Begin},
			{Step: 5, Name: "outlier"}, {Step: 6, Name: "outlier"},
			{Step: 7, Name: "stale", Phase: score.End},
			{Step: 8, Name: "outlier"}, {Step: 9, Name: "outlier"},
			{Step: 9, Name: "stale", Phase: score.Begin}, // to the end
		},
	}
	want := []string{
		"2 × stale: step 4 (1970-01-01T00:00:01Z) to 6, step 9 (1970-01-01T00:00:00Z)",
		"5 × outlier: step 5 (1970-01-01T00:00:00Z), step 6 (1970-01-01T00:00:00Z), step 8 (1970-01-01T00:00:00Z), …",
	}
	if got := eventTexts(h); !slices.Equal(got, want) {
		t.Errorf("%q\nwant %q", got, want)
	}
	alarms := []score.Alarm{{Step: 3, Up: true, Chart: score.ChartErrors}, {Step: 5, Chart: score.ChartLevel}}
	if got, want := alarmText(alarms, 9), "9 alarms: up at step 3 (1970-01-01T00:00:00Z), level down at step 5 (1970-01-01T00:00:00Z), …"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
