package predictor

import (
	"math"
	"math/big"
	"testing"

	"pgregory.net/rapid"
)

// exactKurtosis computes with rationals.
func exactKurtosis(window []int64) float64 {
	n, sum := int64(len(window)), int64(0)
	for _, q := range window {
		sum += q
	}
	s2, s4 := new(big.Int), new(big.Int)
	for _, q := range window { // n·q − Σq is a whole number
		d := new(big.Int).Sub(new(big.Int).Mul(big.NewInt(n), big.NewInt(q)), big.NewInt(sum))
		d.Mul(d, d)
		s2.Add(s2, d)
		s4.Add(s4, d.Mul(d, d))
	}
	if len(window) < 8 || s2.Sign() == 0 {
		return 3
	}
	k, _ := new(big.Rat).SetFrac(s4.Mul(s4, big.NewInt(n)), s2.Mul(s2, s2)).Float64()
	return max(1, min(100, k))
}

// The sliding kurtosis is that of its window, whatever came before: of scores near zero, of scores far from zero that differ
// by one unit of the fixed point, on both bounds, and of none that differ.
func TestSlidingKurtosisIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		window := rapid.IntRange(8, 40).Draw(t, "window")
		m := newMoments(window)
		var all []int64
		for range rapid.IntRange(1, 6).Draw(t, "stretches") {
			centre := rapid.Float64Range(-scoreBound, scoreBound).Draw(t, "centre")
			width := rapid.SampledFrom([]float64{0, 1. / fixed, .01, 1, 30}).Draw(t, "width")
			for _, u := range rapid.SliceOfN(rapid.Float64Range(-1, 1), 1, 60).Draw(t, "scores") {
				q := toFixed(clip(centre+width*u, scoreBound))
				all = append(all, q)
				m.push(q, uint64(len(all)))
				want := exactKurtosis(all[max(0, len(all)-window):])
				if got := m.kurtosis(uint64(len(all))); math.Abs(got-want) > 1e-12*want {
					t.Fatalf("score %d: kurtosis %.17g, want %.17g", len(all), got, want)
				}
			}
		}
		afresh := moments{ring: m.ring}
		afresh.refill(uint64(len(all)))
		if afresh.first != m.first || afresh.second != m.second || afresh.third != m.third || afresh.fourth != m.fourth {
			t.Fatalf("sums %+v, from the ring %+v", m, afresh)
		}
	})
}

// The greatest window of the greatest scores overflows nothing.
func TestKurtosisOfTheGreatestWindow(t *testing.T) {
	const window = 1 << 16
	m, n := newMoments(window), uint64(0)
	demand := func(what string, want float64, score func(i int) float64) {
		t.Helper()
		for i := range window {
			n++
			m.push(toFixed(score(i)), n)
		}
		near(t, what, m.kurtosis(n), want, 1e-12)
	}
	demand("kurtosis of equal scores", 3, func(int) float64 { return scoreBound })
	demand("kurtosis of two values", 1, func(i int) float64 { return scoreBound * float64(1-2*(i%2)) })
	demand("kurtosis of all but one zero", 100, func(i int) float64 { return -scoreBound * float64(min(1, i/(window-1))) })
}

func BenchmarkKurtosis(b *testing.B) {
	m := newMoments(252)
	x := noise(1, 1024)
	for i := uint64(1); b.Loop(); i++ {
		m.push(toFixed(x[i%1024]), i)
		m.kurtosis(i)
	}
}
