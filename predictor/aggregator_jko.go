package predictor

import (
	"math"
	"slices"

	"github.com/usp-project/usp/ot"
)

var (
	jkoMemory = 0.95
	jkoCum    = 0.0
)

// jko moves weights by the entropic Jordan–Kinderlehrer–Otto step in the Wasserstein geometry alone; see ot.JKO.
type jko struct {
	rho, belief []float64
	loss        []float64 // smoothed
	n           uint64    // losses in it
	tau, lambda float64
	opt         ot.JKOOptions
}

func newJKO(belief []float64, tau, lambda float64) *jko {
	return &jko{rho: slices.Clone(belief), belief: slices.Clone(belief), loss: make([]float64, len(belief)), tau: tau, lambda: lambda}
}

func (a *jko) weights() []float64 { return a.rho }

func (a *jko) learn(loss []float64, g *ground) move {
	a.n++
	rate := max(1-jkoMemory, 1/float64(a.n))
	for i, l := range loss {
		a.loss[i] += float64(rate * (l - a.loss[i]))
	}
	r := ot.JKO(a.rho, a.rho, a.loss, a.belief, g.costs(), a.tau, g.epsilon, a.lambda, a.opt, g.ws)
	return move{otCost: r.OTCost, freeEnergy: r.FreeEnergy, residual: r.Residual, gap: math.Abs(r.Gap) / max(1, math.Abs(r.Primal)),
		iterations: uint64(max(1, r.Iterations)), minimised: true}
}

func (a *jko) soften(part float64) { mixUniform(a.rho, part) }

func (a *jko) visit(c *codec) {
	c.floats(a.rho)
	c.floats(a.loss)
	c.uint(&a.n)
}
