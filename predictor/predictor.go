// Package predictor is the compute side of the Universal Stochastic Predictor: a causal one-step-ahead forecaster for
// a scalar series, made of simple experts whose weights move by a Hellinger–Kantorovich step in the geometry of their
// forecasts, with a watch on the forecast errors.
//
// A step takes one observation, scores the forecast that was stored for it, updates the regime detector, moves the
// weights, lets every expert learn, and stores the forecast of the next observation. It does no I/O, starts no
// goroutine, reads no clock, draws no random number and allocates nothing.
//
// The package promises reproducibility: the same observations and the same Config give the same bits on every
// architecture, for any number of processors, with or without hardware fused multiply-add, and across State and
// Restore after any step.
package predictor

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/usp-project/usp/ot"
)

// MaxMagnitude is the greatest |value| told from greater ones: beyond it squares would overflow. FlagSaturated tells.
const MaxMagnitude = 1e100

// The errors of Step. An observation that gives one changes nothing.
var (
	ErrNotFinite = errors.New("predictor: the value is not a finite number")
	ErrTime      = errors.New("predictor: the time is not after that of the observation before")
)

// Observation is one value of the series.
type Observation struct {
	Time  int64 // nanoseconds since the Unix epoch, strictly increasing
	Value float64

	// Arrival is when the value reached the predictor, nanoseconds since the Unix epoch; 0, or a time before Time: at Time.
	Arrival int64
}

// Output is what one step yields. Forecast and interval carry the signal and are for the caller alone; what Fill puts
// into a telemetry record does not tell the signal's values.
type Output struct {
	Step uint64 // number of observations so far: 1 for the first
	Time int64  // of the observation

	Forecast, Lower, Upper        float64 // for the next observation, with its interval (90 % by default)
	Prior, PriorLower, PriorUpper float64 // what was stored for this observation before it was seen
	HasPrior                      bool    // false at the first step

	CusumPos, CusumNeg float64 // the two sums before an alarm clears them, in standard deviations of the clipped score
	CusumVar           float64 // the sum of the variance chart likewise, in standard deviations of the bounded square
	Threshold          float64 // of the first two sums
	Entropy            float64 // of the weights, nats
	LawEntropy         float64 // differential, of the predictive law in units of the error scale, nats; 0 in warm-up
	DiffusionEntropy   float64 // the same of the diffusion expert's law alone
	MixtureShare       float64 // part of Weights that is the orchestrator's; below 1 where StepHK has lost to naive, which has the rest
	OTCost             float64 // ⟨C,π⟩ of the transport executed in this step; 0 if none was
	FreeEnergy         float64 // ⟨w,ℓ⟩ + KL(w‖ρ)/η at its minimum w, mixed over the learning rates; 0 likewise
	Epsilon            float64 // regularisation of the transport, in units of the ground cost
	Residual           float64 // largest error of the executed plan's first marginal; with "jko" of the one that was solved for
	Gap                float64 // duality gap of the executed step, relative to max(1, |primal value|); 0 if nothing was minimised
	Iterations         uint64  // of the solver: 1 where the step is in closed form; 0 if none was executed
	RelVolatility      float64 // short-term error volatility relative to the long-term one
	Kurtosis           float64 // of the standardised errors in the window, within [1, 100]; 3 until known
	Holder             float64 // Hölder exponent of the cumulated standardised errors, within [0, 1]; ½ if white
	HolderError        float64 // standard error of Holder, were the errors white
	Scale              float64 // error scale, unit of the value; 0 in warm-up
	Flags              uint64  // see FlagWarmUp and the others

	// Weights is the weight of each expert, in the order of Experts, summing to 1, and PriorExperts what each had
	// forecast for this observation (meaningless unless HasPrior). Both are the predictor's own memory: valid until the
	// next Step, not to be written.
	Weights, PriorExperts []float64
}

