package predictor

import (
	"slices"

	"github.com/usp-project/usp/ot"
)

// expert is one way of forecasting the next value. An expert holds whatever it has learned; it may look at the
// shared history but not keep it. Its forecasts must be finite whatever finite values it is shown.
type expert interface {
	// name identifies the expert in state sections and reports: lower-case letters, digits, '-' and '.'.
	name() string
	// step learns from the newest value of h, which the expert has not seen before, and forecasts the one after it.
	step(h *history) float64
	// family is the kind of model that the expert is.
	family() Family
	// visit walks everything the expert has learned.
	visit(c *codec)
}

// shaped is an expert that knows the shape of its predictive law. The law of every other expert is normal about its
// forecast, with its measured mean squared error as the variance.
type shaped interface {
	expert
	// spread adds weight times the density of the next value to g. It allocates nothing and changes no state.
	spread(g *lawGrid, weight float64)
}

// believed is an expert that is given more weight than others before there is evidence. What can take the shape of many
// others deserves it: on short series the mixture would else spend its time finding that out.
type believed interface {
	expert
	// belief is that weight relative to an expert that does not say, for which it is 1.
	belief() float64
}

// beliefs returns the weights before any evidence, summing to 1.
func beliefs(experts []expert) []float64 {
	b := make([]float64, len(experts))
	for i, e := range experts {
		b[i] = 1
		if e, ok := e.(believed); ok {
			b[i] = e.belief()
		}
	}
	ot.Normalize(b)
	return b
}

// Family is a kind of model. Its value is the letter that the specification gives it.
type Family byte

// The families of experts.
const (
	FamilyLinear    Family = 'A' // linear, kernel and smoothing forecasts
	FamilyDiffusion Family = 'B' // a diffusion whose drift and diffusion are learned on a grid
	FamilyJump      Family = 'C' // mean reversion with jumps, heavy tails
	FamilyRough     Family = 'D' // signatures of the path
)

// String returns the letter.
func (f Family) String() string { return string(rune(f)) }

// newExperts returns the experts of one ensemble, in the order of their weights.
func newExperts(cfg Config) []expert {
	return slices.Concat(linearExperts(cfg), diffusionExperts(cfg), jumpExperts(cfg), roughExperts(cfg))
}

func linearExperts(cfg Config) []expert {
	experts := []expert{
		&naive{},
		&seasonalNaive{},
		&seasonalDrift{},
		&smoothing{id: "ses.2", rate: 0.2},
		&smoothing{id: "ses.5", rate: 0.5},
		newHoltWinters(longestSeason(cfg.Season)),
		&dampedHolt{id: "holt.60", rate: 0.9, trendRate: 0.5, damping: 0.6},
		&dampedHolt{id: "holt.85", rate: 0.8, trendRate: 0.3, damping: 0.85},
		&driftSmoothing{id: "drift.3", rate: 0.3},
		&driftSmoothing{id: "drift.6", rate: 0.6},
		newAutoregression("ar.short", cfg.Forgetting, 2, false),
		newAutoregression("ar.seasonal", cfg.Forgetting, 3, true),
		newAutoregression("ar.long", cfg.Forgetting, 9, true),
	}
	if cfg.KernelWindow > 1 {
		experts = append(experts, newKernelRidge(cfg.KernelWindow))
	}
	return experts
}

// naive forecasts the last value.
type naive struct{}

func (*naive) name() string            { return "naive" }
func (*naive) family() Family          { return FamilyLinear }
func (*naive) step(h *history) float64 { return h.back(0) }
func (*naive) visit(*codec)            {}

// seasonalNaive forecasts the value of one season ago; without a season, or before one is complete, the
// last value.
type seasonalNaive struct{}

func (*seasonalNaive) name() string   { return "seasonal-naive" }
func (*seasonalNaive) family() Family { return FamilyLinear }
func (*seasonalNaive) step(h *history) float64 {
	if m := h.season; m > 1 && h.has(m-1) {
		return h.back(m - 1)
	}
	return h.back(0)
}
func (*seasonalNaive) visit(*codec) {}

// seasonalDrift forecasts the last value plus the increment that its place in the season has shown; without a
// season, plus the mean increment.
type seasonalDrift struct{}

func (*seasonalDrift) name() string            { return "seasonal-drift" }
func (*seasonalDrift) family() Family          { return FamilyLinear }
func (*seasonalDrift) step(h *history) float64 { return h.back(0) + h.increment() }
func (*seasonalDrift) visit(*codec)            {}

// smoothing is simple exponential smoothing.
type smoothing struct {
	id    string
	rate  float64
	level float64
}

func (e *smoothing) name() string { return e.id }
func (*smoothing) family() Family { return FamilyLinear }

func (e *smoothing) step(h *history) float64 {
	y := h.back(0)
	e.level += float64(max(e.rate, 1/float64(h.n)) * (y - e.level))
	return e.level
}

func (e *smoothing) visit(c *codec) { c.float(&e.level) }

// dampedHolt is exponential smoothing with a damped additive trend (Gardner and McKenzie, 1985).
type dampedHolt struct {
	id                       string
	rate, trendRate, damping float64
	level, trend             float64
}

func (e *dampedHolt) name() string { return e.id }
func (*dampedHolt) family() Family { return FamilyLinear }

func (e *dampedHolt) step(h *history) float64 {
	y := h.back(0)
	if h.n == 1 {
		e.level, e.trend = y, 0
		return y
	}
	slope := float64(e.damping * e.trend)
	before := e.level
	predicted := before + slope
	e.level = predicted + float64(e.rate*(y-predicted))
	e.trend = slope + float64(e.trendRate*((e.level-before)-slope))
	return e.level + float64(e.damping*e.trend)
}

func (e *dampedHolt) visit(c *codec) {
	c.float(&e.level)
	c.float(&e.trend)
}

// driftSmoothing is exponential smoothing of a level that also moves by the increment its place in the season has
// shown: simple smoothing with drift where there is no season.
type driftSmoothing struct {
	id    string
	rate  float64
	level float64
	drift float64 // used in the last forecast
}

func (e *driftSmoothing) name() string { return e.id }
func (*driftSmoothing) family() Family { return FamilyLinear }

func (e *driftSmoothing) step(h *history) float64 {
	y := h.back(0)
	predicted := e.level + e.drift
	e.level = predicted + float64(max(e.rate, 1/float64(h.n))*(y-predicted))
	e.drift = h.increment()
	return e.level + e.drift
}

func (e *driftSmoothing) visit(c *codec) {
	c.float(&e.level)
	c.float(&e.drift)
}
