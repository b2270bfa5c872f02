package predictor

// holtWinters is exponential smoothing of level, damped trend and additive season (Holt, 1957; Winters, Management Science 6,
// 1960), in the error-correction form of Hyndman et al., Forecasting with Exponential Smoothing, 2008, at several sets of rates,
// each weighted by the fourth power of its inverse mean squared error. It begins when one season has been seen, and anew
// when the history finds another; until then, and without a season, it is damped Holt.
type holtWinters struct {
	members []winters
	period  int // that the seasons were begun for; 0 if none
}

// winters is Holt–Winters at one set of rates.
type winters struct {
	rate, trendRate, seasonRate float64

	level, trend float64
	season       []float64 // deviation from the level, by step number modulo the period
	squared      float64   // mean squared error
}

const (
	wintersDamping = 0.9  // of the trend, per step
	wintersMemory  = 0.98 // of the mean squared error
)

// newHoltWinters returns the expert for seasons of at most so many steps.
func newHoltWinters(longest int) *holtWinters {
	e := &holtWinters{members: []winters{{rate: 0.2, trendRate: 0.05, seasonRate: 0.2}, {rate: 0.5, trendRate: 0.1, seasonRate: 0.2},
		{rate: 0.8, trendRate: 0.2, seasonRate: 0.3}, {rate: 0.95, trendRate: 0.5, seasonRate: 0.5}}}
	for k := range e.members {
		e.members[k].season = make([]float64, longest)
	}
	return e
}

func (*holtWinters) name() string   { return "holt-winters" }
func (*holtWinters) family() Family { return FamilyLinear }

func (e *holtWinters) step(h *history) float64 {
	begin := h.season != e.period && (h.season == 0 || h.has(h.season))
	if !begin && h.n > 1 {
		for k := range e.members {
			e.members[k].learn(h.back(0), h.n-1, e.period)
		}
	}
	if begin {
		e.period = h.season
	}
	if begin || h.n == 1 {
		for k := range e.members {
			e.members[k].begin(h, e.period)
		}
	}
	return e.mix(h)
}

// mix returns the members' forecasts of the next value, each weighted by what its errors are worth.
func (e *holtWinters) mix(h *history) float64 {
	floor := float64(h.floor() * h.floor())
	best := e.members[0].squared
	for k := range e.members {
		best = min(best, e.members[k].squared)
	}
	sum, total := 0.0, 0.0
	for k := range e.members {
		ratio := (best + floor) / (e.members[k].squared + floor)
		ratio = float64(ratio * ratio)
		ratio = float64(ratio * ratio)
		sum += float64(ratio * e.members[k].forecast(h.n, e.period))
		total += ratio
	}
	return sum / total
}

// learn takes in y, the value that n others came before.
func (w *winters) learn(y float64, n uint64, period int) {
	miss := y - w.forecast(n, period)
	w.squared = float64(wintersMemory*w.squared) + float64((1-wintersMemory)*miss*miss)
	slope := float64(wintersDamping * w.trend)
	w.level += slope + float64(w.rate*miss)
	w.trend = slope + float64(w.rate*w.trendRate*miss)
	if period > 1 {
		w.season[n%uint64(period)] += float64(w.seasonRate * (1 - w.rate) * miss)
	}
}

// forecast returns what is expected of the value that n others came before.
func (w *winters) forecast(n uint64, period int) float64 {
	x := w.level + float64(wintersDamping*w.trend)
	if period > 1 {
		x += w.season[n%uint64(period)]
	}
	return x
}

// begin takes the newest value for the level and, with a period, the last values for the season: what is left of
// them when their mean and the slope over a whole season are taken out.
func (w *winters) begin(h *history, period int) {
	w.level, w.trend = h.back(0), 0
	clear(w.season)
	if period < 2 {
		return
	}
	mean := 0.0
	for k := range period {
		mean += (h.back(k) - mean) / float64(k+1)
	}
	middle := float64(0.5 * float64(period-1))
	w.trend = (h.back(0) - h.back(period)) / float64(period)
	w.level = mean + float64(w.trend*middle)
	for k := range period {
		w.season[(h.n-1-uint64(k))%uint64(period)] = h.back(k) - mean - float64(w.trend*(middle-float64(k)))
	}
}

func (e *holtWinters) visit(c *codec) {
	c.int(&e.period, 0, len(e.members[0].season))
	for k := range e.members {
		w := &e.members[k]
		c.float(&w.level)
		c.float(&w.trend)
		c.float(&w.squared)
		c.floats(w.season)
	}
}
