package predictor

import (
	"math"

	"github.com/usp-project/usp/detmath"
	"github.com/usp-project/usp/internal/aggregate"
	"github.com/usp-project/usp/ot"
)

// rates is the grid of learning rates η, one Hellinger–Kantorovich learner each; 0 stands for the rate that adapts
// to the losses seen, √(ln N / V).
var rates = [...]float64{0.01, 0.03, 0.1, 0.3, 0}

const (
	polyPrior    = 4    // squared gains that ML-Poly assumes before any were seen
	lossBound    = 8    // |loss| of an expert, in squared scales
	costMemory   = 0.97 // of the mean squared distance between two experts' forecasts
	costBound    = 100  // of an element of the ground cost
	maxRate      = 1.0  // of the adaptive learner
	learnerShare = 0.02 // of the mixture that all learners have alike, so that every step is a transport
	expertMemory = 0.98 // of an expert's mean squared error
	expertClip   = 9    // an expert's squared error counts at most so many times its mean
)

// learner is one Hellinger–Kantorovich learner on the experts.
type learner struct {
	rho      []float64
	variance float64 // V: cumulated mean squared loss under rho, for the adaptive rate
	result   ot.HKResult
}

// ensemble mixes the experts' forecasts. Its weights move by the Hellinger–Kantorovich step in the geometry of the
// experts' forecast distances, for several learning rates at once; beside these learners, which obey the regret bound that
// ot.HK states, stand BOA and ML-Poly on the same experts, which transport nothing. A second ML-Poly mixes all of them.
// The mixture is again one vector ρ, and the executed plan the same mixture of the learners' plans.
type ensemble struct {
	n        int
	forecast []float64 // of each expert, for the next value
	rho      []float64
	learners []learner
	boa      aggregate.BOA
	poly     aggregate.MLPoly
	outer    aggregate.MLPoly // over the learners, BOA and ML-Poly behind them
	distance []float64        // n×n: smoothed squared distance of forecasts
	errors   []float64        // mean squared error of each expert
	rough    []bool           // which experts look at rough paths; not state
	scored   uint64

	epsilon    float64
	otCost     float64
	freeEnergy float64
	residual   float64
	iterations uint64

	cost, kernel, loss []float64 // scratch
	ws                 *ot.Workspace
}

// newEnsemble returns the ensemble of experts that are believed so much before any evidence, in sum 1.
func newEnsemble(belief []float64) ensemble {
	n := len(belief)
	m := ensemble{n: n, forecast: make([]float64, n), rho: make([]float64, n), distance: make([]float64, n*n),
		errors: make([]float64, n), cost: make([]float64, n*n), kernel: make([]float64, n*n), loss: make([]float64, n),
		ws: ot.NewWorkspace(n), learners: make([]learner, len(rates)), outer: aggregate.NewMLPoly(len(rates)+2, polyPrior), boa: aggregate.NewBOA(belief),
		poly: aggregate.NewMLPoly(n, polyPrior), rough: make([]bool, n)}
	for k := range m.learners {
		m.learners[k] = learner{rho: make([]float64, n), variance: 1}
		copy(m.learners[k].rho, belief)
	}
	copy(m.rho, belief)
	return m
}

