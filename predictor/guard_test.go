package predictor

import (
	"math"
	"testing"

	"pgregory.net/rapid"

	"github.com/usp-project/usp/detmath"
)

func TestGuard(t *testing.T) {
	z := noise(1, 2000)
	for _, c := range []struct {
		name     string
		mixture  func(i int) float64 // forecast of value i, where naive forecasts 0
		from, to float64             // of the share in the end
	}{
		{"better than naive", func(i int) float64 { return .5 * z[i] }, 1, 1},
		{"equal in error", func(i int) float64 { return 2 * z[i] }, .9, 1}, // 2Σab = Σa², and a credit
		{"noise of half the size", func(i int) float64 { return .5 * z[(i+1)%len(z)] }, 0, .4},
		{"the wrong way", func(i int) float64 { return -.5 * z[i] }, 0, 0},
		{"naive", func(int) float64 { return 0 }, 1, 1},
	} {
		g := guard{}
		for i, y := range z {
			g.mixture = c.mixture(i)
			g.learn(y, 0)
		}
		if s := g.share(); s < c.from || s > c.to {
			t.Errorf("%s: share %.3f, want %v to %v", c.name, s, c.from, c.to)
		}
	}
}

func TestGuardedWeights(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 20).Draw(t, "experts")
		rho := rapid.SliceOfN(rapid.Float64Range(1e-9, 1), n, n).Draw(t, "rho")
		total := 0.0
		for _, w := range rho {
			total += w
		}
		for i := range rho {
			rho[i] /= total
		}
		share := rapid.Float64Range(0, 1).Draw(t, "share")
		out := make([]float64, n)
		weigh(out, rho, share)
		sum := 0.0
		for i, w := range out {
			sum += w
			want := share * rho[i]
			if i == guardNaive {
				want += 1 - share
			}
			if math.Abs(w-want) > 1e-14 {
				t.Fatalf("weight %d is %v, want %v", i, w, want)
			}
		}
		if share < 1 && math.Abs(sum-1) > 0x1p-50 {
			t.Fatalf("sum %v", sum)
		}
	})
}

// On random walks whose steps come in calm and turmoil nothing beats the naive forecast, and what learns loses to it; with
// the guard it loses less.
func TestGuardOnWalks(t *testing.T) {
	withLogs, bareLogs, least := 0.0, 0.0, 1.0
	const walks = 6
	for seed := range uint64(walks) {
		u := detmath.Uniform{Seed: 50 + seed}
		y, x := make([]float64, 800), 0.0
		for i := range y {
			size := 1.0
			if i/100%2 == 1 {
				size = 6
			}
			x += size * u.Normal()
			y[i] = x
		}
		p := create(t, Config{Season: 1, KernelWindow: 16})
		own, bare, naive, mixture := 0.0, 0.0, 0.0, 0.0
		feed(t, p, y, func(i int, v float64, out *Output) {
			if i > 0 {
				own += (v - out.Prior) * (v - out.Prior)
				bare += (v - mixture) * (v - mixture)
				naive += (v - y[i-1]) * (v - y[i-1])
			}
			mixture = p.guard.mixture
			least = min(least, out.MixtureShare)
			if f := detmath.Dot(out.Weights, p.ensemble.forecast); math.Abs(f-out.Forecast) > 1e-12*(1+math.Abs(f)) {
				t.Fatalf("step %d: the forecast %v is not the weighted %v", i+1, out.Forecast, f)
			}
		})
		withLogs += math.Log(own/naive) / walks
		bareLogs += math.Log(bare/naive) / walks
	}
	with, bare := math.Exp(withLogs), math.Exp(bareLogs)
	t.Logf("mean squared error %.4f of naive, %.4f without the guard; least share %.3f", with, bare, least)
	if least == 1 || with > 1.01 || with-1 > .6*(bare-1) {
		t.Errorf("mean squared error %.4f of naive, %.4f without the guard; least share %.3f", with, bare, least)
	}
}
