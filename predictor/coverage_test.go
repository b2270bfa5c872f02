package predictor

import (
	"fmt"
	"math"
	"testing"

	"github.com/usp-project/usp/detmath"
)

// coverageKinds makes 3,000 values of one kind of series from standard normal z and uniform u.
var coverageKinds = []struct {
	name   string
	season int
	next   func(i int, before, state, z, u float64) (value, newState float64)
}{
	{"white noise", 1, func(_ int, _, _, z, _ float64) (float64, float64) { return z, 0 }},
	{"random walk", 1, func(_ int, y, _, z, _ float64) (float64, float64) { return y + z, 0 }},
	{"autoregression", 1, func(_ int, y, _, z, _ float64) (float64, float64) { return .8*y + z, 0 }},
	{"seasonal", 12, func(i int, _, _, z, _ float64) (float64, float64) { return 5*math.Sin(2*math.Pi*float64(i)/12) + z, 0 }},
	// The state is the variance before, less its floor.
	{"GARCH(1,1)", 1, func(_ int, y, v, z, _ float64) (float64, float64) {
		v = .05 + .1*y*y + .85*v
		return math.Sqrt(v) * z, v
	}},
	{"Cauchy-like walk", 1, func(_ int, y, _, z, u float64) (float64, float64) { return y + z/math.Sqrt(-2*math.Log(u)), 0 }},
	{"trend", 1, func(i int, _, _, z, _ float64) (float64, float64) { return .05*float64(i) + z, 0 }},
	{"volatility doubling", 1, func(i int, y, _, z, _ float64) (float64, float64) { return y + z*math.Exp2(float64(i/1000)), 0 }},
}

// Of all that comes, 90 % lies within the interval given for it, to one per cent. One series of each kind; three with TORTURE=1.
func TestCoverage(t *testing.T) {
	statistics(t)
	seeds := uint64(1)
	if torture() {
		seeds = 3
	}
	for _, k := range coverageKinds {
		for seed := range seeds {
			t.Run(fmt.Sprintf("%s/%d", k.name, seed), func(t *testing.T) {
				u := detmath.Uniform{Seed: seed + 100}
				y, value, state := make([]float64, 3000), 0.0, 0.0
				for i := range y {
					z := u.Normal()
					value, state = k.next(i, value, state, z, u.Float64())
					y[i] = value
				}
				covers(t, y, k.season)
			})
		}
	}
	t.Run("co2", func(t *testing.T) {
		y, season := example(t, "co2")
		covers(t, y, season)
	})
}

func covers(t *testing.T, y []float64, season int) {
	t.Helper()
	inside := 0
	feed(t, create(t, Config{Season: season}), y, func(i int, v float64, out *Output) {
		if i > 0 && v >= out.PriorLower && v <= out.PriorUpper {
			inside++
		}
	})
	if share := float64(inside) / float64(len(y)-1); math.Abs(share-.9) > .01 {
		t.Errorf("%.2f %% within the 90 %% interval", 100*share)
	}
}
