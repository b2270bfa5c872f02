package aggregate

// MLPoly weighs by polynomially weighted averages with one learning rate for each forecaster (Gaillard, Stoltz and van
// Erven, COLT 2014): wₖ ∝ Rₖ⁺/(c + Σr²), with r the gain of forecaster k and Rₖ the sum of its gains.
type MLPoly struct {
	Share   []float64 // w, in sum 1
	regret  []float64 // R
	inverse []float64 // 1/η: c + Σr²
	ahead   float64   // who is ahead by no more is not ahead
}

// NewMLPoly returns the rule for n forecasters. prior is c, the squared gains assumed before any were seen: how slowly the
// first evidence is believed; 0 is the published rule.
func NewMLPoly(n int, prior float64) MLPoly {
	a := MLPoly{regret: make([]float64, n), inverse: make([]float64, n), Share: make([]float64, n), ahead: float64(2.5e-10 * prior)}
	for k := range n {
		a.inverse[k] = prior
	}
	Uniform(a.Share)
	return a
}

// Gain takes in by how much forecaster k did better than the mixture.
func (a *MLPoly) Gain(k int, r float64) {
	a.regret[k] += r
	a.inverse[k] += float64(r * r)
}

// Mix sets the shares; equal ones if nobody is ahead of the mixture.
func (a *MLPoly) Mix() {
	sum := 0.0
	for k, r := range a.regret {
		a.Share[k] = 0
		if r > a.ahead && a.inverse[k] > 0 {
			a.Share[k] = r / a.inverse[k]
			sum += a.Share[k]
		}
	}
	if sum == 0 {
		Uniform(a.Share)
		return
	}
	for k := range a.Share {
		a.Share[k] /= sum
	}
}

// Soften moves the given part of the shares to equal ones, and changes what is remembered so that Mix would give the same.
func (a *MLPoly) Soften(part float64) {
	mean := 0.0
	for k, r := range a.regret {
		if r > a.ahead && a.inverse[k] > 0 {
			mean += r / a.inverse[k] / float64(len(a.regret))
		}
	}
	for k, r := range a.regret {
		a.regret[k] = float64((1-part)*max(0, r)) + float64(part*mean*a.inverse[k])
	}
	a.Mix()
}

// Scale multiplies the unit of the gains by f > 0. The prior is scaled with what was seen.
func (a *MLPoly) Scale(f float64) {
	for k := range a.regret {
		a.regret[k] = float64(a.regret[k] * f)
		a.inverse[k] = float64(a.inverse[k] * f * f)
	}
}

// State returns the numbers that the rule goes on from, which the caller saves and restores in place.
func (a *MLPoly) State() [3][]float64 { return [3][]float64{a.regret, a.inverse, a.Share} }

// Uniform sets all elements of p to the same, in sum 1.
func Uniform(p []float64) {
	for i := range p {
		p[i] = 1 / float64(len(p))
	}
}
