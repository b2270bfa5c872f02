package predictor

import (
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/usp-project/usp/detmath"
	"github.com/usp-project/usp/internal/aggregate"
)

// equal believes n experts alike.
func equal(n int) []float64 {
	b := make([]float64, n)
	aggregate.Uniform(b)
	return b
}

// TestTrackingRegret asserts on whole runs of the predictor, for every learner of fixed rate, the inequality that
// ot.HK states, over the path of experts that Viterbi's recursion finds cheapest: hence over all paths.
func TestTrackingRegret(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		y := walk(rapid.Uint64().Draw(t, "seed"), rapid.IntRange(20, 70).Draw(t, "steps"))
		at, by := rapid.IntRange(0, len(y)-1).Draw(t, "at"), rapid.Float64Range(-10, 10).Draw(t, "by")
		for i := at; i < len(y); i++ {
			y[i] += by
		}
		// Soft resets are transitions of their own; here there are none.
		checkRegret(t, create(t, Config{TargetRunLength: 1e6, Grace: 1 << 20, OutlierSigma: 1e6, FreezeSteps: 1 << 20, KernelWindow: 16}), y)
	})
}

func checkRegret(t *rapid.T, p *Predictor, y []float64) {
	n := len(p.experts)
	m := &p.ensemble
	mixed := make([]float64, len(rates))
	best := make([][]float64, len(rates))
	for k := range best {
		best[k] = make([]float64, n)
		for i := range n {
			best[k][i] = -math.Log(m.rho[i]) / max(rates[k], 1e-300)
		}
	}
	next, loss, logs := make([]float64, n), make([]float64, n), make([]float64, n*n)
	var out Output
	for step, v := range y {
		scale := p.monitor.scale(p.history.floor())
		forecast := slices.Clone(m.forecast)
		rho := make([][]float64, len(rates))
		for k := range rho {
			rho[k] = slices.Clone(m.parts[k].weights())
		}
		if err := p.Step(Observation{Time: int64(step), Value: v}, &out); err != nil {
			t.Fatal(err)
		}
		if out.Iterations == 0 {
			continue
		}
		for i, x := range m.ground.transition.Kernel() {
			logs[i] = math.Log(x)
		}
		for k, eta := range rates {
			if eta == 0 {
				continue
			}
			own, mean, end := detmath.Dot(rho[k], forecast), 0.0, math.Inf(1)
			for i, x := range forecast {
				loss[i] = tangent(slopeAt(own, v, scale, lossBound*MaxMagnitude), own, x, 1/scale)
				mean += rho[k][i] * loss[i]
				end = min(end, best[k][i]+loss[i])
			}
			mix := m.moves[k].freeEnergy
			if mean > mix+eta*(2*lossBound)*(2*lossBound)/8+1e-9 {
				t.Fatalf("step %d, η %v: mean loss %v, mix loss %v", step, eta, mean, mix)
			}
			if mixed[k] += mix; mixed[k] > end+1e-8*(1+math.Abs(end)) {
				t.Fatalf("step %d, η %v: cumulated mix loss %v exceeds the bound %v", step, eta, mixed[k], end)
			}
			for j := range n {
				next[j] = math.Inf(1)
				for i := range n {
					next[j] = min(next[j], best[k][i]+loss[i]-logs[i*n+j]/eta)
				}
			}
			copy(best[k], next)
		}
	}
}

// The ensemble follows when another expert becomes the right one.
func TestEnsembleSwitches(t *testing.T) {
	cfg := Config{}.WithDefaults()
	m := newEnsemble(&cfg.Orchestrator, equal(3))
	e := noise(15, 600)
	forecasts := func(i int) {
		m.forecast[0], m.forecast[1], m.forecast[2] = 0, 1, 2
		if i >= 300 {
			m.forecast[0], m.forecast[2] = 2, 0
		}
		m.look()
	}
	forecasts(0)
	for i, x := range e {
		m.score(x, 1e-9)
		m.learn(x, 1, .1, false) // the value is 0 but for noise
		if i == 299 && slices.Index(m.rho, slices.Max(m.rho)) != 0 {
			t.Errorf("after 300 steps the weights are %v, want most on the first", m.rho)
		}
		forecasts(i + 1)
	}
	if slices.Index(m.rho, slices.Max(m.rho)) != 2 || m.rho[2] < .7 {
		t.Errorf("300 steps after the change the weights are %v, want most on the third", m.rho)
	}
}

