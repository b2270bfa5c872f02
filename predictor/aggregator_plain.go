package predictor

import (
	"slices"

	"github.com/usp-project/usp/detmath"
	"github.com/usp-project/usp/internal/aggregate"
	"github.com/usp-project/usp/ot"
)

// published is an aggregator by one of the published rules without transport.
type published struct{ rule }

// rule is what package aggregate's rules have in common.
type rule interface {
	Gain(k int, r float64)
	Mix()
	Soften(part float64)
	State() [3][]float64
}

func newBOA(belief []float64) aggregator {
	a := aggregate.NewBOA(belief)
	return published{&a}
}

func newMLPoly(n int) aggregator {
	a := aggregate.NewMLPoly(n, polyPrior)
	return published{&a}
}

func (a published) weights() []float64  { return a.State()[2] }
func (a published) soften(part float64) { a.Soften(part) }

func (a published) learn(loss []float64, _ *ground) move {
	for k, l := range loss {
		a.Gain(k, -l)
	}
	a.Mix()
	return move{iterations: 1}
}

func (a published) visit(c *codec) {
	for _, numbers := range a.State() {
		c.floats(numbers)
	}
}

// uniform weighs all experts alike, whatever they lose.
type uniform struct{ rho []float64 }

func newUniform(n int) uniform {
	a := uniform{make([]float64, n)}
	aggregate.Uniform(a.rho)
	return a
}

func (a uniform) weights() []float64          { return a.rho }
func (uniform) learn([]float64, *ground) move { return move{iterations: 1} }
func (uniform) soften(float64)                {}
func (uniform) visit(*codec)                  {}

// ewa is the exponentially weighted average forecaster: ρᵢ ∝ bᵢ·exp(−ηLᵢ), L the cumulated losses, with the rate
// √(ln N / V) that falls as losses come in (Cesa-Bianchi and Lugosi, Prediction, Learning, and Games, 2006, 2.2 and 2.3).
type ewa struct {
	rho, belief []float64
	total       []float64 // L, less the least of them
	variance    float64   // V
}

func newEWA(belief []float64) *ewa {
	return &ewa{rho: slices.Clone(belief), belief: slices.Clone(belief), total: make([]float64, len(belief)), variance: 1}
}

func (a *ewa) weights() []float64 { return a.rho }

func (a *ewa) learn(loss []float64, g *ground) move {
	a.variance = meanSquare(a.variance, a.rho, loss)
	for i, l := range loss {
		a.total[i] += l
	}
	least := slices.Min(a.total)
	for i := range a.total {
		a.total[i] -= least
	}
	value, gap := ot.FisherRao(a.rho, a.belief, a.total, adaptiveRate(len(loss), a.variance), g.ws)
	ot.Normalize(a.rho)
	return move{freeEnergy: value, gap: gap, iterations: 1, minimised: true}
}

// soften also changes the losses remembered, so that they give the weights.
func (a *ewa) soften(part float64) {
	eta, u := adaptiveRate(len(a.rho), a.variance), part/float64(len(a.rho))
	for i, w := range a.rho {
		softer := float64((1-part)*w) + u
		a.total[i] -= detmath.Log(softer/max(w, 0x1p-1000)) / eta
		a.rho[i] = softer
	}
	ot.Normalize(a.rho)
}

func (a *ewa) visit(c *codec) {
	c.floats(a.rho)
	c.floats(a.total)
	c.float(&a.variance)
}

// fixedShare is Herbster and Warmuth's forecaster (Mach. Learn. 32, 1998): after an exponentiated-gradient step every
// expert gives the same share of its weight to all. That is the Hellinger–Kantorovich step at a cost that is the same
// between any two experts; the geometry of their forecasts plays no part, and no transport cost is recorded.
type fixedShare struct{ rho []float64 }

const (
	fixedShareRate = 0.1   // η
	fixedShareOf   = 0.001 // of the weights, given to all experts in each step
)

func newFixedShare(belief []float64) fixedShare { return fixedShare{slices.Clone(belief)} }

func (a fixedShare) weights() []float64 { return a.rho }

func (a fixedShare) learn(loss []float64, g *ground) move {
	value, gap := ot.FisherRao(a.rho, a.rho, loss, fixedShareRate, g.ws)
	mixUniform(a.rho, fixedShareOf)
	return move{freeEnergy: value, gap: gap, iterations: 1, minimised: true}
}

func (a fixedShare) soften(part float64) { mixUniform(a.rho, part) }
func (a fixedShare) visit(c *codec)      { c.floats(a.rho) }
