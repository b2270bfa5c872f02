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
		s.Prepare(b, v, h, .5/float64(c.steps))
		for range c.steps {
			s.Advance(p)
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
		s.Prepare(b, v, rapid.Float64Range(.01, 1).Draw(t, "width"), rapid.Float64Range(0, 1).Draw(t, "dt"))
		s.Advance(p)
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

// TestEdge compares both branches with the formula itself, written with expm1.
func TestEdge(t *testing.T) {
	for _, w := range []float64{0, 1e-9, 1e-3, .02, .1, .2499, .2501, 1, 5, 39, 41, 700} {
		want := 1.0
		if w > 0 {
			want = w / math.Expm1(w)
		}
		for _, sign := range []float64{1, -1} {
			up, down := edge(sign*w*3, 3)
			if sign < 0 {
				up, down = down, up
			}
			if math.Abs(down/3-want) > 2e-11*want+1e-16 || math.Abs(up/3-want-w) > 2e-11*(want+w) {
				t.Errorf("w = %g: %g and %g, want %g and %g", sign*w, up/3, down/3, want+w, want)
			}
		}
	}
}

// TestStationary holds the solver to the stationary law of dx = −0.7·x dt + 0.4 dW, N(0, 0.16/1.4), which the scheme has
// but for the width of its cells, from a start far from it; and to a double well, density ∝ exp(−2U/v).
func TestStationary(t *testing.T) {
	for _, c := range []struct {
		name            string
		drift           func(x float64) float64
		potential       func(x float64) float64
		v, within, time float64
	}{
		{"Ornstein–Uhlenbeck", func(x float64) float64 { return -.7 * x }, func(x float64) float64 { return .35 * x * x }, .16, 1e-3, 60},
		{"double well", func(x float64) float64 { return x - x*x*x }, func(x float64) float64 { return x*x*x*x/4 - x*x/2 }, .5, 1e-3, 200},
	} {
		const n, low, high = 256, -3.0, 3.0
		h := (high - low) / n
		p, want, b, v := make([]float64, n), make([]float64, n), make([]float64, n), make([]float64, n)
		for j := range p {
			x := low + (float64(j)+.5)*h
			b[j], v[j], want[j] = c.drift(x), c.v, math.Exp(-2*c.potential(x)/c.v)
		}
		p[n/3] = 1
		mass := sum(want)
		s := New(n)
		s.Prepare(b, v, h, .5)
		for range int(c.time / .5) {
			s.Advance(p)
		}
		far := 0.0
		for j := range p {
			far += math.Abs(p[j] - want[j]/mass)
		}
		t.Logf("%s: total variation %.3g, mass %.3g", c.name, far/2, sum(p)-1)
		if far/2 > c.within || math.Abs(sum(p)-1) > 1e-13 {
			t.Errorf("%s: %g from the stationary law, want at most %g; mass error %g", c.name, far/2, c.within, sum(p)-1)
		}
	}
}

func BenchmarkAdvance(b *testing.B) {
	const n = 128
	p, drift, v := make([]float64, n), make([]float64, n), make([]float64, n)
	for j := range p {
		p[j], drift[j], v[j] = 1.0/n, float64(64-j)/100, 1
	}
	s := New(n)
	s.Prepare(drift, v, .1, .1)
	for b.Loop() {
		s.Advance(p)
	}
}

// Without drift the density settles where the diffusion is small: p ∝ 1/v.
func TestDiffusionThatVaries(t *testing.T) {
	const n, h = 200, .05
	p, b, v, want := make([]float64, n), make([]float64, n), make([]float64, n), make([]float64, n)
	for j := range p {
		v[j] = 1 + .5*math.Sin(2*math.Pi*float64(j)/n)
		p[j], want[j] = 1.0/n, 1/v[j]
	}
	mass := sum(want)
	s := New(n)
	s.Prepare(b, v, h, 2)
	for range 400 {
		s.Advance(p)
	}
	far := 0.0
	for j := range p {
		far += math.Abs(p[j]-want[j]/mass) / 2
	}
	if t.Logf("total variation %.3g", far); far > 1e-3 {
		t.Errorf("%g from the stationary law", far)
	}
}
