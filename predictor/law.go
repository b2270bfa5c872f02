package predictor

import (
	"math"

	"github.com/usp-project/usp/detmath"
)

// lawNodes and lawReach set the grid of the predictive law: nodes on ±lawReach standard deviations of it.
const (
	lawNodes = 49
	lawReach = 6.0
)

// lawGrid is the density of the predictive law of the next value on an even grid: node k lies at centre + (k −
// lawNodes/2)·step. It is computed anew at every step.
type lawGrid struct {
	centre, step float64 // unit of the value
	density      [lawNodes]float64
}

// node returns where node k lies.
func (g *lawGrid) node(k int) float64 { return g.centre + float64(float64(k-lawNodes/2)*g.step) }

// addNormal adds weight times the density of N(mean, sd²); a law narrower than half the grid's step is given that width.
// Along the even grid a Gaussian follows from its neighbour by two products, g(u+h) = g(u)·r, r ← r·q, so that it costs
// four exponentials.
func (g *lawGrid) addNormal(weight, mean, sd float64) {
	s := max(sd, float64(0.5*g.step))
	at, step := (mean-g.centre)/s, g.step/s
	const middle = lawNodes / 2
	nearest := int(math.Floor(clip(at/step, lawNodes) + 0.5))
	first := max(0, min(lawNodes-1, middle+nearest))
	u := float64(float64(first-middle)*step) - at
	half := float64(-0.5 * step * step)
	e := [...]float64{float64(-0.5 * u * u), float64(2 * half), float64(-u*step) + half, float64(u*step) + half}
	detmath.ExpEach(e[:])
	top := float64(float64(weight*e[0])*(1/math.Sqrt(2*math.Pi))) / s
	g.density[first] += top
	r, q := e[2], e[1]
	x := top
	for k := first + 1; k < lawNodes; k++ {
		x = float64(x * r)
		r = float64(r * q)
		g.density[k] += x
	}
	x, r = top, e[3]
	for k := first - 1; k >= 0; k-- {
		x = float64(x * r)
		r = float64(r * q)
		g.density[k] += x
	}
}

// addMass adds a point mass at x, shared between the two nodes beside it so that its mean stays; beyond the grid it is lost.
func (g *lawGrid) addMass(mass, x float64) {
	at := (x-g.centre)/g.step + lawNodes/2
	if !(at > -1 && at < lawNodes) {
		return
	}
	j := int(math.Floor(at))
	part := at - float64(j)
	if j >= 0 {
		g.density[j] += float64(mass * (1 - part) / g.step)
	}
	if j+1 < lawNodes {
		g.density[j+1] += float64(mass * part / g.step)
	}
}

// lay computes the law of the mixture of experts: forecast and variance of each, and the shape of those that know it.
// It returns false, and leaves no law, if the mixture has no width.
func (g *lawGrid) lay(experts []expert, rho, forecast, variance []float64) bool {
	g.centre = detmath.Dot(rho, forecast)
	spread := 0.0
	for i, w := range rho {
		d := forecast[i] - g.centre
		spread += float64(w * (variance[i] + float64(d*d)))
	}
	sd := math.Sqrt(spread)
	g.step = float64(2 * lawReach / (lawNodes - 1) * sd)
	if !(g.step > 0) || math.IsInf(g.step, 0) {
		return false
	}
	clear(g.density[:])
	for i, w := range rho {
		if w < 1e-4 {
			continue
		}
		if e, ok := experts[i].(shaped); ok {
			e.spread(g, w)
		} else {
			g.addNormal(w, forecast[i], math.Sqrt(variance[i]))
		}
	}
	return true
}

// entropy returns the differential entropy of the law, in nats, measured in units of unit, by the trapezoidal rule.
func (g *lawGrid) entropy(unit float64) float64 {
	total, entropy := 0.0, 0.0
	for _, f := range g.density {
		if f = float64(f * unit); f > 0 {
			total += f
			entropy -= float64(f * detmath.Log(f))
		}
	}
	if !(total > 0) {
		return 0
	}
	// Dividing by the grid's own mass makes the rule exact for what it leaves out.
	return entropy/total + detmath.Log(float64(total*(g.step/unit)))
}

// CRPS returns the continuous ranked probability score of the mixture Σ wᵢ·N(mᵢ, vᵢ) at y, in the unit of y; less is
// better. It is Σ wᵢ·A(y−mᵢ, vᵢ) − ½ΣΣ wᵢwⱼ·A(mᵢ−mⱼ, vᵢ+vⱼ) with A(m,v) = E|N(m,v)| (Grimit, Gneiting, Berrocal
// and Johnson, Q. J. R. Meteorol. Soc. 132, 2006). Variances may be zero.
func CRPS(weight, mean, variance []float64, y float64) float64 {
	s := 0.0
	for i, w := range weight {
		s += float64(w * absMoment(y-mean[i], variance[i]))
		for j, u := range weight {
			s -= float64(0.5 * w * u * absMoment(mean[i]-mean[j], variance[i]+variance[j]))
		}
	}
	return s
}

// absMoment returns E|X| for X normal with mean m and variance v.
func absMoment(m, v float64) float64 {
	if !(v > 0) {
		return math.Abs(m)
	}
	sd := math.Sqrt(v)
	z := m / sd
	return float64(2*sd*detmath.NormalPDF(z)) + float64(m*(1-float64(2*detmath.NormalCDF(-z))))
}

// Pinball returns the quantile loss of q as a forecast of the quantile tau of y, in the unit of y.
func Pinball(tau, y, q float64) float64 {
	if y >= q {
		return float64(tau * (y - q))
	}
	return float64((1 - tau) * (q - y))
}
