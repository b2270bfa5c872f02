package predictor

import (
	"math"
	"testing"

	"github.com/usp-project/usp/detmath"
)

// stableNoise returns n numbers of the standard stable law, by Chambers, Mallows and Stuck.
func stableNoise(seed uint64, alpha float64, n int) []float64 {
	u := detmath.Uniform{Seed: seed}
	z := make([]float64, n)
	for i := range z {
		v, w := math.Pi*(u.Float64()-.5), -math.Log(u.Float64())
		z[i] = math.Sin(alpha*v) / math.Pow(math.Cos(v), 1/alpha) * math.Pow(math.Cos((1-alpha)*v)/w, (1-alpha)/alpha)
	}
	return z
}

// alone returns the law that one expert gives, on a grid of six of the given widths to either side of its forecast.
func alone(t *testing.T, e shaped, forecast, width float64) (l Law) {
	t.Helper()
	g := lawGrid{centre: forecast, step: 2 * lawReach / (lawNodes - 1) * width}
	e.spread(&g, 1)
	if !l.of(&g) {
		t.Fatalf("no law about %v", forecast)
	}
	return l
}

// TestStableLearns: index and scale of a stable walk are found, the expert's own law covers what it says, and scores better
// than the normal law with the mean squared error that the ensemble would measure for it.
func TestStableLearns(t *testing.T) {
	for _, c := range []struct{ alpha, better float64 }{{1.2, .03}, {1.5, .009}, {1.8, .001}, {2, -.002}} {
		e, h := newStableWalk(), newHistory(1)
		var law, normal Law
		alpha, scale, inside, own, other, n, x, forecast, sq := 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 50.0, 0.0, 0.0
		for i, z := range stableNoise(21, c.alpha, 12000) {
			x += 3 * z
			if i > 1000 {
				alpha += e.law.Alpha()
				scale += e.scale
				if lo, hi := law.Quantile(.25), law.Quantile(.75); x >= lo && x <= hi {
					inside++
				}
				if math.Abs(x-forecast) < 60 { // beyond it the grid does not reach, and few scores would outweigh all others
					own += law.CRPS(x)
					other += normal.CRPS(x)
				}
				n++
			}
			e2 := (x - forecast) * (x - forecast)
			sq += max(.02, 1/float64(i+1)) * (winsorise(e2, sq, expertClip, 0, uint64(i)) - sq)
			h.push(x)
			forecast = e.step(&h)
			if i >= 1000 {
				law = alone(t, e, forecast, 10)
				g := lawGrid{centre: forecast, step: law.grid.step}
				g.addNormal(1, forecast, math.Sqrt(sq))
				normal.of(&g)
			}
		}
		t.Logf("α = %v: %.3f, scale %.3f, %.1f %% between the quartiles, CRPS %.4f, normal %.4f", c.alpha, alpha/n, scale/n, 100*inside/n, own/n, other/n)
		if math.Abs(alpha/n-c.alpha) > .05 || math.Abs(scale/n-3) > .15 {
			t.Errorf("α = %v, scale 3: learned %.3f, %.3f", c.alpha, alpha/n, scale/n)
		}
		if math.Abs(inside/n-.5) > .015 {
			t.Errorf("α = %v: %.1f %% between the quartiles", c.alpha, 100*inside/n)
		}
		if own > other*(1-c.better) {
			t.Errorf("α = %v: CRPS %.4f, with a normal law %.4f", c.alpha, own/n, other/n)
		}
	}
}

