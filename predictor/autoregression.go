package predictor

import "math"

// autoregression forecasts by recursive least squares with exponential forgetting. The target is the next
// increment; the features are a constant, the distance to the mean, the distances to the preceding values and, if
// seasonal, to those about one season ago, all in units of the history's spread. Without evidence all coefficients are
// zero, which is the naive forecast.
type autoregression struct {
	id         string
	forgetting float64
	lags       int
	seasonal   bool

	theta, features, gain []float64 // p
	cov                   []float64 // p×p, symmetric
	unit                  float64   // of features and target, at the last forecast
	error2                float64   // mean squared innovation in those units, winsorised
	n                     uint64    // targets learned from
	season                int       // the features are for
}

const (
	arPrior     = 3   // variance of each coefficient before any evidence, in units of the noise
	arClip      = 5.0 // innovations are winsorised at so many of their standard deviations
	arFeature   = 50  // features are cut at so many spreads
	arMaxTrace  = 1e4 // per coefficient: beyond it nothing is forgotten, against wind-up
	arOutermost = 20  // forecasts stay within so many spreads of the last value
)

func newAutoregression(id string, forgetting float64, lags int, seasonal bool) *autoregression {
	p := 3 + lags
	if seasonal {
		p += 4
	}
	e := &autoregression{id: id, forgetting: forgetting, lags: lags, seasonal: seasonal, theta: make([]float64, p),
		features: make([]float64, p), gain: make([]float64, p), cov: make([]float64, p*p)}
	e.reset()
	return e
}

func (e *autoregression) name() string { return e.id }

// reset forgets the covariance but keeps the coefficients.
func (e *autoregression) reset() {
	p := len(e.theta)
	clear(e.cov)
	for i := range p {
		e.cov[i*p+i] = e.prior(i)
	}
}

// forget takes coefficient i back to where it was before any evidence.
func (e *autoregression) forget(i int) {
	p := len(e.theta)
	e.theta[i] = 0
	for j := range p {
		e.cov[i*p+j], e.cov[j*p+i] = 0, 0
	}
	e.cov[i*p+i] = e.prior(i)
}

// prior is the variance of coefficient i before any evidence, in units of the noise: the farther a lag, the less is
// expected of it.
func (e *autoregression) prior(i int) float64 {
	k := i - 2
	if k < 1 || k > e.lags {
		return arPrior
	}
	return arPrior / float64(k) / float64(k)
}

func (e *autoregression) step(h *history) float64 {
	if h.n > 3 { // before that the spread says nothing
		e.learn((h.back(0) - h.back(1)) / e.unit)
	}
	if e.seasonal && e.season != h.season { // what was learned of another period is void
		p := len(e.theta)
		for i := 3 + e.lags; i < p; i++ {
			e.forget(i)
		}
		e.season = h.season
	}
	e.look(h)
	d := 0.0
	for i, x := range e.features {
		d += float64(e.theta[i] * x)
	}
	if math.IsNaN(d) || math.IsInf(d, 0) {
		clear(e.theta)
		e.reset()
		d = 0
	}
	return h.back(0) + float64(e.unit*max(-arOutermost, min(arOutermost, d)))
}

// look computes the features for the forecast after the newest value.
func (e *autoregression) look(h *history) {
	y := h.back(0)
	e.unit = h.spread
	x := e.features
	clear(x)
	x[0] = 0.1
	x[1] = e.feature(h.mean, y)
	x[2] = e.feature(h.level, y)
	for k := 1; k <= e.lags; k++ {
		if h.has(k) {
			x[2+k] = e.feature(h.back(k), y)
		}
	}
	if m := h.season; e.seasonal && m > 1 && h.has(m) {
		// The value of one season before the target, and its neighbours.
		s := x[3+e.lags:]
		if m > 2 {
			s[0] = e.feature(h.back(m-2), y)
		}
		s[1] = e.feature(h.back(m-1), y)
		s[2] = e.feature(h.back(m), y)
		s[3] = e.feature(y+h.increment(), y)
	}
}

func (e *autoregression) feature(v, y float64) float64 {
	return max(-arFeature, min(arFeature, (v-y)/e.unit))
}

// learn updates the coefficients by the target that belongs to the features.
func (e *autoregression) learn(target float64) {
	p, x, g := len(e.theta), e.features, e.gain
	innovation := target
	for i := range x {
		innovation -= float64(e.theta[i] * x[i])
	}
	e.n++
	if e.n > 5 && e.error2 > 1e-6 { // below a thousandth of the spread the signal has been at rest
		bound := float64(arClip * math.Sqrt(e.error2))
		innovation = max(-bound, min(bound, innovation))
	}
	innovation = max(-1e6, min(1e6, innovation))
	e.error2 += float64(max(0.02, 1/float64(e.n)) * (float64(innovation*innovation) - e.error2))

	forget, trace := e.forgetting, 0.0
	spread := 0.0 // xᵀ·cov·x
	for i := range p {
		s := 0.0
		for j := range p {
			s += float64(e.cov[i*p+j] * x[j])
		}
		g[i] = s
		spread += float64(s * x[i])
		trace += e.cov[i*p+i]
	}
	if trace > float64(arMaxTrace*float64(p)) {
		forget = 1
	}
	scale := forget + spread
	if !(scale > 0) || math.IsInf(scale, 0) {
		e.reset()
		return
	}
	for i := range p {
		e.theta[i] += float64(g[i]*innovation) / scale
		for j := range i + 1 {
			v := (e.cov[i*p+j] - float64(g[i]*g[j])/scale) / forget
			e.cov[i*p+j], e.cov[j*p+i] = v, v
		}
	}
	for i := range p {
		if !(e.cov[i*p+i] > 0) { // rounding has eaten the covariance
			e.reset()
			return
		}
	}
}

func (e *autoregression) visit(c *codec) {
	c.floats(e.theta)
	c.floats(e.features)
	c.floats(e.cov)
	c.float(&e.unit)
	c.float(&e.error2)
	c.uint(&e.n)
	c.int(&e.season, 0, MaxSeason)
}
