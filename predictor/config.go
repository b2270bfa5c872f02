package predictor

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"
)

// MaxSeason is the longest season that can be declared: the hours of a leap year.
const MaxSeason = 8784

// Config holds every parameter of a predictor. The zero value is ready to use: a field left zero takes the default
// named beside it, and WithDefaults shows the result. Nothing else influences the numbers. Two predictors continue
// each other's state only if their configurations, defaults filled in, are equal.
type Config struct {
	// Season is the number of observations in one period. 0 lets the predictor find a period in what it has seen so
	// far (or none, if there is none); 1 says that there is none; otherwise 2 to MaxSeason.
	Season int `toml:"season"`

	WarmUp     int     `toml:"warm_up"`    // scored forecasts before alarms, outliers and measured intervals; default 10
	Forgetting float64 `toml:"forgetting"` // of the autoregressions, per step; default 0.998

	// KernelWindow is the number of delay vectors of the kernel expert, 16 to 256, default 64; 1 leaves the expert out.
	// The cost of a step grows with its third power.
	KernelWindow int `toml:"kernel_window"`

	CusumSlack      float64 `toml:"cusum_slack"`       // k, in standard deviations of the clipped score; default 0.5
	CusumClip       float64 `toml:"cusum_clip"`        // where scores are clipped, in standard deviations; default 1.5
	TargetRunLength float64 `toml:"target_run_length"` // steps between false alarms on Gaussian scores; default 500
	Grace           int     `toml:"grace"`             // steps after an alarm in which no other is raised; default 20

	// VarianceRunLength is the number of steps between false alarms of the variance chart on Gaussian scores; default 1000.
	VarianceRunLength float64 `toml:"variance_run_length"`

	OutlierSigma float64 `toml:"outlier_sigma"` // errors beyond so many scales are quarantined; default 20
	ConfirmSteps int     `toml:"confirm_steps"` // observations after which a quarantine is decided, 1 to 8; default 2
	FreezeSteps  int     `toml:"freeze_steps"`  // equal values in a row that raise the frozen flag, at least 3; default 5

	// StaleAfter is the number of sampling periods after which an input counts as stale, 2 to 10⁶; default 10.
	StaleAfter float64 `toml:"stale_after"`

	Coverage       float64 `toml:"coverage"`        // of the prediction interval; default 0.9
	ConformalRate  float64 `toml:"conformal_rate"`  // γ of adaptive conformal inference; default 0.01
	KurtosisWindow int     `toml:"kurtosis_window"` // steps; default 252
	HolderWindow   int     `toml:"holder_window"`   // steps; default 256

	HolderMin        float64 `toml:"holder_min"`        // exponent below which an emergency is possible; default 0.25
	HolderHysteresis float64 `toml:"holder_hysteresis"` // above that, it ends; default 0.05

	Orchestrator Orchestrator `toml:"-"` // a section of its own in a configuration file
}

// The values of Orchestrator.Step.
const (
	StepHK         = "hk"          // Hellinger–Kantorovich learners at several rates, BOA and ML-Poly, mixed by ML-Poly
	StepJKO        = "jko"         // the entropic JKO step of ot.JKO in the Wasserstein geometry
	StepEWA        = "ewa"         // exponentially weighted averages with a falling rate
	StepFixedShare = "fixed-share" // Herbster and Warmuth's
	StepBOA        = "boa"         // Bernstein online aggregation
	StepMLPoly     = "ml-poly"     // ML-Poly
	StepUniform    = "uniform"     // equal weights for ever
)

var stepNames = []string{StepHK, StepJKO, StepEWA, StepFixedShare, StepBOA, StepMLPoly, StepUniform}

// Orchestrator holds the parameters of what moves the weights of the experts.
type Orchestrator struct {
	// Step is the rule by which the weights move, one of the constants Step…; default StepHK. Only "hk" and "jko" transport
	// weight and have an OT cost, a switch cost and an ε; only "jko" has a tau and a lambda.
	Step   string  `toml:"step" enum:"hk,jko,ewa,fixed-share,boa,ml-poly,uniform"`
	Tau    float64 `toml:"tau"`    // τ, time step of "jko", in ground cost per loss; default 0.5
	Lambda float64 `toml:"lambda"` // λ, weight of the relative entropy in the free energy of "jko", unit of the loss; default 0.05

	SwitchCost        float64 `toml:"switch_cost"`        // c₀, least ground cost between two experts; default 0.5
	EpsilonBase       float64 `toml:"epsilon_base"`       // ε₀, regularisation at no volatility; default 0.07
	EpsilonVolatility float64 `toml:"epsilon_volatility"` // α in ε = ε₀(1 + α·relative volatility); default 0.5
	EpsilonMin        float64 `toml:"epsilon_min"`        // least ε; default 0.02
	EpsilonMax        float64 `toml:"epsilon_max"`        // greatest ε; default 0.5
	SoftReset         float64 `toml:"soft_reset"`         // share of the weights made uniform at an alarm, in (0, 1]; default 0.1
}

