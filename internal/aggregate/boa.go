// Package aggregate weighs forecasters by the gains that each would have brought over their mixture, by two published
// rules without parameters to tune: Bernstein online aggregation and ML-Poly.
//
// A round is one Gain for each forecaster and then Mix; Share holds the weights for the next round. Gains are in any unit,
// the same in all rounds; Scale changes it. Nothing is allocated after New…, and the bits of the weights depend on the
// gains alone.
package aggregate

import (
	"math"
	"slices"

	"github.com/usp-project/usp/detmath"
)

// BOA is Bernstein online aggregation with one adaptive learning rate for each forecaster (Wintenberger, Mach. Learn. 106,
// 2017): wₖ ∝ bₖ·Vₖ^−½·exp(Sₖ/√Vₖ), with b the belief before any evidence, Vₖ = Σ 2.2·r² and Sₖ = Σ (r − r²/√Vₖ), r the
// gain of forecaster k. Its regret against each forecaster is of the order of √(ln N·Σr²).
type BOA struct {
	Share    []float64 // w, in sum 1
	variance []float64 // V
	gains    []float64 // S
	belief   []float64 // b
}

// NewBOA returns the rule for as many forecasters as there are beliefs, which are positive and sum to 1.
func NewBOA(belief []float64) BOA {
	n := len(belief)
	return BOA{variance: make([]float64, n), gains: make([]float64, n), Share: slices.Clone(belief), belief: slices.Clone(belief)}
}

// Gain takes in by how much forecaster k did better than the mixture.
func (a *BOA) Gain(k int, r float64) {
	r2 := float64(r * r)
	if a.variance[k] += float64(2.2 * r2); a.variance[k] > 0 {
		a.gains[k] += r - r2/math.Sqrt(a.variance[k])
	}
}

// Mix sets the shares: the belief while nobody has differed from the mixture. Of a forecaster that never has, the exponent
// is that of no evidence and its V the least one seen.
func (a *BOA) Mix() {
	least := math.Inf(1)
	for _, v := range a.variance {
		if v > 0 {
			least = min(least, v)
		}
	}
	if math.IsInf(least, 1) {
		copy(a.Share, a.belief)
		return
	}
	top := math.Inf(-1)
	for k, v := range a.variance {
		if v == 0 {
			v = least
		}
		a.Share[k] = a.gains[k]/math.Sqrt(v) - float64(0.5*detmath.Log(v))
		top = max(top, a.Share[k])
	}
	for k := range a.Share {
		a.Share[k] -= top
	}
	detmath.ExpEach(a.Share)
	sum := 0.0
	for k, e := range a.Share {
		a.Share[k] = float64(a.belief[k] * e)
		sum += a.Share[k]
	}
	for k := range a.Share {
		a.Share[k] /= sum
	}
}

// Soften moves the given part of the shares to equal ones, and changes what is remembered so that Mix would give the same.
// What never differed from the mixture has nothing to remember and stays.
func (a *BOA) Soften(part float64) {
	for k, w := range a.Share {
		softer := float64((1-part)*w) + part/float64(len(a.Share))
		a.gains[k] += float64(math.Sqrt(a.variance[k]) * detmath.Log(softer/max(w, 0x1p-1000)))
	}
	a.Mix()
}

// Scale multiplies the unit of the gains by f > 0.
func (a *BOA) Scale(f float64) {
	for k := range a.variance {
		a.variance[k] = float64(a.variance[k] * f * f)
		a.gains[k] = float64(a.gains[k] * f)
	}
}

// State returns the numbers that the rule goes on from, which the caller saves and restores in place.
func (a *BOA) State() [3][]float64 { return [3][]float64{a.variance, a.gains, a.Share} }
