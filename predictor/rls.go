package predictor

import (
	"math"

	"github.com/usp-project/usp/detmath"
)

const (
	rlsPrior    = 0.5 // variance of a coefficient before any evidence, in units of the noise
	rlsClip     = 5.0 // innovations are winsorised at so many of their standard deviations
	rlsMaxTrace = 1e4 // per coefficient: beyond it nothing is forgotten, against wind-up
)

// rls is recursive least squares with exponential forgetting on p features, robust to wild targets. Before any evidence
// all coefficients are zero.
type rls struct {
	forgetting float64
	priors     []float64 // p: variance of each coefficient before any evidence; not state

	theta, features, gain []float64 // p; features are those of the last forecast, gain is scratch
	cov                   []float64 // p×p, symmetric
	error2                float64   // mean squared innovation, winsorised
	n                     uint64    // targets learned from
}

func newRLS(forgetting float64, p int, prior func(i int) float64) rls {
	r := rls{forgetting: forgetting, priors: make([]float64, p), theta: make([]float64, p), features: make([]float64, p),
		gain: make([]float64, p), cov: make([]float64, p*p)}
	for i := range p {
		r.priors[i] = rlsPrior
		if prior != nil {
			r.priors[i] = prior(i)
		}
	}
	r.reset()
	return r
}

// reset forgets the covariance but keeps the coefficients.
func (r *rls) reset() {
	p := len(r.theta)
	clear(r.cov)
	for i := range p {
		r.cov[i*p+i] = r.priors[i]
	}
}

// forget takes coefficient i back to where it was before any evidence.
func (r *rls) forget(i int) {
	p := len(r.theta)
	r.theta[i] = 0
	for j := range p {
		r.cov[i*p+j], r.cov[j*p+i] = 0, 0
	}
	r.cov[i*p+i] = r.priors[i]
}

// predict returns the forecast of the target that belongs to r.features, which the caller has filled.
func (r *rls) predict() float64 {
	d := 0.0
	for i, x := range r.features {
		d += float64(r.theta[i] * x)
	}
	if math.IsNaN(d) || math.IsInf(d, 0) {
		clear(r.theta)
		r.reset()
		return 0
	}
	return d
}

// learn updates the coefficients by the target that belongs to the features.
func (r *rls) learn(target float64) {
	p, x, g := len(r.theta), r.features, r.gain
	innovation := target
	for i := range x {
		innovation -= float64(r.theta[i] * x[i])
	}
	r.n++
	if r.n > 5 && r.error2 > 1e-6 { // below a thousandth of the unit the signal has been at rest
		bound := float64(rlsClip * math.Sqrt(r.error2))
		innovation = max(-bound, min(bound, innovation))
	}
	innovation = max(-1e6, min(1e6, innovation))
	r.error2 += float64(max(0.02, 1/float64(r.n)) * (float64(innovation*innovation) - r.error2))

	forget, trace := r.forgetting, 0.0
	detmath.VecMul(g, x, r.cov)
	for i := range p {
		trace += r.cov[i*p+i]
	}
	spread := 0.0 // xᵀ·cov·x
	for i, s := range g {
		spread += float64(s * x[i])
	}
	if trace > float64(rlsMaxTrace*float64(p)) {
		forget = 1
	}
	scale := forget + spread
	if !(scale > 0) || math.IsInf(scale, 0) {
		r.reset()
		return
	}
	keep, step := 1/forget, innovation/scale
	for i, s := range g {
		r.theta[i] += float64(s * step)
		f := s / float64(scale*forget)
		row := r.cov[i*p : i*p+i+1]
		for j, c := range row {
			v := float64(c*keep) - float64(f*g[j])
			row[j], r.cov[j*p+i] = v, v
		}
	}
	for i := range p {
		if !(r.cov[i*p+i] > 0) { // rounding has eaten the covariance
			r.reset()
			return
		}
	}
}

func (r *rls) visit(c *codec) {
	c.floats(r.theta)
	c.floats(r.features)
	c.floats(r.cov)
	c.float(&r.error2)
	c.uint(&r.n)
}