// Predictor forecasts one series. It is not safe for concurrent use.
type Predictor struct {
	cfg      Config
	configID [32]byte
	steps    uint64
	time     int64

	forecast, lower, upper float64 // stored for the next observation

	history  history
	experts  []expert
	ensemble ensemble
	monitor  monitor
	cusum    cusum
	variance varianceChart
	slow     slowChart
	stale    staleness
	rough    emergency
	ordered  bool // an emergency ordered the weights of this step
	guard    guard
	guarded  bool      // with StepHK
	weights  []float64 // ρ: the ensemble's, under the guard
	mixed    float64   // the ensemble's share in them
	conf     conformal
	diffuse  *diffusion // among the experts
	gate     gate
	law      lawGrid   // of the next value
	laid     bool      // law is that of the present state: report lays it; after Restore, Law does
	prior    []float64 // what each expert had forecast for the newest value

	sections []section // views of the above for State and Restore
	codec    codec     // scratch of State
}

// New returns a predictor that has seen nothing. The error names the parameter that is out of range.
func New(cfg Config) (*Predictor, error) {
	p, err := newPredictor(cfg)
	if err != nil {
		return nil, err
	}
	p.cusum.threshold = cusumThreshold(p.cfg.CusumSlack, p.cfg.CusumClip, p.cfg.TargetRunLength)
	p.slow.chart.threshold = cusumThreshold(slowSlack, slowClip, float64(slowTarget*p.cfg.TargetRunLength))
	p.variance.threshold = thresholdFor(p.cfg.VarianceRunLength, func(h float64) float64 { return varianceRunLength(h, 1) })
	return p, nil
}

// newPredictor is New without the detectors' thresholds.
func newPredictor(cfg Config) (*Predictor, error) {
	cfg = cfg.WithDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	p := &Predictor{cfg: cfg, configID: cfg.sum(), history: newHistory(cfg.Season), experts: newExperts(cfg),
		monitor: newMonitor(&cfg), cusum: newCusum(&cfg), variance: varianceChart{wait: cfg.Grace}, slow: newSlowChart(), stale: staleness{after: cfg.StaleAfter},
		rough: newEmergency(&cfg), conf: newConformal(&cfg), gate: newGate(&cfg)}
	p.ensemble = newEnsemble(&p.cfg.Orchestrator, beliefs(p.experts))
	p.guarded = p.cfg.Orchestrator.Step == StepHK
	p.mixed = 1
	p.weights = slices.Clone(p.ensemble.rho)
	for i, e := range p.experts {
		p.ensemble.rough[i] = e.family() == FamilyRough
		if e, ok := e.(*diffusion); ok {
			p.diffuse = e
		}
	}
	p.prior = make([]float64, len(p.experts))
	p.ensemble.ground.epsilon = p.epsilon()
	p.sections = p.parts()
	return p, nil
}

// Experts returns the names of the experts in the order of Output.Weights.
func (p *Predictor) Experts() []string {
	names := make([]string, len(p.experts))
	for i, e := range p.experts {
		names[i] = e.name()
	}
	return names
}

// Families returns the family of each expert, in the order of Output.Weights.
func (p *Predictor) Families() []Family {
	families := make([]Family, len(p.experts))
	for i, e := range p.experts {
		families[i] = e.family()
	}
	return families
}

// Steps returns the number of observations taken in, those quarantined or dropped included.
func (p *Predictor) Steps() uint64 { return p.steps }

// Config returns the configuration with all defaults filled in.
func (p *Predictor) Config() Config { return p.cfg }

