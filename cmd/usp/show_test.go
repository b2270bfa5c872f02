package main

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"
)

// TestShowAgrees holds what usp show says of a run, one that was interrupted and resumed, against what the run itself said at its end,
// and its weights against those that a replay computes.
func TestShowAgrees(t *testing.T) {
	w := newWorld(t)
	w.env = append(w.env, "USP_TELEMETRY_WEIGHTS=true", "USP_RING_STAGING_AREAS=16")
	w.want([]int{0}, "run", w.writeSeries("series.csv", 180, 5), "--snapshot-interval", "50")
	w.writeSeries("series.csv", 300, 5)
	said := w.summary("run", "--resume", "latest")
	var shown struct {
		Leaderboard struct {
			Step, Scored uint64
			RMSE         float64 `json:"rmse"`
			RMSENaive    float64 `json:"rmse_naive"`
			MAE          float64 `json:"mae"`
			Experts      []struct {
				Name, Family string
				RMSE         float64 `json:"rmse"`
				MAE          float64 `json:"mae"`
				ToNaive      float64 `json:"rmse_to_naive"`
				Last         float64 `json:"weight_last"`
				Mean         float64 `json:"weight_mean"`
			}
		}
		Weights struct {
			Steps   uint64
			Experts []struct {
				Name                 string
				Min, Max, Mean, Last float64
			}
		}
	}
	_, out := w.want([]int{0}, "show", "latest", "--json")
	if err := json.Unmarshal([]byte(out), &shown); err != nil {
		t.Fatal(err)
	}
	l, first := shown.Leaderboard, shown.Leaderboard.Experts[0]
	if l.Step != 300 || l.Scored != 299 || l.RMSE != said["rmse"] || l.RMSENaive != said["rmse_naive"] || l.MAE != said["mae"] ||
		first.Name != said["best_expert"] || first.RMSE != said["best_expert_rmse"] || first.MAE != said["best_expert_mae"] {
		t.Errorf("usp show says %+v; usp run said %v", l, said)
	}
	for i, e := range l.Experts {
		if i > 0 && e.RMSE < l.Experts[i-1].RMSE || e.Family == "" || e.Name == "naive" && math.Abs(e.ToNaive-1) > 1e-12 {
			t.Errorf("place %d: %+v", i+1, e)
		}
	}

	if shown.Weights.Steps != 300 || len(shown.Weights.Experts) != len(l.Experts) {
		t.Fatalf("weights of %d steps and %d experts", shown.Weights.Steps, len(shown.Weights.Experts))
	}
	_, out = w.want([]int{0}, "replay", "latest", "--show", "--json")
	means := make([]float64, len(l.Experts))
	var last []float64
	for line := range strings.Lines(out) {
		var step struct{ Fields struct{ Weights []float64 } }
		if !strings.Contains(line, `"type":"step"`) {
			continue
		}
		if err := json.Unmarshal([]byte(line), &step); err != nil {
			t.Fatal(err)
		}
		last = step.Fields.Weights
		for i, x := range last {
			means[i] += x / 300
		}
	}
	for i, e := range shown.Weights.Experts {
		if e.Last != last[i] || math.Abs(e.Mean-means[i]) > 1e-12 || e.Min > e.Mean || e.Max < e.Mean {
			t.Errorf("weight of %s: %+v, computed again %g, mean %g", e.Name, e, last[i], means[i])
		}
		for _, x := range l.Experts {
			if x.Name == e.Name && (x.Last != e.Last || x.Mean != e.Mean) {
				t.Errorf("%s has the weight %g, mean %g, in the leaderboard %g, %g", e.Name, e.Last, e.Mean, x.Last, x.Mean)
			}
		}
	}
	_, out = w.want([]int{0}, "show", "latest")
	if row := fmt.Sprintf("%.4f  %.4f\n", first.Mean, first.Last); !strings.Contains(out, row) {
		t.Errorf("no %q in\n%s", row, out)
	}
}
