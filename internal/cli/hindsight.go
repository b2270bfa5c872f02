package cli

import (
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/usp-project/usp/internal/score"
)

// hindsight is what others would have achieved on the observations of a run, in the unit of the value.
type hindsight struct {
	BestExpert  string        `json:"best_expert"` // with the smallest RMSE
	BestRMSE    float64       `json:"best_expert_rmse"`
	BestMAE     float64       `json:"best_expert_mae"`
	ConvexRMSE  float64       `json:"best_convex_rmse"` // of the best fixed convex combination of the experts
	UniformRMSE float64       `json:"uniform_rmse"`
	BOARMSE     float64       `json:"boa_rmse"`
	MLPolyRMSE  float64       `json:"ml_poly_rmse"`
	CRPS        undefined     `json:"crps"`     // mean over the predictive laws, which begin after the warm-up; null if there were none
	Turnover    float64       `json:"turnover"` // sum of |changes| of the weights
	AlarmCount  uint64        `json:"alarm_count"`
	Alarms      []score.Alarm `json:"alarms"` // of the mean; the first score.MaxEvents of each kind

	EventCounts map[string]uint64 `json:"event_counts"` // by name; of what lasts, how often it began
	Events      []score.Event     `json:"events"`       // likewise the first of each kind
}

func judge(b *score.Board, experts []string) hindsight {
	r := b.Report()
	alarms, n := b.Alarms()
	return hindsight{
		BestExpert: experts[r.Best], BestRMSE: finite(r.BestRMSE), BestMAE: finite(r.BestMAE), ConvexRMSE: finite(r.ConvexRMSE), UniformRMSE: finite(r.Uniform),
		BOARMSE: finite(r.BOA), MLPolyRMSE: finite(r.MLPoly), CRPS: undefined(b.MeanCRPS()), Turnover: b.Turnover, AlarmCount: n, Alarms: alarms,
		EventCounts: b.EventCounts(), Events: append([]score.Event{}, b.Events...),
	}
}

// nothingBetter says plainly that a naive forecast was not beaten, and by how much an expert alone would have. One of the
// experts is that forecast, summed up in another order.
func nothingBetter(r runSummary) string {
	gain := 1 - r.BestRMSE/r.RMSENaive
	if r.BestExpert == "naive" || !(gain > 1e-9) {
		return "nothing beat the naive forecast here"
	}
	return fmt.Sprintf("the forecasts did not beat the naive forecast here, %s alone would have, by %.2g %%", r.BestExpert, 100*gain)
}

// crpsText is the score of the laws, if there were any.
func crpsText(crps undefined) string {
	if math.IsNaN(float64(crps)) {
		return ""
	}
	return fmt.Sprintf("; CRPS %.4g", float64(crps))
}

// alarmText names the first alarms by step and time.
func alarmText(alarms []score.Alarm, n uint64) string {
	var at []string
	for _, a := range alarms[:min(4, len(alarms))] {
		way := "down"
		if a.Up {
			way = "up"
		}
		if a.Chart == score.ChartLevel {
			way = "level " + way
		}
		at = append(at, way+" at "+stepText(a.Step, a.Time))
	}
	return listed(count(n, "alarm"), at, n)
}

// eventTexts has a line for each flag that was raised but those of alarmText: how often, and when first.
func eventTexts(h *hindsight) (lines []string) {
	var names []string
	at := map[string][]string{}
	for _, e := range h.Events {
		if e.Chart != "" {
			continue
		}
		list := at[e.Name]
		switch {
		case e.Phase == score.End && len(list) > 0:
			list[len(list)-1] += fmt.Sprintf(" to %d", e.Step-1)
			continue
		case len(list) == 0:
			names = append(names, e.Name)
		}
		at[e.Name] = append(list, stepText(e.Step, e.Time))
	}
	for _, name := range names {
		n, list := h.EventCounts[name], at[name]
		lines = append(lines, listed(fmt.Sprintf("%d × %s", n, name), list[:min(3, len(list))], n))
	}
	return lines
}

func stepText(step uint64, at int64) string {
	return fmt.Sprintf("step %d (%s)", step, time.Unix(0, at).UTC().Format("2006-01-02T15:04:05Z"))
}

// listed is text and what it is about, of which there are n.
func listed(text string, at []string, n uint64) string {
	if len(at) == 0 {
		return text
	}
	if n > uint64(len(at)) {
		at = append(at[:len(at):len(at)], "…")
	}
	return text + ": " + strings.Join(at, ", ")
}
