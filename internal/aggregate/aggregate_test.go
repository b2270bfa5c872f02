package aggregate

import (
	"math"
	"slices"
	"testing"

	"github.com/usp-project/usp/detmath"
)

type rule interface {
	Gain(k int, r float64)
	Mix()
	Soften(part float64)
	Scale(f float64)
	State() [3][]float64
}

// both returns the rules for three forecasters believed alike; the shares are the last part of a state.
func both() map[string]rule {
	boa, poly := NewBOA([]float64{1. / 3, 1. / 3, 1. / 3}), NewMLPoly(3, 0)
	return map[string]rule{"BOA": &boa, "ML-Poly": &poly}
}

func share(a rule) []float64 { return a.State()[2] }

// play lets a rule mix three forecasters for four rounds and returns the forecasts of the mixture. Gains are scaled by unit.
func play(a rule, unit float64) (forecasts []float64) {
	experts := [][]float64{{1, 2, 4}, {2, 2.5, 1}, {3, 2, 2}, {1, 1.5, 3}}
	for i, y := range []float64{1.5, 2.25, 2.5, 1.25} {
		f := detmath.Dot(share(a), experts[i])
		for k, x := range experts[i] {
			a.Gain(k, unit*2*(f-y)*(f-x))
		}
		a.Mix()
		forecasts = append(forecasts, f)
	}
	return forecasts
}

// BOA: own computation with numpy from the formula. ML-Poly: what the R package opera gives, with its initial 1/η = exp(−700).
var oracles = map[string][]float64{
	"BOA":     {7. / 3, 2.3441571630380554, 2.2002661764416673, 1.4470800421892703},
	"ML-Poly": {7. / 3, 2.4, 2.2178586192641587, 1.3481778881949529},
}

func near(t *testing.T, what string, got, want []float64) {
	t.Helper()
	for i := range want {
		if !(math.Abs(got[i]-want[i]) <= 1e-14*max(1, math.Abs(want[i]))) {
			t.Errorf("%s, element %d: %.17g, want %.17g", what, i, got[i], want[i])
		}
	}
}

// The unit of the gains does not matter, and may change midway.
func TestOraclesInAnyUnit(t *testing.T) {
	for _, unit := range []float64{1, 1e-9, 1e12} {
		for name, a := range both() {
			near(t, name, play(a, unit), oracles[name])
			before := slices.Clone(share(a))
			a.Scale(1e5)
			a.Mix()
			near(t, name+" in another unit", share(a), before)
			same := both()[name]
			play(same, unit)
			near(t, name+" played on", play(a, 1e5*unit), play(same, unit))
		}
	}
}

func TestSoften(t *testing.T) {
	for name, a := range both() {
		play(a, 1)
		want := slices.Clone(share(a))
		for k := range want {
			want[k] = .7*want[k] + .1
		}
		a.Soften(.3)
		near(t, name+" softened", share(a), want)
		a.Mix()
		near(t, name+" mixed again", share(a), want)
	}
}

func TestWhileNobodyDiffers(t *testing.T) {
	boa := NewBOA([]float64{.5, .3, .2})
	poly := NewMLPoly(3, 4)
	for k := range 3 {
		boa.Gain(k, 0)
		poly.Gain(k, 0)
	}
	boa.Mix()
	poly.Mix()
	near(t, "BOA", boa.Share, []float64{.5, .3, .2})
	near(t, "ML-Poly", poly.Share, []float64{1. / 3, 1. / 3, 1. / 3})
	// Rounding is no evidence.
	poly.Gain(0, 1e-12)
	poly.Mix()
	near(t, "ML-Poly after rounding", poly.Share, []float64{1. / 3, 1. / 3, 1. / 3})
	// Two differ, the third never did: it keeps a weight that is positive and finite.
	boa.Gain(0, 1)
	boa.Gain(1, -1)
	boa.Mix()
	// Its exponent is 0, that of the others ±1/√2.2 − 1/2.2.
	w := []float64{.5 * math.Exp(1/math.Sqrt(2.2)-1/2.2), .3 * math.Exp(-1/math.Sqrt(2.2)-1/2.2), .2}
	sum := w[0] + w[1] + w[2]
	near(t, "BOA, one that never differed", boa.Share, []float64{w[0] / sum, w[1] / sum, w[2] / sum})
	if n := testing.AllocsPerRun(10, func() { boa.Mix(); poly.Mix(); boa.Soften(.1) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
