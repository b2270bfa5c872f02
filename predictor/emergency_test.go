package predictor

import (
	"math"
	"slices"
	"testing"

	"github.com/usp-project/usp/detmath"
)

// The standard error is that of the estimator on white scores, at several windows, and the mean is ½.
func TestHolderError(t *testing.T) {
	statistics(t)
	for _, window := range []int{64, 128, 256, 512, 2048} {
		cfg := Config{HolderWindow: window}.WithDefaults()
		u := detmath.Uniform{Seed: uint64(window)}
		const runs = 400
		sum, squares := 0.0, 0.0
		for range runs {
			m := newMonitor(&cfg)
			for range window + 2 {
				z := u.Normal()
				m.observe(z, z, 0)
			}
			sum += m.holder
			squares += m.holder * m.holder
		}
		mean := sum / runs
		sd := math.Sqrt(squares/runs - mean*mean)
		t.Logf("window %d: %.4f ± %.4f, by the formula %.4f", window, mean, sd, holderError(uint64(window)))
		near(t, "mean exponent of white scores", mean, .5, .03)
		near(t, "standard error over that of the formula", sd/holderError(uint64(window)), 1, .15)
	}
}

func TestEmergencyHasHysteresis(t *testing.T) {
	cfg := Config{}.WithDefaults()
	e := newEmergency(&cfg)
	show := func(holder float64, steps int) bool {
		for range steps {
			e.observe(holder, 1000)
		}
		return e.on
	}
	for _, c := range []struct {
		holder float64
		steps  int
		want   bool
		why    string
	}{
		{.5, 300, false, "white"}, {.26, 5, false, "above the limit"}, {.24, 1, true, "below it, and far from the mean"},
		{.27, 5, true, "not yet above limit and hysteresis"}, {.31, 1, false, "above both"}, {.27, 5, false, "not below the limit"}, {.2, 1, true, "again"},
		{.2, 5000, false, "it has become the mean"},
	} {
		if got := show(c.holder, c.steps); got != c.want {
			t.Errorf("exponent %v: emergency is %v, want %v: %s", c.holder, got, c.want, c.why)
		}
	}
	e = newEmergency(&cfg)
	if show(.2, 100) {
		t.Error("an exponent that was never higher is an emergency")
	}
	for range 10 {
		e.observe(0, roughLeast-1)
	}
	if e.on {
		t.Error("an exponent of too few scores is an emergency")
	}
}

func TestPrefer(t *testing.T) {
	for _, c := range []struct {
		rho  []float64
		want []float64
	}{
		{[]float64{.6, .2, .15, .05}, []float64{.375, .125, .375, .125}},
		{[]float64{.2, .1, .3, .4}, []float64{.2, .1, .3, .4}},
		{[]float64{.75, .25, 0, 0}, []float64{.375, .125, .25, .25}},
	} {
		m := newEnsemble(&Orchestrator{Step: StepHK}, c.rho)
		m.prefer([]bool{false, false, true, true}, .5)
		for i := range c.want {
			near(t, "weight", m.rho[i], c.want[i], 1e-15)
		}
		copy(m.rho, c.rho)
		m.prefer(make([]bool, 4), .5)
		if !slices.Equal(m.rho, c.rho) {
			t.Errorf("without such experts the weights %v became %v", c.rho, m.rho)
		}
	}
}

// In the whole predictor: with a tight window the errors of one who has just lost a trend are sometimes rough enough.
func TestEmergencyBoundsTheWeights(t *testing.T) {
	statistics(t)
	var s series
	p := create(t, traceConfig)
	families := p.Families()
	var out Output
	raised, cleared, was := 0, 0, false
	for range 10_000 {
		if p.Step(s.next(), &out) != nil {
			continue
		}
		share := 0.0
		for i, w := range out.Weights {
			if families[i] == FamilyRough {
				share += w
			}
		}
		on := out.Flags&FlagEmergency != 0
		if on && !was {
			raised++
		}
		if !on && was {
			cleared++
		}
		if was && out.Flags&FlagDegraded == 0 && share < .5-1e-12 {
			t.Fatalf("step %d: rough-path experts have %v in an emergency", out.Step, share)
		}
		if d := out.Flags&FlagDegraded != 0; d != (out.Flags&(FlagOutlier|FlagFrozen|FlagStale) != 0) {
			t.Fatalf("step %d: degraded is %v with %v", out.Step, d, FlagNames(out.Flags))
		}
		was = on
	}
	t.Logf("raised %d times, cleared %d", raised, cleared)
	if raised == 0 || cleared == 0 {
		t.Errorf("raised %d times, cleared %d, want both", raised, cleared)
	}
}

// It hardly ever fires where nothing is wrong, and not at all on the shipped series.
func TestEmergencyIsRare(t *testing.T) {
	statistics(t)
	for _, name := range []string{"sunspots", "nile", "co2", "unemployment", "gdp"} {
		y, season := example(t, name)
		demand(t, name, flagsOf(t, create(t, Config{Season: season}), y), FlagEmergency)
	}
	n := 0
	for seed := range uint64(5) {
		n += len(steps(flagsOf(t, create(t, Config{KernelWindow: 1}), noise(60+seed, 4000)), FlagEmergency))
	}
	if n > 20 {
		t.Errorf("%d of 20000 steps of white noise are an emergency", n)
	}
}
