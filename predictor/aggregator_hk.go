package predictor

import (
	"math"
	"slices"

	"github.com/usp-project/usp/detmath"
	"github.com/usp-project/usp/ot"
)

// hk moves weights by the Hellinger–Kantorovich step; see ot.HK, which states its regret.
type hk struct {
	rho      []float64
	rate     float64 // η; 0 stands for the rate that adapts to the losses seen
	variance float64 // V: cumulated mean squared loss under rho, for the adaptive rate
}

func newHK(belief []float64, rate float64) *hk {
	return &hk{rho: slices.Clone(belief), rate: rate, variance: 1}
}

func (a *hk) weights() []float64 { return a.rho }

func (a *hk) learn(loss []float64, g *ground) move {
	eta := a.rate
	if eta == 0 {
		eta = adaptiveRate(len(loss), a.variance)
	}
	a.variance = meanSquare(a.variance, a.rho, loss)
	r := g.step().HK(a.rho, a.rho, loss, eta, g.ws)
	return move{otCost: r.OTCost, freeEnergy: r.MixLoss, residual: r.Residual, gap: r.Gap, iterations: 1, minimised: true}
}

func (a *hk) soften(part float64) { mixUniform(a.rho, part) }

func (a *hk) visit(c *codec) {
	c.floats(a.rho)
	c.float(&a.variance)
}

// adaptiveRate is √(ln n / V), V being the cumulated mean squared loss, up to maxRate.
func adaptiveRate(n int, variance float64) float64 {
	return min(maxRate, math.Sqrt(detmath.Log(float64(n))/variance))
}

// meanSquare adds the mean squared loss under rho to v.
func meanSquare(v float64, rho, loss []float64) float64 {
	for i, l := range loss {
		v += float64(rho[i] * l * l)
	}
	return v
}

// mixUniform moves the given part of p to equal shares.
func mixUniform(p []float64, part float64) {
	u := part / float64(len(p))
	for i := range p {
		p[i] = float64((1-part)*p[i]) + u
	}
	ot.Normalize(p)
}