func TestSoften(t *testing.T) {
	cfg := Config{}.WithDefaults()
	m := newEnsemble(&cfg.Orchestrator, equal(4))
	boa, poly := m.parts[len(rates)].(published), m.parts[len(rates)+1].(published)
	for k := range rates {
		copy(m.parts[k].weights(), []float64{1, 0, 0, 0})
	}
	copy(m.rho, []float64{1, 0, 0, 0})
	for k, r := range []float64{3, -1, 1, -2} {
		boa.Gain(k, r)
		poly.Gain(k, r)
	}
	boa.Mix()
	poly.Mix()
	before := [2]float64{boa.weights()[0], poly.weights()[0]}
	m.soften(.2)
	near(t, "BOA's first weight", boa.weights()[0], .8*before[0]+.05, 1e-14)
	near(t, "ML-Poly's first weight", poly.weights()[0], .8*before[1]+.05, 1e-14)
	want := []float64{.85, .05, .05, .05}
	for i, w := range want {
		near(t, "mixture weight", m.rho[i], w, 1e-15)
		for k := range rates {
			near(t, "learner weight", m.parts[k].weights()[i], w, 1e-15)
		}
	}
}

// The learner without a rate of its own must have found one that is fast enough for this.
func TestAdaptiveRate(t *testing.T) {
	cfg := Config{}.WithDefaults()
	m := newEnsemble(&cfg.Orchestrator, equal(3))
	for _, x := range noise(18, 300) {
		m.forecast[0], m.forecast[1], m.forecast[2] = 0, 1, 2
		m.look()
		m.learn(x, 1, .05, false)
	}
	if adaptive := m.parts[slices.Index(rates[:], 0)].weights(); adaptive[0] < .9 {
		t.Errorf("after 300 steps its weights are %v, want most on the first", adaptive)
	}
}

// Each expert on the signal that it is made for.
func TestExperts(t *testing.T) {
	cfg := Config{Season: 12}.WithDefaults()
	line, wave, flat := make([]float64, 300), make([]float64, 300), make([]float64, 300)
	e := noise(16, 300)
	oscillation := []float64{1, 2}
	for i := range line {
		line[i] = 3 + .5*float64(i)
		wave[i] = 10*math.Sin(2*math.Pi*float64(i)/12) + float64(i%3)
		flat[i] = 5 + .1*e[i]
	}
	for i := 2; i < 300; i++ {
		oscillation = append(oscillation, 1.5*oscillation[i-1]-.9*oscillation[i-2]+.01*e[i])
	}
	for _, c := range []struct {
		expert string
		y      []float64
		worst  float64 // forecast error over the last 50 values
	}{
		{"naive", line, .5001}, {"seasonal-naive", wave, 1e-9}, {"seasonal-drift", wave, 1e-9}, {"seasonal-drift", line, 1e-9},
		{"ses.2", flat, .4}, {"ses.5", flat, .45}, {"holt.85", line, .25}, {"holt.60", line, .6}, {"drift.3", line, 1e-9}, {"drift.6", wave, 1e-6},
		{"ar.short", oscillation, .06}, {"ar.seasonal", oscillation, .06}, {"ar.long", wave, .3}, {"kernel", oscillation, .2},
	} {
		h := newHistory(cfg.Season)
		experts := newExperts(cfg)
		at := slices.IndexFunc(experts, func(e expert) bool { return e.name() == c.expert })
		if at < 0 {
			t.Errorf("no expert %q", c.expert)
			continue
		}
		forecast, worst := 0.0, 0.0
		for i, v := range c.y {
			if i >= len(c.y)-50 {
				worst = max(worst, math.Abs(v-forecast))
			}
			h.push(v)
			forecast = experts[at].step(&h)
		}
		if worst > c.worst {
			t.Errorf("%s is off by up to %v, want at most %v", c.expert, worst, c.worst)
		}
	}
}

// Before a season is complete, and where there is none, the value of one season ago is the last value.
func TestSeasonalNaiveBeforeASeason(t *testing.T) {
	h, e := newHistory(4), &seasonalNaive{}
	for i, want := range []float64{1, 2, 4, 1, 2} {
		h.push([]float64{1, 2, 4, 8, 16}[i])
		if got := e.step(&h); got != want {
			t.Errorf("after %d values: %v, want %v", i+1, got, want)
		}
	}
}

// A regression is believed more than the naive forecast before there is evidence.
func TestBelief(t *testing.T) {
	p := create(t, Config{})
	b := beliefs(p.experts)
	at := func(name string) float64 {
		return b[slices.Index(p.Experts(), name)] / b[slices.Index(p.Experts(), "naive")]
	}
	for name, want := range map[string]float64{"naive": 1, "ar.short": 5, "signature": 3, "kernel": 6, "stable": .1} {
		near(t, name, at(name), want, 1e-12)
	}
	near(t, "sum", detmath.Sum(b), 1, 1e-15)
	feed(t, p, []float64{5}, nil)
	if !slices.Equal(p.ensemble.rho, b) {
		t.Errorf("the first weights are %v, want the beliefs %v", p.ensemble.rho, b)
	}
}
