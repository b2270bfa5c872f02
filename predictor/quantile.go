package predictor

import "math"

// Law is the predictive law of the next value: a density on a grid, and zero beyond it; between two nodes
// it has the slope of the straight line and the mass of a quintic. It
// is a copy that stays valid. The grid reaches six standard deviations to either side.
type Law struct {
	grid lawGrid
	cum  [lawNodes]float64 // the probability below each node, 0 at the first and 1 at the last
	mass float64           // of the grid as laid
}

// lay computes the law of the next value, if it has one.
func (p *Predictor) lay() bool {
	m := &p.ensemble
	p.laid = p.law.lay(p.experts, p.weights, m.forecast, m.errors)
	return p.laid
}

// Law returns the predictive law of the next value. It follows from the state alone, so that a restored predictor
// returns the same. There is none, and ok is false, before the warm-up has ended or while the mixture has no width.
func (p *Predictor) Law() (l Law, ok bool) {
	if !p.warm() || !p.laid && !p.lay() {
		return l, false
	}
	return l, l.of(&p.law)
}

// of fills l from g and reports whether g has any mass.
func (l *Law) of(g *lawGrid) bool {
	l.grid = *g
	l.cum[0] = 0
	for k := 1; k < lawNodes; k++ {
		l.cum[k] = l.cum[k-1] + float64(g.step*cellMass(g, k-1))
	}
	l.mass = l.cum[lawNodes-1]
	if !(l.mass > 0) || math.IsInf(l.mass, 0) {
		return false
	}
	for k := range l.cum {
		l.cum[k] /= l.mass
	}
	return true
}

// cellMass returns the integral of the density over the cell above node k, in steps of the grid, by the quintic
// through the six nearest nodes, but not less than half of what the straight line gives.
func cellMass(g *lawGrid, k int) float64 {
	line := float64(0.5 * (g.density[k] + g.density[k+1]))
	if k < 2 || k > lawNodes-4 {
		return line
	}
	near, far := g.density[k-1]+g.density[k+2], g.density[k-2]+g.density[k+3]
	return max(float64(0.5*line), (float64(1604*line)-float64(93*near)+float64(11*far))/1440)
}

// within returns the probability below the point that lies the fraction u, 0 to 1, of a step above node k.
func (l *Law) within(k int, u float64) float64 {
	f, g := l.grid.density[k], l.grid.density[k+1]
	if !(f+g > 0) {
		return l.cum[k]
	}
	part := float64(u*(float64(2*f)+float64(u*(g-f)))) / (f + g)
	return l.cum[k] + float64(part*(l.cum[k+1]-l.cum[k]))
}

// cell returns the node below x, at most the last but one, and the fraction of a step that x lies above it.
func (l *Law) cell(x float64) (k int, u float64) {
	at := max(0, min(lawNodes-1, (x-l.grid.node(0))/l.grid.step))
	k = min(lawNodes-2, int(at))
	return k, at - float64(k)
}

// Mean returns the mean of the mixture that the law was laid for, in the unit of the value.
func (l *Law) Mean() float64 { return l.grid.centre }

// CDF returns the probability, 0 to 1, that the next value is at most x.
func (l *Law) CDF(x float64) float64 {
	k, u := l.cell(x)
	return max(0, min(1, l.within(k, u)))
}

// Quantile returns the value that the next one stays below with probability p, 0 to 1, in the unit of the value.
func (l *Law) Quantile(p float64) float64 {
	k := 0
	for k < lawNodes-2 && l.cum[k+1] < p {
		k++
	}
	// The root of ½(g−f)u² + f·u = c, in the form that does not cancel.
	f, g := l.grid.density[k], l.grid.density[k+1]
	c := 0.0
	if m := l.cum[k+1] - l.cum[k]; m > 0 {
		c = max(0, float64(0.5*(f+g)*((p-l.cum[k])/m)))
	}
	root := f + math.Sqrt(max(0, float64(f*f)+float64(2*c*(g-f))))
	u := 0.0
	if root > 0 {
		u = min(1, 2*c/root)
	}
	return l.grid.node(k) + float64(u*l.grid.step)
}

// CRPS returns the continuous ranked probability score of the law at y, ∫(F(x) − 1{x ≥ y})² dx, in the unit of y. The
// cell in which the integrand jumps is integrated in two parts; each part by Simpson's rule.
func (l *Law) CRPS(y float64) float64 {
	at, u := l.cell(y)
	s := 0.0
	for k := range lawNodes - 1 {
		switch {
		case k < at:
			s += l.simpson(k, 0, 1, 0)
		case k > at:
			s += l.simpson(k, 0, 1, 1)
		default:
			s += l.simpson(k, 0, u, 0) + l.simpson(k, u, 1, 1)
		}
	}
	beyond := max(0, l.grid.node(0)-y, y-l.grid.node(lawNodes-1))
	return float64(s*l.grid.step) + beyond
}

// simpson returns ∫(F − less)² over the fractions a to b of the cell above node k, in steps of the grid.
func (l *Law) simpson(k int, a, b, less float64) float64 {
	f, m, g := l.within(k, a)-less, l.within(k, float64(0.5*(a+b)))-less, l.within(k, b)-less
	return float64((b - a) * (float64(f*f) + float64(4*m*m) + float64(g*g)) / 6)
}
