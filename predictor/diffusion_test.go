package predictor

import (
	"fmt"
	"math"
	"testing"

	"pgregory.net/rapid"
)

// lawMoments returns mean and variance of the law on the grid of the expert.
func lawMoments(e *diffusion) (mean, variance float64) {
	for j, p := range e.law {
		mean += p * e.cell(j)
	}
	for j, p := range e.law {
		variance += p * (e.cell(j) - mean) * (e.cell(j) - mean)
	}
	return mean, variance
}

// run shows y to the expert alone and calls after with each forecast and the value it was for.
func run(e expert, y []float64, season int, after func(i int, forecast, before, value float64)) {
	h := newHistory(season)
	forecast := 0.0
	for i, v := range y {
		if i > 0 {
			after(i, forecast, y[i-1], v)
		}
		h.push(v)
		forecast = e.step(&h)
	}
}

// A discretely seen Ornstein–Uhlenbeck process has x·e^−θ for the mean of its next value and v(1−e^−2θ)/2θ for its variance;
// the law that is learned comes near both, at levels of every kind.
func TestDiffusionLearnsOrnsteinUhlenbeck(t *testing.T) {
	for _, theta := range []float64{.1, .5, 1.5} {
		t.Run(fmt.Sprint(theta), func(t *testing.T) {
			z, x := noise(9, 6000), 0.0
			decay, sd := math.Exp(-theta), math.Sqrt((1-math.Exp(-2*theta))/(2*theta))
			y := make([]float64, len(z))
			for i := range y {
				x = decay*x + sd*z[i]
				y[i] = x
			}
			e := diffusionExperts(Config{})[0].(*diffusion)
			own, best, miss, wide, n := 0.0, 0.0, 0.0, 0.0, 0.0
			run(e, y, 1, func(i int, forecast, before, value float64) {
				if i < 1000 {
					return
				}
				own += (value - forecast) * (value - forecast)
				best += (value - decay*before) * (value - decay*before)
				mean, variance := lawMoments(e)
				if math.Abs(mean-forecast) > 1e-9 {
					t.Fatalf("step %d: the forecast %g is not the mean %g of the law", i, forecast, mean)
				}
				miss += (mean - decay*before) * (mean - decay*before)
				wide += variance / (sd * sd)
				n++
			})
			t.Logf("squared error %.4f of the best possible, error of the mean %.3f sd, variance %.3f of the true", own/best, math.Sqrt(miss/n)/sd, wide/n)
			if own > 1.04*best {
				t.Errorf("squared error is %.4f of the best possible", own/best)
			}
			if math.Abs(wide/n-1) > .1 {
				t.Errorf("the variance of the law is %.3f of the true", wide/n)
			}
		})
	}
}

// In a double well no straight line has the drift: the process goes to the nearer well.
func TestDiffusionLearnsDoubleWell(t *testing.T) {
	z, x := noise(10, 20000), 1.0
	y := make([]float64, 4000)
	for i := range z { // five steps of Euler and Maruyama to one seen
		x += .2*(x-x*x*x) + .25*z[i]
		if i%5 == 4 {
			y[i/5] = x
		}
	}
	ownError := func(e expert) float64 {
		sum := 0.0
		run(e, y, 1, func(i int, forecast, _, value float64) {
			if i > 1000 {
				sum += (value - forecast) * (value - forecast)
			}
		})
		return sum
	}
	own, linear := ownError(diffusionExperts(Config{})[0]), ownError(newAutoregression("ar", .998, 1, false))
	t.Logf("squared error is %.3f of a linear autoregression's", own/linear)
	if own > .97*linear {
		t.Errorf("squared error is %.3f of a linear autoregression's, want less than .97", own/linear)
	}
}

// Where the diffusion depends on the level, so does the width of the law.
func TestDiffusionDependsOnLevel(t *testing.T) {
	z, x := noise(12, 8000), 0.0
	y := make([]float64, len(z))
	for i := range y {
		x = .8*x + (.3+.5*max(0, x))*z[i]
		y[i] = x
	}
	e := diffusionExperts(Config{})[0].(*diffusion)
	var width, n [2]float64
	run(e, y, 1, func(i int, _, before, _ float64) {
		if i < 1000 {
			return
		}
		_, v := lawMoments(e)
		switch {
		case before > .7:
			width[1] += math.Sqrt(v)
			n[1]++
		case before < -.3:
			width[0] += math.Sqrt(v)
			n[0]++
		}
	})
	if r := width[1] / n[1] / (width[0] / n[0]); r < 1.3 {
		t.Errorf("above .7 the law is %.2f times as wide as below −.3, want at least 1.3", r)
	}
}

// The law has no negative cell, mass 1, and a finite forecast, and the grid holds its weight, whatever the values.
func TestDiffusionStaysALaw(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := diffusionExperts(Config{})[0].(*diffusion)
		value := rapid.OneOf(rapid.Float64Range(-1, 1), rapid.Float64Range(-MaxMagnitude, MaxMagnitude), rapid.Just(3.0), rapid.Float64Range(-1e-150, 1e-150))
		h := newHistory(1)
		for range rapid.IntRange(1, 700).Draw(t, "steps") {
			h.push(value.Draw(t, "value"))
			if f := e.step(&h); math.IsNaN(f) || math.IsInf(f, 0) {
				t.Fatalf("forecast %v", f)
			}
			if e.width == 0 {
				continue
			}
			mass := 0.0
			for j, p := range e.law {
				if !(p >= 0) {
					t.Fatalf("cell %d is %v", j, p)
				}
				mass += p
			}
			if math.Abs(mass-1) > 1e-12 {
				t.Fatalf("mass %v", mass)
			}
			held := 0.0
			for _, w := range e.levels.weight {
				held += w
			}
			if math.Abs(held-e.levels.total) > 1e-9*held {
				t.Fatalf("the grid holds %v of %v", held, e.levels.total)
			}
		}
	})
}

// The grid grows to hold what comes, and is refined when a far value is forgotten.
func TestLevelsGrowAndRefine(t *testing.T) {
	var m levelMoments
	z := noise(3, 4000)
	for i, v := range z {
		if i == 100 {
			m.learn(500, 1, 1)
		}
		m.learn(v, 1, 1)
		if i == 101 && m.width < 2 {
			t.Errorf("cells are %v wide on a series that goes to 500", m.width)
		}
	}
	if m.width > .5 {
		t.Errorf("cells are still %v wide 4,000 steps after", m.width)
	}
}

// What was learned of a level is still there when the grid has grown to either side.
func TestLevelsKeepTheirPlace(t *testing.T) {
	for _, far := range []float64{-100, 100} {
		var m levelMoments
		for range 50 {
			m.learn(.3, 1, 1)
		}
		m.learn(far, -1, 1)
		if at := m.index(.3); m.weight[at] < 45 || m.first[at] < 45 {
			t.Errorf("after a value at %v there are %v increments at the level of the others", far, m.weight[at])
		}
		if at := m.index(far); m.weight[at] != 1 || m.first[at] != -1 {
			t.Errorf("at %v there are %v increments, want one", far, m.weight[at])
		}
	}
}
