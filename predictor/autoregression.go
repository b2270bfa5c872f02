package predictor

import "math"

// autoregression forecasts by recursive least squares. The target is the next increment; the features are a constant,
// the distance to the mean, the distances to the preceding values and, if seasonal, to those about one season ago, all
// in units of the history's spread. Without evidence all coefficients are zero, which is the naive forecast.
type autoregression struct {
	id       string
	lags     int
	seasonal bool

	rls
	unit   float64 // of features and target, at the last forecast
	reach  float64 // greatest |increment| in memory, in units: a forecast goes no farther
	season int     // the features are for
}

const (
	arFeature   = 50    // features are cut at so many spreads
	arOutermost = 20    // targets and forecasts stay within so many spreads of the last value
	reachMemory = 0.999 // of the greatest increment, per step
	unitFloors  = 4     // numerical floors that a unit must exceed: a signal that has not moved yet has no unit
)

func newAutoregression(id string, forgetting float64, lags int, seasonal bool) *autoregression {
	p := 3 + lags
	if seasonal {
		p += 4
	}
	// The farther a lag, the less is expected of it.
	prior := func(i int) float64 {
		k := i - 2
		if k < 1 || k > lags {
			return rlsPrior
		}
		return rlsPrior / float64(k) / float64(k)
	}
	return &autoregression{id: id, lags: lags, seasonal: seasonal, rls: newRLS(forgetting, p, prior)}
}

func (e *autoregression) name() string   { return e.id }
func (e *autoregression) family() Family { return FamilyLinear }
func (*autoregression) belief() float64  { return 5 }

func (e *autoregression) step(h *history) float64 {
	if h.n > 3 && e.unit > float64(unitFloors*h.floor()) { // else the unit says nothing yet
		e.rescale(h.spread)
		target := (h.back(0) - h.back(1)) / e.unit
		e.reach = max(float64(reachMemory*e.reach), math.Abs(clip(target, arOutermost)))
		e.learn(clip(target, arOutermost))
	}
	if e.seasonal && e.season != h.season { // what was learned of another period is void
		for i := 3 + e.lags; i < len(e.theta); i++ {
			e.forget(i)
		}
		e.season = h.season
	}
	e.look(h)
	return h.back(0) + float64(e.unit*clip(e.predict(), e.reach))
}

// rescale takes the features of the last forecast into a greater unit, where the newest value has shown that the unit
// was too small: else the first move of a signal at rest would be learned as one of many spreads.
func (e *autoregression) rescale(unit float64) {
	if !(unit > e.unit) {
		return
	}
	for i := 1; i < len(e.features); i++ {
		e.features[i] = float64(e.features[i] * (e.unit / unit))
	}
	e.unit = unit
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

func (e *autoregression) visit(c *codec) {
	e.rls.visit(c)
	c.float(&e.unit)
	c.float(&e.reach)
	c.int(&e.season, 0, MaxSeason)
}
