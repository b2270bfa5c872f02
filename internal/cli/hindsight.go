package cli

import (
	"fmt"
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
	CRPS        float64       `json:"crps"`     // mean over the predictive laws, which begin after the warm-up
	Turnover    float64       `json:"turnover"` // sum of |changes| of the weights
	AlarmCount  uint64        `json:"alarm_count"`
	Alarms      []score.Alarm `json:"alarms"` // the first of them
}

func judge(b *score.Board, experts []string) hindsight {
	r := b.Report()
	return hindsight{
		BestExpert: experts[r.Best], BestRMSE: finite(r.BestRMSE), BestMAE: finite(r.BestMAE), ConvexRMSE: finite(r.ConvexRMSE), UniformRMSE: finite(r.Uniform),
		BOARMSE: finite(r.BOA), MLPolyRMSE: finite(r.MLPoly), CRPS: b.MeanCRPS(), Turnover: b.Turnover, AlarmCount: b.AlarmsN, Alarms: b.Alarms,
	}
}

// nothingBetter says plainly that a naive forecast was not beaten, and whether an expert alone would have.
func nothingBetter(r runSummary) string {
	if r.BestRMSE >= r.RMSENaive {
		return "nothing beat the naive forecast here"
	}
	return "the forecasts did not beat the naive forecast here, " + r.BestExpert + " alone would have"
}

// alarmText names the first alarms by step and time.
func alarmText(alarms []score.Alarm, n uint64) string {
	text := count(n, "alarm")
	var at []string
	for _, a := range alarms[:min(4, len(alarms))] {
		way := "down"
		if a.Up {
			way = "up"
		}
		at = append(at, fmt.Sprintf("%s at step %d (%s)", way, a.Step, time.Unix(0, a.Time).UTC().Format("2006-01-02T15:04:05Z")))
	}
	if len(at) == 0 {
		return text
	}
	if n > uint64(len(at)) {
		at = append(at, "…")
	}
	return text + ": " + strings.Join(at, ", ")
}