// Step takes in one observation and fills out. The error wraps ErrNotFinite or ErrTime and leaves p and out as they were.
func (p *Predictor) Step(obs Observation, out *Output) error {
	if math.IsNaN(obs.Value) || math.IsInf(obs.Value, 0) {
		return fmt.Errorf("%w: step %d, value %v", ErrNotFinite, p.steps+1, obs.Value)
	}
	if p.steps > 0 && obs.Time <= p.time {
		return fmt.Errorf("%w: step %d, time %d after %d", ErrTime, p.steps+1, obs.Time, p.time)
	}
	*out = Output{Step: p.steps + 1, Time: obs.Time, HasPrior: p.steps > 0, Threshold: p.cusum.threshold}
	if out.HasPrior {
		out.Prior, out.PriorLower, out.PriorUpper = p.forecast, p.lower, p.upper
	}
	if out.HasPrior {
		// The difference of two int64 fits a uint64.
		gap, age := float64(uint64(obs.Time)-uint64(p.time)), 0.0
		if obs.Arrival != 0 && obs.Arrival > obs.Time {
			age = float64(uint64(obs.Arrival) - uint64(obs.Time))
		}
		p.stale.observe(gap, age)
	}
	p.steps++
	p.time = obs.Time
	y := obs.Value
	if math.Abs(y) > MaxMagnitude {
		y = math.Copysign(MaxMagnitude, y)
		out.Flags |= FlagSaturated
	}
	p.ensemble.hold()
	p.ordered = p.rough.on
	copy(p.prior, p.ensemble.forecast)
	if !out.HasPrior {
		p.gate.watch(y)
		p.slow.observe(y, p.history.floor(), true)
		p.absorb(y)
	} else {
		p.take(y, out)
	}
	p.report(out)
	return nil
}

// warm says whether enough forecasts were scored for alarms, quarantine and measured intervals.
func (p *Predictor) warm() bool { return p.monitor.scored >= uint64(p.cfg.WarmUp) }

// take judges a value that a forecast was stored for, scores the forecast and learns.
func (p *Predictor) take(y float64, out *Output) {
	p.conf.missed(y < p.lower || y > p.upper)
	scale := p.monitor.scale(p.history.floor())
	switch p.gate.judge(y, p.forecast, scale, p.warm()) {
	case hold:
		out.Flags |= FlagOutlier | FlagDegraded
		return
	case shift:
		out.Flags |= FlagShift
		p.monitor.widen(p.gate.spread2(y))
		p.release(false)
		p.cusum.restart()
		p.slow.restart()
		if !p.stale.stale {
			p.ensemble.soften(p.cfg.Orchestrator.SoftReset)
		}
	case drop:
		out.Flags |= FlagDropped
		p.release(true)
	}
	p.gate.watch(y)
	p.settle(y, out)
}

// release lets the experts catch up with the quarantined values, or with forecasts in their place.
func (p *Predictor) release(replace bool) {
	for _, y := range p.gate.pending[:p.gate.held] {
		if replace {
			y = p.forecast
		}
		p.absorb(y)
	}
	p.gate.held = 0
}

// settle scores the stored forecast by y and learns from it.
func (p *Predictor) settle(y float64, out *Output) {
	floor := p.history.floor()
	scale := p.monitor.scale(floor)
	err := y - p.forecast
	score := clip(err/scale, 1e6)
	if p.gate.frozen {
		out.Flags |= FlagDegraded
		p.absorb(y)
		return
	}
	alarm := uint64(0)
	if p.warm() {
		alarm = p.cusum.observe(score)
		out.Flags |= alarm
		p.conf.observe(math.Abs(score))
	}
	out.Flags |= p.watchLevel(y, floor, alarm)
	p.ensemble.score(y, floor)
	if p.monitor.scored > 0 && !p.stale.stale {
		p.guard.learn(y, p.history.back(0))
		p.ensemble.learn(y, scale, p.epsilon(), p.rough.on)
	}
	if alarm != 0 && !p.stale.stale {
		p.ensemble.soften(p.cfg.Orchestrator.SoftReset)
		if p.rough.on {
			p.ensemble.prefer(p.ensemble.rough, roughShare)
		}
	}
	p.monitor.observe(err, score, floor)
	p.rough.observe(p.monitor.holder, p.monitor.seen())
	if p.warm() {
		out.Flags |= p.variance.observe(err, p.monitor.scale2, floor)
	}
	p.absorb(y)
}

