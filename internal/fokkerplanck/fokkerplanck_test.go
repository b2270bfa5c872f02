package fokkerplanck

import (
	"math"
	"testing"

	"pgregory.net/rapid"
)

func sum(p []float64) float64 {
	s := 0.0
	for _, x := range p {
		s += x
	}
	return s
}

// TestOrnsteinUhlenbeck compares with the exact transition law of dx = −0.7·x dt + 0.4 dW from 2 after 0.5: mean
// 2·exp(−0.35), variance 0.16/1.4·(1 − exp(−0.7)). The bounds are those of predictor.md 3.4, with a margin for the domain.
func TestOrnsteinUhlenbeck(t *testing.T) {
	const mean, variance = 1.4093761794374269, .057533108138124627
	for _, c := range []struct {
		cells, steps       int
		ofMean, ofVariance float64
	}{{128, 8, 1.3e-2, 3e-2}, {128, 32, 4e-3, 9e-3}, {512, 128, 1e-3, 2.5e-3}} {
		const low, high = -1.0, 3.0
		h := (high - low) / float64(c.cells)
		p, b, v := make([]float64, c.cells), make([]float64, c.cells), make([]float64, c.cells)
		x := func(j int) float64 { return low + (float64(j)+.5)*h }
		for j := range p {
			z := (x(j) - 2) / h
			p[j], b[j], v[j] = math.Exp(-z*z/2), -.7*x(j), .16
		}
		mass := sum(p)
		for j := range p {
			p[j] /= mass
		}
		s := New(c.cells)
		for range c.steps {
			s.Step(p, b, v, h, .5/float64(c.steps))
		}
		m, w := 0.0, 0.0
		for j, f := range p {
			m += f * x(j)
		}
		for j, f := range p {
			w += f * (x(j) - m) * (x(j) - m)
		}
		t.Logf("%d×%d: errors %.3g %.3g, mass %.3g", c.cells, c.steps, m-mean, w-variance, sum(p)-1)
		if math.Abs(m-mean) > c.ofMean || math.Abs(w-variance) > c.ofVariance || math.Abs(sum(p)-1) > 1e-14 {
			t.Errorf("%d×%d: mean %g, variance %g, mass error %g", c.cells, c.steps, m, w, sum(p)-1)
		}
	}
}

// TestMassAndSign tries drifts and diffusions of any size, zero among them.
func TestMassAndSign(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(2, 64).Draw(t, "cells")
		draw := func(name string, low, high float64) []float64 {
			return rapid.SliceOfN(rapid.Float64Range(low, high), n, n).Draw(t, name)
		}
		p, b, v := draw("p", 0, 1), draw("b", -50, 50), draw("v", 0, 20)
		s, mass := New(n), sum(p)
		s.Step(p, b, v, rapid.Float64Range(.01, 1).Draw(t, "width"), rapid.Float64Range(0, 1).Draw(t, "dt"))
		for j, f := range p {
			if !(f >= 0) {
				t.Fatalf("cell %d is %g", j, f)
			}
		}
		if d := math.Abs(sum(p) - mass); d > 1e-12*mass {
			t.Fatalf("mass %g became %g", mass, sum(p))
		}
	})
}
