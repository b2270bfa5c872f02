package predictor

import (
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/usp-project/usp/detmath"
)

// ready has the detectors' thresholds, which take longer to find than a short series to run.
func quick(t testing.TB, cfg Config, ready *Predictor) *Predictor {
	p, err := newPredictor(cfg)
	if err != nil {
		t.Fatal(err)
	}
	p.cusum.threshold, p.slow.chart.threshold, p.variance.threshold = ready.cusum.threshold, ready.slow.chart.threshold, ready.variance.threshold
	return p
}

// Whatever comes, the weights are weights after every step of every rule, and a restored predictor goes on with the same bits.
func TestWeightsWhateverComes(t *testing.T) {
	ready := create(t, Config{})
	hostile := []float64{0, 1, -1, math.SmallestNonzeroFloat64, 1e-160, -1e160, math.MaxFloat64, -math.MaxFloat64, 1e300, 1 + 0x1p-52, 1e15, -1e-15}
	value := rapid.OneOf(rapid.SampledFrom(hostile), rapid.Float64Range(-10, 10), rapid.Float64Range(-1e100, 1e100))
	extreme := func(lo, hi float64) *rapid.Generator[float64] {
		return rapid.OneOf(rapid.Just(0.), rapid.SampledFrom([]float64{lo, hi}), rapid.Float64Range(lo, hi))
	}
	for _, step := range stepNames {
		t.Run(step, func(t *testing.T) {
			rapid.Check(t, func(r *rapid.T) {
				o := Orchestrator{Step: step, Tau: extreme(1e-6, 1e4).Draw(r, "tau"), Lambda: extreme(1e-6, 100).Draw(r, "lambda"),
					EpsilonMin: extreme(1e-3, 100).Draw(r, "epsilon"), SwitchCost: extreme(1e-3, 100).Draw(r, "cost"), EpsilonMax: 1000, SoftReset: extreme(1e-9, 1).Draw(r, "reset")}
				p := quick(t, Config{KernelWindow: 1, Orchestrator: o}, ready)
				var out Output
				now := int64(0)
				for _, y := range rapid.SliceOfN(value, 1, 40).Draw(r, "values") {
					for range rapid.IntRange(1, 3).Draw(r, "times") {
						now++
						if err := p.Step(Observation{Time: now, Value: y}, &out); err != nil {
							t.Fatal(err)
						}
						sane(t, &out)
					}
				}
				same(t, p, restore(t, p))
			})
		})
	}
}

// The names in the settings' tag are the constants, and each stands for something else.
func TestSteps(t *testing.T) {
	field, _ := reflect.TypeFor[Orchestrator]().FieldByName("Step")
	if tag := field.Tag.Get("enum"); tag != strings.Join(stepNames, ",") {
		t.Errorf("the settings allow %s, the predictor %v", tag, stepNames)
	}
	y := walk(5, 150)
	weights, ids := map[string]string{}, map[[32]byte]string{}
	for _, step := range stepNames {
		cfg := Config{Orchestrator: Orchestrator{Step: step}}
		p := create(t, cfg)
		cost, most := 0.0, 0.0
		feed(t, p, y, func(_ int, _ float64, out *Output) {
			cost += out.OTCost
			most = max(most, out.Gap)
			if out.Iterations == 0 && out.Step > 2 && out.Flags&FlagDegraded == 0 {
				t.Errorf("%s, step %d: nothing was executed", step, out.Step)
			}
		})
		if transports := step == StepHK || step == StepJKO; transports != (cost > 0) {
			t.Errorf("%s: transport cost %v", step, cost)
		}
		if minimises := step == StepHK || step == StepJKO || step == StepEWA || step == StepFixedShare; minimises != (most > 0) || most >= gapTolerance {
			t.Errorf("%s: greatest gap %v", step, most)
		}
		key := fmt.Sprint(p.ensemble.rho)
		if other, ok := weights[key]; ok {
			t.Errorf("%s comes to the same weights as %s", step, other)
		}
		if other, ok := ids[p.configID]; ok {
			t.Errorf("%s has the same id as %s", step, other)
		}
		weights[key], ids[p.configID] = step, step
		if _, err := Restore(Config{}, state(p)); (err == nil) != (step == StepHK) {
			t.Errorf("a state of %s restored under the defaults: error %v", step, err)
		}
	}
	for _, o := range []Orchestrator{{Tau: 2}, {Lambda: 2}} {
		if id := create(t, Config{Orchestrator: o}).configID; ids[id] != "" {
			t.Errorf("%+v has the id of %s", o, ids[id])
		}
	}
}

// A step that is stopped short of its minimum says so, and the next one, which is not, takes that back.
func TestNotConverged(t *testing.T) {
	p := create(t, Config{Orchestrator: Orchestrator{Step: StepJKO}})
	a := p.ensemble.parts[0].(*jko)
	var raised []int
	for i, y := range walk(5, 60) {
		a.opt.MaxIterations = 0 // the default
		if i >= 40 && i < 44 {
			a.opt.MaxIterations = 1
		}
		feed(t, p, []float64{y}, func(_ int, _ float64, out *Output) {
			flag := out.Flags&FlagNotConverged != 0
			if flag != (out.Gap >= gapTolerance) {
				t.Errorf("step %d: gap %v, flags %v", i, out.Gap, FlagNames(out.Flags))
			}
			if flag {
				raised = append(raised, i)
			}
		})
	}
	if want := between(40, 43); !slices.Equal(raised, want) {
		t.Errorf("raised at %v, want %v, where the solver was stopped", raised, want)
	}
}

// EWA and fixed share against their formulas.
func TestPlainAggregators(t *testing.T) {
	belief := []float64{.5, .3, .2}
	e, f := newEWA(belief), newFixedShare(belief)
	g := newGround(3, .5)
	total, variance, shared := make([]float64, 3), 1.0, slices.Clone(belief)
	for _, loss := range [][]float64{{1, -2, .5}, {0, 3, -1}, {-1, -1, 2}, {4, 4, 4}} {
		sum, norm := 0.0, 0.0
		for i, l := range loss {
			variance += e.rho[i] * l * l
			total[i] += l
			shared[i] *= math.Exp(-fixedShareRate * l)
			norm += shared[i]
		}
		want := slices.Clone(belief)
		for i := range want {
			want[i] *= math.Exp(-min(1, math.Sqrt(math.Log(3)/variance)) * total[i])
			sum += want[i]
			shared[i] = (1-fixedShareOf)*shared[i]/norm + fixedShareOf/3
		}
		e.learn(loss, &g)
		f.learn(loss, &g)
		for i := range want {
			near(t, "EWA", e.rho[i], want[i]/sum, 1e-13)
			near(t, "fixed share", f.rho[i], shared[i], 1e-13)
		}
	}
	// A soft reset is remembered.
	before := slices.Clone(e.rho)
	e.soften(.3)
	for i, w := range before {
		near(t, "EWA softened", e.rho[i], .7*w+.1, 1e-14)
	}
	softened := slices.Clone(e.rho)
	e.learn([]float64{0, 0, 0}, &g)
	for i, w := range softened {
		near(t, "EWA after a round without losses", e.rho[i], w, 1e-13)
	}
	if d := math.Abs(detmath.Sum(e.rho) - 1); d > 0x1p-50 {
		t.Errorf("sum off by %v", d)
	}
}