// hold records that no step is executed.
func (m *ensemble) hold() { m.otCost, m.freeEnergy, m.residual, m.iterations = 0, 0, 0, 0 }

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
// mixture; the learners' own weights, the transport and its cost are without that share.
func (m *ensemble) learn(y, scale, epsilon float64, emergency bool, cfg *Config) {
	m.epsilon = epsilon
	s2 := float64(scale * scale)
	for i := range m.cost {
		m.cost[i] = min(m.distance[i]/s2, costBound)
		if i%(m.n+1) != 0 {
			m.cost[i] += cfg.Orchestrator.SwitchCost
		}
	}
	bend := float64(lossBound * MaxMagnitude) // residuals beyond it count as much; no bound but in an emergency
	if emergency {
		bend = roughHuber
	}
	ot.Kernel(m.kernel, m.cost, epsilon)
	mixed := detmath.Dot(m.rho, m.forecast)
	for k := range m.learners {
		l := &m.learners[k]
		own := detmath.Dot(l.rho, m.forecast)
		eta := rates[k]
		if eta == 0 {
			eta = min(maxRate, math.Sqrt(detmath.Log(float64(m.n))/l.variance))
		}
		for i, x := range m.forecast {
			m.loss[i] = tangent(own, x, y, scale, bend)
			l.variance += float64(l.rho[i] * m.loss[i] * m.loss[i])
		}
		l.result = ot.HKKernel(l.rho, l.rho, m.loss, m.cost, m.kernel, eta, m.ws)
		m.outer.Gain(k, -tangent(mixed, own, y, scale, bend))
	}
	byBOA, byPoly := detmath.Dot(m.boa.Share, m.forecast), detmath.Dot(m.poly.Share, m.forecast)
	m.outer.Gain(len(rates), -tangent(mixed, byBOA, y, scale, bend))
	m.outer.Gain(len(rates)+1, -tangent(mixed, byPoly, y, scale, bend))
	for i, x := range m.forecast {
		m.boa.Gain(i, -tangent(byBOA, x, y, scale, bend))
		m.poly.Gain(i, -tangent(byPoly, x, y, scale, bend))
	}
	m.boa.Mix()
	m.poly.Mix()
	m.outer.Mix()
	for k, v := range m.outer.Share {
		m.outer.Share[k] = float64((1-learnerShare)*v) + learnerShare/float64(len(m.outer.Share))
	}
	m.combine()
	if emergency {
		m.prefer(m.rough, roughShare)
	}
}

// tangent is the loss of forecast x where the mixture forecast centre and the value turned out to be y: the slope of
// the squared error at centre, or of Huber's loss that is linear beyond bend scales, times x − centre, in squared scales, bounded.
func tangent(centre, x, y, scale, bend float64) float64 {
	return clip(float64(2*clip((centre-y)/scale, bend)*((x-centre)/scale)), lossBound)
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

// combine mixes the learners' weights, and what their steps cost, by their shares.
func (m *ensemble) combine() {
	m.otCost, m.freeEnergy, m.residual, m.iterations = 0, 0, 0, 1
	clear(m.rho)
	transported := 0.0
	for k := range m.learners {
		l, share := &m.learners[k], m.outer.Share[k]
		for i, w := range l.rho {
			m.rho[i] += float64(share * w)
		}
		m.otCost += float64(share * l.result.OTCost)
		m.freeEnergy += float64(share * l.result.MixLoss)
		m.residual = max(m.residual, l.result.Residual)
		transported += share
	}
	m.freeEnergy /= transported // of those that have one
	for k, weights := range [][]float64{m.boa.Share, m.poly.Share} {
		share := m.outer.Share[len(m.learners)+k]
		for i, w := range weights {
			m.rho[i] += float64(share * w)
		}
	}
	ot.Normalize(m.rho)
}

// soften moves the given part of every learner's weights to uniform.
func (m *ensemble) soften(part float64) {
	u := part / float64(m.n)
	for k := range m.learners {
		rho := m.learners[k].rho
		for i := range rho {
			rho[i] = float64((1-part)*rho[i]) + u
		}
		ot.Normalize(rho)
	}
	m.boa.Soften(part)
	m.poly.Soften(part)
	for i := range m.rho {
		m.rho[i] = float64((1-part)*m.rho[i]) + u
	}
	ot.Normalize(m.rho)
}

// look takes the experts' forecasts for the next value, already in m.forecast, into their mutual distances and
// returns the mixture forecast.
func (m *ensemble) look() float64 {
	n := m.n
	rate := max(1-costMemory, 1/float64(m.scored+1))
	for i := range n {
		for j := range i {
			d := m.forecast[i] - m.forecast[j]
			v := m.distance[i*n+j] + float64(rate*(float64(d*d)-m.distance[i*n+j]))
			m.distance[i*n+j], m.distance[j*n+i] = v, v
		}
	}
	return detmath.Dot(m.rho, m.forecast)
}

func (m *ensemble) visit(c *codec) {
	c.floats(m.forecast)
	c.floats(m.rho)
	for k := range m.learners {
		l := &m.learners[k]
		c.floats(l.rho)
		c.float(&l.variance)
	}
	for _, state := range [][3][]float64{m.boa.State(), m.poly.State(), m.outer.State()} {
		for _, numbers := range state {
			c.floats(numbers)
		}
	}
	c.floats(m.distance)
	c.floats(m.errors)
	c.uint(&m.scored)
	c.float(&m.epsilon)
}

func clip(x, bound float64) float64 { return max(-bound, min(bound, x)) }