// WithDefaults returns c with every zero field replaced by its default.
func (c Config) WithDefaults() Config {
	def := func(p *float64, v float64) {
		if *p == 0 {
			*p = v
		}
	}
	defInt := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	defInt(&c.WarmUp, 10)
	def(&c.Forgetting, 0.998)
	defInt(&c.KernelWindow, 64)
	o := &c.Orchestrator
	if o.Step == "" {
		o.Step = StepHK
	}
	def(&o.Tau, 0.5)
	def(&o.Lambda, 0.05)
	def(&o.SwitchCost, 0.5)
	def(&o.EpsilonBase, 0.07)
	def(&o.EpsilonVolatility, 0.5)
	def(&o.EpsilonMin, 0.02)
	def(&o.EpsilonMax, 0.5)
	def(&o.SoftReset, 0.1)
	def(&c.CusumSlack, 0.5)
	def(&c.CusumClip, 1.5)
	def(&c.TargetRunLength, 500)
	def(&c.VarianceRunLength, 1000)
	defInt(&c.Grace, 20)
	def(&c.OutlierSigma, 20)
	defInt(&c.ConfirmSteps, 2)
	defInt(&c.FreezeSteps, 5)
	def(&c.StaleAfter, 10)
	def(&c.Coverage, 0.9)
	def(&c.ConformalRate, 0.01)
	defInt(&c.KurtosisWindow, 252)
	defInt(&c.HolderWindow, 256)
	def(&c.HolderMin, 0.25)
	def(&c.HolderHysteresis, 0.05)
	return c
}

// Validate reports the first parameter that is out of its range, by its name in a configuration file.
func (c Config) Validate() error {
	c = c.WithDefaults()
	o := c.Orchestrator
	ints := []struct {
		name      string
		v, lo, hi int
	}{
		{"season", c.Season, 0, MaxSeason}, {"warm_up", c.WarmUp, 2, 1 << 20}, {"grace", c.Grace, 1, 1 << 20},
		{"confirm_steps", c.ConfirmSteps, 1, maxPending}, {"freeze_steps", c.FreezeSteps, 3, 1 << 20},
		{"kurtosis_window", c.KurtosisWindow, 8, 1 << 16}, {"holder_window", c.HolderWindow, 32, 1 << 12},
	}
	if w := c.KernelWindow; w != 1 && (w < 16 || w > 256) {
		return fmt.Errorf("predictor: kernel_window is %d, want 16 to 256, or 1 for none", w)
	}
	if !slices.Contains(stepNames, o.Step) {
		return fmt.Errorf("predictor: step is %q, want one of %s", o.Step, strings.Join(stepNames, ", "))
	}
	for _, p := range ints {
		if p.v < p.lo || p.v > p.hi {
			return fmt.Errorf("predictor: %s is %d, want %d to %d", p.name, p.v, p.lo, p.hi)
		}
	}
	floats := []struct {
		name      string
		v, lo, hi float64
	}{
		{"forgetting", c.Forgetting, 0.5, 1}, {"tau", o.Tau, 1e-6, 1e4}, {"lambda", o.Lambda, 1e-6, 100}, {"switch_cost", o.SwitchCost, 1e-3, 100}, {"epsilon_base", o.EpsilonBase, 1e-3, 100},
		{"epsilon_volatility", o.EpsilonVolatility, 1e-9, 100}, {"epsilon_min", o.EpsilonMin, 1e-3, 100},
		{"epsilon_max", o.EpsilonMax, o.EpsilonMin, 1000}, {"cusum_slack", c.CusumSlack, 0.01, 0.9}, {"cusum_clip", c.CusumClip, 1, 10},
		{"target_run_length", c.TargetRunLength, 20, 1e6}, {"variance_run_length", c.VarianceRunLength, 20, 1e6}, {"soft_reset", o.SoftReset, 1e-9, 1}, {"outlier_sigma", c.OutlierSigma, 5, 1e6},
		{"stale_after", c.StaleAfter, 2, 1e6}, {"holder_min", c.HolderMin, 0.01, 0.5}, {"holder_hysteresis", c.HolderHysteresis, 1e-9, 0.5},
		{"coverage", c.Coverage, 0.5, 0.995}, {"conformal_rate", c.ConformalRate, 1e-4, 0.2},
	}
	for _, p := range floats {
		if !(p.v >= p.lo && p.v <= p.hi) {
			return fmt.Errorf("predictor: %s is %v, want %v to %v", p.name, p.v, p.lo, p.hi)
		}
	}
	return nil
}

// sum identifies the configuration in a saved state. c has its defaults filled in.
func (c Config) sum() [32]byte {
	var b []byte
	for _, v := range []int{c.Season, c.WarmUp, c.Grace, c.ConfirmSteps, c.FreezeSteps, c.KurtosisWindow, c.HolderWindow, c.KernelWindow} {
		b = binary.LittleEndian.AppendUint64(b, uint64(v))
	}
	o := c.Orchestrator
	for _, v := range []float64{c.Forgetting, o.SwitchCost, o.EpsilonBase, o.EpsilonVolatility, o.EpsilonMin, o.EpsilonMax, c.CusumSlack,
		c.CusumClip, c.TargetRunLength, c.VarianceRunLength, o.SoftReset, c.OutlierSigma, c.StaleAfter, c.Coverage, c.ConformalRate, c.HolderMin, c.HolderHysteresis,
		o.Tau, o.Lambda} {
		b = binary.LittleEndian.AppendUint64(b, math.Float64bits(v))
	}
	return sha256.Sum256(append(b, o.Step...))
}
