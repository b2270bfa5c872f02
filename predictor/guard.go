package predictor

import "github.com/usp-project/usp/ot"

const (
	guardMemory = 0.998 // of past forecasts, per step
	guardPrior  = 60    // forecasts that the mixture is credited with beforehand
	guardNaive  = 0     // the place of the naive expert
)

// guard keeps the forecast near the naive one while the mixture has not earned its distance. With a = mixture − naive and
// b = value − naive, the mixture has the smaller squared error over what is remembered if 2Σab > Σa², and then it stands.
// Otherwise its share is θ = 2(Σab + κa²)/(Σa² + κa²) < 1 with a² the mean of those squares and κ = guardPrior: where it has
// lost as much as it dared, nothing of it is left. Unlike the aggregators' losses these are not in units of the errors
// around them, so that what was lost in turmoil counts in full. The regression of b on a is the combination of forecasts of Bates and Granger
// (Operational Research Quarterly 20, 1969).
type guard struct {
	mixture         float64 // forecast stored for the next value, before the guard
	gain, sq, count float64 // Σab, Σa², Σ1
}

// learn takes in the value y that followed the naive forecast.
func (g *guard) learn(y, naive float64) {
	a, b := g.mixture-naive, y-naive
	g.gain = float64(g.gain*guardMemory) + float64(a*b)
	g.sq = float64(g.sq*guardMemory) + float64(a*a)
	g.count = float64(g.count*guardMemory) + 1
}

// share returns θ, within [0, 1].
func (g *guard) share() float64 {
	if !(g.sq > 0) {
		return 1
	}
	credit := float64(guardPrior * (g.sq / g.count))
	return max(0, min(1, float64(2*(g.gain+credit))/(g.sq+credit)))
}

// weigh sets weights to rho with the share θ, and the rest at the naive expert.
func weigh(weights, rho []float64, share float64) {
	if share == 1 {
		copy(weights, rho)
		return
	}
	for i, w := range rho {
		weights[i] = float64(share * w)
	}
	weights[guardNaive] += 1 - share
	ot.Normalize(weights)
}

func (g *guard) visit(c *codec) {
	c.float(&g.mixture)
	c.float(&g.gain)
	c.float(&g.sq)
	c.float(&g.count)
}