// Where increments follow each other the mean absolute error is well below that of the last value, where they do not it is
// hardly above; a drift is found.
func TestStableForecasts(t *testing.T) {
	for _, c := range []struct{ follow, drift, lo, hi float64 }{{0, 0, .995, 1.01}, {.6, 0, .78, .86}, {-.5, 0, .8, .92}, {0, 2, .67, .75}} {
		e, h := newStableWalk(), newHistory(1)
		own, naive, x, d, forecast, moved := 0.0, 0.0, 0.0, 0.0, 0.0, 0
		for i, z := range stableNoise(22, 1.6, 8000) {
			d = c.follow*d + z + c.drift
			if i > 500 {
				own += math.Abs(x + d - forecast)
				naive += math.Abs(d)
			}
			x += d
			h.push(x)
			forecast = e.step(&h)
			if forecast != x {
				moved++
			}
			if l := alone(t, e, forecast, 4); i%1000 == 999 && math.Abs(l.Quantile(.5)-forecast) > 1e-9*math.Abs(forecast) {
				t.Errorf("following at %v, drift %v: the law's median is %v, the forecast %v", c.follow, c.drift, l.Quantile(.5), forecast)
			}
		}
		if c.follow == 0 && c.drift == 0 && moved > 2000 {
			t.Errorf("%d of 8,000 forecasts of a random walk are not the last value", moved)
		}
		if r := own / naive; r < c.lo || r > c.hi {
			t.Errorf("following at %v, drift %v: mean absolute error is %.4f of naive, want %v to %v", c.follow, c.drift, r, c.lo, c.hi)
		}
	}
}

// TestStableExtremes: whatever finite values come, forecast, state and law are finite.
func TestStableExtremes(t *testing.T) {
	for name, value := range map[string]func(i int) float64{
		"constant":                  func(int) float64 { return 7 },
		"zero":                      func(int) float64 { return 0 },
		"alternating, greatest":     func(i int) float64 { return math.Copysign(MaxMagnitude, float64(i%2)-.5) },
		"greatest among least":      func(i int) float64 { return math.Ldexp(MaxMagnitude, -(i*37)%1000) },
		"one jump":                  func(i int) float64 { return float64(i/100) * MaxMagnitude },
		"mostly constant":           func(i int) float64 { return float64(i / 5) },
		"a line":                    func(i int) float64 { return 1e9 * float64(i) },
		"growing by half each step": func(i int) float64 { return math.Pow(1.5, float64(i)) },
	} {
		e, h := newStableWalk(), newHistory(1)
		for i := range 500 {
			h.push(clip(value(i), MaxMagnitude))
			forecast := e.step(&h)
			if math.IsNaN(forecast) || math.Abs(forecast) > 10*MaxMagnitude {
				t.Fatalf("%s: forecast %v after %d steps", name, forecast, i+1)
			}
			for _, x := range []float64{e.value, e.gain, e.drift, e.pull, e.scale} {
				if math.IsNaN(x) || math.IsInf(x, 0) {
					t.Fatalf("%s: state %+v after %d steps", name, []float64{e.value, e.gain, e.drift, e.pull, e.scale}, i+1)
				}
			}
			g := lawGrid{centre: forecast, step: max(e.scale/100, h.floor())}
			e.spread(&g, 1)
			for _, f := range g.density {
				if !(f >= 0) || math.IsInf(f, 0) {
					t.Fatalf("%s: density %v after %d steps", name, f, i+1)
				}
			}
		}
	}
}

// A law far narrower than the grid's step keeps its mass.
func TestStableNarrow(t *testing.T) {
	e := newStableWalk()
	for _, at := range []float64{0, .25, .5, 3.8} {
		e.value = at
		g := lawGrid{step: 1}
		e.spread(&g, .5)
		mass := 0.0
		for _, f := range g.density {
			mass += f
		}
		near(t, "mass", mass, .5, .02)
	}
}

func TestStableStateRefuses(t *testing.T) {
	var w codec
	newStableWalk().visit(&w)
	for _, alpha := range []float64{.9, 2.1, -2} {
		bad := w.buf[: len(w.buf)-8 : len(w.buf)-8]
		end := codec{}
		end.float(&alpha)
		c := codec{buf: append(bad, end.buf...), load: true}
		newStableWalk().visit(&c)
		if c.err == nil {
			t.Errorf("a state with index %v is taken", alpha)
		}
	}
}

// BenchmarkStable is a step with the laying of the law.
func BenchmarkStable(b *testing.B) { benchmarkShaped(b, newStableWalk()) }

// BenchmarkJump is the same of the other expert of the family.
func BenchmarkJump(b *testing.B) { benchmarkShaped(b, &jumpDiffusion{}) }

func benchmarkShaped(b *testing.B, e shaped) {
	h, x, g := newHistory(1), 0.0, &lawGrid{}
	z := stableNoise(23, 1.6, 4096)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		x += z[i%len(z)]
		h.push(x)
		*g = lawGrid{centre: e.step(&h), step: 1}
		e.spread(g, 1)
	}
}
