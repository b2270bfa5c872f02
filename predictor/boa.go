package predictor

import (
	"math"
	"slices"

	"github.com/usp-project/usp/detmath"
)

// boa weighs forecasters by Bernstein online aggregation with one adaptive learning rate each (Wintenberger, Mach.
// Learn. 106, 2017): wₖ ∝ bₖ·Vₖ^−½·exp(Sₖ/√Vₖ) with b the belief
// before any evidence, Vₖ = Σ 2.2·r² and Sₖ = Σ (r − r²/√Vₖ), r the gain of forecaster k over
// the mixture. Its regret against each forecaster is of the order of √(ln N·Σr²).
type boa struct {
	variance []float64 // V
	gains    []float64 // S
	share    []float64 // w
	belief   []float64 // w before any evidence; not state
}

func newBOA(belief []float64) boa {
	n := len(belief)
	return boa{variance: make([]float64, n), gains: make([]float64, n), share: slices.Clone(belief), belief: belief}
}

// gain takes in by how much forecaster k did better than the mixture.
func (a *boa) gain(k int, r float64) {
	r2 := float64(r * r)
	if a.variance[k] += float64(2.2 * r2); a.variance[k] > 0 {
		a.gains[k] += r - r2/math.Sqrt(a.variance[k])
	}
}

// mix sets the shares: the belief while nobody has differed from the mixture. Of a forecaster that never has, the exponent
// is that of no evidence and its V the least one seen.
func (a *boa) mix() {
	least := math.Inf(1)
	for _, v := range a.variance {
		if v > 0 {
			least = min(least, v)
		}
	}
	if math.IsInf(least, 1) {
		copy(a.share, a.belief)
		return
	}
	top := math.Inf(-1)
	for k, v := range a.variance {
		if v == 0 {
			v = least
		}
		a.share[k] = a.gains[k]/math.Sqrt(v) - float64(0.5*detmath.Log(v))
		top = max(top, a.share[k])
	}
	sum := 0.0
	for k, s := range a.share {
		a.share[k] = float64(a.belief[k] * detmath.Exp(s-top))
		sum += a.share[k]
	}
	for k := range a.share {
		a.share[k] /= sum
	}
}

func (a *boa) visit(c *codec) {
	c.floats(a.variance)
	c.floats(a.gains)
	c.floats(a.share)
}