// watchLevel shows y to the slow chart and returns the alarm flag it raises, or 0. Nothing else follows from such an alarm: it
// says that the level is another one, not that the forecasts have failed, so weights and the first chart go on as they would
// have without. In warm-up, grace, and after the alarm given the slow chart learns and is silent.
func (p *Predictor) watchLevel(y, floor float64, alarm uint64) uint64 {
	if alarm != 0 {
		p.slow.restart()
	}
	slow := p.slow.observe(y, floor, !p.warm() || p.cusum.grace > 0)
	if slow != 0 {
		p.slow.restart()
	}
	return slow
}

// epsilon returns the regularisation of the transport: the more volatile the errors, the more freely weight moves.
func (p *Predictor) epsilon() float64 {
	o := &p.cfg.Orchestrator
	e := float64(o.EpsilonBase * (1 + float64(o.EpsilonVolatility*p.monitor.relative())))
	return max(o.EpsilonMin, min(o.EpsilonMax, e))
}

// absorb appends y to the history, lets the experts learn from it, and stores the forecast of the next value.
func (p *Predictor) absorb(y float64) {
	p.history.push(y)
	for i, e := range p.experts {
		x := e.step(&p.history)
		if math.IsNaN(x) || math.Abs(x) > 10*MaxMagnitude {
			x = y
		}
		p.ensemble.forecast[i] = x
	}
	p.guard.mixture = p.ensemble.look()
	p.mixed = 1
	if p.guarded && p.warm() && !p.ordered && !p.rough.on {
		p.mixed = p.guard.share()
	}
	weigh(p.weights, p.ensemble.rho, p.mixed)
	p.forecast = p.guard.mixture
	if p.mixed < 1 {
		p.forecast = blend(p.weights, p.ensemble.forecast)
	}
	half := float64(p.conf.width() * p.monitor.scale(p.history.floor()))
	if p.monitor.scored < 2 { // nothing is known of the errors: as wide as the value is great
		half = math.Abs(p.forecast)
	}
	p.lower, p.upper = p.forecast-half, p.forecast+half
}

// report fills in what the state after the step says.
func (p *Predictor) report(out *Output) {
	m := &p.ensemble
	out.Forecast, out.Lower, out.Upper = p.forecast, p.lower, p.upper
	out.Entropy = ot.Entropy(p.weights)
	out.MixtureShare = p.mixed
	out.OTCost, out.FreeEnergy, out.Epsilon = m.done.otCost, m.done.freeEnergy, m.ground.epsilon
	out.Residual, out.Gap, out.Iterations = m.done.residual, m.done.gap, m.done.iterations
	if !(out.Gap < gapTolerance) {
		out.Flags |= FlagNotConverged
	}
	out.RelVolatility, out.Kurtosis, out.Holder = p.monitor.relative(), p.monitor.kurtosis, p.monitor.holder
	out.HolderError = holderError(max(1, min(p.monitor.seen(), uint64(p.cfg.HolderWindow))))
	out.Weights, out.PriorExperts = p.weights, p.prior
	out.CusumPos, out.CusumNeg, out.CusumVar = p.cusum.shownUp, p.cusum.shownDown, p.variance.shown
	if p.warm() {
		out.Scale = p.monitor.scale(p.history.floor())
		if p.lay() {
			out.LawEntropy = p.law.entropy(out.Scale)
			out.DiffusionEntropy = p.diffuse.entropy(out.Scale)
		}
	} else {
		out.Flags |= FlagWarmUp
	}
	if p.cusum.grace > 0 {
		out.Flags |= FlagGrace
	}
	if p.gate.frozen {
		out.Flags |= FlagFrozen
	}
	if p.rough.on {
		out.Flags |= FlagEmergency
	}
	if p.stale.stale {
		out.Flags |= FlagStale | FlagDegraded
	}
}
