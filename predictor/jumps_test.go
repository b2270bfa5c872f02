package predictor

import (
	"math"
	"testing"

	"github.com/usp-project/usp/detmath"
)

// Merton's law for λ = .5, m = −.1, s = .3, μ = .05, σ = .2, T = 1; the density by mpmath from 60 terms.
func TestJumpLaw(t *testing.T) {
	l := JumpLaw{Drift: .05, SD: .2, Rate: .5, JumpMean: -.1, JumpSD: .3}
	if got, want := l.Density(.1), 1.5445879689092205; math.Abs(got-want) > 1e-13 {
		t.Errorf("density %.17g, want %.17g", got, want)
	}
	if math.Abs(l.Mean()) > 1e-16 || math.Abs(l.Variance()-.09) > 1e-16 {
		t.Errorf("mean %v, variance %v", l.Mean(), l.Variance())
	}
	mass := 0.0
	for i := -8000; i <= 8000; i++ {
		mass += l.Density(float64(i)/1000) / 1000
	}
	if math.Abs(mass-1) > 1e-12 {
		t.Errorf("mass %v", mass)
	}
}

// ouJumps returns n values of an Ornstein–Uhlenbeck process with jumps, and how many there were.
func ouJumps(n int, b, sd, rate, mean, size float64) (y []float64, jumps int) {
	u := detmath.Uniform{Seed: 11}
	x := 0.0
	for range n {
		x += b*x + sd*u.Normal()
		if u.Float64() < rate {
			x += mean + size*u.Normal()
			jumps++
		}
		y = append(y, x)
	}
	return y, jumps
}

func TestJumpLearns(t *testing.T) {
	y, _ := ouJumps(20000, -.3, .5, .02, 8, 1)
	e, h := &jumpDiffusion{}, newHistory(1)
	rate, sd, mean, sq, count, own, naive := 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
	forecast := 0.0
	for i, v := range y {
		if i > 1000 {
			own += (v - forecast) * (v - forecast)
			naive += (v - y[i-1]) * (v - y[i-1])
		}
		h.push(v)
		forecast = e.step(&h)
		if i > 1000 {
			rate += e.law.Rate
			sd += e.law.SD
			mean += e.law.JumpMean
			sq += e.law.JumpSD
			count++
		}
	}
	// What is taken for a jump includes a few great returns from one, so that sizes scatter more than the true 1.
	for _, c := range []struct {
		what           string
		got, want, tol float64
	}{{"rate", rate / count, .02, .004}, {"sd", sd / count, .5, .06}, {"jump mean", mean / count, 8, 1.2}, {"jump sd", sq / count, 1.3, .5}} {
		if math.Abs(c.got-c.want) > c.tol {
			t.Errorf("%s is %.4g, want %v", c.what, c.got, c.want)
		}
	}
	if own > .95*naive {
		t.Errorf("mean squared error is %.3f of naive: reversion is not used", own/naive)
	}
}

// Where there is no reversion and no drift the forecast is the last value.
func TestJumpShrinks(t *testing.T) {
	e, h := &jumpDiffusion{}, newHistory(1)
	x, moved := 0.0, 0
	for i, z := range noise(4, 6000) {
		x += z
		h.push(x)
		if f := e.step(&h); i > 300 && f != x {
			moved++
		}
	}
	if moved > 2000 {
		t.Errorf("%d of 5,700 forecasts of a random walk are not the last value", moved)
	}
}
