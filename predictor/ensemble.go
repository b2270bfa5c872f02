package predictor

import (
	"slices"

	"github.com/usp-project/usp/detmath"
	"github.com/usp-project/usp/ot"
)

// rates is the grid of learning rates η, one Hellinger–Kantorovich learner each; 0 stands for the rate that adapts
// to the losses seen, √(ln N / V). More of them, or others, are no better: the geometric mean of RMSE to naive over the shipped series
// is .766 with these three, .767 with 0.01, 0.03, 0.1, 0.3 and 0, and BenchmarkSwitching cannot tell the two apart.
var rates = [...]float64{0.05, 0.2, 0}

const (
	polyPrior    = 4     // squared gains that ML-Poly assumes before any were seen
	lossBound    = 8     // |loss| of an expert, in squared scales
	costMemory   = 0.97  // of the mean squared distance between two experts' forecasts
	costBound    = 100   // of an element of the ground cost
	maxRate      = 1.0   // of the adaptive learner
	learnerShare = 0.02  // of the mixture that all learners have alike, so that every step is a transport
	expertMemory = 0.98  // of an expert's mean squared error
	gapTolerance = 1e-10 // relative duality gap from which on a step counts as not converged
	expertClip   = 9     // an expert's squared error counts at most so many times its mean
)

// ensemble mixes the experts' forecasts by the weights of one aggregator or of several, which a further one mixes: the
// mixture is again one vector ρ, and what the step executed the same mixture of what the aggregators did. By default, at
// StepHK, they are Hellinger–Kantorovich learners at several rates, which obey the regret bound that ot.HK states, and
// beside them BOA and ML-Poly on the same experts, which transport nothing; ML-Poly mixes them.
type ensemble struct {
	n        int
	forecast []float64 // of each expert, for the next value
	rho      []float64
	parts    []aggregator
	outer    aggregator // over the parts; nil for one part
	shares   []float64  // of the parts
	ground   ground
	errors   []float64 // mean squared error of each expert
	rough    []bool    // which experts look at rough paths; not state
	scored   uint64

	done       move      // by the newest step
	moves      []move    // of the parts, in it
	loss, lost []float64 // scratch: of experts, of parts
}

// newEnsemble returns the ensemble of experts that are believed so much before any evidence, in sum 1.
func newEnsemble(cfg *Orchestrator, belief []float64) ensemble {
	n := len(belief)
	m := ensemble{n: n, forecast: make([]float64, n), rho: slices.Clone(belief), errors: make([]float64, n), rough: make([]bool, n),
		loss: make([]float64, n), ground: newGround(n, cfg.SwitchCost), parts: newAggregators(cfg, belief)}
	m.moves, m.lost, m.shares = make([]move, len(m.parts)), make([]float64, len(m.parts)), []float64{1}
	if len(m.parts) > 1 {
		m.outer = newMLPoly(len(m.parts))
		m.shares = m.outer.weights()
	}
	return m
}

// hold records that no step is executed.
func (m *ensemble) hold() { m.done = move{} }

// score takes the value y that the forecasts were made for into each expert's mean squared error.
func (m *ensemble) score(y, floor float64) {
	seen := m.scored
	m.scored++
	rate := max(1-expertMemory, 1/float64(m.scored))
	for i, x := range m.forecast {
		e2 := winsorise(float64((y-x)*(y-x)), m.errors[i], expertClip, floor, seen)
		m.errors[i] += float64(rate * (e2 - m.errors[i]))
	}
}

// learn executes one step of the weights for the value y: scale is the ensemble's error scale before y, epsilon the
// regularisation of the transport. In an emergency the loss is Huber's, and rough-path experts have at least half of the
// mixture; the aggregators' own weights, the transport and its cost are without that share.
func (m *ensemble) learn(y, scale, epsilon float64, emergency bool) {
	m.ground.begin(scale, epsilon)
	bend := float64(lossBound * MaxMagnitude) // residuals beyond it count as much; no bound but in an emergency
	if emergency {
		bend = roughHuber
	}
	mixed := detmath.Dot(m.rho, m.forecast)
	outerSlope := slopeAt(mixed, y, scale, bend)
	inverse := 1 / scale
	for k, part := range m.parts {
		own := detmath.Dot(part.weights(), m.forecast)
		slope := slopeAt(own, y, scale, bend)
		for i, x := range m.forecast {
			m.loss[i] = tangent(slope, own, x, inverse)
		}
		m.lost[k] = tangent(outerSlope, mixed, own, inverse)
		m.moves[k] = part.learn(m.loss, &m.ground)
	}
	if m.outer != nil {
		m.outer.learn(m.lost, nil)
		for k, v := range m.shares {
			m.shares[k] = float64((1-learnerShare)*v) + learnerShare/float64(len(m.shares))
		}
	}
	m.combine()
	if emergency {
		m.prefer(m.rough, roughShare)
	}
}

