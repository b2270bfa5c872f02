package predictor

import (
	"github.com/usp-project/usp/ot"
)

// aggregator turns the losses of experts into weights for them. What it has learned is in its weights and in what visit
// walks; it allocates nothing after it was made.
type aggregator interface {
	// weights are those for the next value, in sum 1. The slice is the aggregator's memory and always the same one.
	weights() []float64
	// learn moves the weights by the loss of each expert, in squared scales, on the ground g, and says what that took.
	learn(loss []float64, g *ground) move
	// soften moves the given part of the weights to equal ones.
	soften(part float64)
	// visit walks everything learned.
	visit(c *codec)
}

// move says what one step of an aggregator took.
type move struct {
	otCost     float64 // ⟨C,π⟩ of the transport plan executed; 0 for those that transport nothing
	freeEnergy float64 // of the minimum found; 0 for those that minimise nothing
	residual   float64 // largest error of the plan's first marginal, or of the marginal that was solved for
	gap        float64 // primal minus dual value of what was minimised, relative to max(1, |primal|)
	iterations uint64
	minimised  bool // freeEnergy and gap mean something
}

// newAggregators returns the aggregators that the step's name stands for, on experts believed so much before any evidence.
func newAggregators(cfg *Orchestrator, belief []float64) []aggregator {
	switch cfg.Step {
	case StepJKO:
		return []aggregator{newJKO(belief, cfg.Tau, cfg.Lambda)}
	case StepEWA:
		return []aggregator{newEWA(belief)}
	case StepFixedShare:
		return []aggregator{newFixedShare(belief)}
	case StepBOA:
		return []aggregator{newBOA(belief)}
	case StepMLPoly:
		return []aggregator{newMLPoly(len(belief))}
	case StepUniform:
		return []aggregator{newUniform(len(belief))}
	}
	var list []aggregator
	for _, rate := range rates {
		list = append(list, newHK(belief, rate))
	}
	return append(list, newBOA(belief), newMLPoly(len(belief)))
}

// ground is the metric space of the experts in which weights are transported: Cᵢⱼ is the mean squared distance of two
// experts' forecasts, in squared error scales, plus the switch cost where i ≠ j.
type ground struct {
	n        int
	distance []float64 // n×n: smoothed squared distance of forecasts
	epsilon  float64   // regularisation of the transport

	scale2, switchCost float64
	fresh, stepped     bool // cost and transition are those of this step

	cost       []float64 // scratch
	transition *ot.Transition
	ws         *ot.Workspace
}

func newGround(n int, switchCost float64) ground {
	return ground{n: n, distance: make([]float64, n*n), switchCost: switchCost, cost: make([]float64, n*n),
		transition: ot.NewTransition(n), ws: ot.NewWorkspace(n)}
}

// begin starts a step at that error scale.
func (g *ground) begin(scale, epsilon float64) {
	g.scale2, g.epsilon, g.fresh, g.stepped = float64(scale*scale), epsilon, false, false
}

// look takes the forecasts for the next value, the scored-th, into the distances.
func (g *ground) look(forecast []float64, scored uint64) {
	rate := max(1-costMemory, 1/float64(scored+1))
	for i, x := range forecast {
		row := g.distance[i*g.n : i*g.n+i]
		for j, v := range row {
			d := x - forecast[j]
			v += float64(rate * (float64(d*d) - v))
			row[j], g.distance[j*g.n+i] = v, v
		}
	}
}

// costs returns C, n×n.
func (g *ground) costs() []float64 {
	if !g.fresh {
		g.fresh = true
		inverse := 1 / g.scale2
		for i := range g.n {
			row := g.cost[i*g.n : i*g.n+i]
			for j, d := range g.distance[i*g.n : i*g.n+i] {
				c := float64(d * inverse)
				if c > costBound {
					c = costBound
				}
				row[j], g.cost[j*g.n+i] = c+g.switchCost, c+g.switchCost
			}
		}
	}
	return g.cost
}

// step returns the Wasserstein step on the ground.
func (g *ground) step() *ot.Transition {
	if !g.stepped {
		g.stepped = true
		g.transition.Set(g.costs(), g.epsilon)
	}
	return g.transition
}
