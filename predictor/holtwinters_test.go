package predictor

import (
	"math"
	"testing"
)

// On a season and a trend without noise the forecasts are exact as soon as the season has been seen, for a series made of
// what the expert assumes; the noise that is added comes through at most doubled.
func TestHoltWinters(t *testing.T) {
	const m = 7
	z := noise(6, 700)
	for _, sd := range []float64{0, .3} {
		y := make([]float64, len(z))
		for i := range y {
			y[i] = 10 + 4*math.Cos(2*math.Pi*float64(i%m)/m) + sd*z[i]
		}
		sum, n := 0.0, 0.0
		run(newHoltWinters(m), y, m, func(i int, forecast, _, value float64) {
			if i <= 2*m {
				return
			}
			sum += (value - forecast) * (value - forecast)
			n++
		})
		if rmse := math.Sqrt(sum / n); rmse > 1.35*sd+1e-9 {
			t.Errorf("noise %v: RMSE %v", sd, rmse)
		}
	}
}

// It begins anew when the season found becomes another, and is damped Holt where there is none.
func TestHoltWintersBegins(t *testing.T) {
	e, h := newHoltWinters(20), newHistory(20)
	for i := range 25 {
		h.push(float64(i % 4))
		h.season = 4
		e.step(&h)
		if want := i >= 4; (e.period == 4) != want {
			t.Fatalf("after %d values the period is %d", i+1, e.period)
		}
	}
	h.season = 0
	h.push(1)
	if e.step(&h); e.period != 0 {
		t.Errorf("without a season the period is %d", e.period)
	}
	trend := 0.0
	run(newHoltWinters(1), []float64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, 1, func(i int, forecast, _, value float64) { trend = value - forecast })
	if math.Abs(trend) > .5 {
		t.Errorf("a straight line is missed by %v", trend)
	}
}

// After a jump of the level the forecasts are at the new one within two steps: the member with the greatest rate takes over.
func TestHoltWintersFollows(t *testing.T) {
	y := make([]float64, 60)
	for i := range y {
		if y[i] = float64(i % 2); i >= 40 {
			y[i] += 50
		}
	}
	run(newHoltWinters(1), y, 1, func(i int, forecast, _, value float64) {
		if i >= 44 && math.Abs(value-forecast) > 5 {
			t.Errorf("value %d, %v, was forecast as %v", i, value, forecast)
		}
	})
}