// slopeAt is the slope of the squared error, or of Huber's loss that is linear beyond bend scales, at the mixture forecast
// centre where the value turned out to be y, in scales.
func slopeAt(centre, y, scale, bend float64) float64 {
	return float64(2 * clip((centre-y)/scale, bend))
}

// tangent is the loss of forecast x: the slope at centre times x − centre, in squared scales, bounded. inverse is 1/scale.
func tangent(slope, centre, x, inverse float64) float64 {
	return clip(float64(slope*float64((x-centre)*inverse)), lossBound)
}

// prefer gives the chosen experts at least that share of the mixture, in the proportions they have; nothing if there are none.
func (m *ensemble) prefer(chosen []bool, share float64) {
	has, n := 0.0, 0
	for i, yes := range chosen {
		if yes {
			has += m.rho[i]
			n++
		}
	}
	if n == 0 || has >= share {
		return
	}
	for i, yes := range chosen {
		switch {
		case !yes:
			m.rho[i] = float64(m.rho[i] * ((1 - share) / (1 - has)))
		case has > 0:
			m.rho[i] = float64(m.rho[i] * (share / has))
		default:
			m.rho[i] = share / float64(n)
		}
	}
	ot.Normalize(m.rho)
}

// combine mixes the parts' weights, and what their steps took, by their shares.
func (m *ensemble) combine() {
	m.done = move{}
	clear(m.rho)
	minimised := 0.0
	for k, part := range m.parts {
		share, took := m.shares[k], m.moves[k]
		for i, w := range part.weights() {
			m.rho[i] += float64(share * w)
		}
		m.done.otCost += float64(share * took.otCost)
		m.done.residual = max(m.done.residual, took.residual)
		m.done.gap = max(m.done.gap, took.gap)
		m.done.iterations = max(m.done.iterations, took.iterations)
		if took.minimised {
			m.done.freeEnergy += float64(share * took.freeEnergy)
			minimised += share
		}
	}
	if minimised > 0 {
		m.done.freeEnergy /= minimised // of those that have one
	}
	ot.Normalize(m.rho)
}

// soften moves the given part of every aggregator's weights to uniform.
func (m *ensemble) soften(part float64) {
	for _, a := range m.parts {
		a.soften(part)
	}
	mixUniform(m.rho, part)
}

// look takes the experts' forecasts for the next value, already in m.forecast, into their mutual distances and
// returns the mixture forecast.
func (m *ensemble) look() float64 {
	m.ground.look(m.forecast, m.scored)
	return blend(m.rho, m.forecast)
}

// blend returns the weighted mean of x, exactly that of all where they are equal, though weights sum to 1 but for rounding.
func blend(weights, x []float64) float64 {
	sum := 0.0
	for i, w := range weights {
		sum += float64(w * (x[i] - x[0]))
	}
	return x[0] + sum
}

func (m *ensemble) visit(c *codec) {
	c.floats(m.forecast)
	c.floats(m.rho)
	for _, a := range m.parts {
		a.visit(c)
	}
	if m.outer != nil {
		m.outer.visit(c)
	}
	c.floats(m.ground.distance)
	c.floats(m.errors)
	c.uint(&m.scored)
	c.float(&m.ground.epsilon)
}

// clip returns x, moved into [−bound, bound]; NaN stays. It compares, which is cheaper than min and max: they look after
// the signs of zeros.
func clip(x, bound float64) float64 {
	if x > bound {
		return bound
	}
	if x < -bound {
		return -bound
	}
	return x
}
